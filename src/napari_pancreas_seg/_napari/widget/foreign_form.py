"""What is asked of layers that someone else opened; hidden while there is nothing to ask."""

from __future__ import annotations

import weakref

from napari.layers import Image, Layer
from napari.utils.notifications import show_info
from qtpy.compat import isalive
from qtpy.QtWidgets import (
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.layers import foreign
from napari_pancreas_seg._napari.widget.panel import note_label

__all__ = ["ForeignForm"]


class ForeignForm(QWidget):
    """Choose a frame of a 4-D layer, restore a geometry, read why a picture is not offered.

    Parameters
    ----------
    app : App
        The viewer's session.
    """

    def __init__(self, app: App) -> None:
        super().__init__()
        self._app = app
        self._source: weakref.ref[Image] | None = None
        self._lost: weakref.ref[Layer] | None = None
        self.frame_label = QLabel("Frame")
        self.frame = QSpinBox()
        self.frame_button = QPushButton("Take as CT")
        self.frame_button.setToolTip("Add this frame as a layer of its own; nothing is copied.")
        self.restore_button = QPushButton("Restore spacing and orientation")
        self.restore_button.setToolTip(
            "This layer was opened without what its file says about spacing and orientation. "
            "Read the file again with it; masks drawn on the layer go along."
        )
        self.refused = note_label()
        self._row = QWidget()
        row = QHBoxLayout(self._row)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.frame_label)
        row.addWidget(self.frame, 1)
        row.addWidget(self.frame_button)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(5)
        for widget in (self._row, self.restore_button, self.refused):
            column.addWidget(widget)
        self.frame_button.clicked.connect(self.take_frame)
        self.restore_button.clicked.connect(self.restore)
        self.refresh()

    def refresh(self) -> None:
        """Look what there is to ask."""
        viewer = self._app.session.viewer
        layers = [] if viewer is None else list(viewer.layers)
        self._offer_frames([layer for layer in layers if foreign.frames(layer)])
        lost = self._app.session.ct if foreign.file_without_geometry(self._app.session.ct) else None
        self._lost = None if lost is None else weakref.ref(lost)
        self.restore_button.setVisible(lost is not None)
        reasons = foreign.not_offered(layers)
        self.refused.setText("Not offered: " + " ".join(reasons[-2:]) if reasons else "")
        self.refused.setVisible(bool(reasons))
        self.setVisible(not (self._row.isHidden() and lost is None and not reasons))

    def take_frame(self) -> None:
        """Add the chosen frame as a layer, which is then offered as a CT."""
        source, viewer = self._source() if self._source else None, self._app.session.viewer
        if source is not None and viewer is not None:
            viewer.add_layer(foreign.frame_layer(source, self.frame.value()))
            source.visible = False

    def restore(self) -> None:
        """Read the file of the chosen layer again, in a thread."""
        layer, viewer = self._lost() if self._lost else None, self._app.session.viewer
        path = foreign.file_without_geometry(layer)
        if layer is None or viewer is None or path is None:
            return
        self.restore_button.setEnabled(False)
        masks = foreign.drawn_on(layer, list(viewer.layers))

        def put(new: foreign.Restored) -> None:
            self._idle()
            app = self._app
            if app.session.viewer is not None:
                foreign.replace_layer(
                    app.session.viewer, layer, masks, new, app.autosave.carry_over
                )
                for note in new.notes:
                    show_info(f"{layer.name}: {note}")

        self._app.background.submit(lambda: foreign.read_again(path, layer, masks), put, self._idle)

    def _offer_frames(self, sources: list[Image]) -> None:
        source = sources[-1] if sources else None
        before = self._source() if self._source else None
        self._row.setVisible(source is not None)
        if source is None:
            self._source = None
            return
        for widget in (self.frame_label, self.frame):
            widget.setToolTip(f"Which of the volumes of '{source.name}' is the CT.")
        self.frame.setRange(0, foreign.frames(source) - 1)
        if source is not before:
            self._source = weakref.ref(source)
            viewer = self._app.session.viewer
            shown = viewer.dims.current_step[0] if viewer is not None else 0
            self.frame.setValue(min(int(shown), foreign.frames(source) - 1))

    def _idle(self) -> None:
        if isalive(self):
            self.restore_button.setEnabled(True)
