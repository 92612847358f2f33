"""Correct a mask: the review strip, a button for each correction, how the brush paints."""

from __future__ import annotations

from typing import Any

from magicgui.widgets import FloatSpinBox
from napari.layers import Labels
from napari.utils.action_manager import action_manager
from qtpy.compat import isalive
from qtpy.QtCore import Qt
from qtpy.QtGui import QKeyEvent
from qtpy.QtWidgets import QLabel, QPushButton

import napari_pancreas_seg._napari.widget.ui as ui
from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.correct.editor import DEFAULTS
from napari_pancreas_seg._napari.correct.keys import ACTIONS, key_of, perform
from napari_pancreas_seg._napari.correct.paint import LARGEST_MM, SMALLEST_MM
from napari_pancreas_seg._napari.layers.placement import GridReference
from napari_pancreas_seg._napari.widget.dialogs import show_keys
from napari_pancreas_seg._napari.widget.review_strip import (
    AREA,
    DOUBT,
    EDITED,
    REVIEWED,
    ReviewStrip,
)

TIPS = {
    "mend": "Drag over gland that is missing, Shift+drag over what is no gland.",
    "carry_up": "The network proposes it there; Enter accepts and goes on.",
    "carry_down": "The network proposes it there; Enter accepts and goes on.",
    "fill_between": "Fills the empty slices between slices that hold the label. Proposed first.",
    "clear_slice": "Takes the label off the slice on screen: for Fill between, or to start anew.",
    "rerun_slice": "The network's mask for the slice on screen, proposed in place of this one.",
    "smooth": "Smooths the surface in 3-D and keeps the volume. Proposed first.",
    "fill_holes": "Fills cavities that the mask encloses on all sides.",
    "remove_islands": "Removes pieces below this size; the largest one always stays.",
    "next_uncertain": "Of the quarter that the model is least sure of, not reviewed yet.",
}
FILL_TIP = "The network looks at the CT in each slice, guided by the shape."
LIMIT_TIP = "Takes back what a stroke painted outside this range, when the stroke ends."


class CorrectPanel(ui.Panel):
    """Reviews and corrects the mask that is chosen."""

    def __init__(self, app: App) -> None:
        super().__init__()
        self._app = app
        self._session = app.session
        self.buttons: dict[str, QPushButton] = {}
        self._actions = {action.name: action for action in ACTIONS}
        self._make_review()
        self._make_tools()
        self._make_painting()
        self._connect()
        self._show_tips()
        self.refresh()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Enter and Esc do the same with the focus in the panel as in the picture."""
        editor, mending = self._app.editor, self._app.mending
        asks = editor.proposing
        accept, drop = (editor.accept, editor.drop) if asks else (mending.go_on, mending.stop)
        keys = {Qt.Key.Key_Return: accept, Qt.Key.Key_Enter: accept, Qt.Key.Key_Escape: drop}
        if event.key() in keys and (asks or mending.active):
            keys[event.key()]()
        else:
            super().keyPressEvent(event)

    # -- parts

    def _make_review(self) -> None:
        self.strip = ReviewStrip(self._session, self._app.review)
        words = ((AREA, "area"), (DOUBT, "doubt"), (EDITED, "edited"), (REVIEWED, "reviewed"))
        legend = QLabel(
            " &nbsp;".join(f'<span style="color:{color}">■</span> {word}' for color, word in words)
        )
        legend.setStyleSheet("font-size: 11px")
        legend.setToolTip(
            "Doubt: 1 minus the Dice that the model expects of its mask in this slice."
        )
        self.facts = ui.OneLine()
        self.reviewed = ui.tick("Reviewed")
        self.progress = QLabel("")
        self.stack(self.strip, legend, self.facts)
        row = (self.reviewed, self.progress, *self._arrows("unreviewed"))
        self.add(*row, stretch=(1, 0, 0, 0))
        self.add("Uncertain slices", *self._arrows("uncertain"), stretch=(1, 0, 0))

    def _make_tools(self) -> None:
        make = self._button
        self.smooth_mm = self._setting("smooth_mm", "mm", 0.1, 10, 0.5)
        self.islands_mm3 = self._setting("islands_mm3", "mm³", 1, 100_000, 50, decimals=0)
        self.grow_mm = self._setting("grow_mm", "mm", 0.1, 50, 0.5)
        self.add(make("mend", "Mend"), make("carry_down", "Carry ▾"), make("carry_up", "Carry ▴"))
        self.buttons["mend"].setCheckable(True)
        self.buttons["mend"].clicked.connect(lambda: self.refresh())
        self.fill_with_network = ui.tick("by network", FILL_TIP)
        key = "correct/fill_with_network"
        ui.remember(self.fill_with_network, self._app.settings, key, DEFAULTS[key])
        self.add(make("fill_between", "Fill between"), self.fill_with_network)
        self.add(make("clear_slice", "Clear slice"), make("rerun_slice", "Run slice again"))
        self.add(make("keep_largest", "Keep largest"), make("fill_holes", "Fill holes"))
        self.add(make("smooth", "Smooth"), self.smooth_mm)
        self.add(make("remove_islands", "Remove islands"), self.islands_mm3)
        self.add(make("grow", "Grow"), make("shrink", "Shrink"), self.grow_mm, stretch=(1, 1, 2))

    def _make_painting(self) -> None:
        self.brush_mm = ui.number(
            "mm", SMALLEST_MM, LARGEST_MM, 1, "Diameter of napari's brush; [ and ] change it."
        )
        self.limit = ui.tick("Paint only within this range of HU", LIMIT_TIP)
        self.low_hu = self._setting("limit_low_hu", "HU", -1100, 4000, 10, decimals=0)
        self.high_hu = self._setting("limit_high_hu", "HU", -1100, 4000, 10, decimals=0)
        self.keys_button = ui.button(
            "Keys…", "Every key, and where to change them.", lambda: show_keys(self)
        )
        self.add("Brush", self.brush_mm, self.keys_button)
        self.add(self.limit)
        self.add(self.low_hu, "to", self.high_hu)

    def _connect(self) -> None:
        editor, review = self._app.editor, self._app.review
        self.reviewed.changed.connect(lambda _: self._perform("toggle_reviewed"))
        self.reviewed.changed.connect(self._show_slice)  # it may have been refused
        self.limit.changed.connect(lambda on: setattr(self._app.paint_limit, "on", on))
        self.brush_mm.changed.connect(lambda mm: setattr(self._app.brush, "mm", mm))
        self._app.brush.changed.connect(self._show_brush)
        self._show_brush()
        for service in (editor, self._app.mending, self._app.paint_limit):
            service.changed.connect(self.refresh)
        self._session.mask_chosen.connect(self.refresh)
        review.changed.connect(self._show_slice)
        review.moved.connect(self._show_slice)
        action_manager.events.shortcut_changed.connect(self._show_tips)

    def _button(self, name: str, text: str) -> QPushButton:
        made = self.buttons[name] = ui.button(text, do=lambda: self._perform(name))
        return made

    def _arrows(self, which: str) -> list[QPushButton]:
        """To the slice of some kind before and after this one."""
        arrows = (("previous", "◂"), ("next", "▸"))
        return [self._button(f"{where}_{which}", arrow) for where, arrow in arrows]

    def _perform(self, name: str) -> None:
        perform(self._actions[name], self._app)

    def _setting(
        self, name: str, unit: str, low: float, high: float, step: float, decimals: int = 1
    ) -> FloatSpinBox:
        field, key = ui.number(unit, low, high, step, decimals=decimals), f"correct/{name}"
        ui.remember(field, self._app.settings, key, DEFAULTS[key])
        return field

    # -- state

    def refresh(self, reference: GridReference | None = None) -> None:
        editor, mask = self._app.editor, self._session.mask
        for part in self.buttons.values():
            part.setEnabled(mask is not None and not editor.working)
        self.brush_mm.enabled = isinstance(mask, Labels)
        self.buttons["mend"].setChecked(self._app.mending.active)
        ui.show(self.limit, self._app.paint_limit.on)
        self._show_slice()

    def _show_brush(self) -> None:
        ui.show(self.brush_mm, self._app.brush.mm)

    def _show_slice(self, _: Any = None) -> None:
        review = self._app.review
        z, facts = review.slice, review.facts
        self.facts.setText(self.strip.describe(z) if z is not None else "")
        self.reviewed.enabled = z is not None and facts is not None
        ui.show(self.reviewed, z in review.reviewed)
        held = set() if facts is None else {int(z) for z in facts.area_mm2.nonzero()[0]}
        done = len(held & review.reviewed)
        self.progress.setText("" if facts is None else f"{done} of {len(held)}")

    def _show_tips(self, event: Any = None) -> None:
        if not isalive(self):
            return
        for name, part in self.buttons.items():
            title = self._with_key(self._actions[name].title, name)
            part.setToolTip(f"{title}\n{TIPS[name]}" if name in TIPS else title)
        largest = self.buttons["keep_largest"]
        # That has no button: the mouse would lie on it, not on a piece.
        also = self._with_key(self._actions["keep_under_mouse"].title, "keep_under_mouse")
        largest.setToolTip(f"{largest.toolTip()}\n{also}")
        go_on, toggle = (key_of(self._actions[n]) for n in ("review_and_go_on", "toggle_reviewed"))
        self.reviewed.tooltip = f"{toggle}; {go_on} marks it and goes on to the next slice."
        self.limit.tooltip = self._with_key(LIMIT_TIP, "limit_painting")

    def _with_key(self, text: str, name: str) -> str:
        key = key_of(self._actions[name])
        return f"{text} ({key})" if key else text
