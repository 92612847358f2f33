"""Notices that the voxels of a mask have changed, whatever changed them."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Labels, Layer
from qtpy.compat import isalive
from qtpy.QtCore import QObject, QTimer, Signal

from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.background import timer

PAUSE_MS = 100
"""Changes that follow each other within it are signalled once."""
LOOK_MS = 300
"""How often hidden layers are looked at."""


class MaskWatch(QObject):
    """Follows the labels layers of a viewer.

    napari says ``paint`` for strokes, fills and edits by index, but for undo, redo and
    ``refresh`` only ``set_data``, which it also says whenever another slice is shown. So a
    ``set_data`` that comes with another position of the sliders and without a step in the
    layer's history does not count, nor does one that comes with other colours or an outline.
    Of a hidden layer, as in 3-D, it says nothing: its history is looked at now and then.

    ``found(layer)``: there is another labels layer; ``changed(layer)``: its voxels are others.
    """

    changed = Signal(object)
    found = Signal(object)

    def __init__(self, viewer: ViewerModel) -> None:
        super().__init__()
        self._viewer = weakref.ref(viewer)
        self._seen: weakref.WeakKeyDictionary[Layer, tuple[Any, ...]] = weakref.WeakKeyDictionary()
        self._waiting: weakref.WeakSet[Layer] = weakref.WeakSet()
        self._edits: weakref.WeakKeyDictionary[Layer, int] = weakref.WeakKeyDictionary()
        self._soon = timer(self, PAUSE_MS, self.notify)
        self._look = QTimer(self)
        self._look.timeout.connect(self._look_at_hidden)
        self._look.start(LOOK_MS)
        viewer.layers.events.inserted.connect(self._on_inserted)
        for layer in viewer.layers:
            self._follow(layer)

    def edits_of(self, layer: Layer | None) -> int:
        """Count the changes of a layer so far; it is another number once there is one more."""
        return 0 if layer is None else self._edits.get(layer, 0)

    def _on_inserted(self, event: Any) -> None:
        self._follow(event.value)

    def _follow(self, layer: Layer) -> None:
        if isinstance(layer, Labels) and layer not in self._seen:
            self._seen[layer] = self._state(layer)
            layer.events.paint.connect(self._on_edit)
            layer.events.data.connect(self._on_edit)
            layer.events.set_data.connect(self._on_set_data)
            self.found.emit(layer)

    def _on_edit(self, event: Any) -> None:
        self._seen[event.source] = self._state(event.source)
        self._note(event.source)

    def _look_at_hidden(self) -> None:
        if self._viewer() is None:
            self._look.stop()
            return
        for layer, before in list(self._seen.items()):
            if not layer.visible and before[1] != compat.steps_of_undo(layer):
                self._seen[layer] = self._state(layer)
                self._note(layer)

    def _on_set_data(self, event: Any) -> None:
        layer = event.source
        before, now = self._seen.get(layer), self._state(layer)
        self._seen[layer] = now
        if before is None or before[0] == now[0] or before[1] != now[1]:
            self._note(layer)

    def _note(self, layer: Layer) -> None:
        if isalive(self):
            self._waiting.add(layer)
            self._edits[layer] = self.edits_of(layer) + 1
            if not self._soon.isActive():
                self._soon.start()

    def notify(self) -> None:
        if not isalive(self):
            return
        self._soon.stop()
        layers = list(self._waiting)
        self._waiting.clear()
        for layer in layers:
            self.changed.emit(layer)

    def _state(self, layer: Labels) -> tuple[Any, ...]:
        """Where the sliders are, and where the layer's history is."""
        viewer = self._viewer()
        if viewer is None:
            return (), ()
        dims = viewer.dims
        place = (np.asarray(dims.point).tobytes(), dims.ndisplay, dims.order)
        shown = (*place, layer.visible, id(layer.colormap), layer.contour)
        return shown, compat.steps_of_undo(layer)
