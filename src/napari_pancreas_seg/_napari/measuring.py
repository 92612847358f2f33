"""Measuring layers, off the GUI thread: only what lies in the mask's box is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg import measurements
from napari_pancreas_seg._napari.layers import raw_volume_of
from napari_pancreas_seg._napari.placement import GridReference, display_view, layer_box
from napari_pancreas_seg.volume import CTVolume, bounding_box

__all__ = ["MaskToMeasure", "Measured", "measure_layers"]

Array = npt.NDArray[Any]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class MaskToMeasure:
    """Layers' data and names; nothing of Qt.

    Parameters
    ----------
    name : str
        Name of the mask's layer.
    data : array_like
        Its data.
    grid : GridReference
        Grid of its CT.
    ct : array_like, optional
        Data of the CT's layer; without it there is no mean HU.
    reference_name : str
        Name of the layer to compare with.
    reference : array_like, optional
        Its data.
    """

    name: str
    data: Any
    grid: GridReference
    ct: Any = None
    reference_name: str = ""
    reference: Any = None


@dataclass(frozen=True)
class Measured:
    """What was found.

    Parameters
    ----------
    mask : dict
        From `measurements.measure_mask`.
    comparison : dict, optional
        From `measurements.compare_masks`.
    row : dict
        The row of the table.
    """

    mask: dict[str, Any]
    comparison: dict[str, float | None] | None
    row: dict[str, Any]


def measure_layers(job: MaskToMeasure) -> Measured:
    """Measure a mask on its CT and against a reference.

    Looks at every voxel of the mask once, to find its box, and else at the box alone; so it
    serves for CTs that are read or computed piece by piece, too.

    Parameters
    ----------
    job : MaskToMeasure
        What to measure.
    """
    mask = _shown(job.data, job.grid)
    box = bounding_box(mask)
    inside, ct = _cut(mask, job, box or (slice(0, 1), slice(0, 1), slice(0, 1)))
    found = measurements.measure_mask(inside, ct, with_hu=job.ct is not None)
    compared = None
    if job.reference is not None:
        reference = _shown(job.reference, job.grid)
        compared = measurements.compare_masks(mask, reference, job.grid.grid)
    row = measurements.table_row(
        job.grid.name, job.name, found, job.reference_name if compared else "", compared
    )
    return Measured(found, compared, row)


def _cut(mask: Array, job: MaskToMeasure, box: Box) -> tuple[Array, CTVolume]:
    """Copy what lies in a box: the mask may be painted meanwhile."""
    grid = measurements.sub_box(job.grid.grid, box)
    inside = mask[box].copy()
    if job.ct is None:
        return inside, CTVolume(np.broadcast_to(np.int16(0), grid.shape), grid, job.grid.source)
    piece = job.ct[layer_box(box, job.grid)]
    return inside, CTVolume(raw_volume_of(piece, job.grid).hu, grid, job.grid.source)


def _shown(data: Any, grid: GridReference) -> Array:
    return display_view(np.asarray(data), grid.orientation)
