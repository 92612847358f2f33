"""What the model wrote into a labels layer, kept apart from what a person paints there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from napari.layers import Labels

from napari_pancreas_seg._napari.placement import GridReference, display_view
from napari_pancreas_seg.inference.result import FoundSlices, Segmentation

__all__ = ["ModelMask"]

Array = npt.NDArray[Any]


class ModelMask:
    """A copy of what the model wrote; where the layer differs from it, a person has been.

    Comparing is the only sure way: napari's undo and redo emit no paint event.

    Parameters
    ----------
    reference : GridReference
        The CT's grid.
    """

    def __init__(self, reference: GridReference) -> None:
        self.reference = reference
        self.copy: npt.NDArray[np.uint8] = np.zeros(reference.grid.shape, dtype=np.uint8)
        self.written: set[int] = set()
        self.result: Segmentation | None = None

    def write(self, layer: Labels, found: FoundSlices) -> None:
        """Write slices into a layer, sparing every voxel that a person has changed.

        Parameters
        ----------
        layer : Labels
            The layer that this mask belongs to; its data are written in place.
        found : FoundSlices
            What the model says.
        """
        shown = display_view(layer.data, self.reference.orientation)
        for z, plane in zip(found.z, found.mask, strict=True):
            touched = shown[z] != self.copy[z]
            np.copyto(shown[z], plane, where=~touched)
            self.copy[z] = plane
            self.written.add(int(z))

    def finish(self, result: Segmentation) -> None:
        """Keep the result, whose mask is what has been written, slice by slice."""
        self.result = result
        self.copy = result.mask  # equal by now; one of them is enough

    def clear(self, layer: Labels) -> None:
        """Take back what the model wrote; what a person painted stays."""
        z = np.array(sorted(self.written), dtype=np.intp)
        self.write(layer, FoundSlices(z, np.zeros((len(z), *self.copy.shape[1:]), np.uint8)))
        self.written.clear()
        self.result = None
