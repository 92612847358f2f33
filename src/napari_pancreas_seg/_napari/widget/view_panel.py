"""Ways of looking at the CT and the mask: HU windows, planes, 3-D, the model's mask."""

from __future__ import annotations

from functools import partial

from qtpy.compat import isalive
from qtpy.QtWidgets import QPushButton

from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.layers.placement import GridReference
from napari_pancreas_seg._napari.views.orientation import PLANES
from napari_pancreas_seg._napari.views.views import HU_PRESETS
from napari_pancreas_seg._napari.widget.panel import Panel

__all__ = ["ViewPanel"]


class ViewPanel(Panel):
    """Buttons for how the chosen CT and its mask are shown.

    Parameters
    ----------
    app : App
        The viewer's session.
    """

    def __init__(self, app: App) -> None:
        super().__init__("View")
        self._app = app
        self._views = app.views
        self.presets = {name: QPushButton(name) for name in HU_PRESETS}
        for name, button in self.presets.items():
            low, high = HU_PRESETS[name]
            button.setToolTip(f"Show the CT from {low:.0f} to {high:.0f} HU.")
            button.clicked.connect(partial(self._views.preset, name))
        self.planes = {name: QPushButton(name.capitalize()) for name in PLANES}
        for name, button in self.planes.items():
            button.setToolTip(f"Show the CT in {name} slices, as radiologists have them.")
            button.clicked.connect(partial(self._views.plane, name))
        self.surface_button = QPushButton("3-D")
        self.surface_button.setToolTip("The mask as a surface, and back to slices.")
        self.surface_button.setCheckable(True)
        self.blink_button = QPushButton("Model's mask")
        self.blink_button.setToolTip(
            "Show what the model wrote in place of the edited mask. Nothing is changed."
        )
        self.blink_button.setCheckable(True)
        self.orthogonal_button = QPushButton("Three views")
        self.orthogonal_button.setToolTip(
            "Axial, coronal and sagittal side by side, by the plugin napari-orthogonal-views."
        )
        self.add(*self.presets.values(), stretch=(7, 8, 5, 5))
        self.add(*self.planes.values(), self.surface_button, stretch=(5, 7, 7, 4))
        self.add(self.blink_button, self.orthogonal_button)
        for button in self._buttons():
            # Four in a row: with napari's margins their words would be cut off.
            button.setStyleSheet("QPushButton { padding: 3px 1px; min-width: 0px; }")
        self.surface_button.clicked.connect(self._views.surface.toggle)
        self.blink_button.clicked.connect(self._views.blink)
        self.orthogonal_button.clicked.connect(self._views.toggle_orthogonal)
        self._views.changed.connect(self._show)
        app.session.mask_chosen.connect(self._show)
        self._show()

    def refresh(self, reference: GridReference | None) -> None:
        """Say what there is to look at."""
        self._show()

    def _buttons(self) -> list[QPushButton]:
        return [
            *self.presets.values(),
            *self.planes.values(),
            self.surface_button,
            self.blink_button,
            self.orthogonal_button,
        ]

    def _show(self) -> None:
        if not isalive(self):
            return
        mask = self._app.session.mask
        for button in self._buttons():
            button.setEnabled(self._app.session.ct is not None)
        self.surface_button.setEnabled(mask is not None or self._views.surface.on)
        self.surface_button.setChecked(self._views.surface.on)
        known = mask is not None and mask in self._app.session.masks
        self.blink_button.setEnabled(known or self._views.blinking)
        self.blink_button.setChecked(self._views.blinking)
