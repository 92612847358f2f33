"""A combo box of layers that keeps its choice when layers are renamed, added or removed."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from napari.layers import Layer
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QVBoxLayout, QWidget

from napari_pancreas_seg._napari.widget.panel import narrow_combo

__all__ = ["LayerCombo"]


class LayerCombo(QWidget):
    """Choose one of several layers.

    Parameters
    ----------
    placeholder : str
        Shown while there is none.
    """

    chosen = Signal()

    def __init__(self, placeholder: str) -> None:
        super().__init__()
        self.box = narrow_combo()
        self.box.setPlaceholderText(placeholder)
        self._layers: list[weakref.ref[Layer]] = []
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.box)
        self.box.currentIndexChanged.connect(lambda _: self.chosen.emit())

    @property
    def layer(self) -> Layer | None:
        """The layer that is chosen."""
        index = self.box.currentIndex()
        return self._layers[index]() if 0 <= index < len(self._layers) else None

    @layer.setter
    def layer(self, layer: Layer) -> None:
        for index, known in enumerate(self._layers):
            if known() is layer:
                self.box.setCurrentIndex(index)

    def offer(self, layers: Sequence[Layer], at_first: Layer | None = None) -> None:
        """Offer these layers; what was chosen stays so, and a new layer is chosen at once.

        Parameters
        ----------
        layers : sequence of Layer
            What can be chosen.
        at_first : Layer, optional
            What is chosen instead while nothing has been, if it is among them.
        """
        before = self.layer
        known = {id(layer()) for layer in self._layers}
        new = [layer for layer in layers if id(layer) not in known]
        choice = new[-1] if new else before if any(before is one for one in layers) else None
        if choice is None and layers:
            choice = layers[-1]
        if before is None and any(at_first is one for one in layers):
            choice = at_first
        self.box.blockSignals(True)
        self.box.clear()
        self._layers = [weakref.ref(layer) for layer in layers]
        self.box.addItems([layer.name for layer in layers])
        index = next((i for i, layer in enumerate(layers) if layer is choice), -1)
        self.box.setCurrentIndex(index)
        self.box.setToolTip("" if choice is None else choice.name)
        self.box.blockSignals(False)
        if choice is not before:
            self.chosen.emit()
