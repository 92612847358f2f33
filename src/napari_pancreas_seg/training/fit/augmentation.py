"""Augmentation: chance is drawn on the host, pixels are moved on the device.

`draw` makes all random numbers of a batch as a pure function of its generator, so that
an interrupted training goes on exactly as it would have. `Augment` applies them with
`keras.ops`: one sampling grid serves slice and mask, which therefore always agree.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.model.replicas import roll_batch

Arrays = dict[str, npt.NDArray[Any]]

CONTROL_POINTS = (4, 6)
"""Rows and columns of the elastic displacement's control points."""
LOBULE_MM = 6.0
"""Distance of the points between which a fatty gland's lobules and its fat change."""


@dataclass(frozen=True)
class AugmentationSettings:
    """How strongly slices are changed: lengths in mm, intensities in HU, shares of all slices.

    Of gland and elsewhere the same share is streaked with fat or painted over, so that neither is a
    clue. Where the gland is painted over, the target is empty.
    """

    rotation_deg: float = 15.0  # this and the next four: half-widths of uniform distributions
    scale_log: float = 0.28  # the scale is exp of its draw
    anisotropy: float = 0.1
    shear: float = 0.1
    shift_mm: float = 25.0
    elastic_mm: tuple[float, float] = (0.0, 6.0)  # range of the SD of the control points
    gamma_sd: float = 0.25  # SD of the logarithm of gamma
    gain: float = 0.15  # half-width, as that of the offset
    offset_hu: float = 15.0
    noise_hu: float = 15.0  # largest SD
    blur_share: float = 0.3
    phase_share: float = 0.25  # contrast squeezed as if no agent was given
    phase_offset_hu: float = 40.0  # these are brightened by up to so much, as `contrast_shift` does
    fat_share: float = 0.12
    paint_share: float = 0.05

    @classmethod
    def none(cls) -> AugmentationSettings:
        """Settings that change nothing."""
        zero = {f.name: 0.0 for f in fields(cls) if f.name != "elastic_mm"}
        return cls(**zero, elastic_mm=(0.0, 0.0))

    def without_intensity(self) -> AugmentationSettings:
        """The same geometry, with HU as they are."""
        return replace(
            self, gamma_sd=0.0, gain=0.0, offset_hu=0.0, noise_hu=0.0, blur_share=0.0,
            phase_share=0.0, fat_share=0.0,
        )  # fmt: skip


def draw(
    rng: np.random.Generator,
    n: int,
    frame: FrameSpec,
    settings: AugmentationSettings,
    geometry: float = 1.0,
    slices: int = 1,
) -> Arrays:
    """Draw what happens to a batch of n inputs: what `Augment` takes beside the slices.

    `geometry` is a factor on every geometric strength, annealed towards the end of a training;
    `slices` make up one input.
    """
    s, g = settings, geometry

    def uniform(half: float) -> npt.NDArray[np.float64]:
        return rng.uniform(-half, half, n)

    angle = np.deg2rad(uniform(g * s.rotation_deg))
    scale = np.exp(uniform(g * s.scale_log))
    stretch = np.exp(uniform(g * s.anisotropy))
    shear = uniform(g * s.shear)
    cos, sin = np.cos(angle), np.sin(angle)
    # From the network's frame to the slice, (y, x) in mm around the frame's centre.
    matrix = np.empty((n, 2, 2))
    matrix[:, 0, 0], matrix[:, 0, 1] = cos * stretch, -sin + shear
    matrix[:, 1, 0], matrix[:, 1, 1] = sin, cos / stretch
    matrix *= scale[:, None, None]
    elastic_sd = rng.uniform(*s.elastic_mm, n) * g
    phase = (rng.random(n) < s.phase_share).astype(float)
    return {
        "matrix": matrix.astype(np.float32),
        "shift": rng.uniform(-g * s.shift_mm, g * s.shift_mm, (n, 2)).astype(np.float32),
        "elastic": (
            rng.standard_normal((n, *CONTROL_POINTS, 2)) * elastic_sd[:, None, None, None]
        ).astype(np.float32),
        "gamma": np.exp(rng.normal(0, s.gamma_sd, n)).astype(np.float32),
        "gain": (1 + uniform(s.gain)).astype(np.float32),
        "offset": (uniform(s.offset_hu) + phase * rng.uniform(0, s.phase_offset_hu, n)).astype(
            np.float32
        ),
        "phase": phase.astype(np.float32),
        "blur": (rng.random(n) * (rng.random(n) < s.blur_share)).astype(np.float32),
        "noise": (
            rng.standard_normal((n, frame.height, frame.width, slices), dtype=np.float32)
            * rng.uniform(0, s.noise_hu, n).astype(np.float32)[:, None, None, None]
        ),
        "paint_gland": (rng.random(n) < s.paint_share).astype(np.float32),
        "paint_other": (rng.random(n) < s.paint_share).astype(np.float32),
        "paint_hu": np.where(rng.random(n) < 0.4, 0, rng.uniform(20, 130, n)).astype(np.float32),
        "fat_gland": (rng.random(n) < s.fat_share).astype(np.float32),
        "fat_other": (rng.random(n) < s.fat_share).astype(np.float32),
        "fat": rng.normal(rng.uniform(0, 0.7, (n, 1, 1, 1)), 0.7, (n, *_lobules(frame), 1)).astype(
            np.float32
        ),
    }


def _lobules(frame: FrameSpec) -> tuple[int, int]:
    """Rows and columns of the points between which fat is interpolated."""
    step = LOBULE_MM / frame.mm_per_pixel
    return max(2, round(frame.height / step)), max(2, round(frame.width / step))


class Augment(keras.layers.Layer):
    """Cut the network's frame out of working slices, augmented; both frames share their centre.

    Call with the arrays of `draw`, ``hu`` (B, S, H, W) and ``target`` (B, H, W, C), both uint8;
    returns HU in [0, 255], (B, height, width, S), and the target in [0, 1], (B, height, width, C),
    both float32. The slices of one input share everything but their noise: they are of one body,
    and nothing that is painted may show beside it.
    """

    def __init__(self, frame: FrameSpec, working: FrameSpec, **kwargs: Any) -> None:
        super().__init__(dtype="float32", autocast=False, **kwargs)
        self.frame, self.working = frame, working
        y, x = np.meshgrid(
            (np.arange(frame.height) - (frame.height - 1) / 2) * frame.mm_per_pixel,
            (np.arange(frame.width) - (frame.width - 1) / 2) * frame.mm_per_pixel,
            indexing="ij",
        )
        self.places_mm = np.stack([y, x], -1).reshape(1, -1, 2).astype(np.float32)

    def call(self, batch: dict[str, Any]) -> tuple[Any, Any]:
        """Return HU and target."""
        where = self._sampling_grid(batch)
        slices = batch["hu"].shape[1]
        stack = ops.transpose(batch["hu"], (0, 2, 3, 1))
        sampled = self._sample(ops.concatenate([stack, batch["target"]], axis=-1), where)
        hu, target = sampled[..., :slices], sampled[..., slices:] / 255.0
        hu = self._fat(hu, target, batch)
        hu, target = self._paint(hu, target, batch)
        return self._intensity(hu, batch), target

    def _sampling_grid(self, batch: dict[str, Any]) -> Any:
        """Pixel coordinates (B, height * width, 2) in the working slice."""
        moved = ops.matmul(self.places_mm, ops.transpose(batch["matrix"], (0, 2, 1)))
        elastic = ops.image.resize(
            batch["elastic"], (self.frame.height, self.frame.width), interpolation="bicubic"
        )
        moved = moved + ops.reshape(elastic, (-1, self.frame.height * self.frame.width, 2))
        moved = moved + batch["shift"][:, None, :]
        middle = np.array([self.working.height - 1, self.working.width - 1], np.float32) / 2
        return moved / self.working.mm_per_pixel + middle

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
        streaks = ops.image.resize(
            batch["fat"], (self.frame.height, self.frame.width), interpolation="bicubic"
        )
        where = target * _wide(batch["fat_gland"])
        where = ops.maximum(where, roll_batch(target, -1) * _wide(batch["fat_other"]))
        return hu * (1.0 - where * ops.clip(streaks, 0.0, 1.0))

    def _paint(self, hu: Any, target: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        """Paint over the gland, or over something else in the shape of another's gland."""
        gland = _grown(_foreground(target))
        over = gland * _wide(batch["paint_gland"])
        other = roll_batch(gland, 1) * (1.0 - gland) * _wide(batch["paint_other"])
        covered = ops.maximum(over, other)
        hu = hu * (1.0 - covered) + _wide(batch["paint_hu"]) * covered
        return hu, target * (1.0 - over)

    def _intensity(self, hu: Any, batch: dict[str, Any]) -> Any:
        """Gamma, gain, offset, contrast phase, blur and noise, on clipped HU."""
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
        hu = 255.0 * ops.power(ops.clip(hu / 255.0, 1e-4, 1.0), _wide(batch["gamma"]))
        hu = hu * _wide(batch["gain"])
        hu = hu + known * (_wide(batch["offset"]) + batch["noise"])
        return ops.clip(hu, 0.0, 255.0)


def _wide(values: Any) -> Any:
    """(B,) to (B, 1, 1, 1)."""
    return ops.reshape(values, (-1, 1, 1, 1))


def _foreground(target: Any) -> Any:
    """Share of each pixel that belongs to any class, (B, height, width, 1)."""
    return target if target.shape[-1] == 1 else ops.sum(target, axis=-1, keepdims=True)


def _grown(target: Any) -> Any:
    """The gland and a rim around it, with a soft edge."""
    grown = ops.max_pool(target, 7, 1, padding="same")
    return ops.average_pool(grown, 3, 1, padding="same")
