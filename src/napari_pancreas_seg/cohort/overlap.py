"""Reading the next cases and writing the last ones while one is computed."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import chain, islice
from typing import Generic, TypeVar

__all__ = ["Ended", "Stages", "overlap"]

Item = TypeVar("Item")
Read = TypeVar("Read")
Computed = TypeVar("Computed")
Result = TypeVar("Result")

_PATIENCE_S = 0.2
"""How long one waits in one go: on Windows, Ctrl+C is not heard in between."""


@dataclass(frozen=True)
class Ended(Generic[Result]):
    """What a stage returns that was the last one for its item."""

    result: Result


@dataclass(frozen=True)
class Stages(Generic[Item, Read, Computed, Result]):
    """What is done to an item; no stage raises anything but what must stop everything.

    Parameters
    ----------
    read : callable
        Called with the item and whether it is the only one in memory. Returns what was read,
        or `Ended`, or None: there is no room for it beside others, it wants to be alone.
    compute : callable
        Called with what was read, always in the caller's thread, one item after the other.
    write : callable
        Called with what was computed.
    """

    read: Callable[[Item, bool], Read | Ended[Result] | None]
    compute: Callable[[Read], Computed | Ended[Result]]
    write: Callable[[Computed], Result]

    def in_turn(self, item: Item) -> Result:
        """Do one stage after the other."""
        return self.after_reading(self.read(item, True))

    def after_reading(self, read: Read | Ended[Result] | None) -> Result:
        """Do the stages that follow."""
        assert read is not None, "an item that is alone is read"
        if isinstance(read, Ended):
            return read.result
        computed = self.compute(read)
        del read
        return computed.result if isinstance(computed, Ended) else self.write(computed)


def overlap(
    items: Iterable[Item], stages: Stages[Item, Read, Computed, Result], workers: int
) -> Iterator[Result]:
    """Run items through the stages, reading and writing beside computing.

    Parameters
    ----------
    items : iterable
        What to do.
    stages : Stages
        How.
    workers : int
        Threads beside the caller's: of two, one reads ahead and one writes; an odd one reads. As
        many items are in memory beside the one that is being computed. With 0, one stage comes
        after the other, in the caller's thread.

    Yields
    ------
    Result
        In the order of the items, each as soon as it and those before it are there.
    """
    if workers < 1:
        yield from map(stages.in_turn, items)
        return
    ahead, behind = (workers + 1) // 2, workers // 2
    todo = iter(items)
    writing: deque[Future[Result]] = deque()
    with (
        _threads(ahead, drop=True) as readers,
        _threads(max(behind, 1), drop=False) as writers,
    ):
        reading: deque[tuple[Item, Future[Read | Ended[Result] | None]]] = deque()
        while True:
            for item in islice(todo, ahead + 1 - len(reading)):
                reading.append((item, readers.submit(stages.read, item, False)))
            if not reading:
                break
            item, future = reading.popleft()
            read = _result(future)
            del future
            if read is None:
                yield from _all_of(writing)
                todo = chain(_give_back(reading), todo)
                writing.append(_known(stages.in_turn(item)))
            elif isinstance(read, Ended):
                writing.append(_known(read.result))
            else:
                computed = stages.compute(read)
                del read
                if isinstance(computed, Ended):
                    writing.append(_known(computed.result))
                elif not behind:
                    writing.append(_known(stages.write(computed)))
                else:
                    _wait_for_room(writing, behind)
                    writing.append(writers.submit(stages.write, computed))
                del computed
            while writing and writing[0].done():
                yield writing.popleft().result()
        yield from _all_of(writing)


@contextlib.contextmanager
def _threads(count: int, *, drop: bool) -> Iterator[ThreadPoolExecutor]:
    """Threads that finish what they have begun; what they have not, they may drop at the end."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="cohort")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=drop)


def _give_back(
    reading: deque[tuple[Item, Future[Read | Ended[Result] | None]]],
) -> list[Item]:
    """Drop what has been read ahead; it is read again later."""
    items = []
    while reading:
        item, future = reading.popleft()
        if not future.cancel():
            _result(future)
        items.append(item)
    return items


def _wait_for_room(writing: deque[Future[Result]], most: int) -> None:
    """Wait until fewer items than that are being written."""
    while len(busy := [future for future in writing if not future.done()]) >= most:
        wait(busy, _PATIENCE_S, "FIRST_COMPLETED")


def _all_of(writing: deque[Future[Result]]) -> Iterator[Result]:
    while writing:
        yield _result(writing.popleft())


def _result(future: Future[Result]) -> Result:
    while not wait([future], _PATIENCE_S).done:
        pass
    return future.result()


def _known(result: Result) -> Future[Result]:
    future: Future[Result] = Future()
    future.set_result(result)
    return future
