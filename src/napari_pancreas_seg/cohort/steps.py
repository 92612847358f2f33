"""The three steps of a case: read the CT, segment it, write the results."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.cohort import resume
from napari_pancreas_seg.cohort.cases import Case
from napari_pancreas_seg.cohort.strip import draw_strip, strip_path
from napari_pancreas_seg.errors import PancreasSegError, why_failed
from napari_pancreas_seg.inference import segment as segmentation
from napari_pancreas_seg.inference.options import OutputOptions
from napari_pancreas_seg.inference.result import (
    Options,
    Progress,
    Segmentation,
    exhaust,
    save_result,
)
from napari_pancreas_seg.inference.saving import prepare, read_sidecar
from napari_pancreas_seg.io import load_ct
from napari_pancreas_seg.io.memory import NotEnoughMemory, check_fits
from napari_pancreas_seg.volume import CTVolume

logger = logging.getLogger(__name__)

_NETWORK_BYTES = 800_000_000
"""Roughly what Keras, TensorFlow and the network need on a CPU."""

_MAPS_BYTES = 4 * 160 * 224 * 2
"""Probability and attention maps and their post-processing, for each slice."""


@dataclass(frozen=True)
class CaseResult:
    """Result of a case: its `files`, the sidecar's content, or the `error` in a sentence."""

    case: Case
    files: tuple[Path, ...] = ()
    volume_ml: float = 0.0
    slices: int = 0
    seconds: float = 0.0
    error: str | None = None
    notes: tuple[str, ...] = ()
    measurements: Mapping[str, Any] = field(default_factory=dict)
    before: bool = False
    labels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    quality: Mapping[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """What tables call it: ``"done"``, ``"failed"``, or ``"kept"``: an earlier mask is left."""
        if self.error is None:
            return "done"
        return "kept" if self.measurements else "failed"


@dataclass
class CaseInWork:
    """A case and its steps; without volume and result it must be alone in memory."""

    index: int
    case: Case
    volume: CTVolume | None = None
    stamp: str | None = None
    found: Segmentation | None = None
    result: CaseResult | None = None
    stages: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def finish(self, result: CaseResult) -> None:
        """Set the result, and drop the arrays."""
        self.volume = self.found = None
        self.result = result


@dataclass(frozen=True)
class CaseSegmenter:
    """Takes cases through their steps, `beside` other CTs; an error is its case's result."""

    network: Callable[[], segmentation.LoadedModel]
    card: Mapping[str, Any]
    options: Options
    outputs: OutputOptions
    beside: int = 0
    report: Callable[[int, Progress], None] | None = None

    def all_steps(self, work: CaseInWork) -> None:
        """Take a case through all steps, with no other case in memory."""
        self.read(work, alone=True)
        if work.result is None:
            self.compute(work)
        if work.result is None:
            self.write(work)

    def begin(self, work: CaseInWork) -> resume.PreviousResult | None:
        """Finish a case that is certainly done; refuse it if files are in the way."""
        previous = self.previous(work.case)
        if previous is None:
            resume.check_free(work.case, self.outputs)
        elif previous.done:
            work.finish(_done_before(previous))
        return previous

    def read(self, work: CaseInWork, *, alone: bool = False) -> None:
        """Read the CT, unless the case is done already or files are in the way."""
        start = time.perf_counter()
        try:
            self._read(work, alone)
        except Exception as error:
            if alone or not isinstance(error, NotEnoughMemory | MemoryError):
                work.finish(failure(work.case, error, start))
        work.seconds = work.stages["reading the CT"] = time.perf_counter() - start

    def _read(self, work: CaseInWork, alone: bool) -> None:
        case = work.case
        previous = self.begin(work)
        if work.result is not None:
            return
        stamp = resume.source_stamp(case.source, case.series)  # before reading: later changes tell
        volume = load_ct(case.source, series=case.series, force=case.force)
        if previous is not None and previous.difference is None:
            previous = previous.beside(volume)
            if previous.done:
                work.finish(_done_before(previous))
                return
            if not self.outputs.overwrite:
                raise previous.refusal()
        volume = prepare(volume, case.mask, mint_uids=self.outputs.mint_uids)
        needed = _bytes_needed(volume.grid.shape, 0 if alone else self.beside)
        check_fits(case.source.name, needed, "Segmenting it")
        work.volume, work.stamp = volume, stamp

    def compute(self, work: CaseInWork) -> None:
        """Segment the CT."""
        start = time.perf_counter()
        assert work.volume is not None

        def report(step: Progress) -> None:
            if self.report is not None:
                self.report(work.index, step)

        report(Progress("loading the network", 0, work.volume.grid.shape[0]))
        loaded = self.network()
        work.stages["loading the network"] = time.perf_counter() - start
        try:
            work.found = exhaust(
                segmentation.iter_segment(work.volume, loaded, self.options), report
            )
        except Exception as error:
            work.finish(failure(work.case, error, start - work.seconds))
        work.seconds += time.perf_counter() - start

    def write(self, work: CaseInWork) -> None:
        """Write all results or none; or keep those that somebody has written meanwhile."""
        start = time.perf_counter() - work.seconds
        try:
            result = self._write(work)
            if not result.before:
                result = replace(result, seconds=time.perf_counter() - start)
        except Exception as error:
            result = failure(work.case, error, start)
        work.finish(result)

    def _write(self, work: CaseInWork) -> CaseResult:
        case, volume, found = work.case, work.volume, work.found
        assert volume is not None and found is not None
        # Asked again: another attempt, another command, or a person, may have been here since.
        if (done := self._made_meanwhile(case, volume)) is not None:
            return done
        outputs, interrupted = resume.check_free(case, self.outputs)
        try:
            files, record = save_result(
                found,
                volume,
                case.mask,
                outputs,
                maps=case.maps,
                seconds=work.stages,
                stamp=work.stamp,
                force=case.force,
            )
        except PancreasSegError:
            if (done := self._made_meanwhile(case, volume)) is not None:
                return done
            raise
        if interrupted is not None:
            shutil.rmtree(interrupted, ignore_errors=True)
        if outputs.pictures:
            draw_case(case, volume, found.mask)
        notes = tuple(dict.fromkeys((*volume.notes, *found.notes)))
        return replace(recorded(case, record, files), notes=notes)

    def _made_meanwhile(self, case: Case, volume: CTVolume) -> CaseResult | None:
        """The same result, if it is there by now."""
        previous = self.previous(case)
        if previous is not None and (previous.done or previous.beside(volume).done):
            return _done_before(previous)
        return None

    def previous(self, case: Case) -> resume.PreviousResult | None:
        """The result of an earlier run, if it may stay; files in the way are refused."""
        if not self.outputs.resume:
            return None
        previous = resume.find_previous(case, self.card, self.options, self.outputs)
        if previous is None or previous.difference is None:
            return previous
        if not self.outputs.overwrite:
            raise previous.refusal()
        return None


def _done_before(previous: resume.PreviousResult) -> CaseResult:
    """The result of an earlier run."""
    case = previous.case
    return replace(recorded(case, previous.record, (case.mask, case.sidecar)), before=True)


def recorded(case: Case, record: Mapping[str, Any], files: Sequence[Path] = ()) -> CaseResult:
    """What a sidecar says of its case."""
    measured = record["measurements"]
    return CaseResult(
        case,
        tuple(files),
        float(measured["volume_ml"]),
        int(measured["slices"]),
        measurements=measured,
        labels=record.get("labels", {}),
        quality=record.get("quality", {}),
    )


def draw_case(case: Case, volume: CTVolume, mask: Array) -> None:
    """Draw the picture of a case; without one, its result is none the worse."""
    try:
        draw_strip(volume, mask, strip_path(case.mask))
    except (PancreasSegError, OSError, MemoryError):
        logger.warning("The picture of a case was not drawn")


def failure(case: Case, error: Exception, start: float) -> CaseResult:
    """Say why a case failed; `start` is on the clock of `time.perf_counter`.

    If it has a mask with a record, as one that is not to be replaced, its measures come along.
    """
    logger.debug("a case failed", exc_info=error)
    record = read_sidecar(case.sidecar) if os.path.isfile(case.mask) else None
    result = CaseResult(case)
    if record is not None:
        with contextlib.suppress(KeyError, TypeError, ValueError):  # changed by hand
            result = recorded(case, record)
    return replace(result, seconds=time.perf_counter() - start, error=why_failed(case.name, error))


def _bytes_needed(shape: tuple[int, int, int], beside: int = 0) -> int:
    """Memory that segmenting takes beside the CT itself; `beside` other CTs count as alike."""
    own = 2 * math.prod(shape) + shape[0] * _MAPS_BYTES
    return _NETWORK_BYTES + own + beside * (own + 2 * math.prod(shape))
