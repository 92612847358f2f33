"""Training that begins with a model's weights and stays near them: for a few new cases.

The decoder learns first, the encoder after it and slowly. Batch normalisation keeps its
statistics and its scale: a handful of slices says too little of either. Afterwards old and new
weights can be mixed (Wortsman et al. 2022, arXiv:2109.01903): on the way from one to the other
lies most of what was gained, and less is forgotten.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from napari_pancreas_seg.arrays import Array, Floats32
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.model.attention_unet import Architecture
from napari_pancreas_seg.model.bundle import Bundle
from napari_pancreas_seg.training.data.datasets import TrainingSlices
from napari_pancreas_seg.training.fit.augmentation import AugmentationSettings
from napari_pancreas_seg.training.fit.batches import training_batches
from napari_pancreas_seg.training.fit.devices import choose_policy
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.fit.trainer import TrainingModel

Weights = list[Floats32]
"""A network's weights, as Keras's `get_weights` lists them."""

WARM_UP, LEAST_RATE = 0.1, 0.05
"""Share of a stage until its rate is reached; share of that rate to which it falls."""
FEWEST_STEPS = 4
"""Of a stage, however short the time is."""


@dataclass(frozen=True)
class Stage:
    """A part of a fine-tuning: what learns, at which highest rate, for which share of the time.

    `layers` are the beginnings of the names of the layers that learn; empty for all.
    """

    name: str
    layers: tuple[str, ...]
    rate: float
    share: float

    def learns(self, layer: str) -> bool:
        """Whether a layer of this name learns; normalisation never does."""
        return "_norm" not in layer and (not self.layers or layer.startswith(self.layers))


STAGES = (
    Stage("the decoder", ("decoder_", "gate_", "head"), 3e-4, 0.7),
    Stage("the whole network", (), 5e-5, 0.3),
)


def tune_settings(card: Mapping[str, Any], batch_size: int, seed: int) -> TrainSettings:
    """A recipe for the network that a card describes, without the heads that no bundle holds."""
    policy = choose_policy("auto")
    return TrainSettings(
        architecture=Architecture(**card["architecture"]),
        steps=1 << 30,  # the geometry of the last steps is of no use: they may come any time
        batch_size=batch_size,
        side_weights=(0.0, 0.0),
        # Half precision wants its loss scaled; a few minutes are not worth that.
        policy="float32" if policy == "mixed_float16" else policy,
        negative_share=0.0,
        windows=tuple(tuple(window) for window in card["windows"]),
        seed=seed,
        frame=FrameSpec.from_dict(card["frame"]),
        augmentation=AugmentationSettings(),
        piece_share=0.0,  # what is corrected is one patient's
    )


class Tuner:
    """A network that learns from a model's weights onwards, as often as one likes."""

    def __init__(
        self, start: Bundle, settings: TrainSettings, stages: tuple[Stage, ...] = STAGES
    ) -> None:
        keras.utils.set_random_seed(settings.seed)
        self.stages = stages
        self.network = start.network()
        self.start: Weights = self.network.get_weights()
        self.settings = settings
        self._trainer = TrainingModel(settings)
        self.steps = 0  # of the last tuning
        self._rate = 0.0

    def tune(
        self,
        slices: TrainingSlices,
        steps: int,
        seconds: float = math.inf,
        on_step: Callable[[str, float], None] = lambda stage, share: None,
    ) -> Weights:
        """Learn from the model's own weights until steps or time are used up; return the new ones.

        `on_step` is told what learns, and how far it is.
        """
        self._trainer.network.set_weights(self.start)
        self.steps, over = 0, 0.0
        began = time.perf_counter()

        def spent() -> float:
            elapsed = time.perf_counter() - began
            return max(elapsed / max(seconds, 1e-3), self.steps / steps)

        batches = training_batches(slices, self.settings, 0, self.settings.steps)
        for stage in self.stages:
            first, over = over, over + stage.share
            self._begin(stage)
            until = self.steps + FEWEST_STEPS
            while (done := spent()) < over or self.steps < until:
                self._rate = stage.rate * rate_share((done - first) / stage.share)
                self._step(next(batches))
                on_step(stage.name, min(1.0, spent()))
        new: Weights = self._trainer.network.get_weights()
        return new

    def use(self, weights: Weights) -> keras.Model:
        """The network with these weights; the same object every time."""
        self.network.set_weights(weights)
        return self.network

    def _step(self, batch: dict[str, Array]) -> None:
        self._trainer.optimizer.learning_rate = self._rate
        loss = float(self._trainer.train_on_batch(batch, return_dict=True)["loss"])
        self._trainer.reset_metrics()
        if not math.isfinite(loss):
            raise PancreasSegError(
                "The loss is no longer a number; look at the cases",
                option=" with 'dataset check'.",
            )
        self.steps += 1

    def _begin(self, stage: Stage) -> None:
        """Choose what learns, and compile for it: Keras does not notice by itself."""
        for layer in self._trainer.network.layers:
            layer.trainable = stage.learns(layer.name)
        optimizer = keras.optimizers.Adam(stage.rate, global_clipnorm=1.0)
        self._trainer.compile(optimizer=optimizer, jit_compile=keras.backend.backend() == "jax")
        optimizer.build(self._trainer.trainable_variables)


def rate_share(done: float) -> float:
    """Share of a stage's rate when a share of the stage is done: warm-up, then a cosine."""
    done = min(max(done, 0.0), 1.0)
    if done < WARM_UP:
        return max(LEAST_RATE, done / WARM_UP)
    falling = 0.5 * (1.0 + math.cos(math.pi * (done - WARM_UP) / (1.0 - WARM_UP)))
    return LEAST_RATE + (1.0 - LEAST_RATE) * falling


def mixed(start: Weights, tuned: Weights, share: float) -> Weights:
    """Weights on the way from the one to the other; with a share of 1 the latter."""
    return [(1.0 - share) * old + share * new for old, new in zip(start, tuned, strict=True)]
