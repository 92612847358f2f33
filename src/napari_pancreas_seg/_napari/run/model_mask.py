"""What the model wrote into a labels layer, kept apart from what a person paints there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from napari.layers import Labels, Layer

from napari_pancreas_seg._napari.layers.placement import GridReference, display_view
from napari_pancreas_seg.inference.result import FoundSlices, Segmentation

__all__ = ["ModelMask"]

Array = npt.NDArray[Any]
Strokes = tuple[npt.NDArray[np.intp], npt.NDArray[Any]]
"""Where a person has been in a slice, as flat indices, and what was left there."""


class ModelMask:
    """A copy of what the model wrote; where the layer differs from it, a person has been.

    Comparing is the only sure way: napari's undo and redo emit no paint event. What a person
    left is remembered when the model's mask changes under it (another threshold), because the
    two may agree by then, and differ again later.

    Parameters
    ----------
    reference : GridReference
        The CT's grid.

    Attributes
    ----------
    copy : ndarray, shape (Z, Y, X), uint8
        The model's mask in display order, as it is with the threshold of now.
    written : set of int
        Slices that the model has written.
    result : Segmentation or None
        What the run returned, once it has ended.
    """

    def __init__(self, reference: GridReference) -> None:
        self.reference = reference
        self.copy: npt.NDArray[np.uint8] = np.zeros(reference.grid.shape, dtype=np.uint8)
        self.written: set[int] = set()
        self.result: Segmentation | None = None
        self._strokes: dict[int, Strokes] = {}

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
        return display_view(layer.data, self.reference.orientation)

    def touched(self, layer: Labels, z: int) -> npt.NDArray[np.bool_]:
        """Find what a person has changed in a slice, and what a new threshold must not undo.

        Parameters
        ----------
        layer : Labels
            The layer that this mask belongs to.
        z : int
            The slice in display order.

        Returns
        -------
        ndarray, shape (Y, X), bool
            True where a person has been.
        """
        plane = self.shown(layer)[z]
        touched: npt.NDArray[np.bool_] = np.ascontiguousarray(plane != self.copy[z])
        if z in self._strokes:
            where, left = self._strokes[z]
            still = plane.reshape(-1)[where] == left
            touched.reshape(-1)[where[still]] = True
        return touched

    def touched_slices(self, layer: Labels) -> npt.NDArray[np.bool_]:
        """Find the slices that a person has changed.

        Looks at every voxel (some 50 ms for 512×512×400): for a thread.

        Returns
        -------
        ndarray, shape (Z,), bool
            True for slices in which a person has been.
        """
        shown = self.shown(layer)
        return np.array(
            [
                not np.array_equal(shown[z], self.copy[z])
                or (z in self._strokes and bool(self.touched(layer, z).any()))
                for z in range(len(self.copy))
            ]
        )

    def write(self, layer: Labels, found: FoundSlices) -> None:
        """Write slices as a run finds them; a slice that a person has edited stays as it is.

        Parameters
        ----------
        layer : Labels
            The layer that this mask belongs to; its data are written in place.
        found : FoundSlices
            What the model says.
        """
        shown = self.shown(layer)
        for z, plane in zip(found.z.tolist(), found.mask, strict=True):
            if z not in self._strokes and np.array_equal(shown[z], self.copy[z]):
                shown[z] = plane
            self.copy[z] = plane
            self.written.add(z)

    def replace(self, layer: Labels, mask: npt.NDArray[np.uint8], box: tuple[slice, ...]) -> None:
        """Put another mask of the model's under what a person painted: a new threshold.

        Parameters
        ----------
        layer : Labels
            The layer that this mask belongs to; its data are written in place.
        mask : ndarray, shape (Z, Y, X), uint8
            The model's new mask.
        box : tuple of slice
            Where the new mask and `copy` may differ.
        """
        shown, within = self.shown(layer), box[1:]
        for z in range(box[0].start, box[0].stop):
            new, old = mask[z][within], self.copy[z][within]
            if np.array_equal(new, old):
                continue
            touched = self.touched(layer, z)
            if touched.any():
                where = np.flatnonzero(touched)
                self._strokes[z] = where, shown[z].reshape(-1)[where]
            np.copyto(shown[z][within], new, where=~touched[within])
            old[...] = new

    def finish(self, result: Segmentation) -> None:
        """Keep the result of the run whose slices have been written."""
        # They are equal by now; one array is enough, and it goes along with a new threshold.
        self.result = replace(result, mask=self.copy)

    def restore(self, layer: Labels, former: ModelMask) -> None:
        """Put a former mask of the model's back, voxel by voxel under what a person painted.

        Parameters
        ----------
        layer : Labels
            The layer that this mask belongs to; its data are written in place.
        former : ModelMask
            What the model had written there before.
        """
        self.replace(layer, former.copy, tuple(slice(0, n) for n in former.copy.shape))
        # They are equal now; the result goes along with the copy that it was made with.
        self.copy, self.written, self.result = former.copy, former.written, former.result
        for z, strokes in former._strokes.items():
            self._strokes.setdefault(z, strokes)

    def emptied(self, layer: Labels) -> ModelMask:
        """Take back what the model wrote, for another run; this one keeps what it knows.

        Returns
        -------
        ModelMask
            For the layer, in place of this one.
        """
        shown = self.shown(layer)
        for z in sorted(self.written):
            np.copyto(shown[z], 0, where=~self.touched(layer, z))
        return ModelMask(self.reference)

    def clear(self, layer: Labels) -> None:
        """Take back what the model wrote; what a person painted stays."""
        fresh = self.emptied(layer)
        self.copy, self.written, self._strokes = fresh.copy, set(), {}
        self.result = None
