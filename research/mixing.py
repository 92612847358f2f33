"""Slices to learn from: one as it is, or with a part of another patient's in it.

All arrays are of the working frame at 1 mm a pixel. HU and targets run from 0 to 255.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

NEGATIVE, PHANTOM = 0.13, 0.03
CROP, ALONE, CUTMIX, COVERED = 0.33, 0.05, 0.15, 0.09
"""Shares of the patients' slices that get a further patient's gland pasted in, that are a crop
in surroundings of which nothing is to be learnt, that get a piece of another slice, and whose
gland is covered by such a piece: an abdomen above or below the gland."""


@dataclass
class Part:
    """A slice to learn from.

    Parameters
    ----------
    hu, target : ndarray, shape (H, W), float32
        From 0 to 255.
    weight : ndarray, shape (H, W), float32
        How much each pixel counts in the loss, 0 to 1.
    crop : tuple of int and ndarray, optional
        Which crop was pasted in (its row in the file), and where its middle lies (y, x).
    """

    hu: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    crop: tuple[int, np.ndarray] | None = None


class Mixer:
    """Draws slices.

    Parameters
    ----------
    path : Path
        From `prepare_slices.py`.
    hold_out : list of str
        Patients of whom nothing is taken, slices or crops.
    """

    def __init__(self, path: Path, hold_out: list[str]) -> None:
        with np.load(path) as file:
            data = dict(file)
        kept = ~np.isin(data["patient"], hold_out)
        self.hu, self.target = data["hu"][kept], data["target"][kept]
        self.patient, self.kind = data["patient"][kept], data["kind"][kept]
        ends = np.cumsum(data["crop_shape"].prod(axis=1))[:-1]
        pairs = zip(
            np.split(data["crop_hu"], ends), np.split(data["crop_target"], ends), strict=True
        )
        shapes = data["crop_shape"]
        crops = [tuple(a.reshape(s) for a in pair) for pair, s in zip(pairs, shapes, strict=True)]
        learnt = np.flatnonzero(~np.isin(data["crop_patient"], hold_out))
        self.crops = {int(i): crops[i] for i in learnt}
        names = data["crop_patient"][learnt]
        self.box = [ndimage.find_objects((t > 127).astype(np.uint8)) for t in self.target]
        self._of: dict[str, dict[str, np.ndarray]] = {}
        for kind in np.unique(self.kind):
            of_kind = self.kind == kind
            self._of[str(kind)] = {
                str(p): np.flatnonzero(of_kind & (self.patient == p))
                for p in np.unique(self.patient[of_kind])
            }
        self._crops_of = {str(p): learnt[names == p] for p in np.unique(names)}

    def patients(self) -> dict[str, list[str]]:
        """Whose slices and crops are learnt from."""
        return {"slices": sorted(self._of["patient"]), "crops": sorted(self._crops_of)}

    def draw(self, rng: np.random.Generator) -> Part:
        """One slice to learn from."""
        chance = rng.random()
        if chance < NEGATIVE + PHANTOM:
            return self._whole(self._row(rng, "negative" if chance < NEGATIVE else "phantom"))
        chance = rng.random()
        if chance < CROP:
            return self._with_crop(rng)
        if chance < CROP + ALONE:
            return self._alone(rng)
        part = self._whole(self._row(rng, "patient"))
        if chance < CROP + ALONE + CUTMIX:
            return self._with_piece(part, rng)
        if chance < CROP + ALONE + CUTMIX + COVERED:
            return self._covered(part, rng)
        return part

    def _row(self, rng: np.random.Generator, kind: str) -> int:
        """Patients alike, slices of one alike."""
        of = self._of[kind]
        return int(rng.choice(of[list(of)[rng.integers(len(of))]]))

    def _crop(self, rng: np.random.Generator) -> tuple[int, np.ndarray, np.ndarray]:
        names = list(self._crops_of)
        row = int(rng.choice(self._crops_of[names[rng.integers(len(names))]]))
        hu, target = self.crops[row]
        return row, hu.astype(np.float32), target.astype(np.float32)

    def _whole(self, row: int) -> Part:
        hu = self.hu[row].astype(np.float32)
        return Part(hu, self.target[row].astype(np.float32), np.ones_like(hu))

    def _centre(self, row: int) -> tuple[float, float]:
        y, x = self.box[row][0]
        return (y.start + y.stop) / 2, (x.start + x.stop) / 2

    def _with_crop(self, rng: np.random.Generator) -> Part:
        """A crop at the gland's place, in a slice whose gland is of about its size."""
        crop, hu, target = self._crop(rng)
        rows = [r for r in (self._row(rng, "patient") for _ in range(8)) if self.box[r]]
        sizes = [[s.stop - s.start for s in self.box[r][0]] for r in rows]
        row = rows[int(np.abs(np.log(np.array(sizes) / hu.shape)).sum(axis=1).argmin())]
        part = self._whole(row)
        centre = np.array(self._centre(row)) + rng.normal(0, 6, 2)
        where, here = overlap(part.hu.shape, hu.shape, centre)
        region = _region_of_crop(hu.shape, target, rng)[here]
        part = _pasted(part, hu[here] + rng.normal(0, 8), target[here], region, where)
        part.crop = crop, centre
        return part

    def _alone(self, rng: np.random.Generator) -> Part:
        """A crop somewhere in another's slice, of whose surroundings nothing is learnt."""
        _, hu, target = self._crop(rng)
        kind = "patient" if rng.random() < 0.7 else "negative"
        part = self._whole(self._row(rng, kind))
        middle = np.array(part.hu.shape) / 2
        where, here = overlap(part.hu.shape, hu.shape, middle + rng.uniform(-50, 50, 2))
        region = _soft_box(hu.shape, float(rng.uniform(0.7, 3)))[here]
        part = _pasted(part, hu[here], target[here], region, where)
        weight = np.zeros_like(part.weight)
        weight[where] = np.square(region)
        part.weight = weight
        return part

    def _with_piece(self, part: Part, rng: np.random.Generator) -> Part:
        """A rectangle of another patient's slice, at the same place of the body."""
        other = self._row(rng, "patient" if rng.random() < 0.8 else "negative")
        size = rng.uniform(40, 140, 2).astype(int)
        middle = np.array(part.hu.shape) / 2 + rng.uniform(-60, 60, 2)
        where, here = overlap(part.hu.shape, tuple(size), middle)
        region = _soft_box(tuple(size), float(rng.uniform(0.7, 4)))[here]
        hu = self.hu[other][where].astype(np.float32)
        return _pasted(part, hu, self.target[other][where].astype(np.float32), region, where)

    def _covered(self, part: Part, rng: np.random.Generator) -> Part:
        """A piece without gland over the whole gland, from the same place of another's slice."""
        found = ndimage.find_objects((part.target > 10).astype(np.uint8))
        if not found:
            return part
        sd = float(rng.uniform(0.7, 3))
        rim = int(2 * sd) + int(rng.integers(4, 20))
        where = tuple(
            slice(max(0, s.start - rim), min(n, s.stop + rim))
            for s, n in zip(found[0], part.hu.shape, strict=True)
        )
        size = part.hu[where].shape
        for attempt in range(24):
            other = self._row(rng, "patient" if attempt < 12 or rng.random() < 0.5 else "negative")
            off = rng.integers(-15, 16, 2) if attempt < 12 else rng.integers(-60, 61, 2)
            start = [
                int(np.clip(s.start + o, 0, n - m))
                for s, o, n, m in zip(where, off, part.hu.shape, size, strict=True)
            ]
            there = tuple(slice(a, a + m) for a, m in zip(start, size, strict=True))
            if not (self.target[other][there] > 10).any():
                region = _soft_box(size, sd)
                hu = self.hu[other][there].astype(np.float32)
                part = _pasted(part, hu, np.zeros(size, np.float32), region, where)
                part.target[where] = 0
                return part
        return part


def overlap(shape: tuple, size: tuple, centre) -> tuple[tuple, tuple]:
    """Slices of a picture, and of a piece centred there, where the two overlap."""
    where, here = [], []
    for n, m, c in zip(shape, size, centre, strict=True):
        first = round(float(c) - m / 2)
        start, stop = max(0, first), max(min(n, first + m), max(0, first) + 1)
        start = min(start, n - 1)
        where.append(slice(start, min(stop, n)))
        here.append(slice(start - first, min(stop, n) - first))
    return tuple(where), tuple(here)


def _soft_box(shape: tuple, sd: float) -> np.ndarray:
    """1 within a box, falling to 0 at its rim."""
    inside = np.zeros(shape, np.float32)
    rim = max(1, round(sd))
    inside[rim : -rim or None, rim : -rim or None] = 1
    return np.clip(ndimage.gaussian_filter(inside, sd, mode="constant", cval=0.0), 0, 1)


def _region_of_crop(shape: tuple, target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The whole crop, or the gland and a rim; with a soft edge."""
    sd = float(rng.uniform(0.7, 3))
    box = _soft_box(shape, min(sd, 1.5))
    if rng.random() < 0.5:
        return box
    away = ndimage.distance_transform_edt(target < 127)
    near = ndimage.gaussian_filter((away < rng.uniform(2, 14)).astype(np.float32), sd)
    return near * box


def _pasted(
    part: Part, hu: np.ndarray, target: np.ndarray, region: np.ndarray, where: tuple
) -> Part:
    """Blend; what lies between the two counts less."""
    for mine, other in ((part.hu, hu), (part.target, target)):
        mine[where] = mine[where] * (1 - region) + other * region
    part.weight[where] = 1 - 3.0 * region * (1 - region)
    return part
