"""HU of a gland: within it, and how much fat its outline encloses; or why that cannot be told."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

FAT_HU = (-190, -30)
CLOSING_MM = 5.0
"""Gaps and notches of an outline that are narrower than this belong to the closed outline."""
_CUT_OFF = 0.01
"""From this share of voxels on, those at an end of the scale are taken to have been cut off."""
_DRAWN = 20
"""Fewer different values are those of a drawing without noise, which was not cut off."""


def limits(hu: Array) -> tuple[float, float]:
    """Between which values HU were kept: those at which many voxels lie; ±inf if none."""
    sample = hu.ravel()[:: max(1, hu.size // 50_000)]
    if len(np.unique(sample)) < _DRAWN:
        return -np.inf, np.inf
    low, high = float(hu.min()), float(hu.max())
    cut_low = low > -900 and np.mean(hu == low) >= _CUT_OFF
    return low if cut_low else -np.inf, high if np.mean(hu == high) >= _CUT_OFF else np.inf


def eroded(mask: Array) -> Array:
    """A mask (Z, Y, X) without the voxels that touch its outside by a face."""
    from scipy import ndimage

    return np.asarray(ndimage.binary_erosion(mask))


def closed(mask: Array, spacing: tuple[float, float, float]) -> Array:
    """A mask (Z, Y, X) with the notches and holes of its outline filled, slice by slice."""
    from scipy import ndimage

    window = [2 * int(CLOSING_MM / 2 / mm) + 1 for mm in spacing[1:]]
    pad = [(0, 0), *((n, n) for n in window)]
    grown = ndimage.grey_closing(np.pad(mask != 0, pad).astype(np.uint8), (1, *window))
    in_slice = ndimage.generate_binary_structure(3, 1)
    in_slice[[0, 2]] = False
    outside, _ = ndimage.label(grown == 0, in_slice)
    # The margin of each slice is one piece with what lies around the gland.
    around = outside == outside[:, :1, :1]
    return np.asarray(~around[:, window[0] : -window[0], window[1] : -window[1]])
