"""The frame: the part of every slice that the network sees, at one physical scale.

There is one for a whole volume, centred on the body. Getting in and out of it is two small
matrices, exact in millimetres, without aliasing, zero outside of the slice, but for a mirror image
where the body is cut off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from napari_pancreas_seg.arrays import Array, Floats32, Indices, Spacing
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.schedule import SliceGrid
from napari_pancreas_seg.volume import Grid

Edges = tuple[int | None, int | None, int | None, int | None]
"""Where a body is cut off: first row, row behind the last, first column, column behind the last;
None where it ends by itself."""


@dataclass(frozen=True)
class FrameSpec:
    """Size of a frame, and the offset (y, x) of its centre from that of the body's box."""

    height: int = 160
    width: int = 224
    mm_per_pixel: float = 1.2
    offset_mm: tuple[float, float] = (-28.0, 14.0)

    def to_dict(self) -> dict[str, Any]:
        """The specification as plain data, for a card."""
        return {**asdict(self), "offset_mm": list(self.offset_mm)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FrameSpec:
        """Read what `to_dict` wrote."""
        known = {key: value for key, value in data.items() if key != "centre"}  # always the body
        return cls(**{**known, "offset_mm": tuple(data["offset_mm"])})


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame laid on the slices of one volume."""

    spec: FrameSpec
    shape: tuple[int, int]  # (Y, X) of the volume's slices
    origin: tuple[float, float]  # (y, x) index in the slice of the frame's pixel (0, 0)
    step: tuple[float, float]  # slice pixels per frame pixel along (y, x)
    edges: Edges = (None, None, None, None)  # beyond, the network is shown a mirror image

    @property
    def axes(self) -> Iterator[tuple[int, int, float, float, tuple[int | None, int | None]]]:
        """Along y and x: pixels of frame and slice, origin, step, and where the body is cut off."""
        sizes = (self.spec.height, self.spec.width)
        edges = (self.edges[:2], self.edges[2:])
        return zip(sizes, self.shape, self.origin, self.step, edges, strict=True)

    def into(self) -> tuple[Floats32, Floats32]:
        """Matrices (height, Y) and (width, X) that bring a slice into the frame."""
        return tuple(  # type: ignore[return-value]
            resampling_matrix(n_slice, n_frame, origin, step, edges)
            for n_frame, n_slice, origin, step, edges in self.axes
        )

    def not_mirrored(self, maps: Array) -> Array:
        """Clear maps (n, height, width, ...) where the network saw a mirror image."""
        for axis, (n, _, origin, step, (low, high)) in enumerate(self.axes):
            place = origin + step * np.arange(n)
            beyond = np.zeros(len(place), bool)
            if low is not None:
                beyond |= place < low - 0.5
            if high is not None:
                beyond |= place > high - 0.5
            if beyond.any():
                maps = maps.copy()
                np.moveaxis(maps, 1 + axis, 0)[beyond] = 0
        return maps

    def out_of(self) -> tuple[Floats32, Floats32]:
        """Matrices (Y, height) and (X, width) that bring a frame back onto the slice."""
        return tuple(  # type: ignore[return-value]
            resampling_matrix(n_frame, n_slice, -origin / step, 1 / step)
            for n_frame, n_slice, origin, step, _ in self.axes
        )

    def within(self, values: Array, box: tuple[slice, ...]) -> Array:
        """Clear maps (n, height, width, ...) beyond a box (y, x) and a rim of a pixel."""
        keep = []
        for (n, _, origin, step, _), part in zip(self.axes, box, strict=True):
            place, rim = origin + step * np.arange(n), max(1.0, step)
            keep.append((place > part.start - rim) & (place < part.stop - 1 + rim))
        if all(axis.all() for axis in keep):
            return values
        kept = (keep[0][:, None] & keep[1]).reshape(*values.shape[1:3], *[1] * (values.ndim - 3))
        return np.where(kept, values, values.dtype.type(0))

    def grid(
        self,
        volume: Grid,
        shape: tuple[int, int] | None = None,
        coarser: int = 1,
        pad: tuple[int, int] = (0, 0),
        slice_grid: SliceGrid | None = None,
    ) -> Grid:
        """Grid of the frame, or of a coarser map (`shape`) with `pad` pixels before it."""
        shape = shape or (self.spec.height, self.spec.width)
        half = (coarser - 1) / 2
        origin = [o + s * (half - p) for o, s, p in zip(self.origin, self.step, pad, strict=True)]
        slice_grid = slice_grid or SliceGrid(volume.shape[0])
        return volume.sub_grid(
            (len(slice_grid), *shape),
            (float(slice_grid.offset), *origin),
            (float(slice_grid.stride), self.step[0] * coarser, self.step[1] * coarser),
        )

    def support(self) -> tuple[slice, slice]:
        """Rows and columns of the slice that the frame sees."""
        spans = []
        for n_frame, n_slice, origin, step, edges in self.axes:
            if edges != (None, None):  # a mirror may show any of them
                spans.append(slice(0, n_slice))
                continue
            reach = max(1.0, step) + 1
            start = min(max(0, math.floor(origin - reach)), n_slice - 1)
            stop = math.ceil(origin + step * (n_frame - 1) + reach) + 1
            spans.append(slice(start, min(max(stop, start + 1), n_slice)))
        return spans[0], spans[1]


CROP_STEP = 64
"""Crops are multiples of so many pixels: CTs of about one pixel size share a shape, for
which the network has been compiled."""


class FrameCrop:
    """The part of the slices that a frame sees, in a shape that CTs of a kind have in common."""

    def __init__(self, frame: Frame) -> None:
        self._support = frame.support()
        rows, columns = (-(-(s.stop - s.start) // CROP_STEP) for s in self._support)
        self.shape = (rows * CROP_STEP, columns * CROP_STEP)
        self.rows, self.columns = (
            np.pad(matrix[:, s], ((0, 0), (0, n - (s.stop - s.start))))
            for matrix, s, n in zip(frame.into(), self._support, self.shape, strict=True)
        )

    def cut(
        self,
        hu: Array,
        z: Indices,
        n: int | None = None,
        shown: Callable[[Array], Array] | None = None,
    ) -> Array:
        """Cut slices z out of a CT as `shown`, int16; n of them, the last ones empty."""
        cut = np.zeros((n or len(z), *self.shape), np.int16)
        y, x = self._support
        for i, plane in enumerate(z):
            part = hu[plane, y, x] if shown is None else shown(hu[plane, y, x][None])[0]
            if part.dtype.kind == "f":
                part = np.clip(np.rint(part), -32768, 32767)
            cut[i, : part.shape[0], : part.shape[1]] = part
        return cut


def resampling_matrix(
    n_in: int,
    n_out: int,
    start: float,
    step: float,
    mirrors: tuple[int | None, int | None] = (None, None),
) -> Floats32:
    """Linear resampling along one axis as a matrix, (n_out, n_in).

    Output sample i lies at input index ``start + step * i``; nothing is aliased. Beyond `mirrors`
    lie mirror images, beyond the input zeros.
    """
    if not (np.isfinite(step) and step > 0):
        raise PancreasSegError("The spacing of this volume is not a positive number.")
    centres = start + step * np.arange(n_out)
    width = max(1.0, step)
    reach = int(np.ceil(width)) + 1
    first = np.floor(centres).astype(int) - reach
    index = first[:, None] + np.arange(2 * reach + 2)
    weights = np.maximum(0.0, 1.0 - np.abs(index - centres[:, None]) / width)
    weights /= weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((n_out, n_in), dtype=np.float32)
    rows = np.broadcast_to(np.arange(n_out)[:, None], index.shape)
    index = _mirrored(index, *mirrors)
    inside = (index >= 0) & (index < n_in)
    if mirrors == (None, None):  # each place once
        matrix[rows[inside], index[inside]] = weights[inside]
    else:
        np.add.at(matrix, (rows[inside], index[inside]), weights[inside])
    return matrix


def _mirrored(index: Indices, low: int | None, high: int | None) -> Indices:
    """Indices folded at mirrors; as often as it takes between two of them."""
    if low is not None and high is not None and high > low:
        within = (index - low) % (2 * (high - low))
        return low + np.minimum(within, 2 * (high - low) - 1 - within)
    if low is not None:
        index = np.where(index < low, 2 * low - 1 - index, index)
    if high is not None:
        index = np.where(index >= high, 2 * high - 1 - index, index)
    return index


def frame_around(
    centre: tuple[float, float],
    shape: tuple[int, ...],
    spacing: Spacing,
    spec: FrameSpec,
    edges: Edges = (None, None, None, None),
) -> Frame:
    """Lay a frame on slices (Y, X) whose body is centred at a (y, x) index."""
    step = tuple(spec.mm_per_pixel / s for s in spacing[1:])
    origin = tuple(
        c + offset / s - st * (n - 1) / 2
        for c, offset, s, st, n in zip(
            centre, spec.offset_mm, spacing[1:], step, (spec.height, spec.width), strict=True
        )
    )
    return Frame(spec, shape, origin, step, edges)  # type: ignore[arg-type]
