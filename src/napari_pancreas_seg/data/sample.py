"""The synthetic sample CT: no patient's scan, drawn by ``research/phantom``.

It serves the demo and a first look without any data at hand; a score on it says nothing about real
CT. It is stored without noise, which would not compress, and with errors far below the noise.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.volume import CTVolume

PATH = Path(str(files("napari_pancreas_seg") / "data" / "sample.npz"))
AIR_HU = -1024
"""HU that is stored as 0."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A synthetic CT and the pancreas that was drawn into it."""

    volume: CTVolume  # the CT: int16 HU, its source order and affine those of a usual scanner's
    mask: npt.NDArray[np.uint8]  # 1 in the pancreas, on ``volume.grid``; one connected piece


def load_sample() -> Sample:
    """Load the synthetic CT, 84 × 224 × 288 voxels, the same every time."""
    import imagecodecs

    with np.load(PATH) as stored:
        shape = tuple(stored["shape"])
        hu = imagecodecs.jpegls_decode(stored["hu"].tobytes()).reshape(shape)
        mask = np.unpackbits(stored["mask"], count=hu.size).reshape(shape)
        rng = np.random.default_rng()
        rng.bit_generator.state = json.loads(str(stored["state"]))
        noisy = add_noise(hu.astype(np.float32) + AIR_HU, stored["spacing"], rng)
        array = np.flip(noisy.transpose(2, 1, 0), tuple(stored["flipped"]))
        return Sample(CTVolume.from_source_array(array, stored["affine"]), mask)


def add_noise(
    hu: npt.NDArray[np.float32], spacing_mm: Any, rng: np.random.Generator
) -> npt.NDArray[np.int16]:
    """Add noise whose grain is that of a soft-tissue kernel to HU (Z, Y, X)."""
    from scipy import ndimage

    grain = rng.standard_normal(hu.shape, dtype=np.float32)
    width_mm = rng.uniform(0.6, 1.1)
    for axis in (1, 2):
        grain = ndimage.gaussian_filter1d(grain, width_mm / spacing_mm[axis], axis, truncate=3)
    hu = hu + grain * np.float32(rng.uniform(8.0, 16.0) / grain.std())
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
