"""What happens to slices before the network sees them: geometry, fields of view, intensity.

`Changes.draw` draws it, `changed` applies it; slice and target share one sampling grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from mixing import Part

FRAME, FRAME_MM = (160, 224), 1.2
ROTATION, SCALE, STRETCH, SHEAR, SHIFT_MM = np.deg2rad(20), 0.26, 0.1, 0.1, 25.0
ELASTIC = (((4, 6), 6.0), ((9, 12), 2.5))
"""Control points, and the largest standard deviation of their displacement in mm."""
FIELD, FIELD_MM, FIELD_OFFSET_MM = 0.2, (130.0, 260.0), (-6.0, 14.0)
"""Share of slices with a small field of view, its sides, and from its middle to the frame's."""
PHASE, FAT, PAINT, CUT, BLUR, CURVE = 0.22, 0.12, 0.05, 0.2, 0.3, 0.5
WINDOW_HIGH, WINDOW_LOW = 0.15, 0.1
NOISE_HU, BIAS_HU, GAIN, OFFSET_HU, GAMMA = 22.0, 6.0, 0.15, 15.0, 0.25
KNOTS = np.array([0, 30, 60, 80, 100, 120, 150, 200, 255])


@dataclass
class Changes:
    """What happens to the slices of a batch; the first axis is the batch."""

    matrix: torch.Tensor
    shift: torch.Tensor
    elastic: list[torch.Tensor]
    field: torch.Tensor
    curve: torch.Tensor
    noise: torch.Tensor
    bias: torch.Tensor
    fat: torch.Tensor
    cut: torch.Tensor
    numbers: dict[str, torch.Tensor]

    @classmethod
    def draw(cls, rng: np.random.Generator, parts: list[Part], geometry: float) -> Changes:
        """Draw them; `geometry` scales all that moves pixels."""
        n, g = len(parts), geometry

        def uniform(half: float) -> np.ndarray:
            return rng.uniform(-half, half, n)

        def happens(share: float) -> np.ndarray:
            return (rng.random(n) < share).astype(np.float32)

        angle, scale = uniform(g * ROTATION), np.exp(uniform(g * SCALE))
        stretch, shear = np.exp(uniform(g * STRETCH)), uniform(g * SHEAR)
        cos, sin = np.cos(angle), np.sin(angle)
        rows = np.stack([cos * stretch, -sin + shear, sin, cos / stretch], -1).reshape(n, 2, 2)
        shift = rng.uniform(-g * SHIFT_MM, g * SHIFT_MM, (n, 2))
        field = np.tile([0.0, 0.0, 1e4, 1e4], (n, 1))
        for i, part in enumerate(parts):
            if rng.random() < FIELD:
                field[i, :2] = _point(part, rng)
                field[i, 2:] = rng.uniform(*FIELD_MM, 2)
                shift[i] = field[i, :2] + FIELD_OFFSET_MM + rng.uniform(-15, 15, 2)
        phase = happens(PHASE)
        seed = int(rng.integers(2**31))
        generator = torch.Generator().manual_seed(seed)
        elastic = [
            rng.standard_normal((n, 2, *size)) * (g * rng.uniform(0, sd, (n, 1, 1, 1)))
            for size, sd in ELASTIC
        ]
        numbers = {
            "gamma": np.exp(rng.normal(0, GAMMA, n) * (rng.random(n) < 0.5)),
            "gain": 1 + uniform(GAIN),
            "offset": uniform(OFFSET_HU) + phase * rng.uniform(0, 40, n),
            "phase": phase,
            "squeeze": rng.uniform(20, 60, n) / 155,
            "blur": rng.uniform(0, 1, n) * happens(BLUR),
            "noise": rng.uniform(0, NOISE_HU, n) * happens(0.7),
            "smooth": rng.uniform(0, 1, n),
            "paint_gland": happens(PAINT),
            "paint_other": happens(PAINT),
            "paint_hu": np.where(rng.random(n) < 0.4, 0, rng.uniform(20, 130, n)),
            "fat_gland": happens(FAT),
            "fat_other": happens(FAT),
            "cut_hu": np.where(rng.random(n) < 0.4, 0, rng.uniform(0, 200, n)),
            "high": np.where(rng.random(n) < WINDOW_HIGH, rng.uniform(140, 255, n), 255),
            "low": np.where(rng.random(n) < WINDOW_LOW, rng.uniform(0, 45, n), 0),
        }
        fat = rng.normal(rng.uniform(0, 0.7, (n, 1, 1, 1)), 0.7, (n, 1, 32, 45))
        return cls(
            _tensor(rows * scale[:, None, None]),
            _tensor(shift),
            [_tensor(e) for e in elastic],
            _tensor(field),
            _tensor(_curves(rng, n, happens(CURVE))),
            torch.randn(n, 1, *FRAME, generator=generator),
            _tensor(rng.normal(0, 1, (n, 1, 3, 4)) * rng.uniform(0, BIAS_HU, (n, 1, 1, 1))),
            _tensor(fat),
            _tensor(_cuts(rng, n, happens(CUT))),
            {name: _tensor(v).reshape(-1, 1, 1, 1) for name, v in numbers.items()},
        )


def changed(parts: list[Part], c: Changes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """HU from 0 to 1, target and weight, (B, 1, 160, 224)."""
    pictures = _tensor(np.stack([np.stack([p.hu, p.target, p.weight]) for p in parts]))
    places = _places(c)
    height, width = pictures.shape[-2:]
    scale = torch.tensor([2.0 / width, 2.0 / height])
    grid = places.flip(-1) * scale  # (x, y) in [-1, 1], half-pixel edges
    sampled = F.grid_sample(pictures, grid, mode="bilinear", align_corners=False)
    away = (places - c.field[:, None, None, :2]).abs() <= c.field[:, None, None, 2:] / 2
    inside = away.all(-1)[:, None].float()
    hu, target = sampled[:, :1] * inside, sampled[:, 1:2] * inside / 255
    weight = torch.where(
        inside > 0, sampled[:, 2:], 1.0 * (sampled[:, 2:].amax((1, 2, 3), True) > 0)
    )
    # Beyond the working slice nothing is known but that it is empty.
    weight = weight.clamp(0, 1)
    n = c.numbers
    hu = _fat(hu, target, c)
    hu, target = _paint(hu, target, n)
    hu, weight = hu * (1 - c.cut) + n["cut_hu"] * c.cut, weight * (1 - c.cut)
    return _intensity(hu, c) / 255, target, weight


def _places(c: Changes) -> torch.Tensor:
    """Where each pixel comes from, (B, 160, 224, 2), (y, x) in mm from the slice's middle."""
    axes = [(torch.arange(n) - (n - 1) / 2) * FRAME_MM for n in FRAME]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(1, -1, 2)
    moved = places @ c.matrix.transpose(1, 2) + c.shift[:, None]
    moved = moved.reshape(-1, *FRAME, 2)
    for elastic in c.elastic:
        moved = moved + F.interpolate(elastic, FRAME, mode="bicubic").permute(0, 2, 3, 1)
    return moved


def _fat(hu: torch.Tensor, target: torch.Tensor, c: Changes) -> torch.Tensor:
    """Streak the gland with fat, or something else in the shape of another's gland."""
    n = c.numbers
    where = torch.maximum(target * n["fat_gland"], target.roll(-1, 0) * n["fat_other"])
    if not where.any():
        return hu
    streaks = F.interpolate(c.fat, FRAME, mode="bicubic").clamp(0, 1)
    return hu * (1 - where * streaks)


def _paint(hu: torch.Tensor, target: torch.Tensor, n: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Paint over the gland, or over something else in the shape of another's gland."""
    if not (n["paint_gland"].any() or n["paint_other"].any()):
        return hu, target
    gland = F.avg_pool2d(F.max_pool2d(target, 7, 1, 3), 3, 1, 1)
    over = gland * n["paint_gland"]
    covered = torch.maximum(over, gland.roll(1, 0) * (1 - gland) * n["paint_other"])
    return hu * (1 - covered) + n["paint_hu"] * covered, target * (1 - over)


def _intensity(hu: torch.Tensor, c: Changes) -> torch.Tensor:
    """Blur, contrast phase, curve, gamma, gain, offset, noise and the window's ends."""
    n = c.numbers
    coarse = F.avg_pool2d(F.avg_pool2d(hu, 3, 1, 1), 3, 1, 1)
    hu = hu * (1 - n["blur"]) + n["blur"] * coarse
    # What was clipped away (fat, air) lies far below 0: there nothing may appear.
    known = (hu / 30).clamp(0, 1)
    squeezed = hu.clamp(max=45) + (hu - 45).clamp(0, 155) * n["squeeze"] + (hu - 200).clamp(min=0)
    hu = hu * (1 - n["phase"]) + squeezed * n["phase"]
    hu = _along(c.curve, hu.clamp(0, 255))
    hu = 255 * (hu / 255).clamp(1e-4, 1) ** n["gamma"] * n["gain"]
    soft = F.avg_pool2d(c.noise, 3, 1, 1) * 2.2
    noise = (c.noise * (1 - n["smooth"]) + soft * n["smooth"]) * n["noise"]
    bias = F.interpolate(c.bias, FRAME, mode="bilinear")
    hu = hu + known * (n["offset"] + noise + bias)
    return torch.maximum(torch.minimum(hu, n["high"]), n["low"]).clamp(0, 255)


def _along(curves: torch.Tensor, hu: torch.Tensor) -> torch.Tensor:
    """Values of curves (B, 257) at HU from 0 to 255."""
    flat = hu.reshape(len(hu), -1)
    low = flat.long()
    first, second = curves.gather(1, low), curves.gather(1, low + 1)
    return (first + (second - first) * (flat - low)).reshape(hu.shape)


def _curves(rng: np.random.Generator, n: int, happens: np.ndarray) -> np.ndarray:
    """Rising curves (n, 257) in pieces of random slope: contrasts between tissues differ."""
    slopes = np.exp(rng.normal(0, 0.35, (n, len(KNOTS) - 1)) * happens[:, None])
    values = np.concatenate([np.zeros((n, 1)), np.cumsum(slopes * np.diff(KNOTS), axis=1)], axis=1)
    values *= 255 / values[:, -1:]
    return np.stack([np.interp(np.arange(257), KNOTS, v) for v in values])


def _cuts(rng: np.random.Generator, n: int, happens: np.ndarray) -> np.ndarray:
    """Rectangles of which nothing is learnt, (n, 1, 160, 224)."""
    cuts = np.zeros((n, 1, *FRAME), np.float32)
    for i in np.flatnonzero(happens):
        for _ in range(rng.integers(1, 4)):
            h, w = rng.integers(6, 36, 2)
            y, x = rng.integers(20, 140), rng.integers(30, 190)
            cuts[i, 0, y : y + h, x : x + w] = 1
    return cuts


def _point(part: Part, rng: np.random.Generator) -> np.ndarray:
    """A point of the gland, else of the body, in mm from the slice's middle."""
    chosen = np.flatnonzero(part.target > 127)
    if not chosen.size:
        chosen = np.flatnonzero(part.hu > 20)
    middle = (np.array(part.hu.shape) - 1) / 2
    if not chosen.size:
        return np.zeros(2)
    return np.array(np.unravel_index(rng.choice(chosen), part.hu.shape)) - middle


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
