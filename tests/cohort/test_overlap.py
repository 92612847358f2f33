"""Stages that overlap keep the order, the bound and what was asked for."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_pancreas_seg.cohort.overlap import Ended, Stages, overlap


@dataclass(eq=False)
class Held:
    """What an item takes up while it is in memory."""

    item: int
    written: bool = False


class Watched:
    """Stages that watch how many items are in memory at once."""

    def __init__(self, fates: list[str]) -> None:
        self.fates = fates
        self.most = 0
        self._made: weakref.WeakSet[Held] = weakref.WeakSet()
        self._lock = threading.Lock()

    def in_memory(self) -> int:
        return sum(not held.written for held in self._made)

    def read(self, item: int, alone: bool) -> Any:
        fate = self.fates[item]
        if fate == "ends while reading":
            return Ended(item)
        if fate == "wants to be alone":
            if not alone:
                return None
            assert self.in_memory() == 0
        held = Held(item)
        with self._lock:
            self._made.add(held)
            self.most = max(self.most, self.in_memory())
        return held

    def compute(self, held: Held) -> Any:
        assert threading.current_thread() is threading.main_thread()
        if self.fates[held.item] == "ends while computing":
            return Ended(held.item)
        return held

    def write(self, held: Held) -> int:
        held.written = True
        return held.item


FATES = ("goes well", "ends while reading", "ends while computing", "wants to be alone")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(FATES), max_size=12), st.integers(0, 5))
def test_everything_once_in_order_and_within_bounds(fates: list[str], workers: int) -> None:
    watched = Watched(fates)
    stages = Stages(watched.read, watched.compute, watched.write)
    assert list(overlap(range(len(fates)), stages, workers)) == [*range(len(fates))]
    assert watched.most <= workers + 1


def test_reading_and_writing_go_on_while_one_is_computed() -> None:
    read_next, written = threading.Event(), threading.Event()

    def read(item: int, alone: bool) -> int:
        if item == 2:
            read_next.set()
        return item

    def compute(item: int) -> int:
        if item == 1:  # only returns if the others do not wait for it
            assert read_next.wait(20)
            assert written.wait(20)
        return item

    def write(item: int) -> int:
        written.set()
        return item

    assert list(overlap(range(4), Stages(read, compute, write), 2)) == [0, 1, 2, 3]


def test_what_was_begun_is_finished_when_one_stops() -> None:
    begun, go_on = threading.Event(), threading.Event()
    ended: list[int] = []

    def compute(item: int) -> int:
        if item == 1:
            assert begun.wait(20)
            go_on.set()
            raise KeyboardInterrupt
        return item

    def write(item: int) -> int:
        begun.set()
        assert go_on.wait(20)
        ended.append(item)
        return item

    stages = Stages(lambda item, alone: item, compute, write)
    with pytest.raises(KeyboardInterrupt):
        list(overlap(range(9), stages, 2))
    assert ended == [0]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cohort")]


def test_leaving_early_begins_nothing_more() -> None:
    read: list[int] = []
    stages = Stages(lambda item, alone: read.append(item) or item, lambda i: i, lambda i: i)
    results = overlap(range(100), stages, 2)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert len(read) < 10
