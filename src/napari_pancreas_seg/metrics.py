"""How large a mask is, what it covers, and how well two masks agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.volume import CTVolume, Grid, bounding_box

__all__ = ["dice", "measure", "volume_ml"]

Array = npt.NDArray[Any]


def dice(a: Array, b: Array) -> float:
    """Overlap of two masks: ``2 |A ∩ B| / (|A| + |B|)`` (Dice 1945, Sørensen 1948).

    Parameters
    ----------
    a, b : ndarray, same shape
        Masks; a voxel counts if it is greater than 0.

    Returns
    -------
    float
        1 for equal masks, two empty ones included; 0 for disjoint ones.

    Raises
    ------
    PancreasSegError
        If the shapes differ.
    """
    if a.shape != b.shape:
        raise PancreasSegError(
            f"Masks of shapes {a.shape} and {b.shape} do not lie on the same grid and cannot be "
            "compared."
        )
    inside_a, inside_b = a > 0, b > 0
    total = np.count_nonzero(inside_a) + np.count_nonzero(inside_b)
    if total == 0:
        return 1.0
    return float(2.0 * np.count_nonzero(inside_a & inside_b) / total)


def volume_ml(mask: Array, grid: Grid) -> float:
    """Volume of a mask in mL.

    Parameters
    ----------
    mask : ndarray, shape (Z, Y, X)
        Non-zero inside.
    grid : Grid
        The grid that the mask lies on.
    """
    return float(np.count_nonzero(mask)) * grid.voxel_volume_mm3 / 1000.0


def measure(mask: Array, volume: CTVolume) -> dict[str, Any]:
    """Measure a mask on its CT.

    Parameters
    ----------
    mask : ndarray, shape (Z, Y, X)
        Non-zero inside, on the CT's grid.
    volume : CTVolume
        The CT.

    Returns
    -------
    dict
        ``volume_ml``; ``voxels``; ``slices`` with any of the mask; ``mean_hu`` and ``sd_hu`` (of
        the population; None for an empty mask); ``extent_mm``, edges of the bounding box along
        (z, y, x).

    Raises
    ------
    PancreasSegError
        If the mask does not have the CT's shape.
    """
    if mask.shape != volume.grid.shape:
        raise PancreasSegError(
            f"A mask of shape {mask.shape} does not lie on the grid of this CT, whose shape is "
            f"{volume.grid.shape}."
        )
    box = bounding_box(mask)
    if box is None:
        return {
            "volume_ml": 0.0,
            "voxels": 0,
            "slices": 0,
            "mean_hu": None,
            "sd_hu": None,
            "extent_mm": [0.0, 0.0, 0.0],
        }
    inside = mask[box] != 0
    hu = volume.hu[box][inside].astype(np.float64)
    return {
        "volume_ml": volume_ml(inside, volume.grid),
        "voxels": len(hu),
        "slices": int(np.count_nonzero(inside.any(axis=(1, 2)))),
        "mean_hu": float(hu.mean()),
        "sd_hu": float(hu.std()),
        "extent_mm": [
            (edge.stop - edge.start) * step for edge, step in zip(box, volume.spacing, strict=True)
        ],
    }
