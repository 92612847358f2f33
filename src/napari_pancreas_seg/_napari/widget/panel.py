"""What the panels of the dock have in common: a heading that folds, and a column."""

from __future__ import annotations

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QComboBox,
    QFrame,
    QHBoxLayout,
    QLabel,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_pancreas_seg._napari.layers.placement import GridReference

__all__ = ["Panel", "label_of", "narrow_combo", "note_label"]


class Panel(QFrame):
    """A part of the dock with a heading; a click on that folds the panel away.

    Parameters
    ----------
    title : str
        The heading.
    """

    folded = Signal(bool)

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title = title
        self.heading = QToolButton()
        self.heading.setText(title)
        self.heading.setCheckable(True)
        self.heading.setChecked(True)
        self.heading.setAutoRaise(True)
        self.heading.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.heading.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        # Not napari's look of a button: a heading is read before it is pressed.
        self.heading.setStyleSheet(
            "QToolButton { border: none; background: transparent; font-weight: bold;"
            " text-align: left; padding: 2px 0px; }"
        )
        self.body = QWidget()
        self._column = QVBoxLayout(self.body)
        self._column.setContentsMargins(4, 0, 0, 4)
        self._column.setSpacing(5)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.setSpacing(2)
        outer.addWidget(self.heading)
        outer.addWidget(self.body)
        self.heading.toggled.connect(self._fold)
        self._fold(True)

    @property
    def is_open(self) -> bool:
        """Whether the panel's body is shown."""
        return bool(self.heading.isChecked())

    @is_open.setter
    def is_open(self, is_open: bool) -> None:
        self.heading.setChecked(is_open)

    def refresh(self, reference: GridReference | None) -> None:
        """Bring the panel in step with the viewer.

        Parameters
        ----------
        reference : GridReference or None
            Grid of the CT that is chosen; None while there is none.
        """

    def add(self, *widgets: QWidget, stretch: tuple[int, ...] = ()) -> None:
        """Add a row of widgets."""
        if len(widgets) == 1:
            self._column.addWidget(widgets[0])
            return
        row = QHBoxLayout()
        row.setSpacing(5)
        for widget, share in zip(widgets, stretch or (1,) * len(widgets), strict=True):
            row.addWidget(widget, share)
        self._column.addLayout(row)

    def _fold(self, is_open: bool) -> None:
        self.heading.setArrowType(Qt.ArrowType.DownArrow if is_open else Qt.ArrowType.RightArrow)
        self.body.setVisible(is_open)
        self.folded.emit(not is_open)


def narrow_combo() -> QComboBox:
    """Make a combo box that long names do not widen."""
    combo = QComboBox()
    combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    combo.setMinimumContentsLength(5)
    combo.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return combo


def label_of(text: str, tip: str = "") -> QLabel:
    """Make the label in front of a field."""
    label = QLabel(text)
    label.setToolTip(tip)
    return label


def note_label(text: str = "") -> QLabel:
    """Make a label for a sentence: wrapped, selectable with the mouse."""
    label = QLabel(text)
    label.setWordWrap(True)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return label
