"""HU of a gland: within it, and how much fat its outline encloses; or why that cannot be told."""

from __future__ import annotations

import numpy as np

from napari_pancreas_seg.arrays import Array, Spacing

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


def fat_fraction(mask: Array, hu: Array, spacing: Spacing) -> float:
    """Share of voxels of fat within the closed outline of a mask (Z, Y, X) that is not empty."""
    fat = voxels = 0
    for inside, values in zip(mask, hu, strict=True):
        if inside.any():
            found = values[_closed(inside, spacing[1:])]
            voxels += found.size
            fat += int(np.count_nonzero((found >= FAT_HU[0]) & (found <= FAT_HU[1])))
    return fat / voxels


def _closed(plane: Array, spacing: tuple[float, float]) -> Array:
    """A slice of a mask (Y, X) with the notches and holes of its outline filled."""
    from scipy import ndimage

    window = [2 * int(CLOSING_MM / 2 / mm) + 1 for mm in spacing]
    padded = np.pad(plane != 0, [(n, n) for n in window]).view(np.uint8)
    outside, _ = ndimage.label(ndimage.grey_closing(padded, window) == 0)
    around = outside == outside[0, 0]
    return np.asarray(~around[window[0] : -window[0], window[1] : -window[1]])
