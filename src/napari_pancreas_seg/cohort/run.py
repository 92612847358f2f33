"""Many CTs, and what became of each."""

from __future__ import annotations

import functools
import logging
import math
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_pancreas_seg.cohort.cases import Case, find_inputs, plan
from napari_pancreas_seg.cohort.overlap import Ended, Stages, overlap
from napari_pancreas_seg.cohort.resume import (
    OutputOptions,
    PreviousResult,
    check_free,
    find_earlier,
    source_stamp,
)
from napari_pancreas_seg.errors import why_failed
from napari_pancreas_seg.inference.cascade import with_localiser
from napari_pancreas_seg.inference.result import Options, Progress, Segmentation, exhaust
from napari_pancreas_seg.inference.saving import prepare, save_result
from napari_pancreas_seg.io import load_ct
from napari_pancreas_seg.io.memory import NotEnoughMemory, check_fits
from napari_pancreas_seg.model.bundle import load_card
from napari_pancreas_seg.volume import CTVolume

if TYPE_CHECKING:
    from napari_pancreas_seg.inference.segment import LoadedModel

__all__ = [
    "WORKERS",
    "Case",
    "CaseResult",
    "Job",
    "failure",
    "find_inputs",
    "plan",
    "segment_cases",
]

logger = logging.getLogger(__name__)

WORKERS = 2
"""One thread that reads ahead and one that writes."""

_NETWORK_BYTES = 800_000_000
"""Keras, TensorFlow and the network at work on a batch, about, on a processor."""

_MAPS_BYTES = 4 * 160 * 224 * 2
"""Probability, attention and what post-processing makes of them, for each slice."""


@dataclass(frozen=True)
class CaseResult:
    """What became of a case.

    Parameters
    ----------
    case : Case
        The case.
    files : tuple of Path
        What was written, the mask first; empty for a failed case.
    volume_ml : float
        Volume of the mask in mL.
    slices : int
        Slices that hold any of it.
    seconds : float
        Time the case took, reading and writing included.
    error : str, optional
        Why it failed, one sentence; None for a case that is done.
    notes : tuple of str
        Sentences the user should read.
    measurements : Mapping
        What the sidecar says of the mask's measures.
    before : bool
        Whether an earlier run had done it, so that nothing was left to do.
    labels : Mapping
        The same of each class of the mask by its name, where there are several.
    """

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


def segment_cases(
    cases: Sequence[Case],
    model: str = "default",
    options: Options | None = None,
    *,
    attention: bool = False,
    probability: bool = False,
    overwrite: bool = False,
    mint_uids: bool = False,
    resume: bool = False,
    workers: int = WORKERS,
    on_progress: Callable[[int, Progress], None] | None = None,
) -> Generator[CaseResult]:
    """Segment CTs one after the other; one bad case does not stop the others.

    The network uses all of the machine by itself, so it runs on one CT at a time, in the caller's
    thread. Beside it, threads read the next CTs and write what is done.

    Parameters
    ----------
    cases : sequence of Case
        From `plan`.
    model : str
        Name or path of a model bundle.
    options : Options, optional
        How to segment.
    attention, probability : bool
        Whether to write these maps.
    overwrite : bool
        Whether existing files may be replaced; a case that has some fails before any work.
    mint_uids : bool
        Whether a DICOM-SEG of a series without UIDs may be given some.
    resume : bool
        Whether to leave out what was made before, from the same CT in the same way: see
        `cohort_resume`.
    workers : int
        Threads that read and write, and CTs in memory beside the one in the network; see
        `cohort_pool.overlap`. One that does not fit into memory beside others waits until it
        has all to itself.
    on_progress : callable, optional
        Called with the case's index and each `Progress`, in the caller's thread.

    Yields
    ------
    CaseResult
        One for each case, in order, as soon as it and those before it are done or have failed.

    Raises
    ------
    PancreasSegError
        If there is no such model or device, or the model is damaged.
    """
    asked = options or Options()
    # What is true of every case is said once, and before any work.
    card = with_localiser(load_card(model), asked.localiser)

    @functools.cache
    def network() -> LoadedModel:
        # Here, so that nothing that loads Keras is imported before there is a CT to segment.
        from napari_pancreas_seg.inference.segment import LoadedModel

        return LoadedModel(model, asked.device, asked.localiser)

    job = Job(
        network,
        card,
        asked,
        OutputOptions(attention, probability, overwrite, mint_uids),
        resume=resume,
        workers=0 if len(cases) < 2 else max(0, workers),
        report=on_progress or _ignore,
    )
    yield from overlap(list(enumerate(cases)), job.stages(), job.workers)


def _ignore(index: int, step: Progress) -> None:
    """Where nobody listens."""


@dataclass(frozen=True)
class _ReadCase:
    """A case whose CT is in memory."""

    index: int
    case: Case
    volume: CTVolume
    stamp: str | None
    seconds: float


@dataclass(frozen=True)
class _FoundCase:
    """A case whose mask is in memory, too."""

    read: _ReadCase
    found: Segmentation
    loading: float
    seconds: float


@dataclass(frozen=True)
class Job:
    """What is done to every case of a run: the stages, each of which says what went wrong.

    Parameters
    ----------
    network : callable
        Gives the loaded model; called once there is a CT for it. What it raises concerns all
        cases and stops the run.
    card : Mapping
        Card of the model.
    options : Options
        How to segment.
    wanted : OutputOptions
        What to write.
    resume : bool
        Whether to leave out what was made before.
    workers : int
        How many CTs may be in memory beside one.
    report : callable
        Called with the case's index and each `Progress`.
    """

    network: Callable[[], LoadedModel]
    card: Mapping[str, Any]
    options: Options
    wanted: OutputOptions
    resume: bool = False
    workers: int = 0
    report: Callable[[int, Progress], None] = _ignore

    def stages(self) -> Stages[tuple[int, Case], _ReadCase, _FoundCase, CaseResult]:
        """The three stages of a case."""
        return Stages(self.read, self.compute, self.write)

    def read(self, item: tuple[int, Case], alone: bool) -> _ReadCase | Ended[CaseResult] | None:
        """Read a CT, unless it is done already; None if it does not fit beside others."""
        index, case = item
        start = time.perf_counter()
        try:
            return self._read(index, case, start, alone)
        except (NotEnoughMemory, MemoryError) as error:
            if not alone:
                return None
            return Ended(failure(case, error, start))
        except Exception as error:
            return Ended(failure(case, error, start))

    def _read(
        self, index: int, case: Case, start: float, alone: bool
    ) -> _ReadCase | Ended[CaseResult]:
        earlier = self.earlier(case)
        if earlier is not None and earlier.done:
            return Ended(self.done_before(earlier))
        if earlier is None:
            self.check_targets(case)
        stamp = source_stamp(case.source, case.series)  # before reading: later changes tell
        volume = load_ct(case.source, series=case.series)
        if earlier is not None and earlier.difference is None:
            if earlier.is_of(volume):
                return Ended(self.done_before(earlier))
            if not self.wanted.overwrite:
                raise earlier.refusal()
        volume = prepare(volume, case.mask, mint_uids=self.wanted.mint_uids)
        beside = 0 if alone else self.workers
        check_fits(case.source.name, _bytes_needed(volume.grid.shape, beside), "Segmenting it")
        return _ReadCase(index, case, volume, stamp, time.perf_counter() - start)

    def earlier(self, case: Case) -> PreviousResult | None:
        """What an earlier run has left of a case, if that matters and may stay.

        Raises
        ------
        PancreasSegError
            If it is in the way.
        """
        if not self.resume:
            return None
        earlier = find_earlier(case, self.card, self.options, self.wanted)
        if earlier is None or earlier.difference is None:
            return earlier
        if not self.wanted.overwrite:
            raise earlier.refusal()
        return None

    def done_before(self, earlier: PreviousResult) -> CaseResult:
        """What an earlier run made of a case, as its sidecar tells."""
        case, measured = earlier.case, earlier.record["measurements"]
        return CaseResult(
            case,
            (case.mask, case.sidecar),
            float(measured["volume_ml"]),
            int(measured["slices"]),
            measurements=measured,
            before=True,
            labels=earlier.record.get("labels", {}),
        )

    def check_targets(self, case: Case) -> Path | None:
        """Refuse a case some of whose files must not be written; see `cohort_resume.check_free`."""
        return check_free(case, self.wanted, resume=self.resume)

    def compute(self, read: _ReadCase) -> _FoundCase | Ended[CaseResult]:
        """Segment a CT."""
        start = time.perf_counter()

        def report(step: Progress) -> None:
            self.report(read.index, step)

        report(Progress("loading the network", 0, read.volume.grid.shape[0]))
        loaded = self.network()
        loading = time.perf_counter() - start
        try:
            from napari_pancreas_seg.inference.segment import iter_segment

            found = exhaust(iter_segment(read.volume, loaded, self.options), report)
        except Exception as error:
            return Ended(failure(read.case, error, start - read.seconds))
        return _FoundCase(read, found, loading, time.perf_counter() - start)

    def write(self, made: _FoundCase) -> CaseResult:
        """Write what was found, all of it or nothing; or keep what is done since it was read."""
        start = time.perf_counter()
        read, found = made.read, made.found
        before = {"reading the CT": read.seconds, "loading the network": made.loading}
        try:
            # Asked again: another attempt, or a person, may have been here since.
            earlier = self.earlier(read.case)
            if earlier is not None and (earlier.done or earlier.is_of(read.volume)):
                return self.done_before(earlier)
            torn = self.check_targets(read.case)
            wanted = self.wanted if torn is None else replace(self.wanted, overwrite=True)
            files, record = save_result(
                found,
                read.volume,
                read.case.mask,
                attention=wanted.attention,
                probability=wanted.probability,
                overwrite=wanted.overwrite,
                mint_uids=wanted.mint_uids,
                maps=read.case.maps,
                seconds=before,
                stamp=read.stamp,
            )
            if torn is not None:
                shutil.rmtree(torn, ignore_errors=True)
            measured = record["measurements"]
            return CaseResult(
                read.case,
                tuple(files),
                found.volume_ml,
                int(measured["slices"]),
                read.seconds + made.seconds + time.perf_counter() - start,
                notes=tuple(dict.fromkeys((*read.volume.notes, *found.notes))),
                measurements=measured,
                labels=record.get("labels", {}),
            )
        except Exception as error:
            return failure(read.case, error, start - read.seconds - made.seconds)


def failure(case: Case, error: Exception, start: float) -> CaseResult:
    """Say why a case failed; `start` is on the clock of `time.perf_counter`."""
    logger.debug("a case failed", exc_info=error)
    return CaseResult(case, seconds=time.perf_counter() - start, error=why_failed(case.name, error))


def _bytes_needed(shape: tuple[int, int, int], beside: int = 0) -> int:
    """Memory that segmenting takes beside the CT itself: network, masks and maps.

    So many others that are in memory beside it count as being of the same size.
    """
    own = 2 * math.prod(shape) + shape[0] * _MAPS_BYTES
    return _NETWORK_BYTES + own + beside * (own + 2 * math.prod(shape))
