"""Corrections that a window which is gone has left behind."""

from __future__ import annotations

import time
from pathlib import Path

from qtpy.compat import isalive
from qtpy.QtGui import QAction
from qtpy.QtWidgets import QMenu, QPushButton, QToolButton

from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.autosave.store import Unsaved
from napari_pancreas_seg._napari.background import report
from napari_pancreas_seg._napari.layers.placement import GridReference
from napari_pancreas_seg._napari.widget.panel import Panel, note_label
from napari_pancreas_seg.errors import PancreasSegError

__all__ = ["RecoveryPanel"]


class RecoveryPanel(Panel):
    """Offer what was left behind: for the CT that is open, and as a list of other CTs.

    Parameters
    ----------
    app : App
        The viewer's session.
    """

    def __init__(self, app: App) -> None:
        super().__init__("Unexported corrections")
        self._app = app
        self.text = note_label()
        self.restore_button = QPushButton("Restore")
        self.discard_button = QPushButton("Discard")
        self.list_button = QToolButton()
        self.list_button.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.list_button.setMenu(QMenu(self.list_button))
        # Else the arrow lies over the last word.
        self.list_button.setStyleSheet("QToolButton { padding: 3px 16px 3px 6px; }")
        self.add(self.text)
        self.add(self.restore_button, self.discard_button)
        self.add(self.list_button)
        self.restore_button.clicked.connect(self.restore)
        self.discard_button.clicked.connect(self.discard)
        app.autosave.offers_changed.connect(self._show)
        self._show()

    @property
    def offer(self) -> Unsaved | None:
        """What was left behind of the chosen CT, the newest first."""
        reference = self._app.session.reference
        offers = [] if reference is None else self._app.autosave.offers_for(reference)
        return offers[0] if offers else None

    def refresh(self, reference: GridReference | None) -> None:
        """Follow the CT that is chosen."""
        self._show()

    def restore(self) -> None:
        """Add what was left behind to the viewer."""
        offer, ct = self.offer, self._app.session.ct
        if offer is not None and ct is not None:
            self._app.autosave.restore(offer, self._app.session.placement(ct))

    def discard(self) -> None:
        """Remove what was left behind."""
        offer = self.offer
        if offer is not None:
            self._app.autosave.discard(offer)

    def _show(self) -> None:
        if not isalive(self):
            return
        offer = self.offer
        others = [one for one in self._app.autosave.offers if one is not offer]
        self.setVisible(offer is not None or bool(others))
        for widget in (self.text, self.restore_button, self.discard_button):
            widget.setVisible(offer is not None)
        if offer is not None:
            self.text.setText(
                f"This CT's mask was corrected on {_when(offer)} and not exported. Restore it?"
            )
        self.list_button.setVisible(bool(others))
        plural = "CT" if len(others) == 1 else "CTs"
        which = plural if self._app.session.ct is None else f"other {plural}"
        self.list_button.setText(f"Of {len(others)} {which}")
        menu = self.list_button.menu()
        menu.clear()
        for other in others:
            self._add_to(menu, other)

    def _add_to(self, menu: QMenu, offer: Unsaved) -> None:
        sub = menu.addMenu(f"{offer.name}, {_when(offer)}")
        opens = QAction("Open its CT", sub)
        opens.setEnabled(offer.path is not None)
        opens.triggered.connect(lambda: self._open(offer))
        drops = QAction("Discard", sub)
        drops.triggered.connect(lambda: self._app.autosave.discard(offer))
        sub.addAction(opens)
        sub.addAction(drops)

    def _open(self, offer: Unsaved) -> None:
        if offer.path is None or not Path(offer.path).exists():
            report(
                PancreasSegError(
                    f"The CT of '{offer.name}' is no longer where it was. Open it from where it "
                    "is now; the corrections are offered then."
                )
            )
            return
        self._app.files.open(offer.path)


def _when(offer: Unsaved) -> str:
    return time.strftime("%d %b %H:%M", time.localtime(offer.saved))
