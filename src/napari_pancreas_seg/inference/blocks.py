"""Slices of a CT in blocks of some millimetres: what of them is body, trunk, soft tissue, bone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

from napari_pancreas_seg.arrays import Array, Floats32, Mask

COARSE_MM = 6.4
"""Size of the blocks that are looked at: table, tubes and skin folds blur away."""
SOFT_TISSUE_HU = (0, 255)
"""Bodies are found on HU clipped so: what the training slices hold (fat and air are 0)."""
BODY_HU = -300
"""Whatever is denser belongs to a body, a table or a cushion."""
BONE_HU = 200
PIECE = 0.03
"""Smaller pieces of a slice's soft tissue are tubes, edges and noise."""
LIMB = 0.4
"""Smaller pieces than that share of the largest are arms and cushions."""
DISK, DISK_BLOCKS = 0.25, 9
"""Radius of a disk that fits everywhere into a trunk: a share of its depth, and at most that."""
LUNG_HU = (-940, -500)
"""Aerated lung, averaged over a block; the air around the body lies below."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """A slice in blocks of about `COARSE_MM`: arrays (rows, columns)."""

    size: tuple[int, ...]
    means: Floats32
    body: Mask
    trunk: Mask
    tissue: Mask
    bone: Floats32
    even: Mask
    lung: float
    hollow: float  # share of the body that is air, or clipped as air is

    @classmethod
    def of(cls, plane: Array, size: tuple[int, ...], least: float, fat_hidden: bool) -> Blocks:
        """Compute the blocks of a slice (Y, X)."""
        means = block_means(plane, size)
        body = block_means(plane > BODY_HU, size) > 0.5
        # Without fat, a body is pieces with nothing between them, as an arm beside it would be.
        trunk = np.ones_like(body) if fat_hidden else _without_limbs(body)
        # Opening removes the table's shells.
        soft = block_means(np.clip(plane, *SOFT_TISSUE_HU), size) > least
        pieces, _ = scipy.ndimage.label(_opened(soft & trunk), np.ones((3, 3)))
        sizes = np.bincount(pieces.ravel(), minlength=1)
        sizes[0] = 0
        tissue = (sizes >= max(1.0, PIECE * sizes.sum()))[pieces]
        if fat_hidden:
            body = scipy.ndimage.binary_closing(np.pad(tissue, 3), iterations=3)[3:-3, 3:-3]
        else:
            body = trunk
        flat = np.full(means.shape, min(means.shape) > 1)
        even = flat & trunk
        if even.any():
            even &= np.hypot(*np.gradient(means)) < 15
        # Opening drops the skin's edge, where tissue and air mix to the density of lung.
        inside = np.outer(trunk.any(axis=1), trunk.any(axis=0))
        lung = int(np.count_nonzero(_opened((means > LUNG_HU[0]) & (means < LUNG_HU[1])) & inside))
        rest = int(np.count_nonzero(means > BODY_HU))
        bone = block_means(plane >= BONE_HU, size) * trunk
        whole = scipy.ndimage.binary_fill_holes(body)
        hollow = float(np.mean(means[whole] < BODY_HU)) if whole.any() else 0.0
        share = lung / max(1, lung + rest)
        return cls(size, means, body, trunk, tissue, bone, even, share, hollow)


def block_size(shape: tuple[int, ...], spacing: tuple[float, ...]) -> tuple[int, ...]:
    """Pixels of a slice (Y, X) along the edges of a block."""
    return tuple(max(1, min(n, round(COARSE_MM / s))) for n, s in zip(shape, spacing, strict=True))


def block_means(plane: Array, size: tuple[int, ...]) -> Floats32:
    """Means over blocks of so many pixels; the last ones may reach beyond the edge by half."""
    rows, columns = (max(1, (n + k // 2) // k) for n, k in zip(plane.shape, size, strict=True))
    down, across = rows * size[0], columns * size[1]
    whole = plane[:down, :across].astype(np.float32)
    missing = (down - whole.shape[0], across - whole.shape[1])
    if any(missing):
        whole = np.pad(whole, [(0, missing[0]), (0, missing[1])], mode="edge")
    # One axis after the other is three times as fast, and of whole HU every sum is exact.
    lines = whole.reshape(rows, size[0], across).sum(axis=1)
    return lines.reshape(rows, columns, size[1]).sum(axis=2) / np.float32(size[0] * size[1])


def _opened(mask: Mask) -> Mask:
    return scipy.ndimage.binary_opening(np.pad(mask, 1), np.ones((3, 3)))[1:-1, 1:-1]


def _without_limbs(body: Mask) -> Mask:
    """The largest piece of a slice's body, filled, and others nearly as large; no arms."""
    n = DISK_BLOCKS + 2
    whole = np.pad(scipy.ndimage.binary_fill_holes(body), n, mode="edge")
    columns = np.flatnonzero(whole.any(axis=0))
    if not len(columns):
        return body
    depth = np.median(whole[n:-n, columns[len(columns) // 4 : -len(columns) // 4]].sum(axis=0))
    radius = float(np.clip(DISK * depth, 2.3, DISK_BLOCKS))
    distance = scipy.ndimage.distance_transform_edt
    opened = whole & (distance(distance(whole) <= radius) <= radius + 1)
    pieces, _ = scipy.ndimage.label(opened)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    if not sizes.any():
        return body
    return (sizes >= LIMB * sizes.max())[pieces][n:-n, n:-n]
