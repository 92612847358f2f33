"""From stored numbers to Hounsfield units, and whether they can be Hounsfield units at all."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.units import read_units

AIR_HU = -1024
"""HU of a voxel without a value."""

_ABSURD = 1e6
"""No scanner stores such a value, and float16 or int16 arithmetic would overflow on it."""

_UNUSABLE = f"NaN, infinite or beyond ±{_ABSURD:,.0f}"

_INT16 = np.iinfo(np.int16)


class Scaled(NamedTuple):
    """An array after its slope and intercept were applied."""

    values: Array  # int16 if every value is an integer that fits, else float32
    invalid: int  # voxels without a usable value (NaN, infinite, absurdly large), now air


def scale(stored: Array, slope: float = 1.0, intercept: float = 0.0) -> Scaled:
    """Apply slope and intercept to an array, without a large temporary one."""
    if stored.dtype.kind in "iu" and (whole := _whole(stored, slope, intercept)) is not None:
        return Scaled(whole, 0)
    flat = stored.reshape(*stored.shape[:2], -1, order="F")
    if slope == 1.0 and intercept == 0.0 and stored.dtype == np.float32 and _final(flat):
        return Scaled(stored, 0)

    # One slab at a time in float64, optimistically into int16: CTs stored as float64 are
    # common, and a 512×512×2000 one would fill 4 GB.
    values: Array = np.empty(flat.shape, dtype=np.int16, order="F")
    invalid = 0
    for k in range(flat.shape[2]):
        with np.errstate(over="ignore", invalid="ignore"):
            slab = flat[:, :, k].astype(np.float64) * slope + intercept
            bad = ~(np.abs(slab) <= _ABSURD)
        if bad.any():
            invalid += int(np.count_nonzero(bad))
            slab[bad] = AIR_HU
        if values.dtype == np.int16 and not _integers_that_fit(slab):
            values = values.astype(np.float32)
        values[:, :, k] = slab
    return Scaled(values.reshape(stored.shape, order="F"), invalid)


def scale_ct(
    stored: Array, slope: float, intercept: float, subject: str
) -> tuple[Array, tuple[str, ...]]:
    """Apply slope and intercept to a CT; return notes too. `subject` begins the errors."""
    if stored.dtype.kind not in "iuf":
        raise PancreasSegError(
            f"{subject} does not hold one integer or float per voxel (its type is {stored.dtype}), "
            "so it is not a CT; give Hounsfield units."
        )
    if number := _signed_as_unsigned(stored):
        raise PancreasSegError(
            f"{subject} holds signed numbers that were stored or read as unsigned ones ({number} "
            "stands for -1000), so air and fat are lost; convert the CT again with a signed type."
        )
    scaled = scale(stored, slope, intercept)
    if scaled.invalid == scaled.values.size:
        raise PancreasSegError(
            f"{subject} holds no values: every voxel is {_UNUSABLE}; export it again."
        )
    notes: tuple[str, ...] = ()
    if scaled.invalid:
        voxels = "voxel" if scaled.invalid == 1 else "voxels"
        notes = (
            f"{scaled.invalid} {voxels} of this CT had no usable value ({_UNUSABLE}): taken as "
            f"air ({AIR_HU} HU).",
        )
    return scaled.values, notes


def _signed_as_unsigned(stored: Array) -> int:
    """Return what stands for -1000 if negative numbers have become the highest ones; else 0."""
    if stored.dtype == np.float16:  # which holds no such numbers
        return 0
    flat = stored.ravel(order="K")
    sample = flat[:: max(1, flat.size // 200_000)]
    for bits in (16, 32):
        low = np.count_nonzero(sample < 16_000)
        high = sample[(sample > 2**bits - 16_000) & (sample < 2**bits)]
        if high.size > 0.02 * sample.size and low + high.size > 0.999 * sample.size:
            # Padding has one value or two.
            return 2**bits - 1000 if len(np.unique(high)) > 5 else 0
    return 0


def _whole(stored: Array, slope: float, intercept: float) -> Array | None:
    """Apply a whole slope and intercept to integers, in int16; None if the values do not fit."""
    if slope % 1 or intercept % 1:  # NaN too
        return None
    times, plus = int(slope), int(intercept)
    plain = times == 1 and plus == 0
    if not (plain and np.can_cast(stored.dtype, np.int16)):
        ends = [int(end) * times + plus for end in (stored.min(), stored.max())]
        if min(ends) < _INT16.min or max(ends) > _INT16.max:
            return None
    # On the way numbers may wrap around, but not in the end.
    unsigned = stored.dtype == np.uint16
    values: Array = stored.view(np.int16) if unsigned else stored.astype(np.int16, copy=False)
    for apply, number, neutral in ((np.multiply, times, 1), (np.add, plus, 0)):
        if number != neutral:
            values = apply(values, np.array(number & 0xFFFF, np.uint16).view(np.int16))
    return values


def _final(flat: Array) -> bool:
    """Whether floats stay as they are: none is absurd, and not all of them fit into int16."""
    fits = True
    for k in range(flat.shape[2]):
        slab = flat[:, :, k]
        if not (slab.min() >= -_ABSURD and slab.max() <= _ABSURD):
            return False
        fits = fits and _integers_that_fit(slab)
    return not fits


def _integers_that_fit(slab: Array) -> bool:
    return bool(
        slab.min() >= _INT16.min and slab.max() <= _INT16.max and (np.rint(slab) == slab).all()
    )


class NotHounsfieldError(PancreasSegError):
    """These values do not look like Hounsfield units; a person may know better (`force`)."""


def to_hounsfield(
    values: Array, subject: str, *, reuse: bool = False, force: bool = False
) -> tuple[Array, tuple[str, ...]]:
    """Return values (Z, Y, X) as HU, with notes, or NotHounsfieldError; as they are by `force`."""
    try:
        slope, shift, notes = read_units(values)
    except PancreasSegError as error:
        if not force:
            raise NotHounsfieldError(f"{subject} {error}.") from None
        return values, (f"Taken for a CT in Hounsfield units as asked, although it {error}.",)
    if force and (slope, shift) != (1, 0):
        undone = f"unasked, they would have been multiplied by {slope:.3g} and {shift:+.0f} added"
        return values, (f"The values are taken for Hounsfield units as asked; {undone}.",)
    return converted(values, slope, shift, reuse=reuse), notes


def converted(values: Array, slope: float, shift: float, *, reuse: bool = False) -> Array:
    """Hounsfield units of values (int16 or float32), by what `read_units` says of their CT."""
    if slope != 1:
        hu: Array = np.rint(values.astype(np.float32) * np.float32(slope) + np.float32(shift))
        return hu.astype(np.int16)
    if shift:
        out = values if reuse else values.copy()
        if values.dtype == np.int16:  # what lies lowest must not wrap around
            lowest = max(_INT16.min, _INT16.min - round(shift))
            np.clip(out, lowest, min(_INT16.max, _INT16.max - round(shift)), out=out)
        values = np.add(out, np.asarray(shift, out.dtype), out=out)
    return values
