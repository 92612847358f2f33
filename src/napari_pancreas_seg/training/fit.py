"""The fit: from training slices to a network, resumable at every epoch.

Everything random is a function of (seed, step); a checkpoint holds every variable of
network and optimizer and is replaced atomically. So a training that was killed goes on
as if nothing had happened.
"""

from __future__ import annotations

import json
import logging
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.predictor import windowed
from napari_pancreas_seg.inference.preprocessing import FrameSpec
from napari_pancreas_seg.io.files import atomic_write
from napari_pancreas_seg.model.attention_unet import ARCHITECTURES, Architecture, build
from napari_pancreas_seg.model.bundle import Bundle
from napari_pancreas_seg.model.losses import LOSSES
from napari_pancreas_seg.training.augmentation import Augment, AugmentationSettings, draw
from napari_pancreas_seg.training.datasets import WORKING_FRAME, TrainingSlices

__all__ = ["Checkpoint", "TrainSettings", "TrainingModel", "averaged_network", "fit"]

_log = logging.getLogger(__name__)

WINDOWS_HU = ((0, 255), (40, 150), (80, 140))
"""The three input channels: everything the slices hold, soft tissue, pancreas and liver."""
CHECKPOINT = "checkpoint.npz"


@dataclass(frozen=True)
class TrainSettings:
    """A training recipe.

    Parameters
    ----------
    architecture : str or Architecture
        Name in `ARCHITECTURES`, or an architecture; its size becomes the frame's.
    loss : str
        Name in `LOSSES`.
    steps, steps_per_epoch, batch_size : int
        Length of the training; a checkpoint is written and the validation patients are
        scored after every epoch.
    learning_rate, weight_decay, warm_up, clip_norm : float
        AdamW's; warm-up is a share of the steps, after it a cosine leads to 0.
    averaging : float
        Momentum of the average of weights that becomes the model.
    side_weights : tuple of float
        Weights of the losses at the decoder's second and third finest levels.
    negative_share, phantom_share : float
        Share of CTs without pancreas, and of phantoms, in a batch on average.
    calibration_batches : int
        Batches over which the averaged network's normalisation statistics are computed.
    policy : str
        Keras dtype policy of the training: ``float32``, ``mixed_bfloat16``, ``mixed_float16``.
    windows : tuple of (low, high)
        HU windows of the input channels.
    seed : int
        Seed of everything random.
    """

    architecture: str | Architecture = "default"
    loss: str = "mixed"
    steps: int = 6000
    steps_per_epoch: int = 250
    batch_size: int = 8
    learning_rate: float = 1.5e-3
    weight_decay: float = 1e-3
    warm_up: float = 0.03
    clip_norm: float = 1.0
    averaging: float = 0.999
    side_weights: tuple[float, float] = (0.5, 0.25)
    negative_share: float = 0.12
    phantom_share: float = 0.06
    calibration_batches: int = 200
    policy: str = "float32"
    windows: tuple[tuple[float, float], ...] = WINDOWS_HU
    seed: int = 0
    frame: FrameSpec = field(default_factory=FrameSpec)
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)

    def __post_init__(self) -> None:
        if isinstance(self.architecture, str) and self.architecture not in ARCHITECTURES:
            raise PancreasSegError(
                f"There is no architecture {self.architecture!r}; "
                f"known are {', '.join(ARCHITECTURES)}."
            )
        if self.loss not in LOSSES:
            raise PancreasSegError(
                f"There is no loss {self.loss!r}; known are {', '.join(LOSSES)}."
            )
        if min(self.steps, self.steps_per_epoch, self.batch_size) < 1:
            raise PancreasSegError("A training needs at least one step, epoch and slice.")

    def resolved_architecture(self) -> Architecture:
        """The architecture, at the size of the frame."""
        chosen = self.architecture
        if isinstance(chosen, str):
            chosen = ARCHITECTURES[chosen]
        return replace(
            chosen,
            height=self.frame.height,
            width=self.frame.width,
            channels=len(self.windows),
        )


class TrainingModel(keras.Model):
    """Augmentation, network and loss as one step that Keras compiles for any backend."""

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__()
        self.settings = settings
        self.augment = Augment(settings.frame, WORKING_FRAME)
        self.network = build(
            settings.resolved_architecture(),
            deep_supervision=any(settings.side_weights),
            policy=settings.policy,
        )

    def call(self, batch: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Return the network's outputs and the augmented target."""
        hu, target = self.augment(batch)
        outputs = self.network(windowed(hu, self.settings.windows), training=training)
        return {**outputs, "target": target}

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None,
        training: bool = True,
    ) -> Any:  # fmt: skip
        """Loss of the mask plus the weighed losses of the coarser levels."""
        loss = LOSSES[self.settings.loss]
        total = ops.mean(loss(y_pred["target"], y_pred["probability"]))
        for number, weight in zip((2, 3), self.settings.side_weights, strict=True):
            if weight:
                factor = 2 ** (number - 1)
                target = ops.average_pool(y_pred["target"], factor, factor)
                total = total + weight * ops.mean(loss(target, y_pred[f"side_{number}"]))
        return total


class Checkpoint:
    """Everything that a training needs to go on, in one file that is replaced atomically.

    Parameters
    ----------
    folder : Path
        Where the file lies.
    """

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / CHECKPOINT

    def save(self, variables: list[Any], step: int, history: list[dict[str, Any]]) -> None:
        """Write all variables, the step and the history."""
        arrays = {f"v{i}": ops.convert_to_numpy(v) for i, v in enumerate(variables)}
        with atomic_write(self.path, overwrite=True) as file:
            np.savez(file, about=json.dumps({"step": step, "history": history}), **arrays)

    def restore(self, variables: list[Any]) -> tuple[int, list[dict[str, Any]]]:
        """Set all variables and return the step and the history.

        Raises
        ------
        PancreasSegError
            If the file is damaged or belongs to another recipe.
        """
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                about = json.loads(str(stored["about"]))
                arrays = [stored[f"v{i}"] for i in range(len(stored.files) - 1)]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise PancreasSegError(f"{self.path} is not a whole checkpoint: {error}.") from error
        if [a.shape for a in arrays] != [tuple(v.shape) for v in variables]:
            raise PancreasSegError(
                f"{self.path} belongs to a training with another recipe; "
                "choose another output folder."
            )
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)
        return int(about["step"]), about["history"]


def fit(
    slices: TrainingSlices,
    settings: TrainSettings,
    folder: Path,
    *,
    score: Callable[[keras.Model], dict[str, Any]] | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
    resume: bool = False,
    start: Bundle | None = None,
) -> tuple[keras.Model, list[dict[str, Any]]]:
    """Train a network.

    Parameters
    ----------
    slices : TrainingSlices
        What to learn from.
    settings : TrainSettings
        The recipe.
    folder : Path
        Where the checkpoint lies.
    score : callable, optional
        Called after each epoch with the averaged network; its figures go into the history.
    report : callable, optional
        Called after each epoch with the epoch's line of the history.
    resume : bool
        Go on from the checkpoint in the folder, if there is one.
    start : Bundle, optional
        A model of the same architecture whose weights to begin with, instead of random ones.

    Returns
    -------
    network : keras.Model
        The averaged float32 network, without side outputs.
    history : list of dict
        A line an epoch.
    """
    keras.utils.set_random_seed(settings.seed)
    trainer = TrainingModel(settings)
    if start is not None:
        _begin_with(trainer.network, start)
    optimizer = _optimizer(settings)
    trainer.compile(optimizer=optimizer, jit_compile=keras.backend.backend() == "jax")
    optimizer.build(trainer.trainable_variables)
    variables = [*trainer.variables, *optimizer.variables]
    checkpoint = Checkpoint(folder)
    step = 0
    history: list[dict[str, Any]] = []
    if resume and checkpoint.path.exists():
        step, history = checkpoint.restore(variables)
    chances = _sampling(slices, settings)
    started = time.perf_counter()
    while step < settings.steps:
        trainer.reset_metrics()
        end = min(step + settings.steps_per_epoch, settings.steps)
        first = step
        logs: dict[str, Any] = {}
        while step < end:
            logs = trainer.train_on_batch(
                training_batch(slices, chances, settings, step), return_dict=True
            )
            step += 1
        elapsed = time.perf_counter() - started
        line = {"step": step, "loss": float(logs["loss"]), "seconds": round(elapsed, 1)}
        line["images_per_second"] = round((step - first) * settings.batch_size / elapsed, 2)
        if not np.isfinite(line["loss"]):
            raise PancreasSegError("The loss is no longer a number; lower the learning rate.")
        checkpoint.save(variables, step, [*history, line])
        if score is not None:
            network = averaged_network(trainer, slices, max(1, settings.calibration_batches // 8))
            line |= score(network)
        history.append(line)
        checkpoint.save(variables, step, history)
        if report is not None:
            report(line)
        started = time.perf_counter()
    return averaged_network(trainer, slices, settings.calibration_batches), history


def _begin_with(network: keras.Model, start: Bundle) -> None:
    """Copy a bundle's weights, layer by layer; side heads, which no bundle holds, stay new."""
    given = start.network()
    for layer in given.layers:
        if not layer.weights:
            continue
        try:
            network.get_layer(layer.name).set_weights(layer.get_weights())
        except ValueError as error:
            raise PancreasSegError(
                f"The model {start.card['name']} is another network than the one to train "
                f"(layer {layer.name}); choose its architecture, or start from another model."
            ) from error


def _optimizer(settings: TrainSettings) -> keras.optimizers.Optimizer:
    warm_up = max(1, round(settings.warm_up * settings.steps))
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=max(1, settings.steps - warm_up),
        warmup_target=settings.learning_rate,
        warmup_steps=warm_up,
    )
    optimizer = keras.optimizers.AdamW(
        schedule,
        weight_decay=settings.weight_decay,
        global_clipnorm=settings.clip_norm or None,
        use_ema=True,
        ema_momentum=settings.averaging,
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def _sampling(slices: TrainingSlices, settings: TrainSettings) -> npt.NDArray[np.float64]:
    """Chance of each slice: kinds by their share, patients alike, slices of one alike."""
    share = {"negative": settings.negative_share, "phantom": settings.phantom_share}
    share["patient"] = 1.0 - sum(share.values())
    chances = np.zeros(len(slices.kind))
    for kind, weight in share.items():
        names = np.unique(slices.patient[slices.kind == kind])
        for name in names:
            chosen = (slices.kind == kind) & (slices.patient == name)
            chances[chosen] = weight / len(names) / chosen.sum()
    if not chances.sum():
        raise PancreasSegError("There are no slices to train on.")
    return chances / chances.sum()


def training_batch(
    slices: TrainingSlices, chances: npt.NDArray[np.float64], settings: TrainSettings, step: int
) -> dict[str, npt.NDArray[Any]]:
    """The batch of a step: a pure function of the seed and the step."""
    rng = np.random.default_rng([settings.seed, step])
    chosen = rng.choice(len(chances), settings.batch_size, p=chances)
    # Geometry is annealed by half in the last 15 %, towards what inference will see.
    left = max(0.0, (settings.steps - step) / (0.15 * settings.steps))
    geometry = 0.5 + 0.5 * min(1.0, left)
    return {
        "hu": slices.hu[chosen],
        "target": slices.target[chosen],
        **draw(rng, settings.batch_size, settings.frame, settings.augmentation, geometry),
    }


def averaged_network(trainer: TrainingModel, slices: TrainingSlices, batches: int) -> keras.Model:
    """The float32 network with averaged weights and normalisation statistics of its own.

    The averages of weights never met the batch normalisation's running statistics, which
    belong to the weights of the last steps; so they are computed anew over `batches`.
    """
    settings = trainer.settings
    current = [ops.convert_to_numpy(v) for v in trainer.trainable_variables]
    trainer.optimizer.finalize_variable_values(trainer.trainable_variables)
    network = build(settings.resolved_architecture())
    for layer in network.layers:
        if layer.weights:
            layer.set_weights(trainer.network.get_layer(layer.name).get_weights())
    for variable, value in zip(trainer.trainable_variables, current, strict=True):
        variable.assign(value)
    _recalibrate(network, trainer.augment, slices, settings, batches)
    return network


def _recalibrate(
    network: keras.Model,
    augment: Augment,
    slices: TrainingSlices,
    settings: TrainSettings,
    batches: int,
) -> None:
    """Set the running statistics of batch normalisation to the mean over some batches."""
    norms = [x for x in network.layers if isinstance(x, keras.layers.BatchNormalization)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # the running statistics are then those of the last batch
    statistics = [v for norm in norms for v in (norm.moving_mean, norm.moving_variance)]
    totals = [np.zeros(v.shape) for v in statistics]
    whole = StatisticsPass(network, augment, settings.windows)
    chances = _sampling(slices, settings)
    for i in range(batches):
        whole.predict_on_batch(training_batch(slices, chances, settings, settings.steps + i))
        for total, variable in zip(totals, statistics, strict=True):
            total += ops.convert_to_numpy(variable)
    for total, variable in zip(totals, statistics, strict=True):
        variable.assign((total / batches).astype(np.float32))
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value


class StatisticsPass(keras.Model):
    """Runs a network the way of training, compiled, for its normalisation's statistics."""

    def __init__(
        self, network: keras.Model, augment: Augment, windows: Sequence[Sequence[float]]
    ) -> None:
        super().__init__()
        self.network, self.augment, self.windows = network, augment, windows
        self.compile(jit_compile=keras.backend.backend() == "jax")

    def call(self, batch: dict[str, Any]) -> Any:
        """Return next to nothing: the running statistics are what is wanted."""
        hu, _ = self.augment(batch)
        return self.network(windowed(hu, self.windows), training=True)["probability"][:, :1, :1]


def settings_to_dict(settings: TrainSettings) -> dict[str, Any]:
    """The recipe as plain data, for a card."""
    data = asdict(settings)
    data["frame"] = settings.frame.to_dict()
    return data
