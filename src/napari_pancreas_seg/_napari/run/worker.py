"""The thread that supervises the network's process, and the steps that it reports."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import numpy.typing as npt
from napari.layers import Image, Labels, Layer
from napari.qt.threading import GeneratorWorkerSignals, WorkerBase

from napari_pancreas_seg._napari.layers.bridge import labels_layer_data, volume_of
from napari_pancreas_seg._napari.layers.maps import (
    GATES_AT_FIRST,
    PROBABILITY,
    MapAppearance,
    MapsFound,
    empty_maps,
    make_layer,
)
from napari_pancreas_seg._napari.layers.placement import GridReference, Placement, display_view
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.process.client import NetworkProcess
from napari_pancreas_seg.inference.result import (
    FoundSlices,
    Options,
    Progress,
    ScalarMap,
    Segmentation,
)
from napari_pancreas_seg.volume import CTVolume

__all__ = [
    "Job",
    "Outcome",
    "Prepared",
    "SegmentationWorker",
    "Step",
    "fingerprint",
    "steps",
]

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

SLICES_AT_ONCE = 8
"""Slices that the GUI thread takes in between two looks at its events."""


@dataclass(frozen=True, eq=False)
class Job:
    """What a run needs to know, and nothing of Qt.

    Parameters
    ----------
    network : NetworkProcess
        Where the network runs.
    name : str
        Name of the case, for new layers.
    layer_data : array_like
        Data of the CT's layer, lazy or not.
    placement : Placement
        How the CT lies in its layer.
    model : str or Path
        The model.
    options : Options
        How to segment.
    looks : MapAppearance
        How probability and attention are shown.
    labels : ndarray, optional
        Data of the labels layer that holds the last result for this CT, in its own order.
    labels_model : ndarray, shape (Z, Y, X), optional
        What the model wrote into it.
    """

    network: NetworkProcess
    name: str
    layer_data: Any
    placement: Placement
    model: str | Path
    options: Options
    looks: MapAppearance
    labels: Array | None = None
    labels_model: Array | None = None


@dataclass(frozen=True, eq=False)
class Prepared:
    """The CT is read: the first step of a run.

    Parameters
    ----------
    labels : Labels or None
        An empty layer for the mask; None if the last result's layer can take it, because
        nobody has edited that.
    notes : tuple of str
        Sentences the user should read.
    """

    labels: Labels | None
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Outcome:
    """A finished run.

    Parameters
    ----------
    result : Segmentation
        What was found.
    volume_ml : float
        Volume of the model's mask.
    slices : int
        Number of slices with pancreas.
    by_class : dict of str to float
        Volume of each class in mL, if the model knows several.
    """

    result: Segmentation
    volume_ml: float
    slices: int
    by_class: dict[str, float] = field(default_factory=dict)


Step = Prepared | Progress | MapsFound


class SegmentationWorker(WorkerBase):
    """Walks through the steps of a run in a thread; `quit` stops it at once.

    napari's own generator worker swallows a RuntimeError without a signal, leaves the
    generator open and notices `quit` at the next step only.
    """

    def __init__(
        self, function: Callable[..., Generator[Any, None, Any]], *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(SignalsClass=GeneratorWorkerSignals)
        self._steps = function(*args, cancelled=lambda: self.abort_requested, **kwargs)
        self._taken = Event()

    def work(self) -> Outcome | None:
        """Emit every step, once the last one was `taken`; return the outcome, None if cancelled."""
        try:
            while not self.abort_requested:
                try:
                    step = next(self._steps)
                except StopIteration as stop:
                    return stop.value
                self._taken.clear()
                self.yielded.emit(step)
                while not (self._taken.wait(0.05) or self.abort_requested):
                    pass
            self.aborted.emit()
            return None
        except PancreasSegError:
            raise
        except Exception as error:
            logger.exception("The segmentation failed")
            raise PancreasSegError(
                f"The segmentation failed: {type(error).__name__}: {error}"
            ) from error
        finally:
            self._steps.close()

    def taken(self) -> None:
        """Ask for the next step: steps that pile up would be handled in one go, and stall."""
        self._taken.set()


def steps(job: Job, *, cancelled: Callable[[], bool]) -> Generator[Step, None, Outcome | None]:
    """Run a job step by step.

    Layers are made here, because their first one imports pandas, SciPy and more.
    """
    volume = volume_of(job.layer_data, job.placement.reference)
    key = fingerprint(job.placement.reference, volume)
    yield Prepared(_empty_labels(job) if _edited(job) else None, volume.notes)
    found = np.zeros(volume.grid.shape, dtype=np.uint8)
    maps: dict[str, ScalarMap] = {}
    run = job.network.iter_segment(volume, job.model, job.options, cancelled=cancelled, key=key)
    try:
        while True:
            try:
                step = next(run)
            except StopIteration as stop:
                result = stop.value
                break
            yield step
            if step.slices is not None:
                found[step.slices.z] = step.slices.mask
                if not maps and step.slices.maps:
                    maps = empty_maps(step.slices)
                    shown = [word for word in maps if word in job.looks.shown]
                    yield MapsFound(maps, _map_layers(job, maps, shown))
    finally:
        run.close()
    if result is None:
        return None
    yield from _corrections(found, result.mask)
    # What nobody sees yet is added last: each layer costs the window some time.
    finest = [f"attention {number}" for number in range(1, GATES_AT_FIRST + 1)]
    hidden = [word for word in (PROBABILITY, *finest) if word not in job.looks.shown]
    for word in hidden:
        if word in maps:
            yield MapsFound({}, _map_layers(job, maps, [word]))
    slices = sum(bool(plane.any()) for plane in result.mask)
    by_class = result.volumes_ml if result.probabilities else {}
    return Outcome(result, result.volume_ml, slices, by_class)


def fingerprint(reference: GridReference, volume: CTVolume) -> str:
    """Name a CT with its voxels; some 20 ms for 512×512×400, where a hash takes 300."""
    flat = volume.hu.reshape(-1).view(np.uint8)
    whole = flat[: len(flat) // 8 * 8].view(np.uint64)
    total = int(np.add.reduce(whole, dtype=np.uint64))
    sample = zlib.crc32(np.ascontiguousarray(whole[::61]).data)
    return f"{reference.id} {volume.hu.dtype} {volume.hu.shape} {total:x} {sample:x}"


def _edited(job: Job) -> bool:
    """Whether the last result's layer is no place for this one: none there, or edited."""
    if job.labels is None or job.labels_model is None:
        return True
    shown = display_view(job.labels, job.placement.reference.orientation)
    return any(not np.array_equal(a, b) for a, b in zip(shown, job.labels_model, strict=True))


def _empty_labels(job: Job) -> Labels:
    data = np.zeros(job.placement.reference.layer_shape, dtype=np.uint8)
    return Layer.create(*labels_layer_data(data, job.placement, f"{job.name} pancreas"))


def _corrections(found: Array, mask: Array) -> Iterator[Progress]:
    """Yield what post-processing has changed."""
    depth = len(mask)
    changed = [z for z in range(depth) if not np.array_equal(found[z], mask[z])]
    for start in range(0, len(changed), SLICES_AT_ONCE):
        z = np.array(changed[start : start + SLICES_AT_ONCE])
        yield Progress("post-processing", depth, depth, FoundSlices(z, mask[z]))


def _map_layers(job: Job, maps: dict[str, ScalarMap], words: Sequence[str]) -> dict[str, Image]:
    """Make layers of some maps; the finest gate comes last, so that it lies on top."""
    return {
        word: make_layer(maps[word], word, job.placement, job.name, job.looks)
        for word in sorted(words, reverse=True)
    }
