"""Which slices the network sees, and in which order: a sweep, then all where the gland is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from napari_pancreas_seg.arrays import Array, Indices, Mask

FINE_MM = 3.0
"""Slices within the gland lie at most so far apart; slices that are thicker are all seen."""
SWEEP_MM = 12.0
"""Slices of the sweep lie about so far apart: no gland is so short that it slips through."""
FEWEST_SLICES = 40
"""CTs with fewer slices are seen whole."""
FAINTEST_RUN = 0.1
"""Stretches with less of the strongest one's evidence are left alone: `main_pieces` drops them."""


@dataclass(frozen=True)
class SliceGrid:
    """Evenly spaced slices of a volume, its rows: every `stride`th from `offset` on."""

    n_slices: int
    stride: int = 1
    offset: int = 0

    def __len__(self) -> int:
        return max(1, -(-(self.n_slices - self.offset) // self.stride))

    @property
    def z(self) -> Indices:
        """Slice of each row."""
        return np.minimum(self.offset + self.stride * np.arange(len(self)), self.n_slices - 1)

    def rows(self, part: slice) -> slice:
        """Rows whose slice lies in a part of the volume; at least one."""
        first = max(0, -(-(part.start - self.offset) // self.stride))
        last = max(0, -(-(part.stop - self.offset) // self.stride))
        first = min(first, len(self) - 1)
        return slice(first, min(max(last, first + 1), len(self)))

    def nearest(self, asked: slice | None = None) -> Indices:
        """Row, of those that were `asked` for, that lies nearest to each slice (n_slices,)."""
        first, last = self._ends(asked)
        rows = np.rint((np.arange(self.n_slices) - self.offset) / self.stride)
        return np.clip(rows, first, last).astype(np.intp)

    def between(self, z: int, asked: slice | None = None) -> tuple[int, int, float]:
        """Rows `asked` for below and above a slice, and the share of the one above."""
        first, last = self._ends(asked)
        place = min(max((z - self.offset) / self.stride, first), last)
        below = math.floor(place)
        return below, min(below + 1, last), place - below

    def _ends(self, asked: slice | None) -> tuple[int, int]:
        return (asked.start, asked.stop - 1) if asked else (0, len(self) - 1)


def choose_slice_grid(
    n_slices: int,
    spacing_z_mm: float,
    part: slice,
    first: int | None = None,
    every_slice: bool = False,
) -> SliceGrid:
    """Choose how closely the slices `part` of a CT are looked at; `first` is one of those seen."""
    stride = max(1, math.floor(FINE_MM / spacing_z_mm + 1e-3))
    if every_slice or part.stop - part.start < FEWEST_SLICES:
        stride = 1
    anchor = first if first is not None and part.start <= first < part.stop else part.start
    return SliceGrid(n_slices, stride, anchor % stride)


class Schedule:
    """Hands out rows of a slice grid: the one on screen, a sweep, and all where the gland is.

    Of the slices in `part`, the network begins with `first`, then goes outward, or from the feet
    up; the sweep passes over those that are not `likely`. `every_slice`, and thick ones: every row.
    """

    def __init__(
        self,
        slice_grid: SliceGrid,
        spacing_z_mm: float,
        part: slice,
        first: int | None = None,
        likely: Mask | None = None,
        every_slice: bool = False,
    ) -> None:
        self._rows = np.arange(len(slice_grid))[slice_grid.rows(part)]
        self._first: int | None = None
        if first is not None:
            middle = int(slice_grid.nearest()[min(max(first, 0), slice_grid.n_slices - 1)])
            self._first = min(max(middle, int(self._rows[0])), int(self._rows[-1]))
        row_mm = spacing_z_mm * slice_grid.stride
        sweeping = (
            not every_slice and row_mm <= FINE_MM + 1e-3 and part.stop - part.start >= FEWEST_SLICES
        )
        self._step = max(1, round(SWEEP_MM / row_mm)) if sweeping else 1
        self._evidence = np.full(len(slice_grid), np.nan)
        self._asked = np.zeros(len(slice_grid), bool)
        self._sweeping = sweeping
        if sweeping and likely is not None and likely[slice_grid.z[self._rows]].any():
            self._rows = self._rows[likely[slice_grid.z[self._rows]]]

    def take(self, most: int) -> Indices:
        """Rows to do next, at most so many; none if all is done or more must be known first."""
        rows = self._pending()[:most]
        self._asked[rows] = True
        return rows

    def record(self, rows: Indices, evidence: Array) -> None:
        """Record how much of a pancreas the network saw in rows; 0 for none."""
        self._evidence[rows] = evidence

    def give_back(self, rows: Indices) -> None:
        """Have rows handed out again."""
        self._asked[rows] = False

    @property
    def total(self) -> int:
        """Rows to do in all, as far as is known."""
        return int(self._asked.sum()) + len(self._pending())

    @property
    def _on_sweep(self) -> Indices:
        return self._rows[:: self._step]

    def _pending(self) -> Indices:
        """Rows that are to be handed out, the most wanted first."""
        while True:
            sweep = self._outward(self._on_sweep[~self._asked[self._on_sweep]])
            first = [] if self._first is None or self._asked[self._first] else [self._first]
            close = self._outward(self._close())
            pending = np.array([*first, *sweep, *close], np.intp)
            unanswered = np.isnan(self._evidence[self._asked])
            if pending.size or self._step == 1 or unanswered.any() or self._found().any():
                return pending[np.sort(np.unique(pending, return_index=True)[1])]
            self._step = max(1, self._step // 2)  # nothing was found: look more closely

    def _found(self) -> Mask:
        return np.nan_to_num(self._evidence) > 0

    def _close(self) -> Indices:
        """Rows not asked for, from the last empty one before a find to the first one after it."""
        if not self._sweeping:
            return np.zeros(0, np.intp)
        found = self._found()
        # Sums of stretches are to be compared, of which some have been looked at closely.
        evidence = np.zeros(len(found))
        evidence[self._on_sweep] = np.nan_to_num(self._evidence[self._on_sweep])
        marks = np.flatnonzero(self._asked & ~found)
        runs: list[tuple[int, int, float]] = []
        for row in np.flatnonzero(found).tolist():
            after = int(np.searchsorted(marks, row))
            start = marks[after - 1] + 1 if after else 0
            stop = marks[after] if after < len(marks) else len(found)
            start, stop = max(start, row - self._step), min(stop, row + self._step + 1)
            if runs and start <= runs[-1][1]:
                runs[-1] = (runs[-1][0], stop, runs[-1][2] + evidence[row])
            else:
                runs.append((start, stop, evidence[row]))
        strongest = max((run[2] for run in runs), default=0.0)
        wanted = np.zeros(len(found), bool)
        for start, stop, strength in runs:
            wanted[start:stop] = strength >= FAINTEST_RUN * strongest
        return self._rows[wanted[self._rows] & ~self._asked[self._rows]]

    def _outward(self, rows: Indices) -> Indices:
        """Rows by their distance to the first one, or from the feet to the head."""
        if self._first is None:
            return rows
        return rows[np.argsort(np.abs(rows - self._first), kind="stable")]
