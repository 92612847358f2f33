"""How good a network is on a few slices, quickly: to compare it before and after a fine-tuning.

Dice at the resolution of the network's frame, per patient. It ranks networks as the figures on
the CT's own grid do, but is not comparable with them.

A model that learns from a scanner with other grey values forgets those it knew, and its own
training slices are not at hand. A user's slices with their grey values mapped onto the usual ones
of portal-venous CT stand in for them: real bodies, with the user's own masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from napari_pancreas_seg.inference.frame import resampling_matrix
from napari_pancreas_seg.inference.predictor import windowed
from napari_pancreas_seg.model.probabilities import tempered
from napari_pancreas_seg.tissue import evenly_spread
from napari_pancreas_seg.training.data.datasets import TrainingSlices, working_frame
from napari_pancreas_seg.training.fit.augmentation import Augment, AugmentationSettings, draw
from napari_pancreas_seg.training.fit.recipe import TrainSettings

Rows = npt.NDArray[np.intp]

SOFT_TISSUE_FROM = 9
"""Grey value (HU) from which a pixel counts: below lies what was clipped, fat and air."""
USUAL_GREY = (
    *(9.0, 16.0, 26.0, 35.5, 43.5, 50.5, 57.5, 62.0, 68.0, 75.5, 83.0),
    *(90.0, 96.5, 103.0, 111.0, 119.5, 131.5, 150.5, 176.0, 241.0, 255.0),
)
"""HU at every twentieth of the pixels with soft tissue or bone in an abdominal slice: medians over
40 patients of NIH Pancreas-CT (Roth et al. 2016, doi:10.7937/K9/TCIA.2016.tNB1kqBU)."""


class Scorer(keras.Model):
    """Cuts the frame out of working slices, runs the network and counts the overlap."""

    def __init__(
        self, network: keras.Model, settings: TrainSettings, card: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.network, self.settings = network, settings
        self.augment = Augment(settings.frame, working_frame(settings.frame))
        self.threshold = float(card["threshold"])
        self.temperature = float(card.get("temperature", 1.0))
        self.compile(jit_compile=keras.backend.backend() == "jax")

    def call(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return ``counts`` (B, C, 2): pixels in both masks, and in either, counted twice each.

        And ``raw``, the network's probability (B, height, width, C) without any temperature.
        """
        hu, target, _ = self.augment(batch)
        outputs = self.network(windowed(hu, self.settings.windows), training=False)
        probability = tempered(outputs["probability"], self.temperature)
        found, truth = _decided(probability, self.threshold), _decided(target, 0.5)
        both = ops.sum(found * truth, axis=(1, 2))
        total = ops.sum(found, axis=(1, 2)) + ops.sum(truth, axis=(1, 2))
        counts = ops.stack([2.0 * both, total], axis=-1)
        return {"counts": counts, "raw": outputs["probability"]}

    def dice(
        self, slices: TrainingSlices, rows: Rows, on_batch: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Dice of each patient, the mean over the classes that there are."""
        counts = [part["counts"] for part in self._outputs(slices, rows, on_batch)]
        if not counts:
            return {}
        table = np.concatenate(counts).astype(np.float64)
        return {
            str(name): _mean_dice(table[slices.patient[rows] == name].sum(axis=0))
            for name in np.unique(slices.patient[rows])
        }

    def answers(
        self, slices: TrainingSlices, rows: Rows, on_batch: Callable[[], None] = lambda: None
    ) -> npt.NDArray[np.uint8]:
        """The network's predictions as targets (n, H, W, C) at the working scale.

        255 for certainty; 0 outside the network's frame.
        """
        frame, working = self.settings.frame, working_frame(self.settings.frame)
        step = working.mm_per_pixel / frame.mm_per_pixel
        up = [
            _out_of_frame(frame.height, working.height, step),
            _out_of_frame(frame.width, working.width, step),
        ]
        said = []
        for part in self._outputs(slices, rows, on_batch):
            shares = np.einsum("Hh,bhwc,Ww->bHWc", up[0], part["raw"], up[1], optimize=True)
            said.append(np.rint(255.0 * np.clip(shares, 0.0, 1.0)).astype(np.uint8))
        return np.concatenate(said)

    def _outputs(
        self, slices: TrainingSlices, rows: Rows, on_batch: Callable[[], None]
    ) -> Iterator[dict[str, npt.NDArray[Any]]]:
        size = self.settings.batch_size
        for begin in range(0, len(rows), size):
            part = rows[begin : begin + size]
            full = np.resize(part, size)  # every batch alike: compiled once
            found = self.predict_on_batch(self._batch(slices, full))
            yield {name: value[: len(part)] for name, value in found.items()}
            on_batch()

    def _batch(self, slices: TrainingSlices, rows: Rows) -> dict[str, npt.NDArray[Any]]:
        nothing = draw(
            np.random.default_rng(0),
            len(rows),
            self.settings.frame,
            AugmentationSettings.none(),
        )
        return {"hu": slices.inputs(rows), "target": slices.target[rows], **nothing}


def rows_to_score(slices: TrainingSlices, chosen: npt.NDArray[np.bool_], most: int) -> Rows:
    """Rows of usable slices among those chosen, at most so many of a patient, evenly spread.

    Those that show something come first: the others tell of false findings alone.
    """
    rows: list[npt.NDArray[np.intp]] = []
    shown = slices.present.any(axis=1)
    for name in np.unique(slices.patient[chosen]):
        mine = chosen & slices.usable & (slices.patient == name)
        with_gland, without = np.flatnonzero(mine & shown), np.flatnonzero(mine & ~shown)
        taken = evenly_spread(with_gland, most - min(len(without), most // 4))
        rows += [taken, evenly_spread(without, most - len(taken))]
    return np.sort(np.concatenate(rows)) if rows else np.zeros(0, np.intp)


def _out_of_frame(n_frame: int, n_working: int, step: float) -> npt.NDArray[np.float32]:
    """Matrix from the network's frame to the working one along an axis; both share their centre."""
    start = (n_frame - 1) / 2 - (n_working - 1) / 2 * step
    return resampling_matrix(n_frame, n_working, start, step)


def _decided(shares: Any, threshold: float) -> Any:
    """Ones where a pixel belongs to a class: the largest of them, if together they pass."""
    together = ops.cast(ops.sum(shares, axis=-1, keepdims=True) > threshold, "float32")
    if shares.shape[-1] == 1:
        return together
    largest = ops.one_hot(ops.argmax(shares, axis=-1), shares.shape[-1])
    return together * largest


def _mean_dice(counts: npt.NDArray[np.float64]) -> float:
    """Mean over the classes of which there is anything; 1 where nothing is and was found."""
    there = counts[counts[:, 1] > 0]
    return float((there[:, 0] / there[:, 1]).mean()) if len(there) else 1.0


def usual_grey(hu: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Table (256,) of the grey value that replaces each of a patient's, so that shares are usual.

    It never falls, and 0 stays 0.
    """
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
