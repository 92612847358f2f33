"""The runs of a viewer, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from napari.layers import Image, Labels, Layer
from qtpy.QtCore import QObject, Signal

from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.background import Background
from napari_pancreas_seg._napari.layers.maps import MapLayers
from napari_pancreas_seg._napari.layers.placement import slice_on_screen
from napari_pancreas_seg._napari.run.network import Network
from napari_pancreas_seg._napari.run.run import SegmentationRun
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg._napari.settings import Settings
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import Options


class Runs(QObject):
    """Starts runs and keeps the last one; its signals are those of whichever run it is."""

    started = Signal()
    changed = Signal()
    finished = Signal()

    def __init__(
        self,
        session: Session,
        network: Network,
        maps: MapLayers,
        settings: Settings,
        background: Background,
    ) -> None:
        super().__init__()
        self.latest: SegmentationRun | None = None
        self.how: Callable[[], tuple[str | Path, Options]] = self.remembered
        """Model and options for what is run without a click on Run; the dock knows better."""
        self.threshold: float | None = None
        """The one that is set; None for the model's own. Not for the next session's models."""
        self._session = session
        self._network = network
        self._maps = maps
        self._settings = settings
        self._background = background
        session.mask_changed.connect(self._on_edit)

    @property
    def running(self) -> bool:
        return self.latest is not None and self.latest.running

    def unsettled(self, mask: Layer | None = None) -> str:
        """Say why a mask, or any, may not be written: a run is still at it; "" if it may."""
        run = self.latest
        if run is None or (mask is not None and run.labels is not mask):
            return ""
        if run.running:
            return f"'{run.name}' is being segmented: wait, or press Cancel."
        return "Keep or discard what the run has found first." if run.can_discard else ""

    def start(
        self, layer: Image, model: str | Path = "default", options: Options | None = None
    ) -> SegmentationRun:
        """Segment a CT; refused while the network is in use, and for what cannot be a CT."""
        session, viewer = self._session, self._session.viewer
        if viewer is None:
            raise PancreasSegError("The window has been closed.")
        reference = session.placement(layer).reference
        self._network.claim("A run is under way: cancel it or wait for its end.")
        try:
            if self.latest is not None:
                self.latest.keep(put_back=False)
            seen = slice_on_screen(viewer, layer, reference)
            options = replace(options or Options(), first_slice=seen)
            process, background = self._network.process, self._background
            run = SegmentationRun(session, self._maps, process, background, layer, model, options)
        except BaseException:  # or the network would be taken for good
            self._network.release()
            raise
        run.changed.connect(self.changed)
        run.finished.connect(self._network.release)
        run.finished.connect(self.finished)
        self.latest = run
        run.start()
        self.started.emit()
        return run

    def _on_edit(self, layer: Labels) -> None:
        """Fill the slices that a run left alone for strokes, once those are undone."""
        mask, (_, undone) = self._session.masks.get(layer), compat.steps_of_undo(layer)
        if mask is None or not mask.fits(layer) or not mask.catch_up(layer, undone=undone > 0):
            return
        compat.forget_redo(layer)  # undone again, those strokes would leave holes
        layer.refresh(thumbnail=False, highlight=False, extent=False)
        layer.events.data(value=layer.data)

    def remembered(self) -> tuple[str, Options]:
        settings = self._settings
        options = Options(
            threshold=self.threshold,
            device=settings.get("model/device", "auto"),
            postprocess=settings.get("run/postprocess", True),
            every_slice=settings.get("run/every slice", False),
        )
        return settings.get("model/name", "default"), options
