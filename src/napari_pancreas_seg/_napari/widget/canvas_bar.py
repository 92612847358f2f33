"""A small bar over napari's canvas for questions and proposals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.compat import isalive
from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtWidgets import QLabel, QWidget

import napari_pancreas_seg._napari.widget.ui as ui
from napari_pancreas_seg import io
from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg.errors import counted

MARGIN = 8
LETTER = 40
"""How much of the picture's edge the letter in its middle takes, in pixels."""
STYLE = (
    "QWidget#pancreas_bar {{ background: {ground}; border-radius: 4px; }}"
    " QWidget#pancreas_bar QLabel {{ color: {ink}; background: transparent; }}"
)


class CanvasBar(ui.Panel):
    """Accepts or drops what is proposed, says how to mend, which case is shown, and the HU window.

    It lies over the canvas; without one it is never shown.
    """

    def __init__(self, app: App, canvas: QWidget | None) -> None:
        super().__init__()
        self._app, self._canvas = app, canvas
        self.setParent(canvas)
        self.setObjectName("pancreas_bar")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self.setContentsMargins(MARGIN, 4, MARGIN, 4)
        self.case, self.title = QLabel(), QLabel()
        for label in (self.case, self.title):
            label.setTextFormat(Qt.TextFormat.PlainText)
        self.accept_button = ui.button(
            "Accept (Enter)", "One step of undo: Ctrl+Z takes it back.", app.editor.accept
        )
        self.drop_button = ui.button("Drop (Esc)", "Leave the mask as it is.", app.editor.drop)
        self.on_button = ui.button(
            "Carry on (Enter)", "To the next slice, in the same direction.", app.mending.go_on
        )
        self.done_button = ui.button("Done (Esc)", "Put Mend away.", app.mending.stop)
        self._answers = (self.accept_button, self.drop_button, self.on_button, self.done_button)
        self._buttons = ui.row(*self._answers, stretch=(0, 0, 0, 0))
        for part in (self.case, self.title, self._buttons):
            self.add(part)
        for service in (app.editor, app.mending, app.worklist, app.views):
            service.changed.connect(self._show)
        if canvas is not None:
            canvas.installEventFilter(self)
        app.session.viewer.events.theme.connect(self._dress)
        self._dress()
        self._show()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.Resize:
            self._place()
        return False

    def _dress(self, event: Any = None) -> None:
        if isalive(self):
            ground, ink = ui.theme_colors(self._app.session.viewer)
            self.setStyleSheet(STYLE.format(ground=ground.name(), ink=ink.name()))

    def _place(self) -> None:
        for part in (self._buttons, self):
            part.layout().activate()  # else the size is that of what was said before
        self.adjustSize()
        room = 0 if self._canvas is None else self._canvas.width() / 2 - LETTER / 2
        self.move(MARGIN, MARGIN if MARGIN + self.width() < room else LETTER)
        self.raise_()

    def _show(self) -> None:
        case, title = self._case(), self._title()
        for label, text in ((self.case, case), (self.title, title or self._app.views.dragged)):
            label.setText(text)
            label.setVisible(bool(text))
        self._buttons.setVisible(bool(title))
        editor, mending = self._app.editor, self._app.mending
        asks = editor.proposing
        self.drop_button.setEnabled(asks)
        self.accept_button.setEnabled(asks and not editor.accepts_early)
        for button, wanted in zip(
            self._answers, (asks, asks, not asks and mending.carries, not asks), strict=True
        ):
            button.setVisible(wanted)
        self.setVisible(self._canvas is not None and bool(case or self.title.text()))
        self._place()

    def _case(self) -> str:
        work = self._app.worklist
        if work.busy or work.worklist is None or work.case is None:
            return work.busy  # J does nothing meanwhile
        place, n = work.worklist.current + 1, len(work.worklist)
        return f"Case {place} of {n}: {io.stem(Path(work.case.name))}, {work.case.status}"

    def _title(self) -> str:
        editor = self._app.editor
        proposal = editor.proposal
        if proposal is not None:
            n = len(proposal.found.change.slices)
            return f"{proposal.title}: {counted(n, 'slice')}"
        if not editor.proposing:
            return self._app.mending.title
        soon = "accepted as soon as it is there" if editor.accepts_early else "being worked out"
        return f"{editor.working}: {soon}…"
