"""The part of a CT that a rectangle in a shapes layer marks."""

from __future__ import annotations

from typing import Any

import numpy as np
from napari.layers import Image, Shapes

from napari_pancreas_seg._napari.layers.placement import GridReference, units_ratio
from napari_pancreas_seg.errors import PancreasSegError


def box_of_shapes(shapes: Shapes, ct: Image, reference: GridReference) -> tuple[int, int, int, int]:
    """Smallest box (top, bottom, left, right) around the selected shapes, or all, on the slices."""
    chosen = sorted(shapes.selected_data) or range(len(shapes.data))
    corners = [np.asarray(shapes.data[index], float)[:, -3:] for index in chosen]
    if not corners:
        raise PancreasSegError(f"Draw a rectangle in '{shapes.name}' first.")
    ratio = [units_ratio(a, b) for a, b in zip(shapes.units[-2:], ct.units[-2:], strict=True)]
    world = np.array([shapes.data_to_world(_full(c, shapes.ndim)) for c in np.concatenate(corners)])
    points = np.zeros((len(world), 3))
    points[:, :] = ct.data_to_world((0, 0, 0))
    points[:, 1:] = world[:, -2:] * ratio
    if world.shape[1] > 2:
        points[:, 0] = world[:, -3] * units_ratio(shapes.units[-3], ct.units[-3])
    in_layer = np.array([[*ct.world_to_data(point), 1.0] for point in points])
    index = (np.linalg.inv(reference.to_layer) @ in_layer.T).T[:, 1:3]
    low = np.ceil(index.min(axis=0) - 0.01).astype(int)
    high = np.floor(index.max(axis=0) + 0.01).astype(int) + 1
    if (high - low < 2).any():
        raise PancreasSegError(
            f"The shapes in '{shapes.name}' enclose nothing on the CT's slices. Draw a "
            "rectangle with the axial slices on screen."
        )
    return int(low[0]), int(high[0]), int(low[1]), int(high[1])


def _full(corner: Any, ndim: int) -> Any:
    """Complete a corner to the layer's dimensions; axes before the last three do not matter."""
    return np.concatenate([np.zeros(ndim - len(corner)), corner])
