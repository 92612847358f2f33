"""Painting limited to a range of HU: what lies outside is taken back when a stroke ends."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from napari.layers import Labels
from qtpy.QtCore import QObject, QTimer

from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.layers.placement import lies_on
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg.arrays import Array, Indices
from napari_pancreas_seg.mask.correction import within_hu


class PaintLimit(QObject):
    """Takes painted voxels of the chosen mask back whose HU lie outside a range; erasing is free.

    `range_hu` returns what may be painted in HU, both ends included; None limits nothing.
    """

    def __init__(
        self, session: Session, range_hu: Callable[[], tuple[float, float] | None]
    ) -> None:
        super().__init__()
        self._session = session
        self._range_hu = range_hu
        self._layer: weakref.ref[Labels] | None = None
        session.mask_chosen.connect(self._follow)
        self._follow()

    def _follow(self) -> None:
        before = None if self._layer is None else self._layer()
        if before is not None:
            before.events.paint.disconnect(self._on_paint)
        layer = self._session.mask
        self._layer = None if layer is None else weakref.ref(layer)
        if layer is not None:
            # First of all: who else listens is told of what stays.
            layer.events.paint.connect(self._on_paint, position="first")

    def _on_paint(self, event: Any) -> None:
        layer, ct, allowed = event.source, self._session.ct, self._range_hu()
        reference = self._session.reference
        if allowed is None or ct is None or reference is None or not lies_on(layer, reference):
            return
        step = event.value
        if not compat.is_by_hand(step):
            return  # written by a program, a correction for instance, not by hand
        if _is_written(layer, step):
            limit_stroke(layer, step, ct.data, *allowed)
        else:
            # A polygon is announced before it is painted.
            QTimer.singleShot(0, lambda: self._limit_later(layer, step, ct.data, allowed))

    def _limit_later(
        self, layer: Labels, step: list[Any], hu: Any, allowed: tuple[float, float]
    ) -> None:
        if compat.is_last_undo_step(layer, step):
            limit_stroke(layer, step, hu, *allowed)


def limit_stroke(layer: Labels, step: list[Any], hu: Any, low: float, high: float) -> int:
    """Take back what a stroke painted outside a range of HU, both ends included; count voxels.

    `step` is a step of the layer's undo, and is extended; of the CT only its boxes are read.
    """
    shape = layer.data.shape
    edits = [
        (indices, np.ravel_multi_index(indices, shape), before)
        for indices, before, value in compat.edits(step)
        if np.any(np.asarray(value) != 0)  # erasing is not limited
    ]
    outside = [flat[~within_hu(_at(hu, indices), low, high)] for indices, flat, _ in edits]
    wrong = np.unique(np.concatenate(outside)) if edits else np.zeros(0, np.intp)
    if len(wrong) == 0:
        return 0
    voxels = tuple(np.unravel_index(wrong, shape))
    painted = layer.data[voxels].copy()
    original = painted.copy()
    # From the last edit to the first: the oldest value of a voxel is what it had before.
    for _, flat, before in reversed(edits):
        where = np.minimum(np.searchsorted(wrong, flat), len(wrong) - 1)
        known = wrong[where] == flat
        original[where[known]] = before[known]
    layer.data[voxels] = original
    step.append((voxels, painted, original))
    layer.refresh(extent=False, thumbnail=False, highlight=False)
    return len(wrong)


def _is_written(layer: Labels, step: list[Any]) -> bool:
    *_, (indices, _, value) = compat.edits(step)
    return bool(np.all(layer.data[indices] == value))


def _at(hu: Any, indices: tuple[Indices, ...]) -> Array:
    """Read the CT's values at voxels; of a lazy one, the voxels' box alone."""
    if isinstance(hu, np.ndarray):
        return hu[indices]
    if not len(indices[0]):
        return np.zeros(0)
    box = tuple(slice(int(i.min()), int(i.max()) + 1) for i in indices)
    return np.asarray(hu[box])[tuple(i - s.start for i, s in zip(indices, box, strict=True))]
