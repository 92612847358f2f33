"""From the network's probabilities to the mask on the CT's own grid; again, from a result's."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.arrays import Array, Box, Labels, Mask, Spacing
from napari_pancreas_seg.inference.classes import ONE_CLASS, Classes
from napari_pancreas_seg.inference.frame import Frame, FrameSpec
from napari_pancreas_seg.inference.result import Segmentation
from napari_pancreas_seg.inference.schedule import SliceGrid
from napari_pancreas_seg.mask.postprocessing import clear_small_ends, smooth_along_z
from napari_pancreas_seg.volume import stretches


def finish_mask(
    probability: Array,
    frame: Frame,
    slice_grid: SliceGrid,
    spacing: Spacing,
    threshold: float,
    plausible: Array | None,
    region: Box | None = None,
    classes: Classes = ONE_CLASS,
) -> Labels:
    """From the network's probability to the mask (Z, Y, X) of the whole volume.

    `probability` (classes, rows, height, width), or without the first axis, is NaN where the
    network was not asked. Without `plausible` (Z,) all post-processing is left out; what lies
    outside of `region` (z, y, x) does not count.
    """
    part = slice(0, slice_grid.n_slices) if region is None else region[0]
    kept = keep_gland(
        probability, frame, slice_grid, spacing, threshold, plausible, region, classes
    )
    mask = _between_rows(kept, frame, slice_grid, threshold, part, classes.values)
    if plausible is not None:
        clear_small_ends(mask, spacing[1] * spacing[2])
    return mask if region is None else keep_region(mask, region[1:])


def keep_gland(
    probability: Array,
    frame: Frame,
    slice_grid: SliceGrid,
    spacing: Spacing,
    threshold: float,
    plausible: Array | None,
    region: Box | None = None,
    classes: Classes = ONE_CLASS,
) -> Array:
    """The probability (classes, rows, height, width) of which `finish_mask` makes the mask."""
    if probability.ndim == 3:
        probability = probability[None]
    part = slice(0, slice_grid.n_slices) if region is None else region[0]
    # A row is computed whole or not at all.
    asked = np.zeros(len(slice_grid), bool)
    asked[slice_grid.rows(part.start, part.stop)] = True
    known = asked & ~np.isnan(probability[0, :, 0, 0])
    kept = np.zeros_like(probability)
    # Stretches of rows that were seen: a smoothing must not mix in what nobody looked at.
    for rows in stretches(known):
        inside = [each[rows] for each in probability]
        if region is not None:
            inside = [frame.within(each, region[1:]) for each in inside]
        if plausible is not None:
            several = len(inside) > 1
            above = _foreground(np.stack(inside)) > threshold if several else None
            row_mm = spacing[0] * slice_grid.stride
            inside = [_smooth_near(each, threshold, frame, row_mm, above) for each in inside]
        for each, smooth in zip(kept, inside, strict=True):
            each[rows] = smooth
    if plausible is not None:
        step = (spacing[0] * slice_grid.stride, frame.spec.mm_per_pixel, frame.spec.mm_per_pixel)
        kept = classes.main_pieces(kept, threshold, step, plausible[slice_grid.z])
    return kept


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
        What `segment` would return with these options.
    """
    probability = result.probability
    if postprocess is None:
        postprocess = result.options.postprocess
    frame, slice_grid = places(result)
    several = [each.values for each in result.probabilities.values()]
    return finish_mask(
        np.stack(several) if several else probability.values,
        frame,
        slice_grid,
        result.grid.spacing,
        result.threshold if threshold is None else threshold,
        result.plausible if postprocess else None,
        result.options.region(result.grid.shape),
        Classes.of(result.model),
    )


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
    for z in range(part.start, part.stop):
        below, upper, share = slice_grid.between(z)
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
