"""Widgets that the panels are built of: rows, magicgui's fields, texts on one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from magicgui.widgets import CheckBox, ComboBox, FloatSlider, FloatSpinBox
from magicgui.widgets.bases import ValueWidget, Widget
from napari.components import ViewerModel
from napari.utils.theme import get_system_theme, get_theme
from qtpy.compat import isalive
from qtpy.QtCore import QEvent, QObject, Qt, Signal
from qtpy.QtGui import QColor, QFocusEvent
from qtpy.QtWidgets import (
    QAbstractSlider,
    QAbstractSpinBox,
    QComboBox,
    QHBoxLayout,
    QLabel,
    QMenu,
    QPushButton,
    QScrollBar,
    QSizePolicy,
    QSlider,
    QStyle,
    QStyleOptionComboBox,
    QStylePainter,
    QTabBar,
    QToolButton,
    QVBoxLayout,
    QWidget,
)
from superqt import QElidingLabel

if TYPE_CHECKING:
    from napari_pancreas_seg._napari.layers.placement import GridReference
    from napari_pancreas_seg._napari.settings import Settings

NARROW = "QPushButton { padding: 3px 2px; min-width: 0px; }"
"""Several in a row: with napari's margins their words would be cut off."""


class Panel(QWidget):
    """A part of the dock: rows of widgets, with a heading if it shares a tab.

    ``wanted`` asks the dock to bring the panel's tab to the front.
    """

    wanted = Signal()

    def __init__(self, heading: str = "") -> None:
        super().__init__()
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSpacing(4)
        if heading:
            label = QLabel(heading)
            label.setStyleSheet("font-weight: bold; padding-top: 4px;")
            self.add(label)

    def refresh(self, reference: GridReference | None) -> None:
        """Bring the panel in step with the viewer; `reference` is the chosen CT's grid."""

    def add(self, *parts: str | Widget | QWidget, stretch: Sequence[int] = ()) -> None:
        row = QHBoxLayout()
        row.setSpacing(4)
        shares = stretch or [int(not isinstance(part, str)) for part in parts]
        for part, share in zip(parts, shares, strict=True):
            if isinstance(part, str):
                row.addWidget(QLabel(part), share)
            else:
                row.addWidget(part.native if isinstance(part, Widget) else part, share)
        self._column.addLayout(row)

    def stack(self, *parts: Widget | QWidget) -> None:
        """Add each as a row of its own."""
        for part in parts:
            self.add(part)


def row(*parts: str | Widget | QWidget, stretch: Sequence[int] = ()) -> Panel:
    """A panel of a single row, to be shown and hidden as one."""
    made = Panel()
    made.add(*parts, stretch=stretch)
    return made


class OneLine(QElidingLabel):
    """A text on one line of fixed height: "…" where it is too long, whole in its tooltip."""

    def __init__(self, text: str = "") -> None:
        super().__init__()
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setFixedHeight(self.fontMetrics().height() + 3)
        self.setText(text)

    def setText(self, text: str) -> None:
        super().setText(text.replace("\n", " "))
        self.setToolTip(text)


def theme_colors(viewer: ViewerModel | None) -> tuple[QColor, QColor]:
    name = "dark" if viewer is None else viewer.theme
    theme = get_theme(get_system_theme() if name == "system" else name)
    ground, ink = (QColor(color.as_hex()) for color in (theme.foreground, theme.text))
    return ground, ink


# -- fields


def choice(tip: str = "", empty: str = "") -> ComboBox:
    """A combo box that long names do not widen: they are whole in its tooltip. See `offer`."""
    field = ComboBox(choices=())
    box = field.native
    box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    box.setMinimumContentsLength(5)
    box.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    box.setPlaceholderText(empty)
    box.installEventFilter(_Elider(box))
    box.setToolTip(tip)
    box.currentTextChanged.connect(lambda text: box.setToolTip(f"{text}\n{tip}".strip()))
    return field


def offer(field: ComboBox, choices: Sequence[tuple[str, Any]], value: Any = None) -> None:
    """Offer other choices, (text, value) each, and choose one of them; nobody is told."""
    with field.changed.blocked():
        field.native.clear()
        field.choices = choices
        if any(value is known or value == known for _, known in choices):
            field.value = value
        else:
            field.native.setCurrentIndex(-1)
    # magicgui fills it in silence, and the tooltip names what is chosen.
    field.native.currentTextChanged.emit(field.native.currentText())


def tick(text: str, tip: str = "") -> CheckBox:
    field = CheckBox(text=text, tooltip=tip)
    field.native.setFocusPolicy(Qt.FocusPolicy.TabFocus)
    return field


def number(
    unit: str, low: float, high: float, step: float, tip: str = "", decimals: int = 1
) -> FloatSpinBox:
    field = FloatSpinBox(value=low, min=low, max=high, step=step, tooltip=tip)
    field.native.setDecimals(decimals)
    field.native.setSuffix(f" {unit}")
    field.native.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
    return field


def slider(low: float, high: float, tip: str = "") -> FloatSlider:
    """A slider of hundredths, which a click beside the handle moves by five."""
    field = FloatSlider(value=low, min=low, max=high, step=0.01, readout=False, tooltip=tip)
    bar = field.native.findChild(QSlider)
    bar.setPageStep(5 * bar.singleStep())  # magicgui leaves a hundred-thousandth
    return field


def show(field: ValueWidget, value: Any) -> None:
    """Show a value; nobody is told."""
    with field.changed.blocked():
        field.value = value


def remember(field: ValueWidget, settings: Settings, name: str, default: Any) -> None:
    """Keep a field's value from one session to the next, until the settings are reset."""
    show(field, settings.get(name, default))
    field.changed.connect(lambda value: settings.set(name, value))

    def reset() -> None:
        if isalive(field.native):
            show(field, default)

    settings.cleared.connect(reset)


# -- other widgets


def button(text: str, tip: str = "", do: Callable[[], Any] | None = None) -> QPushButton:
    made = QPushButton(text)
    made.setToolTip(tip)
    made.setStyleSheet(NARROW)
    made.setFocusPolicy(Qt.FocusPolicy.TabFocus)
    if do is not None:
        made.clicked.connect(lambda: do())
    return made


def menu_button(text: str = "", tip: str = "") -> QToolButton:
    made = QToolButton()
    made.setText(text)
    made.setToolTip(tip)
    made.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
    # Else the arrow lies over the last word.
    made.setStyleSheet("QToolButton { padding: 3px 16px 3px 6px; }")
    made.setMenu(QMenu(made))
    return made


def note_label() -> QLabel:
    """A label for sentences: wrapped, selectable with the mouse."""
    label = QLabel()
    label.setWordWrap(True)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return label


GUARDED = (QAbstractSlider, QAbstractSpinBox, QComboBox, QTabBar)
PASSING = (Qt.FocusReason.PopupFocusReason, Qt.FocusReason.ActiveWindowFocusReason)
"""A list that opens, or another window, takes the focus for a moment only."""


class _Elider(QObject):
    """Paints a combo box's long text with "…" at its end; Qt cuts through a letter."""

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Paint in place of the combo box."""
        if event.type() != QEvent.Type.Paint or not isinstance(watched, QComboBox):
            return False
        option, style = QStyleOptionComboBox(), watched.style()
        watched.initStyleOption(option)
        control, part = QStyle.ComplexControl.CC_ComboBox, QStyle.SubControl.SC_ComboBoxEditField
        room = style.subControlRect(control, option, part, watched).width() - 4
        text, right = option.currentText, Qt.TextElideMode.ElideRight
        text = text if watched.currentIndex() >= 0 else watched.placeholderText()
        option.currentText = watched.fontMetrics().elidedText(text, right, room)
        painter = QStylePainter(watched)
        painter.drawComplexControl(control, option)
        painter.drawControl(QStyle.ControlElement.CE_ComboBoxLabel, option)
        return True


class WheelGuard(QObject):
    """Hands the wheel to sliders and spin boxes only when a click has focused them.

    Otherwise the event goes on to what lies behind them, which scrolls. Tab bars and combos never
    get it.
    """

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self._clicked: QWidget | None = None

    def watch(self, parent: QWidget) -> None:
        """Guard what a widget holds now."""
        for child in parent.findChildren(QWidget):
            if isinstance(child, GUARDED) and not isinstance(child, QScrollBar):
                if isinstance(child, QComboBox):  # chosen from, it would keep the picture's keys
                    child.setFocusPolicy(Qt.FocusPolicy.TabFocus)
                elif child.focusPolicy() == Qt.FocusPolicy.WheelFocus:
                    child.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
                child.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Pass a wheel event on unless its widget was clicked and has the focus still."""
        if event.type() == QEvent.Type.Wheel and watched is not self._clicked:
            event.ignore()
            return True
        if isinstance(event, QFocusEvent) and event.reason() not in PASSING:
            by_click = event.gotFocus() and event.reason() == Qt.FocusReason.MouseFocusReason
            if by_click and not isinstance(watched, QTabBar):
                self._clicked = watched
            elif watched is self._clicked:
                self._clicked = None
        return False
