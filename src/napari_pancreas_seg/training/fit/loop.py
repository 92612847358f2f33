"""The fit: from training slices to a network, resumable at every epoch.

Everything random is a function of (seed, step); a checkpoint holds every variable of
network and optimizer and is replaced atomically. So a training that was killed goes on
as if nothing had happened.
"""

from __future__ import annotations

import datetime
import json
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.predictor import windowed
from napari_pancreas_seg.io.files import atomic_write
from napari_pancreas_seg.model.attention_unet import build
from napari_pancreas_seg.model.bundle import Bundle
from napari_pancreas_seg.training.data.datasets import TrainingSlices, working_frame
from napari_pancreas_seg.training.fit.augmentation import Augment
from napari_pancreas_seg.training.fit.batches import training_batches
from napari_pancreas_seg.training.fit.devices import Devices
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.fit.trainer import TrainingModel, make_trainer

ChangeWeights = Callable[[Sequence[Array]], Sequence[Array]]
"""Makes other weights of a network's, in the order of Keras's `get_weights`."""
CHECKPOINT = "checkpoint.npz"
SCORE = "validation_dice"
"""The figure by which an epoch is the best."""


@dataclass
class TrainingState:
    """State of a training, beside the values of its variables.

    `unscored` is the line of an epoch yet to be scored, `best` the best epoch's averaged weights.
    """

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    unscored: dict[str, Any] | None = None
    best: list[Array] | None = None


class Checkpoint:
    """Saves and restores a training, in one file that is replaced atomically."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / CHECKPOINT

    def save(self, variables: list[Any], state: TrainingState) -> None:
        """Write all variables and the state."""
        arrays = {f"v{i}": ops.convert_to_numpy(v) for i, v in enumerate(variables)}
        arrays |= {f"best{i}": array for i, array in enumerate(state.best or ())}
        about = {"step": state.step, "history": state.history, "unscored": state.unscored}
        with atomic_write(self.path, overwrite=True) as file:
            np.savez(file, about=json.dumps(about), **arrays)

    def restore(self, variables: list[Any]) -> TrainingState:
        """Set all variables and return the state."""
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                about = json.loads(str(stored["about"]))
                arrays = _numbered(stored, "v")
                best = _numbered(stored, "best")
            state = TrainingState(
                int(about["step"]), about["history"], about.get("unscored"), best or None
            )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise PancreasSegError(f"{self.path} is not a whole checkpoint: {error}.") from error
        if [a.shape for a in arrays] != [tuple(v.shape) for v in variables]:
            raise PancreasSegError(
                f"{self.path} belongs to a training with another recipe; "
                "choose another output folder."
            )
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)
        return state


def _numbered(stored: Any, prefix: str) -> list[Array]:
    count = sum(name.removeprefix(prefix).isdecimal() for name in stored.files if name != "about")
    return [stored[f"{prefix}{i}"] for i in range(count)]


def fit(
    slices: TrainingSlices,
    settings: TrainSettings,
    folder: Path,
    *,
    score: Callable[[keras.Model], dict[str, Any]] | None = None,
    report: Callable[[list[dict[str, Any]]], None] = lambda history: None,
    on_step: Callable[[str, int, int], None] = lambda progress, step, steps: None,
    resume: bool = False,
    start: Bundle | None = None,
    change_weights: ChangeWeights | None = None,
    devices: Devices | None = None,
) -> tuple[keras.Model, list[dict[str, Any]]]:
    """Train a network; return the averaged float32 network and its history, a line an epoch.

    `score` is called after each epoch with the averaged network; its figures go into the history,
    and by ``validation_dice`` the best epoch is found. `report` then gets the history. `on_step` is
    told how the epoch goes, the step and the steps in all; an exception that it raises ends the
    training, which can be resumed from the checkpoint in `folder`.
    `change_weights` is applied to the averaged weights before their statistics are computed.
    """
    devices = devices or Devices()
    keras.utils.set_random_seed(settings.seed)
    training = _Training(slices, settings, devices, start, change_weights)
    checkpoint = Checkpoint(folder)
    if resume and checkpoint.path.exists():
        with devices.scope():
            training.state = checkpoint.restore(training.variables)
    state = training.state
    while state.unscored is not None or not _is_over(state, settings):
        if state.unscored is None:
            state.unscored = training.epoch(on_step)
            checkpoint.save(training.variables, state)
        training.finish_epoch(score)
        checkpoint.save(training.variables, state)
        report(state.history)
    return training.result(), state.history


def best_epoch(history: Sequence[Mapping[str, Any]]) -> int | None:
    """Index of the epoch with the best validation Dice, the first of several; None without any."""
    scored = [(line[SCORE], -i) for i, line in enumerate(history) if SCORE in line]
    return -max(scored)[1] if scored else None


def _is_over(state: TrainingState, settings: TrainSettings) -> bool:
    """Whether the last step is done, or patience is at its end."""
    best = best_epoch(state.history)
    waited = 0 if best is None else len(state.history) - 1 - best
    return state.step >= settings.steps or waited >= (settings.patience or np.inf)


class _Training:
    """A training under way: the network, its optimizer, and how far they are."""

    def __init__(
        self,
        slices: TrainingSlices,
        settings: TrainSettings,
        devices: Devices,
        start: Bundle | None,
        change_weights: ChangeWeights | None,
    ) -> None:
        self.slices, self.devices, self.change_weights = slices, devices, change_weights
        self.state = TrainingState()
        self.trainer = make_trainer(settings, devices, start)
        self.settings = self.trainer.settings
        self.averager = Averager(slices, self.settings)

    @property
    def variables(self) -> list[Any]:
        """Everything that a step changes."""
        return [*self.trainer.variables, *self.trainer.optimizer.variables]

    def epoch(self, on_step: Callable[[str, int, int], None]) -> dict[str, Any]:
        """Train to the next checkpoint; return the epoch's line of the history."""
        state, settings = self.state, self.settings
        first = state.step
        end = min(first + settings.steps_per_epoch, settings.steps)
        losses: list[float] = []
        started = time.perf_counter()
        batches = training_batches(self.slices, settings, first, end)
        with closing(batches), self.devices.scope():
            for batch in batches:
                if self.devices.replicas > 1 and not losses:
                    # Keras cannot tell the shapes of its input from a batch that is split.
                    shapes = {n: keras.KerasTensor(v.shape, str(v.dtype)) for n, v in batch.items()}
                    self.trainer(shapes)
                logs = self.trainer.train_on_batch(self.devices.split(batch), return_dict=True)
                losses.append(float(logs["loss"]))
                state.step += 1
                elapsed = time.perf_counter() - started
                seconds = (settings.steps - state.step) * elapsed / len(losses)
                left = datetime.timedelta(seconds=round(seconds))
                speed = len(losses) * settings.batch_size / elapsed
                progress = f"loss {np.mean(losses):.3f}, {speed:.1f} images/s, {left} left"
                on_step(progress, state.step, settings.steps)
        loss = float(np.mean(losses))
        if not np.isfinite(loss):
            raise PancreasSegError("The loss is no longer a number; lower the learning rate.")
        line = {"step": state.step, "loss": loss, "seconds": round(elapsed, 1)}
        line["images_per_second"] = round(speed, 2)
        return line

    def finish_epoch(self, score: Callable[[keras.Model], dict[str, Any]] | None) -> None:
        """Score the averaged network and write the epoch down."""
        state = self.state
        line = state.unscored
        assert line is not None
        if score is not None:
            batches = max(1, self.settings.calibration_batches // 8)
            network = self._network(batches)
            line |= score(network)
            if best_epoch([*state.history, line]) == len(state.history):
                state.best = network.get_weights()
        state.history.append(line)
        state.unscored = None

    def result(self) -> keras.Model:
        """The network that the training has made."""
        batches = self.settings.calibration_batches
        if self.settings.patience is not None and self.state.best is not None:
            return self.averager.restore(self.state.best, batches)
        return self._network(batches)

    def _network(self, batches: int) -> keras.Model:
        """The averaged network."""
        if self.change_weights is None:
            return self.averager.average(self.trainer, batches)
        weights = self.averager.average(self.trainer, 1).get_weights()
        return self.averager.restore(self.change_weights(weights), batches)


class Averager:
    """Makes the float32 network of averaged weights, with statistics computed anew."""

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

    def restore(self, weights: Sequence[Array], batches: int) -> keras.Model:
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


def _averages(trainer: TrainingModel) -> dict[str, list[Array]]:
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
