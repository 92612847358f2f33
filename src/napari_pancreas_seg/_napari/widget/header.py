"""The header, which never moves: CT and mask, Run, progress and one line of status."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from napari.layers import Image, Labels, Layer
from napari.settings import get_settings
from qtpy.QtWidgets import QProgressBar, QStackedWidget

import napari_pancreas_seg._napari.widget.ui as ui
from napari_pancreas_seg._napari.layers.placement import reference_of
from napari_pancreas_seg.errors import counted

if TYPE_CHECKING:
    from napari_pancreas_seg._napari.layers.placement import GridReference
    from napari_pancreas_seg._napari.run.runs import Runs
    from napari_pancreas_seg._napari.session import Session

PLUGIN = "napari-pancreas-seg"
PATTERNS = ("*.nii.gz", "*.nii")
NO_CT = "Drop a CT here, or try File › Open Sample."


class CtPanel(ui.Panel):
    """Choose or open a CT, and the mask of it that everything acts on.

    It is on screen before there is what it will `attach` to.
    """

    def __init__(self, session: Session | None = None) -> None:
        super().__init__()
        self._known: WeakKeyDictionary[Image, weakref.WeakSet[Labels]] = WeakKeyDictionary()
        self._last: weakref.ref[Image] | None = None  # the CT whose masks were offered last
        self.combo = ui.choice("The CT that is worked on.", "Open or drop a CT")
        tip = "NIfTI, NRRD, MetaImage, a file of a DICOM series; or drop one, or a folder."
        self.open_button = ui.button("Open…", tip)
        self.more_button = ui.menu_button("⋯", "Keys and settings.")
        self.more_button.setStyleSheet("QToolButton::menu-indicator { image: none; }")
        self.menu = self.more_button.menu()
        self.reader_action = self.menu.addAction("Always open .nii.gz files like this")
        self.reader_action.setToolTip("Preferences › Plugins takes it back.")
        readers = get_settings().plugins.extension2reader
        self.reader_action.setVisible(any(readers.get(one) != PLUGIN for one in PATTERNS))
        self.info = ui.OneLine(NO_CT)
        tip = "What is corrected, measured and exported. A click in the layer list chooses, too."
        self.mask_combo = ui.choice(tip, "No mask yet")
        self.add(self.combo, self.open_button, self.more_button, stretch=(1, 0, 0))
        self.add(self.info)
        self.add("Mask", self.mask_combo)
        self.reader_action.triggered.connect(self._become_reader)
        if session is not None:
            self.attach(session)

    def attach(self, session: Session) -> None:
        self._session = session
        self.combo.changed.connect(self._on_ct)
        self.mask_combo.changed.connect(self._on_mask)
        self._session.ct_chosen.connect(self._follow)
        self._session.mask_chosen.connect(self._follow)
        self.offer_layers()

    @property
    def layer(self) -> Image | None:
        return self.combo.value

    def offer_layers(self) -> None:
        """Offer the viewer's layers that can be a CT, and those that can be its mask.

        A layer that is new is chosen; else what was chosen stays so, also beside foreign layers.
        """
        session = self._session
        cts = session.cts
        # What another plugin has made is a CT only if a person says so, or if there is no other.
        others = () if session.ct is None else (ct for ct in cts if reference_of(ct) is None)
        ct = _pick(cts, (*self.combo.choices, *others), session.ct)
        ui.offer(self.combo, [(layer.name, layer) for layer in cts], ct)
        session.ct = ct  # the field first: who hears of the choice may look there
        reference = session.reference
        masks = [] if reference is None else session.mask_layers(reference)
        last = session.last_mask
        same = self._last is None or self._last() is ct
        stays = session.mask if same else None
        chosen = stays if stays in masks else last
        known = () if ct is None else tuple(self._known.get(ct, ()))
        if chosen in masks:  # a mask that is opened does not take its place unasked
            known = (*known, *filter(session.is_opened, masks))
        # Nor is what was made on another phase, or opened with it, chosen unasked.
        elsewhere = {m for other, found in self._known.items() if other is not ct for m in found}
        foreign = {*filter(session.is_opened, elsewhere), *session.aside} - {last}
        own = [
            mask
            for mask in masks
            if mask is stays or not (session.is_anothers(mask) or (mask in foreign and not same))
        ]
        self._last = None if ct is None else weakref.ref(ct)
        mask = _pick(own, known, chosen)
        if ct is not None:
            self._known[ct] = weakref.WeakSet(masks)
        ui.offer(self.mask_combo, [(layer.name, layer) for layer in masks], mask)
        session.mask = mask
        self._show_info()

    def choose_mask(self, layer: object) -> None:
        if isinstance(layer, Labels) and layer in self.mask_combo.choices:
            self.mask_combo.value = layer

    def _on_ct(self, layer: Image | None) -> None:
        session = self._session
        session.ct = layer
        self.offer_layers()
        if session.mask in session.layers:
            session.viewer.layers.selection.active = session.mask  # which tools and brush act on

    def _on_mask(self, layer: Labels | None) -> None:
        if layer is None or layer not in self._session.layers:
            self._session.mask = layer
            return
        layer.visible = True  # tools act on nothing that is hidden; first, as 3-D hides it again
        self._session.mask = layer
        self._session.viewer.layers.selection.active = layer

    def _follow(self) -> None:
        """Show what a script, or another panel, has chosen."""
        session = self._session
        for field, layer in ((self.combo, session.ct), (self.mask_combo, session.mask)):
            if field.value is not layer and layer in field.choices:
                ui.show(field, layer)

    def _show_info(self) -> None:
        layer = self.layer
        if layer is None:
            self.info.setText(NO_CT)
            return
        reference = self._session.placement(layer).reference
        (z, y, x), (dz, dy, dx) = reference.grid.shape, reference.grid.spacing
        size = f"{dx:.3g}×{dy:.3g}×{dz:.3g}\N{NO-BREAK SPACE}mm"
        self.info.setText(f"{counted(z, 'slice')}, {x}×{y}; {size}")

    def _become_reader(self) -> None:
        settings = get_settings().plugins
        readers = {**settings.extension2reader, **dict.fromkeys(PATTERNS, PLUGIN)}
        settings.extension2reader = readers
        self.reader_action.setVisible(False)


def _pick(layers: list[Any], known: tuple[Any, ...], chosen: Layer | None) -> Any:
    """The layer to choose of those that there are: a new one, else the chosen one, else the last.

    Before any was known, what a dock that was closed had chosen.
    """
    new = [layer for layer in layers if layer not in known]
    if chosen in layers and (not known or not new):
        return chosen
    return new[-1] if new else layers[-1] if layers else None


PROGRESS_HEIGHT = 6


class RunPanel(ui.Panel):
    """Starts a run, shows its progress, cancels it, and asks whether to keep an unfinished one.

    It is on screen before there is what it will `attach` to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.run_button = ui.button("Run", "Segment the pancreas in this CT.")
        self.cancel_button = ui.button("Cancel", "Stop the run; what was found can be kept.")
        self.keep_button = ui.button("Keep", "Keep what the run has found so far.")
        self.discard_button = ui.button("Discard", "Take back what the run has found.")
        self.progress = QProgressBar()
        self.progress.setFixedHeight(PROGRESS_HEIGHT)
        self.progress.setTextVisible(False)
        place = self.progress.sizePolicy()
        place.setRetainSizeWhenHidden(True)
        self.progress.setSizePolicy(place)
        self.status = ui.OneLine()
        # Cancel and the question that may follow share one place, so that Run never moves.
        self._right = QStackedWidget()
        self._right.addWidget(self.cancel_button)
        self._right.addWidget(ui.row(self.keep_button, self.discard_button))
        self.add(self.run_button, self._right)
        self._right.setFixedHeight(self.run_button.sizeHint().height())
        self.run_button.setFixedHeight(self.run_button.sizeHint().height())
        self.stack(self.progress, self.status)
        self.cancel_button.setEnabled(False)
        self.progress.setVisible(False)

    def attach(self, session: Session, runs: Runs) -> None:
        self._session, self._runs = session, runs
        self.cancel_button.clicked.connect(lambda: self._call_run("cancel"))
        self.keep_button.clicked.connect(lambda: self._call_run("keep"))
        self.discard_button.clicked.connect(lambda: self._call_run("discard"))
        for signal in (runs.started, runs.changed, runs.finished):
            signal.connect(self.refresh)
        self.refresh()

    def _call_run(self, what: str) -> None:
        if self._runs.latest is not None:
            getattr(self._runs.latest, what)()

    def refresh(self, reference: GridReference | None = None) -> None:
        # A progress bar that can paints itself, and with it the whole window, at once.
        self.progress.setUpdatesEnabled(False)
        run, running = self._runs.latest, self._runs.running
        here = self._session.reference
        asked = run is not None and run.can_discard
        self.run_button.setEnabled(here is not None and not running)
        self.cancel_button.setEnabled(running and run is not None and not run.cancelled)
        self._right.setCurrentIndex(int(asked))
        # What was found in another CT, or is in another mask, would be read as if of this one.
        mask = self._session.mask
        others = run is not None and run.stands and mask not in (None, run.labels)
        own = run is not None and here is not None and run.reference.id == here.id
        message = "" if run is None else run.message if own else f"{run.name}: {run.message}"
        self.status.setText(message if running or asked or (own and not others) else "")
        if running and run is not None and (run.done == 0 or run.total == 0):
            self.progress.setRange(0, 0)  # busy
        elif run is not None:
            self.progress.setRange(0, max(run.total, 1))
            self.progress.setValue(run.done)
        self.progress.setUpdatesEnabled(True)
        self.progress.setVisible(running)
