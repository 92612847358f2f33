"""The dock widget: a header that stands still, tabs below it, and files that are dropped."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels
from qtpy.compat import isalive
from qtpy.QtCore import QEvent, QObject, Qt, QTimer
from qtpy.QtGui import QDragEnterEvent, QDropEvent, QKeyEvent, QKeySequence, QShowEvent
from qtpy.QtWidgets import (
    QDockWidget,
    QFileDialog,
    QFrame,
    QLabel,
    QScrollArea,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

import napari_pancreas_seg._napari.widget.ui as ui
from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.background import reported, timer
from napari_pancreas_seg._napari.commands import open_dock, take_place
from napari_pancreas_seg._napari.layers.placement import with_all_axes
from napari_pancreas_seg._napari.widget.header import CtPanel, RunPanel
from napari_pancreas_seg.errors import PancreasSegError

if TYPE_CHECKING:
    import napari.viewer
    from napari.components import LayerList

    from napari_pancreas_seg._napari.app import App
    from napari_pancreas_seg.inference.result import Options

WARM_UP_DELAY_MS = 500
BREATH_MS = 10
"""For whatever else the window has to do while the dock opens."""
WIDTH = 330
TABS = {
    "Segment": ("model", "options", "view", "attention"),
    "Correct": ("correct",),
    "Measure & export": ("measure", "export"),
    "Worklist": ("worklist",),
    "Improve": ("improve",),
}
"""Titles and panels: ``correct`` is `CorrectPanel`, in ``correct_panel.py``."""
LATER = (
    "napari_pancreas_seg.io",
    "napari_pancreas_seg.inference.result",
    "napari_pancreas_seg._napari.run.worker",
    "napari_pancreas_seg._napari.correct.mend",
    "napari_pancreas_seg._napari.app",
)
"""Modules that the header can do without for a moment."""


class PancreasDock(QWidget):
    """Segment the pancreas in a CT, look at the result, correct and export it.

    The header is on screen at once. What makes it work comes in turns of the event loop, between
    which the window lives, or at once if anybody needs the `app` before.
    """

    _was_docked = False

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self._viewer = weakref.ref(compat.unwrapped(napari_viewer))
        take_place(self, napari_viewer)
        self._app: App | None = None
        self._arrived: Any = None  # the layer that this turn of the event loop has brought
        self._ct_panel, self._run_panel = CtPanel(), RunPanel()
        self._panels: dict[str, ui.Panel] = {}
        self._guard = ui.WheelGuard(self)
        self._lay_out()
        self.setAcceptDrops(True)
        self._soon = timer(self, WARM_UP_DELAY_MS, self._start_warming)
        self._run_panel.run_button.clicked.connect(self.start_run)
        is_image = (isinstance(layer, Image) for layer in napari_viewer.layers)
        self._run_panel.run_button.setEnabled(any(is_image))
        self._ct_panel.open_button.clicked.connect(self.ask_for_file)
        self._canvas = napari_viewer.canvas.size  # (height, width) as the picture was fitted
        napari_viewer.canvas.events.size.connect(self._keep_whole)
        self._steps: list[Callable[[], Any]] = [
            *(partial(import_module, module) for module in LATER),
            self._complete,
            self._register_keys,
            *(partial(self._make, name) for name in TABS["Segment"]),
            lambda: self._fill(self.tabs.currentIndex()),
            self._warm_soon,
        ]
        QTimer.singleShot(0, self._go_on_opening)

    bar = property(lambda self: self.panel("bar"))

    @property
    def app(self) -> App:
        """The plugin's services in the viewer; completes the dock."""
        self._complete()
        assert self._app is not None
        return self._app

    def __getattr__(self, name: str) -> Any:
        """A panel, such as ``export_panel``."""
        if name.endswith("_panel"):
            return self.panel(name.removesuffix("_panel"))
        raise AttributeError(f"The dock has no '{name}'")

    def panel(self, name: str) -> Any:
        """A panel; those of a tab are made when the tab is first shown, or one is asked for."""
        self._complete()
        if name not in self._panels:
            self._fill(next(i for i, names in enumerate(TABS.values()) if name in names))
        return self._panels[name]

    def start_run(self) -> None:
        with reported():
            layer = self.ct_panel.layer
            if layer is None:
                raise PancreasSegError("Open a CT first: drop a .nii.gz file on the panel.")
            options = replace(self.options_panel.options, device=self.model_panel.device)
            self.app.runs.start(layer, self.model_panel.model, options)

    def perform(self, name: str) -> None:
        """Perform an action by name, such as ``"run"``, once the dock is complete."""
        if self._steps:
            self._steps.append(partial(self.perform, name))
            return
        from napari_pancreas_seg._napari.correct.keys import ACTIONS, perform

        perform(next(action for action in ACTIONS if action.name == name), self.app)

    def ask_for_file(self) -> None:
        from napari_pancreas_seg.io import SUFFIXES

        # A DICOM file may have any name: one of a series stands for all of it.
        pattern = f"CT or mask ({' '.join(f'*{s}' for s in SUFFIXES)} *.dcm *.zip);;All files (*)"
        self._open(QFileDialog.getOpenFileNames(self, "Open a CT", "", pattern)[0])

    def refresh(self, event: Any = None) -> None:
        if isalive(self):
            self.ct_panel.offer_layers()
            self._refresh_panels()

    # -- Qt's events

    def showEvent(self, event: QShowEvent) -> None:
        """Shorten the title that napari gave the dock: it would be clipped."""
        super().showEvent(event)
        QTimer.singleShot(0, self._fit_window)  # napari's first one is as wide as it likes
        if self._app is not None and self._app.closing is not None:
            self._app.closing.install()
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
        if self._was_docked and self.parent() is None:
            self.deleteLater()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Export the chosen mask on Ctrl+S in the picture: napari's dialog offers TIFF first."""
        kinds = (QEvent.Type.ShortcutOverride, QEvent.Type.KeyPress)
        if event.type() not in kinds or not isinstance(event, QKeyEvent):
            return False
        viewer, mask = self._viewer(), self.app.session.mask
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
        self._open([url.toLocalFile() for url in event.mimeData().urls() if url.isLocalFile()])
        event.acceptProposedAction()

    def _open(self, paths: list[str]) -> None:
        """Open files, and a folder as a worklist; of the files of a series one stands for all."""
        from napari_pancreas_seg._napari.layers.reader import one_of_each_folder

        for path in one_of_each_folder(paths):
            if Path(path).is_dir():
                self.worklist_panel.open_folder(path)
            else:
                self.app.files.open(path)

    # -- how it comes into being

    def _fit_window(self) -> None:
        """Keep the window within the screen."""
        window = compat.qt_window(self._viewer()) if isalive(self) else None
        if window is None or window.isMaximized() or window.isFullScreen():
            return
        room, frame = window.screen().availableGeometry(), window.frameGeometry()
        if frame.width() > room.width() or frame.height() > room.height():
            window.resize(window.size().boundedTo(room.size() - (frame.size() - window.size())))
            window.move(room.topLeft())

    def _keep_whole(self, event: Any) -> None:
        """Show the whole of a picture that was seen whole before docks took of its width."""
        viewer, before = self._viewer(), np.array(self._canvas)
        if viewer is None or not isalive(self):
            return
        self._canvas = viewer.canvas.size
        seen = with_all_axes(viewer, [layer for layer in viewer.layers if layer.visible])
        if seen and viewer.dims.ndisplay == 2:
            ends = viewer.layers.get_extent(seen).world[:, list(viewer.dims.displayed)]
            camera = viewer.scene.camera
            if (2 * abs(ends - camera.center[-2:]) * camera.zoom <= before).all():
                viewer.reset_view(layers=seen)

    def _lay_out(self) -> None:
        outer = QVBoxLayout(self)
        outer.setContentsMargins(6, 6, 4, 6)
        outer.setSpacing(4)
        outer.addWidget(self._ct_panel)
        outer.addWidget(self._run_panel)
        self.tabs = QTabWidget()
        self.tabs.setDocumentMode(True)
        self.tabs.tabBar().setDrawBase(False)  # a white line on dark ground
        self.tabs.setUsesScrollButtons(False)  # all five are seen, however wide the font
        self.tabs.setStyleSheet(
            "QTabBar { background: none; }"  # napari's, of a tab, looks like a sixth one
            " QTabBar::tab { padding: 4px 2px; font-size: 11px; }"
        )
        for title in TABS:
            self.tabs.addTab(_page(), title.replace("&", "&&"))
        self.tabs.currentChanged.connect(self._fill)
        outer.addWidget(self.tabs, 1)
        self.setMinimumWidth(WIDTH)
        self._guard.watch(self)

    def _go_on_opening(self) -> None:
        """Do the next step of opening the dock."""
        if self._viewer() is not None and self._steps:
            try:
                self._steps.pop(0)()
            finally:  # one that fails keeps neither the others nor commands from their turn
                QTimer.singleShot(BREATH_MS, self._go_on_opening)

    def _complete(self) -> None:
        """Build the services and the tabs, once."""
        viewer = self._viewer()
        if self._app is not None:
            return
        if viewer is None:
            raise PancreasSegError("The window has been closed.")
        from napari_pancreas_seg._napari.app import app_of
        from napari_pancreas_seg._napari.widget.canvas_bar import CanvasBar
        from napari_pancreas_seg._napari.widget.dialogs import show_keys
        from napari_pancreas_seg._napari.widget.notices import ForeignPanel, RecoveryPanel

        self._app = app = app_of(viewer)
        self._panels = {"ct": self._ct_panel, "run": self._run_panel}
        session = app.session
        self._panels["foreign"] = ForeignPanel(session, app.files)
        self._panels["recovery"] = RecoveryPanel(session, app.offers, app.files)
        # What is asked now and then lies below, where it moves nothing.
        for name in ("foreign", "recovery"):
            self.layout().addWidget(self._panels[name])
            self._guard.watch(self._panels[name])
        canvas = compat.canvas_widget(viewer)
        if canvas is not None:
            canvas.installEventFilter(self)
        bar = self._panels["bar"] = CanvasBar(app, canvas)
        self.destroyed.connect(bar.deleteLater)
        menu = self._ct_panel.menu
        menu.addAction("Keys…").triggered.connect(lambda: show_keys(self))
        menu.addAction("Reset all settings").triggered.connect(app.settings.clear)
        self._run_panel.attach(session, app.runs)
        self._ct_panel.attach(session)
        self._connect(app, viewer.layers)
        self._refresh_panels()

    def _register_keys(self) -> None:
        from napari_pancreas_seg._napari.correct.keys import register_actions

        register_actions()

    def _connect(self, app: App, layers: LayerList) -> None:
        app.runs.how = self._how
        if app.closing is not None:
            app.closing.export = self._export_unexported
        app.session.ct_chosen.connect(self._refresh_panels)
        app.session.ct_chosen.connect(self._warm_soon)
        app.session.mask_chosen.connect(self._refresh_panels)
        app.runs.finished.connect(self._warm_soon)
        app.network.wished.connect(self._warm_soon)
        app.runs.finished.connect(self.refresh)
        app.improvement.wanted.connect(self._use_model)
        layers.events.inserted.connect(self._on_inserted)
        layers.events.removed.connect(self.refresh)
        layers.events.reordered.connect(self.refresh)
        layers.selection.events.active.connect(self._on_active)
        for layer in layers:
            self._follow(layer)

    def _make(self, name: str) -> ui.Panel:
        """A panel of a tab, made once."""
        if name not in self._panels:
            module = import_module(f"napari_pancreas_seg._napari.widget.{name}_panel")
            made: ui.Panel = getattr(module, f"{name.capitalize()}Panel")(self.app)
            self._panels[name] = made
        return self._panels[name]

    def _fill(self, place: int) -> None:
        """Make the panels of a tab, once: those that nobody looks at would slow down the start."""
        page: Any = self.tabs.widget(place)
        if page.widget() is not None:
            return
        content = QWidget()
        column = QVBoxLayout(content)
        column.setContentsMargins(0, 6, 4, 0)
        column.setSpacing(6)
        for name in list(TABS.values())[place]:
            panel = self._make(name)
            panel.wanted.connect(lambda: self.tabs.setCurrentIndex(place))
            panel.refresh(self.app.session.reference)
            column.addWidget(panel)
        column.addStretch(1)
        page.setWidget(content)
        self._guard.watch(content)
        if place == 0:
            self.model_panel.chosen.connect(self._warm_soon)
            self.model_panel.chosen.connect(self._refresh_panels)

    # -- what goes on in the viewer

    def _how(self) -> tuple[str, Options]:
        """Model and options for a CT that is not on screen: the region is not meant for it."""
        if not isalive(self):
            return self.app.runs.remembered()
        options = replace(self.options_panel.how, device=self.model_panel.device)
        return self.model_panel.model, options

    def _export_unexported(self, layers: list[Labels]) -> None:
        # This dock may have been closed since.
        open_dock(self._viewer()).export_panel.ask_and_export(*layers)

    def _use_model(self, name: str) -> None:
        self.model_panel.use_named(name)

    def _on_inserted(self, event: Any) -> None:
        if isalive(self):
            self._follow(event.value)
            self._arrived = event.value
            QTimer.singleShot(0, self._keep_selected)
            self.refresh()

    def _keep_selected(self) -> None:
        """Select the chosen mask again if napari has selected one that was just opened."""
        arrived, self._arrived = self._arrived, None
        viewer, mask = self._viewer(), self.app.session.mask
        if viewer is not None and mask in viewer.layers and self._is_guest(arrived):
            viewer.layers.selection.active = mask

    def _is_guest(self, layer: Any) -> bool:
        """Whether a layer is a mask from a file while another one is chosen."""
        session = self.app.session
        chosen = session.mask is not None and session.mask is not layer
        if not (chosen and isinstance(layer, Labels) and session.is_opened(layer)):
            return False
        return layer in self._ct_panel.mask_combo.choices or session.is_anothers(layer)

    def _follow(self, layer: Any) -> None:
        layer.events.name.connect(self.refresh)
        layer.events.visible.connect(self._refresh_panels)

    def _on_active(self, event: Any) -> None:
        layer = event.value
        if isalive(self) and not (layer is self._arrived and self._is_guest(layer)):
            self._ct_panel.choose_mask(layer)

    def _warm_soon(self) -> None:
        self._soon.start()

    def _refresh_panels(self, event: Any = None) -> None:
        if isalive(self):
            reference = self.app.session.reference
            for panel in self._panels.values():
                panel.refresh(reference)

    def _start_warming(self) -> None:
        if self._viewer() is None:
            return
        layer, (model, options) = self._ct_panel.layer, self._how()
        if layer is None:
            self.app.network.warm_up_blank(model, options)
        else:
            reference = self.app.session.placement(layer).reference
            self.app.network.warm_up(layer.data, reference, model, options)


def _page() -> QScrollArea:
    """A tab's page; napari brings no scroll area, and a small screen may be shorter."""
    area = QScrollArea()
    area.setFrameShape(QFrame.Shape.NoFrame)
    area.setWidgetResizable(True)
    area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    area.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # a click would take arrow keys from the picture
    return area
