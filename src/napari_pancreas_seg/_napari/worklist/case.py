"""A case of a worklist as layers before it is shown, and the next one made ready meanwhile."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from napari.layers import Image, Labels, Layer
from qtpy.QtCore import QObject, Signal

from napari_pancreas_seg import io
from napari_pancreas_seg._napari.background import Background
from napari_pancreas_seg._napari.layers.bridge import (
    PANCREAS,
    ct_layer_data,
    digest_of,
    labels_layer_data,
    volume_of,
)
from napari_pancreas_seg._napari.layers.placement import METADATA_KEY, GridReference, placement_of
from napari_pancreas_seg._napari.layers.reader import sidecar_facts
from napari_pancreas_seg._napari.run.model_mask import ModelMask
from napari_pancreas_seg._napari.run.network import Network
from napari_pancreas_seg._napari.run.runs import Runs
from napari_pancreas_seg.cohort.given import adopt
from napari_pancreas_seg.cohort.worklist import Status, WorklistCase
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.finishing import remask
from napari_pancreas_seg.inference.result import Options, Segmentation, exhaust
from napari_pancreas_seg.inference.saving import mask_sha256
from napari_pancreas_seg.io.alignment import bring_onto
from napari_pancreas_seg.mask.centreline import Cuts

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class LoadedCase:
    """A case's layers, ready to be shown, and what was found in it meanwhile."""

    index: int
    ct: Image
    mask: Labels | None
    saved: str  # digest of the mask in `target`; empty without one
    target: Path
    notes: tuple[str, ...]
    sha256: str | None = None  # of `target` as it was read
    model: str | Path = ""  # of `result`
    result: Segmentation | None = None
    cuts: Cuts | None = None  # of head, body and tail, in the record of `target`
    edits: int = 0  # of `mask`, as `MaskWatch` counts, when it was as `saved` says
    status: Status | None = None  # before it was corrected; to come back with an undo

    @property
    def reference(self) -> GridReference:
        return self.ct.metadata[METADATA_KEY]

    def renewed(self, model: str | Path, options: Options) -> LoadedCase:
        """Bring what was found to the options of now; it goes if that takes another run."""
        found, self.result = self.result, None
        assert found is not None
        made = found.options
        as_made = replace(options, threshold=made.threshold, postprocess=made.postprocess)
        if (model, as_made) == (self.model, made):
            threshold = options.threshold or float(found.model["threshold"])
            mask = remask(found, threshold, options.postprocess)
            self.result = replace(found, mask=mask, threshold=threshold, options=options)
        return self


def read_case(index: int, case: WorklistCase) -> LoadedCase:
    volume = io.load_ct(case.source, series=case.series, force=case.force)
    ct: Image = Layer.create(*ct_layer_data(volume))
    notes = volume.notes
    if not case.mask.exists() and case.given is not None:
        adopt(case.source, case.mask, *case.given, series=case.series, force=case.force)
    if not case.mask.exists():
        return LoadedCase(index, ct, None, "", case.mask, notes)
    sha256 = mask_sha256(case.mask)  # before it is read: it may be written meanwhile
    mask, on = io.load_mask(case.mask)
    advice = "move it out of the output folder, or choose another folder"
    mask = bring_onto(volume, mask, on, case.mask.name, advice)
    facts = sidecar_facts(case.mask)
    data = labels_layer_data(mask, placement_of(ct), f"{ct.name} pancreas", **facts)
    layer, cuts = Layer.create(*data), facts.get("cuts")
    return LoadedCase(index, ct, layer, digest_of(mask), case.mask, notes, sha256, cuts=cuts)


def result_layer(loaded: LoadedCase, result: Segmentation) -> tuple[Labels, ModelMask]:
    labels, name = result.model.get("labels") or PANCREAS, f"{loaded.ct.name} pancreas"
    data = labels_layer_data(result.mask.copy(), placement_of(loaded.ct), name, labels=labels)
    return Layer.create(*data), ModelMask.holding(loaded.reference, result.mask, result)


def first_look(mask: Labels | None, reference: GridReference) -> int:
    """The slice with the largest area of the mask, else the middle of the CT."""
    shown = () if mask is None else reference.view(np.asarray(mask.data))
    areas = [int(np.count_nonzero(plane)) for plane in shown]
    return int(np.argmax(areas)) if any(areas) else reference.grid.shape[0] // 2


class CaseAhead(QObject):
    """Reads the next case, and `segments` it, before one comes to it; all else comes first."""

    changed = Signal()

    def __init__(self, network: Network, runs: Runs, background: Background) -> None:
        super().__init__()
        self.segments = False  # a case without a mask
        self._network = network
        self._runs = runs
        self._background = background
        self._waiting: LoadedCase | None = None
        self._segmenting: LoadedCase | None = None
        self._number = 0
        network.freed.connect(self._go_on)

    @property
    def state(self) -> str:
        if self._waiting is None:
            return ""
        return "segmented" if self._waiting.result is not None else "loaded"

    def drop(self) -> None:
        self._waiting = None
        self._number += 1

    def take(self, index: int) -> LoadedCase | None:
        """Hand over the case if it is this one of the worklist; another one is forgotten."""
        ready = self._waiting
        self.drop()
        return ready if ready is not None and ready.index == index else None

    def prepare(self, index: int, case: WorklistCase) -> None:
        number = self._number

        def loaded(ready: LoadedCase | None) -> None:
            if ready is not None and number == self._number:
                self._waiting = ready
                self._segment(ready)
                self.changed.emit()

        # What is wrong with it is said when one comes to it.
        self._background.submit(lambda: _quietly(index, case), loaded)

    def _go_on(self) -> None:
        """Segment the case after all: it made way for a run, or for a slice."""
        if self._waiting is not None:
            self._segment(self._waiting)

    def _segment(self, case: LoadedCase) -> None:
        known = case.mask is not None or case.result is not None
        network, number = self._network, self._number

        def is_taken() -> bool:
            return bool(network.in_use) or network.reserved

        if not self.segments or known or is_taken() or self._segmenting is case:
            return
        self._segmenting = case
        model, options = self._runs.how()

        def gone() -> bool:
            return is_taken() or (number != self._number and self._waiting is not case)

        def segment() -> Segmentation | None:
            volume = volume_of(case.ct.data, case.reference)
            return exhaust(network.process.iter_segment(volume, model, options, cancelled=gone))

        def ended() -> None:
            if self._segmenting is case:
                self._segmenting = None

        def found(result: Segmentation | None) -> None:
            ended()
            if self._waiting is case and result is not None:
                case.model, case.result = model, result
                self.changed.emit()

        self._background.submit(segment, found, ended)


def _quietly(index: int, case: WorklistCase) -> LoadedCase | None:
    try:
        return read_case(index, case)
    except PancreasSegError:
        logger.debug("A case cannot be read ahead", exc_info=True)
        return None
