"""Segment many CTs: while one is computed, others are read and written."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from napari_pancreas_seg.cohort.cases import Case
from napari_pancreas_seg.cohort.steps import CaseInWork, CaseResult, CaseSegmenter
from napari_pancreas_seg.inference import segment as segmentation
from napari_pancreas_seg.inference.options import OutputOptions
from napari_pancreas_seg.inference.result import Options, Progress
from napari_pancreas_seg.model.bundle import load_card

WORKERS = 2
"""One thread that reads ahead and one that writes."""

_PATIENCE_S = 0.2
"""Longest wait in one call: on Windows, Ctrl+C is noticed only between two."""


def segment_cases(
    cases: Sequence[Case],
    model: str = "default",
    options: Options | None = None,
    outputs: OutputOptions | None = None,
    *,
    workers: int = WORKERS,
    on_progress: Callable[[int, Progress], None] | None = None,
) -> Generator[CaseResult]:
    """Segment CTs one after the other; one bad case does not stop the others.

    The network runs in the caller's thread; `workers` threads read the next CTs and write results,
    which come in the order of the cases. `on_progress` gets the case's index and each `Progress`.
    PancreasSegError if there is no such model or device, or the model is damaged.
    """
    asked = options or Options()
    # What is true of every case is said once, and before any work.
    card = load_card(model)

    @functools.cache
    def network() -> segmentation.LoadedModel:
        return segmentation.LoadedModel(model, asked.device)

    workers = 0 if len(cases) < 2 else max(0, workers)
    outputs = outputs or OutputOptions()
    segmenter = CaseSegmenter(network, card, asked, outputs, workers, on_progress)
    works = (CaseInWork(index, case) for index, case in enumerate(cases))
    for work in overlap(works, segmenter, workers):
        assert work.result is not None
        yield work.result


def overlap(
    works: Iterable[CaseInWork], segmenter: CaseSegmenter, workers: int
) -> Iterator[CaseInWork]:
    """Segment cases, while others are read and written in threads; they come in their order."""
    if workers < 1:
        for work in works:
            segmenter.all_steps(work)
            yield work
        return
    ahead, behind = (workers + 1) // 2, workers // 2
    waiting, out = deque(works), deque[CaseInWork]()
    reading, writing = deque[tuple[CaseInWork, Future[None]]](), set[Future[None]]()
    readers, writers = (ThreadPoolExecutor(n or 1, "cohort") for n in (ahead, behind))
    try:
        while waiting or reading:
            while waiting and len(reading) <= ahead:
                work = waiting.popleft()
                reading.append((work, readers.submit(segmenter.read, work)))
            work, read = reading.popleft()
            _wait({read})
            out.append(work)
            if work.result is None and work.volume is None:  # it must be alone in memory
                _wait(writing)
                _wait({read for _, read in reading if not read.cancel()})
                while reading:
                    other, _ = reading.pop()
                    other.volume = other.result = None  # it is read again later
                    waiting.appendleft(other)
                yield from _finished(out)
                segmenter.all_steps(work)
            elif work.result is None:
                segmenter.compute(work)
                if work.volume is None:
                    pass  # it failed
                elif behind:
                    _wait(writing, most=behind - 1)
                    writing.add(writers.submit(segmenter.write, work))
                else:
                    segmenter.write(work)
            _wait(writing, most=behind)
            yield from _finished(out)
        _wait(writing)
        yield from _finished(out)
    finally:
        readers.shutdown(cancel_futures=True)
        writers.shutdown()


def _wait(tasks: set[Future[None]], most: int = 0) -> None:
    """Wait until at most so many are at work; raise what stops everything."""
    while True:
        for done in [task for task in tasks if task.done()]:
            tasks.remove(done)
            done.result()
        if len(tasks) <= most:
            return
        wait(tasks, _PATIENCE_S, FIRST_COMPLETED)


def _finished(out: deque[CaseInWork]) -> Iterator[CaseInWork]:
    """Take off those that have a result, in their order."""
    while out and out[0].result is not None:
        yield out.popleft()
