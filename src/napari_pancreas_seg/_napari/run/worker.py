"""The thread that supervises the network's process, and the steps that it reports."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import numpy as np
from napari.layers import Image, Labels, Layer
from qtpy.QtCore import QCoreApplication, QObject, Signal

from napari_pancreas_seg._napari.layers.bridge import labels_layer_data, volume_of
from napari_pancreas_seg._napari.layers.maps import MapAppearance, empty_maps, make_layer
from napari_pancreas_seg._napari.layers.placement import GridReference, Placement
from napari_pancreas_seg._napari.run.earlier import EarlierMask, is_restricted
from napari_pancreas_seg.arrays import Array, Bytes
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.classes import Classes
from napari_pancreas_seg.inference.maps import best_gate
from napari_pancreas_seg.inference.process.client import NetworkProcess
from napari_pancreas_seg.inference.result import (
    FoundSlices,
    Options,
    Progress,
    ScalarMap,
    Segmentation,
)
from napari_pancreas_seg.volume import CTVolume

logger = logging.getLogger(__name__)

SLICES_AT_ONCE = 8
"""Slices that the GUI thread takes in between two looks at its events."""


class Job(NamedTuple):
    """Input of a run, without Qt."""

    process: NetworkProcess
    name: str
    layer_data: Any
    placement: Placement
    model: str | Path
    options: Options
    appearance: MapAppearance
    earlier: EarlierMask


class Prepared(NamedTuple):
    """The CT is read; `labels` is None if the last result's layer serves, which nobody has edited.

    A restricted run leaves `rest` (Z, Y, X) of that as it was: a copy of what is in `labels`.
    """

    labels: Labels | None
    rest: Bytes | None
    notes: tuple[str, ...]


class MapsFound(NamedTuple):
    """Maps of the CT that begin to fill, by what they show; NaN where nothing is computed yet."""

    maps: dict[str, ScalarMap]


class BestGate(NamedTuple):
    """The gate that tells most, and a layer of it."""

    word: str
    layer: Image


class Outcome(NamedTuple):
    """A finished run: the model's mask in mL and slices, mL by class if there are several."""

    result: Segmentation
    volume_ml: float
    slices: int
    largest: int | None
    """The slice with the largest area, None if nothing was found."""
    by_class: dict[str, float]


Step = Prepared | Progress | MapsFound | BestGate


class Worker(QObject):
    """Takes the steps of a run in a thread; stops soon after `cancel`."""

    stepped = Signal(object)

    cancelled = False

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job
        self._taken = Event()
        # Python waits for its threads, and when the program ends nobody takes a step any more.
        QCoreApplication.instance().aboutToQuit.connect(self.cancel)

    def work(self) -> Outcome | None:
        """Emit every step, once the last one was `taken`; return the outcome, None if cancelled."""
        run = steps(self._job, cancelled=lambda: self.cancelled)
        try:
            while not self.cancelled:
                try:
                    step = next(run)
                except StopIteration as stop:
                    return stop.value
                self._taken.clear()
                self.stepped.emit(step)
                while not (self._taken.wait(0.05) or self.cancelled):
                    pass
            return None
        except PancreasSegError:
            raise
        except Exception as error:
            logger.exception("The segmentation failed")
            raise PancreasSegError(
                f"The segmentation failed: {type(error).__name__}: {error}"
            ) from error
        finally:
            run.close()

    def taken(self) -> None:
        """Ask for the next step: steps that pile up would be handled in one go, and stall."""
        self._taken.set()

    def cancel(self) -> None:
        self.cancelled = True


def steps(job: Job, *, cancelled: Callable[[], bool]) -> Generator[Step, None, Outcome | None]:
    """Run a job step by step; layers are made here: the first one imports pandas and more."""
    volume = volume_of(job.layer_data, job.placement.reference)
    key = fingerprint(job.placement.reference, volume)
    labels, rest = _new_labels(job) if _needs_layer(job) else (None, None)
    yield Prepared(labels, rest, volume.notes)
    found = np.zeros(volume.grid.shape, dtype=np.uint8)
    maps: dict[str, ScalarMap] = {}
    best = ""
    run = job.process.iter_segment(volume, job.model, job.options, cancelled=cancelled, key=key)
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
                    yield MapsFound(maps)
                if maps and not best and step.slices.mask.any():
                    best = best_gate(maps, found, volume.grid, card_of(job.model))
                    if best:
                        yield BestGate(best, _layer(job, maps, best))
    finally:
        run.close()
    if result is None:
        return None
    yield from _corrections(found, result.mask)
    last = best_gate(maps, result.mask, volume.grid, result.model)
    if last and last != best:
        yield BestGate(last, _layer(job, maps, last))
    areas = np.array([np.count_nonzero(plane) for plane in result.mask])
    by_class = result.volumes_ml if result.probabilities else {}
    largest = int(areas.argmax()) if areas.any() else None
    return Outcome(result, result.volume_ml, int(np.count_nonzero(areas)), largest, by_class)


def fingerprint(reference: GridReference, volume: CTVolume) -> str:
    """Name a CT with its voxels, in a fraction of the time that a hash of all would take."""
    flat = volume.hu.reshape(-1).view(np.uint8)
    whole = flat[: len(flat) // 8 * 8].view(np.uint64)
    total = int(np.add.reduce(whole, dtype=np.uint64))
    sample = zlib.crc32(np.ascontiguousarray(whole[::61]).data)
    return f"{reference.id} {volume.hu.dtype} {volume.hu.shape} {total:x} {sample:x}"


def _needs_layer(job: Job) -> bool:
    """Whether the last result's layer is no place for this one: none, edited, or kept in part."""
    former = job.earlier.former
    if former is None or is_restricted(job.options):
        return True
    shown, model = job.placement.reference.view(former[0]), former[1]
    return any(not np.array_equal(a, b) for a, b in zip(shown, model, strict=True))


def _new_labels(job: Job) -> tuple[Labels, Bytes | None]:
    """An empty layer; of a restricted run with what it leaves of the last result, and that."""
    reference, rest = job.placement.reference, None
    data = np.zeros(reference.layer_shape, dtype=np.uint8)
    if job.earlier.former is not None and is_restricted(job.options):
        rest = job.earlier.rest(Classes.of(card_of(job.model)).named)
        reference.view(data)[...] = rest
    return Layer.create(*labels_layer_data(data, job.placement, f"{job.name} pancreas")), rest


def _corrections(found: Array, mask: Array) -> Iterator[Progress]:
    depth = len(mask)
    changed = [z for z in range(depth) if not np.array_equal(found[z], mask[z])]
    for start in range(0, len(changed), SLICES_AT_ONCE):
        z = np.array(changed[start : start + SLICES_AT_ONCE])
        yield Progress("post-processing", depth, depth, FoundSlices(z, mask[z]))


def card_of(model: str | Path) -> Mapping[str, Any]:
    """The card of a model; nothing if it cannot be read here, which the run tells of."""
    from napari_pancreas_seg.model.bundle import load_card  # which imports h5py

    try:
        return load_card(model)
    except PancreasSegError:
        return {}


def _layer(job: Job, maps: dict[str, ScalarMap], word: str) -> Image:
    return make_layer(maps[word], word, job.placement, job.name, job.appearance)
