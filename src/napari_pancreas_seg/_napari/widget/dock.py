"""The dock widget: wires the panels to the session, takes dropped files."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from napari.layers import Image
from qtpy.compat import isalive
from qtpy.QtCore import QTimer
from qtpy.QtGui import QDragEnterEvent, QDropEvent, QShowEvent
from qtpy.QtWidgets import QDockWidget, QFrame, QLabel, QScrollArea, QVBoxLayout, QWidget

from napari_pancreas_seg._napari.background import report
from napari_pancreas_seg._napari.layers import HU_RANGE
from napari_pancreas_seg._napari.placement import reference_of
from napari_pancreas_seg._napari.session import session_of
from napari_pancreas_seg._napari.widget.ct_panel import CtPanel
from napari_pancreas_seg._napari.widget.model_panel import ModelPanel
from napari_pancreas_seg._napari.widget.result_panel import ResultPanel
from napari_pancreas_seg._napari.widget.run_panel import RunPanel
from napari_pancreas_seg.errors import PancreasSegError

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["PancreasDock"]

logger = logging.getLogger(__name__)

WARM_UP_DELAY_MS = 500


class PancreasDock(QWidget):
    """Segment the pancreas in a CT, look at the result, correct and export it.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer
        The viewer.
    warm_up : bool
        Whether to start the network in the background as soon as there is a CT.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer, *, warm_up: bool = True) -> None:
        super().__init__()
        self.session = session_of(napari_viewer)
        self._warm_up = warm_up
        self.ct_panel = CtPanel(self.session)
        self.model_panel = ModelPanel()
        self.run_panel = RunPanel(self.session)
        self.result_panel = ResultPanel(self.session)
        self._lay_out()
        self.setAcceptDrops(True)
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(WARM_UP_DELAY_MS)
        self._soon.timeout.connect(self._start_warming)
        self.ct_panel.chosen.connect(self._on_ct)
        self.run_panel.run_clicked.connect(self.start_run)
        self.session.run_finished.connect(self.refresh)
        layers = napari_viewer.layers
        layers.events.inserted.connect(self._on_inserted)
        layers.events.removed.connect(self.refresh)
        layers.events.reordered.connect(self.refresh)
        for layer in layers:
            self._follow(layer)
        self._on_ct()

    def start_run(self) -> None:
        """Segment the chosen CT."""
        layer = self.ct_panel.layer
        if layer is None:
            report(PancreasSegError("Open a CT first: drop a .nii.gz file on the panel."))
            return
        try:
            self.session.start(layer, self.model_panel.model, self.run_panel.options)
        except PancreasSegError as error:
            report(error)

    def cancel_run(self) -> None:
        """Cancel the run that is under way; what was found stays."""
        self.run_panel.cancel()

    def refresh(self, event: Any = None) -> None:
        """Bring the panels in step with the viewer's layers."""
        if isalive(self):
            self.ct_panel.refresh()
            self._refresh_result()

    def showEvent(self, event: QShowEvent) -> None:
        """Shorten the title that napari gave the dock: it would be clipped."""
        super().showEvent(event)
        dock = self.parent()
        bar = dock.titleBarWidget() if isinstance(dock, QDockWidget) else None
        for label in [] if bar is None else bar.findChildren(QLabel):
            label.setText(label.text().removesuffix(" (napari-pancreas-seg)"))

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        """Take files that are dragged in."""
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        """Open files that are dropped."""
        for url in event.mimeData().urls():
            if url.isLocalFile():
                self.session.open_file(url.toLocalFile())
        event.acceptProposedAction()

    def _lay_out(self) -> None:
        content = QWidget()
        column = QVBoxLayout(content)
        column.setContentsMargins(8, 8, 8, 8)
        column.setSpacing(12)
        for panel in (self.ct_panel, self.model_panel, self.run_panel, self.result_panel):
            column.addWidget(panel)
        column.addStretch(1)
        # napari brings no scroll area, and a small screen is shorter than the panels.
        area = QScrollArea()
        area.setFrameShape(QFrame.Shape.NoFrame)
        area.setWidgetResizable(True)
        area.setWidget(content)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(area)
        self.setMinimumWidth(280)

    def _on_inserted(self, event: Any) -> None:
        if isalive(self):
            self._follow(event.value)
            self.refresh()

    def _follow(self, layer: Any) -> None:
        reference = reference_of(layer)
        if reference is not None and reference.kind == "ct" and isinstance(layer, Image):
            # A reader can set the window but not what its slider spans.
            layer.contrast_limits_range = HU_RANGE
        layer.events.name.connect(self.refresh)
        layer.events.visible.connect(self._refresh_result)

    def _on_ct(self) -> None:
        self.run_panel.set_ready(self.ct_panel.layer is not None)
        self._refresh_result()
        if self.ct_panel.layer is not None:
            self._soon.start()

    def _refresh_result(self, event: Any = None) -> None:
        if not isalive(self):
            return
        layer = self.ct_panel.layer
        reference = None if layer is None else self.session.placement(layer).reference
        self.result_panel.refresh(reference)

    def _start_warming(self) -> None:
        if self._warm_up:
            self.session.warm_up(self.model_panel.model)
