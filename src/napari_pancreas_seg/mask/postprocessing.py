"""Post-processing of a whole volume: smoothing along z, connected pieces, holes."""

from __future__ import annotations

import math

import numpy as np
import scipy

from napari_pancreas_seg.arrays import Array, Labels, Mask, Spacing
from napari_pancreas_seg.volume import bounding_box, stretches

_CHUNK_VOXELS = 1 << 21
"""Voxels that are float32 at a time: small enough for the cache's sake and for memory's."""


def smooth_along_z(probability: Array, spacing_z_mm: float, sigma_mm: float = 2.0) -> Array:
    """Smooth a probability (Z, H, W) along z; slices 2 `sigma_mm` apart are not mixed."""
    z, height, width = probability.shape
    if z < 2 or sigma_mm <= 0 or spacing_z_mm >= 2 * sigma_mm:
        return probability
    sigma = sigma_mm / spacing_z_mm
    radius = max(1, round(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2).astype(np.float32)
    weights /= weights.sum()

    smooth = np.empty_like(probability)
    rows = max(1, _CHUNK_VOXELS // (z * width))
    for start in range(0, height, rows):
        chunk = probability[:, start : start + rows].astype(np.float32)
        if not chunk.any():
            smooth[:, start : start + rows] = 0
            continue
        padded = np.pad(chunk, ((radius, radius), (0, 0), (0, 0)), mode="edge")
        total = np.zeros_like(chunk)
        for k, weight in enumerate(weights):
            total += weight * padded[k : k + z]
        smooth[:, start : start + rows] = total
    return smooth


def largest_component(mask: Array, connectivity: int = 3) -> Labels:
    """Keep the largest piece of a mask (Z, Y, X), the first of equals; 3: a corner connects."""
    kept = np.zeros(mask.shape, dtype=np.uint8)
    structure = scipy.ndimage.generate_binary_structure(3, connectivity)
    largest, place = 0, None
    for z in _runs(mask):
        inner = bounding_box(mask[z])
        if inner is None or np.count_nonzero(mask[z][inner]) <= largest:
            continue
        labels, _ = scipy.ndimage.label(mask[z][inner], structure)
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        if sizes.max() > largest:
            largest, place = int(sizes.max()), (z, inner, labels == sizes.argmax())
    if place is not None:
        z, inner, piece = place
        kept[z][inner] = piece
    return kept


def main_pieces(
    probability: Array,
    threshold: float,
    spacing: Spacing,
    plausible: Array,
    gap_mm: float = 15.0,
    share: float = 0.1,
    missed_mm: float | None = 6.0,
) -> Mask:
    """Find the piece that is most surely the gland, and pieces of it that lie close by.

    Pieces of a probability (Z, H, W) that lie over one another count as one if the network missed
    less than `missed_mm` between them. The one with the highest sum of probability is kept, and
    others whose box lies within `gap_mm` of its own and whose sum is at least `share` of its own,
    but none above or below it, slices between, unless `missed_mm` is None. Nothing in slices that
    are not `plausible` (Z,). With a rim of one pixel in the slice, so that thresholding between
    pixels gives the same outline.
    """
    kept = np.zeros(probability.shape, dtype=bool)
    found = probability > threshold
    found[~plausible] = False
    box = bounding_box(found)
    if box is None:
        return kept
    missed = 0 if missed_mm is None else math.ceil(missed_mm / spacing[0] - 1e-3) - 1
    whole = _bridged(found[box], missed)
    labels, n = scipy.ndimage.label(whole, scipy.ndimage.generate_binary_structure(3, 3))
    labels[~found[box]] = 0
    sums = np.bincount(labels.ravel(), probability[box].ravel().astype(np.float32), n + 1)
    sums[0] = 0
    places = scipy.ndimage.find_objects(labels)
    main = int(sums.argmax())
    chosen = [main]
    for label in set(range(1, n + 1)) - {main}:
        boxes = zip(places[label - 1], places[main - 1], strict=True)
        # Between the boxes along each axis: 0 where they touch or overlap.
        gaps = np.multiply([max(0, s.start - t.stop, t.start - s.stop) for s, t in boxes], spacing)
        beside = not gaps[0] or missed_mm is None
        if beside and sums[label] >= share * sums[main] and np.linalg.norm(gaps) <= gap_mm:
            chosen.append(label)
    kept[box] = np.isin(labels, chosen)
    grown = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in box)
    kept[grown] = with_rim(kept[grown])
    kept[~plausible] = False
    return kept


def _bridged(found: Mask, missed: int) -> Mask:
    """A mask (Z, H, W), up to so many rows that lack a pixel between others filled along z."""
    if missed < 1:
        return found
    padded = np.pad(found, ((missed, missed), (0, 0), (0, 0)))
    closed = scipy.ndimage.binary_closing(padded, np.ones((missed + 1, 1, 1)))
    return np.asarray(found | closed[missed:-missed])


def with_rim(pieces: Mask) -> Mask:
    """Pieces and a pixel around them within the slice: what interpolation would spread."""
    return np.asarray(scipy.ndimage.binary_dilation(pieces, np.ones((1, 3, 3))))


def clear_small_ends(mask: Labels, pixel_mm2: float, least_mm2: float = 50.0) -> None:
    """Clear the first and last slices of a mask (Z, Y, X) with less: as often a guess as gland."""
    counts = np.count_nonzero(mask, axis=(1, 2))
    enough = np.flatnonzero(counts * pixel_mm2 >= least_mm2)
    if enough.size:
        mask[: enough[0]] = 0
        mask[enough[-1] + 1 :] = 0


def _runs(mask: Array) -> list[slice]:
    """Stretches of slices that hold anything: no piece reaches from one to another."""
    box = bounding_box(mask)
    if box is None:
        return []
    held = mask[box].any(axis=(1, 2))
    start = int(box[0].start)
    return [slice(start + run.start, start + run.stop) for run in stretches(held)]


def remove_holes(mask: Array) -> Labels:
    """Fill cavities that a mask (Z, Y, X) encloses, in 3-D; in one slice, within it."""
    filled = np.zeros(mask.shape, dtype=np.uint8)
    box = bounding_box(mask)
    if box is None:
        return filled
    inside = mask[box] != 0
    thick = tuple(axis for axis in range(3) if mask.shape[axis] > 1)
    thin = tuple(axis for axis in range(3) if axis not in thick)
    whole = scipy.ndimage.binary_fill_holes(inside.squeeze(thin)) if thick else inside
    filled[box] = whole.reshape(inside.shape)
    return filled
