"""How good a network is on a few slices, quickly: to compare it before and after a fine-tuning.

Dice at the resolution of the network's frame, per patient. It ranks networks as the figures on
the CT's own grid do, but is not comparable with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from napari_pancreas_seg.inference.frame import evenly_spread, resampling_matrix
from napari_pancreas_seg.inference.predictor import windowed
from napari_pancreas_seg.model.probabilities import tempered
from napari_pancreas_seg.training.data.datasets import TrainingSlices, working_frame
from napari_pancreas_seg.training.fit.augmentation import Augment, AugmentationSettings, draw
from napari_pancreas_seg.training.fit.recipe import TrainSettings

__all__ = ["Scorer", "rows_to_score"]

Rows = npt.NDArray[np.intp]


class Scorer(keras.Model):
    """Cuts the frame out of working slices, runs the network and counts the overlap.

    Parameters
    ----------
    network : keras.Model
        The network; its weights may change between two scorings.
    settings : TrainSettings
        Its frame and windows.
    card : Mapping
        Its card: threshold and temperature.
    """

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
        outputs = self.network(windowed(hu, self.settings.input_windows), training=False)
        probability = tempered(outputs["probability"], self.temperature)
        found, truth = _decided(probability, self.threshold), _decided(target, 0.5)
        both = ops.sum(found * truth, axis=(1, 2))
        total = ops.sum(found, axis=(1, 2)) + ops.sum(truth, axis=(1, 2))
        counts = ops.stack([2.0 * both, total], axis=-1)
        return {"counts": counts, "raw": outputs["probability"]}

    def dice(
        self, slices: TrainingSlices, rows: Rows, on_batch: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Dice of each patient, the mean over the classes that there are.

        Parameters
        ----------
        slices : TrainingSlices
            Where the rows lie.
        rows : ndarray, shape (n,)
            Which slices; see `rows_to_score`.
        on_batch : callable
            Called after every batch.
        """
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
        """What the network says of slices, as targets at the working scale: 255 for certainty.

        Parameters
        ----------
        slices, rows, on_batch
            See `dice`.

        Returns
        -------
        ndarray, shape (n, H, W, C), uint8
            Nothing (0) outside the network's frame.
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
            slices=slices.neighbours.shape[1],
        )
        return {"hu": slices.inputs(rows), "target": slices.target[rows], **nothing}


def rows_to_score(slices: TrainingSlices, chosen: npt.NDArray[np.bool_], most: int) -> Rows:
    """Rows of usable slices, evenly from each patient's.

    Parameters
    ----------
    slices : TrainingSlices
        All of them.
    chosen : ndarray, shape (N,), bool
        Which come into question.
    most : int
        Slices of one patient. Those that show something of a class come first: the others tell
        of false findings alone.
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
