"""Painting implicit shapes into a volume: coordinates in mm, soft edges, smooth noise.

Everything here knows geometry only; `anatomy` knows what a body looks like.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import interpolate, sparse

FloatArray = npt.NDArray[np.floating[Any]]
Vector = Sequence[float] | FloatArray
Box = tuple[slice, slice, slice]

FAR_MM = 1e3
WARP_MARGIN_MM = 9.0


def smooth_path(points: Sequence[Vector] | FloatArray, step_mm: float = 3.0) -> FloatArray:
    """Points along a smooth curve through the given ones."""
    knots = np.asarray(points, dtype=float)
    lengths = np.linalg.norm(np.diff(knots[:, :3], axis=0), axis=1)
    t = np.concatenate([[0.0], np.cumsum(lengths)])
    count = max(int(np.ceil(t[-1] / step_mm)) + 1, 2)
    return np.asarray(interpolate.PchipInterpolator(t, knots)(np.linspace(0, t[-1], count)))


class Canvas:
    """A volume of HU, ``hu`` (Z, Y, X), with warped coordinates in mm.

    ``organs`` holds the number of the organ that was painted last, 0 for none; ``warp_mm`` is the
    standard deviation of the smooth warp that takes away the shapes' regularity.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        spacing_mm: tuple[float, float, float],
        rng: np.random.Generator,
        warp_mm: float = 2.0,
    ) -> None:
        self.shape = shape
        self.spacing_mm = spacing_mm
        self.rng = rng
        self.axes = tuple(
            ((np.arange(n) - (n - 1) / 2) * s).astype(np.float32)
            for n, s in zip(shape, spacing_mm, strict=True)
        )
        z, y, x = self.axes
        limit = WARP_MARGIN_MM
        self.z = z[:, None, None] + np.clip(self.noise(55.0, warp_mm), -limit, limit)
        self.y = y[None, :, None] + np.clip(self.noise(45.0, warp_mm), -limit, limit)
        self.x = x[None, None, :] + np.clip(self.noise(45.0, warp_mm), -limit, limit)
        self.hu = np.full(shape, -1000.0, dtype=np.float32)
        self.organs = np.zeros(shape, dtype=np.uint8)

    @property
    def whole(self) -> Box:
        """The box of all voxels."""
        z, y, x = self.shape
        return slice(0, z), slice(0, y), slice(0, x)

    def noise(self, length_mm: float, sigma: float, box: Box | None = None) -> FloatArray:
        """Smooth noise of mean 0."""
        box = box or self.whole
        wz, wy, wx = (
            _bumps(axis[part], length_mm) for axis, part in zip(self.axes, box, strict=True)
        )
        lattice = self.rng.standard_normal((wz.shape[1], wy.shape[1], wx.shape[1]), dtype="f4")
        rows = _along_first(wx, lattice.transpose(2, 0, 1))
        planes = _along_first(wy, rows.transpose(2, 1, 0))
        return _along_first(wz, planes.transpose(1, 0, 2)) * np.float32(sigma)

    def box(self, low: Vector, high: Vector, margin_mm: float = 2.0) -> Box:
        """Box of voxels that holds a region given in mm as (x, y, z), warp included."""
        margin = margin_mm + WARP_MARGIN_MM
        parts = []
        for axis, lo, hi in zip(self.axes, low[::-1], high[::-1], strict=True):
            start, stop = np.searchsorted(axis, [lo - margin, hi + margin])
            start = min(int(start), len(axis) - 1)
            parts.append(slice(start, max(int(stop), start + 1)))
        return parts[0], parts[1], parts[2]

    def ellipsoid(
        self, centre: Vector, radii: Vector, margin_mm: float = 2.0
    ) -> tuple[Box, FloatArray]:
        """Box and approximate signed distance (mm, negative inside) of an ellipsoid."""
        low = [c - r for c, r in zip(centre, radii, strict=True)]
        high = [c + r for c, r in zip(centre, radii, strict=True)]
        box = self.box(low, high, margin_mm)
        k0 = np.zeros([p.stop - p.start for p in box], dtype=np.float32)
        k1 = np.full_like(k0, 1e-9)
        for field, c, r in zip((self.x, self.y, self.z), centre, radii, strict=True):
            d = (field[box] - np.float32(c)) / np.float32(r)
            k0 += d * d
            k1 += (d / np.float32(r)) ** 2
        k0 = np.sqrt(k0)
        return box, k0 * (k0 - 1) / np.sqrt(k1)

    def tube(
        self,
        points: FloatArray,
        radii: FloatArray | float,
        z_stretch: float = 1.0,
        margin_mm: float = 2.0,
    ) -> tuple[Box, FloatArray]:
        """Box and signed distance (mm, negative inside) of balls along a path."""
        points = np.asarray(points)[:, :3]
        radii = np.broadcast_to(radii, len(points))
        reach = np.stack([radii, radii, radii * z_stretch], axis=1)
        outer = self.box(
            (points - reach).min(0).tolist(), (points + reach).max(0).tolist(), margin_mm
        )
        sd = np.full([p.stop - p.start for p in outer], FAR_MM, dtype=np.float32)
        for point, radius, extent in zip(points, radii, reach, strict=True):
            part = self.box((point - extent).tolist(), (point + extent).tolist(), margin_mm)
            px, py, pz = (np.float32(v) for v in point)
            d = (self.x[part] - px) ** 2 + (self.y[part] - py) ** 2
            d += ((self.z[part] - pz) / np.float32(z_stretch)) ** 2
            inner = tuple(
                slice(p.start - o.start, p.stop - o.start) for p, o in zip(part, outer, strict=True)
            )
            np.minimum(sd[inner], np.sqrt(d) - np.float32(radius), out=sd[inner])
        return outer, sd

    def paint(
        self,
        box: Box,
        sd: FloatArray,
        hu: float | FloatArray,
        soft_mm: float = 1.2,
        organ: int = 0,
    ) -> None:
        """Paint a shape over what is there; its edge blends over ``soft_mm``."""
        alpha = np.clip(np.float32(0.5) - sd / np.float32(soft_mm), 0, 1)
        view = self.hu[box]
        view += alpha * (hu - view)
        self.organs[box][sd < 0] = organ


def _bumps(mm: FloatArray, length_mm: float) -> sparse.csr_array:
    """Weights, sparse, that spread random numbers on a lattice over positions in mm."""
    half = length_mm / 2
    knots = np.arange(mm[0] - 4 * half, mm[-1] + 4 * half, half)
    distance = (mm[:, None] - knots[None]) / half
    weights = np.where(np.abs(distance) < 4, np.exp(-0.5 * distance**2), 0)
    # Rows of unit norm keep the standard deviation the same everywhere.
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    return sparse.csr_array(weights.astype(np.float32))


def _along_first(weights: sparse.csr_array, array: FloatArray) -> FloatArray:
    """Apply a matrix along the first axis."""
    flat = np.ascontiguousarray(array).reshape(len(array), -1)
    return np.asarray(weights @ flat).reshape(-1, *array.shape[1:])
