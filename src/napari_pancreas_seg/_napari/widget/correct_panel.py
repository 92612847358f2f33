"""Correct a mask: the review strip, what is proposed, and a button for each correction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from napari.utils.action_manager import action_manager
from qtpy.compat import isalive
from qtpy.QtCore import Qt
from qtpy.QtGui import QKeyEvent
from qtpy.QtWidgets import (
    QCheckBox,
    QDialog,
    QDoubleSpinBox,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QPushButton,
    QSizePolicy,
    QTableWidget,
    QTableWidgetItem,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.correct.corrections import DEFAULTS
from napari_pancreas_seg._napari.correct.keys import (
    ACTIONS,
    Action,
    key_of,
    keys_table,
    perform,
    register_actions,
)
from napari_pancreas_seg._napari.layers.placement import GridReference
from napari_pancreas_seg._napari.widget.panel import Panel, label_of, note_label
from napari_pancreas_seg._napari.widget.review_strip import (
    AREA,
    DOUBT,
    EDITED,
    REVIEWED,
    ReviewStrip,
)

__all__ = ["CorrectPanel", "KeysDialog"]

TIPS = {
    "fill_between": "Fills the empty slices between slices that hold the label. Proposed first.",
    "clear_slice": "Takes the label off the slice on screen: for Fill between, or to start anew.",
    "rerun_slice": "The network's mask for the slice on screen, proposed in place of this one.",
    "smooth": "Smooths the surface in 3-D and keeps the volume. Proposed first.",
    "fill_holes": "Fills cavities that the mask encloses on all sides.",
    "remove_islands": "Removes pieces below this size; the largest one always stays.",
    "next_uncertain": "Of the quarter that the model is least sure of, not reviewed yet.",
}


class CorrectPanel(Panel):
    """Review and correct the mask that is chosen.

    Parameters
    ----------
    app : App
        The viewer's session.
    """

    def __init__(self, app: App) -> None:
        super().__init__("Correct")
        self._app = app
        self.buttons: dict[str, QPushButton | QToolButton] = {}
        self._actions = {action.name: action for action in ACTIONS}
        register_actions()
        self._make_review()
        self._make_proposal()
        self._make_tools()
        self._make_limit()
        self._connect()
        self._show_tips()
        self._show_state()

    def refresh(self, reference: GridReference | None) -> None:
        """Follow the mask that is chosen."""
        self._show_state()

    def show_keys(self) -> None:
        """Show the table of keys."""
        dialog = KeysDialog(self)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.show()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Enter accepts and Esc drops what is proposed, with the focus in the panel, too."""
        corrector = self._app.corrector
        if corrector.proposal is not None and event.key() in (
            Qt.Key.Key_Return,
            Qt.Key.Key_Enter,
        ):
            corrector.accept()
        elif corrector.proposal is not None and event.key() == Qt.Key.Key_Escape:
            corrector.drop()
        else:
            super().keyPressEvent(event)

    # -- parts

    def _make_review(self) -> None:
        self.strip = ReviewStrip(self._app)
        legend = QLabel(
            " &nbsp;".join(
                f'<span style="color:{color}">■</span> {word}'
                for color, word in (
                    (AREA, "area"),
                    (DOUBT, "doubt"),
                    (EDITED, "edited"),
                    (REVIEWED, "reviewed"),
                )
            )
        )
        legend.setStyleSheet("font-size: 11px")
        legend.setToolTip(
            "Doubt: 1 minus the Dice that the model expects of its mask in this slice."
        )
        self.facts = note_label()
        self.reviewed = QCheckBox("Reviewed")
        self.progress = QLabel("")
        self.add(self.strip)
        self.add(legend)
        self.add(self.facts)
        self.add(
            self.reviewed,
            self.progress,
            self._arrow("previous_unreviewed", Qt.ArrowType.LeftArrow),
            self._arrow("next_unreviewed", Qt.ArrowType.RightArrow),
            stretch=(1, 0, 0, 0),
        )
        self.add(
            label_of("Uncertain slices"),
            self._arrow("previous_uncertain", Qt.ArrowType.LeftArrow),
            self._arrow("next_uncertain", Qt.ArrowType.RightArrow),
            stretch=(1, 0, 0),
        )

    def _make_proposal(self) -> None:
        self.proposal = QWidget()
        self.proposal_title = note_label()
        self.accept_button = QPushButton("Accept (Enter)")
        self.drop_button = QPushButton("Drop (Esc)")
        column = QVBoxLayout(self.proposal)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(5)
        row = QHBoxLayout()
        row.setSpacing(5)
        row.addWidget(self.accept_button)
        row.addWidget(self.drop_button)
        column.addWidget(self.proposal_title)
        column.addLayout(row)
        self.add(self.proposal)

    def _make_tools(self) -> None:
        button = self._button
        self.pick_button = QPushButton("Keep clicked")
        self.pick_button.setCheckable(True)
        self.pick_button.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.keys_button = QPushButton("Keys…")
        self.keys_button.setToolTip("Every key; Preferences › Shortcuts changes them.")
        self.smooth_mm = self._number("correct/smooth_mm", " mm", 0.1, 10, 0.5)
        self.islands_mm3 = self._number("correct/islands_mm3", " mm³", 1, 100_000, 50, decimals=0)
        self.grow_mm = self._number("correct/grow_mm", " mm", 0.1, 50, 0.5)
        halves = (1, 1)
        self.add(
            button("fill_between", "Fill between"),
            button("clear_slice", "Clear slice"),
            stretch=halves,
        )
        self.add(
            button("copy_from_below", "Copy below"),
            button("copy_from_above", "Copy above"),
            stretch=halves,
        )
        self.add(button("keep_largest", "Keep largest"), self.pick_button, stretch=halves)
        self.add(button("smooth", "Smooth"), self.smooth_mm, stretch=halves)
        self.add(button("remove_islands", "Remove islands"), self.islands_mm3, stretch=halves)
        self.add(
            button("grow", "Grow"), button("shrink", "Shrink"), self.grow_mm, stretch=(1, 1, 2)
        )
        self.add(
            button("fill_holes", "Fill holes"),
            button("rerun_slice", "Run slice again"),
            stretch=halves,
        )

    def _make_limit(self) -> None:
        self.limit = QCheckBox("Paint only within this range of HU")
        self.limit.setToolTip(
            "Takes back what a stroke painted outside this range, when the stroke ends."
        )
        self.low_hu = self._number("correct/limit_low_hu", " HU", -1100, 4000, 10, decimals=0)
        self.high_hu = self._number("correct/limit_high_hu", " HU", -1100, 4000, 10, decimals=0)
        self.add(self.limit)
        self.add(self.low_hu, label_of("to"), self.high_hu, stretch=(1, 0, 1))
        self.add(self.keys_button)

    def _connect(self) -> None:
        app, corrector = self._app, self._app.corrector
        self.accept_button.clicked.connect(lambda: corrector.accept())
        self.drop_button.clicked.connect(lambda: corrector.drop())
        self.pick_button.clicked.connect(self._pick)
        self.reviewed.clicked.connect(self._doer(self._actions["toggle_reviewed"]))
        self.limit.clicked.connect(self._set_limit)
        self.keys_button.clicked.connect(self.show_keys)
        corrector.changed.connect(self._show_state)
        app.session.mask_chosen.connect(self._show_state)
        app.review.changed.connect(self._show_slice)
        app.review.moved.connect(self._show_slice)
        app.settings.cleared.connect(self._show_settings)
        action_manager.events.shortcut_changed.connect(self._show_tips)
        for part in (self.accept_button, self.drop_button, self.keys_button, self.reviewed):
            part.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.limit.setFocusPolicy(Qt.FocusPolicy.TabFocus)

    def _button(self, name: str, text: str) -> QPushButton:
        button = QPushButton(text)
        self._wire(name, button)
        return button

    def _arrow(self, name: str, arrow: Qt.ArrowType) -> QToolButton:
        button = QToolButton()
        button.setArrowType(arrow)
        self._wire(name, button)
        return button

    def _wire(self, name: str, button: QPushButton | QToolButton) -> None:
        # A click leaves the keyboard with the picture; Tab still comes here.
        button.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        button.clicked.connect(self._doer(self._actions[name]))
        self.buttons[name] = button

    def _doer(self, action: Action) -> Callable[[], None]:
        return lambda: perform(action, self._app)

    def _number(
        self, name: str, unit: str, low: float, high: float, step: float, decimals: int = 1
    ) -> QDoubleSpinBox:
        box = QDoubleSpinBox()
        box.setDecimals(decimals)
        box.setRange(low, high)
        box.setSingleStep(step)
        box.setSuffix(unit)
        box.setValue(self._app.corrector.setting(name))
        # As narrow as the row wants it: napari's style asks for more than the dock has.
        box.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        box.setProperty("setting", name)
        box.valueChanged.connect(lambda value: self._app.settings.set(name, float(value)))
        return box

    # -- state

    def _pick(self) -> None:
        perform(Action("", "", "", lambda app: app.corrector.pick_piece()), self._app)
        self._show_state()

    def _set_limit(self, limits: bool) -> None:
        self._app.corrector.limits_painting = limits

    def _show_state(self) -> None:
        if not isalive(self):
            return
        corrector = self._app.corrector
        ready = self._app.session.mask is not None and not corrector.working
        tools = (*self.buttons.values(), self.pick_button)
        for button in tools:
            button.setEnabled(ready)
        self.pick_button.setChecked(corrector.picking)
        self.pick_button.setText("Click a piece" if corrector.picking else "Keep clicked")
        self.limit.setChecked(corrector.limits_painting)
        proposal = corrector.proposal
        self.accept_button.setEnabled(proposal is not None)
        self.drop_button.setEnabled(proposal is not None)
        if proposal is not None:
            n = len(proposal.found.change.slices)
            self.proposal_title.setText(f"{proposal.title}: {n} {'slice' if n == 1 else 'slices'}")
        else:
            self.proposal_title.setText(
                f"{corrector.working}…" if corrector.working else "Nothing is proposed."
            )
        self._show_slice()

    def _show_slice(self) -> None:
        if not isalive(self):
            return
        review = self._app.review
        z, facts = review.slice, review.facts
        known = z is not None and facts is not None
        self.facts.setText(self.strip.describe(z) if z is not None else "")
        self.facts.setVisible(bool(self.facts.text()))
        self.reviewed.setEnabled(known)
        self.reviewed.setChecked(z in review.reviewed)
        if facts is None:
            self.progress.setText("")
            return
        held = {int(z) for z in facts.area_mm2.nonzero()[0]}
        self.progress.setText(f"{len(held & review.reviewed)} of {len(held)}")

    def _show_settings(self) -> None:
        for box in self.findChildren(QDoubleSpinBox):
            name = box.property("setting")
            if name in DEFAULTS:
                box.setValue(self._app.corrector.setting(name))
        self._show_state()

    def _show_tips(self, event: Any = None) -> None:
        if not isalive(self):
            return
        for name, button in self.buttons.items():
            action = self._actions[name]
            key = key_of(action)
            title = f"{action.title} ({key})" if key else action.title
            button.setToolTip(f"{title}\n{TIPS[name]}" if name in TIPS else title)
        key = key_of(self._actions["keep_under_mouse"])
        self.pick_button.setToolTip(
            "Keep the piece that is clicked next in the picture; Esc forgets it."
            + (f"\n{key} keeps the one under the mouse." if key else "")
        )
        go_on, toggle = (key_of(self._actions[n]) for n in ("review_and_go_on", "toggle_reviewed"))
        self.reviewed.setToolTip(f"{toggle}; {go_on} marks it and goes on to the next slice.")
        key = key_of(self._actions["limit_painting"])
        if key and key not in self.limit.toolTip():
            self.limit.setToolTip(f"{self.limit.toolTip()} ({key})")


class KeysDialog(QDialog):
    """A table of keys and what they do.

    Parameters
    ----------
    parent : QWidget
        Over which it opens.
    """

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Keys")
        rows = [
            *keys_table(),
            ("Enter", "Accept what is proposed"),
            ("Esc", "Drop what is proposed"),
        ]
        self.table = QTableWidget(len(rows), 2)
        self.table.setHorizontalHeaderLabels(["Key", "What it does"])
        for number, row in enumerate(rows):
            for column, text in enumerate(row):
                item = QTableWidgetItem(text)
                item.setFlags(Qt.ItemFlag.ItemIsEnabled)
                self.table.setItem(number, column, item)
        self.table.verticalHeader().setVisible(False)
        self.table.setShowGrid(False)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(1, QHeaderView.ResizeMode.Stretch)
        self.table.resizeRowsToContents()
        note = note_label("After a click in the picture. Preferences › Shortcuts changes them.")
        column = QVBoxLayout(self)
        column.addWidget(self.table)
        column.addWidget(note)
        self.resize(520, 600)
