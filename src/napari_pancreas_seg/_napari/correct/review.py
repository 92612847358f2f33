"""Reviewing a mask slice by slice: what is in each, how sure the model was, who has looked."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from napari.layers import Labels
from napari.utils.notifications import show_info
from qtpy.QtCore import QObject, Signal

from napari_pancreas_seg._napari.background import Background, Newest, timer
from napari_pancreas_seg._napari.correct.apply import Target
from napari_pancreas_seg._napari.layers.bridge import digest_of
from napari_pancreas_seg._napari.layers.placement import (
    GridReference,
    reference_of,
    show_slice,
    slice_on_screen,
)
from napari_pancreas_seg._napari.run.model_mask import ModelMask
from napari_pancreas_seg._napari.run.runs import Runs
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg.arrays import Floats, Floats32, Mask
from napari_pancreas_seg.errors import PancreasSegError

_Digests = weakref.WeakKeyDictionary[Labels, dict[int, Any]]

PAUSE_MS = 200
"""Edits that follow each other within it are counted once."""
DOUBTFUL_SHARE = 0.25
"""Share of the slices that count as uncertain: the most doubtful quarter."""
LEAST_DOUBT = 0.1
"""A slice that is surer than this is never called uncertain."""


@dataclass(frozen=True, eq=False)
class SliceFacts:
    """Facts on each slice of a mask, arrays (Z,)."""

    area_mm2: Floats
    # 1 minus the expected Dice, NaN where the model has found nothing.
    doubt: Floats32
    edited: Mask  # a person has changed what the model wrote

    @property
    def uncertain(self) -> Mask:
        """The most doubtful quarter of the slices."""
        known = self.doubt[np.isfinite(self.doubt)]
        if not len(known):
            return np.zeros(len(self.doubt), dtype=bool)
        limit = max(LEAST_DOUBT, float(np.quantile(known, 1 - DOUBTFUL_SHARE)))
        with np.errstate(invalid="ignore"):
            return np.asarray(self.doubt >= limit)


class Review(QObject):
    """Counts the slices of the chosen mask; remembers for every mask which were reviewed.

    ``changed``: `facts` (None until they are known) or `reviewed` are others; ``moved``: another
    slice is on screen; ``marked(layer)``: other slices of a mask are reviewed.
    """

    changed = Signal()
    moved = Signal()
    marked = Signal(object)

    def __init__(self, session: Session, runs: Runs, background: Background) -> None:
        super().__init__()
        self.facts: SliceFacts | None = None
        self._session = session
        self._runs = runs
        self._reviewed: weakref.WeakKeyDictionary[Labels, set[int]] = weakref.WeakKeyDictionary()
        # Digests of marked slices before a program alters their mask, and of those that one may
        # have altered: as they were while marked, and as it left them.
        self._unaltered: _Digests = weakref.WeakKeyDictionary()
        self._altered: _Digests = weakref.WeakKeyDictionary()
        self._before_run: dict[weakref.ref[Labels], set[int]] | None = None
        self._newest = Newest(background)
        self._soon = timer(self, PAUSE_MS, self._count)
        session.mask_chosen.connect(self._on_mask)
        session.mask_changed.connect(self._on_mask_changed)
        runs.started.connect(self._on_run_started)
        runs.changed.connect(self._on_run_changed)
        dims = session.viewer.dims.events
        for event in (dims.point, dims.ndisplay, dims.order):
            event.connect(self._on_moved)

    # -- what was reviewed

    @property
    def reviewed(self) -> frozenset[int]:
        return self.reviewed_of(self._session.mask)

    def reviewed_of(self, layer: Labels | None) -> frozenset[int]:
        return frozenset() if layer is None else frozenset(self._reviewed.get(layer, ()))

    def set_reviewed(self, layer: Labels, slices: Iterable[int]) -> None:
        """Say which slices of a mask were reviewed, from an autosave for instance."""
        self._altered.pop(layer, None)
        self._mark(layer, slices)

    def toggle_reviewed(self, z: int | None = None) -> None:
        layer, reference = self._session.mask, self.reference
        if layer is None or reference is None:
            raise PancreasSegError("There is no slice of a mask on screen.")
        z = Target(layer, reference, 1).axial_slice_on(self._session.viewer) if z is None else z
        self._altered.get(layer, {}).pop(z, None)
        self._mark(layer, self.reviewed_of(layer) ^ {z})

    def review_and_go_on(self) -> None:
        if self.slice is not None and self.slice not in self.reviewed:
            self.toggle_reviewed()
        self.go_to_unreviewed(1)

    def expect_change(self, layer: Labels) -> None:
        """Take the mark off slices that a program, about to begin, alters; undone, it is back."""
        if layer not in self._unaltered:
            self._unaltered[layer] = self._digests(layer, self.reviewed_of(layer))

    def _mark(self, layer: Labels, slices: Iterable[int]) -> None:
        self._reviewed[layer] = {int(z) for z in slices}
        self.marked.emit(layer)
        if layer is self._session.mask:
            self.changed.emit()

    def _weigh_marks(self, layer: Labels) -> None:
        """Mark a slice that is as it was while marked, and none that is as a program left it."""
        known, unaltered = self._altered.get(layer, {}), self._unaltered.pop(layer, None)
        if unaltered is not None:
            marked = {z: each[0] for z, each in known.items()} | unaltered
            now = self._digests(layer, marked)
            known = self._altered[layer] = {z: (marked[z], now[z]) for z in now}
        now, before = self._digests(layer, known), self.reviewed_of(layer)
        back = {z for z in now if now[z] == known[z][0]}
        gone = {z for z in now if now[z] == known[z][1]} - back
        if (left := before - gone | back) != before:
            self._mark(layer, left)

    def _digests(self, layer: Labels, slices: Iterable[int]) -> dict[int, str]:
        reference = reference_of(layer) or self._session.reference
        if reference is None or tuple(layer.data.shape) != reference.layer_shape:
            return {}
        shown = reference.view(layer.data)
        return {z: digest_of(shown[z : z + 1]) for z in slices}

    # -- from slice to slice

    @property
    def reference(self) -> GridReference | None:
        layer = self._session.mask
        own = None if layer is None else reference_of(layer)
        return own if own is not None else self._session.reference

    @property
    def slice(self) -> int | None:
        viewer, layer, reference = self._session.viewer, self._session.mask, self.reference
        if viewer is None or layer is None or reference is None:
            return None
        return slice_on_screen(viewer, layer, reference)

    def show(self, z: int) -> None:
        layer, reference = self._session.mask, self.reference
        if layer is not None and reference is not None:
            show_slice(self._session.viewer, layer, reference, z)

    def go_to_uncertain(self, step: int) -> None:
        """Show the next uncertain slice that is not reviewed; beyond the last comes the first."""
        facts, none = self._known_facts(), "Every uncertain slice is reviewed."
        if not np.isfinite(facts.doubt).any():
            none = "No run has said how sure it is of this mask."
        self._go(facts.uncertain, step, none)

    def go_to_unreviewed(self, step: int) -> None:
        """Show the next slice with mask that is not reviewed; beyond the last comes the first."""
        facts = self._known_facts()
        wanted = (facts.area_mm2 > 0) | facts.edited
        self._go(wanted, step, "Every slice with mask is reviewed.")

    def _known_facts(self) -> SliceFacts:
        if self.facts is None:
            raise PancreasSegError("There is no mask to review yet: run first, or paint one.")
        return self.facts

    def _go(self, wanted: Mask, step: int, otherwise: str) -> None:
        slices = np.setdiff1d(np.flatnonzero(wanted), [*self.reviewed])
        here = -1 if self.slice is None else self.slice
        if not len(slices):
            show_info(otherwise)
            return
        ahead = slices[slices > here] if step > 0 else slices[slices < here][::-1]
        self.show(int(ahead[0] if len(ahead) else slices[0 if step > 0 else -1]))

    # -- counting

    def _on_mask(self) -> None:
        self.facts = None
        self.changed.emit()
        self._soon.start()

    def _on_mask_changed(self, layer: Labels) -> None:
        self._weigh_marks(layer)
        # Started anew by no further change, or a run would put it off to its end.
        if layer is self._session.mask and not self._soon.isActive():
            self._soon.start()

    def _on_moved(self, event: Any) -> None:
        self.moved.emit()

    def _on_run_started(self) -> None:
        self._altered.clear()
        self._before_run = {weakref.ref(k): set(v) for k, v in self._reviewed.items()}

    def _on_run_changed(self) -> None:
        """Clear, once, the reviewed slices of a mask that a run has replaced or taken back."""
        run, known = self._runs.latest, self._before_run
        if run is None or known is None or run.running or run.can_discard:
            return
        layer, self._before_run = run.labels, None
        if layer is None:
            return
        before = known.get(weakref.ref(layer), set())
        rest = self.reviewed_of(run.rest_of).difference(run.renews)
        left = self.reviewed_of(layer) - before | rest if run.stands else before
        if left != self.reviewed_of(layer):
            self.set_reviewed(layer, left)

    def _count(self) -> None:
        layer, reference = self._session.mask, self.reference
        if layer is None or reference is None or tuple(layer.data.shape) != reference.layer_shape:
            return

        def counted(facts: SliceFacts) -> None:
            if layer is self._session.mask:
                self.facts = facts
                self.changed.emit()

        model = self._session.masks.get(layer)
        self._newest.ask(lambda: _facts(layer, reference, model), counted)


def _facts(layer: Labels, reference: GridReference, model: ModelMask | None) -> SliceFacts:
    """Count a mask's slices; looks at every voxel, so for a thread."""
    shown = reference.view(layer.data)
    voxels = [np.count_nonzero(np.asarray(plane)) for plane in shown]
    doubt = np.full(len(shown), np.nan, np.float32)
    result, own = None if model is None else model.result, reference_of(layer)
    expected: Any = () if own is None else own.expected_dice  # by the record of an opened mask
    expected = expected if result is None else result.expected_dice
    if len(expected) == len(doubt):
        doubt = 1 - np.asarray(expected, np.float32)
    edited = np.zeros(len(shown), bool) if model is None else model.touched_slices(layer)
    return SliceFacts(np.array(voxels, float) * reference.pixel_mm**2, doubt, edited)
