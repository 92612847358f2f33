"""The mask: its volume as it is painted, the attention behind it, and the way to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Labels
from napari.utils.notifications import show_info
from qtpy.compat import isalive
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QCheckBox, QFileDialog, QLabel, QPushButton

from napari_pancreas_seg._napari.background import Background, report
from napari_pancreas_seg._napari.placement import GridReference
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg._napari.widget.layer_combo import LayerCombo
from napari_pancreas_seg._napari.widget.panel import Panel
from napari_pancreas_seg.errors import PancreasSegError

__all__ = ["ResultPanel"]

PAUSE_MS = 250
"""How long the mask must rest before it is measured."""


class ResultPanel(Panel):
    """Show, measure and export the mask of the chosen CT.

    Parameters
    ----------
    session : Session
        The viewer's session.
    """

    def __init__(self, session: Session) -> None:
        super().__init__("Mask")
        self._session = session
        self._reference: GridReference | None = None
        self._watched: Labels | None = None
        self._measuring = 0
        self._background = Background(self)
        self._pause = QTimer(self)
        self._pause.setSingleShot(True)
        self._pause.setInterval(PAUSE_MS)
        self._pause.timeout.connect(self._measure)
        self.combo = LayerCombo("No mask yet")
        self.volume = QLabel("")
        self.volume.hide()
        self.attention = QCheckBox("Show attention (gate coefficients)")
        self.attention.setToolTip(
            "Where the finest attention gate let features through, 0 to 1. Not an explanation: "
            "the network's decoder also sees what the gate does not."
        )
        self.export_button = QPushButton("Export…")
        self.export_button.setToolTip("Write the mask onto the CT's own grid, as NIfTI.")
        self.add(self.combo)
        self.add(self.volume)
        self.add(self.attention)
        self.add(self.export_button)
        self.combo.chosen.connect(self._watch)
        self.attention.toggled.connect(self._show_attention)
        self.export_button.clicked.connect(self.ask_and_export)
        self.refresh(None)

    @property
    def layer(self) -> Labels | None:
        """The mask that is chosen."""
        return self.combo.layer

    def refresh(self, reference: GridReference | None) -> None:
        """Offer the masks of a CT."""
        self._reference = reference
        session = self._session
        self.combo.offer([] if reference is None else session.mask_layers(reference))
        self.export_button.setEnabled(self.layer is not None)
        maps = {} if reference is None else session.map_layers(reference)
        gates = [layer for word, layer in maps.items() if word.startswith("attention")]
        self.attention.setEnabled(bool(gates))
        self.attention.blockSignals(True)
        self.attention.setChecked(any(layer.visible for layer in gates))
        self.attention.blockSignals(False)

    def ask_and_export(self) -> None:
        """Ask where to write the mask, and write it; the dialog asks before overwriting."""
        if self.layer is None:
            report(PancreasSegError("There is no mask to export yet: run first, or paint one."))
            return
        name = "mask" if self._reference is None else f"{self._reference.name}_mask"
        path, _ = QFileDialog.getSaveFileName(
            self, "Export the mask", f"{name}.nii.gz", "NIfTI (*.nii.gz *.nii)"
        )
        if path:
            if not path.lower().endswith((".nii", ".nii.gz")):
                path += ".nii.gz"
            # The dialog has asked about this file, and about no other that lies beside it.
            self.export_to(path, overwrite=Path(path).exists())

    def export_to(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the mask to a file, in a thread.

        Parameters
        ----------
        path : str or Path
            A ``.nii.gz`` or ``.nii`` file.
        overwrite : bool
            Whether an existing file may be replaced.
        """
        if self.layer is None:
            return
        self.export_button.setEnabled(False)
        try:
            self._session.export(
                self.layer, path, overwrite=overwrite, then=self._exported, failed=self._idle
            )
        except PancreasSegError as error:
            self._idle()
            report(error)

    def _exported(self, path: Path) -> None:
        show_info(f"The mask was written to {path.name}.")
        self._idle()

    def _idle(self) -> None:
        if isalive(self):
            self.export_button.setEnabled(self.layer is not None)

    def _watch(self) -> None:
        """Measure the chosen layer, now and whenever it changes."""
        if self._watched is not None:
            for event in _events(self._watched):
                event.disconnect(self._on_edit)
        self._watched = self.layer
        self.volume.hide()
        self.export_button.setEnabled(self._watched is not None)
        if self._watched is not None:
            for event in _events(self._watched):
                event.connect(self._on_edit)
            self._on_edit()

    def _on_edit(self, event: object = None) -> None:
        if isalive(self) and not self._pause.isActive():
            self._pause.start()

    def _measure(self) -> None:
        layer, reference = self.layer, self._reference
        if layer is None or reference is None:
            return
        data, voxel_ml = layer.data, reference.grid.voxel_volume_mm3 / 1000
        self._measuring += 1
        number = self._measuring

        def count() -> float:
            # A slice at a time: the interpreter is free in between.
            return sum(int(np.count_nonzero(plane)) for plane in data) * voxel_ml

        def show(volume_ml: float) -> None:
            if number == self._measuring:
                self.volume.setText(f"Volume: <b>{volume_ml:.1f} mL</b>")
                self.volume.show()

        self._background.submit(count, show)

    def _show_attention(self, visible: bool) -> None:
        if self._reference is None:
            return
        maps = self._session.map_layers(self._reference)
        for word, layer in maps.items():
            if word.startswith("attention"):
                # The finest only; the next one is a click in the layer list away.
                layer.visible = visible and word == "attention 1"


def _events(layer: Labels) -> list[Any]:
    # Undo and redo say set_data alone; a stroke says paint, and labels_update while it lasts.
    return [layer.events.paint, layer.events.set_data, layer.events.data]
