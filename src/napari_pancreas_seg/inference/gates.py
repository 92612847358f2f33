"""Which attention gate tells the pancreas best from what is around it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from napari_pancreas_seg.inference.result import ScalarMap
from napari_pancreas_seg.volume import Grid


def best_gate(maps: Mapping[str, ScalarMap], mask: Any, grid: Grid, card: Mapping[str, Any]) -> str:
    """The gate that tells most: as the card says, else as measured on a mask (Z, Y, X)."""
    gates = sorted(word for word in maps if word.startswith("attention"))
    told = {word: value for word, value in _told(card).items() if word in gates}
    found = told or {word: separation(maps[word], mask, grid) for word in gates}
    return max(found, key=lambda word: found[word], default="")


def _told(card: Mapping[str, Any]) -> dict[str, float]:
    """Mean coefficient in the gland minus in other tissue by gate, from what `evaluate` found."""
    rows, told = card.get("attention"), {}
    for row in rows if isinstance(rows, list) else []:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            told[f"attention {row['gate']}"] = float(row["inside"]) - float(row["tissue"])
    return told


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
