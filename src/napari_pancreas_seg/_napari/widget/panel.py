"""What the panels of the dock have in common: a heading and a column."""

from __future__ import annotations

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QComboBox, QFrame, QHBoxLayout, QLabel, QSizePolicy, QVBoxLayout, QWidget

__all__ = ["Panel", "narrow_combo", "note_label"]


class Panel(QFrame):
    """A part of the dock with a heading.

    Parameters
    ----------
    title : str
        The heading.
    """

    def __init__(self, title: str) -> None:
        super().__init__()
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSpacing(5)
        heading = QLabel(f"<b>{title}</b>")
        self._column.addWidget(heading)

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


def narrow_combo() -> QComboBox:
    """Make a combo box that long names do not widen."""
    combo = QComboBox()
    combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    combo.setMinimumContentsLength(8)
    combo.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return combo


def note_label(text: str = "") -> QLabel:
    """Make a label for a sentence: wrapped, selectable with the mouse."""
    label = QLabel(text)
    label.setWordWrap(True)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return label
