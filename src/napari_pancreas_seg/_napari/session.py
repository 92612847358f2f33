"""What belongs to a viewer and outlives a closed dock: its network, its masks, its run."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer
from napari.utils.notifications import show_info
from qtpy.compat import isalive
from qtpy.QtCore import QObject, Signal

from napari_pancreas_seg._napari.autosave.autosave import Autosave, digest_of
from napari_pancreas_seg._napari.autosave.closing import Closing
from napari_pancreas_seg._napari.background import Background
from napari_pancreas_seg._napari.correct.corrections import Corrector
from napari_pancreas_seg._napari.correct.review import Review
from napari_pancreas_seg._napari.improve.improvement import Improvement
from napari_pancreas_seg._napari.layers.bridge import (
    LayerData,
    mask_of,
    original_of,
    other_label_colors,
    volume_of,
)
from napari_pancreas_seg._napari.layers.maps import MapLayers
from napari_pancreas_seg._napari.layers.placement import (
    GridReference,
    Placement,
    display_view,
    find_reference,
    lies_on,
    placement_of,
    placements,
    reference_of,
    slice_on_screen,
    why_not_ct,
)
from napari_pancreas_seg._napari.layers.reader import read_layer
from napari_pancreas_seg._napari.layers.writer import write_mask
from napari_pancreas_seg._napari.run.model_mask import ModelMask
from napari_pancreas_seg._napari.run.run import SegmentationRun
from napari_pancreas_seg._napari.run.threshold import Rethreshold
from napari_pancreas_seg._napari.run.worker import fingerprint
from napari_pancreas_seg._napari.settings import Settings
from napari_pancreas_seg._napari.watch import MaskWatch
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.process.client import NetworkProcess
from napari_pancreas_seg.inference.result import Options, Segmentation
from napari_pancreas_seg.io.suffixes import DICOM, VOLUME, suffix_of

__all__ = ["Session", "existing_session", "session_of"]

logger = logging.getLogger(__name__)

_SESSIONS: weakref.WeakKeyDictionary[ViewerModel, Session] = weakref.WeakKeyDictionary()


def session_of(viewer: ViewerModel) -> Session:
    """Find the session of a viewer, or open one."""
    viewer = getattr(viewer, "__wrapped__", viewer)
    if viewer not in _SESSIONS:
        _SESSIONS[viewer] = Session(viewer)
    return _SESSIONS[viewer]


def existing_session(viewer: ViewerModel | None) -> Session | None:
    """Find the session of a viewer without opening one."""
    return None if viewer is None else _SESSIONS.get(getattr(viewer, "__wrapped__", viewer))


class Session(QObject):
    """The state of this plugin in one viewer.

    Parameters
    ----------
    viewer : ViewerModel
        The viewer; only a weak reference is kept.

    Attributes
    ----------
    network : NetworkProcess
        The process in which the network runs, warm between runs.
    masks : mapping of Labels to ModelMask
        What the model wrote into which layer.
    maps : MapLayers
        Probability and attention, and the layers that show them.
    run : SegmentationRun or None
        The run that is under way, or the last one.
    settings : Settings
        What the panels remember from one session to the next.
    devices : list of dict
        ``id`` and ``name`` of what the network can run on, once its process has told.
    why_no_gpu : str
        A sentence, if there is none.
    rethreshold : Rethreshold
        Makes masks anew from their probability.
    autosave : Autosave
        Keeps corrections that were not exported.
    corrector : Corrector
        Corrects the mask that is chosen.
    review : Review
        What is in each slice of that mask, and which slices were reviewed.
    improvement : Improvement
        The user's own cases, and the model that learns from them.

    Notes
    -----
    Signals, all in the GUI thread: ``run_started``, ``run_changed``, ``run_finished``;
    ``ct_chosen`` and ``mask_chosen`` when `ct` or `mask` is another layer than before;
    ``mask_changed(layer)`` soon after the voxels of a mask have changed, whoever changed
    them: a stroke, undo, a run, a threshold, a script that refreshes the layer.
    """

    run_started = Signal()
    run_changed = Signal()
    run_finished = Signal()
    ct_chosen = Signal()
    mask_chosen = Signal()
    mask_changed = Signal(object)
    devices_changed = Signal()

    def __init__(self, viewer: ViewerModel) -> None:
        super().__init__()
        self.network = NetworkProcess()
        self.background = Background(self)
        # Of its own: a cold network takes long, and opening a CT must not wait for it.
        self._warming = Background(self, at_once=1)
        self.masks: weakref.WeakKeyDictionary[Layer, ModelMask] = weakref.WeakKeyDictionary()
        self.run: SegmentationRun | None = None
        self.warm_up_allowed = True
        self.settings = Settings(parent=self)
        self.maps = MapLayers(viewer, self.settings)
        self._viewer = weakref.ref(viewer)
        self._ct: weakref.ref[Image] | None = None
        self._mask: weakref.ref[Labels] | None = None
        self._warm: tuple[Any, ...] | None = None
        self.devices: list[dict[str, str]] = []
        self.why_no_gpu = ""
        self.rethreshold = Rethreshold(self)
        self._foreign: weakref.WeakKeyDictionary[Layer, GridReference] = weakref.WeakKeyDictionary()
        self._seen_cts: set[str] = set()
        self._watch = MaskWatch(viewer, self)
        self._watch.changed.connect(self.mask_changed)
        self.corrector = Corrector(self)
        self.review = Review(self)
        self.improvement = Improvement(self)
        self.autosave = Autosave(self)
        self._watch.found.connect(self.autosave.watch)
        for layer in viewer.layers:
            self.autosave.watch(layer)
        self.closing: Closing | None = None
        window = getattr(viewer, "window", None)
        if window is not None:
            # napari has no public signal for a window that closes.
            window._qt_window.destroyed.connect(self.close)
            self.closing = Closing(self, window._qt_window)

    @property
    def viewer(self) -> ViewerModel | None:
        """The viewer, None once it is gone."""
        return self._viewer()

    @property
    def running(self) -> bool:
        """Whether a run is under way."""
        return self.run is not None and self.run.running

    def close(self) -> None:
        """Stop what is under way and end the network's process."""
        if self.run is not None:
            self.run.cancel()
        self.improvement.close()
        self.network.close()
        self.autosave.close()
        self.settings.save()

    def guard_window(self) -> None:
        """See to it that the window asks before it closes, whatever was installed since."""
        if self.closing is not None:
            self.closing.install()

    # -- what the person works on

    @property
    def ct(self) -> Image | None:
        """The CT that is chosen in the dock."""
        return None if self._ct is None else self._ct()

    @ct.setter
    def ct(self, layer: Image | None) -> None:
        if layer is not self.ct:
            self._ct = None if layer is None else weakref.ref(layer)
            self.ct_chosen.emit()

    @property
    def mask(self) -> Labels | None:
        """The mask that is chosen in the dock: what corrections, measuring and export act on."""
        return None if self._mask is None else self._mask()

    @mask.setter
    def mask(self, layer: Labels | None) -> None:
        if layer is not self.mask:
            self._mask = None if layer is None else weakref.ref(layer)
            self.mask_chosen.emit()

    @property
    def reference(self) -> GridReference | None:
        """The grid of the CT that is chosen."""
        return None if self.ct is None else self.placement(self.ct).reference

    # -- CTs

    def placement(self, layer: Image) -> Placement:
        """Find out how a CT lies in its layer; the same CT keeps the same id."""
        placement = placement_of(layer, self._foreign.get(layer))
        if reference_of(layer) is None:
            self._foreign[layer] = placement.reference
        self._seen_cts.add(placement.reference.id)
        return placement

    def ct_of(self, layer: Labels) -> GridReference | None:
        """Find the CT that a mask belongs to.

        The one it was made on, even if that was removed since; for a mask that was opened or
        drawn the chosen CT if it lies on that, else the only one that it lies on.

        Returns
        -------
        GridReference or None
            None if no such CT is known.
        """
        own, chosen = reference_of(layer), self.reference
        layers = [] if self.viewer is None else list(self.viewer.layers)
        known = [chosen, *map(reference_of, layers)]
        cts = {one.id: one for one in known[::-1] if one is not None and one.kind == "ct"}
        if own is not None and own.id in cts:
            return cts[own.id]
        if own is not None and (layer in self.masks or own.id in self._seen_cts):
            return own
        fitting = [one for one in cts.values() if lies_on(layer, one)]
        if chosen in fitting:
            return chosen
        return fitting[0] if len(fitting) == 1 else None

    def open_file(self, path: str | Path) -> None:
        """Read a CT, a mask or a map in a thread and add it to the viewer."""
        cts = [] if self.viewer is None else placements(self.viewer.layers)
        self._open(lambda: read_layer(path, cts))

    def _open(self, read: Callable[[], tuple[LayerData, tuple[str, ...]]]) -> None:
        def make() -> tuple[Layer, tuple[str, ...]]:
            # The layer is made here, too: the first one imports SciPy, pandas and more.
            data, notes = read()
            return Layer.create(*data), notes

        self.background.submit(make, self._add_opened)

    def _add_opened(self, opened: tuple[Layer, tuple[str, ...]]) -> None:
        layer, notes = opened
        if self.viewer is None:
            return
        if isinstance(layer, Labels) and any(
            isinstance(other, Labels) and other.data.shape == layer.data.shape
            for other in self.viewer.layers
        ):
            layer.colormap = other_label_colors()
        self.viewer.add_layer(layer)
        for note in notes:
            show_info(f"{layer.name}: {note}")

    def edits_of(self, layer: Layer | None) -> int:
        """Count the changes of a mask; counted at once, before `mask_changed` tells of them."""
        return 0 if layer is None else self._watch.edits_of(layer)

    def tell_edits(self) -> None:
        """Emit `mask_changed` for strokes of this very moment: the window may be closing."""
        if isalive(self._watch):
            self._watch.tell()

    # -- runs

    def warm_up(
        self, layer: Image, model: str | Path = "default", options: Options | None = None
    ) -> None:
        """Make ready in the background for a run on a CT, so that it starts at once.

        The process starts, loads the model, is sent the CT and compiles for its slices; then
        it is asked what devices there are. What goes wrong is told by the run.
        """
        placement = self.placement(layer)
        options = replace(options or Options(), first_slice=0)
        wanted = (str(model), options.device, placement.reference.id, self.network.pid)
        if not self.warm_up_allowed or self.running or self._warm == wanted:
            return
        data, reference, network = layer.data, placement.reference, self.network

        def work() -> tuple[list[dict[str, str]], str] | None:
            if self._warm != wanted:
                return None  # another CT or model was chosen while this one waited
            try:
                volume = volume_of(data, reference) if isinstance(data, np.ndarray) else None
                key = "" if volume is None else fingerprint(reference, volume)
                network.warm_up(model, options, volume, key)
                return network.devices()
            except PancreasSegError:
                logger.debug("The network could not be made ready", exc_info=True)
                return None

        def ready(found: tuple[list[dict[str, str]], str] | None) -> None:
            if self._warm == wanted:
                self._warm = (*wanted[:3], network.pid)
            if found is not None:
                self.devices, self.why_no_gpu = found
                self.devices_changed.emit()

        self._warm = wanted
        self._warming.submit(work, ready)

    def start(
        self, layer: Image, model: str | Path = "default", options: Options | None = None
    ) -> SegmentationRun:
        """Segment a CT.

        Parameters
        ----------
        layer : Image
            The CT.
        model : str or Path
            Name of a model or path of a bundle.
        options : Options, optional
            How to segment.

        Raises
        ------
        PancreasSegError
            If a run is under way, or the layer cannot be a CT.
        """
        viewer = self.viewer
        if self.corrector.uses_network:
            raise PancreasSegError("A slice is being run again; wait a moment.")
        if self.running or viewer is None:
            raise PancreasSegError("A run is under way already; cancel it or wait for its end.")
        if self.run is not None:
            self.run.keep()
        if refusal := why_not_ct(layer):
            raise PancreasSegError(refusal)
        placement = self.placement(layer)
        seen = slice_on_screen(viewer, layer, placement.reference)
        options = replace(options or Options(), first_slice=seen)
        run = SegmentationRun(self, viewer, layer, placement, model, options)
        run.changed.connect(self.run_changed)
        run.finished.connect(self.run_finished)
        self.run = run
        run.start()
        self.run_started.emit()
        return run

    def result_layer(self, reference: GridReference) -> Labels | None:
        """Find the newest labels layer in the viewer that a run on this CT has filled."""
        layers = [] if self.viewer is None else list(self.viewer.layers)
        for layer in reversed(layers):
            mask = self.masks.get(layer)
            if mask is not None and mask.reference.id == reference.id and _fits(layer, mask):
                return layer
        return None

    # -- masks

    def mask_layers(self, reference: GridReference) -> list[Labels]:
        """List the labels layers that can be a mask of a CT: those of its shape, on its grid."""
        layers = [] if self.viewer is None else list(self.viewer.layers)
        return [
            layer
            for layer in layers
            if isinstance(layer, Labels)
            and not layer.multiscale
            and not self.corrector.is_outline(layer)
            and lies_on(layer, reference)
        ]

    def export(
        self,
        layer: Layer,
        path: str | Path,
        *,
        overwrite: bool = False,
        then: Callable[[Path], None] | None = None,
        failed: Callable[[], None] | None = None,
    ) -> None:
        """Write a mask onto its CT's grid, in a thread, with its provenance beside it.

        Parameters
        ----------
        layer : Labels
            The mask.
        path : str or Path
            The file; its ending says the format.
        overwrite : bool
            Whether an existing file may be replaced.
        then, failed : callable, optional
            Called in the GUI thread at the end.

        Raises
        ------
        PancreasSegError
            If the layer belongs to no grid.
        """
        layers = [] if self.viewer is None else list(self.viewer.layers)
        reference = find_reference(layer, layers)
        data, result, ct = layer.data, self._result(layer), _ct_data(layers, reference)

        def write() -> tuple[Path, str]:
            held = np.array(data)  # it may be painted on meanwhile
            mask, digest = mask_of(held), digest_of(held)
            shown = display_view(mask, reference.orientation)
            written = write_mask(shown, reference, path, result=result, ct=ct, overwrite=overwrite)
            return written, digest

        def written(outcome: tuple[Path, str]) -> None:
            if _holds_voxels(outcome[0]):
                self.autosave.exported(layer, outcome[1])
            if then is not None:
                then(outcome[0])

        self.background.submit(write, written, failed)

    def note_written(self, data: Any, path: str | Path) -> None:
        """Hear from a writer that the data of a layer, as they are now, were written to a file."""
        for layer in [] if self.viewer is None else list(self.viewer.layers):
            if isinstance(layer, Labels) and layer.data is data and _holds_voxels(path):
                self.autosave.exported(layer, digest_of(data))

    def ct_data(self, reference: GridReference) -> npt.NDArray[Any] | None:
        """Data of a CT in its layer's order, if it is in the viewer and in memory."""
        layers = [] if self.viewer is None else list(self.viewer.layers)
        data = _ct_data(layers, reference)
        if data is None and self.ct is not None:
            chosen = self.reference
            data = self.ct.data if chosen is not None and chosen.id == reference.id else None
        return data if isinstance(data, np.ndarray) else None

    def _result(self, layer: Layer) -> Segmentation | None:
        """Find the run that filled a mask, or the one that it is a duplicate of."""
        origin: Layer | None = layer
        while origin is not None and origin not in self.masks:
            origin = original_of(origin)
        mask = None if origin is None else self.masks[origin]
        if mask is None or mask.result is None:
            return None
        # As it is with the threshold of now: what differs from it is a person's.
        return replace(mask.result, mask=mask.copy)

    def what_made(self, data: Any) -> tuple[Segmentation | None, Any]:
        """Find what the model found where a layer's data are now, and its CT's data.

        For a writer, which is given the data of a layer and not the layer.
        """
        layers = [] if self.viewer is None else list(self.viewer.layers)
        for layer in layers:
            mask = self.masks.get(layer)
            if mask is not None and layer.data is data:
                return self._result(layer), _ct_data(layers, mask.reference)
        return None, None


def _ct_data(layers: list[Layer], reference: GridReference) -> Any:
    """Data of the CT that a mask belongs to, None if that has been removed."""
    for layer in layers:
        known = reference_of(layer)
        if known is not None and known.id == reference.id and known.kind == "ct":
            return layer.data
    return None


def _holds_voxels(path: str | Path) -> bool:
    """Whether a mask can be had back from a file: not from a surface, nor from a table."""
    return suffix_of(Path(path)).lower() in (*VOLUME, *DICOM)


def _fits(layer: Layer, mask: ModelMask) -> bool:
    data: Any = layer.data
    return (
        isinstance(data, np.ndarray)
        and data.dtype == np.uint8
        and data.shape == mask.reference.layer_shape
    )
