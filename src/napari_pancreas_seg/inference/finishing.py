"""From the network's probabilities to the mask on the CT's own grid; again, from a result's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.arrays import Array, Box, Labels, Mask, Spacing
from napari_pancreas_seg.inference.classes import ONE_CLASS, Classes
from napari_pancreas_seg.inference.frame import Frame, FrameSpec
from napari_pancreas_seg.inference.options import Options
from napari_pancreas_seg.inference.result import Segmentation
from napari_pancreas_seg.inference.schedule import SliceGrid
from napari_pancreas_seg.mask.postprocessing import clear_small_ends, smooth_along_z
from napari_pancreas_seg.volume import stretches


@dataclass(frozen=True, eq=False)
class Finishing:
    """How the network's probability becomes the mask of a whole volume.

    `plausible` (Z,) says in which slices a pancreas can lie; without it all post-processing is
    left out. What lies outside of `region` (z, y, x) does not count.
    """

    frame: Frame
    slice_grid: SliceGrid
    spacing: Spacing
    plausible: Array | None = None
    region: Box | None = None
    classes: Classes = ONE_CLASS

    def mask(self, probability: Array, threshold: float) -> Labels:
        """From the network's probability to the mask (Z, Y, X).

        `probability` (classes, rows, height, width), or without the first axis, is NaN where the
        network was not asked.
        """
        kept, values = self.gland(probability, threshold), self.classes.values
        mask = _between_rows(kept, self.frame, self.slice_grid, threshold, self._part, values)
        if self.plausible is not None:
            clear_small_ends(mask, self.spacing[1] * self.spacing[2])
        return mask if self.region is None else keep_region(mask, self.region[1:])

    def gland(self, probability: Array, threshold: float) -> Array:
        """The probability (classes, rows, height, width) of which the mask is made."""
        if probability.ndim == 3:
            probability = probability[None]
        # A row is computed whole or not at all.
        asked = np.zeros(len(self.slice_grid), bool)
        asked[self.slice_grid.rows(self._part)] = True
        known = asked & ~np.isnan(probability[0, :, 0, 0])
        kept = np.zeros_like(probability)
        row_mm = self.spacing[0] * self.slice_grid.stride
        # Stretches of rows that were seen: a smoothing must not mix in what nobody looked at.
        for rows in stretches(known):
            inside = [each[rows] for each in probability]
            if self.plausible is not None:
                several = len(inside) > 1
                above = _foreground(np.stack(inside)) > threshold if several else None
                inside = [_smooth_near(p, threshold, self.frame, row_mm, above) for p in inside]
            for each, smooth in zip(kept, inside, strict=True):
                each[rows] = smooth
        if self.plausible is not None:
            step = (row_mm, self.frame.spec.mm_per_pixel, self.frame.spec.mm_per_pixel)
            likely = self.plausible[self.slice_grid.z]
            kept = self.classes.main_pieces(kept, threshold, step, likely)
        return kept

    @property
    def _part(self) -> slice:
        return slice(0, self.slice_grid.n_slices) if self.region is None else self.region[0]


def remask(
    result: Segmentation, threshold: float | None = None, postprocess: bool | None = None
) -> Labels:
    """Make a mask from a result's probability again, without the network.

    Parameters
    ----------
    result : Segmentation
        What `segment` returned; it is not changed.
    threshold : float, optional
        Probability above which a voxel is pancreas; as it was if None.
    postprocess : bool, optional
        See `Options`; as it was if None.

    Returns
    -------
    ndarray, shape (Z, Y, X), uint8
        What `segment` would return with this threshold (nearly, if it is below half of the
        model's: some slices were not looked at). Without post-processing, or with it where
        there was none, only nearly, if there was a second look: that was taken as it was then.

    Raises
    ------
    PancreasSegError
        If the threshold is not a number between 0 and 1.
    """
    applied = Options(threshold=threshold).threshold or result.threshold
    if postprocess is None:
        postprocess = result.options.postprocess
    several = [each.values for each in result.probabilities.values()]
    finishing = Finishing(
        *places(result),
        result.grid.spacing,
        result.plausible if postprocess else None,
        result.options.region(result.grid.shape),
        Classes.of(result.model),
    )
    values = np.stack(several) if several else result.probability.values
    return finishing.mask(values, applied)


def places(result: Segmentation) -> tuple[Frame, SliceGrid]:
    """Where the frame lay on the slices, and on which slices."""
    to_ct = np.linalg.inv(result.grid.affine) @ result.probability.grid.affine
    frame = Frame(
        FrameSpec.from_dict(result.model["frame"]),
        result.grid.shape[1:],
        (float(to_ct[1, 3]), float(to_ct[2, 3])),
        (float(to_ct[1, 1]), float(to_ct[2, 2])),
    )
    return frame, SliceGrid(result.grid.shape[0], round(to_ct[0, 0]), round(to_ct[0, 3]))


def native_mask(
    probability: Array, frame: Frame, threshold: float, classes: Classes = ONE_CLASS
) -> Labels:
    """Threshold probability (classes, n, height, width) on the slices' own pixels: (n, Y, X)."""
    if probability.ndim == 3:
        probability = probability[None]
    n = probability.shape[1]
    return _between_rows(probability, frame, SliceGrid(n), threshold, slice(0, n), classes.values)


def keep_region(mask: Labels, within: tuple[slice, ...]) -> Labels:
    """Clear slices (n, Y, X) outside of a box (y, x)."""
    if mask[:, *within].shape == mask.shape:
        return mask
    kept = np.zeros_like(mask)
    kept[:, *within] = mask[:, *within]
    return kept


def _between_rows(
    probability: Array,
    frame: Frame,
    slice_grid: SliceGrid,
    threshold: float,
    part: slice,
    values: tuple[int, ...],
) -> Labels:
    """Mask of every slice, interpolated between rows, where a pixel exceeds the threshold."""
    mask = np.zeros((slice_grid.n_slices, *frame.shape), np.uint8)
    rows, columns = frame.out_of()
    above: Mask = np.asarray(_foreground(probability) > threshold)
    # Per row of the slice grid: frame rows and frame columns that exceed the threshold somewhere.
    in_rows, in_columns = np.asarray(above.any(axis=2)), np.asarray(above.any(axis=1))
    asked = slice_grid.rows(part)
    for z in range(part.start, part.stop):
        below, upper, share = slice_grid.between(z, asked)
        pair = [below] if share == 0 else [below, upper]
        y = _reach(rows, in_rows[pair])
        x = _reach(columns, in_columns[pair])
        if y is None or x is None:
            continue  # nothing was found, or nothing that lies on the slice
        into_y, into_x = _held(rows[y].any(axis=0)), _held(columns[x].any(axis=0))
        weights = np.array([1 - share, share], np.float32)[: len(pair), None, None]
        planes = probability[:, pair, into_y, into_x].astype(np.float32)
        native = rows[y, into_y] @ (weights * planes).sum(axis=1) @ columns[x, into_x].T
        mask[z, y, x] = _decided(native, threshold, values)
    return mask


def _decided(probability: Array, threshold: float, values: tuple[int, ...]) -> Array:
    """Value of each pixel (classes, y, x): that of the most probable class, if any is likely."""
    found = _foreground(probability) > threshold
    if len(values) == 1:
        return np.asarray(found * np.uint8(values[0]))
    return np.asarray(found * np.array(values, np.uint8)[probability.argmax(axis=0)])


def _foreground(probability: Array) -> Array:
    """Probability that a pixel is of any class; the first axis is the classes'."""
    if len(probability) == 1:
        return np.asarray(probability[0])
    return np.asarray(probability.sum(axis=0, dtype=np.float32))


def _reach(matrix: Array, wanted: Mask) -> slice | None:
    """Range of slice pixels, along an axis, that overlap frame pixels `wanted` in any row."""
    return _held(matrix[:, wanted.any(axis=0)].any(axis=1))


def _held(flags: npt.ArrayLike) -> slice | None:
    """Slice from the first to the last True; None if there is none."""
    true = np.flatnonzero(flags)
    return slice(int(true[0]), int(true[-1]) + 1) if true.size else None


def _smooth_near(
    probability: Array,
    threshold: float,
    frame: Frame,
    row_mm: float,
    found: Array | None = None,
) -> Array:
    """Smooth along z near what exceeds the threshold (or is `found`); zero elsewhere."""
    above = (probability > threshold if found is None else found).any(axis=0)
    smooth = np.zeros_like(probability)
    if not above.any():
        return smooth
    near = [slice(0, 0), slice(0, 0)]
    for axis in (0, 1):
        reach = math.ceil(max(1.0, 1 / frame.step[axis])) + 1
        held = np.flatnonzero(np.any(above, axis=1 - axis))
        near[axis] = slice(max(0, held[0] - reach), held[-1] + 1 + reach)
    part = np.ascontiguousarray(probability[:, near[0], near[1]])
    smooth[:, near[0], near[1]] = smooth_along_z(part, row_mm)
    return smooth
