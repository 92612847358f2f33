"""Where in the CT to look: some slices, a box drawn in a shapes layer."""

from __future__ import annotations

import weakref

from napari.layers import Shapes
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QHBoxLayout, QLabel, QSpinBox, QToolButton, QVBoxLayout, QWidget

from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.layers.placement import GridReference, slice_on_screen
from napari_pancreas_seg._napari.layers.region import box_of_shapes
from napari_pancreas_seg._napari.widget.panel import label_of, narrow_combo

__all__ = ["RegionForm"]

Region = tuple[tuple[int, int] | None, tuple[int, int, int, int] | None]


class RegionForm(QWidget):
    """Fields that restrict a run; folded away until they are wanted, and never remembered.

    Parameters
    ----------
    app : App
        The viewer's session.
    """

    def __init__(self, app: App) -> None:
        super().__init__()
        self._app = app
        self._reference: GridReference | None = None
        self._shapes: list[weakref.ref[Shapes]] = []
        self.toggle = QToolButton()
        self.toggle.setText("Region: whole CT")
        self.toggle.setCheckable(True)
        self.toggle.setAutoRaise(True)
        self.toggle.setArrowType(Qt.ArrowType.RightArrow)
        self.toggle.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.toggle.setStyleSheet("QToolButton { border: none; background: transparent; }")
        self.first, self.last = QSpinBox(), QSpinBox()
        for box, what in ((self.first, "first"), (self.last, "last")):
            box.setToolTip(f"The {what} slice that is segmented, as the slider counts.")
            box.setButtonSymbols(QSpinBox.ButtonSymbols.NoButtons)  # two must fit side by side
            box.setStyleSheet("QSpinBox { min-width: 36px; max-width: 48px; padding: 1px; }")
            box.valueChanged.connect(self._show)
        self.here = QToolButton()
        self.here.setText("± 10")
        self.here.setToolTip("Ten slices on either side of the one on screen.")
        self.here.clicked.connect(self._around_here)
        self.box = narrow_combo()
        self.box.setToolTip("Only what lies within the shapes of this layer (its selected ones).")
        self.box.currentIndexChanged.connect(self._show)
        self.body = QWidget()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(3)
        column.addWidget(self.toggle)
        column.addWidget(self.body)
        rows = QVBoxLayout(self.body)
        rows.setContentsMargins(12, 0, 0, 0)
        rows.setSpacing(5)
        rows.addLayout(_row(label_of("Slices"), self.first, QLabel("–"), self.last, self.here))
        rows.addLayout(_row(label_of("Box"), self.box))
        self.body.hide()
        self.toggle.toggled.connect(self._fold)

    @property
    def region(self) -> Region:
        """``slices`` and ``box`` of `Options`.

        Raises
        ------
        PancreasSegError
            If the shapes enclose nothing.
        """
        slices = None
        reference = self._reference
        if reference is not None and self._is_part(reference):
            slices = self.first.value(), self.last.value() + 1
        shapes, ct = self._chosen_shapes(), self._app.session.ct
        if shapes is None or ct is None or reference is None:
            return slices, None
        return slices, box_of_shapes(shapes, ct, reference)

    def refresh(self, reference: GridReference | None) -> None:
        """Offer the slices of a CT, and the viewer's shapes layers."""
        if reference is not None and (
            self._reference is None or self._reference.id != reference.id
        ):
            last = reference.grid.shape[0] - 1
            for box in (self.first, self.last):
                box.setRange(0, last)
            self.first.setValue(0)
            self.last.setValue(last)
        self._reference = reference
        self._offer_shapes()
        self._show()

    def _offer_shapes(self) -> None:
        viewer, before = self._app.session.viewer, self._chosen_shapes()
        layers = [] if viewer is None else list(viewer.layers)
        shapes = [layer for layer in layers if isinstance(layer, Shapes)]
        self.box.blockSignals(True)
        self.box.clear()
        self.box.addItem("whole slices" if shapes else "whole slices (no shapes layer)")
        self.box.addItems([layer.name for layer in shapes])
        self._shapes = [weakref.ref(layer) for layer in shapes]
        place = next((i for i, layer in enumerate(shapes, 1) if layer is before), 0)
        self.box.setCurrentIndex(place)
        self.box.blockSignals(False)

    def _chosen_shapes(self) -> Shapes | None:
        index = self.box.currentIndex() - 1
        return self._shapes[index]() if 0 <= index < len(self._shapes) else None

    def _around_here(self) -> None:
        viewer, ct, reference = self._app.session.viewer, self._app.session.ct, self._reference
        if viewer is None or ct is None or reference is None:
            return
        z = slice_on_screen(viewer, ct, reference)
        if z is not None:
            self.first.setValue(z - 10)
            self.last.setValue(z + 10)

    def _is_part(self, reference: GridReference) -> bool:
        return self.first.value() > 0 or self.last.value() < reference.grid.shape[0] - 1

    def _fold(self, is_open: bool) -> None:
        self.toggle.setArrowType(Qt.ArrowType.DownArrow if is_open else Qt.ArrowType.RightArrow)
        self.body.setVisible(is_open)

    def _show(self) -> None:
        parts = []
        if self._reference is not None and self._is_part(self._reference):
            parts.append(f"slices {self.first.value()} to {self.last.value()}")
        if self._chosen_shapes() is not None:
            parts.append("box")
        self.toggle.setText(f"Region: {', '.join(parts) or 'whole CT'}")


def _row(*widgets: QWidget) -> QHBoxLayout:
    row = QHBoxLayout()
    row.setSpacing(5)
    for place, widget in enumerate(widgets):
        row.addWidget(widget, 1 if place == 1 and len(widgets) == 2 else 0)
    if len(widgets) > 2:
        row.addStretch(1)
    return row
