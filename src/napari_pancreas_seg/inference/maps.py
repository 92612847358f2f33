"""Maps of probability and attention, filled by a run, and figures computed from them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.arrays import Array, Floats32, Indices
from napari_pancreas_seg.inference.classes import ONE_CLASS, Classes
from napari_pancreas_seg.inference.frame import Frame
from napari_pancreas_seg.inference.result import ScalarMap
from napari_pancreas_seg.inference.schedule import SliceGrid
from napari_pancreas_seg.volume import Grid

_STRIDE = 16
"""The network pads its input to a multiple of this; `model.attention_unet.STRIDE`, which would
import Keras."""
PROBABILITY = "probability"
DOUBTFUL = 0.1
"""Probabilities below this say no pancreas, and are no part of a slice's doubt."""


def foreground(probability: Array) -> Array:
    """Probability of any class, (n, height, width), from that of each, in the last axis."""
    if probability.shape[-1] == 1:
        return probability[..., 0]
    return np.minimum(probability.sum(axis=-1, dtype=np.float32), 1).astype(probability.dtype)


class MapArrays:
    """Maps of a volume, at the resolution at which the network computes them."""

    def __init__(
        self, frame: Frame, volume: Grid, slice_grid: SliceGrid, classes: Classes = ONE_CLASS
    ) -> None:
        self._frame, self._volume, self._slice_grid = frame, volume, slice_grid
        self._classes = classes
        self._arrays: dict[str, npt.NDArray[np.float16]] = {}
        self._grids: dict[str, Grid] = {}

    def store(self, rows: Indices, outputs: dict[str, Array]) -> None:
        """Store the network's output for some rows of the slice grid."""
        for word, values in self._named(outputs):
            size = values.shape[1:]
            if word not in self._arrays:
                self._arrays[word] = np.full((len(self._slice_grid), *size), np.nan, np.float16)
                self._grids[word] = self._grid(word, size)
            self._arrays[word][rows] = values

    def _named(self, outputs: dict[str, Array]) -> Iterator[tuple[str, Array]]:
        """Maps by their names; of several classes, their sum too."""
        for name, values in outputs.items():
            if name != PROBABILITY:
                yield name.replace("_", " "), values
                continue
            yield PROBABILITY, foreground(values)
            if len(self._classes) > 1:
                for c, word in enumerate(self.class_words):
                    yield word, values[..., c]

    @property
    def class_words(self) -> list[str]:
        """Names of the maps of single classes, where there are several."""
        several = len(self._classes) > 1
        return [f"{PROBABILITY} {name}" for name in self._classes.names] if several else []

    @property
    def gates(self) -> tuple[ScalarMap, ...]:
        """Attention maps, the finest gate first."""
        return tuple(self.whole(word) for word in self.words if word.startswith("attention"))

    @property
    def by_class(self) -> dict[str, ScalarMap]:
        """Probability of each class by its name; empty if there is one only."""
        pairs = zip(self._classes.names, self.class_words, strict=False)
        return {name: self.whole(word) for name, word in pairs}

    @property
    def probabilities(self) -> npt.NDArray[np.float16]:
        """Of each class, shape (classes, rows, height, width)."""
        if not self.class_words:
            return self.probability[None]  # a view
        return np.stack([self._arrays[word] for word in self.class_words])

    @property
    def words(self) -> list[str]:
        """Names of all maps: the finest gate first, then the probability, then each class's."""
        return sorted(self._arrays)

    @property
    def probability(self) -> npt.NDArray[np.float16]:
        """Of any class, shape (rows, height, width); NaN where nothing was computed."""
        return self._arrays[PROBABILITY]

    def whole(self, word: str) -> ScalarMap:
        """The whole map of a name."""
        return ScalarMap(self._arrays[word], self._grids[word])

    def part(self, rows: Indices) -> dict[str, ScalarMap]:
        """Some rows of every map."""
        return {word: ScalarMap(self._arrays[word][rows], self._grids[word]) for word in self.words}

    def _grid(self, word: str, size: tuple[int, int]) -> Grid:
        if word.startswith(PROBABILITY):
            return self._frame.grid(self._volume, slice_grid=self._slice_grid)
        spec = self._frame.spec
        pad = (-spec.height % _STRIDE // 2, -spec.width % _STRIDE // 2)
        coarser = 2 ** int(word.split()[1])
        return self._frame.grid(self._volume, size, coarser, pad, self._slice_grid)


def expected_dice(
    probability: Array, threshold: float, card: Mapping[str, Any] | None = None
) -> Floats32:
    """Estimate how well each slice's mask would agree with a radiologist's, 0 to 1, shape (Z,).

    With M the mask and p the probability, were p calibrated and pixels independent, Dice would be
    ``2 Σ_M p / (|M| + Σ p)``; ``confidence`` in the card is the line that was fitted out of fold.
    NaN for slices where no probability exceeds `DOUBTFUL`.
    """
    line = {"slope": 1.0, "intercept": 0.0, **((card or {}).get("confidence") or {})}
    expected = np.full(len(probability), np.nan, np.float32)
    for z, plane in enumerate(probability):
        if not plane.max() > DOUBTFUL:  # NaN compares false
            continue
        p = plane[plane > DOUBTFUL].astype(np.float32)
        inside = p > threshold
        dice = 2.0 * p[inside].sum() / (inside.sum() + p.sum())
        expected[z] = np.clip(line["slope"] * dice + line["intercept"], 0.0, 1.0)
    return expected


def best_gate(maps: Mapping[str, ScalarMap], mask: Any, grid: Grid, card: Mapping[str, Any]) -> str:
    """Name the gate that separates best, by the card, else as measured on a mask (Z, Y, X)."""
    gates = sorted(word for word in maps if word.startswith("attention"))
    on_card = {word: value for word, value in _separations_on(card).items() if word in gates}
    found = on_card or {word: separation(maps[word], mask, grid) for word in gates}
    return max(found, key=lambda word: found[word], default="")


def _separations_on(card: Mapping[str, Any]) -> dict[str, float]:
    """Read from a card, by gate, the mean coefficient in the gland minus that in other tissue."""
    rows, on_card = card.get("attention"), {}
    for row in rows if isinstance(rows, list) else []:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            on_card[f"attention {row['gate']}"] = float(row["inside"]) - float(row["tissue"])
    return on_card


def separation(gate: ScalarMap, mask: Any, grid: Grid) -> float:
    """Mean coefficient inside a mask (Z, Y, X) minus outside, where the gate was computed."""
    steps = np.linalg.inv(grid.affine) @ gate.grid.affine
    # Axes are parallel: where each plane of the map lies in the CT, axis by axis.
    where, within = [], []
    for axis, length in enumerate(gate.grid.shape):
        index = np.rint(np.arange(length) * steps[axis, axis] + steps[axis, 3]).astype(int)
        within.append((index >= 0) & (index < grid.shape[axis]))
        where.append(np.clip(index, 0, grid.shape[axis] - 1))
    rows = np.flatnonzero(~np.isnan(gate.values[:, 0, 0]) & within[0])
    if not len(rows):
        return 0.0
    values = gate.values[rows].astype(np.float32)
    inside = np.asarray(mask)[np.ix_(where[0][rows], where[1], where[2])] != 0
    inside &= within[1][:, None] & within[2]
    if not inside.any() or inside.all():
        return 0.0
    return float(values[inside].mean() - values[~inside].mean())
