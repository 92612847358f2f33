"""The Mend tool: the network answers strokes with a better mask.

While the mouse is down, a stroke is painted into the mask. When it ends, this becomes a step of
undo and the strokes go to the network; the answer is added to the same step. So a stroke whose
answer fails, or comes too late, is what the brush would have left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from napari.components import ViewerModel
from napari.layers import Labels, Layer
from napari.utils.interactions import mouse_press_callbacks
from qtpy.QtCore import QObject, Signal

from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.background import Background, reported
from napari_pancreas_seg._napari.correct.answers import Answers
from napari_pancreas_seg._napari.correct.apply import Target, chosen_target, ct_under
from napari_pancreas_seg._napari.correct.carry import Carried, Carrying
from napari_pancreas_seg._napari.correct.editor import MaskEditor
from napari_pancreas_seg._napari.correct.strokes import STROKE_MM, Drag, Stroke, edit_of
from napari_pancreas_seg._napari.layers.maps import MapLayers
from napari_pancreas_seg._napari.layers.placement import slice_on_screen
from napari_pancreas_seg._napari.run.network import Network
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg.arrays import Array, Mask
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import Strokes

LEFT, RIGHT = 1, 2
HINT = "Mend: drag adds, Shift+drag or the right button takes away"


@dataclass(eq=False)
class _Slice:
    """Strokes in one slice, sent to the network until one moves on or edits it otherwise."""

    target: Target
    z: int
    strokes: list[Stroke] = field(default_factory=list)
    carried: Carried | None = None  # if the mask was carried here

    def is_of(self, target: Target, z: int) -> bool:
        return self.z == z and target.is_label_of(self.target)

    def is_newest(self) -> bool:
        """Whether nothing has been done to the mask since the last stroke that still counts."""
        edits = [one.edit for one in self.strokes if one.edit is not None and not one.undone]
        layer = self.target.layer
        return not edits or compat.is_last_undo_step(layer, compat.undo_step_of(layer, edits[-1]))


class Mending(QObject):
    """Mends the mask that is chosen by strokes.

    ``changed``: the tool is `active` or not any more; an answer is awaited, or no more.
    """

    changed = Signal()

    def __init__(
        self,
        session: Session,
        editor: MaskEditor,
        network: Network,
        background: Background,
        answers: Answers,
        carrying: Carrying,
        maps: MapLayers,
    ) -> None:
        super().__init__()
        self.recorded: WeakKeyDictionary[Layer, dict[str, Strokes]] = WeakKeyDictionary()
        """Of each mask the strokes that were counted in a record, by its path."""
        self._session = session
        self._editor = editor
        self._network = network
        self._background = background
        self._answers = answers
        self._carrying = carrying
        self._maps = maps
        self._layer: Labels | None = None
        self._slice: _Slice | None = None
        self._drawing: Drag | None = None
        self._double_clicks: list[Any] = []
        self._goes_on = False
        self._awaited = 0
        self._strokes: WeakKeyDictionary[Layer, list[Stroke]] = WeakKeyDictionary()
        session.mask_changed.connect(self._note_undone)
        session.ct_chosen.connect(self.stop)
        session.mask_chosen.connect(self.stop)

    # -- the tool

    @property
    def active(self) -> bool:
        """Whether a drag in the picture is a stroke."""
        return self._layer is not None

    @property
    def carries(self) -> bool:
        """Whether Enter carries on what was carried to this slice and mended."""
        return self._slice is not None and self._slice.carried is not None

    @property
    def working(self) -> str:
        return "Mend" if self._awaited else ""

    @property
    def title(self) -> str:
        """Hint on what to do next, empty while the tool is off."""
        if not self.active:
            return ""
        return "Mend: the network is at work…" if self._awaited else HINT

    def toggle(self) -> None:
        (self.stop if self.active else self.start)()

    def start(self) -> None:
        editor = self._editor
        target, viewer = chosen_target(editor.session), editor.session.viewer
        ct, _ = ct_under(target, editor.session), target.axial_slice_on(viewer)
        layer = target.layer
        viewer.layers.selection.active = layer
        layer.mode = "pan_zoom"
        layer.mouse_pan = False  # a drag draws, it does not move the picture
        in_plane = np.delete(np.abs(layer.scale), target.slice_axis)
        layer.cursor_size = STROKE_MM / target.reference.pixel_mm * float(in_plane.min())
        layer.cursor = "circle"
        viewer.mouse_drag_callbacks.insert(0, self._drag)
        # Of two quick dabs Qt makes a double click: it is a press as well, and does not zoom.
        self._double_clicks = list(viewer.mouse_double_click_callbacks)
        viewer.mouse_double_click_callbacks[:] = [mouse_press_callbacks]
        for emitter in self._stoppers(viewer, layer):
            emitter.connect(self._on_other_tool)
        viewer.dims.events.point.connect(self._on_moved)
        self._layer = layer
        self._maps.set_aside(ct[1])  # an opened mask's own reference has no maps
        self._network.reserve(True)
        editor.use_keys({"Enter": self.go_on, "Escape": self.stop, "Space": self._pan})
        self.changed.emit()
        if not self._network.in_use:
            self._background.submit(lambda: self._answers.make_ready(ct))

    def stop(self) -> None:
        layer, self._layer, self._slice = self._layer, None, None
        viewer = self._session.viewer
        if layer is None:
            return
        self._editor.use_keys({})
        self._network.reserve(False)
        self._answers.forget()
        self._maps.bring_back()
        if layer.mode == "pan_zoom":
            layer.mouse_pan, layer.cursor = True, "standard"
        if viewer is not None:
            viewer.mouse_drag_callbacks.remove(self._drag)
            viewer.mouse_double_click_callbacks[:] = self._double_clicks
            for emitter in self._stoppers(viewer, layer):
                emitter.disconnect(self._on_other_tool)
            viewer.dims.events.point.disconnect(self._on_moved)
        self.changed.emit()

    def _pan(self, owner: object) -> Iterator[None]:
        """Let a drag move the picture while Space is held, as in napari's own modes."""
        layer = self._layer
        if layer is not None:
            layer.mouse_pan = True
            yield
            layer.mouse_pan = layer.mouse_pan and self._layer is not layer

    def _stoppers(self, viewer: ViewerModel, layer: Labels) -> tuple[Any, ...]:
        dims = viewer.dims.events
        active = viewer.layers.selection.events.active
        return layer.events.mode, active, dims.ndisplay, dims.order

    def _on_other_tool(self, event: Any) -> None:
        viewer, layer = self._session.viewer, self._layer
        if layer is None:
            return
        still = viewer.layers.selection.active is layer and layer.mode == "pan_zoom"
        if not still or event.type in ("ndisplay", "order"):
            self.stop()

    def _on_moved(self, event: Any = None) -> None:
        viewer, here = self._session.viewer, self._slice
        if here is None:
            return
        if slice_on_screen(viewer, here.target.layer, here.target.reference) != here.z:
            self._slice = None
            self.changed.emit()

    # -- strokes

    def counts(self, layer: Layer) -> Strokes:
        """How many strokes added and took away in each slice of a mask, without undone ones."""
        self._note_undone(layer)
        found: dict[int, tuple[int, int]] = {}
        for stroke in self._strokes.get(layer, []):
            if not stroke.undone:
                added, removed = found.get(stroke.z, (0, 0))
                found[stroke.z] = added + stroke.adds, removed + (not stroke.adds)
        return dict(sorted(found.items()))

    def recall(self, layer: Layer, counts: Strokes) -> None:
        """Count strokes as drawn before, in another session for instance."""
        self._strokes[layer] = [
            Stroke(z, adds, np.zeros(0, np.intp))
            for z, (added, removed) in counts.items()
            for adds in (True,) * added + (False,) * removed
        ]

    def _drag(self, viewer: ViewerModel, event: Any) -> Iterator[None]:
        if (self._layer is not None and self._layer.mouse_pan) or "Alt" in event.modifiers:
            return  # napari's: a drag moves the picture, or draws a box to zoom to
        drag = None
        with reported():
            drag = self._begin(event)
        if drag is None:
            return
        self._drawing = drag
        drag.to(viewer, event.position)
        yield
        while event.type == "mouse_move":
            drag.to(viewer, event.position)
            yield
        if self._drawing is drag:
            self._end(drag)

    def _begin(self, event: Any) -> Drag | None:
        """Where a stroke begins; a carried proposal that it is drawn on is accepted."""
        if event.button not in (LEFT, RIGHT):
            return None
        if self._drawing is not None:
            self._end(self._drawing)  # by another button: no release will come
        editor = self._editor
        target = chosen_target(editor.session)
        target.check_shown()
        ct_under(target, editor.session)
        z = target.axial_slice_on(editor.session.viewer)
        if self._network.in_use and not self._awaited:
            raise PancreasSegError(self._network.in_use)
        carried, here = self._carrying.accepted_in(target, z), self._slice
        self._note_undone(target.layer)  # the stroke will make the layer forget
        if carried or here is None or not (here.is_of(target, z) and here.is_newest()):
            self._slice = _Slice(target, z, carried=carried)
        adds = event.button == LEFT and "Shift" not in event.modifiers
        return Drag(target, z, adds)

    def _end(self, drag: Drag) -> None:
        """Make the stroke a step of undo, and ask what the network makes of it."""
        self._drawing = None
        viewer, target, here = self._session.viewer, drag.target, self._slice
        if not target.is_in(viewer):
            return
        stroke = drag.end()
        if not len(stroke.pixels):
            return  # beside the picture
        self._strokes.setdefault(target.layer, []).append(stroke)
        if here is None or not here.is_of(target, drag.z):  # left with the mouse down
            here = _Slice(target, drag.z)
        here.strokes.append(stroke)
        with reported():
            self._ask_for(target, here, stroke, drag.before)

    def _ask_for(self, target: Target, here: _Slice, stroke: Stroke, plane: Array) -> None:
        ct, z = ct_under(target, self._editor.session), stroke.z
        guides = np.zeros((2, *plane.shape), bool)
        for one in here.strokes:
            if not one.undone:
                guides[int(not one.adds)].reshape(-1)[one.pixels] = True
                guides[int(one.adds)].reshape(-1)[one.pixels] = False
        prior = None if here.carried is None else here.carried.prior(target)
        if not self._awaited:
            self._network.claim("The network is mending a slice; wait a moment.")
        self._awaited += 1
        self.changed.emit()
        expected = target.shown[z].copy()
        self._background.submit(
            lambda: self._answers.mask_in(
                ct, z, plane, target.label, add=guides[0], remove=guides[1], prior=prior
            ),
            partial(self._answered, target, stroke, expected),
            self._heard,
        )

    def _answered(self, target: Target, stroke: Stroke, expected: Array, wanted: Mask) -> None:
        try:
            self._take_in(target, stroke, expected, wanted)
        finally:
            self._heard()

    def _take_in(self, target: Target, stroke: Stroke, expected: Array, wanted: Mask) -> None:
        """Add an answer to its stroke's step of undo; nothing if the slice has changed since."""
        viewer, layer = self._session.viewer, target.layer
        if not target.is_in(viewer):
            return
        plane = target.shown[stroke.z]
        step = None if stroke.edit is None else compat.undo_step_of(layer, stroke.edit)
        is_undone = stroke.edit is not None and step is None
        newest = [one for one in self._strokes[layer] if one.z == stroke.z][-1]
        if is_undone or newest is not stroke or not np.array_equal(plane, expected):
            return
        changed = np.where(wanted, plane == 0, plane == target.label)
        if not changed.any():
            return
        plane[changed] = np.where(wanted[changed], target.label, 0)
        edit = edit_of(target, stroke.z, changed, expected)
        if step is None or compat.steps_of_undo(layer)[1]:
            # A step of its own if there is something to redo: that would bring back old values.
            stroke.edit = stroke.edit or edit
            compat.add_undo_step(layer, edit)
        else:
            step.append(edit)
            layer.events.paint(value=[edit])
        layer.refresh(extent=False, thumbnail=False, highlight=False)

    def _heard(self) -> None:
        self._awaited -= 1
        if not self._awaited:
            self._network.release()
        self.changed.emit()
        if self._goes_on and not self._awaited:
            self._goes_on = False
            self.go_on()

    def _note_undone(self, layer: Layer) -> None:
        strokes = self._strokes.get(layer)
        if not strokes:
            return
        done, undone = compat.edits_in_history(layer)
        for stroke in strokes:
            edit = id(stroke.edit)
            stroke.undone = edit in undone or (stroke.undone and edit not in done)

    def go_on(self) -> None:
        """Carry on from a slice that was carried to and mended, once the answer is there."""
        carried = None if self._slice is None else self._slice.carried
        if carried is not None:
            self._goes_on = self._awaited > 0
            if not self._goes_on:
                self._slice = None
                self.changed.emit()
                carried.go_on()
