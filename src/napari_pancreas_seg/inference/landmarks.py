"""Where in a CT a pancreas can lie at all, by landmarks that need no network."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from napari_pancreas_seg.inference.frame import coarse_means
from napari_pancreas_seg.volume import stretches

__all__ = ["plausible_slices"]

LUNG_HU = (-940, -500)
"""Aerated lung, averaged over a coarse pixel; the air around the body lies below."""
TISSUE_HU = -300
"""Whatever is denser belongs to the body."""
COARSE_MM = 6.0
LUNG_SHARE = 0.05
"""A slice with that share of its body in lungs is a slice of the chest."""
CHEST_MM = 60.0
"""Lung over a shorter stretch is taken for bowel gas, unless it reaches the scan's upper end."""
ABOVE_MM, BELOW_MM = 90.0, 210.0
"""How far above and below the lowest slice of the chest a pancreas can reach.

The recesses of the lungs reach down to the first lumbar vertebra, the gland's tail up to the
eleventh thoracic one and its head down to the third lumbar one: 60 mm above and 120 mm below
in an adult; half as much again is left for the tall, the inflated and the operated.
"""


def plausible_slices(
    hu: npt.NDArray[Any], spacing: tuple[float, float, float]
) -> npt.NDArray[np.bool_]:
    """Find the slices in which a pancreas can lie, by where the lungs end.

    Parameters
    ----------
    hu : ndarray, shape (Z, Y, X)
        Hounsfield units in display order, feet first.
    spacing : tuple of float
        Distance between voxels along (z, y, x) in mm.

    Returns
    -------
    ndarray, shape (Z,), bool
        True everywhere if the CT shows no lungs, or was clipped so that lungs cannot be seen.
    """
    n_slices = len(hu)
    everywhere = np.ones(n_slices, dtype=bool)
    step = max(1, round(COARSE_MM / spacing[0]))
    chosen = np.arange(0, n_slices, step)
    lung = np.array([_lung_share(hu[z], spacing[1:]) for z in chosen]) >= LUNG_SHARE
    chest = _longest_run(lung)
    if chest is None:
        return everywhere
    # Bowel full of gas is not mistaken for a chest: it is short, and does not end the scan.
    if chest.stop < len(lung) and (chest.stop - chest.start) * step * spacing[0] < CHEST_MM:
        return everywhere
    bottom = chosen[chest.start] * spacing[0]
    z_mm = np.arange(n_slices) * spacing[0]
    return np.asarray((z_mm <= bottom + ABOVE_MM) & (z_mm >= bottom - BELOW_MM))


def _lung_share(slice_hu: npt.NDArray[Any], spacing: tuple[float, ...]) -> float:
    """Share of the body in one slice that is lung."""
    coarse, _ = coarse_means(slice_hu, spacing, COARSE_MM)
    # Opening drops the skin's edge, where tissue and air mix to the density of lung.
    candidates = (coarse > LUNG_HU[0]) & (coarse < LUNG_HU[1])
    lung = int(np.count_nonzero(scipy.ndimage.binary_opening(candidates, np.ones((3, 3)))))
    body = int(np.count_nonzero(coarse > TISSUE_HU)) + lung
    return lung / body if body else 0.0


def _longest_run(flags: npt.NDArray[np.bool_]) -> slice | None:
    """The longest stretch of True; the upper one of equals."""
    return max(stretches(flags), key=lambda run: (run.stop - run.start, run.start), default=None)
