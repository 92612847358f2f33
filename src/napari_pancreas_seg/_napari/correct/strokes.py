"""Strokes in a slice of a mask: painted while the mouse is down, then kept for the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from napari.components import ViewerModel

from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.correct.apply import Target
from napari_pancreas_seg._napari.layers.placement import index_at
from napari_pancreas_seg.arrays import Array, Floats, Indices, Mask

STROKE_MM = 4.0
"""How wide a stroke is; the network has learnt from narrow ones."""


@dataclass(eq=False)
class Stroke:
    """A stroke in a slice: its pixels (flat indices), and its edit in the layer's history."""

    z: int
    adds: bool
    pixels: Indices
    edit: compat.Edit | None = None
    undone: bool = False


class Drag:
    """A stroke that is being drawn: the slice `before` it, and where it has been (Y, X)."""

    def __init__(self, target: Target, z: int, adds: bool) -> None:
        self.target, self.z, self.adds = target, z, adds
        self.before: Array = target.shown[z].copy()
        self._drawn = np.zeros(self.before.shape, bool)
        self._last: Floats | None = None

    def to(self, viewer: ViewerModel, position: Sequence[float]) -> None:
        target = self.target
        if not target.is_in(viewer):
            return
        layer, plane, label = target.layer, target.shown[self.z], target.label
        here = index_at(viewer, layer, target.reference, position)[1:]
        last = here if self._last is None else self._last
        new = dab(plane.shape, last, here, target.reference.grid.spacing[1:]) & ~self._drawn
        self._drawn, self._last = self._drawn | new, here
        if not self.adds:
            plane[new & (plane == label)] = 0
        else:
            plane[new & (plane == 0) if layer.preserve_labels else new] = label
        layer.refresh(extent=False, thumbnail=False, highlight=False)

    def end(self) -> Stroke:
        """Make what was painted a step of undo."""
        stroke = Stroke(self.z, self.adds, np.flatnonzero(self._drawn))
        changed = self.target.shown[self.z] != self.before
        if changed.any():
            stroke.edit = edit_of(self.target, self.z, changed, self.before)
            compat.add_undo_step(self.target.layer, stroke.edit)
        return stroke


def dab(shape: tuple[int, ...], start: Floats, end: Floats, spacing: tuple[float, ...]) -> Mask:
    """Pixels (Y, X) of a stroke from one point to another; at least the one at its end."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    (y0, x0), (dy, dx) = start * spacing, (end - start) * spacing
    away_y, away_x = y * spacing[0] - y0, x * spacing[1] - x0
    along = np.clip((away_y * dy + away_x * dx) / max(dy * dy + dx * dx, 1e-9), 0, 1)
    near = np.hypot(away_y - along * dy, away_x - along * dx) <= STROKE_MM / 2
    row, column = np.rint(end).astype(int)
    if 0 <= row < shape[0] and 0 <= column < shape[1]:
        near[row, column] = True
    return np.asarray(near)


def edit_of(target: Target, z: int, changed: Mask, before: Array) -> compat.Edit:
    """An edit for the layer's history, of pixels (Y, X) of a slice that have been written."""
    y, x = np.nonzero(changed)
    where = target.reference.layer_indices((np.full(len(y), z), y, x))
    return where, before[changed], target.layer.data[where]
