"""Painting limited to a range of HU: what lies outside is taken back when a stroke ends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
    """Takes painted voxels of the chosen mask back whose HU lie outside a range, if there is one."""

    def __init__(
        self, session: Session, range_hu: Callable[[], tuple[float, float] | None]
    ) -> None:
        super().__init__()
        self._session = session
        self._range_hu = range_hu
        session.mask_chosen.connect(self._follow)
        self._follow()

    def _follow(self) -> None:
        if self._session.mask is not None:
            # First of all: who else listens is told of what stays.
            self._session.mask.events.paint.connect(self._on_paint, position="first")

    def _on_paint(self, event: Any) -> None:
        session, layer, step, allowed = self._session, event.source, event.value, self._range_hu()
        ct, reference = session.ct, session.reference
        if layer is not session.mask or allowed is None or ct is None or reference is None:
            return
        if not lies_on(layer, reference) or not compat.is_by_hand(step):
            return  # what a program wrote, a correction for instance, stays
        limit = partial(limit_stroke, layer, step, ct.data, *allowed)
        if _is_written(layer, step):
            limit()
        else:
            # A polygon is announced before it is painted.
            last = partial(compat.is_last_undo_step, layer, step)
            QTimer.singleShot(0, lambda: last() and limit())


def limit_stroke(layer: Labels, step: list[Any], hu: Any, low: float, high: float) -> int:
    """Take back what a step of undo painted outside a range of HU, ends included; count voxels."""
    taken = np.zeros(0, np.intp)
    # From the last edit to the first: the oldest value of a voxel is what it had before.
    for indices, before, value in reversed([*compat.edits(step)]):
        outside = ~within_hu(_at(hu, indices), low, high)
        if np.any(np.asarray(value) != 0) and outside.any():  # erasing is not limited
            voxels = tuple(axis[outside] for axis in indices)
            step.append((voxels, layer.data[voxels], before[outside]))
            layer.data[voxels] = before[outside]
            taken = np.union1d(taken, np.ravel_multi_index(voxels, layer.data.shape))
    if len(taken):
        layer.refresh(extent=False, thumbnail=False, highlight=False)
    return len(taken)


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
