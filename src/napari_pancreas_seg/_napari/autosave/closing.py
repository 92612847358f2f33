"""Asks before a window closes with corrections that were not exported."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from napari.layers import Labels
from qtpy.QtCore import QEvent, QObject, QTimer
from qtpy.QtWidgets import QMessageBox

from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.autosave.autosave import Autosave
from napari_pancreas_seg._napari.background import report, reported


class Closing(QObject):
    """A filter on the events of napari's window, which has no hook for closing that covers Ctrl+W.

    The window is refused to close and a box is opened beside it, so nothing blocks. A script's
    ``viewer.close()`` is never refused: it hides the canvas first, by which it is known.
    """

    def __init__(self, autosave: Autosave, window: Any) -> None:
        super().__init__()
        self.box: QMessageBox | None = None
        self._autosave = autosave
        self._window = weakref.ref(window)
        self._answered = False
        self.export: Callable[[list[Labels]], None] | None = None  # the dock's; asks where to
        # Filters that came later are asked first; other plugins install theirs early.
        QTimer.singleShot(0, self.install)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Refuse a close event while something would be left behind."""
        window = self._window()
        if event.type() != QEvent.Type.Close or window is None or watched is not window:
            return False
        unasked = self._answered or compat.is_closed_by_script(window)
        try:
            left = [] if unasked else self._autosave.unexported()
            names = [f"'{layer.name}'" for layer in left]
        except Exception as error:  # raised from here, it would let the window close
            report(error)
            names = ["Perhaps a mask"]
        if not names:
            self._autosave.save(now=True)
            return False
        self._ask(window, names)
        event.ignore()
        return True

    def install(self) -> None:
        """Become the filter that is asked first; again, if others have come since."""
        window = self._window()
        if window is not None:
            window.installEventFilter(self)

    def _ask(self, window: Any, names: list[str]) -> None:
        if self.box is not None:
            self.box.raise_()
            return
        box = self.box = QMessageBox(window)
        box.setWindowTitle("Corrections that were not exported")
        were = "was" if len(names) == 1 else "were"
        box.setText(f"{' and '.join(names)} {were} corrected and not exported since.")
        box.setInformativeText("What is kept is offered when its CT is opened the next time.")
        role = QMessageBox.ButtonRole
        keep = box.addButton("Keep and close", role.AcceptRole)
        keep.clicked.connect(lambda: self._close(discard=False))
        if self.export is not None:
            box.addButton("Export…", role.ActionRole).clicked.connect(self._export)
        discard = box.addButton("Discard and close", role.DestructiveRole)
        discard.clicked.connect(lambda: self._close(discard=True))
        stay = box.addButton("Go back", role.RejectRole)
        box.setDefaultButton(stay)
        box.setEscapeButton(stay)
        box.finished.connect(self._forget)
        box.open()

    def _forget(self) -> None:
        box, self.box = self.box, None
        if box is not None:
            box.deleteLater()

    def _export(self) -> None:
        """Export all of them; the window stays, so that one sees them written."""
        export, left = self.export, self._autosave.unexported()
        if export is not None:
            # Not from within the box's own signal.
            QTimer.singleShot(0, lambda: export(left))

    def _close(self, *, discard: bool) -> None:
        window = self._window()
        if window is None:
            return
        with reported():
            if discard:
                self._autosave.discard_all()
            else:
                self._autosave.keep_all()
            self._answered = True
            # Not from within the box's own signal.
            QTimer.singleShot(0, lambda: compat.close_window(window))
