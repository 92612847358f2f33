"""Parts of other patients in a slice: what a network that knows its patients by heart lacks.

A gland without surroundings is blended into a slice at the gland's place, or lies in the slice of
another patient of whose pixels nothing is learnt; a rectangle of another patient's slice takes the
place of the same part of the body (CutMix, Yun et al. 2019, arXiv:1905.04899; CarveMix, Zhang et
al. 2021, arXiv:2108.06883). Blended edges count less, so that no border of a piece teaches where a
gland ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from napari_pancreas_seg.training.data.crops import Crop
from napari_pancreas_seg.training.data.datasets import TrainingSlices

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Place = tuple[slice, slice]

CANDIDATES = 8
"""Slices among which one is chosen whose gland is about as large as the one pasted."""


@dataclass(frozen=True)
class MixingSettings:
    """How often slices of patients are mixed, as shares of them."""

    crop_share: float = 0.33  # the gland is covered by one without surroundings, if there are any
    alone_share: float = 0.05  # such a gland lies anywhere, and nothing else is learnt from
    piece_share: float = 0.15  # with a rectangle of another patient's slice

    @classmethod
    def none(cls) -> MixingSettings:
        """Settings that mix nothing."""
        return cls(0.0, 0.0, 0.0)


def mix(
    rng: np.random.Generator,
    slices: TrainingSlices,
    chances: npt.NDArray[np.float64],
    chosen: npt.NDArray[np.intp],
    settings: MixingSettings,
) -> dict[str, npt.NDArray[np.uint8]]:
    """Take the chosen slices (B,), some of them with parts of others, drawn by `chances` (N,).

    ``hu`` (B, S, H, W), ``target`` (B, H, W, C) and ``weight`` (B, H, W, 1), uint8: how much a
    pixel counts in the loss, 255 for all.
    """
    parts = [_drawn(rng, slices, chances, int(row), settings) for row in chosen]
    hu, target, weight = (
        np.stack([np.rint(np.clip(part, 0, 255)).astype(np.uint8) for part in parts_of])
        for parts_of in zip(*((p.hu, p.target, p.weight) for p in parts), strict=True)
    )
    return {"hu": hu, "target": target, "weight": weight}


@dataclass
class _Part:
    """A slice (S, H, W), its target (H, W, C) and weight (H, W, 1), from 0 to 255."""

    hu: Array
    target: Array
    weight: Array

    @classmethod
    def of(cls, slices: TrainingSlices, row: int) -> _Part:
        hu = slices.inputs(np.array([row]))[0]
        target = np.asarray(slices.target[np.array([row])])[0]
        return cls(hu, target, np.full((*target.shape[:2], 1), 255, np.uint8))

    def paste(self, hu: Array, target: Array, region: Floats, where: Place) -> None:
        """Blend; what lies between the two counts less."""
        y, x = where
        self.hu, self.target = self.hu.astype(np.float32), self.target.astype(np.float32)
        self.hu[:, y, x] += (hu - self.hu[:, y, x]) * region
        self.target[y, x] += (target - self.target[y, x]) * region[..., None]
        self.weight = self.weight.astype(np.float32)
        self.weight[y, x] *= 1 - 3 * (region * (1 - region))[..., None]


def _drawn(
    rng: np.random.Generator,
    slices: TrainingSlices,
    chances: npt.NDArray[np.float64],
    row: int,
    settings: MixingSettings,
) -> _Part:
    if slices.kind[row] != "patient":
        return _Part.of(slices, row)
    crops = slices.crops
    chance = rng.random()
    limits = np.cumsum(
        [
            settings.crop_share * bool(crops),
            settings.alone_share * bool(crops),
            settings.piece_share,
        ]
    )
    if chance < limits[0]:
        return _with_crop(rng, slices, chances, _any_of(rng, crops))
    part = _Part.of(slices, row)
    if chance < limits[1]:
        return _alone(rng, part, _any_of(rng, crops))
    if chance < limits[2]:
        return _with_piece(rng, slices, chances, part)
    return part


def _any_of(rng: np.random.Generator, crops: tuple[Crop, ...]) -> Crop:
    """Patients alike, crops of one alike."""
    whose = np.array([crop.patient for crop in crops])
    names = np.unique(whose)
    return crops[rng.choice(np.flatnonzero(whose == rng.choice(names)))]


def _with_crop(
    rng: np.random.Generator,
    slices: TrainingSlices,
    chances: npt.NDArray[np.float64],
    crop: Crop,
) -> _Part:
    """A crop at the gland's place, in a slice whose gland is of about its size."""
    shown = np.where((slices.kind == "patient") & slices.present.any(axis=1), chances, 0)
    parts = [
        _Part.of(slices, int(row))
        for row in rng.choice(len(shown), CANDIDATES, p=shown / shown.sum())
    ]
    boxes = [ndimage.find_objects((p.target.max(axis=-1) > 127).astype(np.uint8)) for p in parts]
    found = [(p, box[0]) for p, box in zip(parts, boxes, strict=True) if box] or [
        (parts[0], tuple(slice(0, n) for n in parts[0].target.shape[:2]))
    ]
    sizes = np.array([[s.stop - s.start for s in box] for _, box in found])
    best = int(np.abs(np.log(sizes / np.array(crop.hu.shape))).sum(axis=1).argmin())
    part, box = found[best]
    centre = [(s.start + s.stop) / 2 + rng.normal(0, 6) for s in box]
    where, here = _overlap(part.target.shape[:2], crop.hu.shape, centre)
    hu = crop.hu[here].astype(np.float32) + rng.normal(0, 8)
    region = _region_of(crop, rng)[here]
    part.paste(np.clip(hu, 0, 255), crop.target[here][..., None], region, where)
    return part


def _alone(rng: np.random.Generator, part: _Part, crop: Crop) -> _Part:
    """A crop somewhere in another's slice, of which nothing is learnt."""
    shape = part.target.shape[:2]
    centre = np.array(shape) / 2 + rng.uniform(-50, 50, 2)
    where, here = _overlap(shape, crop.hu.shape, centre.tolist())
    region = _soft_box(crop.hu.shape, float(rng.uniform(0.7, 3)))[here]
    part.paste(crop.hu[here], crop.target[here][..., None], region, where)
    part.weight = np.zeros_like(part.weight)
    part.weight[where] = 255 * np.square(region)[..., None]
    return part


def _with_piece(
    rng: np.random.Generator,
    slices: TrainingSlices,
    chances: npt.NDArray[np.float64],
    part: _Part,
) -> _Part:
    """A rectangle of another slice, at the same place of the body."""
    other = _Part.of(slices, int(rng.choice(len(chances), p=chances)))
    shape = part.target.shape[:2]
    height, width = rng.integers(40, 140, 2)
    centre = np.array(shape) / 2 + rng.uniform(-60, 60, 2)
    (y, x), here = _overlap(shape, (int(height), int(width)), centre.tolist())
    region = _soft_box((int(height), int(width)), float(rng.uniform(0.7, 4)))[here]
    part.paste(other.hu[:, y, x], other.target[y, x], region, (y, x))
    return part


def _overlap(
    shape: tuple[int, ...], size: tuple[int, ...], centre: list[float]
) -> tuple[Place, Place]:
    """Where a slice and a piece of it overlap that is centred there: in either."""
    where, here = [], []
    for n, m, c in zip(shape, size, centre, strict=True):
        first = min(max(round(c - m / 2), 1 - m), n - 1)
        start, stop = max(0, first), min(n, first + m)
        where.append(slice(start, stop))
        here.append(slice(start - first, stop - first))
    return (where[0], where[1]), (here[0], here[1])


def _soft_box(shape: tuple[int, ...], sd: float) -> Floats:
    """1 within a box, falling to 0 at its rim."""
    inside = np.zeros(shape, np.float32)
    rim = max(1, round(sd))
    inside[rim:-rim, rim:-rim] = 1
    return np.asarray(ndimage.gaussian_filter(inside, sd, mode="constant"))


def _region_of(crop: Crop, rng: np.random.Generator) -> Floats:
    """The whole crop, or the gland and a rim; with a soft edge."""
    sd = float(rng.uniform(0.7, 3))
    box = _soft_box(crop.hu.shape, min(sd, 1.5))
    if rng.random() < 0.5:
        return box
    away = ndimage.distance_transform_edt(crop.target < 127)
    near = (away < rng.uniform(2, 14)).astype(np.float32)
    return np.asarray(ndimage.gaussian_filter(near, sd) * box)
