"""Ways of looking: HU windows, planes, 3-D, the model's mask."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

from napari.layers import Image
from qtpy.compat import isalive
from qtpy.QtWidgets import QPushButton

import napari_pancreas_seg._napari.widget.ui as ui
from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.layers.placement import GridReference
from napari_pancreas_seg._napari.views.orientation import PLANES, plane_on_screen
from napari_pancreas_seg._napari.views.windowing import HU_PRESETS


class ViewPanel(ui.Panel):
    """Buttons for how the chosen CT and its mask are shown; what is shown now is marked."""

    def __init__(self, app: App) -> None:
        super().__init__("View")
        self._session, self._views = app.session, app.views
        self._followed: weakref.ref[Image] | None = None
        self.presets: dict[str, QPushButton] = {}
        self.planes: dict[str, QPushButton] = {}
        views = app.views
        for name, (low, high) in HU_PRESETS.items():
            tip = f"Show the CT from {low:.0f} to {high:.0f} HU."
            self.presets[name] = ui.button(name, tip, partial(views.preset, name))
        for name in PLANES:
            tip = f"Show the CT in {name} slices, as radiologists have them."
            self.planes[name] = ui.button(name.capitalize(), tip, partial(views.plane, name))
        tip = "The mask as a surface, and back to slices."
        self.surface_button = ui.button("3-D", tip, views.surface.toggle)
        tip = "Show what the model wrote in place of the edited mask. Nothing is changed."
        self.blink_button = ui.button("Model's mask", tip)
        tip = "Axial, coronal and sagittal side by side, by the plugin napari-orthogonal-views."
        self.orthogonal_button = ui.button("Three views", tip, views.toggle_orthogonal)
        self.add(*self.presets.values(), stretch=(7, 8, 5, 5))
        self.add(*self.planes.values(), self.surface_button, stretch=(5, 7, 7, 4))
        self.add(self.blink_button, self.orthogonal_button)
        marked = (*self.presets.values(), *self.planes.values())
        for part in (*marked, self.surface_button, self.blink_button):
            part.setCheckable(True)
        self.blink_button.clicked.connect(self._views.blink)
        for part in marked:
            part.clicked.connect(self._show)
        self._views.changed.connect(self._show)
        self._session.mask_chosen.connect(self._show)
        dims = self._session.viewer.dims.events
        for event in (dims.order, dims.ndisplay):
            event.connect(self._show)
        self._show()

    def refresh(self, reference: GridReference | None) -> None:
        ct = self._session.ct
        if ct is not None and (self._followed is None or self._followed() is not ct):
            self._followed = weakref.ref(ct)
            ct.events.contrast_limits.connect(self._show)
        self._show()

    def _show(self, event: Any = None) -> None:
        if not isalive(self):
            return
        ct, viewer = self._session.ct, self._session.viewer
        window = None if ct is None else tuple(float(limit) for limit in ct.contrast_limits)
        for name, part in self.presets.items():
            part.setEnabled(ct is not None)
            part.setChecked(window == HU_PRESETS[name])
        placement = None if ct is None else self._session.placement(ct)
        plane = None if placement is None or viewer is None else plane_on_screen(viewer, placement)
        for name, part in self.planes.items():
            part.setEnabled(ct is not None)
            part.setChecked(name == plane)
        self.orthogonal_button.setEnabled(ct is not None)
        on, known = self._views.surface.on, self._session.model_mask is not None
        self.surface_button.setEnabled(self._session.mask is not None or on)
        self.surface_button.setChecked(on)
        self.blink_button.setEnabled(known or self._views.blinking)
        self.blink_button.setChecked(self._views.blinking)
