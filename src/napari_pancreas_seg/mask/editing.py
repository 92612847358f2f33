"""Functions that edit a mask, an array in display order; each is one key in the window.

Every function takes a mask (Z, Y, X), non-zero inside, and returns a new one, uint8 with 1 inside;
all work in the mask's bounding box.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy

from napari_pancreas_seg.arrays import Array, Box, Floats32, Indices, Labels, Mask, Spacing
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.volume import bounding_box, box_around

_TOUCHING_2D = np.ones((3, 3), dtype=bool)
_TOUCHING_3D = np.ones((3, 3, 3), dtype=bool)
_SIGMAS = 4.0
"""Standard deviations at which a Gaussian is cut off."""


@dataclass(frozen=True, eq=False)
class Change:
    """Voxels that an edit adds to a label and takes away from it, within a `box` (z, y, x)."""

    label: int
    box: Box
    added: Mask
    removed: Mask

    @property
    def slices(self) -> list[int]:
        """Slices in which anything changes."""
        some = (self.added | self.removed).any(axis=(1, 2))
        return [int(z + self.box[0].start) for z in np.flatnonzero(some)]

    def voxels(self, labels: Array) -> tuple[tuple[Indices, ...], Array]:
        """Indices (z, y, x) and values to write into a label map; other labels stay."""
        now = labels[self.box]
        filled = self.added & (now == 0)
        cleared = self.removed & (now == self.label)
        inner = np.nonzero(filled | cleared)
        values = np.where(filled[inner], self.label, 0).astype(labels.dtype)
        return tuple(i + edge.start for i, edge in zip(inner, self.box, strict=True)), values


def change_of(before: Array, after: Array, label: int) -> Change | None:
    """Compare a label's mask (Z, Y, X) before and after an edit; None if nothing changes."""
    outer = box_around(before, after)
    if outer is None:
        return None
    old, new = before[outer] != 0, after[outer] != 0
    inner = bounding_box(old ^ new)
    if inner is None:
        return None
    old, new = old[inner], new[inner]
    return Change(label, _within(outer, inner), new & ~old, old & ~new)


def fill_between_slices(mask: Array, spacing: Spacing) -> Labels:
    """Fill the empty slices between slices that hold something.

    Signed distances to the outlines are blended (Raya and Udupa 1990, doi:10.1109/42.52980), piece
    by piece; a piece with one counterpart is laid over it first, one without tapers off.
    """
    filled, box = _copy(mask)
    if box is None:
        return filled
    inside = filled[box]
    held = np.flatnonzero(inside.any(axis=(1, 2)))
    for lower, upper in pairwise(held.tolist()):
        if upper - lower > 1:
            ends = inside[lower] != 0, inside[upper] != 0
            for z, plane in enumerate(_between(*ends, upper - lower, spacing[1:]), lower + 1):
                inside[z] = plane
    return filled


def keep_piece_at(mask: Array, point: tuple[int, int, int]) -> Labels:
    """Keep the connected piece that a voxel (z, y, x) belongs to; a shared corner connects."""
    kept = np.zeros(mask.shape, dtype=np.uint8)
    box = bounding_box(mask)
    on_it = all(0 <= i < n for i, n in zip(point, mask.shape, strict=True)) and mask[point]
    if box is None or not on_it:
        raise PancreasSegError("There is no piece of the mask at this place: point at one.")
    pieces, _ = scipy.ndimage.label(mask[box], _TOUCHING_3D)
    inner = tuple(i - edge.start for i, edge in zip(point, box, strict=True))
    kept[box] = pieces == pieces[inner]
    return kept


def remove_islands(mask: Array, spacing: Spacing, min_mm3: float) -> Labels:
    """Remove connected pieces smaller than so many mm³; the largest piece always stays."""
    kept, box = _copy(mask)
    if box is None:
        return kept
    pieces, _ = scipy.ndimage.label(kept[box], _TOUCHING_3D)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    stays = sizes * float(np.prod(spacing)) >= min_mm3
    stays[sizes.argmax()] = True
    stays[0] = False
    kept[box] = stays[pieces]
    return kept


def smooth(mask: Array, spacing: Spacing, sigma_mm: float) -> Labels:
    """Smooth a mask's surface with a Gaussian of so many mm and keep its volume."""
    smoothed, box = _copy(mask)
    if box is None or sigma_mm <= 0:
        return smoothed
    outer = _grown(box, _SIGMAS * sigma_mm, spacing, mask.shape)
    inside = smoothed[outer]
    count = np.count_nonzero(inside)
    sigma = [sigma_mm / step for step in spacing]
    blurred = scipy.ndimage.gaussian_filter(
        inside.astype(np.float32), sigma, mode="nearest", truncate=_SIGMAS
    )
    level = np.partition(blurred, blurred.size - count, axis=None)[blurred.size - count]
    # Voxels that lie exactly on the level belong together, inside or outside.
    with_level, without = blurred >= level, blurred > level
    excess, lack = np.count_nonzero(with_level) - count, count - np.count_nonzero(without)
    smoothed[outer] = with_level if excess <= lack else without
    return smoothed


def grow(mask: Array, spacing: Spacing, distance_mm: float) -> Labels:
    """Add every voxel whose centre lies within a distance of the mask."""
    grown, box = _copy(mask)
    if box is None or distance_mm <= 0:
        return grown
    outer = _grown(box, distance_mm, spacing, mask.shape)
    distance = scipy.ndimage.distance_transform_edt(grown[outer] == 0, sampling=spacing)
    grown[outer] = distance <= distance_mm * (1 + 1e-9)
    return grown


def shrink(mask: Array, spacing: Spacing, distance_mm: float) -> Labels:
    """Remove every voxel whose centre lies within a distance of the background in the volume."""
    shrunk, box = _copy(mask)
    if box is None or distance_mm <= 0:
        return shrunk
    # One voxel of what surrounds the mask, or its own border would not count as one.
    outer = _grown(box, max(spacing), spacing, mask.shape)
    inside = shrunk[outer] != 0
    if not inside.all():
        distance = scipy.ndimage.distance_transform_edt(inside, sampling=spacing)
        shrunk[outer] = distance > distance_mm * (1 + 1e-9)
    return shrunk


def clear_slice(mask: Array, z: int) -> Labels:
    """Empty slice z."""
    cleared, _ = _copy(mask)
    cleared[z] = 0
    return cleared


def within_hu(hu: Array, low: float, high: float) -> Mask:
    """Say which voxels lie within a range of HU, both ends included."""
    inside: Mask = (hu >= low) & (hu <= high)
    return inside


def _between(lower: Mask, upper: Mask, steps: int, spacing: tuple[float, float]) -> Iterator[Mask]:
    """Interpolate the planes between two."""
    padded = [np.pad(plane, 1) for plane in (lower, upper)]
    blends = [_Blend(*pieces, spacing) for pieces in _counterparts(*padded)]
    for step in range(1, steps):
        plane = np.zeros(padded[0].shape, dtype=bool)
        for blend in blends:
            plane |= blend.at(step / steps)
        yield plane[1:-1, 1:-1]


class _Blend:
    """The shape between pieces of two planes; one of the two may be empty."""

    def __init__(
        self, lower: Mask, upper: Mask, aligned: bool, spacing: tuple[float, float]
    ) -> None:
        self._depths = [_depth(piece, spacing) if piece.any() else None for piece in (lower, upper)]
        self._shift = np.zeros(2)
        if aligned:
            ends = [np.array(scipy.ndimage.center_of_mass(piece)) for piece in (lower, upper)]
            self._shift = ends[1] - ends[0]

    def at(self, share: float) -> Mask:
        """Shape at a share of the way from the lower plane to the upper one."""
        lower, upper = self._depths
        if lower is None or upper is None:
            depth, way = (lower, share) if upper is None else (upper, 1 - share)
            assert depth is not None
            return np.asarray(depth > way * depth.max())
        blended = (1 - share) * _moved(lower, share * self._shift)
        blended += share * _moved(upper, (share - 1) * self._shift)
        return np.asarray(blended > 0)


def _counterparts(lower: Mask, upper: Mask) -> Iterator[tuple[Mask, Mask, bool]]:
    """Yield groups of pieces that overlap between two planes, and whether it is one on one."""
    pieces, n_lower = scipy.ndimage.label(lower, _TOUCHING_2D)
    others, n_upper = scipy.ndimage.label(upper, _TOUCHING_2D)
    both = lower & upper
    links = pieces[both] - 1, others[both] - 1 + n_lower
    n = n_lower + n_upper
    graph = scipy.sparse.coo_array((np.ones(len(links[0])), links), shape=(n, n))
    n_groups, group = scipy.sparse.csgraph.connected_components(graph, directed=False)
    for number in range(n_groups):
        members = np.flatnonzero(group == number)
        below, above = members[members < n_lower] + 1, members[members >= n_lower] - n_lower + 1
        one_on_one = len(below) == 1 and len(above) == 1
        yield np.isin(pieces, below), np.isin(others, above), one_on_one


def _depth(piece: Mask, spacing: tuple[float, float]) -> Floats32:
    """Signed distance to a piece's outline in mm, positive inside."""
    inner = scipy.ndimage.distance_transform_edt(piece, sampling=spacing)
    outer = scipy.ndimage.distance_transform_edt(~piece, sampling=spacing)
    return np.asarray(inner - outer, dtype=np.float32)


def _moved(depth: Floats32, shift: Array) -> Floats32:
    if not shift.any():
        return depth
    return np.asarray(scipy.ndimage.shift(depth, shift, order=1, mode="nearest"))


def _copy(mask: Array) -> tuple[Labels, Box | None]:
    """Copy a mask as uint8 with ones inside; touches its box alone."""
    copied = np.zeros(mask.shape, dtype=np.uint8)
    box = bounding_box(mask)
    if box is not None:
        copied[box] = mask[box] != 0
    return copied, box


def _grown(box: Box, distance_mm: float, spacing: Spacing, shape: tuple[int, ...]) -> Box:
    """Widen a box by a distance, as far as the volume goes."""
    z, y, x = (
        slice(max(0, edge.start - reach), min(n, edge.stop + reach))
        for edge, reach, n in zip(
            box, (int(np.ceil(distance_mm / step)) for step in spacing), shape, strict=True
        )
    )
    return z, y, x


def _within(outer: Box, inner: Box) -> Box:
    """Say where a box within a box lies in the volume."""
    z, y, x = (
        slice(a.start + b.start, a.start + b.stop) for a, b in zip(outer, inner, strict=True)
    )
    return z, y, x
