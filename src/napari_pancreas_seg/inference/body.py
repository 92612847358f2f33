"""The body in a CT: where it lies, where it is cut off, and which way round it is.

Only the trunk counts: not what padding, masking or rotating has filled with one value, not the
table, cushions or arms.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from napari_pancreas_seg.arrays import Array, Floats, Indices, Mask, Spacing
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.hounsfield import AIR_HU
from napari_pancreas_seg.inference.blocks import BODY_HU, LUNG_HU, Blocks, block_size
from napari_pancreas_seg.inference.frame import Edges, Frame, FrameSpec, frame_around
from napari_pancreas_seg.inference.trunk import CHEST_SHARE, LUNG_SHARE, Trunk
from napari_pancreas_seg.tissue import constant_values, cut_off_below, evenly_spread, filled
from napari_pancreas_seg.volume import stretches

MOST_SLICES = 64
"""So many slices are looked at, evenly spread."""
TISSUE_MEAN_HU = 25
"""Mean of the clipped HU from which a block is soft tissue."""
DARK_TISSUE_MEAN_HU = 10
"""The same for bodies of which nothing is that bright."""
FAT_HIDDEN_HU = -60
"""Where everything below is cut off, fat and air look alike."""
CHEST_MM = 60.0
"""Lung over a shorter stretch is taken for bowel gas, unless it reaches the scan's upper end."""
ABOVE_MM, BELOW_MM = 90.0, 210.0
"""How far from the lowest slice of the chest a pancreas can reach: in an adult 60 and 120 mm; half
as much again is left for the tall, the inflated and the operated."""


@dataclass(frozen=True, eq=False)
class Body:
    """The body in a CT, as found in some of its slices."""

    # (y, x) index of its middle in all slices, or where that would be if cut off.
    centre: tuple[float, float]
    edges: Edges  # where it is cut off
    shift: int  # HU to add so that soft tissue is as bright as in portal-venous CT; 0 where it is
    fill: tuple[float, ...]  # values that stand for nothing: padding, masks, air of a clipped CT
    floor: float | None  # the one of them below which everything was cut off
    plausible: Mask  # (Z,): where a pancreas can lie, by where the lungs end; all without lungs
    chest: float  # share of the slices that show much lung
    spine: Floats | None  # (n, 3): index (z, y, x) of its middle in slices
    turned: tuple[str, ...]  # directions in which anatomy contradicts the affine

    def frame(self, shape: tuple[int, ...], spacing: Spacing, spec: FrameSpec) -> Frame:
        """Lay a frame on a CT of that shape (Z, Y, X), centred on the body."""
        return frame_around(self.centre, shape[1:], spacing, spec, self.edges)

    def shown(self, slices: Array) -> Array:
        """Slices (n, Y, X) with air for what is filled in or cut off; themselves if nothing is."""
        return _shown(slices, self.fill, self.floor)


def find_body(hu: Array, spacing: Spacing) -> Body:
    """Find the body in a CT (Z, Y, X); PancreasSegError if no slice holds any soft tissue."""
    z = _slices_to_look_at(hu)
    thin = hu[evenly_spread(z, 24)][:, :: _stride(hu.shape[1]), :: _stride(hu.shape[2])]
    fill = constant_values(thin)
    floor = cut_off_below(thin, fill)
    hidden = floor is not None and _fat_is_hidden(thin, floor)
    slices = [_shown(hu[k : k + 1], fill, floor)[0] for k in z]
    valid = _box(~filled(hu[k : k + 1], () if hidden else fill)[0] for k in z)
    box = _box(plane > BODY_HU for plane in slices)
    if box is None or valid is None:
        raise _nothing_found()
    size = block_size(hu.shape[1:], spacing[1:])
    # Whole blocks from where the image begins: padding must not move them.
    box = tuple(  # type: ignore[assignment]
        slice(part.start - (part.start - all_.start) % n, part.stop)
        for part, all_, n in zip(box, valid, size, strict=True)
    )
    slices = [plane[box] for plane in slices]
    for least in (TISSUE_MEAN_HU, DARK_TISSUE_MEAN_HU):
        blocks = [Blocks.of(plane, size, least, hidden) for plane in slices]
        if any(each.tissue.any() for each in blocks):
            break
    else:
        raise _nothing_found()
    trunk = Trunk(blocks, spacing, spacing[0] * (z[-1] - z[0]) / max(1, len(z) - 1), hidden)
    cut = trunk.cut(box, valid)
    ends = (box[0].start, box[0].stop, box[1].start, box[1].stop)
    # Where air was cut off, lungs cannot be told from what is left out.
    lung = np.array([each.lung if floor is None or floor < LUNG_HU[0] else 0.0 for each in blocks])
    return Body(
        trunk.centre(box, cut),
        tuple(end if off else None for end, off in zip(ends, cut, strict=True)),  # type: ignore[arg-type]
        trunk.shift(slices, fill, floor, float(thin.max())),
        fill,
        floor,
        plausible_slices(lung, z, len(hu), spacing[0]),
        float(np.mean(lung > CHEST_SHARE)),
        trunk.spine(box, z),
        tuple(trunk.turned(lung, cut)),
    )


def place_frame(hu: Array, spacing: Spacing, spec: FrameSpec) -> Frame:
    """Lay a frame on a CT (Z, Y, X), centred on the body; see `find_body`."""
    return find_body(hu, spacing).frame(hu.shape, spacing, spec)


def _shown(slices: Array, fill: tuple[float, ...], floor: float | None = None) -> Array:
    bright = tuple(value for value in fill if value > BODY_HU and value != floor)
    gone = filled(slices, bright) if bright else None
    if floor is not None and floor > BODY_HU:
        gone = slices <= floor if gone is None else gone | (slices <= floor)
    if gone is None or not gone.any():
        return slices
    return np.where(gone, slices.dtype.type(AIR_HU), slices)


def plausible_slices(lung: Floats, z: Indices, n_slices: int, step_mm: float) -> Mask:
    """Slices (Z,) in which a pancreas can lie, by the share of lung in some of them."""
    everywhere = np.ones(n_slices, dtype=bool)
    runs = stretches(lung >= LUNG_SHARE)
    if not runs:
        return everywhere
    chest = max(runs, key=lambda run: (run.stop - run.start, run.start))
    # Bowel full of gas is not mistaken for a chest: it is short, and does not end the scan.
    above = z[chest.stop - 1] if chest.stop == len(z) else z[chest.stop]
    height = (above - z[chest.start]) * step_mm
    if chest.stop < len(lung) and height < CHEST_MM:
        return everywhere
    up = (np.arange(n_slices) - z[chest.start]) * step_mm
    return np.asarray((up <= ABOVE_MM) & (up >= -BELOW_MM))


def _nothing_found() -> PancreasSegError:
    return PancreasSegError(
        "No soft tissue was found in this CT; is it in Hounsfield units, and of the abdomen?"
    )


def _slices_to_look_at(hu: Array) -> Indices:
    """Some slices, evenly spread between the first and the last that hold more than one value."""
    first, last = 0, len(hu) - 1
    while first < last and np.ptp(hu[first]) == 0:
        first += 1
    while last > first and np.ptp(hu[last]) == 0:
        last -= 1
    return evenly_spread(np.arange(first, last + 1), MOST_SLICES)


def _fat_is_hidden(sample: Array, floor: float) -> bool:
    """Whether hardly any fat is left above the value below which everything was cut off."""
    return floor > FAT_HIDDEN_HU or float(np.mean(sample[sample > floor] < FAT_HIDDEN_HU)) < 0.02


def _stride(n: int) -> int:
    return max(1, n // 256)


def _box(masks: Iterable[Mask]) -> tuple[slice, slice] | None:
    """The box (y, x) around all of some masks (Y, X)."""
    faces = [(mask.any(axis=1), mask.any(axis=0)) for mask in masks]
    if not any(rows.any() for rows, _ in faces):
        return None
    rows, columns = (np.logical_or.reduce(part) for part in zip(*faces, strict=True))
    (y,), (x,) = np.nonzero(rows), np.nonzero(columns)
    return slice(int(y[0]), int(y[-1]) + 1), slice(int(x[0]), int(x[-1]) + 1)
