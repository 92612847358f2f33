"""What belongs to a viewer and outlives a closed dock: its network, its masks, its run."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer
from napari.utils.notifications import show_info
from qtpy.QtCore import QObject, Signal

from napari_pancreas_seg._napari.background import Background
from napari_pancreas_seg._napari.layers import LayerData, mask_of
from napari_pancreas_seg._napari.model_mask import ModelMask
from napari_pancreas_seg._napari.placement import (
    METADATA_KEY,
    GridReference,
    Placement,
    display_view,
    find_reference,
    placement_of,
    placements,
    reference_of,
    slice_on_screen,
    why_not_ct,
)
from napari_pancreas_seg._napari.reader import read_layer
from napari_pancreas_seg._napari.run import SegmentationRun
from napari_pancreas_seg._napari.writer import write_mask
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.process import NetworkProcess
from napari_pancreas_seg.inference.result import Options, Segmentation

__all__ = ["Session", "session_of"]

logger = logging.getLogger(__name__)

_SESSIONS: weakref.WeakKeyDictionary[ViewerModel, Session] = weakref.WeakKeyDictionary()


def session_of(viewer: ViewerModel) -> Session:
    """Find the session of a viewer, or open one."""
    viewer = getattr(viewer, "__wrapped__", viewer)
    if viewer not in _SESSIONS:
        _SESSIONS[viewer] = Session(viewer)
    return _SESSIONS[viewer]


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
    maps : mapping of Image to str
        Layers of probability and attention that were added, and what they show.
    run : SegmentationRun or None
        The run that is under way, or the last one.
    """

    run_started = Signal()
    run_changed = Signal()
    run_finished = Signal()

    def __init__(self, viewer: ViewerModel) -> None:
        super().__init__()
        self.network = NetworkProcess()
        self.background = Background(self)
        self.masks: weakref.WeakKeyDictionary[Layer, ModelMask] = weakref.WeakKeyDictionary()
        self.maps: weakref.WeakKeyDictionary[Layer, str] = weakref.WeakKeyDictionary()
        self.run: SegmentationRun | None = None
        self.warm_up_allowed = True
        self._viewer = weakref.ref(viewer)
        self._foreign: weakref.WeakKeyDictionary[Layer, GridReference] = weakref.WeakKeyDictionary()
        window = getattr(viewer, "window", None)
        if window is not None:
            # napari has no public signal for a window that closes.
            window._qt_window.destroyed.connect(self.close)

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
        self.network.close()

    # -- CTs

    def placement(self, layer: Image) -> Placement:
        """Find out how a CT lies in its layer; the same CT keeps the same id."""
        placement = placement_of(layer, self._foreign.get(layer))
        if reference_of(layer) is None:
            self._foreign[layer] = placement.reference
        return placement

    def open_file(self, path: str | Path) -> None:
        """Read a CT, a mask or a map in a thread and add it to the viewer."""
        cts = [] if self.viewer is None else placements(self.viewer.layers)
        self._open(lambda: read_layer(path, cts))

    def open_sample(self, make: Callable[[], list[LayerData]]) -> None:
        """Make or download a sample in a thread and add it to the viewer."""
        self._open(lambda: (make()[0], ()))

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
        self.viewer.add_layer(layer)
        for note in notes:
            show_info(f"{layer.name}: {note}")

    # -- runs

    def warm_up(self, model: str | Path = "default") -> None:
        """Start the network's process in the background, so that a run starts at once."""
        if self.warm_up_allowed and not self.running and self.network.pid is None:
            self.background.submit(lambda: self.network.warm_up(model))

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
        if self.running or viewer is None:
            raise PancreasSegError("A run is under way already; cancel it or wait for its end.")
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

    def map_layers(self, reference: GridReference) -> dict[str, Image]:
        """Find the layers of probability and attention of a CT, by what they show."""
        layers = [] if self.viewer is None else list(self.viewer.layers)
        return {
            self.maps[layer]: layer
            for layer in layers
            if layer in self.maps and layer.metadata[METADATA_KEY].id == reference.id
        }

    # -- masks

    def mask_layers(self, reference: GridReference) -> list[Labels]:
        """List the labels layers that can be a mask of a CT: those of its shape."""
        layers = [] if self.viewer is None else list(self.viewer.layers)
        return [
            layer
            for layer in layers
            if isinstance(layer, Labels)
            and not layer.multiscale
            and tuple(layer.data.shape) == reference.layer_shape
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
            A ``.nii.gz`` or ``.nii`` file.
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
        data, result, ct = layer.data, self._result(layer, reference), _ct_data(layers, reference)

        def write() -> Path:
            mask = display_view(mask_of(data), reference.orientation)
            return write_mask(mask, reference, path, result=result, ct=ct, overwrite=overwrite)

        self.background.submit(write, then, failed)

    def _result(self, layer: Layer, reference: GridReference) -> Segmentation | None:
        """Find what a mask came from: by its layer, else by its CT."""
        known = self.masks.get(layer)
        if known is not None and known.result is not None:
            return known.result
        for mask in self.masks.values():
            if mask.reference.id == reference.id and mask.result is not None:
                return mask.result
        return None


def _ct_data(layers: list[Layer], reference: GridReference) -> Any:
    """Data of the CT that a mask belongs to, None if that has been removed."""
    for layer in layers:
        known = reference_of(layer)
        if known is not None and known.id == reference.id and known.kind == "ct":
            return layer.data
    return None


def _fits(layer: Layer, mask: ModelMask) -> bool:
    data: Any = layer.data
    return (
        isinstance(data, np.ndarray)
        and data.dtype == np.uint8
        and data.shape == mask.reference.layer_shape
    )
