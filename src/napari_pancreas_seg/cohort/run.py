"""Segment many CTs: while one is computed, others are read and written."""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from queue import Empty, Queue
from threading import Thread
from typing import TYPE_CHECKING

from napari_pancreas_seg.cohort.cases import Case
from napari_pancreas_seg.cohort.resume import OutputOptions
from napari_pancreas_seg.cohort.steps import CaseInWork, CaseResult, CaseSegmenter
from napari_pancreas_seg.inference.result import Options, Progress
from napari_pancreas_seg.model.bundle import load_card

if TYPE_CHECKING:
    from napari_pancreas_seg.inference.segment import LoadedModel


WORKERS = 2
"""One thread that reads ahead and one that writes."""

_PATIENCE_S = 0.2
"""Longest wait in one call: on Windows, Ctrl+C is not noticed during it."""


def segment_cases(
    cases: Sequence[Case],
    model: str = "default",
    options: Options | None = None,
    wanted: OutputOptions | None = None,
    *,
    workers: int = WORKERS,
    on_progress: Callable[[int, Progress], None] | None = None,
) -> Generator[CaseResult]:
    """Segment CTs one after the other; one bad case does not stop the others.

    The network runs on one CT at a time, in the caller's thread; `workers` threads read the next
    CTs and write what is done, with as many CTs in memory beside it; one that does not fit waits
    until it is alone. Results come in the order of the cases, each as soon as it and those before
    it are done or have failed. `on_progress` is called with the case's index and each `Progress`,
    in the caller's thread. PancreasSegError if there is no such model or device, or the model is
    damaged.
    """
    asked = options or Options()
    # What is true of every case is said once, and before any work.
    card = load_card(model)

    @functools.cache
    def network() -> LoadedModel:
        # Here, so that nothing that loads Keras is imported before there is a CT to segment.
        from napari_pancreas_seg.inference.segment import LoadedModel

        return LoadedModel(model, asked.device)

    workers = 0 if len(cases) < 2 else max(0, workers)
    wanted = wanted or OutputOptions()
    segmenter = CaseSegmenter(network, card, asked, wanted, workers, on_progress)
    works = (CaseInWork(index, case) for index, case in enumerate(cases))
    for work in overlap(works, segmenter, workers):
        assert work.result is not None
        yield work.result


def overlap(
    works: Iterable[CaseInWork], segmenter: CaseSegmenter, workers: int
) -> Iterator[CaseInWork]:
    """Take cases through their steps, reading and writing beside computing.

    Of two `workers`, one thread reads ahead and one writes; an odd one reads. As many CTs are in
    memory beside the one that is computed. With 0, one step comes after the other, in the caller's
    thread. The cases come back in their order, each as soon as it and those before it have a
    result.
    """
    if workers < 1:
        for work in works:
            segmenter.all_steps(work)
            yield work
        return
    ahead, behind = (workers + 1) // 2, workers // 2
    waiting = deque(works)
    line: deque[CaseInWork] = deque()  # being read, or read; in order
    out: deque[CaseInWork] = deque()  # computed, or failed; in order
    readers, writers = _Threads(segmenter.read, ahead), _Threads(segmenter.write, behind)
    try:
        while waiting or line:
            while waiting and len(line) <= ahead:
                line.append(waiting.popleft())
                readers.put(line[-1])
            while not line[0].was_read:
                readers.wait()
            work = line.popleft()
            out.append(work)
            if work.result is None and work.volume is None:  # no room beside others
                writers.wait_for_all()
                readers.drop()
                readers.wait_for_all()
                while line:
                    line[-1].forget()
                    waiting.appendleft(line.pop())
                yield from _finished(out)
                segmenter.all_steps(work)
            elif work.result is None:
                segmenter.compute(work)
                if work.volume is None:
                    pass  # it failed
                elif behind:
                    writers.wait_for_room(behind)
                    writers.put(work)
                else:
                    segmenter.write(work)
            readers.look()
            writers.look()
            yield from _finished(out)
        writers.wait_for_all()
        yield from _finished(out)
    finally:
        readers.drop()
        readers.close()
        writers.close()


def _finished(out: deque[CaseInWork]) -> Iterator[CaseInWork]:
    """Take off those that have a result, in their order."""
    while out and out[0].result is not None:
        yield out.popleft()


class _Threads:
    """Threads that do one step with what is put into their queue."""

    def __init__(self, step: Callable[[CaseInWork], None], count: int) -> None:
        self._step = step
        self._inbox: Queue[CaseInWork | None] = Queue()
        self._done: Queue[BaseException | None] = Queue()
        self._busy = 0
        self._threads = [Thread(target=self._run, name=f"cohort {n}") for n in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while (work := self._inbox.get()) is not None:
            stop: BaseException | None = None
            try:
                self._step(work)
            except BaseException as error:
                stop = error
            del work  # the CT with it, before anybody counts on the room
            self._done.put(stop)

    def put(self, work: CaseInWork) -> None:
        self._busy += 1
        self._inbox.put(work)

    def look(self) -> None:
        """Count what is done so far."""
        while not self._done.empty():
            self.wait()

    def wait(self) -> None:
        """Wait until one more is done; raises errors that stop everything."""
        while True:
            try:
                error = self._done.get(timeout=_PATIENCE_S)
            except Empty:
                continue
            self._busy -= 1
            if error is not None:
                raise error
            return

    def wait_for_room(self, most: int) -> None:
        """Wait until fewer than `most` are in work."""
        self.look()
        while self._busy >= most:
            self.wait()

    def wait_for_all(self) -> None:
        self.wait_for_room(1)

    def drop(self) -> None:
        """Take back what no thread has begun."""
        with contextlib.suppress(Empty):
            while True:
                self._inbox.get_nowait()
                self._busy -= 1

    def close(self) -> None:
        """End the threads, after all that was put in."""
        for _ in self._threads:
            self._inbox.put(None)
        for thread in self._threads:
            thread.join()
