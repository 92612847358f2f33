"""The next case of a worklist, made ready while the one before it is corrected."""

from __future__ import annotations

import logging
from dataclasses import replace

from qtpy.QtCore import QObject, Signal

from napari_pancreas_seg._napari.background import Background
from napari_pancreas_seg._napari.layers.bridge import volume_of
from napari_pancreas_seg._napari.run.network import Network
from napari_pancreas_seg._napari.run.runs import Runs
from napari_pancreas_seg._napari.worklist.case import LoadedCase, read_case
from napari_pancreas_seg.cohort.worklist import WorklistCase
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import Segmentation, exhaust

logger = logging.getLogger(__name__)


class CaseAhead(QObject):
    """Reads the next case, and segments it if that is wanted, before one comes to it.

    A run, a slice that is run again and strokes come first: the network does one thing at a time.
    """

    changed = Signal()

    def __init__(self, network: Network, runs: Runs, background: Background) -> None:
        super().__init__()
        self.segments = False
        """Whether a case without a mask is segmented."""
        self._network = network
        self._runs = runs
        self._background = background
        self._waiting: LoadedCase | None = None
        self._segmenting: LoadedCase | None = None
        self._number = 0
        network.freed.connect(self._go_on)

    @property
    def state(self) -> str:
        if self._waiting is None:
            return ""
        return "segmented" if self._waiting.result is not None else "loaded"

    def drop(self) -> None:
        self._waiting = None
        self._number += 1

    def take(self, index: int) -> LoadedCase | None:
        """Hand over the case if it is this one of the worklist; another one is forgotten."""
        ready = self._waiting
        self.drop()
        return ready if ready is not None and ready.index == index else None

    def look(self, index: int, case: WorklistCase) -> None:
        """Read a case in the background; segment it, too, if that is wanted."""
        number = self._number

        def loaded(ready: LoadedCase | None) -> None:
            if ready is not None and number == self._number:
                self._waiting = ready
                self._segment(ready)
                self.changed.emit()

        # What is wrong with it is said when one comes to it.
        self._background.submit(lambda: _quietly(index, case), loaded)

    def _go_on(self) -> None:
        """Segment the case after all: it made way for a run, or for a slice."""
        if self._waiting is not None:
            self._segment(self._waiting)

    def _segment(self, case: LoadedCase) -> None:
        known = case.mask is not None or case.result is not None
        network, number = self._network, self._number

        def is_taken() -> bool:
            return bool(network.in_use) or network.reserved

        if not self.segments or known or is_taken() or self._segmenting is case:
            return
        self._segmenting = case
        model, options = self._runs.how()
        options = replace(options, first_slice=None)

        def gone() -> bool:
            return is_taken() or (number != self._number and self._waiting is not case)

        def segment() -> Segmentation | None:
            volume = volume_of(case.ct.data, case.reference)
            return exhaust(network.process.iter_segment(volume, model, options, cancelled=gone))

        def ended() -> None:
            if self._segmenting is case:
                self._segmenting = None

        def found(result: Segmentation | None) -> None:
            ended()
            if self._waiting is case:
                case.result = result
                self.changed.emit()

        self._background.submit(segment, found, ended)


def _quietly(index: int, case: WorklistCase) -> LoadedCase | None:
    try:
        return read_case(index, case)
    except PancreasSegError:
        logger.debug("A case cannot be read ahead", exc_info=True)
        return None
