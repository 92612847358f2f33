"""Augmentation: chance is drawn on the host, pixels are moved on the device.

`draw` makes all random numbers of a batch as a pure function of its generator, so that
an interrupted training goes on exactly as it would have. `Augment` applies them with
`keras.ops`: one sampling grid serves slice and mask, which therefore always agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import keras
import numpy as np
from keras import ops

from napari_pancreas_seg.arrays import Array, Floats, Floats32, Mask
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.model.replicas import roll_batch

CONTROL_POINTS, FINE_POINTS = (4, 6), (9, 12)
"""Rows and columns of the elastic displacements' control points."""
KNOTS_HU = (0, 30, 60, 80, 100, 120, 150, 200, 255)
"""Between these, curves of contrast are straight."""
BIAS_POINTS = (3, 4)
"""Rows and columns of the points between which brightness drifts."""
MOST_CUTS, CUT_PIXELS = 3, (6, 36)
"""Rectangles cut out of a slice at most, and their sides."""
WINDOW_HIGH_HU, WINDOW_LOW_HU = (140.0, 255.0), (0.0, 45.0)
"""Where windows end whose upper or lower end lies within the soft tissue's HU."""
PATCHES = 2.2
"""By so much the noise of small patches is made stronger again after it was averaged."""
LOBULE_MM = 6.0
"""Distance of the points between which a fatty gland's lobules and its fat change."""


@dataclass(frozen=True)
class AugmentationSettings:
    """How strongly slices are changed: lengths in mm, intensities in HU, shares of all slices.

    Of gland and elsewhere the same share is streaked with fat or painted over, so that neither is a
    clue. Where the gland is painted over, the target is empty; from what is cut out nothing is
    learnt.
    """

    rotation_deg: float = 20.0  # this and the next four: half-widths of uniform distributions
    scale_log: float = 0.26  # the scale is exp of its draw
    anisotropy: float = 0.1
    shear: float = 0.1
    shift_mm: float = 25.0
    elastic_mm: tuple[float, float] = (0.0, 6.0)  # range of the SD of the control points
    elastic_fine_mm: tuple[float, float] = (0.0, 2.5)  # of points that lie closer
    field_share: float = 0.2  # a small field of view around a point of the gland
    field_mm: tuple[float, float] = (130.0, 260.0)  # its sides
    gamma_sd: float = 0.25  # SD of the logarithm of gamma
    gain: float = 0.15  # half-width, as that of the offset
    offset_hu: float = 15.0
    curve_share: float = 0.5  # a curve of contrast of its own
    curve_sd: float = 0.35  # SD of the logarithm of its slopes
    bias_hu: float = 6.0  # largest SD of a drift of brightness
    noise_hu: float = 20.0  # largest SD, of single pixels or small patches
    window_share: float = 0.12  # clipped at the upper end, and as many at the lower
    blur_share: float = 0.3
    phase_share: float = 0.25  # contrast squeezed as if no agent was given
    phase_offset_hu: float = 40.0  # these are brightened by up to so much, see `Body.shift`
    fat_share: float = 0.12
    cut_share: float = 0.2
    paint_share: float = 0.05


def draw(
    rng: np.random.Generator,
    n: int,
    frame: FrameSpec,
    settings: AugmentationSettings,
    geometry: float = 1.0,
    slices: int = 1,
    points: Floats | None = None,
) -> dict[str, Array]:
    """Draw what happens to a batch of n inputs: what `Augment` takes beside the slices.

    `geometry` is a factor on every geometric strength, annealed towards the end of a training;
    `slices` make up one input; around `points` (n, 2), (y, x) in mm from the slice's middle, small
    fields of view lie: there are none without.
    """
    s, g = settings, geometry

    def uniform(half: float) -> Floats:
        return rng.uniform(-half, half, n)

    def happens(share: float) -> Mask:
        return rng.random(n) < share

    matrix = _matrices(uniform(np.deg2rad(g * s.rotation_deg)), uniform(g * s.scale_log),
                       uniform(g * s.anisotropy), uniform(g * s.shear))  # fmt: skip
    phase = happens(s.phase_share).astype(float)
    drawn = {
        "matrix": matrix,
        "shift": rng.uniform(-g * s.shift_mm, g * s.shift_mm, (n, 2)),
        "field": _fields(rng, n, s, points),
        "elastic": _elastic(rng, n, CONTROL_POINTS, s.elastic_mm, g),
        "elastic_fine": _elastic(rng, n, FINE_POINTS, s.elastic_fine_mm, g),
        "curve": _curves(rng, n, s),
        "cut": _cuts(rng, n, frame, s.cut_share),
        "cut_hu": np.where(happens(0.4), 0, rng.uniform(0, 200, n)),
        "high": np.where(happens(s.window_share), rng.uniform(*WINDOW_HIGH_HU, n), 255.0),
        "low": np.where(happens(s.window_share), rng.uniform(*WINDOW_LOW_HU, n), 0.0),
        "bias": rng.standard_normal((n, *BIAS_POINTS, 1)) * rng.uniform(0, s.bias_hu, (n, 1, 1, 1)),
        "smooth": rng.random(n),
        "gamma": np.exp(rng.normal(0, s.gamma_sd, n)),
        "gain": 1 + uniform(s.gain),
        "offset": uniform(s.offset_hu) + phase * rng.uniform(0, s.phase_offset_hu, n),
        "phase": phase,
        "blur": rng.random(n) * happens(s.blur_share),
        "noise": rng.standard_normal((n, frame.height, frame.width, slices), dtype=np.float32)
        * rng.uniform(0, s.noise_hu, n).astype(np.float32)[:, None, None, None],
        "paint_gland": happens(s.paint_share),
        "paint_other": happens(s.paint_share),
        "paint_hu": np.where(happens(0.4), 0, rng.uniform(20, 130, n)),
        "fat_gland": happens(s.fat_share),
        "fat_other": happens(s.fat_share),
        "fat": rng.normal(rng.uniform(0, 0.7, (n, 1, 1, 1)), 0.7, (n, *_lobules(frame), 1)),
    }
    return {name: np.asarray(values, np.float32) for name, values in drawn.items()}


def _matrices(angle: Floats, scale: Floats, stretch: Floats, shear: Floats) -> Floats:
    """From the network's frame to the slice (n, 2, 2), (y, x) in mm around the frame's centre."""
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.empty((len(angle), 2, 2))
    matrix[:, 0, 0], matrix[:, 0, 1] = cos * np.exp(stretch), -sin + shear
    matrix[:, 1, 0], matrix[:, 1, 1] = sin, cos / np.exp(stretch)
    return np.asarray(matrix * np.exp(scale)[:, None, None])


def _fields(
    rng: np.random.Generator, n: int, s: AugmentationSettings, points: Floats | None
) -> Floats32:
    """Fields of view (n, 4), middle and sides in mm; most show all."""
    field = np.tile([0.0, 0.0, 1e4, 1e4], (n, 1))
    small = rng.random(n) < s.field_share
    sides = rng.uniform(*s.field_mm, (n, 2))
    if points is not None:
        field[small] = np.concatenate([points, sides], axis=1)[small]
    return field.astype(np.float32)


def _elastic(
    rng: np.random.Generator,
    n: int,
    points: tuple[int, int],
    sd_mm: tuple[float, float],
    geometry: float,
) -> Floats32:
    """Displacements in mm of a grid of points, (n, rows, columns, 2)."""
    sd = rng.uniform(*sd_mm, (n, 1, 1, 1)) * geometry
    return np.asarray(rng.standard_normal((n, *points, 2)) * sd, np.float32)


def _curves(rng: np.random.Generator, n: int, s: AugmentationSettings) -> Floats32:
    """Slopes between `KNOTS_HU` (n, pieces) of curves from 0 to 0 and from 255 to 255."""
    steps = np.diff(KNOTS_HU)
    happens = (rng.random(n) < s.curve_share)[:, None]
    slopes = np.exp(rng.normal(0, s.curve_sd, (n, len(steps))) * happens)
    return np.asarray(slopes * (KNOTS_HU[-1] / (slopes @ steps))[:, None], np.float32)


def _cuts(rng: np.random.Generator, n: int, frame: FrameSpec, share: float) -> Floats32:
    """Rectangles cut out, (n, height, width, 1)."""
    cuts = np.zeros((n, frame.height, frame.width, 1), np.float32)
    for i in np.flatnonzero(rng.random(n) < share):
        for _ in range(rng.integers(1, MOST_CUTS + 1)):
            height, width = rng.integers(*CUT_PIXELS, 2)
            y, x = rng.integers(0, frame.height), rng.integers(0, frame.width)
            cuts[i, y : y + height, x : x + width] = 1
    return cuts


def _lobules(frame: FrameSpec) -> tuple[int, int]:
    """Rows and columns of the points between which fat is interpolated."""
    step = LOBULE_MM / frame.mm_per_pixel
    return max(2, round(frame.height / step)), max(2, round(frame.width / step))


class Augment(keras.layers.Layer):
    """Cut the network's frame out of working slices, augmented; both frames share their centre.

    Call with the arrays of `draw`, ``hu`` (B, S, H, W), ``target`` (B, H, W, C) and, where not
    everything is known, ``weight`` (B, H, W, 1), uint8; returns HU in [0, 255], (B, height, width,
    S), the target (B, height, width, C) and how much each pixel counts, (B, height, width, 1),
    both in [0, 1]. The slices of one input share everything but their noise: they are of one
    body, and nothing that is painted may show beside it.
    """

    def __init__(self, frame: FrameSpec, working: FrameSpec, **kwargs: Any) -> None:
        super().__init__(dtype="float32", autocast=False, **kwargs)
        self.frame, self.working = frame, working
        self.middle = np.array([working.height - 1, working.width - 1], np.float32) / 2
        y, x = np.meshgrid(
            (np.arange(frame.height) - (frame.height - 1) / 2) * frame.mm_per_pixel,
            (np.arange(frame.width) - (frame.width - 1) / 2) * frame.mm_per_pixel,
            indexing="ij",
        )
        self.places_mm = np.stack([y, x], -1).reshape(1, -1, 2).astype(np.float32)

    def call(self, batch: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Return HU, target and weight."""
        where = self._sampling_grid(batch)
        slices = batch["hu"].shape[1]
        classes = batch["target"].shape[-1]
        planes = [ops.transpose(batch["hu"], (0, 2, 3, 1)), batch["target"]]
        planes += [batch["weight"]] if "weight" in batch else []
        sampled = self._sample(ops.concatenate(planes, axis=-1), where)
        shown = self._shown(where, batch)
        hu, target = sampled[..., :slices], sampled[..., slices : slices + classes] / 255.0
        hu, target = hu * shown, target * shown
        weight = ops.ones_like(shown)
        if "weight" in batch:
            # Beyond a small field of view it is known that there is nothing.
            weight = ops.where(shown > 0, sampled[..., slices + classes :] / 255.0, weight)
        hu = self._fat(hu, target, batch)
        hu, target = self._paint(hu, target, batch)
        hu = hu * (1.0 - batch["cut"]) + _wide(batch["cut_hu"]) * batch["cut"]
        return self._intensity(hu, batch), target, weight * (1.0 - batch["cut"])

    def _shown(self, where: Any, batch: dict[str, Any]) -> Any:
        """1 within the field of view, 0 beyond, (B, height, width, 1)."""
        field = batch["field"]
        away = ops.abs((where - self.middle) * self.working.mm_per_pixel - field[:, None, :2])
        inside = ops.all(away <= field[:, None, 2:] / 2.0, axis=-1)
        return ops.reshape(
            ops.cast(inside, "float32"), (-1, self.frame.height, self.frame.width, 1)
        )

    def _sampling_grid(self, batch: dict[str, Any]) -> Any:
        """Pixel coordinates (B, height * width, 2) in the working slice."""
        moved = ops.matmul(self.places_mm, ops.transpose(batch["matrix"], (0, 2, 1)))
        for name in ("elastic", "elastic_fine"):
            moved = moved + ops.reshape(self._resized(batch[name]), (-1, moved.shape[1], 2))
        moved = moved + batch["shift"][:, None, :]
        return moved / self.working.mm_per_pixel + self.middle

    def _resized(self, points: Any, how: str = "bicubic") -> Any:
        """Values between points that span the frame."""
        return ops.image.resize(points, (self.frame.height, self.frame.width), interpolation=how)

    def _sample(self, pictures: Any, where: Any) -> Any:
        """Bilinear values of (B, H, W, K) at the given places, zero outside."""
        height, width, planes = self.working.height, self.working.width, pictures.shape[-1]
        flat = ops.reshape(pictures, (-1, planes))
        first = ops.arange(ops.shape(pictures)[0], dtype="int32")[:, None] * (height * width)
        corner = ops.floor(where)
        part = where - corner
        corner = ops.cast(corner, "int32")
        total = 0.0
        for dy in (0, 1):
            for dx in (0, 1):
                y, x = corner[..., 0] + dy, corner[..., 1] + dx
                inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
                index = ops.clip(y, 0, height - 1) * width + ops.clip(x, 0, width - 1)
                value = ops.cast(ops.take(flat, first + index, axis=0), "float32")
                wy = part[..., 0, None] if dy else 1.0 - part[..., 0, None]
                wx = part[..., 1, None] if dx else 1.0 - part[..., 1, None]
                total = total + ops.where(inside[..., None], value * wy * wx, 0.0)
        return ops.reshape(total, (-1, self.frame.height, self.frame.width, planes))

    def _fat(self, hu: Any, target: Any, batch: dict[str, Any]) -> Any:
        """Streak the gland with fat, or something else in the shape of another's gland."""
        target = _foreground(target)
        streaks = self._resized(batch["fat"])
        where = target * _wide(batch["fat_gland"])
        where = ops.maximum(where, roll_batch(target, -1) * _wide(batch["fat_other"]))
        return hu * (1.0 - where * ops.clip(streaks, 0.0, 1.0))

    def _paint(self, hu: Any, target: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        """Paint over the gland, or over something else in the shape of another's gland."""
        # With a rim around it, and a soft edge.
        grown = ops.max_pool(_foreground(target), 7, 1, padding="same")
        gland = ops.average_pool(grown, 3, 1, padding="same")
        over = gland * _wide(batch["paint_gland"])
        other = roll_batch(gland, 1) * (1.0 - gland) * _wide(batch["paint_other"])
        covered = ops.maximum(over, other)
        hu = hu * (1.0 - covered) + _wide(batch["paint_hu"]) * covered
        return hu, target * (1.0 - over)

    def _intensity(self, hu: Any, batch: dict[str, Any]) -> Any:
        """Blur, contrast phase, curve, gamma, gain, offset, noise and windows, on clipped HU."""
        blur = _wide(batch["blur"])
        # Twice: the blur of a voxel of 3 mm, at most.
        coarse = ops.average_pool(ops.average_pool(hu, 3, 1, padding="same"), 3, 1, padding="same")
        hu = hu * (1.0 - blur) + blur * coarse
        # What was clipped away (fat, air) lies far below 0: there nothing may appear.
        known = ops.clip(hu / 30.0, 0.0, 1.0)
        squeezed = ops.minimum(hu, 45.0) + ops.clip(hu - 45.0, 0.0, 155.0) * (25.0 / 155.0)
        # Bone stays bright without contrast agent.
        squeezed = squeezed + ops.maximum(hu - 200.0, 0.0)
        phase = _wide(batch["phase"])
        hu = hu * (1.0 - phase) + squeezed * phase
        hu = _along(batch["curve"], ops.clip(hu, 0.0, 255.0))
        hu = 255.0 * ops.power(ops.clip(hu / 255.0, 1e-4, 1.0), _wide(batch["gamma"]))
        hu = hu * _wide(batch["gain"])
        smooth = _wide(batch["smooth"])
        patches = ops.average_pool(batch["noise"], 3, 1, padding="same") * PATCHES
        noise = batch["noise"] * (1.0 - smooth) + patches * smooth
        bias = self._resized(batch["bias"], "bilinear")
        hu = hu + known * (_wide(batch["offset"]) + noise + bias)
        return ops.clip(
            ops.maximum(ops.minimum(hu, _wide(batch["high"])), _wide(batch["low"])), 0.0, 255.0
        )


def _along(slopes: Any, hu: Any) -> Any:
    """Values of curves in straight pieces at HU."""
    total = 0.0
    for i, (start, end) in enumerate(pairwise(KNOTS_HU)):
        total = total + _wide(slopes[:, i]) * ops.clip(hu - start, 0.0, float(end - start))
    return total


def _wide(values: Any) -> Any:
    """(B,) to (B, 1, 1, 1)."""
    return ops.reshape(values, (-1, 1, 1, 1))


def _foreground(target: Any) -> Any:
    """Share of each pixel that belongs to any class, (B, height, width, 1)."""
    return target if target.shape[-1] == 1 else ops.sum(target, axis=-1, keepdims=True)
