"""The model's attention and probability over the CT."""

from __future__ import annotations

from dataclasses import replace

from magicgui.widgets import CheckBox

import napari_pancreas_seg._napari.widget.ui as ui
from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.layers.maps import COLOR_MAPS, PROBABILITY
from napari_pancreas_seg._napari.layers.placement import GridReference

N_GATES = 4


class AttentionPanel(ui.Panel):
    """Shows gates and probability of the chosen CT, one at a time."""

    def __init__(self, app: App) -> None:
        super().__init__("Attention")
        self._maps = app.maps
        self._reference: GridReference | None = None
        self.boxes: dict[str, CheckBox] = {}
        for number in range(1, N_GATES + 1):
            self._add_box(f"attention {number}", str(number), f"Gate {number}; 1 is the finest.")
        self._add_box(PROBABILITY, "Probability", "What the network says before any threshold.")
        self.opacity = ui.slider(0, 1)
        self.colors = ui.choice("Colours of the gates.")
        note = ui.OneLine("Bright: what the gate lets through (0 to 1).")
        self.add("Gates", *self.boxes.values(), stretch=(1, 0, 0, 0, 0, 0))
        self.add("Opacity", self.opacity, self.colors, stretch=(0, 3, 2))
        self.add(note)
        self._show_appearance()
        self.opacity.changed.connect(self._on_appearance)
        self.colors.changed.connect(self._on_appearance)
        app.settings.cleared.connect(self._on_cleared)
        self.refresh(app.session.reference)

    def refresh(self, reference: GridReference | None) -> None:
        self._reference = reference
        known = [] if reference is None else self._maps.known(reference)
        layers = {} if reference is None else self._maps.layers(reference)
        for word, box in self.boxes.items():
            # Before a run the boxes say what will be shown; a model may have fewer gates.
            box.enabled = not known or word in known
            shown = word in layers and self._maps.is_shown(layers[word])
            ui.show(box, shown if known else word == self._maps.appearance.shown)

    def _add_box(self, word: str, text: str, tip: str) -> None:
        box = self.boxes[word] = ui.tick(text, tip)
        box.changed.connect(lambda shown: self._show(word, shown))

    def _show(self, word: str, shown: bool) -> None:
        self._maps.show(self._reference, word, shown)
        self.refresh(self._reference)

    def _on_appearance(self) -> None:
        self._maps.appearance = replace(
            self._maps.appearance, opacity=round(self.opacity.value, 2), colormap=self.colors.value
        )

    def _on_cleared(self) -> None:
        self._show_appearance()
        self._on_appearance()
        self.refresh(self._reference)

    def _show_appearance(self) -> None:
        ui.show(self.opacity, self._maps.appearance.opacity)
        ui.offer(self.colors, [(name, name) for name in COLOR_MAPS], self._maps.appearance.colormap)
