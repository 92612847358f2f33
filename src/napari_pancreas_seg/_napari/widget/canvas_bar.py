"""What is asked where the eyes are: a small bar over napari's canvas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.compat import isalive
from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtWidgets import QFrame, QHBoxLayout, QLabel, QVBoxLayout, QWidget

import napari_pancreas_seg._napari.widget.ui as ui
from napari_pancreas_seg import io
from napari_pancreas_seg._napari.app import App

MARGIN = 8
STYLE = (
    "QFrame#pancreas_bar {{ background: {ground}; border-radius: 4px; }}"
    " QFrame#pancreas_bar QLabel {{ color: {ink}; background: transparent; }}"
)


class CanvasBar(QFrame):
    """Accepts or drops what is proposed, says how to mend, and which case is shown.

    It lies over the canvas; without one it is never shown.
    """

    def __init__(self, app: App, canvas: QWidget | None) -> None:
        super().__init__(canvas)
        self._app = app
        self._canvas = canvas
        self.setObjectName("pancreas_bar")
        self.case = QLabel()
        self.title = QLabel()
        for label in (self.case, self.title):
            label.setTextFormat(Qt.TextFormat.PlainText)
        self.accept_button = ui.button(
            "Accept (Enter)", "One step of undo: Ctrl+Z takes it back.", app.corrector.accept
        )
        self.drop_button = ui.button("Drop (Esc)", "Leave the mask as it is.", app.corrector.drop)
        self.on_button = ui.button(
            "Carry on (Enter)", "To the next slice, in the same direction.", app.mending.go_on
        )
        self.done_button = ui.button("Done (Esc)", "Put Mend away.", app.mending.stop)
        self._answers = (self.accept_button, self.drop_button, self.on_button, self.done_button)
        column = QVBoxLayout(self)
        column.setContentsMargins(MARGIN, 4, MARGIN, 4)
        column.addWidget(self.case)
        column.addWidget(self.title)
        self._buttons = QWidget()
        row = QHBoxLayout(self._buttons)
        row.setContentsMargins(0, 0, 0, 0)
        for button in self._answers:
            row.addWidget(button)
        column.addWidget(self._buttons)
        app.corrector.changed.connect(self._show)
        app.mending.changed.connect(self._show)
        app.worklist.changed.connect(self._show)
        if canvas is not None:
            canvas.installEventFilter(self)
        viewer = app.session.viewer
        if viewer is not None:
            viewer.events.theme.connect(self._dress)
        self._dress()
        self._show()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Stay in the canvas's upper left corner."""
        if event.type() == QEvent.Type.Resize:
            self._place()
        return False

    def _dress(self, event: Any = None) -> None:
        if isalive(self):
            ground, ink = ui.theme_colors(self._app.session.viewer)
            self.setStyleSheet(STYLE.format(ground=ground.name(), ink=ink.name()))

    def _place(self) -> None:
        self.adjustSize()
        self.move(MARGIN, MARGIN)
        self.raise_()

    def _show(self) -> None:
        if not isalive(self):
            return
        case, title = self._case(), self._title()
        self.case.setText(case)
        self.case.setVisible(bool(case))
        self.title.setText(title)
        self.title.setVisible(bool(title))
        self._buttons.setVisible(bool(title))
        corrector, mending = self._app.corrector, self._app.mending
        asks = corrector.proposing
        self.drop_button.setEnabled(asks)
        self.accept_button.setEnabled(asks and not corrector.accepts_early)
        for button, wanted in zip(
            self._answers, (asks, asks, not asks and mending.carries, not asks), strict=True
        ):
            button.setVisible(wanted)
        self.setVisible(self._canvas is not None and bool(case or title))
        self._place()

    def _case(self) -> str:
        work = self._app.worklist
        if work.worklist is None or work.case is None:
            return ""
        place, n = work.worklist.current + 1, len(work.worklist)
        return f"Case {place} of {n}: {io.stem(Path(work.case.name))}, {work.case.status}"

    def _title(self) -> str:
        corrector = self._app.corrector
        proposal = corrector.proposal
        if proposal is not None:
            n = len(proposal.found.change.slices)
            return f"{proposal.title}: {n} {'slice' if n == 1 else 'slices'}"
        if not corrector.proposing:
            return self._app.mending.title
        soon = "accepted as soon as it is there" if corrector.accepts_early else "being worked out"
        return f"{corrector.working}: {soon}…"
