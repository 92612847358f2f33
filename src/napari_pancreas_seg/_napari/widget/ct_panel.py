"""Which CT and which mask of it: layers of the viewer, or a file."""

from __future__ import annotations

from napari.layers import Image, Labels
from napari.settings import get_settings
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFileDialog, QPushButton

from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.layers.placement import reference_of, why_not_ct
from napari_pancreas_seg._napari.layers.reader import one_of_each_series
from napari_pancreas_seg._napari.widget.foreign_form import ForeignForm
from napari_pancreas_seg._napari.widget.layer_combo import LayerCombo
from napari_pancreas_seg._napari.widget.panel import Panel, label_of, note_label
from napari_pancreas_seg.io import SUFFIXES

__all__ = ["CtPanel"]

PLUGIN = "napari-pancreas-seg"
PATTERNS = ("*.nii.gz", "*.nii")


class CtPanel(Panel):
    """Choose or open a CT, and the mask of it that is worked on.

    Parameters
    ----------
    app : App
        The viewer's session.
    """

    chosen = Signal()

    def __init__(self, app: App) -> None:
        super().__init__("CT")
        self._app = app
        self.combo = LayerCombo("Open or drop a CT")
        self.open_button = QPushButton("Open CT…")
        self.open_button.setToolTip(
            "Open NIfTI, NRRD, MetaImage, or a file of a DICOM series; or drop one, or a folder."
        )
        self.info = note_label()
        self.mask_combo = LayerCombo("No mask yet")
        self.mask_combo.setToolTip(
            "The mask that is corrected, measured and exported. Selecting a mask in the layer "
            "list chooses it, too."
        )
        self.reader_button = QPushButton("Always open .nii.gz files like this")
        self.reader_button.setToolTip(
            "Make this plugin napari's reader for .nii and .nii.gz, so that dropping a file "
            "on the picture asks no more. Preferences › Plugins takes it back."
        )
        self.add(self.combo, self.open_button, stretch=(1, 0))
        self.foreign = ForeignForm(app)
        self.add(self.info)
        self.add(self.foreign)
        self.add(label_of("Mask"), self.mask_combo, stretch=(0, 1))
        self.add(self.reader_button)
        self.open_button.clicked.connect(self.ask_for_file)
        self.reader_button.clicked.connect(self._become_reader)
        self.combo.chosen.connect(self._on_chosen)
        self.mask_combo.chosen.connect(self._on_mask)
        self.reader_button.setVisible(not _is_reader())
        self.offer_layers()

    @property
    def layer(self) -> Image | None:
        """The CT that is chosen."""
        return self.combo.layer

    def offer_layers(self) -> None:
        """Offer the viewer's layers that can be a CT, and those that can be its mask."""
        viewer = self._app.session.viewer
        layers = [] if viewer is None else list(viewer.layers)
        app = self._app
        # What a dock that was closed had chosen stays so.
        self.combo.offer([layer for layer in layers if _is_ct(layer)], app.session.ct)
        app.session.ct = self.layer
        reference = app.session.reference
        masks = [] if reference is None else app.session.mask_layers(reference)
        self.mask_combo.offer(masks, app.session.mask)
        app.session.mask = self.mask_combo.layer
        self.foreign.refresh()
        self._show_info()

    def choose_mask(self, layer: object) -> None:
        """Choose a layer as the mask if it can be one of this CT."""
        if isinstance(layer, Labels):
            self.mask_combo.layer = layer

    def ask_for_file(self) -> None:
        """Ask for files and open them."""
        # A DICOM file may have any name: one of a series stands for all of it.
        pattern = f"CT or mask ({' '.join(f'*{s}' for s in SUFFIXES)} *.dcm *.zip);;All files (*)"
        paths, _ = QFileDialog.getOpenFileNames(self, "Open a CT", "", pattern)
        for path in one_of_each_series(paths):
            self._app.files.open(path)

    def _on_chosen(self) -> None:
        self.offer_layers()
        self.chosen.emit()

    def _on_mask(self) -> None:
        self._app.session.mask = self.mask_combo.layer

    def _show_info(self) -> None:
        layer = self.layer
        if layer is None:
            self.info.setText(
                "Drop a CT (NIfTI, DICOM folder, …) here, or open a sample: File › Open Sample."
            )
            return
        reference = self._app.session.placement(layer).reference
        (z, y, x), (dz, dy, dx) = reference.grid.shape, reference.grid.spacing
        plural = "slice" if z == 1 else "slices"
        size = f"{dx:.3g}×{dy:.3g}×{dz:.3g}\N{NO-BREAK SPACE}mm"
        self.info.setText(f"{z} {plural}, {x}×{y}; {size}")

    def _become_reader(self) -> None:
        settings = get_settings().plugins
        readers = {**settings.extension2reader, **dict.fromkeys(PATTERNS, PLUGIN)}
        settings.extension2reader = readers
        self.reader_button.setVisible(False)


def _is_ct(layer: object) -> bool:
    if not isinstance(layer, Image) or why_not_ct(layer) is not None:
        return False
    reference = reference_of(layer)
    return reference is None or reference.kind == "ct"


def _is_reader() -> bool:
    readers = get_settings().plugins.extension2reader
    return all(readers.get(pattern) == PLUGIN for pattern in PATTERNS)
