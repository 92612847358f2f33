"""Measuring layers, off the GUI thread: only what lies in the mask's box is looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from napari_pancreas_seg import hounsfield
from napari_pancreas_seg._napari.layers.bridge import HU, voxels_of
from napari_pancreas_seg._napari.layers.placement import GridReference
from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.inference.classes import Classes
from napari_pancreas_seg.io.table import table_row
from napari_pancreas_seg.mask import measures, metrics
from napari_pancreas_seg.mask.centreline import CUTS, Cuts
from napari_pancreas_seg.units import Units
from napari_pancreas_seg.volume import CTVolume, bounding_box

NOT_HU = "The values of this CT are not Hounsfield units."


@dataclass(frozen=True, eq=False)
class MaskToMeasure:
    """Data and names of layers: a mask, its CT (else no HU), and a mask to compare with."""

    name: str
    data: Any
    grid: GridReference
    ct: Any = None
    units: Callable[[], Units | None] = lambda: HU  # of the CT; may take a while
    reference_name: str = ""
    reference: Any = None
    reference_labels: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)  # each measured if there are several
    cuts: Cuts | None = CUTS


@dataclass(frozen=True)
class Measured:
    """Measures of the mask, its comparison, the row of the table, and measures of each class."""

    mask: dict[str, Any]
    comparison: dict[str, float | None] | None
    row: dict[str, Any]
    classes: dict[str, Measured] = field(default_factory=dict)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [self.row, *(each.row for each in self.classes.values())]


def measure_layers(job: MaskToMeasure) -> Measured:
    """Measure a mask on its CT and against a reference, within the mask's box alone.

    Of several organs the pancreas, and each; without a pancreas all, which have no centreline.
    """
    mask = job.grid.view(np.asarray(job.data))
    other = None if job.reference is None else job.grid.view(np.asarray(job.reference))
    named = Classes.of({"labels": job.labels})
    theirs = job.reference_labels if len(job.reference_labels) > 1 else job.labels
    gland = None if other is None else _gland_of(other, theirs)
    cuts = job.cuts if any(named.in_gland) else None
    whole = _measured(replace(job, cuts=cuts), named.gland(mask), gland)
    present = {name: v for name, v in job.labels.items() if any((z == v).any() for z in mask)}
    if len(present) < 2:
        return whole
    classes = {}
    for name, value in present.items():
        one = replace(job, name=f"{job.name}: {name}", cuts=None)
        compared = None if other is None else other == value
        classes[name] = _measured(one, mask == value, compared)
    return replace(whole, classes=classes)


def _gland_of(mask: Array, labels: Mapping[str, int]) -> Array:
    named, high = Classes.of({"labels": labels}), mask.max(initial=0)
    alone = not any(((z != 0) & (z != high)).any() for z in mask)  # whichever label it has
    return mask if alone else named.gland(mask)


def _measured(job: MaskToMeasure, mask: Array, other: Array | None) -> Measured:
    box, source = bounding_box(mask), job.grid.source
    cut = box or (slice(0, 1), slice(0, 1), slice(0, 1))
    inside = mask[cut].copy()  # it may be painted meanwhile
    ct = CTVolume.of_grid(measures.sub_box(job.grid.grid, cut), source)
    units = None if job.ct is None else job.units()
    if units is not None:
        values = voxels_of(job.ct[job.grid.layer_box(cut)], job.grid)
        ct = CTVolume(hounsfield.converted(values, units.slope, units.shift), ct.grid, source)
    found = measures.measure(inside, ct, job.cuts)
    if job.ct is not None and units is None and box is not None:
        found["not_measured"] |= dict.fromkeys(measures.OF_HU, NOT_HU)
    if box is not None and found.get("cut_slices"):
        found["cut_slices"] = [int(box[0].start) + z for z in found["cut_slices"]]
    compared = None if other is None else metrics.compare_masks(mask, other, job.grid.grid)
    against = job.reference_name if compared else ""
    row = table_row(job.grid.name, job.name, found, against, compared)
    return Measured(found, compared, row)
