"""Progress of a run: steps, slices that were just found, maps. Plain data, no Keras."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from napari_pancreas_seg.arrays import Indices, Labels
from napari_pancreas_seg.volume import ScalarMap

Step = TypeVar("Step")
Result = TypeVar("Result")


def exhaust(
    steps: Generator[Step, Any, Result], on_step: Callable[[Step], object] | None = None
) -> Result:
    """Run a generator to its end, calling `on_step` with what it yields; give what it returns."""
    try:
        while True:
            step = next(steps)
            if on_step is not None:
                on_step(step)
    except StopIteration as end:
        return end.value
    finally:
        steps.close()


@dataclass(frozen=True, eq=False)
class FoundSlices:
    """Slices of the mask that have just been found, before any post-processing.

    `z` (n,) are indices in the CT, `mask` (n, Y, X) lies on its grid. `maps`, ``"probability"`` and
    ``"attention 1"`` (the finest gate) and so on, hold these slices alone, with the grid of the
    whole map, in which they are `rows` (n,).
    """

    z: Indices
    mask: Labels
    maps: Mapping[str, ScalarMap] = field(default_factory=dict)
    rows: Indices | None = None

    @property
    def map_rows(self) -> Indices:
        """Where these slices lie along the maps' first axis."""
        return self.z if self.rows is None else self.rows


@dataclass(frozen=True, eq=False)
class Progress:
    """How far a segmentation is in a `stage`, counted in slices, and what it has just found."""

    stage: str
    done: int
    total: int
    slices: FoundSlices | None = None
