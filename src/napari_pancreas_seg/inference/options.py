"""What a segmentation asks for: checked once, plain data."""

from __future__ import annotations

import contextlib
import operator
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_pancreas_seg.arrays import Box
from napari_pancreas_seg.errors import PancreasSegError


@dataclass(frozen=True)
class Options:
    """How to segment: the arguments of `segment`, checked, and the slice to begin with.

    Parameters
    ----------
    device, batch_size, threshold, postprocess, every_slice, slices, box, second_look
        See `segment`.
    first_slice : int, optional
        Slice to begin with, the one on screen for instance; the others follow outward.

    Raises
    ------
    PancreasSegError
        If a value is of another kind or out of its range.
    """

    device: str = "auto"
    batch_size: int | None = None
    threshold: float | None = None
    postprocess: bool = True
    first_slice: int | None = None
    every_slice: bool = False
    slices: tuple[int, int] | None = None
    box: tuple[int, int, int, int] | None = None
    second_look: bool = True

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|gpu(:\d+)?", str(self.device)):
            raise PancreasSegError(
                f"The device must be auto, cpu, gpu or gpu:N, not {self.device!r}."
            )
        number: Any = self.threshold
        if number is not None:
            if not (isinstance(number, float | np.floating) and 0 < number < 1):
                raise PancreasSegError(
                    f"The threshold must be a number between 0 and 1, not {number!r}."
                )
            object.__setattr__(self, "threshold", float(number))
        for name, count, what in (  # how many numbers; None: one, not in a tuple
            ("batch_size", None, "The batch size must be a whole number"),
            ("first_slice", None, "The first slice must be a whole number"),
            ("slices", 2, "The slices must be two whole numbers (start, stop)"),
            ("box", 4, "The box must be four whole numbers (top, bottom, left, right)"),
        ):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, whole(given, count, what))
        for name in ("postprocess", "every_slice", "second_look"):
            if not isinstance(given := getattr(self, name), bool | np.bool_):
                raise PancreasSegError(f"{name} must be True or False, not {given!r}.")
            object.__setattr__(self, name, bool(given))
        if self.batch_size is not None and self.batch_size < 1:
            raise PancreasSegError(f"The batch size must be at least 1, not {self.batch_size}.")
        for name, ends in (("slices", self.slices), ("box", self.box)):
            if ends is not None and any(a >= b for a, b in zip(ends[::2], ends[1::2], strict=True)):
                raise PancreasSegError(
                    f"There is nothing in {name} {ends}: each stop must come after its start."
                )

    def region(self, shape: tuple[int, ...]) -> Box:
        """Where in a CT (Z, Y, X) the mask can lie; PancreasSegError if nothing of it is left."""
        top, bottom, left, right = self.box or (0, shape[1], 0, shape[2])
        asked = (self.slices or (0, shape[0]), (top, bottom), (left, right))
        region = tuple(
            slice(max(0, start), min(n, stop))
            for (start, stop), n in zip(asked, shape, strict=True)
        )
        if any(part.start >= part.stop for part in region):
            what = "slices" if region[0].start >= region[0].stop else "box"
            raise PancreasSegError(
                f"The region holds nothing of this CT: its {what} must lie within "
                f"{shape[0]} slices of {shape[1]} rows and {shape[2]} columns."
            )
        return region  # type: ignore[return-value]


def whole(given: Any, count: int | None, what: str) -> Any:
    """Return Python's own integers, the only ones that JSON knows; several in a tuple."""
    with contextlib.suppress(TypeError):
        if count is None:
            return operator.index(given)
        numbers = tuple(operator.index(n) for n in given)
        if len(numbers) == count:
            return numbers
    raise PancreasSegError(f"{what}, not {given!r}.")


@dataclass(frozen=True)
class OutputOptions:
    """Which files a case gets, and what happens to those that exist.

    They stay, and the case fails before any work, unless `overwrite`. With `resume`, what was made
    from the same CT in the same way counts as done. `pictures`: for the quality page.
    """

    attention: bool = False
    probability: bool = False
    overwrite: bool = False
    mint_uids: bool = False
    resume: bool = False
    report: bool = False
    pictures: bool = False
