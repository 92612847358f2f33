"""A rectangle of another patient's slice in place of the same part of the body.

What a network lacks that knows its patients by heart (CutMix, Yun et al. 2019, arXiv:1905.04899;
CarveMix, Zhang et al. 2021, arXiv:2108.06883). Blended edges count less, so that no border of a
rectangle teaches where a gland ends.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from napari_pancreas_seg.arrays import Array, Bytes, Floats, Floats32, Indices
from napari_pancreas_seg.training.data.datasets import TrainingSlices


def mix(
    rng: np.random.Generator, slices: TrainingSlices, chances: Floats, chosen: Indices, share: float
) -> dict[str, Bytes]:
    """Take the chosen slices (B,); a share of patients' gets a part of others, drawn by `chances`.

    ``hu`` (B, S, H, W), ``target`` (B, H, W, C) and ``weight`` (B, H, W, 1), uint8: how much a
    pixel counts in the loss, 255 for all.
    """
    hu, target = slices.inputs(chosen), np.asarray(slices.target[chosen])
    weight = np.full((*target.shape[:3], 1), 255, np.uint8)
    for i, row in enumerate(chosen):
        if slices.kind[row] != "patient" or rng.random() >= share:
            continue
        other = rng.choice(len(chances), 1, p=chances)
        (y, x), region = _rectangle(rng, (target.shape[1], target.shape[2]))
        hu[i, :, y, x] = _blended(hu[i, :, y, x], slices.inputs(other)[0, :, y, x], region)
        part = slices.target[other][0, y, x]
        target[i, y, x] = _blended(target[i, y, x], part, region[..., None])
        weight[i, y, x, 0] = np.rint(255 * (1 - 3 * region * (1 - region)))
    return {"hu": hu, "target": target, "weight": weight}


def _blended(ours: Array, theirs: Array, region: Floats32) -> Array:
    return np.rint(ours + (theirs.astype(np.float32) - ours) * region)


def _rectangle(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[list[slice], Floats32]:
    """A rectangle not far from a slice's middle: 1 within, falling to 0 at its rim."""
    size = rng.integers(40, 140, 2)
    centre = np.array(shape) / 2 + rng.uniform(-60, 60, 2)
    blur = float(rng.uniform(0.7, 4))
    region = np.zeros(size, np.float32)
    rim = max(1, round(blur))
    region[rim:-rim, rim:-rim] = 1
    region = ndimage.gaussian_filter(region, blur, mode="constant")
    first = np.rint(centre - size / 2).clip(1 - size, np.array(shape) - 1).astype(int).tolist()
    where = [slice(max(0, f), min(n, f + m)) for n, m, f in zip(shape, size, first, strict=True)]
    y, x = (slice(w.start - f, w.stop - f) for w, f in zip(where, first, strict=True))
    return where, np.asarray(region[y, x])
