"""What the model wrote into a labels layer, kept apart from what a person paints there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from napari.layers import Labels, Layer

from napari_pancreas_seg._napari.layers.placement import GridReference
from napari_pancreas_seg.arrays import Array, Bytes, Indices, Mask
from napari_pancreas_seg.inference.result import FoundSlices, Segmentation

Strokes = tuple[Indices, Array]
"""Where a person has been in a slice, as flat indices, and what was left there."""


class ModelMask:
    """A copy of what the model wrote; where the layer differs from it, a person has been.

    Comparing is the only sure way: napari's undo and redo emit no paint event. What a person
    left is remembered when the model's mask changes under it (another threshold), because the
    two may agree by then, and differ again later.

    `copy` (Z, Y, X) is the model's mask in display order, with the threshold of now; `filled`
    are slices that hold something of the model's, or did; `result` comes with the run's end.
    `rest` (Z, Y, X) is what a restricted run has left of an earlier mask; this run did not write
    it, so those slices count as changed.
    """

    def __init__(self, reference: GridReference, rest: Bytes | None = None) -> None:
        self.reference, self.rest = reference, rest
        self.copy: Bytes = np.zeros(reference.grid.shape, dtype=np.uint8)
        self.filled: set[int] = set()
        self.result: Segmentation | None = None
        self._strokes: dict[int, Strokes] = {}
        self._left_alone: dict[int, Bytes] = {}  # slices (Y, X) as they were before a stroke

    @classmethod
    def holding(
        cls, reference: GridReference, mask: Bytes, result: Segmentation | None = None
    ) -> ModelMask:
        """Take a mask (Z, Y, X) for what the model wrote; the array is kept, unless read-only."""
        known = cls(reference)
        known.copy = mask if mask.flags.writeable else mask.copy()
        known.filled = set(np.flatnonzero(mask.any(axis=(1, 2))).tolist())
        if result is not None:
            known.finish(result)
        return known

    def fits(self, layer: Layer) -> bool:
        """Whether a layer's data are such as a run writes into."""
        data: Any = layer.data
        return (
            isinstance(data, np.ndarray)
            and data.dtype == np.uint8
            and data.shape == self.reference.layer_shape
        )

    def shown(self, layer: Labels) -> Array:
        """View a layer's data in display order (Z, Y, X); writing to it writes to the layer."""
        return self.reference.view(layer.data)

    def touched(self, layer: Labels, z: int) -> Mask:
        """Where a person has been in a slice (Y, X): what a new threshold must not undo."""
        plane = self.shown(layer)[z]
        touched: Mask = np.ascontiguousarray(plane != self._untouched(z))
        if z in self._strokes:
            where, left = self._strokes[z]
            still = plane.reshape(-1)[where] == left
            touched.reshape(-1)[where[still]] = True
        return touched

    def touched_slices(self, layer: Labels) -> Mask:
        """The slices that differ from the model's; looks at every voxel, so for a thread."""
        if layer.data.shape != self.reference.layer_shape:  # it was cut
            return np.ones(len(layer.data), dtype=bool)
        shown = self.shown(layer)
        return np.array(
            [
                not np.array_equal(shown[z], self.copy[z])
                or (z in self._strokes and bool(self.touched(layer, z).any()))
                for z in range(len(self.copy))
            ]
        )

    def write(self, layer: Labels, found: FoundSlices) -> None:
        """Write slices as a run finds them; a slice that a person has edited stays as it is."""
        shown = self.shown(layer)
        for z, plane in zip(found.z.tolist(), found.mask, strict=True):
            if z not in self.filled and not plane.any():
                continue  # nothing was there and nothing is: memory need not be touched
            before = self._untouched(z)
            untouched = z not in self._strokes and np.array_equal(shown[z], before)
            if not untouched:
                self._left_alone.setdefault(z, before.copy())
            self.copy[z] = plane
            self.filled.add(z)
            if untouched:
                shown[z] = self._untouched(z)

    def catch_up(self, layer: Labels, *, undone: bool) -> bool:
        """Write the slices that a run left alone for strokes that are `undone` by now, if any.

        What was erased by hand stays empty.
        """
        shown, known = self.shown(layer), self._left_alone.items()
        bare = [z for z, before in known if np.array_equal(shown[z], before)]
        for z in bare:
            del self._left_alone[z]
            if undone:
                shown[z] = self._untouched(z)
        return undone and bool(bare)

    def _untouched(self, z: int) -> Bytes:
        """A slice (Y, X) as it is where no person has been."""
        return self.copy[z] if self.rest is None else np.maximum(self.copy[z], self.rest[z])

    def replace(self, layer: Labels, mask: Bytes, box: tuple[slice, ...]) -> None:
        """Put another mask (Z, Y, X), equal to `copy` outside of `box`, under what was painted."""
        shown, within = self.shown(layer), box[1:]
        self._left_alone.clear()  # undo ends here
        for z in range(box[0].start, box[0].stop):
            new, old = mask[z][within], self.copy[z][within]
            if np.array_equal(new, old):
                continue
            touched = self.touched(layer, z)
            if touched.any():
                where = np.flatnonzero(touched)
                self._strokes[z] = where, shown[z].reshape(-1)[where]
            old[...] = new
            np.copyto(shown[z][within], self._untouched(z)[within], where=~touched[within])
            self.filled.add(z)

    def finish(self, result: Segmentation) -> None:
        """Keep the result of the run whose slices have been written."""
        # They are equal by now; one array is enough, and it goes along with a new threshold.
        self.result = replace(result, mask=self.copy)

    def restore(self, layer: Labels, former: ModelMask) -> None:
        """Put a former mask of the model's back, voxel by voxel under what a person painted."""
        self.replace(layer, former.copy, tuple(slice(0, n) for n in former.copy.shape))
        # They are equal now; the result goes along with the copy that it was made with.
        self.copy, self.filled, self.result = former.copy, former.filled, former.result
        for z, strokes in former._strokes.items():
            self._strokes.setdefault(z, strokes)

    def emptied(self, layer: Labels, earlier: Bytes | None = None) -> ModelMask:
        """Take back what the model wrote, for another run; this one keeps what it knows."""
        shown = self.shown(layer)
        for z in sorted(self.filled) if self.rest is None else range(len(shown)):
            under = 0 if earlier is None else earlier[z]
            np.copyto(shown[z], under, where=~self.touched(layer, z))
        return ModelMask(self.reference)

    def clear(self, layer: Labels, earlier: Bytes | None = None) -> None:
        """Take back what the model wrote, and the rest; what a person painted stays.

        `earlier` (Z, Y, X) comes back under it.
        """
        fresh = self.emptied(layer, earlier).copy
        self.copy, self.filled, self._strokes, self.result = fresh, set(), {}, None
        self.rest, self._left_alone = None, {}
