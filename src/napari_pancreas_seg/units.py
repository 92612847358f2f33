"""Whether the numbers of a volume are Hounsfield units, or what makes them such."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.tissue import (
    comb_width,
    constant_values,
    cut_off_below,
    evenly_spread,
    peaks,
    soft_tissue,
)

SAMPLED_SLICES = 24
"""At most so many slices are looked at."""
OFFSETS = (1000, 1024, 2000, 2048, 4096, 8192, 32768)
"""What tools add to Hounsfield units, or forget to subtract; nothing makes values too low."""
AIR_MEDIAN_HU, FAT_HU = -996, -103
"""Air and fat in scans, on average."""

WINDOWS = (
    *((-160, 240), (-150, 250), (-140, 260), (-200, 200)),
    *((-100, 240), (-175, 250), (-200, 250), (-200, 300), (-250, 250)),
    *((-125, 225), (-135, 215), (-150, 200), (-125, 275), (-100, 300)),
    *((-100, 200), (-150, 150), (-110, 190), (-115, 185), (-50, 150), (-45, 105)),
)
"""Windows for the abdomen in which CTs are stored, best known first of a width."""
WIDE_WINDOWS = ((-1000, 1000), (-1000, 2000), (-1000, 600), (-1000, 400), (-1024, 1024))
"""Windows with air in them, stored as 0 to another number than their width; best known first."""
SOFT_HU = (15, 135)
"""Where the commonest soft tissue can lie, with and without contrast agent."""


class Units(NamedTuple):
    """Hounsfield units are ``values * slope + shift``; and notes for the user."""

    slope: float
    shift: float
    notes: tuple[str, ...] = ()


def read_units(hu: Array) -> Units:
    """Tell a CT (Z, Y, X) in HU from all else; the error is the end of a sentence."""
    sample = _sample(hu)
    low, high = float(sample.min()), float(sample.max())
    if low == high:
        # A sample without contrast in a volume with some: look at everything.
        low, high = float(hu.min()), float(hu.max())
        if low == high:
            raise PancreasSegError(f"is constant: every voxel is {low:g}, so there is no image")
        sample = hu
    if high - low < 50 and low >= 0 and (np.rint(sample) == sample).all():
        raise PancreasSegError(
            f"holds whole numbers from {low:g} to {high:g} only, so it is a mask and not a CT; "
            "give the CT that the mask was drawn on"
        )
    if high - low < 50:
        raise PancreasSegError(
            f"holds values from {low:.3g} to {high:.3g}, which are normalised intensities and not "
            "Hounsfield units; give the CT before any normalisation"
        )
    y, x = (max(1, n // 256) for n in sample.shape[1:])
    constant = constant_values(sample[:, ::y, ::x])
    rest = sample[np.isin(sample, constant, invert=True)] if constant else sample.ravel()
    if rest.size < 0.02 * sample.size:  # a drawing without noise
        rest = sample.ravel()
    if (found := _offset(sample, rest)) is not None:
        return found
    if (found := _window(sample, rest) or _wide_window(sample, rest)) is not None:
        return found
    floor = cut_off_below(sample, constant)
    if low >= -128 and high <= 127 and low < 0 and not _is_clipped(sample, rest, floor):
        raise PancreasSegError(
            f"holds values from {low:g} to {high:g}, which is an 8-bit picture and not a CT; give "
            "the CT in Hounsfield units"
        )
    notes = _about_limits(sample, floor)
    if low < -50:
        return Units(1, 0, notes + _check_full_range(sample, rest))
    if low >= 0 and high <= 255 and not _is_picture(sample):
        return Units(1, 0, notes)
    if _is_clipped(sample, rest, floor):
        return Units(1, 0, notes)
    if constant and high == max(constant) and rest.max() < high:  # padding above all tissue
        return read_units(np.where(sample == high, sample.dtype.type(low), sample))
    if low >= 0 and high <= 255:
        raise PancreasSegError(
            f"looks like a picture with values from {low:g} to {high:g} and not like a CT; give "
            "the CT in Hounsfield units"
        )
    raise PancreasSegError(
        f"holds values from {low:g} to {high:g} without any air or fat below 0, which are not "
        "Hounsfield units: it may be MR, or the rescale intercept was lost, or all that lies below "
        "0, when it was converted"
    )


def _sample(hu: Array) -> Array:
    """Some slices of at most about 512×512."""
    y, x = (max(1, n // 512) for n in hu.shape[1:])
    sample: Array = hu[evenly_spread(np.arange(len(hu)), SAMPLED_SLICES), ::y, ::x]
    return sample


def _share(inside: Array) -> float:
    return float(np.count_nonzero(inside)) / max(1, inside.size)


def _count(sample: Array, low: float, high: float) -> int:
    """Count the values between two; without making an array of those."""
    from_low, above = np.count_nonzero(sample >= low), np.count_nonzero(sample > high)
    return int(from_low) - int(above)


def _about_limits(sample: Array, floor: float | None) -> tuple[str, ...]:
    """Say where values were cut off."""
    high = float(sample.max())
    at_end = int(np.count_nonzero(sample == high))
    piled_up = at_end > max(0.0005 * sample.size, 0.15 * _count(sample, high - 20, high))
    above = f"{high:g}" if high < 1000 and piled_up else ""
    if floor is None and not above:
        return ()
    if floor is None:
        range_ = f"above {above}"
    else:
        range_ = f"to {floor:g} to {above}" if above else f"below {floor:g}"
    lost = " (no air, no fat)" if floor is not None and floor > -60 else ""
    return (
        f"The Hounsfield units of this CT are clipped {range_}{lost}: it works, but the "
        "unclipped CT may give a better mask.",
    )


def _check_full_range(sample: Array, rest: Array) -> tuple[str, ...]:
    """Refuse what shows no soft tissue; note what has HU but does not look like a body."""
    if _count(sample, -20, 200) < 0.003 * sample.size:
        raise PancreasSegError(
            "holds no soft tissue (no voxels between -20 and 200 HU), so there is no pancreas to "
            "look for; check that this is a CT of the abdomen in Hounsfield units"
        )
    if _neighbours_unrelated(sample):
        return (
            "This looks like noise: neighbouring voxels have nothing to do with one another. The "
            "data may be damaged.",
        )
    body = np.count_nonzero(rest > -300)
    if _count(rest, -200, 250) < 0.38 * body:  # 0.48 at least in real slices
        low, high = float(sample.min()), float(sample.max())
        return (
            f"The values, from {low:g} to {high:g}, are not distributed like those of a body in "
            "CT: check that they are Hounsfield units.",
        )
    return ()


def _neighbours_unrelated(sample: Array) -> bool:
    """Whether neighbours in a slice differ as much as voxels drawn at random."""
    values = sample.astype(np.float32)
    spread = float(values.std())
    # √2 for independent voxels; a real CT stays far below 1 even when it is noisy.
    return any(
        math.sqrt(np.square(np.diff(values, axis=axis)).mean()) > 1.1 * spread
        for axis in (1, 2)
        if values.shape[axis] > 1
    )


def _is_clipped(sample: Array, rest: Array, floor: float | None) -> bool:
    """Whether values lie like HU clipped at both ends, or below alone, where no MR begins."""
    low, high = float(sample.min()), float(sample.max())
    above = low < 0 if high > 700 else _share(sample == high) >= 0.0002
    if floor != low or low > 50 or not above:
        return False
    if (low, high) == (-128, 127) or _share(sample == low) < 0.02 or _neighbours_unrelated(sample):
        return False
    inside = rest[(rest > low + 0.05 * (min(high, 700) - low)) & (rest < high)]
    mode = soft_tissue(inside, max(low + 5, -20), min(high, 220))
    return (
        mode is not None
        and SOFT_HU[0] - 5 <= mode <= SOFT_HU[1]
        and _share(np.abs(inside - mode) < 45) >= 0.35
    )


def _is_picture(sample: Array) -> bool:
    """Tell pictures with values from 0 to 255 from HU clipped to them, by 786 slices."""
    above = sample[sample > 3]
    tissue = sample[sample > 12]
    edge = np.concatenate([sample[:, [0, -1], :].ravel(), sample[:, :, [0, -1]].ravel()])
    return not (
        0.2 <= _share(sample <= 3) <= 0.95
        and _share(edge <= 3) >= 0.4
        and _share(sample >= 250) <= 0.15
        and _share((tissue > 40) & (tissue < 180)) >= 0.4
        and 0.04 <= _share(above <= 30) <= 0.5
    )


def _offset(sample: Array, rest: Array) -> Units | None:
    """Find a constant offset of all values from HU; None unless they are unmistakably a CT's."""
    # Negative are padding around the scan circle and stray voxels, but not fat: that is 5 % and
    # more of a CT in Hounsfield units.
    if _count(rest, -200, -50) > 0.02 * rest.size:
        return None
    everything, tissue = _counter(sample), _counter(rest)  # what is filled in is no tissue
    scores: dict[int, float] = {}
    for offset in OFFSETS:
        image = everything(offset - 1100, offset + 4500)
        body = tissue(offset - 324, offset + 4500)
        below = tissue(-36000, offset - 1150)  # where a CT has nothing but padding
        if below > 0.02 * rest.size or body < 0.02 * sample.size:
            continue
        fat = tissue(offset - 174, offset - 44) / body
        soft = tissue(offset - 24, offset + 206) / body
        air = everything(offset - 1100, offset - 924) / image
        lungs = everything(offset - 1100, offset - 700) / image
        # MR fills the range between air and fat, which in CT belongs to lung and edges only.
        between = everything(offset - 724, offset - 224) / image
        if lungs > 0.05 and soft > 0.25 and fat + soft > 0.6 and between < 0.15:
            scores[offset] = fat + soft + air
    return _fine_offset(sample, rest, max(scores, key=scores.__getitem__)) if scores else None


def _counter(values: Array) -> Callable[[float, float], float]:
    """Tells how many values lie between two."""
    counts, edges = np.histogram(values, np.arange(-36000, 40010, 10))
    below = np.concatenate([[0], np.cumsum(counts)]).astype(float)
    return lambda low, high: float(np.diff(np.interp([low, high], edges, below))[0])


def _fine_offset(sample: Array, rest: Array, about: int) -> Units:
    """Find the offset by air, whose HU are known well, else by fat."""
    fat = peaks(rest, about - 190, about - 30, bins=64)
    top = max(fat, key=lambda peak: peak[1])[0] if fat else about + FAT_HU
    measured, tolerance = top - FAT_HU, 0
    air = rest[(rest > about - 1100) & (rest < about - 900)]
    if air.size >= 0.01 * sample.size:  # else it was cut off, so that its value says nothing
        by_air = float(np.median(air)) - AIR_MEDIAN_HU
        even = _share(np.abs(air - np.median(air)) < 40) > 0.7  # and else it is lung
        if even and (not fat or abs(by_air - measured) < 40):
            measured, tolerance = by_air, 11
    offset = min(OFFSETS, key=lambda offset: abs(offset - measured))
    note = (
        f"The values of this CT lie {offset} too high (a lost rescale intercept): {offset} was "
        "subtracted to get Hounsfield units."
    )
    if abs(offset - measured) > tolerance:
        note += (
            f" By air and fat in the picture it is {round(measured)}, so that the offset is "
            "uncertain by about 25 HU."
        )
    return Units(1, -offset, (note,))


def _window(sample: Array, rest: Array) -> Units | None:
    """The window stored as 0 to 255, or to its width; None for HU; an error if none fits."""
    low, high = float(sample.min()), float(sample.max())
    if low < 0 or low > 5 or high > 70_000 or _share(sample == low) < 0.02:
        return None
    spread = _spread_width(sample) if high > 256 else None
    if high > 700 and spread is None:
        return None
    inside = rest[(rest > low) & (rest < high)]
    places = [place - low for place, _ in peaks(inside, low, high)]
    if not places:
        return None
    if high > 256:
        width: float | None = spread or high - low
    else:
        tissue = inside[inside > 12]
        first, last = np.percentile(tissue, [25, 75]) if tissue.size else (0.0, 255.0)
        if first > 90 and last - first < 35:
            raise PancreasSegError(
                "seems to hold a wide window of Hounsfield units stored as 0 to 255, in which "
                "soft tissue is a few grey values; give the CT in Hounsfield units"
            )
        width = comb_width(inside, sorted({b - a for a, b in WINDOWS}))
    if width is None:
        two = any(15 < fat < 50 and any(soft >= 132 for soft in places) for fat in places)
        # Water and what is left of fat fill the lowest values of HU clipped at 0: 7 % and more.
        empty = _share(inside < low + 30) < 0.03 and max(places) - min(places) > 50
        if two or empty:
            raise PancreasSegError(
                "seems to hold a window of Hounsfield units stored as 0 to 255, and nothing in it "
                "tells which; give the CT in Hounsfield units"
            )
        return None
    slope = width / (high - low)
    start = _start(
        [place * slope for place in places], width, 150 if high > 256 and spread is None else 0
    )
    if start is None and high > 256 and spread is None and max(places) <= SOFT_HU[1] + 25:
        return None
    if start is None:
        raise PancreasSegError(
            f"seems to hold a window of {width:g} HU stored as {low:g} to {high:g}, and nothing in "
            "it tells where the window begins; give the CT in Hounsfield units"
        )
    return _from_window(start, start + width, low, high)


def _from_window(start: float, end: float, low: float, high: float) -> Units:
    slope = (end - start) / (high - low)
    note = (
        f"The values of this CT are about the window {start:g} to {end:g} HU, stored as {low:g} to "
        f"{high:g}: they were converted back to Hounsfield units, which may be wrong by 10 or "
        "20 HU."
    )
    return Units(slope, start - low * slope, (note,))


def _wide_window(sample: Array, rest: Array) -> Units | None:
    """The window with air in it whose limits were stored as 0 and any number; None for others."""
    low, high = float(sample.min()), float(sample.max())
    if low != 0 or high <= 256 or _share(sample == low) < 0.02:
        return None
    fitting = []
    for rank, (start, end) in enumerate(WIDE_WINDOWS):
        slope = (end - start) / high
        hu, tissue = (part.astype(np.float32) * slope + start for part in (sample, rest))
        places = [place for place, _ in peaks(tissue, -200, 220)]
        away = min((abs(place - FAT_HU) for place in places), default=99.0)
        body = max(1, int(np.count_nonzero(tissue > -324)))
        soft = _count(tissue, -24, 206) / body
        usual = (
            _count(hu, -1100, -924) > 0.05 * hu.size
            and _count(hu, -724, -224) < 0.15 * hu.size
            and soft > 0.25
            and soft + _count(tissue, -174, -44) / body > 0.6
        )
        if usual and away < 25 and any(SOFT_HU[0] <= place <= SOFT_HU[1] for place in places):
            fitting.append((away + 6 * rank, start, end))
    if not fitting:
        return None
    _, start, end = min(fitting)
    return _from_window(start, end, low, high)


def _spread_width(sample: Array) -> float | None:
    """The width in HU of a window that was spread over more numbers than that; None if none."""
    low, high = float(sample.min()), float(sample.max())
    values = np.unique(sample).astype(np.float64)
    width = len(values) - 1
    if width not in {b - a for a, b in WINDOWS} or high - low < 1.05 * width:
        return None
    even = np.linspace(low, high, width + 1)
    return float(width) if np.abs(values - even).max() <= 1 else None


def _start(places: list[float], width: float, least: float) -> int | None:
    """Where a window of that width begins, given the peaks above its beginning, in HU."""
    fitting = []
    starts = [a for a, b in WINDOWS if abs(b - a - width) <= 1]
    for rank, start in enumerate(starts):
        if not any(SOFT_HU[0] <= start + place <= SOFT_HU[1] for place in places):
            continue
        # Without a peak of fat, the beginning must hide it.
        away = min((abs(start + place + 100) for place in places), default=99.0)
        if away <= 25:
            fitting.append((away + 3 * rank, start))
        elif start >= -110 and len(starts) == 1 and max(places) > least:
            fitting.append((25.0, start))
    return min(fitting)[1] if fitting else None
