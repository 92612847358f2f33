"""From the mask to a file on the CT's own grid."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from napari.layers import Labels
from napari.utils.notifications import show_info
from qtpy.compat import isalive
from qtpy.QtWidgets import QFileDialog

import napari_pancreas_seg._napari.widget.ui as ui
from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.background import report
from napari_pancreas_seg._napari.layers.placement import GridReference
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io import MASK_SUFFIXES, stem, suffix_of

FILTERS = (
    "NIfTI (*.nii.gz *.nii);;NRRD (*.nrrd);;MetaImage (*.mha);;DICOM-SEG (*.dcm);;"
    "Surface (*.stl *.ply *.obj);;Measurements (*.csv);;All files (*)"
)
"""File formats that the dialog offers."""
CHANGED = "Changed since it was written."


class ExportPanel(ui.Panel):
    """Writes the mask that is worked on."""

    def __init__(self, app: App) -> None:
        super().__init__("Export")
        self._session, self._files = app.session, app.files
        self._runs, self._watch = app.runs, app.watch
        self._writing: Labels | None = None
        self._touched = False  # what is being written was changed meanwhile
        self.mask_name = ui.OneLine()
        tip = "Write the mask onto the CT's own grid, and beside it a record of what made it."
        self.export_button = ui.button("Export…", tip, self.ask_and_export)
        tip = (
            "A DICOM-SEG refers to numbers that some CTs have lost. If ticked, new ones are made "
            "from the images; the CT's own files stay as they are."
        )
        self.mint_uids = ui.tick("DICOM-SEG of a series without UIDs", tip)
        tip = "Beside a DICOM-SEG, its measures as a DICOM structured report (TID 1500)."
        self.report = ui.tick("DICOM report with a DICOM-SEG", tip)
        self.status = ui.OneLine()
        self.stack(self.mask_name, self.mint_uids, self.report, self.export_button, self.status)
        self._session.mask_chosen.connect(self._on_mask)
        self._session.mask_changed.connect(self._on_edit)
        self._on_mask()

    def refresh(self, reference: GridReference | None) -> None:
        mask = self._session.mask
        self.export_button.setEnabled(mask is not None and self._writing is None)
        self.mask_name.setText("No mask yet" if mask is None else f"Mask: {mask.name}")

    def ask_and_export(self, *layers: Labels) -> None:
        """Ask where to, and export masks, by default the one that is chosen, until one cancels."""
        masks = layers or [self._session.mask]
        taken: list[str] = []
        for layer in masks:
            if layer is None:
                report(PancreasSegError("There is no mask to export yet: run first, or paint one."))
                return
            reference = self._session.ct_of(layer)
            case = "" if reference is None else f"{reference.name}_"
            # Where the CT lies, beside a folder that is one; where napari was started, if nowhere.
            source = None if reference is None else reference.source.path
            folder = Path() if source is None else Path(source).parent
            name = f"{case}mask.nii.gz"
            if name in taken:  # by a mask before, which it is not to replace
                name = f"{case}{len(taken) + 1}_mask.nii.gz"
            path, chosen = QFileDialog.getSaveFileName(
                self, f"Export '{layer.name}'", str(folder / name), FILTERS
            )
            if not path:
                return
            target = _named(path, chosen)
            taken.append(Path(target).name)
            # The dialog has asked about the name that was typed, and about no other.
            overwrite = target == path and Path(path).exists()
            self.export_to(target, overwrite=overwrite, layer=layer)

    def export_to(
        self, path: str | Path, *, overwrite: bool = False, layer: Labels | None = None
    ) -> None:
        """Write a mask to a file, in a thread; the file's ending says which format."""
        layer = layer or self._session.mask
        if layer is None:
            return
        if unsettled := self._runs.unsettled(layer):
            report(PancreasSegError(unsettled))
            return
        self.status.setText("")
        self._watch.notify()  # of what was changed before
        self._writing, self._touched = layer, False
        self.export_button.setEnabled(False)
        self._files.export(
            layer,
            path,
            overwrite=overwrite,
            mint_uids=self.mint_uids.value,
            report=self.report.value,
            then=partial(self._exported, layer),
            failed=self._idle,
        )

    def _exported(self, layer: Labels, path: Path) -> None:
        show_info(f"The mask was written to {path.name}.")
        if isalive(self) and layer is self._session.mask:
            self.status.setText(CHANGED if self._touched else f"Written to {path.name}.")
        self._idle()

    def _idle(self) -> None:
        self._writing = None
        if isalive(self):
            self.refresh(None)

    def _on_mask(self) -> None:
        self.status.setText("")
        self.refresh(None)

    def _on_edit(self, layer: Labels) -> None:
        if layer is self._writing:
            self._touched = True
        elif layer is self._session.mask and self.status.text():
            self.status.setText(CHANGED)


def _named(path: str, chosen: str) -> str:
    """The file to write: with an ending of the format that was chosen, and with one only.

    Dialogs replace the last ending alone: a proposed ``x.nii.gz`` comes back as ``x.nii.dcm``.
    """
    usual = next((one for one in MASK_SUFFIXES if f"*{one}" in chosen), ".nii.gz")
    ending = suffix_of(Path(path))  # one that is read and not written is refused in a sentence
    if not ending:
        return f"{path}{usual}"
    bare = path[: -len(ending)]
    if bare.lower().endswith((".nii", ".gz")):
        return f"{Path(bare).with_name(stem(Path(bare)))}{path[-len(ending) :]}"
    return path
