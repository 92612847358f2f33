"""How good a network is on a few slices, quickly: to compare it before and after a fine-tuning.

Dice at the resolution of the network's frame, per patient. It ranks networks as the figures on
the CT's own grid do, but is not comparable with them.

A model that learns from a scanner with other grey values forgets those it knew, and its own
training slices are not at hand. A user's slices with their grey values mapped onto the usual ones
of portal-venous CT stand in for them: real bodies, with the user's own masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from napari_pancreas_seg.arrays import Array, Bytes, Floats, Floats32, Indices, Mask
from napari_pancreas_seg.inference.frame import resampling_matrix
from napari_pancreas_seg.inference.predictor import windowed
from napari_pancreas_seg.model.probabilities import tempered
from napari_pancreas_seg.tissue import evenly_spread
from napari_pancreas_seg.training.data.datasets import TrainingSlices, working_frame
from napari_pancreas_seg.training.fit.recipe import TrainSettings

SOFT_TISSUE_FROM = 9
"""Grey value (HU) from which a pixel counts: below lies what was clipped, fat and air."""
USUAL_GREY = (
    *(9.0, 16.0, 26.0, 35.5, 43.5, 50.5, 57.5, 62.0, 68.0, 75.5, 83.0),
    *(90.0, 96.5, 103.0, 111.0, 119.5, 131.5, 150.5, 176.0, 241.0, 255.0),
)
"""HU at every twentieth of the pixels with soft tissue or bone in an abdominal slice: medians over
40 patients of NIH Pancreas-CT (Roth et al. 2016, doi:10.7937/K9/TCIA.2016.tNB1kqBU)."""


class Scorer:
    """Cuts the frame out of working slices, runs the network and counts the overlap."""

    def __init__(
        self, network: keras.Model, settings: TrainSettings, card: Mapping[str, Any]
    ) -> None:
        self.network, self.settings = network, settings
        self.threshold = float(card["threshold"])
        self.temperature = float(card.get("temperature", 1.0))
        frame, working = settings.frame, working_frame(settings.frame)
        sizes = ((frame.height, working.height), (frame.width, working.width))
        step = frame.mm_per_pixel / working.mm_per_pixel
        self._cut = [_centred(kept, shown, step) for shown, kept in sizes]
        self._back = [_centred(shown, kept, 1 / step) for shown, kept in sizes]

    def dice(
        self, slices: TrainingSlices, rows: Indices, on_batch: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Dice of each patient, the mean over the classes that there are."""
        counts: dict[str, Floats] = {}
        for part, raw in self._predicted(slices, rows, on_batch):
            probability = ops.convert_to_numpy(tempered(raw, self.temperature))
            target = self._resampled(slices.target[part], self._cut) / 255
            found, truth = _decided(probability, self.threshold), _decided(target, 0.5)
            total = (found.astype(int) + truth).sum(axis=(1, 2))
            count = np.stack([2 * (found & truth).sum(axis=(1, 2)), total], axis=-1)
            for name, of_slice in zip(slices.patient[part].tolist(), count, strict=True):
                counts[name] = counts.get(name, 0) + of_slice
        return {name: _mean_dice(counts[name]) for name in sorted(counts)}

    def answers(
        self, slices: TrainingSlices, rows: Indices, on_batch: Callable[[], None] = lambda: None
    ) -> Bytes:
        """The network's predictions as targets (n, H, W, C), 255 for certainty."""
        parts = self._predicted(slices, rows, on_batch)
        shares = (self._resampled(raw, self._back) for _, raw in parts)
        return np.concatenate([np.rint(255 * s.clip(0, 1)).astype(np.uint8) for s in shares])

    def _predicted(
        self, slices: TrainingSlices, rows: Indices, on_batch: Callable[[], None]
    ) -> Iterator[tuple[Indices, Array]]:
        """Rows, and their probability (B, height, width, C) without any temperature."""
        size = self.settings.batch_size
        for begin in range(0, len(rows), size):
            part = rows[begin : begin + size]
            full = np.resize(part, size)  # every batch alike: compiled once
            hu = self._resampled(slices.inputs(full).transpose(0, 2, 3, 1), self._cut)
            inputs = ops.convert_to_numpy(windowed(hu, self.settings.windows))
            yield part, self.network.predict_on_batch(inputs)["probability"][: len(part)]
            on_batch()

    def _resampled(self, planes: Array, to: Sequence[Floats32]) -> Floats32:
        """Planes (B, H, W, K) in another frame."""
        rows, columns = to
        found = np.einsum(
            "Hh,bhwk,Ww->bHWk", rows, planes.astype(np.float32), columns, optimize=True
        )
        return np.asarray(found, np.float32)


def rows_to_score(slices: TrainingSlices, chosen: Mask, most: int) -> Indices:
    """Rows of usable slices among the chosen, spread, those that show something before others."""
    rows: list[Indices] = []
    shown = slices.present.any(axis=1)
    for name in np.unique(slices.patient[chosen]):
        mine = chosen & slices.usable & (slices.patient == name)
        with_gland, without = np.flatnonzero(mine & shown), np.flatnonzero(mine & ~shown)
        taken = evenly_spread(with_gland, most - min(len(without), most // 4))
        rows += [taken, evenly_spread(without, most - len(taken))]
    return np.sort(np.concatenate(rows)) if rows else np.zeros(0, np.intp)


def _centred(n_from: int, n_to: int, step: float) -> Floats32:
    """Matrix from one frame to another along an axis; both share their centre."""
    return resampling_matrix(n_from, n_to, (n_from - 1) / 2 - (n_to - 1) / 2 * step, step)


def _decided(shares: Array, threshold: float) -> Mask:
    """Whether a pixel belongs to a class: the largest of them, if together they pass."""
    largest = shares.argmax(axis=-1)[..., None] == np.arange(shares.shape[-1])
    return np.asarray(largest & (shares.sum(axis=-1, keepdims=True) > threshold))


def _mean_dice(counts: Floats) -> float:
    """Mean over the classes of which there is anything; 1 where nothing is and was found."""
    there = counts[counts[:, 1] > 0]
    return float((there[:, 0] / there[:, 1]).mean()) if len(there) else 1.0


def usual_grey(hu: Bytes) -> Bytes:
    """Table (256,) from a patient's grey values to usual ones; it never falls, and 0 stays 0."""
    counts = np.bincount(hu.reshape(-1), minlength=256)
    counts[:SOFT_TISSUE_FROM] = 0
    if not counts.any():
        return np.arange(256, dtype=np.uint8)
    below = np.cumsum(counts) / counts.sum()
    shares = np.linspace(0.0, 1.0, len(USUAL_GREY))
    # The middle of the pixels of a grey value: what is saturated is one value for many shares.
    table = np.interp(below - 0.5 * counts / counts.sum(), shares, USUAL_GREY)
    low = np.arange(SOFT_TISSUE_FROM)
    table[:SOFT_TISSUE_FROM] = low * table[SOFT_TISSUE_FROM] / SOFT_TISSUE_FROM
    return np.rint(table).astype(np.uint8)


def with_usual_grey(
    slices: TrainingSlices, patients: Iterable[str], kind: str, most: int
) -> TrainingSlices:
    """Copies of patients' slices, at most so many of each, with the usual grey values."""
    copies = []
    for name in patients:
        rows = rows_to_score(slices, slices.patient == name, most)
        hu = slices.hu[rows]
        copies.append(TrainingSlices.of(usual_grey(hu)[hu], slices.target[rows], name, kind))
    return TrainingSlices.join(copies)
