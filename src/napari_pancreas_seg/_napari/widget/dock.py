"""The dock widget: a header that stands still, tabs below it, and files that are dropped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Image, Labels
from qtpy.compat import isalive
from qtpy.QtCore import QEvent, QObject, Qt, QTimer
from qtpy.QtGui import QDragEnterEvent, QDropEvent, QKeyEvent, QKeySequence, QShowEvent
from qtpy.QtWidgets import (
    QDockWidget,
    QFrame,
    QLabel,
    QScrollArea,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

import napari_pancreas_seg._napari.widget.ui as ui
from napari_pancreas_seg._napari.app import App, app_of
from napari_pancreas_seg._napari.background import report, timer
from napari_pancreas_seg._napari.commands import open_dock
from napari_pancreas_seg._napari.compat import canvas_widget
from napari_pancreas_seg._napari.correct.keys import register_actions
from napari_pancreas_seg._napari.layers.bridge import HU_RANGE
from napari_pancreas_seg._napari.layers.placement import reference_of
from napari_pancreas_seg._napari.layers.reader import get_ready, one_of_each_series
from napari_pancreas_seg._napari.widget.canvas_bar import CanvasBar
from napari_pancreas_seg._napari.widget.correct_panel import CorrectPanel
from napari_pancreas_seg._napari.widget.dialogs import show_keys
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

WARM_UP_DELAY_MS = 500
WIDTH = 330
TABS: dict[str, tuple[Callable[[App], ui.Panel], ...]] = {
    "Segment": (ModelPanel, OptionsPanel, ViewPanel, AttentionPanel),
    "Correct": (CorrectPanel,),
    "Measure & export": (MeasurePanel, ExportPanel),
    "Worklist": (WorklistPanel,),
    "Improve": (ImprovePanel,),
}


class PancreasDock(QWidget):
    """Segment the pancreas in a CT, look at the result, correct and export it.

    `warm_up`: whether to start the network, and load libraries, before there is a CT.
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
        self.recovery_panel = RecoveryPanel(app)
        canvas = canvas_widget(napari_viewer)
        if canvas is not None:
            canvas.installEventFilter(self)
        self.bar = CanvasBar(app, canvas)
        self.destroyed.connect(self.bar.deleteLater)
        self._panels: dict[Callable[[App], ui.Panel], ui.Panel] = {}
        self._guard = WheelGuard(self)
        register_actions()
        self._lay_out()
        self.setAcceptDrops(True)
        self._soon = timer(self, WARM_UP_DELAY_MS, self._start_warming)
        self._connect(napari_viewer.layers)
        self._on_ct()

    model_panel = property(lambda self: self.panel(ModelPanel))
    options_panel = property(lambda self: self.panel(OptionsPanel))
    view_panel = property(lambda self: self.panel(ViewPanel))
    attention_panel = property(lambda self: self.panel(AttentionPanel))
    correct_panel = property(lambda self: self.panel(CorrectPanel))
    measure_panel = property(lambda self: self.panel(MeasurePanel))
    export_panel = property(lambda self: self.panel(ExportPanel))
    worklist_panel = property(lambda self: self.panel(WorklistPanel))
    improve_panel = property(lambda self: self.panel(ImprovePanel))

    def panel(self, kind: Callable[[App], ui.Panel]) -> ui.Panel:
        """A panel of a tab, which is filled when it is first shown or asked for."""
        if kind not in self._panels:
            self._fill(next(i for i, kinds in enumerate(TABS.values()) if kind in kinds))
        return self._panels[kind]

    def start_run(self) -> None:
        try:
            layer = self.ct_panel.layer
            if layer is None:
                raise PancreasSegError("Open a CT first: drop a .nii.gz file on the panel.")
            self.app.runs.start(layer, self.model_panel.model, self._options())
        except PancreasSegError as error:
            report(error)

    def cancel_run(self) -> None:
        self.run_panel.cancel_button.click()

    def refresh(self, event: Any = None) -> None:
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

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Export the chosen mask on Ctrl+S in the picture: napari's dialog offers TIFF first."""
        kinds = (QEvent.Type.ShortcutOverride, QEvent.Type.KeyPress)
        if event.type() not in kinds or not isinstance(event, QKeyEvent):
            return False
        viewer, mask = self._session.viewer, self._session.mask
        chosen = viewer is not None and mask is not None and mask in viewer.layers.selection
        if not (chosen and event.matches(QKeySequence.StandardKey.Save)):
            return False
        event.accept()
        if event.type() == QEvent.Type.KeyPress:
            self.export_panel.ask_and_export()
        return True

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
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
            return self.app.runs.remembered()
        options = replace(self.options_panel.how, device=self.model_panel.device)
        return self.model_panel.model, options

    def _options(self) -> Options:
        return replace(self.options_panel.options, device=self.model_panel.device)

    def _lay_out(self) -> None:
        outer = QVBoxLayout(self)
        outer.setContentsMargins(6, 6, 4, 6)
        outer.setSpacing(4)
        outer.addWidget(self.ct_panel)
        outer.addWidget(self.run_panel)
        self.tabs = QTabWidget()
        self.tabs.setDocumentMode(True)
        self.tabs.setUsesScrollButtons(False)  # all five are seen, however wide the font
        self.tabs.setStyleSheet("QTabBar::tab { padding: 4px 2px; font-size: 11px; }")
        for title in TABS:
            self.tabs.addTab(_page(), title.replace("&", "&&"))
        self.tabs.currentChanged.connect(self._fill)
        outer.addWidget(self.tabs, 1)
        # What is asked now and then lies below, where it moves nothing.
        outer.addWidget(self.ct_panel.foreign)
        outer.addWidget(self.recovery_panel)
        menu = self.ct_panel.menu
        menu.addAction("Keys…").triggered.connect(lambda: show_keys(self))
        menu.addAction("Reset all settings").triggered.connect(self.app.settings.clear)
        self.setMinimumWidth(WIDTH)
        self._guard.watch(self)
        # In turns of its own each: the window stands still for less long at once.
        QTimer.singleShot(0, self._fill_shown)

    def _fill_shown(self) -> None:
        if isalive(self):
            self._fill(self.tabs.currentIndex())

    def _fill(self, place: int) -> None:
        """Make the panels of a tab, once: those that nobody looks at would slow down the start."""
        page: Any = self.tabs.widget(place)
        if page.widget() is not None:
            return
        content = QWidget()
        column = QVBoxLayout(content)
        column.setContentsMargins(0, 6, 4, 0)
        column.setSpacing(6)
        for kind in list(TABS.values())[place]:
            panel = self._panels[kind] = kind(self.app)
            panel.wanted.connect(lambda: self.tabs.setCurrentIndex(place))
            panel.refresh(self._session.reference)
            column.addWidget(panel)
        column.addStretch(1)
        page.setWidget(content)
        self._guard.watch(content)
        if place == 0:
            self.model_panel.chosen.connect(self._warm_soon)
            self.model_panel.chosen.connect(self._refresh_panels)

    def _connect(self, layers: LayerList) -> None:
        app = self.app
        app.runs.how = self._how
        if app.closing is not None:
            app.closing.export = self._export_unexported
        app.session.ct_chosen.connect(self._on_ct)
        app.session.mask_chosen.connect(self._refresh_panels)
        app.runs.finished.connect(self._warm_soon)
        app.runs.finished.connect(self.refresh)
        app.improvement.wanted.connect(self._use_model)
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

    def _use_model(self, name: str) -> None:
        if isalive(self):
            self.model_panel.use_named(name)

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
            for panel in (self.run_panel, *self._panels.values(), self.recovery_panel):
                panel.refresh(reference)

    def _start_warming(self) -> None:
        layer = self.ct_panel.layer
        options = Options(device=self.model_panel.device)
        if self._warm_up and layer is None:
            self.app.background.submit(get_ready)
            self.app.network.warm_up_blank(self.model_panel.model, options)
        elif self._warm_up and layer is not None:
            reference = self._session.placement(layer).reference
            self.app.network.warm_up(layer.data, reference, self.model_panel.model, options)


def _page() -> QScrollArea:
    """A tab's page; napari brings no scroll area, and a small screen may be shorter."""
    area = QScrollArea()
    area.setFrameShape(QFrame.Shape.NoFrame)
    area.setWidgetResizable(True)
    area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    return area
