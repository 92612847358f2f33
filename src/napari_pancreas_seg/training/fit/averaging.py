"""The network that a training makes: averaged weights, and statistics that belong to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from napari_pancreas_seg.inference.predictor import windowed
from napari_pancreas_seg.model.attention_unet import build
from napari_pancreas_seg.training.data.datasets import TrainingSlices, working_frame
from napari_pancreas_seg.training.fit.augmentation import Augment
from napari_pancreas_seg.training.fit.batches import training_batches
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.fit.trainer import TrainingModel


class Averager:
    """Makes the float32 network with averaged weights and normalisation statistics of its own.

    The running statistics belong to the weights of the last steps, so they are computed anew.
    """

    def __init__(self, slices: TrainingSlices, settings: TrainSettings) -> None:
        self.slices, self.settings = slices, settings
        self._network = build(settings.resolved_architecture())
        self._pass = StatisticsPass(self._network, settings)
        # Where dropout's chance begins: at the same place every time, for the same figures.
        weights = {id(v) for v in self._network.weights}
        self._chance = [v for v in self._network.variables if id(v) not in weights]

    def average(self, trainer: TrainingModel, batches: int) -> keras.Model:
        """The averaged network of what is being trained; the same object every time."""
        values = _averages(trainer)
        for layer in self._network.layers:
            if layer.weights:
                layer.set_weights(values[layer.name])
        return self._with_statistics(batches)

    def restore(self, weights: Sequence[npt.NDArray[Any]], batches: int) -> keras.Model:
        """The same from weights that the network once had, with statistics of other batches."""
        self._network.set_weights(list(weights))
        return self._with_statistics(batches)

    def _with_statistics(self, batches: int) -> keras.Model:
        """Set the running statistics of batch normalisation to the mean over some batches."""
        for number, variable in enumerate(self._chance):
            variable.assign(np.array([self.settings.seed, number]).astype(variable.dtype))
        norms = [
            layer
            for layer in self._network.layers
            if isinstance(layer, keras.layers.BatchNormalization)
        ]
        momentum = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.0  # the running statistics are then those of the last batch
        statistics = [v for norm in norms for v in (norm.moving_mean, norm.moving_variance)]
        totals = [np.zeros(v.shape) for v in statistics]
        first = self.settings.steps
        for batch in training_batches(self.slices, self.settings, first, first + batches):
            self._pass.predict_on_batch(batch)
            for total, variable in zip(totals, statistics, strict=True):
                total += ops.convert_to_numpy(variable)
        for total, variable in zip(totals, statistics, strict=True):
            variable.assign((total / batches).astype(np.float32))
        for norm, value in zip(norms, momentum, strict=True):
            norm.momentum = value
        return self._network


def _averages(trainer: TrainingModel) -> dict[str, list[npt.NDArray[Any]]]:
    """Weights of each layer, averaged where they are trained."""
    with trainer.devices.scope():
        current = [ops.convert_to_numpy(v) for v in trainer.trainable_variables]
        trainer.optimizer.finalize_variable_values(trainer.trainable_variables)
        values = {
            layer.name: [ops.convert_to_numpy(v) for v in layer.weights]
            for layer in trainer.network.layers
            if layer.weights
        }
        for variable, value in zip(trainer.trainable_variables, current, strict=True):
            variable.assign(value)
    return values


class StatisticsPass(keras.Model):
    """Runs a network in training mode, for the statistics of its normalisation."""

    def __init__(self, network: keras.Model, settings: TrainSettings) -> None:
        super().__init__()
        self.network, self.windows = network, settings.windows
        self.augment = Augment(settings.frame, working_frame(settings.frame))
        self.compile(jit_compile=keras.backend.backend() == "jax")

    def call(self, batch: dict[str, Any]) -> Any:
        """Return next to nothing: the running statistics are what is wanted."""
        hu, _, _ = self.augment(batch)
        return self.network(windowed(hu, self.windows), training=True)["probability"][:, :1, :1]
