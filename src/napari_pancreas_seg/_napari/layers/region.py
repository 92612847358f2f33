"""The part of a CT that a rectangle in a shapes layer marks."""

from __future__ import annotations

import numpy as np
from napari.layers import Image, Shapes

from napari_pancreas_seg._napari.layers.placement import GridReference, index_in
from napari_pancreas_seg.errors import PancreasSegError


def box_of_shapes(shapes: Shapes, ct: Image, reference: GridReference) -> tuple[int, int, int, int]:
    """Smallest box (top, bottom, left, right) around the selected shapes, or all, on the slices."""
    chosen = sorted(shapes.selected_data) or range(len(shapes.data))
    corners = [np.asarray(shapes.data[index], float)[:, -3:] for index in chosen]
    if not corners:
        raise PancreasSegError(f"Draw a rectangle in '{shapes.name}' first.")
    drawn = np.concatenate(corners)
    # Axes before the last three do not matter, nor does a third one that the shapes have not.
    drawn = np.pad(drawn, ((0, 0), (shapes.ndim - drawn.shape[1], 0)))
    first, units = ct.data_to_world((0, 0, 0))[0], (ct.units[0], *shapes.units)[-3:]
    world = [(first, *shapes.data_to_world(corner))[-3:] for corner in drawn]
    index = np.array([index_in(ct, reference, point, units)[1:] for point in world])
    low = np.ceil(index.min(axis=0) - 0.01).astype(int)
    high = np.floor(index.max(axis=0) + 0.01).astype(int) + 1
    if (high - low < 2).any():
        raise PancreasSegError(
            f"The shapes in '{shapes.name}' enclose nothing on the CT's slices. Draw a "
            "rectangle with the axial slices on screen."
        )
    return int(low[0]), int(high[0]), int(low[1]), int(high[1])
