"""The network of a viewer: its process, what it can run on, and who uses it just now."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QObject, Signal

from napari_pancreas_seg._napari.background import Background
from napari_pancreas_seg._napari.layers.bridge import volume_of
from napari_pancreas_seg._napari.layers.placement import GridReference
from napari_pancreas_seg._napari.run.worker import fingerprint
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.process.client import NetworkProcess
from napari_pancreas_seg.inference.result import Options

__all__ = ["Network"]

logger = logging.getLogger(__name__)

Devices = tuple[list[dict[str, str]], str]


class Network(QObject):
    """Keeps the network's process warm, and lends it to one at a time.

    ``devices_changed``: `devices` and `why_no_gpu` are known; ``freed``: nobody uses it any more.
    """

    devices_changed = Signal()
    freed = Signal()

    def __init__(self, process: NetworkProcess, background: Background) -> None:
        super().__init__()
        self.process = process
        self.in_use = ""
        """A sentence for the user; empty while nobody uses the network."""
        self.devices: list[dict[str, str]] = []
        self.why_no_gpu = ""
        self.warm_up_allowed = True
        self._background = background
        self._warm: tuple[Any, ...] | None = None
        self._warming = False
        self._waiting: tuple[Any, ...] | None = None

    def claim(self, why: str) -> None:
        """Take the network; refused with the sentence of whoever uses it."""
        if self.in_use:
            raise PancreasSegError(self.in_use)
        self.in_use = why

    def release(self) -> None:
        """Give the network back."""
        self.in_use = ""
        self.freed.emit()

    def warm_up(
        self,
        data: Any,
        reference: GridReference,
        model: str | Path = "default",
        options: Options | None = None,
    ) -> None:
        """Make ready in the background for a run on a CT, so that it starts at once.

        The process starts, loads the model, is sent the CT and compiles for its slices; then
        it is asked what devices there are. What goes wrong is told by the run.
        """
        options = replace(options or Options(), first_slice=0)
        wanted = (str(model), options.device, reference.id, self.process.pid)
        if not self.warm_up_allowed or self.in_use or self._warm == wanted:
            return
        self._warm = wanted
        self._waiting = (wanted, data, reference, model, options)
        self._warm_next()

    def close(self) -> None:
        """End the process."""
        self.process.close()

    def _warm_next(self) -> None:
        """Warm for what was asked for last, one at a time: a cold network takes long."""
        if self._warming or self._waiting is None:
            return
        (wanted, data, reference, model, options), self._waiting = self._waiting, None
        process = self.process

        def work() -> Devices | None:
            try:
                volume = volume_of(data, reference) if isinstance(data, np.ndarray) else None
                key = "" if volume is None else fingerprint(reference, volume)
                process.warm_up(model, options, volume, key)
                return process.devices()
            except PancreasSegError:
                logger.debug("The network could not be made ready", exc_info=True)
                return None

        def ready(found: Devices | None) -> None:
            if self._warm == wanted:
                self._warm = (*wanted[:3], process.pid)
            if found is not None:
                self.devices, self.why_no_gpu = found
                self.devices_changed.emit()
            done()

        def done() -> None:
            self._warming = False
            self._warm_next()

        self._warming = True
        self._background.submit(work, ready, done)
