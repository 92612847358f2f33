"""The body in a CT: where it lies, where it is cut off, and which way round it is.

Only the trunk counts: not what padding, masking or rotating has filled with one value, not the
table, cushions or arms.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.hounsfield import AIR_HU
from napari_pancreas_seg.inference.frame import (
    Edges,
    Frame,
    FrameSpec,
    frame_around,
)
from napari_pancreas_seg.tissue import constant_values, cut_off_below, evenly_spread, filled
from napari_pancreas_seg.volume import stretches

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Box = tuple[slice, slice]

COARSE_MM = 6.4
"""Size of the blocks that are looked at: table, tubes and skin folds blur away."""
MOST_SLICES = 64
"""So many slices are looked at, evenly spread."""
SOFT_TISSUE_HU = (0, 255)
"""Bodies are found on HU clipped so: what the training slices hold (fat and air are 0)."""
TISSUE_MEAN_HU = 25
"""Mean of the clipped HU from which a block is soft tissue."""
DARK_TISSUE_MEAN_HU = 10
"""The same for bodies of which nothing is that bright."""
BODY_HU = -300
"""Whatever is denser belongs to a body, a table or a cushion."""
FAT_HIDDEN_HU = -60
"""Where everything below is cut off, fat and air look alike."""
BONE_HU = 200
PIECE = 0.03
"""Smaller pieces of a slice's soft tissue are tubes, edges and noise."""
LIMB = 0.4
"""Smaller pieces than that share of the largest are arms and cushions."""

PORTAL_VENOUS_HU = 80
"""HU of soft tissue in portal-venous CT, between muscle (60) and liver (105)."""
DARK_MODE_HU = 40
"""Below this commonest HU, a CT is not portal-venous."""
UNCERTAIN_MODE_HU = 45
"""Up to this commonest HU, it is not if hardly any tissue is enhanced."""
RESIDUE_HU = 20
"""So far from a value that fills areas, lossy compression may change it."""
ENHANCED_HU, ENHANCED_SHARE = 80, 0.12
"""With contrast agent, more than that share of even tissue is so bright."""

DISK, DISK_BLOCKS = 0.25, 9
"""Radius of a disk that fits everywhere into a trunk: a share of its depth, and at most that."""
CUT_MM, CUT_SHARE, CUT_SHARE_WITHOUT_FAT = 60.0, 0.6, 0.4
"""A body is cut off where it meets the edge over so much, and that share of its extent."""
WHOLE_MM = (180.0, 230.0)
"""What shows so much of a body along (y, x) shows its middle, cut off or not."""
FROM_SPINE_MM = (-42.0, -5.0)
"""From the spine to the middle of the body along (y, x): medians in NIH Pancreas-CT."""

LUNG_HU = (-940, -500)
"""Aerated lung, averaged over a block; the air around the body lies below."""
LUNG_SHARE, CHEST_SHARE = 0.05, 0.15
"""A slice with that share of its body in lungs shows some of the chest; or mostly chest."""
CHEST_MM = 60.0
"""Lung over a shorter stretch is taken for bowel gas, unless it reaches the scan's upper end."""
ABOVE_MM, BELOW_MM = 90.0, 210.0
"""How far above and below the lowest slice of the chest a pancreas can reach.

The recesses of the lungs reach down to the first lumbar vertebra, the gland's tail up to the
eleventh thoracic one and its head down to the third lumbar one: 60 mm above and 120 mm below
in an adult; half as much again is left for the tall, the inflated and the operated.
"""
LIVER_ML, LIVER_ML_WITHOUT_FAT = 80.0, 250.0
"""Even tissue of that volume on one side, and hardly any on the other, is the liver; where lungs
cannot be told from fat, less may be the heart."""
LIVER_BELOW_MM = (25.0, 170.0)
"""From the middle of the lungs that are seen to that of the liver."""


@dataclass(frozen=True, eq=False)
class Body:
    """What a look at some of the slices tells of the body in a CT."""

    # (y, x) index of its middle in all slices, or where that would be if cut off.
    centre: tuple[float, float]
    edges: Edges  # where it is cut off
    shift: int  # HU to add so that soft tissue is as bright as in portal-venous CT; 0 where it is
    fill: tuple[float, ...]  # values that stand for nothing: padding, masks, air of a clipped CT
    floor: float | None  # the one of them below which everything was cut off
    plausible: Mask  # (Z,): where a pancreas can lie, by where the lungs end; all without lungs
    chest: float  # share of the slices that show much lung
    turned: tuple[str, ...]  # directions in which anatomy contradicts the affine

    def shown(self, slices: Array) -> Array:
        """Slices (n, Y, X) with air for what is filled in or cut off; themselves if nothing is."""
        return _shown(slices, self.fill, self.floor)


def look_at(hu: Array, spacing: tuple[float, float, float]) -> Body:
    """Find the body in a CT (Z, Y, X) with that spacing along (z, y, x) in mm.

    PancreasSegError if no slice holds any soft tissue.
    """
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
    size = _block_size(hu.shape[1:], spacing[1:])
    # Whole blocks from where the image begins: padding must not move them.
    box = tuple(  # type: ignore[assignment]
        slice(part.start - (part.start - all_.start) % n, part.stop)
        for part, all_, n in zip(box, valid, size, strict=True)
    )
    slices = [plane[box] for plane in slices]
    for least in (TISSUE_MEAN_HU, DARK_TISSUE_MEAN_HU):
        blocks = [_Blocks.of(plane, size, least, hidden) for plane in slices]
        if any(each.tissue.any() for each in blocks):
            break
    else:
        raise _nothing_found()
    trunk = _Trunk(blocks, spacing, spacing[0] * (z[-1] - z[0]) / max(1, len(z) - 1), hidden)
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
        tuple(trunk.turned(lung, cut)),
    )


def place_frame(hu: Array, spacing: tuple[float, float, float], spec: FrameSpec) -> Frame:
    """Lay a frame on a CT (Z, Y, X), centred on the body; see `look_at`."""
    body = look_at(hu, spacing)
    return frame_around(body.centre, hu.shape[1:], spacing, spec, body.edges)


def contrast_shift(hu: Array, spacing: tuple[float, float, float]) -> int:
    """HU that soft tissue lacks to portal-venous CT (no agent, or a fatty gland); else 0."""
    try:
        return look_at(hu, spacing).shift
    except PancreasSegError:
        return 0


def _shown(slices: Array, fill: tuple[float, ...], floor: float | None = None) -> Array:
    bright = tuple(value for value in fill if value > BODY_HU and value != floor)
    gone = filled(slices, bright) if bright else None
    if floor is not None and floor > BODY_HU:
        gone = slices <= floor if gone is None else gone | (slices <= floor)
    if gone is None or not gone.any():
        return slices
    return np.where(gone, slices.dtype.type(AIR_HU), slices)


def plausible_slices(
    lung: npt.NDArray[np.float64], z: npt.NDArray[np.intp], n_slices: int, step_mm: float
) -> Mask:
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


@dataclass(frozen=True, eq=False)
class _Blocks:
    """A slice in blocks of about `COARSE_MM`: arrays (rows, columns)."""

    size: tuple[int, ...]
    means: npt.NDArray[np.float32]
    body: Mask
    trunk: Mask
    tissue: Mask
    bone: npt.NDArray[np.float32]
    even: Mask
    lung: float
    hollow: float  # share of the body that is air, or clipped as air is

    @classmethod
    def of(cls, plane: Array, size: tuple[int, ...], least: float, fat_hidden: bool) -> _Blocks:
        """Look at a slice (Y, X)."""
        means = _block_means(plane, size)
        body = _block_means(plane > BODY_HU, size) > 0.5
        # Without fat, a body is pieces with nothing between them, as an arm beside it would be.
        trunk = np.ones_like(body) if fat_hidden else _without_limbs(body)
        # Opening removes the table's shells.
        soft = _block_means(np.clip(plane, *SOFT_TISSUE_HU), size) > least
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
        bone = _block_means(plane >= BONE_HU, size) * trunk
        whole = scipy.ndimage.binary_fill_holes(body)
        hollow = float(np.mean(means[whole] < BODY_HU)) if whole.any() else 0.0
        share = lung / max(1, lung + rest)
        return cls(size, means, body, trunk, tissue, bone, even, share, hollow)


class _Trunk:
    """The trunk in the blocks of n slices that are so far apart, and what follows from it."""

    def __init__(
        self,
        blocks: list[_Blocks],
        spacing: tuple[float, float, float],
        step_mm: float,
        fat_hidden: bool,
    ) -> None:
        self._blocks = blocks
        self._hidden = fat_hidden
        self._spacing = spacing
        self._step_mm = max(step_mm, spacing[0])
        self._size = blocks[0].size
        self._mm = [n * s for n, s in zip(self._size, spacing[1:], strict=True)]
        self._trunk = np.stack([each.trunk for each in blocks])
        self._body = np.stack([each.body for each in blocks])
        self._tissue = np.stack([each.tissue for each in blocks])

    def cut(self, box: Box, valid: Box) -> tuple[bool, ...]:
        """Whether the body is cut off in front, behind, on the right and on the left."""
        found = []
        least_share = CUT_SHARE_WITHOUT_FAT if self._hidden else CUT_SHARE
        for axis in (0, 1):
            across = self._body.any(axis=1 + axis).sum(axis=1)
            there = across > 0
            for end, at, limit in (
                (0, box[axis].start, valid[axis].start),
                (-1, box[axis].stop, valid[axis].stop),
            ):
                met = self._body.take(end, axis=1 + axis).sum(axis=1)[there]
                tissue = self._tissue.take(end, axis=1 + axis).sum(axis=1)[there]
                least = np.minimum(CUT_MM / self._mm[1 - axis], 0.9 * across[there])
                wide = met >= np.maximum(least, least_share * across[there])
                # Fat over a part of the edge is a cushion's, or no loss.
                wide &= (tissue >= 0.15 * met) | (met >= 0.9 * across[there])
                found.append(bool(abs(at - limit) <= 1 and there.any() and wide.mean() > 0.5))
        return tuple(found)

    def centre(self, box: Box, cut: tuple[bool, ...]) -> tuple[float, float]:
        """(y, x) index of the body's middle: of its box, or by the spine where it is cut off."""
        boxes = np.array([self._tissue_box(each) for each in self._tissue if each.any()])
        large = boxes[:, 2] >= 0.3 * boxes[:, 2].max()
        middle = np.median(boxes[large, :2], axis=0)
        spine = self._spine(whole=not any(cut))
        place = []
        for axis in (0, 1):
            mm = self._spacing[1 + axis]
            at = box[axis].start + float(middle[axis])
            shown_mm = (box[axis].stop - box[axis].start) * mm
            if any(cut[2 * axis : 2 * axis + 2]) and shown_mm < WHOLE_MM[axis]:
                if spine is not None:
                    blocks = float(np.median(spine[:, axis]))
                    at = box[axis].start + (blocks + 0.5) * self._size[axis] - 0.5
                    at += FROM_SPINE_MM[axis] / mm
                else:  # nothing tells where: what is shown lies in the middle of the frame
                    at = (box[axis].start + box[axis].stop - 1) / 2
                    at -= FrameSpec.offset_mm[axis] / mm
            place.append(at)
        return place[0], place[1]

    def _tissue_box(self, tissue: Mask) -> tuple[float, float, int]:
        """Middle (y, x) of a slice's soft tissue, and how many blocks it has."""
        y, x = (
            (float(np.percentile(where, [1, 99]).mean()) + 0.5) * n - 0.5
            for where, n in zip(np.nonzero(tissue), self._size, strict=True)
        )
        return y, x, int(tissue.sum())

    def _spine(self, whole: bool) -> npt.NDArray[np.float64] | None:
        """Where the spine lies, in blocks (y, x), and the tissue's middle; a row a slice."""
        if self._hidden:  # contrast agent in the stomach is as bright as what bone was cut off to
            return None
        sigma = (20 / self._step_mm, 14 / self._mm[0], 14 / self._mm[1])
        bone = scipy.ndimage.gaussian_filter(
            np.stack([each.bone for each in self._blocks]), sigma, mode="nearest"
        )
        found = []
        for share, trunk in zip(bone, self._tissue, strict=True):
            there = [np.flatnonzero(trunk.any(axis=axis)) for axis in (1, 0)]
            if not len(there[0]):
                continue
            first, last = there[1][0], there[1][-1] + 1
            side = (last - first) // 4 if whole else 0  # no arm's bone
            part = share[:, first + side : last - side]
            y, x = np.unravel_index(part.argmax(), part.shape)
            if part[y, x] > 0.08:
                found.append((y, first + side + x, *(edge[[0, -1]].mean() for edge in there)))
        return np.array(found, float) if len(found) > len(bone) / 2 else None

    def shift(
        self, slices: list[Array], fill: tuple[float, ...], floor: float | None, ceiling: float
    ) -> int:
        """HU that soft tissue lacks to portal-venous CT, which is 0 for what is bright enough."""
        counts, edges = np.zeros(48), np.linspace(-20, 220, 49)
        for plane, trunk in zip(slices, self._trunk, strict=True):
            inside = trunk.repeat(self._size[0], 0).repeat(self._size[1], 1)
            rows, columns = np.minimum(inside.shape, plane.shape)
            values = plane[:rows, :columns][inside[:rows, :columns]]
            counts += np.histogram(values[values < ceiling], edges)[0]
        first = 0 if floor is None else max(0, int(np.searchsorted(edges, floor + 1)))
        counts[:first] = 0
        smooth = np.convolve(counts, np.ones(3) / 3, mode="same")
        for value in fill:  # what lossy compression left around it is no tissue
            if value <= RESIDUE_HU and abs(edges[smooth.argmax()] - value) < RESIDUE_HU:
                smooth[np.abs(edges[:-1] - value) < RESIDUE_HU + 5] = 0
        top = int(smooth.argmax())
        around = slice(max(0, top - 1), top + 2)
        weights = smooth[around]
        if not weights.any():
            return 0
        mode = float(np.average(edges[around] + (edges[1] - edges[0]) / 2, weights=weights))
        if mode >= UNCERTAIN_MODE_HU:
            return 0
        if self._hidden or mode >= DARK_MODE_HU:
            # What is left of fat and its noise must not be taken for dark tissue, nor liver and
            # muscle of a crop for enhanced tissue. Bone that was cut off is no bright tissue.
            least = -20.0 if floor is None else max(-20.0, floor + 15)
            even = np.concatenate([each.means[each.even] for each in self._blocks])
            even = even[(even > least) & (even < min(180.0, ceiling - 2))]
            if not even.size or np.mean(even > ENHANCED_HU) > ENHANCED_SHARE:
                return 0
            if self._hidden and top < first + 3:
                return 0
        return round(PORTAL_VENOUS_HU - mode)

    def turned(self, lung: npt.NDArray[np.float64], cut: tuple[bool, ...]) -> Iterable[str]:
        """Name the directions in which anatomy clearly contradicts the affine."""
        spine = self._spine(whole=True)
        if any(cut) or len(self._blocks) < 5 or (spine is None and not self._hidden):
            return
        right, left = self._even_ml()
        if spine is not None:
            behind = (spine[:, 0] - spine[:, 2]) * self._mm[0]
            front = (behind < -10).mean()
            if len(spine) >= 5 and front >= max(0.55, 2.2 * (behind > 10).mean()):
                yield "front and back"
        least = LIVER_ML_WITHOUT_FAT if self._hidden else LIVER_ML
        if left.sum() >= least and left.sum() >= 4 * right.sum():
            yield "left and right"
        chest = np.flatnonzero(lung >= LUNG_SHARE)
        both = right + left
        if len(chest) and both.sum() >= LIVER_ML and chest[0] <= 1 and len(lung) > 4:
            belly = np.average(np.arange(len(both)), weights=both)
            away_mm = (belly - chest.mean()) * self._step_mm
            if chest[-1] < len(lung) / 2 and LIVER_BELOW_MM[0] < away_mm < LIVER_BELOW_MM[1]:
                yield "head and feet"

    def _even_ml(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """How much wide and even soft tissue lies right and left of the middle, in each slice."""
        disk = np.hypot(*np.ogrid[-4:5, -4:5]) <= 4.3
        ml = self._mm[0] * self._mm[1] * self._step_mm / 1000
        sides = []
        for blocks, trunk, body in zip(self._blocks, self._trunk, self._body, strict=True):
            soft = blocks.even & trunk & (blocks.means > 0) & (blocks.means < 200)
            wide = scipy.ndimage.binary_opening(soft, disk)
            there = np.flatnonzero(body.any(axis=0))
            if blocks.hollow > 0.2 or not len(there):  # the heart is no liver
                sides.append((0.0, 0.0))
                continue
            middle = int(there[[0, -1]].mean())
            sides.append((wide[:, :middle].sum() * ml, wide[:, middle + 1 :].sum() * ml))
        right, left = np.array(sides).T
        return right, left


def _nothing_found() -> PancreasSegError:
    return PancreasSegError(
        "No soft tissue was found in this CT; is it in Hounsfield units, and of the abdomen?"
    )


def _slices_to_look_at(hu: Array) -> npt.NDArray[np.intp]:
    """Some slices, evenly spread between the first and the last that hold more than one value."""
    first, last = 0, len(hu) - 1
    while first < last and np.ptp(hu[first]) == 0:
        first += 1
    while last > first and np.ptp(hu[last]) == 0:
        last -= 1
    return evenly_spread(np.arange(first, last + 1), MOST_SLICES)


def _block_size(shape: tuple[int, ...], spacing: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(max(1, min(n, round(COARSE_MM / s))) for n, s in zip(shape, spacing, strict=True))


def _fat_is_hidden(sample: Array, floor: float) -> bool:
    """Whether hardly any fat is left above the value below which everything was cut off."""
    return floor > FAT_HIDDEN_HU or float(np.mean(sample[sample > floor] < FAT_HIDDEN_HU)) < 0.02


def _stride(n: int) -> int:
    return max(1, n // 256)


def _box(masks: Iterable[Mask]) -> Box | None:
    """The box (y, x) around all of some masks (Y, X)."""
    faces = [(mask.any(axis=1), mask.any(axis=0)) for mask in masks]
    if not any(rows.any() for rows, _ in faces):
        return None
    rows, columns = (np.logical_or.reduce(part) for part in zip(*faces, strict=True))
    (y,), (x,) = np.nonzero(rows), np.nonzero(columns)
    return slice(int(y[0]), int(y[-1]) + 1), slice(int(x[0]), int(x[-1]) + 1)


def _block_means(plane: Array, size: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Means over blocks of so many pixels; the last ones may reach beyond the edge by half."""
    rows, columns = (max(1, (n + k // 2) // k) for n, k in zip(plane.shape, size, strict=True))
    beyond = [
        (0, max(0, m * k - n)) for m, k, n in zip((rows, columns), size, plane.shape, strict=True)
    ]
    whole = np.pad(plane.astype(np.float32), beyond, mode="edge")
    whole = whole[: rows * size[0], : columns * size[1]]
    means: npt.NDArray[np.float32] = whole.reshape(rows, size[0], columns, size[1]).mean((1, 3))
    return means


def _opened(mask: Mask) -> Mask:
    opened: Mask = scipy.ndimage.binary_opening(np.pad(mask, 1), np.ones((3, 3)))[1:-1, 1:-1]
    return opened


def _without_limbs(body: Mask) -> Mask:
    """The largest piece of a slice's body, filled, and others nearly as large, such as legs.

    Arms and cushions are left out even where they touch it: a large disk does not fit into them.
    """
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
    kept: Mask = (sizes >= LIMB * sizes.max())[pieces][n:-n, n:-n]
    return kept
