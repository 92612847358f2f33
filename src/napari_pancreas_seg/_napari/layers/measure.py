"""Measuring layers, off the GUI thread: only what lies in the mask's box is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from napari_pancreas_seg._napari.layers.bridge import raw_volume_of
from napari_pancreas_seg._napari.layers.placement import GridReference
from napari_pancreas_seg.arrays import Array, Box
from napari_pancreas_seg.io.table import table_row
from napari_pancreas_seg.mask import measures, metrics
from napari_pancreas_seg.mask.centreline import CUTS, Cuts
from napari_pancreas_seg.volume import CTVolume, bounding_box


@dataclass(frozen=True, eq=False)
class MaskToMeasure:
    """Data and names of layers: a mask, its CT (else no HU), and a mask to compare with."""

    name: str
    data: Any
    grid: GridReference
    ct: Any = None
    reference_name: str = ""
    reference: Any = None
    labels: Mapping[str, int] = field(default_factory=dict)  # each measured if there are several
    cuts: Cuts | None = CUTS


@dataclass(frozen=True)
class Measured:
    """What was found: of the mask, compared, as a row of the table, and for each class."""

    mask: dict[str, Any]
    comparison: dict[str, float | None] | None
    row: dict[str, Any]
    classes: dict[str, Measured] = field(default_factory=dict)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [self.row, *(each.row for each in self.classes.values())]


def measure_layers(job: MaskToMeasure) -> Measured:
    """Measure a mask on its CT and against a reference, within the mask's box alone."""
    mask = _shown(job.data, job.grid)
    whole = _measured(mask, job)
    present = {name: v for name, v in job.labels.items() if _holds(mask, v)}
    if len(present) < 2:
        return whole
    other = None if job.reference is None else _shown(job.reference, job.grid)
    classes = {}
    for name, value in present.items():
        reference = None if other is None else other == value
        one = replace(job, name=f"{job.name}: {name}", reference=reference, cuts=None)
        classes[name] = _measured(mask == value, one, in_display_order=True)
    return replace(whole, classes=classes)


def _holds(mask: Array, value: int) -> bool:
    return any(bool((plane == value).any()) for plane in mask)


def _measured(mask: Array, job: MaskToMeasure, *, in_display_order: bool = False) -> Measured:
    box = bounding_box(mask)
    inside, ct = _cut(mask, job, box or (slice(0, 1), slice(0, 1), slice(0, 1)))
    found = measures.measure(inside, ct, job.cuts)
    if box is not None and found.get("cut_slices"):
        found["cut_slices"] = [int(box[0].start) + z for z in found["cut_slices"]]
    compared = None
    if job.reference is not None:
        reference = job.reference if in_display_order else _shown(job.reference, job.grid)
        compared = metrics.compare_masks(mask, reference, job.grid.grid)
    row = table_row(
        job.grid.name, job.name, found, job.reference_name if compared else "", compared
    )
    return Measured(found, compared, row)


def _cut(mask: Array, job: MaskToMeasure, box: Box) -> tuple[Array, CTVolume]:
    """Copy what lies in a box: the mask may be painted meanwhile."""
    grid = measures.sub_box(job.grid.grid, box)
    inside = mask[box].copy()
    if job.ct is None:
        return inside, CTVolume.of_grid(grid, job.grid.source)
    piece = job.ct[job.grid.layer_box(box)]
    return inside, CTVolume(raw_volume_of(piece, job.grid).hu, grid, job.grid.source)


def _shown(data: Any, grid: GridReference) -> Array:
    return grid.view(np.asarray(data))
