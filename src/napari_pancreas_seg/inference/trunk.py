"""The trunk in a CT, seen in blocks: its middle, its cut edges, its contrast, which way it lies."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import scipy

from napari_pancreas_seg.arrays import Array, Floats, Indices, Mask, Spacing
from napari_pancreas_seg.inference.blocks import Blocks
from napari_pancreas_seg.inference.frame import FrameSpec

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
CUT_MM, CUT_SHARE, CUT_SHARE_WITHOUT_FAT = 60.0, 0.6, 0.4
"""A body is cut off where it meets the edge over so much, and that share of its extent."""
WHOLE_MM = (180.0, 230.0)
"""What shows so much of a body along (y, x) shows its middle, cut off or not."""
FROM_SPINE_MM = (-42.0, -5.0)
"""From the spine to the middle of the body along (y, x): medians in NIH Pancreas-CT."""
BESIDE_SPINE_MM = 15.0
"""A middle that lies farther to a side of the spine is that of a body with something beside it."""
LUNG_SHARE, CHEST_SHARE = 0.05, 0.15
"""A slice with that share of its body in lungs shows some of the chest; or mostly chest."""
LIVER_ML, LIVER_ML_WITHOUT_FAT = 80.0, 250.0
"""Even tissue of that volume on one side, and hardly any on the other, is the liver; where lungs
cannot be told from fat, less may be the heart."""
LIVER_BELOW_MM = (25.0, 170.0)
"""From the middle of the lungs that are seen to that of the liver."""


class Trunk:
    """The trunk in the blocks of n slices that are so far apart, and what follows from it."""

    def __init__(
        self, blocks: list[Blocks], spacing: Spacing, step_mm: float, fat_hidden: bool
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

    def cut(self, box: tuple[slice, slice], valid: tuple[slice, slice]) -> tuple[bool, ...]:
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

    def centre(self, box: tuple[slice, slice], cut: tuple[bool, ...]) -> tuple[float, float]:
        """(y, x) index of the body's middle: of its box, or by the spine where it is cut off."""
        boxes = np.array([self._tissue_box(each) for each in self._tissue if each.any()])
        large = boxes[:, 2] >= 0.3 * boxes[:, 2].max()
        middle = np.median(boxes[large, :2], axis=0)
        spine = None if self._hidden else self._spine(whole=not any(cut))
        if spine is not None:
            spine_at = np.median(self._places(spine, box), axis=0).tolist()
        place = []
        for axis in (0, 1):
            mm = self._spacing[1 + axis]
            at = box[axis].start + float(middle[axis])
            shown_mm = (box[axis].stop - box[axis].start) * mm
            if any(cut[2 * axis : 2 * axis + 2]) and shown_mm < WHOLE_MM[axis]:
                if spine is not None:
                    at = spine_at[axis] + FROM_SPINE_MM[axis] / mm
                else:  # nothing tells where: what is shown lies in the middle of the frame
                    at = (box[axis].start + box[axis].stop - 1) / 2
                    at -= FrameSpec.offset_mm[axis] / mm
            elif axis == 1 and spine is not None and abs(at - spine_at[1]) * mm > BESIDE_SPINE_MM:
                at = spine_at[1]
            place.append(at)
        return place[0], place[1]

    def _tissue_box(self, tissue: Mask) -> tuple[float, float, int]:
        """Middle (y, x) of a slice's soft tissue, and how many blocks it has."""
        y, x = (
            (float(np.percentile(where, [1, 99]).mean()) + 0.5) * n - 0.5
            for where, n in zip(np.nonzero(tissue), self._size, strict=True)
        )
        return y, x, int(tissue.sum())

    def spine(self, box: tuple[slice, slice], z: Indices) -> Floats | None:
        """Where the spine lies, an index (z, y, x) in each of the slices z that show it."""
        found = self._spine(whole=True)
        if found is None:
            return None
        return np.column_stack([z[found[:, 4].astype(int)], self._places(found, box)])

    def _places(self, blocks: Floats, box: tuple[slice, slice]) -> Floats:
        """Index (y, x) of the middle of blocks (n, y, x, ...)."""
        return (blocks[:, :2] + 0.5) * self._size - 0.5 + [part.start for part in box]

    def _spine(self, whole: bool) -> Floats | None:
        """The spine's block (y, x), the tissue's middle and the slice's number; a row a slice."""
        sigma = (20 / self._step_mm, 14 / self._mm[0], 14 / self._mm[1])
        bone = scipy.ndimage.gaussian_filter(
            np.stack([each.bone for each in self._blocks]), sigma, mode="nearest"
        )
        found = []
        for number, (share, trunk) in enumerate(zip(bone, self._tissue, strict=True)):
            there = [np.flatnonzero(trunk.any(axis=axis)) for axis in (1, 0)]
            if not len(there[0]):
                continue
            first, last = there[1][0], there[1][-1] + 1
            side = (last - first) // 4 if whole else 0  # no arm's bone
            part = share[:, first + side : last - side]
            y, x = np.unravel_index(part.argmax(), part.shape)
            if part[y, x] > 0.08:
                middle = (edge[[0, -1]].mean() for edge in there)
                found.append((y, first + side + x, *middle, number))
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

    def turned(self, lung: Floats, cut: tuple[bool, ...]) -> Iterable[str]:
        """Name the directions in which anatomy clearly contradicts the affine."""
        # With fat hidden, contrast agent in the stomach is as bright as bone.
        spine = None if self._hidden else self._spine(whole=True)
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

    def _even_ml(self) -> tuple[Floats, Floats]:
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
