"""Which slices a step learns from: a pure function of the seed and the step."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from napari_pancreas_seg.arrays import Array, Floats
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.training.data.datasets import TrainingSlices, working_frame
from napari_pancreas_seg.training.fit.augmentation import draw
from napari_pancreas_seg.training.fit.mixing import mix
from napari_pancreas_seg.training.fit.recipe import TrainSettings

Batch = dict[str, Array]

AHEAD = 2
"""Batches that are made while the device is at work."""
TISSUE_HU = 20
"""Brighter pixels are of a body."""


def sampling_chances(slices: TrainingSlices, settings: TrainSettings) -> Floats:
    """Chance of each slice: kinds by their share, patients alike, slices of one alike.

    Slices with and without something of the classes are balanced; what is not usable has none.
    """
    share = {"negative": settings.negative_share, "patient": 1.0 - settings.negative_share}
    chances = np.zeros(len(slices.kind))
    for kind, weight in share.items():
        of_kind = slices.usable & (slices.kind == kind)
        names = np.unique(slices.patient[of_kind])
        for name in names:
            chosen = of_kind & (slices.patient == name)
            chances[chosen] = weight / len(names) / chosen.sum()
            shown = chosen & slices.present.any(axis=1)
            if kind == "patient" and 0 < shown.sum() < chosen.sum():
                p = settings.positive_share
                chances[shown] = p * weight / len(names) / shown.sum()
                others = chosen & ~shown
                chances[others] = (1 - p) * weight / len(names) / others.sum()
    if not chances.sum():
        raise PancreasSegError("There are no slices to train on.")
    return chances / chances.sum()


def training_batch(
    slices: TrainingSlices, chances: Floats, settings: TrainSettings, step: int
) -> Batch:
    """The batch of a step: a pure function of the seed and the step."""
    rng = np.random.default_rng([settings.seed, step])
    chosen = rng.choice(len(chances), settings.batch_size, p=chances)
    # Geometry is annealed by half in the last 15 %, towards what inference will see.
    left = max(0.0, (settings.steps - step) / (0.15 * settings.steps))
    geometry = 0.5 + 0.5 * min(1.0, left)
    mixed = mix(rng, slices, chances, chosen, settings.piece_share)
    points = _points(rng, mixed, working_frame(settings.frame))
    n, planes = mixed["hu"].shape[:2]
    drawn = draw(rng, n, settings.frame, settings.augmentation, geometry, planes, points)
    return {**mixed, **drawn}


def _points(rng: np.random.Generator, batch: Batch, working: FrameSpec) -> Floats:
    """A point of each gland, else of the body, (y, x) in mm from the slice's middle."""
    points = np.zeros((len(batch["hu"]), 2))
    for i, (hu, target) in enumerate(zip(batch["hu"], batch["target"], strict=True)):
        shape = target.shape[:2]
        chosen = np.flatnonzero(target.max(axis=-1) > 127)
        if not chosen.size:
            chosen = np.flatnonzero(hu[len(hu) // 2] > TISSUE_HU)
        if chosen.size:
            place = np.array(np.unravel_index(rng.choice(chosen), shape))
            points[i] = (place - (np.array(shape) - 1) / 2) * working.mm_per_pixel
    return points


def training_batches(
    slices: TrainingSlices, settings: TrainSettings, first: int, last: int
) -> Generator[Batch, None, None]:
    """Yield the batches of steps `first` to before `last`, made ahead in a thread."""
    chances = sampling_chances(slices, settings)
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[Batch]] = deque()
        try:
            for step in range(first, last + AHEAD):
                if step < last:
                    waiting.append(pool.submit(training_batch, slices, chances, settings, step))
                if step >= first + AHEAD:
                    yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
