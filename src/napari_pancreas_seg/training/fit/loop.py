"""The fit: from training slices to a network, resumable at every epoch.

Everything random is a function of (seed, step); a checkpoint holds every variable of
network and optimizer and is replaced atomically. So a training that was killed goes on
as if nothing had happened.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.model.bundle import Bundle
from napari_pancreas_seg.training.data.datasets import TrainingSlices
from napari_pancreas_seg.training.fit.averaging import Averager
from napari_pancreas_seg.training.fit.batches import training_batches
from napari_pancreas_seg.training.fit.checkpoint import Checkpoint, TrainingState
from napari_pancreas_seg.training.fit.devices import Devices
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.fit.trainer import build_from, make_trainer

ChangeWeights = Callable[[Sequence[npt.NDArray[Any]]], Sequence[npt.NDArray[Any]]]
"""Makes other weights of a network's, in the order of Keras's `get_weights`."""
SCORE = "validation_dice"
"""The figure by which an epoch is the best."""


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training is; loss and speed are the epoch's, scoring is not in `seconds_left`."""

    step: int
    steps: int
    loss: float
    images_per_second: float
    seconds_left: float


def fit(
    slices: TrainingSlices,
    settings: TrainSettings,
    folder: Path,
    *,
    score: Callable[[keras.Model], dict[str, Any]] | None = None,
    report: Callable[[list[dict[str, Any]]], None] | None = None,
    on_step: Callable[[TrainingProgress], None] | None = None,
    resume: bool = False,
    start: Bundle | None = None,
    change_weights: ChangeWeights | None = None,
    devices: Devices | None = None,
) -> tuple[keras.Model, list[dict[str, Any]]]:
    """Train a network; return the averaged float32 network and its history, a line an epoch.

    `score` is called after each epoch with the averaged network; its figures go into the history,
    and by ``validation_dice`` the best epoch is found. `report` then gets the history. An exception
    that `on_step` raises ends the training, which can be resumed from the checkpoint in `folder`.
    `change_weights` is applied to the averaged weights before their statistics are computed.
    """
    devices = devices or Devices()
    devices.check(settings.batch_size)
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
        if report is not None:
            report(state.history)
    return training.result(), state.history


def best_epoch(history: list[dict[str, Any]]) -> int | None:
    """Index of the epoch with the best validation Dice, the first of several; None without any."""
    scored = [(line[SCORE], -i) for i, line in enumerate(history) if SCORE in line]
    return -max(scored)[1] if scored else None


def _is_over(state: TrainingState, settings: TrainSettings) -> bool:
    """Whether the last step is done, or patience is at its end."""
    best = best_epoch(state.history)
    tired = settings.patience is not None and best is not None
    return state.step >= settings.steps or (
        tired and len(state.history) - 1 - best >= settings.patience  # type: ignore[operator]
    )


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

    def epoch(self, on_step: Callable[[TrainingProgress], None] | None) -> dict[str, Any]:
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
                    build_from(self.trainer, batch)
                logs = self.trainer.train_on_batch(self.devices.split(batch), return_dict=True)
                losses.append(float(logs["loss"]))
                state.step += 1
                elapsed = time.perf_counter() - started
                if on_step is not None:
                    on_step(_progress(state.step, settings, losses, elapsed))
        loss = float(np.mean(losses))
        if not np.isfinite(loss):
            raise PancreasSegError("The loss is no longer a number; lower the learning rate.")
        line = {"step": state.step, "loss": loss, "seconds": round(elapsed, 1)}
        line["images_per_second"] = round(len(losses) * settings.batch_size / elapsed, 2)
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


def _progress(
    step: int, settings: TrainSettings, losses: list[float], elapsed: float
) -> TrainingProgress:
    return TrainingProgress(
        step,
        settings.steps,
        float(np.mean(losses)),
        len(losses) * settings.batch_size / elapsed,
        (settings.steps - step) * elapsed / len(losses),
    )
