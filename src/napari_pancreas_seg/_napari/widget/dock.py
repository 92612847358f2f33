"""The dock widget: a header that stands still, tabs below it, and files that are dropped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Image, Labels
from qtpy.compat import isalive
from qtpy.QtCore import QEvent, Qt, QTimer
from qtpy.QtGui import QDragEnterEvent, QDropEvent, QShowEvent
from qtpy.QtWidgets import (
    QDockWidget,
    QFrame,
    QLabel,
    QScrollArea,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from napari_pancreas_seg._napari.app import app_of
from napari_pancreas_seg._napari.background import report
from napari_pancreas_seg._napari.commands import open_dock
from napari_pancreas_seg._napari.compat import canvas_widget
from napari_pancreas_seg._napari.layers.bridge import HU_RANGE
from napari_pancreas_seg._napari.layers.placement import reference_of
from napari_pancreas_seg._napari.layers.reader import one_of_each_series
from napari_pancreas_seg._napari.widget.canvas_bar import CanvasBar
from napari_pancreas_seg._napari.widget.correct_panel import CorrectPanel
from napari_pancreas_seg._napari.widget.export_panel import ExportPanel
from napari_pancreas_seg._napari.widget.header import CtPanel, RunPanel
from napari_pancreas_seg._napari.widget.improve_panel import ImprovePanel
from napari_pancreas_seg._napari.widget.measure_panel import MeasurePanel
from napari_pancreas_seg._napari.widget.model_panel import ModelPanel
from napari_pancreas_seg._napari.widget.notices import RecoveryPanel
from napari_pancreas_seg._napari.widget.options_panel import OptionsPanel
from napari_pancreas_seg._napari.widget.ui import WheelGuard
from napari_pancreas_seg._napari.widget.view_panel import AttentionPanel, ViewPanel
from napari_pancreas_seg._napari.widget.worklist_panel import WorklistPanel
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import Options

if TYPE_CHECKING:
    import napari.viewer
    from napari.components import LayerList

import napari_pancreas_seg._napari.widget.ui as ui

WARM_UP_DELAY_MS = 500
WIDTH = 330


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
        self.app = app = app_of(napari_viewer)
        app.dock = self
        self._session = app.session
        self._warm_up = warm_up
        self._arrived: Any = None  # the layer that this turn of the event loop has brought
        self.ct_panel = CtPanel(app)
        self.run_panel = RunPanel(app)
        self.model_panel = ModelPanel(app)
        self.options_panel = OptionsPanel(app)
        self.view_panel = ViewPanel(app)
        self.attention_panel = AttentionPanel(app)
        self.correct_panel = CorrectPanel(app)
        self.measure_panel = MeasurePanel(app)
        self.export_panel = ExportPanel(app)
        self.worklist_panel = WorklistPanel(app)
        self.improve_panel = ImprovePanel(app)
        self.recovery_panel = RecoveryPanel(app)
        self.bar = CanvasBar(app, canvas_widget(napari_viewer))
        self.destroyed.connect(self.bar.deleteLater)
        self._header = (self.ct_panel, self.run_panel)
        self._pages: dict[str, tuple[ui.Panel, ...]] = {
            "Segment": (
                self.model_panel,
                self.options_panel,
                self.view_panel,
                self.attention_panel,
            ),
            "Correct": (self.correct_panel,),
            "Measure & export": (self.measure_panel, self.export_panel),
            "Worklist": (self.worklist_panel,),
            "Improve": (self.improve_panel,),
        }
        pages = [panel for page in self._pages.values() for panel in page]
        self.panels: tuple[ui.Panel, ...] = (*self._header, *pages, self.recovery_panel)
        self._lay_out()
        self._guard = WheelGuard(self)
        self.setAcceptDrops(True)
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(WARM_UP_DELAY_MS)
        self._soon.timeout.connect(self._start_warming)
        self._connect(napari_viewer.layers)
        self._on_ct()
        self._tell_model()

    def start_run(self) -> None:
        """Segment the chosen CT."""
        try:
            layer = self.ct_panel.layer
            if layer is None:
                raise PancreasSegError("Open a CT first: drop a .nii.gz file on the panel.")
            self.app.runs.start(layer, self.model_panel.model, self._options())
        except PancreasSegError as error:
            report(error)

    def cancel_run(self) -> None:
        """Cancel the run that is under way; what was found stays."""
        self.run_panel.cancel_button.click()

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
            # The plugin's name in brackets.
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

    def _how(self) -> tuple[str, Options]:
        """Model and options for a CT that is not on screen: the region is not meant for it."""
        if not isalive(self):
            settings = self.app.settings
            device = settings.get("model/device", "auto")
            return settings.get("model/name", "default"), Options(device=device)
        options = replace(self.options_panel.how, device=self.model_panel.device)
        return self.model_panel.model, options

    def _options(self) -> Options:
        return replace(self.options_panel.options, device=self.model_panel.device)

    def _lay_out(self) -> None:
        outer = QVBoxLayout(self)
        outer.setContentsMargins(6, 6, 4, 6)
        outer.setSpacing(4)
        for panel in self._header:
            outer.addWidget(panel)
        self.tabs = QTabWidget()
        self.tabs.setDocumentMode(True)
        self.tabs.setUsesScrollButtons(False)  # all five are seen, however wide the font
        self.tabs.setStyleSheet("QTabBar::tab { padding: 4px 2px; font-size: 11px; }")
        for title, panels in self._pages.items():
            page = _page(panels)
            self.tabs.addTab(page, title.replace("&", "&&"))
            for panel in panels:
                panel.wanted.connect(lambda page=page: self.tabs.setCurrentWidget(page))
        outer.addWidget(self.tabs, 1)
        # What is asked now and then lies below, where it moves nothing.
        outer.addWidget(self.ct_panel.foreign)
        outer.addWidget(self.recovery_panel)
        menu = self.ct_panel.menu
        menu.addAction("Keys…").triggered.connect(self.correct_panel.show_keys)
        menu.addAction("Reset all settings").triggered.connect(self.app.settings.clear)
        self.setMinimumWidth(WIDTH)

    def _connect(self, layers: LayerList) -> None:
        app = self.app
        app.runs.how = self._how
        if app.closing is not None:
            app.closing.export = self._export_unexported
        app.session.ct_chosen.connect(self._on_ct)
        app.session.mask_chosen.connect(self._refresh_panels)
        app.runs.finished.connect(self._warm_soon)
        app.runs.finished.connect(self.refresh)
        self.model_panel.chosen.connect(self._warm_soon)
        self.model_panel.chosen.connect(self._tell_model)
        self.improve_panel.model_wanted.connect(self.model_panel.use_named)
        self.run_panel.run_clicked.connect(self.start_run)
        layers.events.inserted.connect(self._on_inserted)
        layers.events.removed.connect(self.refresh)
        layers.events.reordered.connect(self.refresh)
        layers.selection.events.active.connect(self._on_active)
        for layer in layers:
            self._follow(layer)

    def _export_unexported(self, layer: Labels) -> None:
        # This dock may have been closed since.
        open_dock(self._session.viewer).export_panel.export_layer(layer)

    def _tell_model(self) -> None:
        self.improve_panel.use_model(self.model_panel.model)

    def _on_inserted(self, event: Any) -> None:
        if isalive(self):
            self._follow(event.value)
            self._arrived = event.value
            QTimer.singleShot(0, self._keep_selected)
            self.refresh()

    def _keep_selected(self) -> None:
        """Select the chosen mask again if napari has selected one that was just opened."""
        if not isalive(self):
            return
        arrived, self._arrived = self._arrived, None
        viewer, mask = self._session.viewer, self._session.mask
        if viewer is not None and mask in viewer.layers and self._is_guest(arrived):
            viewer.layers.selection.active = mask

    def _is_guest(self, layer: Any) -> bool:
        """Whether a layer is a mask from a file while another one of the CT is chosen."""
        session = self._session
        chosen = session.mask is not None and session.mask is not layer
        return chosen and layer in self.ct_panel.mask_combo.choices and session.is_opened(layer)

    def _follow(self, layer: Any) -> None:
        reference = reference_of(layer)
        if reference is not None and reference.kind == "ct" and isinstance(layer, Image):
            # A reader can set the window but not what its slider spans.
            layer.contrast_limits_range = HU_RANGE
        layer.events.name.connect(self.refresh)
        layer.events.visible.connect(self._refresh_panels)

    def _on_active(self, event: Any) -> None:
        layer = event.value
        if isalive(self) and not (layer is self._arrived and self._is_guest(layer)):
            self.ct_panel.choose_mask(layer)

    def _on_ct(self) -> None:
        self._refresh_panels()
        self._warm_soon()

    def _warm_soon(self) -> None:
        if isalive(self):
            self._soon.start()

    def _refresh_panels(self, event: Any = None) -> None:
        if isalive(self):
            reference = self._session.reference
            for panel in self.panels:
                panel.refresh(reference)

    def _start_warming(self) -> None:
        layer = self.ct_panel.layer
        options = Options(device=self.model_panel.device)
        if self._warm_up and layer is None:
            self.app.network.warm_up_blank(self.model_panel.model, options)
        elif self._warm_up and layer is not None:
            reference = self._session.placement(layer).reference
            self.app.network.warm_up(layer.data, reference, self.model_panel.model, options)


def _page(panels: tuple[ui.Panel, ...]) -> QScrollArea:
    """A tab's page; napari brings no scroll area, and a small screen may be shorter."""
    content = QWidget()
    column = QVBoxLayout(content)
    column.setContentsMargins(0, 6, 4, 0)
    column.setSpacing(6)
    for panel in panels:
        column.addWidget(panel)
    column.addStretch(1)
    area = QScrollArea()
    area.setFrameShape(QFrame.Shape.NoFrame)
    area.setWidgetResizable(True)
    area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    area.setWidget(content)
    return area
