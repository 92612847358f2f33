"""Cases that are read, computed and written at once: their order, memory, and an early end."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_pancreas_seg.cohort.cases import Case
from napari_pancreas_seg.cohort.run import overlap
from napari_pancreas_seg.cohort.steps import CaseInWork, CaseResult, CaseSegmenter

CASE = Case(Path("ct.nii"), Path("ct_mask.nii"), "ct")


def works(count: int) -> list[CaseInWork]:
    return [CaseInWork(index, CASE) for index in range(count)]


def run(count: int, segmenter: Any, workers: int) -> list[int]:
    done = list(overlap(works(count), segmenter, workers))
    assert all(work.result is not None for work in done)
    return [work.index for work in done]


class Volume:
    """What a case takes up while it is in memory."""


class Steps(CaseSegmenter):
    """Steps that do nothing but call a function each."""

    def __init__(self, **calls: Callable[[int], object]) -> None:
        object.__setattr__(self, "calls", calls)

    def call(self, step: str, work: CaseInWork) -> None:
        self.calls.get(step, lambda index: None)(work.index)  # type: ignore[attr-defined]

    def read(self, work: CaseInWork, *, alone: bool = False) -> None:
        self.call("read", work)
        work.volume = Volume()  # type: ignore[assignment]

    def compute(self, work: CaseInWork) -> None:
        self.call("compute", work)

    def write(self, work: CaseInWork) -> None:
        self.call("write", work)
        work.finish(CaseResult(CASE))


class Watched(Steps):
    """Steps that watch how many cases are in memory at once."""

    def __init__(self, fates: list[str]) -> None:
        object.__setattr__(self, "fates", fates)
        object.__setattr__(self, "held", weakref.WeakSet())
        object.__setattr__(self, "most", [0])
        object.__setattr__(self, "lock", threading.Lock())

    fates: list[str]
    held: weakref.WeakSet[Volume]
    most: list[int]
    lock: threading.Lock

    def read(self, work: CaseInWork, *, alone: bool = False) -> None:
        fate = self.fates[work.index]
        if fate == "ends while reading":
            work.finish(CaseResult(CASE))
        elif fate != "wants to be alone" or alone:
            assert not alone or self.held_now() == 0 or fate != "wants to be alone"
            volume = Volume()
            with self.lock:
                self.held.add(volume)
                self.most[0] = max(self.most[0], self.held_now())
            work.volume = volume  # type: ignore[assignment]

    def held_now(self) -> int:
        return len(self.held)

    def compute(self, work: CaseInWork) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert work.volume is not None
        if self.fates[work.index] == "ends while computing":
            work.finish(CaseResult(CASE))

    def write(self, work: CaseInWork) -> None:
        assert work.volume is not None
        work.finish(CaseResult(CASE))


FATES = ("goes well", "ends while reading", "ends while computing", "wants to be alone")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(FATES), max_size=12), st.integers(0, 5))
def test_everything_once_in_order_and_within_bounds(fates: list[str], workers: int) -> None:
    watched = Watched(fates)
    assert run(len(fates), watched, workers) == [*range(len(fates))]
    assert watched.most[0] <= workers + 1
    assert watched.held_now() == 0


def test_reading_and_writing_go_on_while_one_is_computed() -> None:
    read_next, written = threading.Event(), threading.Event()

    def compute(index: int) -> None:
        if index == 1:  # only returns if the others do not wait for it
            assert read_next.wait(20)
            assert written.wait(20)

    steps = Steps(
        read=lambda index: read_next.set() if index == 2 else None,
        compute=compute,
        write=lambda index: written.set(),
    )
    assert run(4, steps, 2) == [0, 1, 2, 3]


def test_what_was_begun_is_finished_when_one_stops() -> None:
    begun, go_on = threading.Event(), threading.Event()
    ended: list[int] = []

    def compute(index: int) -> None:
        if index == 1:
            assert begun.wait(20)
            go_on.set()
            raise KeyboardInterrupt

    def write(index: int) -> None:
        begun.set()
        assert go_on.wait(20)
        ended.append(index)

    with pytest.raises(KeyboardInterrupt):
        run(9, Steps(compute=compute, write=write), 2)
    assert ended == [0]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cohort")]


@pytest.mark.parametrize("step", ["read", "write"])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_what_must_stop_everything_does_from_any_thread(step: str, workers: int) -> None:
    def stop(index: int) -> None:
        if index == 2:
            raise SystemExit(3)

    with pytest.raises(SystemExit):
        run(9, Steps(**{step: stop}), workers)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cohort")]


def test_leaving_early_begins_nothing_more() -> None:
    read: list[int] = []
    results = overlap(works(100), Steps(read=read.append), 2)
    assert next(iter(results)).index == 0
    results.close()  # type: ignore[attr-defined]
    assert len(read) < 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cohort")]
