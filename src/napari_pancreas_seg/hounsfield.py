"""From stored numbers to Hounsfield units, and whether they can be Hounsfield units at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError

__all__ = ["AIR_HU", "Scaled", "check_hounsfield", "scale", "scale_ct", "to_hounsfield"]

Array = npt.NDArray[Any]

AIR_HU = -1024
"""What takes the place of a voxel without a value."""

_ABSURD = 1e6
"""No scanner stores such a value, and float16 or int16 arithmetic would overflow on it."""

_INT16 = np.iinfo(np.int16)


@dataclass(frozen=True, eq=False)
class Scaled:
    """An array after its slope and intercept were applied.

    Parameters
    ----------
    values : ndarray
        int16 if every value is an integer that fits, else float32.
    invalid : int
        How many voxels had no usable value (NaN, infinite, absurdly large) and are now air.
    """

    values: Array
    invalid: int


def scale(stored: Array, slope: float = 1.0, intercept: float = 0.0) -> Scaled:
    """Apply slope and intercept without a large temporary array.

    Parameters
    ----------
    stored : ndarray, shape (I, J, K, ...)
        Integers or floats as they lie in the file, any byte order.
    slope, intercept : float
        A value is ``stored * slope + intercept``.

    Returns
    -------
    Scaled
        The values in the same axis order.
    """
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
    """Apply slope and intercept to what should be a CT, with a note on voxels without a value.

    Parameters
    ----------
    stored, slope, intercept
        See `scale`.
    subject : str
        What holds them, as the beginning of a sentence: ``"'ct.nii.gz'"``.

    Raises
    ------
    PancreasSegError
        If these are no numbers, or none of the voxels has a value.
    """
    if stored.dtype.kind not in "iuf":
        raise PancreasSegError(
            f"{subject} does not hold one integer or float per voxel (its type is {stored.dtype}), "
            "so it is no CT; give Hounsfield units."
        )
    if number := _signed_as_unsigned(stored):
        raise PancreasSegError(
            f"{subject} holds signed numbers that were stored or read as unsigned ones ({number} "
            "stands for -1000), so air and fat are lost; convert the CT again with a signed type."
        )
    scaled = scale(stored, slope, intercept)
    if scaled.invalid == scaled.values.size:
        raise PancreasSegError(
            f"{subject} holds no values: every voxel is NaN or infinite; export it again."
        )
    notes: tuple[str, ...] = ()
    if scaled.invalid:
        notes = (
            f"{scaled.invalid} voxels of this CT had no value (NaN or infinite): they were taken "
            f"as air ({AIR_HU} HU).",
        )
    return scaled.values, notes


def _signed_as_unsigned(stored: Array) -> int:
    """Return what stands for -1000 if negative numbers have become the highest ones; else 0."""
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
    """Apply whole numbers to whole numbers in int16; None if the values do not fit."""
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


def to_hounsfield(
    values: Array, subject: str, *, reuse: bool = False
) -> tuple[Array, tuple[str, ...]]:
    """Return values as Hounsfield units, and notes on what was done about them.

    Parameters
    ----------
    values : ndarray, shape (Z, Y, X), int16 or float32
        In display order.
    subject : str
        What holds them, as the beginning of a sentence: ``"'ct.nii.gz'"``.
    reuse : bool
        Whether the array may be overwritten.

    Raises
    ------
    PancreasSegError
        If they cannot be Hounsfield units.
    """
    try:
        shift, notes = check_hounsfield(values)
    except PancreasSegError as error:
        raise PancreasSegError(f"{subject} {error}.") from None
    if shift:
        out = values if reuse else values.copy()
        if values.dtype == np.int16:  # what lies lowest must not wrap around
            np.maximum(out, np.int16(_INT16.min - shift), out=out)
        values = np.add(out, np.asarray(shift, out.dtype), out=out)
    return values, notes


def check_hounsfield(hu: Array) -> tuple[int, tuple[str, ...]]:
    """Tell a CT in Hounsfield units from everything else, on a sample of its slices.

    Parameters
    ----------
    hu : ndarray, shape (Z, Y, X)
        The volume in display order.

    Returns
    -------
    shift : int
        What has to be added to get Hounsfield units; 0 unless the intercept was lost.
    notes : tuple of str
        Notes for the user.

    Raises
    ------
    PancreasSegError
        If this cannot be a CT in Hounsfield units. The message is the end of a sentence that
        begins with the file's name.
    """
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
    if low >= -128 and high <= 127 and low < 0:
        raise PancreasSegError(
            f"holds values from {low:g} to {high:g}, which is an 8-bit picture and not a CT; give "
            "the CT in Hounsfield units"
        )
    if _is_offset(sample):
        return -1024, (
            "The values of this CT lie 1024 too high (a lost rescale intercept): 1024 was "
            "subtracted to get Hounsfield units.",
        )
    if low < -50:
        return 0, _check_full_range(sample)
    if low >= 0 and high <= 255:
        _check_clipped(sample)
        return 0, (
            "The Hounsfield units of this CT are clipped to 0 to 255 (no air, no fat): it works, "
            "but the unclipped CT may give a better mask.",
        )
    raise PancreasSegError(
        f"holds values from {low:g} to {high:g} without any air or fat below 0, which are not "
        "Hounsfield units; is it MR, or was the rescale intercept lost when it was converted?"
    )


def _sample(hu: Array) -> Array:
    """At most 24 slices of at most about 512×512."""
    z = np.unique(np.linspace(0, hu.shape[0] - 1, 24).round().astype(int))
    y, x = (max(1, n // 512) for n in hu.shape[1:])
    sample: Array = hu[z, ::y, ::x]
    return sample


def _neighbours_unrelated(sample: Array) -> bool:
    """Whether neighbours in a slice differ as much as voxels drawn at random."""
    values = sample.astype(np.float32)
    spread = float(values.std())
    # √2 for independent voxels; a real CT stays far below 1 even when it is noisy.
    return any(
        _root_mean_square(np.diff(values, axis=axis)) > 1.1 * spread
        for axis in (1, 2)
        if values.shape[axis] > 1
    )


def _root_mean_square(values: Array) -> float:
    return math.sqrt(np.square(values, out=values).mean())


def _share(inside: Array) -> float:
    return float(np.count_nonzero(inside)) / max(1, inside.size)


def _count(sample: Array, low: float, high: float) -> int:
    """How many values lie between two; without making an array of those."""
    return int(np.count_nonzero(sample >= low) - np.count_nonzero(sample > high))


def _check_full_range(sample: Array) -> tuple[str, ...]:
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
    body = np.count_nonzero(sample > -300)
    if _count(sample, -200, 250) < 0.38 * body:  # 0.48 at least in real slices
        low, high = float(sample.min()), float(sample.max())
        return (
            f"The values, from {low:g} to {high:g}, are not distributed like those of a body in "
            "CT: check that they are Hounsfield units.",
        )
    return ()


def _check_clipped(sample: Array) -> None:
    """Accept HU clipped to [0, 255], refuse other pictures with values from 0 to 255.

    The limits lie outside what 786 slices of 50 patients show: air and fat are 0 (26 to 87 % of
    the slice and most of its edge), little is saturated, what is left is mostly soft tissue,
    and noise fills the range just above 0, which a masked picture leaves empty.
    """
    above = sample[sample > 3]
    tissue = sample[sample > 12]
    edge = np.concatenate([sample[:, [0, -1], :].ravel(), sample[:, :, [0, -1]].ravel()])
    if (
        0.2 <= _share(sample <= 3) <= 0.95
        and _share(edge <= 3) >= 0.4
        and _share(sample >= 250) <= 0.15
        and _share((tissue > 40) & (tissue < 180)) >= 0.4
        and 0.04 <= _share(above <= 30) <= 0.5
    ):
        return
    raise PancreasSegError(
        "looks like a picture with values from 0 to 255 and not like a CT; give the CT in "
        "Hounsfield units"
    )


def _is_offset(sample: Array) -> bool:
    """Whether this is unmistakably a CT whose values all lie 1024 too high."""
    # Negative are padding around the scan circle and stray voxels, but not fat: that is 5 % and
    # more of a CT in Hounsfield units.
    if sample.max() > 5500 or _count(sample, -200, -50) > 0.02 * sample.size:
        return False
    body = sample[sample > 700]
    sample = sample[sample >= 0]
    if body.size < 0.02 * sample.size:
        return False
    fat = _share((body > 850) & (body < 980))
    soft = _share((body >= 1000) & (body <= 1230))
    air = _share(sample < 100)
    # MR fills the range between air and fat, which in CT belongs to lung and edges only.
    between = _share((sample > 300) & (sample < 800))
    return air > 0.05 and soft > 0.25 and fat + soft > 0.6 and between < 0.15
