"""What a segmentation asks for, reports on its way and returns; plain data, no Keras."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.metrics import volume_ml
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
        Smooth the probability along z and keep the largest piece.
    first_slice : int, optional
        Slice to begin with, the one on screen for instance; the others follow outward.

    Raises
    ------
    PancreasSegError
        If a value is out of its range.
    """

    device: str = "auto"
    batch_size: int | None = None
    threshold: float | None = None
    postprocess: bool = True
    first_slice: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|gpu(:\d+)?", self.device):
            raise PancreasSegError(f"The device must be auto, cpu or gpu:N, not {self.device!r}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise PancreasSegError("The batch size must be at least 1.")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise PancreasSegError("The threshold must lie between 0 and 1.")


@dataclass(frozen=True, eq=False)
class ScalarMap:
    """A map of values in [0, 1] with its own grid.

    Parameters
    ----------
    values : ndarray, shape (Z, H, W)
        float16; NaN where nothing was computed.
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
    """

    z: npt.NDArray[np.intp]
    mask: npt.NDArray[np.uint8]


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
        1 in the pancreas, on the CT's grid.
    probability : ScalarMap
        Probability of pancreas at the resolution of the network's input.
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

    @property
    def volume_ml(self) -> float:
        """Volume of the mask in mL."""
        return volume_ml(self.mask, self.grid)
