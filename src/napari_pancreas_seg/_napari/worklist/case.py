"""A case of a worklist as layers, before it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from napari.layers import Image, Labels, Layer

from napari_pancreas_seg import io
from napari_pancreas_seg._napari.autosave.autosave import digest_of
from napari_pancreas_seg._napari.layers.bridge import PANCREAS, ct_layer_data, labels_layer_data
from napari_pancreas_seg._napari.layers.placement import METADATA_KEY, GridReference, placement_of
from napari_pancreas_seg._napari.layers.reader import told_beside
from napari_pancreas_seg._napari.run.model_mask import ModelMask
from napari_pancreas_seg.cohort.given import adopt
from napari_pancreas_seg.cohort.worklist import WorklistCase
from napari_pancreas_seg.inference.result import Segmentation
from napari_pancreas_seg.io.alignment import bring_onto


@dataclass(eq=False)
class LoadedCase:
    """A case's layers, ready to be shown, and what was found in it meanwhile.

    `saved` is the digest of the mask in `target`, from where it was read; empty without one.
    """

    index: int
    ct: Image
    mask: Labels | None
    saved: str
    target: Path
    notes: tuple[str, ...]
    result: Segmentation | None = None

    @property
    def reference(self) -> GridReference:
        found: GridReference = self.ct.metadata[METADATA_KEY]
        return found


def read_case(index: int, case: WorklistCase) -> LoadedCase:
    volume = io.load_ct(case.source)
    ct: Image = Layer.create(*ct_layer_data(volume))
    notes = volume.notes
    if not case.mask.exists() and case.given is not None:
        adopt(case.source, case.mask, *case.given)
    if not case.mask.exists():
        return LoadedCase(index, ct, None, "", case.mask, notes)
    mask, on = io.load_mask(case.mask)
    advice = "move it out of the output folder, or choose another folder"
    mask = bring_onto(volume, mask, on, case.mask.name, advice)
    told = told_beside(case.mask)
    data = labels_layer_data(mask, placement_of(ct), f"{ct.name} pancreas", **told)
    return LoadedCase(index, ct, Layer.create(*data), digest_of(mask), case.mask, notes)


def result_layer(loaded: LoadedCase, result: Segmentation) -> tuple[Labels, ModelMask]:
    """Make the layer of what was found in a case, and what is remembered with it."""
    labels, name = result.model.get("labels") or PANCREAS, f"{loaded.ct.name} pancreas"
    data = labels_layer_data(result.mask.copy(), placement_of(loaded.ct), name, labels=labels)
    known = ModelMask.holding(loaded.reference, result.mask)
    known.finish(result)
    return Layer.create(*data), known


def first_look(mask: Labels | None, reference: GridReference) -> int:
    """The slice with the largest area of the mask, else the middle of the CT."""
    areas = [0]
    if mask is not None:
        shown = reference.view(np.asarray(mask.data))
        areas = [int(np.count_nonzero(plane)) for plane in shown]
    return int(np.argmax(areas)) if any(areas) else reference.grid.shape[0] // 2
