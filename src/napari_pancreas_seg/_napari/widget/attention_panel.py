"""Where the network looked: its attention gates as layers over the CT."""

from __future__ import annotations

from dataclasses import replace

from qtpy.compat import isalive
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox, QSlider

from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.layers.maps import COLOR_MAPS, PROBABILITY
from napari_pancreas_seg._napari.layers.placement import GridReference
from napari_pancreas_seg._napari.widget.panel import Panel, label_of, narrow_combo, note_label

__all__ = ["AttentionPanel"]

N_GATES = 4


class AttentionPanel(Panel):
    """Show gates and probability of the chosen CT, all in one look.

    Parameters
    ----------
    app : App
        The viewer's session.
    """

    def __init__(self, app: App) -> None:
        super().__init__("Attention")
        self._app = app
        self._reference: GridReference | None = None
        self.boxes: dict[str, QCheckBox] = {}
        for number in range(1, N_GATES + 1):
            self._add_box(f"attention {number}", str(number), f"Gate {number}; 1 is the finest.")
        self._add_box(PROBABILITY, "Probability", "What the network says before any threshold.")
        gates = [box for word, box in self.boxes.items() if word != PROBABILITY]
        self.colors = narrow_combo()
        self.colors.addItems(COLOR_MAPS)
        self.opacity = QSlider(Qt.Orientation.Horizontal)
        self.opacity.setRange(0, 100)
        self.note = note_label(
            "Gate coefficients, 0 to 1: what a gate lets through. Not an explanation; the "
            "decoder also sees what the gate does not."
        )
        self.add(label_of("Gates"), *gates, stretch=(1, 0, 0, 0, 0))
        self.add(self.boxes[PROBABILITY])
        self.add(label_of("Opacity"), self.opacity, stretch=(0, 1))
        self.add(label_of("Colours"), self.colors, stretch=(0, 1))
        self.add(self.note)
        self._show_looks()
        self.opacity.valueChanged.connect(self._on_looks)
        self.colors.currentIndexChanged.connect(self._on_looks)
        app.settings.cleared.connect(self._on_cleared)
        self.refresh(app.session.reference)

    def refresh(self, reference: GridReference | None) -> None:
        """Tick the maps that are shown of a CT, or will be once they are there."""
        self._reference = reference
        maps = self._app.maps
        known = [] if reference is None else maps.known(reference)
        layers = {} if reference is None else maps.layers(reference)
        for word, box in self.boxes.items():
            # Before a run the boxes say what will be shown; a model may have fewer gates.
            box.setEnabled(not known or word in known)
            shown = layers[word].visible if word in layers else False
            box.setChecked(shown if known else word in maps.looks.shown)

    def _add_box(self, word: str, text: str, tip: str) -> None:
        box = QCheckBox(text)
        box.setToolTip(tip)
        box.clicked.connect(lambda shown: self._show(word, shown))
        self.boxes[word] = box

    def _show(self, word: str, shown: bool) -> None:
        self._app.maps.show(self._reference, word, shown)

    def _on_looks(self) -> None:
        maps = self._app.maps
        maps.looks = replace(
            maps.looks, opacity=self.opacity.value() / 100, colormap=self.colors.currentText()
        )

    def _on_cleared(self) -> None:
        if isalive(self):
            self._show_looks()
            self._on_looks()
            self.refresh(self._reference)

    def _show_looks(self) -> None:
        looks = self._app.maps.looks
        for widget in (self.opacity, self.colors):
            widget.blockSignals(True)
        self.opacity.setValue(round(looks.opacity * 100))
        self.colors.setCurrentText(looks.colormap)
        for widget in (self.opacity, self.colors):
            widget.blockSignals(False)
