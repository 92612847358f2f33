"""Painting with napari's own tools: a brush sized in mm, and strokes within a range of HU."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from napari.layers import Labels
from napari.utils.notifications import show_info
from qtpy.compat import isalive
from qtpy.QtCore import QObject, QTimer, Signal

from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.correct.editor import DEFAULTS
from napari_pancreas_seg._napari.layers.bridge import HU
from napari_pancreas_seg._napari.layers.foreign import UnitsOfCts
from napari_pancreas_seg._napari.layers.placement import lies_on
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg._napari.settings import Settings
from napari_pancreas_seg.arrays import Array, Indices
from napari_pancreas_seg.mask.editing import within_hu

BRUSH_MM = 6.0
SMALLEST_MM, LARGEST_MM = 0.1, 200.0
"""Of the brush, as the panel offers it; napari's own may be larger or smaller."""


class Brush(QObject):
    """Keeps the brush of masks at a diameter in mm, which napari's own controls change, too."""

    changed = Signal()

    def __init__(self, session: Session, settings: Settings) -> None:
        super().__init__()
        self._session, self._settings = session, settings
        settings.cleared.connect(self._apply)
        session.mask_chosen.connect(self._on_mask)
        compat.hide_brush_box(session.viewer)

    @property
    def mm(self) -> float:
        mm = float(self._settings.get("correct/brush_mm", BRUSH_MM))
        return min(max(mm, SMALLEST_MM), LARGEST_MM)

    @mm.setter
    def mm(self, mm: float) -> None:
        self._settings.set("correct/brush_mm", mm)
        self._apply()

    def _on_mask(self) -> None:
        if self._session.mask is not None:
            self._session.mask.events.brush_size.connect(self._on_size)
            self._apply()

    def _apply(self) -> None:
        mask, pixel_mm = self._session.mask, self._pixel_mm
        if mask is not None and pixel_mm is not None:
            with mask.events.brush_size.blocker(self._on_size):
                mask.brush_size = max(1, round(self.mm / pixel_mm))
        self.changed.emit()

    def _on_size(self, event: Any) -> None:
        mask, pixel_mm = self._session.mask, self._pixel_mm
        if isalive(self) and event.source is mask and mask is not None and pixel_mm is not None:
            self._settings.set("correct/brush_mm", round(mask.brush_size * pixel_mm, 1))
            self.changed.emit()

    @property
    def _pixel_mm(self) -> float | None:
        reference = self._session.reference
        return None if reference is None else reference.pixel_mm


class PaintLimit(QObject):
    """Undoes painted voxels of the chosen mask whose HU lie outside a range, while it is `on`."""

    changed = Signal()

    def __init__(self, session: Session, settings: Settings, units: UnitsOfCts) -> None:
        super().__init__()
        self._session, self._settings, self._units = session, settings, units
        self._on = False  # not remembered: strokes that are lost would puzzle
        session.mask_chosen.connect(self._follow)
        self._follow()

    @property
    def on(self) -> bool:
        return self._on

    @on.setter
    def on(self, on: bool) -> None:
        self._on = on
        self.changed.emit()

    def toggle(self) -> None:
        self.on = not self.on
        low, high = self._range_hu
        within = f"limited to {low:g} to {high:g} HU" if self.on else "not limited in HU"
        show_info(f"Painting is {within}.")

    @property
    def _range_hu(self) -> tuple[float, float]:
        names = "correct/limit_low_hu", "correct/limit_high_hu"
        low, high = sorted(self._settings.get(name, DEFAULTS[name]) for name in names)
        return low, high  # whichever was typed into which field

    def _follow(self) -> None:
        if self._session.mask is not None:
            # First of all: who else listens is told of what stays.
            self._session.mask.events.paint.connect(self._on_paint, position="first")

    def _on_paint(self, event: Any) -> None:
        session, layer, step = self._session, event.source, event.value
        ct, reference, is_chosen = session.ct, session.reference, layer is session.mask
        if not (self.on and is_chosen) or ct is None or reference is None:
            return
        if not lies_on(layer, reference) or not compat.is_by_hand(step):
            return  # what a program wrote, a correction for instance, stays
        slope, shift, *_ = self._units.of(ct, reference) or HU
        ends = ((hu - shift) / slope for hu in self._range_hu)  # in values of the layer
        limit = partial(limit_stroke, layer, step, ct.data, *ends)
        *_, (indices, _, value) = compat.edits(step)
        if np.all(layer.data[indices] == value):
            limit()
        else:
            # A polygon is announced before it is painted.
            last = partial(compat.is_last_undo_step, layer, step)
            QTimer.singleShot(0, lambda: last() and limit())


def limit_stroke(layer: Labels, step: list[Any], hu: Any, low: float, high: float) -> int:
    """Unpaint the voxels of a stroke outside a range of HU, ends included; return their number."""
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


def _at(hu: Any, indices: tuple[Indices, ...]) -> Array:
    """Read the CT's values at voxels; of a lazy one, the voxels' box alone."""
    if isinstance(hu, np.ndarray):
        return hu[indices]
    if not len(indices[0]):
        return np.zeros(0)
    box = tuple(slice(int(i.min()), int(i.max()) + 1) for i in indices)
    return np.asarray(hu[box])[tuple(i - s.start for i, s in zip(indices, box, strict=True))]
