"""What a segmentation asks for, reports on its way and returns; plain data, no Keras."""

from __future__ import annotations

import contextlib
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.classes import Classes
from napari_pancreas_seg.mask.metrics import volume_ml
from napari_pancreas_seg.volume import Grid

__all__ = ["FoundSlices", "Options", "Progress", "ScalarMap", "Segmentation"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Options:
    """How to segment.

    Parameters
    ----------
    device : str
        ``"auto"`` (a GPU if there is one), ``"cpu"`` or ``"gpu:N"``.
    batch_size : int, optional
        Slices that go through the network at once; None chooses for the device.
    threshold : float, optional
        Probability from which a voxel is pancreas, between 0 and 1; None takes the model's.
    postprocess : bool
        Smooth the probability along z, and keep the pieces that are most surely the gland, where
        a pancreas can lie.
    first_slice : int, optional
        Slice to begin with, the one on screen for instance; the others follow outward.
    every_slice : bool
        Have the network see every slice, instead of finding the gland with a coarse sweep and
        looking at it every 3 mm.
    slices : tuple of int, optional
        (start, stop): only slices start to stop - 1 are segmented, counted from 0 at the feet.
    box : tuple of int, optional
        (top, bottom, left, right): only pixels in rows top to bottom - 1 and columns left to
        right - 1 can belong to the mask.
    localiser : str, optional
        Name or path of the model that finds the gland, for one whose frame lies around it; None
        takes the one that its card names.

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
    localiser: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|gpu(:\d+)?", str(self.device)):
            raise PancreasSegError(f"The device must be auto, cpu or gpu:N, not {self.device!r}.")
        number: Any = self.threshold
        if number is not None:
            if not (isinstance(number, float | np.floating) and 0 < number < 1):
                raise PancreasSegError(
                    f"The threshold must be a number between 0 and 1, not {number!r}."
                )
            object.__setattr__(self, "threshold", float(number))
        for name, (count, what) in _WHOLE_NUMBERS.items():
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, _whole(given, count, what))
        if self.batch_size is not None and self.batch_size < 1:
            raise PancreasSegError(f"The batch size must be at least 1, not {self.batch_size}.")
        for name, ends in (("slices", self.slices), ("box", self.box)):
            if ends is not None and any(a >= b for a, b in zip(ends[::2], ends[1::2], strict=True)):
                raise PancreasSegError(
                    f"There is nothing in {name} {ends}: each stop must come after its start."
                )

    def region(self, shape: tuple[int, ...]) -> tuple[slice, slice, slice]:
        """Where in a CT the mask can lie: `slices` and `box`, cut to its (Z, Y, X).

        Raises
        ------
        PancreasSegError
            If nothing of the CT is left.
        """
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


_WHOLE_NUMBERS = {
    "batch_size": (None, "The batch size must be a whole number"),
    "first_slice": (None, "The first slice must be a whole number"),
    "slices": (2, "The slices must be two whole numbers (start, stop)"),
    "box": (4, "The box must be four whole numbers (top, bottom, left, right)"),
}
"""Options, how many numbers they are (None: one, not in a tuple), and what to say if not."""


def _whole(given: Any, count: int | None, what: str) -> int | tuple[int, ...]:
    """Return Python's own integers, the only ones that JSON knows; several in a tuple."""
    with contextlib.suppress(TypeError):
        if count is None:
            return operator.index(given)
        numbers = tuple(operator.index(n) for n in given)
        if len(numbers) == count:
            return numbers
    raise PancreasSegError(f"{what}, not {given!r}.")


@dataclass(frozen=True, eq=False)
class ScalarMap:
    """A map of values in [0, 1] with its own grid.

    Parameters
    ----------
    values : ndarray, shape (rows, H, W)
        float16; NaN where nothing was computed. Rows lie as far apart as the slices that the
        network may have seen: see `napari_pancreas_seg.inference.schedule.SliceGrid`.
    grid : Grid
        Where the values lie; axes are parallel to the CT's.
    """

    values: Array
    grid: Grid


@dataclass(frozen=True, eq=False)
class FoundSlices:
    """Slices of the mask that have just been found, before any post-processing.

    Parameters
    ----------
    z : ndarray, shape (n,)
        Indices of the slices in the CT.
    mask : ndarray, shape (n, Y, X), uint8
        The slices of the mask on the CT's grid.
    maps : Mapping of str to ScalarMap
        ``"probability"`` and ``"attention 1"`` (the finest gate) and so on: the values of
        these slices alone, (n, H, W), with the grid of the whole map.
    rows : ndarray, shape (n,), optional
        Where these slices lie along the maps' first axis; at z if None.
    """

    z: npt.NDArray[np.intp]
    mask: npt.NDArray[np.uint8]
    maps: Mapping[str, ScalarMap] = field(default_factory=dict)
    rows: npt.NDArray[np.intp] | None = None

    @property
    def map_rows(self) -> npt.NDArray[np.intp]:
        """Where these slices lie along the maps' first axis."""
        return self.z if self.rows is None else self.rows


@dataclass(frozen=True, eq=False)
class Progress:
    """How far a segmentation has come.

    Parameters
    ----------
    stage : str
        What is going on: ``"loading the network"``, ``"segmenting"``, ``"post-processing"``.
    done, total : int
        Slices done, and slices to do in all. The total may change.
    slices : FoundSlices, optional
        What this step has found.
    """

    stage: str
    done: int
    total: int
    slices: FoundSlices | None = None


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The pancreas found in a CT.

    Parameters
    ----------
    mask : ndarray, shape (Z, Y, X), uint8
        1 in the pancreas, on the CT's grid; of a model of several classes, the values that its
        card gives them in ``labels``.
    probability : ScalarMap
        Probability of pancreas at the resolution of the network's input; of several classes, of
        any of them.
    attention : tuple of ScalarMap
        Attention gate coefficients, finest gate first, at the resolution at which the
        network computed them; empty for a network without gates.
    grid : Grid
        The CT's grid, on which the mask lies.
    threshold : float
        The threshold that was applied.
    model : Mapping
        The card of the model.
    seconds : Mapping of str to float
        Seconds spent per stage.
    options : Options
        What was asked for.
    notes : tuple of str
        Sentences the user should read.
    expected_dice : ndarray, shape (Z,), float32
        How well each slice of the network's mask is expected to agree with a radiologist's,
        from 0 to 1; NaN where the network saw no pancreas. The lowest want looking at first.
    plausible : ndarray, shape (Z,), bool
        Slices in which a pancreas can lie, by where the lungs end; post-processing drops
        what was found in the others.
    probabilities : Mapping of str to ScalarMap
        Of a model of several classes, the probability of each by its name.
    """

    mask: npt.NDArray[np.uint8]
    probability: ScalarMap
    attention: tuple[ScalarMap, ...]
    grid: Grid
    threshold: float
    model: Mapping[str, Any]
    seconds: Mapping[str, float]
    options: Options = field(default_factory=Options)
    notes: tuple[str, ...] = ()
    expected_dice: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    plausible: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    probabilities: Mapping[str, ScalarMap] = field(default_factory=dict)

    @property
    def slices_seen(self) -> int:
        """Number of slices that the network has seen."""
        return int(np.count_nonzero(~np.isnan(self.probability.values[:, 0, 0])))

    @property
    def volume_ml(self) -> float:
        """Volume of the mask in mL, all classes together."""
        return volume_ml(self.mask, self.grid)

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Volume of each class in mL by its name."""
        classes = Classes.of(self.model)
        return {
            name: volume_ml(self.mask == value, self.grid)
            for name, value in zip(classes.names, classes.values, strict=True)
        }
