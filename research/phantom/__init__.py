"""A synthetic abdominal CT made by code, with its true pancreas mask.

It is no patient's scan: shapes, grey values and noise are drawn by the functions of
`anatomy`. Tests and benchmarks use it, and one of these CTs is the program's sample (see
`make_sample`); a score on it says nothing about real CT.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from napari_pancreas_seg.data.sample import add_noise
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.volume import CTVolume
from phantom import anatomy
from phantom.canvas import Canvas

DEFAULT_SHAPE = (84, 224, 288)
DEFAULT_SPACING_MM = (3.0, 1.25, 1.25)


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic CT and the pancreas that was drawn into it."""

    volume: CTVolume  # the CT: int16 HU, its source order and affine those of a usual scanner's
    # 1 in the pancreas, on ``volume.grid`` (display order); one connected piece.
    mask: npt.NDArray[np.uint8]
    # Which organ a voxel belongs to, numbered as in `phantom.anatomy.ORGANS`; 0
    # for none of them. Some bodies have no gallbladder.
    organs: npt.NDArray[np.uint8]
    seed: int  # the seed it was made from


def make_phantom(
    seed: int = 0,
    *,
    spacing_mm: tuple[float, float, float] = DEFAULT_SPACING_MM,
    shape: tuple[int, int, int] = DEFAULT_SHAPE,
) -> Phantom:
    """Make a synthetic portal-venous CT of the abdomen with a pancreas of 55 to 115 mL.

    Nothing of it was measured in a person. It spans the lung bases to the upper pelvis when its
    extent does (252 × 280 × 360 mm by default); ``spacing_mm`` and ``shape`` are along (z, y, x).
    Anatomy, HU, fat, noise, source order and obliquity of the affine vary with the seed; the same
    arguments give the same voxels. PancreasSegError if no abdomen fits into the extent, or the
    arguments make no volume.
    """
    if np.shape(shape) != (3,) or np.shape(spacing_mm) != (3,):
        raise PancreasSegError(
            "A phantom needs a shape of three numbers and a spacing of three (z, y, x); "
            f"{shape} and {spacing_mm} were given."
        )
    extent = [n * s for n, s in zip(shape, spacing_mm, strict=True)]
    enough = all(e >= least for e, least in zip(extent, (100, 200, 250), strict=True))
    if seed < 0 or min(spacing_mm) <= 0 or not enough:
        raise PancreasSegError(
            "A phantom needs a seed of at least 0 and an extent of at least 100 × 200 × 250 mm "
            f"(z, y, x); seed {seed} and {extent[0]:g} × {extent[1]:g} × {extent[2]:g} mm "
            "were asked for."
        )
    rng = np.random.default_rng([20240, seed])
    canvas = Canvas(shape, spacing_mm, rng)
    mask = anatomy.paint_abdomen(canvas)
    hu = add_noise(blurred(canvas), spacing_mm, rng)
    flipped, affine = placed(shape, spacing_mm, rng)
    array = np.flip(hu.transpose(2, 1, 0), flipped)
    gland = largest_piece(mask)
    canvas.organs[gland > 0] = anatomy.ORGANS["pancreas"]
    volume = CTVolume.from_source_array(np.ascontiguousarray(array), affine)
    return Phantom(volume, gland, canvas.organs, seed)


def blurred(canvas: Canvas) -> npt.NDArray[np.float32]:
    """Blur as a scanner does."""
    z, y, x = canvas.spacing_mm
    hu = ndimage.gaussian_filter1d(canvas.hu, 0.55 / y, axis=1, truncate=3)
    hu = ndimage.gaussian_filter1d(hu, 0.55 / x, axis=2, truncate=3)
    return ndimage.gaussian_filter1d(hu, 0.9 / z, axis=0, truncate=3)


def placed(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], rng: np.random.Generator
) -> tuple[tuple[int, ...], npt.NDArray[np.float64]]:
    """Flipped axes of (x, y, z) and affine of a usual source: LPS, LAS or RAS, slightly oblique."""
    lps_to_ras = np.diag([-1.0, -1.0, 1.0])
    direction = lps_to_ras @ _tilt(np.deg2rad(rng.uniform(-4.0, 4.0, size=3)))
    affine = np.eye(4)
    affine[:3, :3] = direction * np.asarray(spacing_mm[::-1])
    size = np.asarray(shape[::-1])
    affine[:3, 3] = rng.uniform(-60.0, 60.0, size=3) - affine[:3, :3] @ ((size - 1) / 2)
    flipped = ((), (1,), (0, 1))[int(rng.integers(3))]
    for axis in flipped:
        affine[:3, 3] += affine[:3, axis] * (size[axis] - 1)
        affine[:3, axis] *= -1
    return flipped, affine


def _tilt(angles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rotation about x, then y, then z, angles in radians."""
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        rotation = turn @ rotation
    return rotation


def largest_piece(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Keep the largest 6-connected piece of a mask."""
    pieces, count = ndimage.label(mask)
    if count > 1:
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        mask = pieces == sizes.argmax()
    return mask.astype(np.uint8)
