"""The shape of a gland: length, calibre, surface, and head, body and tail along its centreline."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from napari_pancreas_seg.arrays import Array, Floats, Mask
from napari_pancreas_seg.mask.postprocessing import largest_component
from napari_pancreas_seg.volume import Grid, bounding_box

Cuts = tuple[float, float]
ToIndex = Callable[[Floats], Floats]

CUTS = (1 / 3, 2 / 3)
"""Where the centreline is cut unless a person says otherwise: shares of its length, head first."""

_STEP_MM = 2.0
"""Edge of the cubes on which a gland is measured, so that the CT's spacing matters little."""
_SMOOTH_MM = 5.0
"""Standard deviation of the Gaussian that takes the steps of the cubes out of the line."""
_GAP_MM = 10.0
"""Pieces no farther apart than this are taken for one gland, where its largest is too small."""
_LARGEST_SHARE = 0.9
"""Least share of the mask that one piece must hold to have a centreline."""

IN_PIECES = "The mask is in pieces, and none of them holds 90 % of it."
TOO_SMALL = "The mask is too small to tell its shape."
TOO_LARGE = "The mask has more than 1000 mL, which is larger than any pancreas."
_LARGEST_CUBES = int(1_000_000 / _STEP_MM**3)
_LARGEST_BOX = 10_000_000
"""Cubes of a box, some 43 cm wide, beyond which pieces in it are not brought together."""


class Centreline(NamedTuple):
    """The middle of a gland from head to tail, and what was measured on it."""

    length_mm: float
    calibre_mm: float
    shares: tuple[float, float, float]  # of the mask's volume: head, body, tail
    line: Floats  # indices (z, y, x) of its points in the mask, shape (n, 3)
    cuts: tuple[int, int]  # at which of them it is cut


def follow(cubes: Array, to_index: ToIndex, cuts: Cuts = CUTS) -> Centreline | str:
    """Find the centreline of a mask that lies `on_cubes`, or say in a sentence why it has none.

    It leads from one far end of the gland to the other on the way that keeps to the middle:
    Dijkstra's, a step costs its length over the squared distance to the surface. The head is on the
    right.
    """
    from scipy import ndimage
    from scipy.sparse.csgraph import dijkstra
    from scipy.spatial import KDTree
    from skimage.graph import pixel_graph

    if not cubes.any():
        return TOO_SMALL
    if np.count_nonzero(cubes) > _LARGEST_CUBES:
        return TOO_LARGE
    gland, share = _largest_piece(cubes)
    if share < _LARGEST_SHARE and cubes.size <= _LARGEST_BOX:
        gland, share = _largest_piece(_bridged(cubes))
    box = bounding_box(gland)
    if share < _LARGEST_SHARE or box is None:
        return IN_PIECES
    # Stray voxels far away make the mask's own box large.
    gland = np.pad(gland[box], 1)
    # To the first cubes outside: in tubes and balls of known size that is the radius.
    calibre = 2 * ndimage.distance_transform_edt(np.pad(cubes[box], 1)).max()
    depth = ndimage.distance_transform_edt(gland)
    lengths, _ = pixel_graph(gland, connectivity=3)
    costs, _ = pixel_graph(depth, mask=gland, edge_function=_cost, connectivity=3)
    points = np.argwhere(gland) + [edge.start - 1.0 for edge in box]
    start = int(dijkstra(lengths, indices=0).argmax())
    end = int(dijkstra(lengths, indices=start).argmax())
    if start == end:
        return TOO_SMALL
    _, before = dijkstra(costs, indices=start, return_predecessors=True)
    way = [end]
    while way[-1] != start:
        way.append(int(before[way[-1]]))
    line = points[way if points[end, 2] < points[start, 2] else way[::-1]]
    ends = line[[0, -1]]
    line = ndimage.gaussian_filter1d(line, _SMOOTH_MM / _STEP_MM, axis=0, mode="nearest")
    line[[0, -1]] = ends
    along = np.append(0.0, np.linalg.norm(np.diff(line, axis=0), axis=1).cumsum())
    at = [int(np.abs(along / along[-1] - cut).argmin()) for cut in sorted(cuts)]
    _, nearest = KDTree(line).query(np.argwhere(cubes))
    parts = np.bincount(np.digitize(nearest, at), minlength=3) / len(nearest)
    return Centreline(
        float(along[-1]) * _STEP_MM,
        float(calibre) * _STEP_MM,
        (float(parts[0]), float(parts[1]), float(parts[2])),
        to_index(line),
        (at[0], at[1]),
    )


def surface_cm2(cubes: Array) -> float | None:
    """Area of the smoothed surface of a mask that lies `on_cubes`; None if that is too small."""
    from scipy import ndimage
    from skimage.measure import marching_cubes, mesh_surface_area

    blurred = ndimage.gaussian_filter(np.pad(cubes, 2).astype(np.float32), 0.7)
    if blurred.max() <= 0.5:
        return None
    points, faces, _, _ = marching_cubes(blurred, 0.5)
    return float(mesh_surface_area(points, faces)) * _STEP_MM**2 / 100


def _largest_piece(cubes: Array) -> tuple[Array, float]:
    """The largest piece of a mask, and which share of the mask it holds."""
    piece = largest_component(cubes).view(bool)
    return piece, np.count_nonzero(piece) / np.count_nonzero(cubes)


def _bridged(cubes: Array) -> Array:
    """A mask with what lies between pieces that are close to one another."""
    from skimage.morphology import isotropic_closing

    reach = _GAP_MM / 2 / _STEP_MM
    rim = int(reach) + 2
    return np.asarray(isotropic_closing(np.pad(cubes, rim), reach)[(slice(rim, -rim),) * 3])


def _cost(depth: Array, other: Array, distance: Array) -> Array:
    return np.asarray(distance * (depth**-2.0 + other**-2.0) / 2)


def on_cubes(mask: Array, grid: Grid) -> tuple[Mask, ToIndex]:
    """A mask (Z, Y, X) on cubes of 2 mm, and what takes their indices (n, 3) to the mask's."""
    from scipy import ndimage

    axes = np.linalg.qr(grid.affine[:3, :3])[1]
    axes *= np.sign(np.diag(axes))[:, None]
    to_grid = np.linalg.inv(axes) * _STEP_MM
    corners = np.array(list(np.ndindex(2, 2, 2))) * mask.shape @ axes.T
    shape = np.ceil(np.ptp(corners, axis=0) / _STEP_MM).astype(int) + 3
    middle = axes @ (np.array(mask.shape) - 1) / 2
    origin = np.linalg.inv(axes) @ (middle - (shape - 1) / 2 * _STEP_MM)
    straight = np.allclose(to_grid, np.diag(np.diag(to_grid)), atol=1e-6)
    values = ndimage.affine_transform(
        (mask != 0).view(np.uint8),
        np.diag(to_grid) if straight else to_grid,
        origin,
        tuple(shape),
        np.float32,
        order=1,
        mode="grid-constant",
    )
    return values >= 0.5, lambda cubes: cubes @ to_grid.T + origin
