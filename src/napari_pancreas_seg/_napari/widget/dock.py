"""The dock widget: wires the panels to the app, takes dropped files."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Image
from qtpy.compat import isalive
from qtpy.QtCore import QEvent, QTimer
from qtpy.QtGui import QDragEnterEvent, QDropEvent, QShowEvent
from qtpy.QtWidgets import (
    QDockWidget,
    QFrame,
    QLabel,
    QPushButton,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from napari_pancreas_seg._napari.app import app_of
from napari_pancreas_seg._napari.background import report
from napari_pancreas_seg._napari.layers.bridge import HU_RANGE
from napari_pancreas_seg._napari.layers.placement import reference_of
from napari_pancreas_seg._napari.layers.reader import one_of_each_series
from napari_pancreas_seg._napari.widget.attention_panel import AttentionPanel
from napari_pancreas_seg._napari.widget.correct_panel import CorrectPanel
from napari_pancreas_seg._napari.widget.ct_panel import CtPanel
from napari_pancreas_seg._napari.widget.export_panel import ExportPanel
from napari_pancreas_seg._napari.widget.improve_panel import ImprovePanel
from napari_pancreas_seg._napari.widget.measure_panel import MeasurePanel
from napari_pancreas_seg._napari.widget.model_panel import ModelPanel
from napari_pancreas_seg._napari.widget.panel import Panel
from napari_pancreas_seg._napari.widget.recovery_panel import RecoveryPanel
from napari_pancreas_seg._napari.widget.run_panel import RunPanel
from napari_pancreas_seg._napari.widget.view_panel import ViewPanel
from napari_pancreas_seg._napari.widget.worklist_panel import WorklistPanel
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import Options

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

    _was_docked = False

    def __init__(self, napari_viewer: napari.viewer.Viewer, *, warm_up: bool = True) -> None:
        super().__init__()
        self.app = app_of(napari_viewer)
        self.app.dock = self
        self._warm_up = warm_up
        self.ct_panel = CtPanel(self.app)
        self.recovery_panel = RecoveryPanel(self.app)
        self.view_panel = ViewPanel(self.app)
        self.model_panel = ModelPanel(self.app)
        self.run_panel = RunPanel(self.app)
        self.attention_panel = AttentionPanel(self.app)
        self.correct_panel = CorrectPanel(self.app)
        self.measure_panel = MeasurePanel(self.app)
        self.export_panel = ExportPanel(self.app)
        self.improve_panel = ImprovePanel(self.app)
        self.worklist_panel = WorklistPanel(self.app)
        self.app.runs.how = self._how
        # Top to bottom. A panel is made with the app alone, hears of changes by the
        # app's signals and by `Panel.refresh`, and folds; see `Panel`.
        self.panels: tuple[Panel, ...] = (
            self.ct_panel,
            self.recovery_panel,
            self.view_panel,
            self.model_panel,
            self.run_panel,
            self.attention_panel,
            self.correct_panel,
            self.measure_panel,
            self.export_panel,
            self.improve_panel,
            self.worklist_panel,
        )
        self._lay_out()
        self.setAcceptDrops(True)
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(WARM_UP_DELAY_MS)
        self._soon.timeout.connect(self._start_warming)
        self.app.session.ct_chosen.connect(self._on_ct)
        self.app.session.mask_chosen.connect(self._refresh_panels)
        self.model_panel.chosen.connect(self._warm_soon)
        self.model_panel.chosen.connect(self._tell_model)
        self.improve_panel.model_wanted.connect(self.model_panel.use_named)
        self.app.runs.finished.connect(self._warm_soon)
        self.run_panel.run_clicked.connect(self.start_run)
        self.app.runs.finished.connect(self.refresh)
        layers = napari_viewer.layers
        layers.events.inserted.connect(self._on_inserted)
        layers.events.removed.connect(self.refresh)
        layers.events.reordered.connect(self.refresh)
        layers.selection.events.active.connect(self._on_active)
        for layer in layers:
            self._follow(layer)
        self._on_ct()
        self._tell_model()

    def start_run(self) -> None:
        """Segment the chosen CT."""
        layer = self.ct_panel.layer
        if layer is None:
            report(PancreasSegError("Open a CT first: drop a .nii.gz file on the panel."))
            return
        try:
            self.app.runs.start(layer, self.model_panel.model, self._options())
        except PancreasSegError as error:
            report(error)

    def cancel_run(self) -> None:
        """Cancel the run that is under way; what was found stays."""
        self.run_panel.cancel()

    def refresh(self, event: Any = None) -> None:
        """Bring the panels in step with the viewer's layers."""
        if isalive(self):
            self.ct_panel.offer_layers()
            self._refresh_panels()

    def showEvent(self, event: QShowEvent) -> None:
        """Shorten the title that napari gave the dock: it would be clipped."""
        super().showEvent(event)
        if self.app.closing is not None:
            self.app.closing.install()
        dock = self.parent()
        bar = dock.titleBarWidget() if isinstance(dock, QDockWidget) else None
        for label in [] if bar is None else bar.findChildren(QLabel):
            # The plugin's own name, or from the menu its display name, in brackets.
            label.setText(label.text().split(" (")[0])

    def changeEvent(self, event: QEvent) -> None:
        """Go for good when the dock was closed: napari makes another widget then."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.ParentChange:
            self._was_docked = self._was_docked or self.parent() is not None
            # It may be on its way to another dock.
            QTimer.singleShot(0, self._end_unless_docked)

    def _end_unless_docked(self) -> None:
        if isalive(self) and self._was_docked and self.parent() is None:
            self.deleteLater()

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        """Take files that are dragged in."""
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        """Open files that are dropped."""
        local = [url.toLocalFile() for url in event.mimeData().urls() if url.isLocalFile()]
        for path in one_of_each_series(local):
            if Path(path).is_dir():
                self.worklist_panel.open_folder(path)
            else:
                self.app.files.open(path)
        event.acceptProposedAction()

    def _tell_model(self) -> None:
        self.improve_panel.use_model(self.model_panel.model)

    def _how(self) -> tuple[str, Options]:
        """Model and options without the region: that is meant for a run on the CT on screen."""
        if not isalive(self):
            settings = self.app.settings
            device = settings.get("model/device", "auto")
            return settings.get("model/name", "default"), Options(device=device)
        options = replace(self.run_panel.how, device=self.model_panel.device)
        return self.model_panel.model, options

    def _options(self) -> Options:
        return replace(self.run_panel.options, device=self.model_panel.device)

    def _remember_fold(self, panel: Panel) -> None:
        name, settings, at_first = f"{panel.title}/open", self.app.settings, panel.is_open

        def unfold() -> None:
            if isalive(panel):
                panel.is_open = at_first

        panel.is_open = settings.get(name, at_first)
        panel.folded.connect(lambda folded: settings.set(name, not folded))
        settings.cleared.connect(unfold)

    def _lay_out(self) -> None:
        content = QWidget()
        column = QVBoxLayout(content)
        column.setContentsMargins(6, 6, 4, 6)
        column.setSpacing(8)
        for panel in self.panels:
            column.addWidget(panel)
            self._remember_fold(panel)
        column.addStretch(1)
        reset = QPushButton("Reset all settings")
        reset.setFlat(True)
        reset.setToolTip("Every panel goes back to its defaults; layers and files stay.")
        reset.clicked.connect(self.app.settings.clear)
        column.addWidget(reset)
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
        layer.events.visible.connect(self._refresh_panels)

    def _on_active(self, event: Any) -> None:
        if isalive(self):
            self.ct_panel.choose_mask(event.value)

    def _on_ct(self) -> None:
        if not isalive(self):
            return
        self.run_panel.set_ready(self.ct_panel.layer is not None)
        self._refresh_panels()
        self._warm_soon()

    def _warm_soon(self) -> None:
        if isalive(self) and self.ct_panel.layer is not None:
            self._soon.start()

    def _refresh_panels(self, event: Any = None) -> None:
        if isalive(self):
            reference = self.app.session.reference
            for panel in self.panels:
                panel.refresh(reference)

    def _start_warming(self) -> None:
        layer = self.ct_panel.layer
        if self._warm_up and layer is not None:
            options = Options(device=self.model_panel.device)
            reference = self.app.session.placement(layer).reference
            self.app.network.warm_up(layer.data, reference, self.model_panel.model, options)
