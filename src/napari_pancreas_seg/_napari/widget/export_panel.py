"""From the mask to a file on the CT's own grid."""

from __future__ import annotations

from pathlib import Path

from napari.layers import Labels
from napari.utils.notifications import show_info
from qtpy.compat import isalive
from qtpy.QtWidgets import QFileDialog, QPushButton

from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.background import report
from napari_pancreas_seg._napari.layers.placement import GridReference
from napari_pancreas_seg._napari.widget.panel import Panel, note_label
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io import MASK_SUFFIXES

__all__ = ["ExportPanel"]

FILTERS = (
    "NIfTI (*.nii.gz *.nii);;NRRD (*.nrrd *.nhdr);;MetaImage (*.mha *.mhd);;"
    "DICOM-SEG (*.dcm);;Surface (*.stl *.ply *.obj);;Measurements (*.csv);;All files (*)"
)
"""What the dialog offers."""


class ExportPanel(Panel):
    """Write the mask that is worked on.

    Parameters
    ----------
    app : App
        The viewer's session.
    """

    def __init__(self, app: App) -> None:
        super().__init__("Export")
        self._app = app
        self._writing = False
        self.export_button = QPushButton("Export…")
        self.export_button.setToolTip(
            "Write the mask onto the CT's own grid, and beside it a record of what made it."
        )
        self.status = note_label()
        self.status.hide()
        self.add(self.export_button)
        self.add(self.status)
        app.session.mask_chosen.connect(self._on_mask)
        app.session.mask_changed.connect(self._on_edit)
        self.export_button.clicked.connect(self.ask_and_export)
        self._on_mask()

    @property
    def layer(self) -> Labels | None:
        """The mask that is chosen."""
        return self._app.session.mask

    def refresh(self, reference: GridReference | None) -> None:
        """Say whether there is something to export."""
        self.export_button.setEnabled(self.layer is not None and not self._writing)

    def ask_and_export(self) -> None:
        """Ask where to write the mask, and write it; the dialog asks before overwriting."""
        if self.layer is None:
            report(PancreasSegError("There is no mask to export yet: run first, or paint one."))
            return
        reference = self._app.session.ct_of(self.layer)
        name = "mask" if reference is None else f"{reference.name}_mask"
        # Where the CT lies, beside a folder that is one; where napari was started, if nowhere.
        source = None if reference is None else reference.source.path
        folder = Path() if source is None else Path(source).parent
        path, chosen = QFileDialog.getSaveFileName(
            self, "Export the mask", str(folder / f"{name}.nii.gz"), FILTERS
        )
        if path:
            usual = next((one for one in MASK_SUFFIXES if f"*{one}" in chosen), ".nii.gz")
            target = path if path.lower().endswith(MASK_SUFFIXES) else f"{path}{usual}"
            # The dialog has asked about the name that was typed, and about no other.
            self.export_to(target, overwrite=target == path and Path(path).exists())

    def export_to(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the mask to a file, in a thread.

        Parameters
        ----------
        path : str or Path
            The file; its ending says which format.
        overwrite : bool
            Whether an existing file may be replaced.
        """
        if self.layer is None:
            return
        self._writing = True
        self.export_button.setEnabled(False)
        try:
            self._app.files.export(
                self.layer, path, overwrite=overwrite, then=self._exported, failed=self._idle
            )
        except PancreasSegError as error:
            self._idle()
            report(error)

    def _exported(self, path: Path) -> None:
        show_info(f"The mask was written to {path.name}.")
        if isalive(self):
            self._say(f"Written to {path.name}.")
        self._idle()

    def _idle(self) -> None:
        self._writing = False
        if isalive(self):
            self.refresh(None)

    def _on_mask(self) -> None:
        if isalive(self):
            self._say("")
            self.refresh(None)

    def _on_edit(self, layer: Labels) -> None:
        if isalive(self) and layer is self.layer and not self._writing and self.status.text():
            self._say("Changed since it was written.")

    def _say(self, text: str) -> None:
        self.status.setText(text)
        self.status.setVisible(bool(text))
