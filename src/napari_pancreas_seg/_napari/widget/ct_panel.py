"""Which CT: one of the viewer's layers, or a file."""

from __future__ import annotations

from napari.layers import Image
from napari.settings import get_settings
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFileDialog, QPushButton

from napari_pancreas_seg._napari.placement import reference_of, why_not_ct
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg._napari.widget.layer_combo import LayerCombo
from napari_pancreas_seg._napari.widget.panel import Panel, note_label

__all__ = ["CtPanel"]

PLUGIN = "napari-pancreas-seg"
PATTERNS = ("*.nii.gz", "*.nii")


class CtPanel(Panel):
    """Choose or open a CT.

    Parameters
    ----------
    session : Session
        The viewer's session.
    """

    chosen = Signal()

    def __init__(self, session: Session) -> None:
        super().__init__("CT")
        self._session = session
        self.combo = LayerCombo("Open or drop a CT")
        self.open_button = QPushButton("Open CT…")
        self.open_button.setToolTip("Open a .nii or .nii.gz file; or drop one here.")
        self.info = note_label()
        self.reader_button = QPushButton("Always open .nii.gz files like this")
        self.reader_button.setToolTip(
            "Make this plugin napari's reader for .nii and .nii.gz, so that dropping a file "
            "on the picture asks no more. Preferences › Plugins takes it back."
        )
        self.add(self.combo, self.open_button, stretch=(1, 0))
        self.add(self.info)
        self.add(self.reader_button)
        self.open_button.clicked.connect(self.ask_for_file)
        self.reader_button.clicked.connect(self._become_reader)
        self.combo.chosen.connect(self._on_chosen)
        self.reader_button.setVisible(not _is_reader())
        self.refresh()

    @property
    def layer(self) -> Image | None:
        """The CT that is chosen."""
        return self.combo.layer

    def refresh(self) -> None:
        """Offer the viewer's layers that can be a CT."""
        viewer = self._session.viewer
        layers = [] if viewer is None else list(viewer.layers)
        self.combo.offer([layer for layer in layers if _is_ct(layer)])
        self._show_info()

    def ask_for_file(self) -> None:
        """Ask for files and open them."""
        pattern = "CT or mask (*.nii.gz *.nii);;All files (*)"
        paths, _ = QFileDialog.getOpenFileNames(self, "Open a CT", "", pattern)
        for path in paths:
            self._session.open_file(path)

    def _on_chosen(self) -> None:
        self._show_info()
        self.chosen.emit()

    def _show_info(self) -> None:
        layer = self.layer
        if layer is None:
            self.info.setText("Drop a .nii.gz file here, or open a sample: File › Open Sample.")
            return
        reference = self._session.placement(layer).reference
        (z, y, x), (dz, dy, dx) = reference.grid.shape, reference.grid.spacing
        plural = "slice" if z == 1 else "slices"
        self.info.setText(f"{z} {plural}, {x}×{y}; {dx:.3g}×{dy:.3g}×{dz:.3g} mm")

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
