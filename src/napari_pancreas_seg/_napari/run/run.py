"""A run of the network in a viewer: slices stream into a labels layer as they are found."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from napari.layers import Image, Labels
from napari.utils.notifications import show_info
from qtpy.QtCore import QObject, QTimer, Signal

from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.background import Background, report, timer
from napari_pancreas_seg._napari.layers.bridge import name_labels
from napari_pancreas_seg._napari.layers.maps import MapLayers
from napari_pancreas_seg._napari.layers.placement import reference_of, show_slice, slice_on_screen
from napari_pancreas_seg._napari.run import worker
from napari_pancreas_seg._napari.run.earlier import ChosenBefore, EarlierMask, is_restricted
from napari_pancreas_seg._napari.run.model_mask import ModelMask
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg._napari.settings import preference
from napari_pancreas_seg.errors import PancreasSegError, counted
from napari_pancreas_seg.inference.process.client import NetworkProcess
from napari_pancreas_seg.inference.result import FoundSlices, Options, Progress
from napari_pancreas_seg.volume import bounding_box

REDRAW_MS = 100
"""How often slices that stream in are drawn at most, in ms."""
REST = "Outside of what this run was restricted to, the mask is the earlier one."


class SegmentationRun(QObject):
    """One run, from pressing the button to the last slice; lives in the GUI thread.

    It holds on to the layers that it started with, so whatever is renamed, moved or
    removed meanwhile does not disturb it. A labels layer that was removed while it was
    being filled comes back, complete, at the end.

    `can_discard`: it ended early, and what it found waits for `keep` or `discard`. `stands`: what
    it found is the mask from now on, as it ran to its end or was kept. `renews`: the slices that it
    was restricted to; `rest_of`: the earlier mask that is kept where it was not.
    """

    changed = Signal()
    finished = Signal()

    running, can_discard, stands = True, False, False
    message = "Starting the network…"
    done = total = 0
    labels: Labels | None = None
    rest_of: Labels | None = None
    _was_added = _maps_begun = _stale = _found_nothing = False
    _how_ended = "Cancelled"
    _replaced_maps: object = None
    _first: tuple[float, int] | None = None

    def __init__(
        self,
        session: Session,
        maps: MapLayers,
        process: NetworkProcess,
        background: Background,
        ct_layer: Image,
        model: str | Path,
        options: Options,
    ) -> None:
        super().__init__()
        self._session, self._maps = session, maps
        self._placement = placement = session.placement(ct_layer)
        self._ct_layer, self.name, self.reference = ct_layer, ct_layer.name, placement.reference
        self._first_slice = options.first_slice
        self.renews = range(*(options.slices or (0, self.reference.grid.shape[0])))
        self._shown_notes: set[str] = set()
        self._started = time.monotonic()
        self._options = options
        self._earlier = EarlierMask(session, placement.reference, options)
        self._chosen = ChosenBefore(session, placement.reference)
        how = placement, model, options, maps.appearance, self._earlier
        job = worker.Job(process, self.name, ct_layer.data, *how)
        self._worker, self._background = worker.Worker(job), background
        self._worker.stepped.connect(self._on_step)
        self._soon = timer(self, REDRAW_MS, self._redraw)

    def start(self) -> None:
        self._background.submit(self._worker.work, self._on_end, self._on_failure)

    def cancel(self) -> None:
        """Stop; what has been found so far stays in the viewer unless `discard` takes it back."""
        if self.running:
            self.message = "Cancelling…"
            self._worker.cancel()
            self.changed.emit()

    @property
    def cancelled(self) -> bool:
        return self._worker.cancelled

    @property
    def seconds_left(self) -> float | None:
        """Estimate of the time left in seconds; None while there is nothing to go by."""
        if self._first is None or self.done <= self._first[1]:
            return None
        pace = (time.monotonic() - self._first[0]) / (self.done - self._first[1])
        return pace * max(0, self.total - self.done)

    def keep(self, *, put_back: bool = True) -> None:
        """Let what was found stand; by default its layer comes back if it was removed."""
        if self.can_discard:
            if put_back:
                self._show_layer()
            self._forget_former()
            self.stands = True
            self.message = f"{self._how_ended} after {counted(self.done, 'slice')}; the mask stays."
            self.changed.emit()
            if self.labels in self._session.layers:
                self._session.mask_changed.emit(self.labels)  # for good by now

    def discard(self) -> None:
        """Take back what an unfinished run has found; what a person painted stays.

        A former result that it was replacing comes back.
        """
        if not self.can_discard or self.labels is None:
            return
        if not self._fits(self.labels):
            self.keep()
            return
        self._take_back(self.labels)
        self.message = f"{self._how_ended}; what was found was taken back."
        self.changed.emit()

    def show_figures(self, mask: ModelMask, threshold: float) -> None:
        box = bounding_box(mask.copy)
        voxels = [int(np.count_nonzero(plane)) for plane in ([] if box is None else mask.copy[box])]
        slices = len(voxels) - voxels.count(0)
        volume = sum(voxels) * mask.reference.grid.voxel_volume_mm3 / 1000
        self.message = (
            f"Model: {volume:.1f} mL in {counted(slices, 'slice')} at threshold {threshold:.2f}."
        )
        self.changed.emit()

    def _take_back(self, labels: Labels) -> None:
        viewer = self._session.viewer
        if viewer is None:
            return
        stays, chosen = self._earlier.restore(labels), self._session.mask is labels
        painted = stays and not self._earlier.is_filled_anew
        if self._maps_begun:
            self._maps.restore(self.reference, self._replaced_maps)
        if labels in viewer.layers and stays:
            self._redraw(always=True)
        else:
            if labels in viewer.layers:
                viewer.layers.remove(labels)
            self._earlier.put_back()
        if not painted:
            self._chosen.come_back(choose=chosen)
        self._forget_former()

    def _forget_former(self) -> None:
        self.can_discard = False
        self._earlier.forget()
        self._chosen.forget()
        self._replaced_maps = None

    def _on_step(self, step: worker.Step) -> None:
        try:
            if self._session.viewer is not None and not self.cancelled:
                if isinstance(step, worker.Prepared):
                    self._prepare(step)
                elif isinstance(step, worker.MapsFound):
                    self._maps_begun = True
                    self._replaced_maps = self._maps.begin(step.maps, self._placement, self.name)
                elif isinstance(step, worker.BestGate):
                    self._maps.add(self.reference, step.word, step.layer)
                else:
                    self._advance(step)
        except PancreasSegError as error:
            report(error)
            self.cancel()
        finally:
            # Not before the events that have come meanwhile: the mouse, the keyboard, a repaint.
            QTimer.singleShot(0, self._worker.taken)

    def _show_notes(self, notes: tuple[str, ...]) -> None:
        for note in notes:
            if note not in self._shown_notes:
                self._shown_notes.add(note)
                show_info(f"{self.name}: {note}")

    def _prepare(self, step: worker.Prepared) -> None:
        """Choose the labels layer: the last result's, or a new one if a person worked on it."""
        if reference_of(self._ct_layer) is None:
            self._show_notes(step.notes)
        else:
            self._shown_notes.update(step.notes)  # when the CT was opened
        earlier = self._earlier
        if step.labels is not None:
            self.labels = step.labels
            self._session.masks[step.labels] = ModelMask(self.reference, step.rest)
            self.rest_of = None if step.rest is None else earlier.layer
        elif earlier.made:
            self.labels = earlier.layer
            self._was_added = True
            earlier.empty()
            self._redraw(always=True)

    def _advance(self, step: Progress) -> None:
        self.done, self.total = step.done, step.total
        if self._first is None and step.done > 0:
            self._first = (time.monotonic(), step.done)
        if step.slices is not None:
            self._write(step.slices)
        self.message = _describe(step, self.seconds_left)
        self.changed.emit()

    def _write(self, found: FoundSlices) -> None:
        session = self._session
        if self.labels is None:
            return
        if not self._fits(self.labels):
            raise PancreasSegError(
                f"'{self.labels.name}' was cut or resampled while it was being filled; the run "
                "was stopped. Run again for a new mask."
            )
        first = found.mask.any() and not session.masks[self.labels].filled
        if first:
            self._chosen.note()
        added = not self._was_added and found.mask.any()
        if added:
            self._was_added = True
            self._earlier.renew_rest(self.labels)
            self._earlier.put_aside(self.labels)
        session.masks[self.labels].write(self.labels, found)
        if added:  # with something in it: 3-D has nothing to show of an empty mask, and would end
            self._show_layer()
            self._maps.outline(self.reference)
        if first:
            self._chosen.give_way(self.labels)
        if self._maps_begun:
            self._maps.fill(self.reference, found)
        self._stale = self._stale or self._shows(found)
        if self._stale and not self._soon.isActive():
            self._soon.start()

    def _show_layer(self) -> None:
        """Add the mask if it is not there; unseen and unselected while another CT is worked on."""
        viewer, labels = self._session.viewer, self.labels
        if viewer is None or labels is None or labels in viewer.layers:
            return
        if self._session.is_elsewhere(self.reference):
            labels.visible = False  # until its CT is chosen: `ChosenCt`
            compat.add_unselected(viewer, labels)
        else:
            viewer.add_layer(labels)

    def _shows(self, found: FoundSlices) -> bool:
        viewer = self._session.viewer
        if viewer is None or self.labels is None or viewer.dims.ndisplay != 2:
            # A volume rendering would be uploaded anew for every step; it waits for the end.
            return False
        reference = self.reference
        if viewer.dims.ndim - 3 in viewer.dims.displayed or reference.is_reordered:
            return True  # seen from the side or from the front
        return slice_on_screen(viewer, self.labels, reference) in found.z

    def _redraw(self, *, always: bool = False) -> None:
        if self.labels is not None and (self._stale or always):
            self._stale = False
            self.labels.refresh(thumbnail=False, highlight=False, extent=False)
            self._maps.redraw(self.reference)

    def _on_outcome(self, outcome: worker.Outcome | None) -> None:
        viewer, labels = self._session.viewer, self.labels
        if outcome is None or viewer is None or labels is None:
            return
        seconds = time.monotonic() - self._started
        part = is_restricted(self._options)
        if outcome.slices == 0 and self._earlier.layer is not None and self._fits(labels):
            self._found_nothing = True
            said = _summary(outcome, seconds, part=part)
            self._how_ended = f"{said.rstrip('.')}; the mask stays"
            self._show_notes(outcome.result.notes)
            return
        result = self._maps.complete(self.reference, outcome.result)
        if self.rest_of is not None:
            result = replace(result, notes=(*result.notes, REST))
        self._session.masks[labels].finish(result)
        self.stands = True
        self._show_layer()
        if named := outcome.result.model.get("labels"):
            name_labels(labels, named)
        self._show_notes(outcome.result.notes)
        seen = slice_on_screen(viewer, self._ct_layer, self.reference)
        moved = seen != self._first_slice or self._session.is_elsewhere(self.reference)
        if outcome.largest is not None and not moved and preference("go_to_largest"):
            # Where there is most to see, unless the user has moved meanwhile.
            show_slice(viewer, labels, self.reference, outcome.largest)
        self.message = _summary(outcome, seconds, part=part)
        if self.rest_of is not None:
            show_info(f"{self.name}: {REST}")

    def _on_end(self, outcome: worker.Outcome | None) -> None:
        try:
            if not self.cancelled:
                self._on_outcome(outcome)
        finally:
            self._on_finished()

    def _on_failure(self) -> None:
        self._how_ended = "The run failed"
        self._on_finished()

    def _on_finished(self) -> None:
        self.running = False
        try:
            if self.stands:
                self._forget_former()
            else:
                self._end_early()
            viewer = self._session.viewer
            if self.labels is not None and viewer is not None and self.labels in viewer.layers:
                self._redraw(always=True)
                self.labels.events.data(value=self.labels.data)
        finally:  # or the network would be taken for good
            self.changed.emit()
            self.finished.emit()

    def _end_early(self) -> None:
        """Ask about what was found; if that is nothing, the former mask comes back unasked."""
        labels = self.labels
        self.message = f"{self._how_ended}."
        if labels is None:
            return
        if not self._fits(labels):
            self._forget_former()
            self.stands = True
        elif self._session.masks[labels].filled and not self._found_nothing:
            # Not `done`: the first stage of two counts slices, too, and writes none.
            self.can_discard = True
            self.message = f"{self._how_ended} after {counted(self.done, 'slice')}. Keep the mask?"
        else:
            self._take_back(labels)

    def _fits(self, labels: Labels) -> bool:
        """Whether a layer still has the CT's shape: a person may have cut it."""
        return tuple(labels.data.shape) == self.reference.layer_shape


def _describe(step: Progress, seconds_left: float | None) -> str:
    if step.stage != "segmenting" or step.done == 0:
        return f"{step.stage[:1].upper()}{step.stage[1:]}…"
    text = f"Segmenting: {step.done} of {counted(step.total, 'slice')}"
    if seconds_left is not None and seconds_left >= 1:
        text += f", about {_duration(seconds_left)} left"
    return text


def _summary(outcome: worker.Outcome, seconds: float, *, part: bool) -> str:
    if outcome.slices == 0:
        return f"No pancreas found ({_duration(seconds)})."
    volume = f"{outcome.volume_ml:.1f} mL"
    if outcome.by_class:
        volume = ", ".join(f"{name} {ml:.1f} mL" for name, ml in outcome.by_class.items())
    model = "Model, in the part" if part else "Model"
    return f"{model}: {volume} in {counted(outcome.slices, 'slice')} ({_duration(seconds)})."


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"
