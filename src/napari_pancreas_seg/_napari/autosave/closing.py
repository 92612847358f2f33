"""Asks before a window closes with corrections that were not exported."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent, QObject, QTimer
from qtpy.QtWidgets import QMessageBox

from napari_pancreas_seg._napari.background import report
from napari_pancreas_seg.errors import PancreasSegError

if TYPE_CHECKING:
    from napari_pancreas_seg._napari.session import Session

__all__ = ["Closing"]


class Closing(QObject):
    """A filter on the events of napari's window.

    napari has no hook for this, and its own prompt does not cover Ctrl+W. The window is
    refused to close and a box is opened beside it, so nothing blocks. A script's
    ``viewer.close()`` is never refused: it hides the canvas first, by which it is known.

    Parameters
    ----------
    session : Session
        The viewer's session.
    window : QMainWindow
        napari's window.
    """

    def __init__(self, session: Session, window: Any) -> None:
        super().__init__(session)
        self.box: QMessageBox | None = None
        self._session = weakref.ref(session)
        self._window = weakref.ref(window)
        self._answered = False
        # Filters that came later are asked first; other plugins install theirs early.
        QTimer.singleShot(0, self.install)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Refuse a close event while something would be left behind."""
        window, session = self._window(), self._session()
        if event.type() != QEvent.Type.Close or watched is not window or session is None:
            return False
        by_script = window._qt_viewer.isHidden()
        if by_script or self._answered or not session.autosave.unexported():
            session.autosave.save(now=True)
            return False
        self._ask(session, window)
        event.ignore()
        return True

    def install(self) -> None:
        """Become the filter that is asked first; again, if others have come since."""
        window = self._window()
        if window is not None:
            window.installEventFilter(self)

    def _ask(self, session: Session, window: Any) -> None:
        if self.box is not None:
            self.box.raise_()
            return
        names = ", ".join(f"'{layer.name}'" for layer in session.autosave.unexported())
        box = self.box = QMessageBox(window)
        box.setWindowTitle("Corrections that were not exported")
        box.setText(f"{names} was corrected and not exported since.")
        box.setInformativeText("What is kept is offered when this CT is opened the next time.")
        keep = box.addButton("Keep and close", QMessageBox.ButtonRole.AcceptRole)
        discard = box.addButton("Discard and close", QMessageBox.ButtonRole.DestructiveRole)
        stay = box.addButton("Go back", QMessageBox.ButtonRole.RejectRole)
        box.setDefaultButton(stay)
        box.setEscapeButton(stay)
        keep.clicked.connect(lambda: self._close(discard=False))
        discard.clicked.connect(lambda: self._close(discard=True))
        box.finished.connect(self._forget)
        box.open()

    def _forget(self) -> None:
        box, self.box = self.box, None
        if box is not None:
            box.deleteLater()

    def _close(self, *, discard: bool) -> None:
        window, session = self._window(), self._session()
        if window is None or session is None:
            return
        try:
            if discard:
                session.autosave.discard_all()
            else:
                session.autosave.keep_all()
        except PancreasSegError as error:
            report(error)
            return
        self._answered = True
        # Not from within the box's own signal.
        QTimer.singleShot(0, lambda: window.close(quit_app=window._quit_app))
