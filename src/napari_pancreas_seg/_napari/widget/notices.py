"""Questions below the tabs, asked now and then: foreign layers, lost corrections."""

from __future__ import annotations

import time
import weakref
from pathlib import Path

from magicgui.widgets import SpinBox
from napari.layers import Image
from qtpy.QtWidgets import QMenu

import napari_pancreas_seg._napari.widget.ui as ui
from napari_pancreas_seg._napari.autosave.offers import Offers
from napari_pancreas_seg._napari.autosave.store import Unsaved
from napari_pancreas_seg._napari.background import report
from napari_pancreas_seg._napari.layers import foreign
from napari_pancreas_seg._napari.layers.files import LayerFiles
from napari_pancreas_seg._napari.layers.placement import GridReference
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg.errors import PancreasSegError


class ForeignPanel(ui.Panel):
    """Chooses a frame of a 4-D layer, finds a lost geometry, says why a picture is not offered."""

    def __init__(self, session: Session, files: LayerFiles) -> None:
        super().__init__()
        self._session, self._files = session, files
        self._source: weakref.ref[Image] | None = None
        self.frame = SpinBox(value=0, min=0, max=0, step=1)
        tip = "Add this frame as a layer of its own; nothing is copied."
        self.frame_button = ui.button("Take as CT", tip, self.take_frame)
        tip = (
            "Another reader lost spacing and orientation: opens the file once more, with them. "
            "Masks drawn on this layer stay with it."
        )
        self.restore_button = ui.button("Open with its spacing and orientation", tip, self.restore)
        self.refused = ui.OneLine()
        self._row = ui.row("Frame", self.frame, self.frame_button)
        self.stack(self._row, self.restore_button, self.refused)
        self.hide()  # until it has its place in the dock

    def refresh(self, reference: GridReference | None = None) -> None:
        layers = self._session.layers
        self._offer_frames([layer for layer in layers if foreign.frames(layer)])
        lost = foreign.file_without_geometry(self._session.ct)
        self.restore_button.setVisible(lost is not None)
        reasons = foreign.not_offered(layers)
        self.refused.setText("Not offered: " + " ".join(reasons[-2:]) if reasons else "")
        self.refused.setVisible(bool(reasons))
        self.setVisible(not (self._row.isHidden() and lost is None and not reasons))

    def take_frame(self) -> None:
        source = self._source() if self._source else None
        if source is not None:
            self._session.viewer.add_layer(foreign.frame_layer(source, self.frame.value))
            source.visible = False

    def restore(self) -> None:
        session = self._session
        path, on = foreign.file_without_geometry(session.ct), session.reference
        if path is not None and on is not None:
            foreign.bind_drawn(session.layers, on)
            self._files.open(path)

    def _offer_frames(self, sources: list[Image]) -> None:
        source = sources[-1] if sources else None
        before = self._source() if self._source else None
        self._row.setVisible(source is not None)
        if source is None:
            self._source = None
            return
        self.frame.tooltip = f"Which of the volumes of '{source.name}' is the CT."
        self.frame.max = foreign.frames(source) - 1
        if source is not before:
            self._source = weakref.ref(source)
            shown = self._session.viewer.dims.current_step[0]
            ui.show(self.frame, min(int(shown), foreign.frames(source) - 1))


class RecoveryPanel(ui.Panel):
    """Offers what was left behind: for the CT that is open, and as a list of other CTs."""

    def __init__(self, session: Session, offers: Offers, files: LayerFiles) -> None:
        super().__init__("Unexported corrections")
        self._session, self._offers, self._files = session, offers, files
        self.text = ui.note_label()
        self.restore_button = ui.button("Restore", "Add the corrected mask.", self.restore)
        self.discard_button = ui.button("Discard", "Forget it for good.", self.discard)
        self.list_button = ui.menu_button()
        self.add(self.text)
        self.add(self.restore_button, self.discard_button)
        self.add(self.list_button)
        self.hide()  # until it has its place in the dock
        self._offers.changed.connect(self.refresh)

    @property
    def offer(self) -> Unsaved | None:
        reference = self._session.reference
        return next(iter([] if reference is None else self._offers.of(reference)), None)

    def restore(self) -> None:
        offer, ct = self.offer, self._session.ct
        if offer is not None and ct is not None:
            self._offers.restore(offer, self._session.placement(ct))

    def discard(self) -> None:
        offer = self.offer
        if offer is not None:
            self._offers.discard(offer)

    def refresh(self, reference: GridReference | None = None) -> None:
        offer = self.offer
        # Others of this CT are offered when this one has been restored or discarded.
        others = [one for one in self._offers.left if offer is None or one.key != offer.key]
        self.setVisible(offer is not None or bool(others))
        for widget in (self.text, self.restore_button, self.discard_button):
            widget.setVisible(offer is not None)
        if offer is not None:
            self.text.setText(
                f"'{offer.mask_name}' was corrected or reviewed on {_when(offer)} and not exported "
                "since. Restore it?"
            )
        self.list_button.setVisible(bool(others))
        # Of one CT there may be several masks.
        n = len({one.key for one in others})
        which = "CT" if n == 1 else "CTs"
        of = which if self._session.ct is None else f"other {which}"
        self.list_button.setText(f"Of {n} {of}")
        menu = self.list_button.menu()
        menu.clear()
        for other in others:
            self._add_to(menu, other)

    def _add_to(self, menu: QMenu, offer: Unsaved) -> None:
        sub = menu.addMenu(f"{offer.name}, {_when(offer)}")
        opens = sub.addAction("Open its CT")
        opens.setEnabled(offer.path is not None)
        opens.triggered.connect(lambda: self._open(offer))
        sub.addAction("Discard").triggered.connect(lambda: self._offers.discard(offer))

    def _open(self, offer: Unsaved) -> None:
        if offer.path is None or not Path(offer.path).exists():
            report(
                PancreasSegError(
                    f"The CT of '{offer.name}' is no longer where it was. Open it from where it "
                    "is now; the corrections are offered then."
                )
            )
            return
        self._files.open(offer.path)


def _when(offer: Unsaved) -> str:
    return time.strftime("%d %b %H:%M", time.localtime(offer.saved))
