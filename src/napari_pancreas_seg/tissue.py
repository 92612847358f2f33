"""Finds air, fat and soft tissue in the values of a CT, and values that are filled in."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from napari_pancreas_seg.arrays import Array, Floats, Mask

_CONSTANT_SHARE = 0.003
"""Of all voxels: noise leaves no patches of 3×3 equal ones in tissue, nor in air."""
_BORDER_SHARE = 0.01
"""Of the voxels at the slices' edges."""


def evenly_spread(items: Array, most: int) -> Array:
    """Choose at most so many of some items, evenly, the first and the last among them."""
    chosen: Array = items[
        np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(np.intp)
    ]
    return chosen


def constant_values(sample: Array) -> tuple[float, ...]:
    """Values that fill areas of slices (n, Y, X): padding, masks, cushions, cut off air, fat."""
    flat = _flat(sample)
    values, counts = np.unique(sample[flat], return_counts=True)
    edge = np.concatenate([part.ravel() for part in _edges(sample, flat)])
    border, at_border = np.unique(edge, return_counts=True)
    length = sum(part.size for part in _edges(sample, np.ones_like(flat)))
    outside = border[at_border >= _BORDER_SHARE * length]
    top = sample.max()
    # Every sixteenth value tells the middle as well.
    nearly = top - (float(top) - float(np.median(sample[:, ::4, ::4]))) * 0.1
    if ((sample > nearly) & (sample < top)).mean() > 0.001:  # bright tissue that was cut off
        outside, values, counts = outside[outside < top], values[values < top], counts[values < top]
    inside = values[counts >= _CONSTANT_SHARE * sample.size]
    body = sample[(sample > -300) & np.isin(sample, outside, invert=True)]
    noisy = body[body > body.min()] if body.size else body  # the lowest may have been cut off
    body = noisy if noisy.size >= 0.02 * sample.size else body
    if body.size and np.isin(body, inside).mean() > 0.4:  # a drawing without noise
        inside = inside[:0]
    return tuple(float(value) for value in np.union1d(outside, inside))


def cut_off_below(sample: Array, constant: tuple[float, ...]) -> float | None:
    """The lower limit of values that were clipped above air, given `constant_values`; or None."""
    rest = sample[np.isin(sample, constant, invert=True)]
    for value in sorted(constant, reverse=True):
        if value <= -900 or not rest.size or np.mean(rest < value) >= 0.005:
            continue
        # A mask's background may lie there as well; but nothing lies just above it.
        above = np.mean((rest > value) & (rest < value + 100))
        if value >= -300 or (above > 0.001 and value == min(constant)):
            return value
    return None


def filled(slices: Array, values: tuple[float, ...]) -> Mask:
    """Where patches of 3×3 pixels or more hold one of some values, in slices (n, Y, X)."""
    found = np.zeros(slices.shape, bool)
    for value in values:
        same = slices == value
        if same.any():
            found |= _grown(_eroded(same)) & same
    return found


def peaks(values: Array, low: float, high: float, bins: int = 96) -> list[tuple[float, float]]:
    """Peaks of a distribution between two limits, from low to high: (place, relative height)."""
    from scipy import ndimage, signal

    counts, edges = np.histogram(values, bins=bins, range=(low, high))
    smooth = ndimage.gaussian_filter1d(counts.astype(float), 1.5, mode="nearest")
    found, _ = signal.find_peaks(smooth, prominence=0.08 * max(1e-9, smooth.max()))
    middle = edges[:-1] + (edges[1] - edges[0]) / 2
    return [(float(middle[i]), float(smooth[i] / smooth.max())) for i in found]


def comb_width(values: Array, widths: Iterable[int]) -> float | None:
    """The width in HU of a window stored as 0 to 255, by what rounding left; None if none."""
    from scipy import ndimage

    if (np.rint(values) != values).any():
        step = float(np.median(np.diff(np.unique(np.round(values.astype(np.float64), 3)))))
        width = round(255 / step) if step > 0.05 else 0
        parts = values * (width / 255)
        return float(width) if width and np.abs(parts - np.rint(parts)).mean() < 0.05 else None
    counts = np.bincount(values.astype(np.int64), minlength=256)[2:254].astype(float)
    if counts.sum() < 20_000:
        return None

    def comb(heights: Floats) -> Floats:
        smooth = ndimage.gaussian_filter1d(heights, 4)
        teeth = np.where(smooth > 0.02 * smooth.max(), heights / np.maximum(smooth, 1e-9) - 1, 0.0)
        return np.asarray(teeth)

    seen = comb(counts)
    best, found = 0.6, None
    for width in widths:
        stored = np.arange(width + 1) * 255 / width
        for whole in (np.floor(stored + 1e-9), np.rint(stored)):
            teeth = comb(np.bincount(whole.astype(np.int64), minlength=256)[2:254].astype(float))
            norm = np.sqrt((seen**2).sum() * (teeth**2).sum())
            if norm > 1e-9 and teeth.std() > 0.02 and (match := (seen * teeth).sum() / norm) > best:
                best, found = match, float(width)
    return found


def soft_tissue(values: Array, low: float = -20, high: float = 220) -> float | None:
    """The commonest HU of soft tissue; None if the distribution only falls from one end."""
    counts, edges = np.histogram(values, bins=max(6, round((high - low) / 5)), range=(low, high))
    smooth = np.convolve(counts, np.ones(3) / 3, mode="same")
    top = int(smooth.argmax())
    if not counts.any() or top == 0:
        return None
    return float(edges[top] + (edges[1] - edges[0]) / 2)


def _flat(slices: Array) -> Mask:
    """Centres of patches of 3×3 equal pixels."""
    flat = np.zeros(slices.shape, bool)
    if min(slices.shape[1:]) < 3:
        return flat
    beside = slices[:, :, 1:] == slices[:, :, :-1]
    rows = beside[:, :, 1:] & beside[:, :, :-1]
    below = slices[:, 1:, 1:-1] == slices[:, :-1, 1:-1]
    flat[:, 1:-1, 1:-1] = rows[:, 1:-1] & rows[:, :-2] & rows[:, 2:] & below[:, 1:] & below[:, :-1]
    return flat


def _edges(sample: Array, flat: Mask) -> list[Array]:
    """Values next to the slices' edges, where they are flat."""
    if min(sample.shape[1:]) < 3:
        return [sample[:0]]
    cut = (np.s_[:, 1], np.s_[:, -2], np.s_[:, :, 1], np.s_[:, :, -2])
    return [sample[part][flat[part]] for part in cut]


def _eroded(mask: Mask) -> Mask:
    kept = np.zeros_like(mask)
    rows = mask[:, :, 1:-1] & mask[:, :, :-2] & mask[:, :, 2:]
    kept[:, 1:-1, 1:-1] = rows[:, 1:-1] & rows[:, :-2] & rows[:, 2:]
    return kept


def _grown(mask: Mask) -> Mask:
    grown = mask.copy()
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    wide = grown.copy()
    wide[:, :, 1:] |= grown[:, :, :-1]
    wide[:, :, :-1] |= grown[:, :, 1:]
    return wide
