"""The network of a viewer: its process, what it can run on, and who uses it just now."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.compat import isalive
from qtpy.QtCore import QObject, Signal

from napari_pancreas_seg._napari.background import Background, Newest
from napari_pancreas_seg._napari.layers.bridge import volume_of
from napari_pancreas_seg._napari.layers.placement import GridReference
from napari_pancreas_seg._napari.layers.reader import get_ready
from napari_pancreas_seg._napari.run.worker import fingerprint
from napari_pancreas_seg._napari.settings import follow_preference, preference
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.process.client import NetworkProcess
from napari_pancreas_seg.inference.result import Options
from napari_pancreas_seg.volume import CTVolume

logger = logging.getLogger(__name__)

BLANK_SHAPE = (512, 512, 40)
BLANK_SPACING = (0.8, 0.8, 2.5)
"""Of the CT that stands in for the first one: (x, y, z), in mm."""

Devices = tuple[list[dict[str, str]], str]


class Network(QObject):
    """Keeps the network's process warm, and lends it to one at a time.

    ``devices_changed``: `devices` and `why_no_gpu` are known; ``freed``: nobody uses it any more;
    ``wished``: whether it is to be kept warm is another wish than before.
    """

    devices_changed = Signal()
    freed = Signal()
    wished = Signal()

    def __init__(self, process: NetworkProcess, background: Background) -> None:
        super().__init__()
        self.process = process
        self.in_use = ""
        """A sentence for the user; empty while nobody uses the network."""
        self.reserved = False
        """Whether the network is kept free for a run that may come any moment."""
        self.devices: list[dict[str, str]] = []
        self.why_no_gpu = ""
        self.warm_up_allowed = True
        self._background = background
        self._newest = Newest(background)  # a cold network takes long
        self._warm: tuple[Any, ...] | None = None

    def claim(self, why: str) -> None:
        if self.in_use:
            raise PancreasSegError(self.in_use)
        self.in_use = why

    def release(self) -> None:
        self.in_use = ""
        self.freed.emit()

    def reserve(self, reserved: bool) -> None:
        """Keep the network free for a run that may come, or allow again what can wait."""
        self.reserved = reserved
        if not reserved:
            self.freed.emit()

    def warm_up(
        self,
        data: Any,
        reference: GridReference,
        model: str | Path = "default",
        options: Options | None = None,
    ) -> None:
        """Start the process, send it a CT and compile for its slices; a run tells what fails."""

        def volume() -> tuple[CTVolume | None, str]:
            if not isinstance(data, np.ndarray):
                return None, ""
            volume = volume_of(data, reference)
            return volume, fingerprint(reference, volume)

        self._ask(volume, reference.id, model, options)

    def warm_up_blank(self, model: str | Path = "default", options: Options | None = None) -> None:
        """Make ready before there is a CT: on an empty one of the usual size."""
        affine = np.diag([*BLANK_SPACING, 1.0])

        def volume() -> tuple[CTVolume, str]:  # once it is known that this is wished
            self._background.submit(get_ready)
            return CTVolume.from_source_array(np.zeros(BLANK_SHAPE, np.int16), affine), ""

        self._ask(volume, "blank", model, options)

    def _ask(
        self,
        volume: Callable[[], tuple[CTVolume | None, str]],
        name: str,
        model: str | Path,
        options: Options | None,
    ) -> None:
        options = replace(options or Options(), first_slice=0)
        wanted = (str(model), options.device, name, self.process.pid)
        if not self.warm_up_allowed or self.in_use or self._warm == wanted:
            return
        self._warm, process = wanted, self.process

        def work() -> Devices | None:
            # Asked here: napari looks at every plugin's manifest for the first answer.
            if not preference("warm_up"):
                return None
            try:
                process.warm_up(model, options, *volume())
                return process.devices()
            except PancreasSegError:
                logger.debug("The network could not be made ready", exc_info=True)
                return None

        def ready(found: Devices | None) -> None:
            follow_preference("warm_up", self._on_wish)  # quick by now
            if self._warm == wanted:
                self._warm = (*wanted[:3], process.pid)
            if found is not None:
                self.devices, self.why_no_gpu = found
                self.devices_changed.emit()

        self._newest.ask(work, ready)

    def _on_wish(self, event: Any) -> None:
        if isalive(self):
            self._warm = None
            self.wished.emit()
