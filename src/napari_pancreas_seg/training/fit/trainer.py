"""Augmentation, network, loss and optimizer as one step that Keras compiles for any backend."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
from keras import ops

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.predictor import windowed
from napari_pancreas_seg.model.attention_unet import build
from napari_pancreas_seg.model.bundle import Bundle
from napari_pancreas_seg.model.losses import LOSSES
from napari_pancreas_seg.model.replicas import reduce_replicas
from napari_pancreas_seg.training.data.datasets import working_frame
from napari_pancreas_seg.training.fit.augmentation import Augment
from napari_pancreas_seg.training.fit.devices import Devices, choose_policy
from napari_pancreas_seg.training.fit.recipe import TrainSettings


class TrainingModel(keras.Model):
    """Augmentation, network and loss."""

    def __init__(self, settings: TrainSettings, devices: Devices | None = None) -> None:
        super().__init__()
        settings = replace(settings, policy=choose_policy(settings.policy))
        devices = devices or Devices()
        self.settings, self.devices = settings, devices
        self.augment = Augment(settings.frame, working_frame(settings.frame))
        self.network = build(
            settings.resolved_architecture(),
            deep_supervision=any(settings.side_weights),
            policy=settings.policy,
        )
        if devices.replicas > 1:
            for layer in self.network.layers:
                if isinstance(layer, keras.layers.BatchNormalization):
                    layer.synchronized = True  # statistics of the batch, not of a part of it

    def call(self, batch: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Return the network's outputs and the augmented target."""
        hu, target, weight = self.augment(batch)
        outputs = self.network(windowed(hu, self.settings.windows), training=training)
        return {**outputs, "target": target, "weight": weight}

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None,
        training: bool = True,
    ) -> Any:  # fmt: skip
        """Loss of the mask plus the weighed losses of the coarser levels."""
        loss = LOSSES[self.settings.loss]
        total = ops.mean(loss(y_pred["target"], y_pred["probability"], y_pred["weight"]))
        for number, weight in zip((2, 3), self.settings.side_weights, strict=True):
            if weight:
                factor = 2 ** (number - 1)
                target, known = (
                    ops.average_pool(y_pred[name], factor, factor) for name in ("target", "weight")
                )
                total = total + weight * ops.mean(loss(target, y_pred[f"side_{number}"], known))
        return total / self.devices.replicas  # Keras adds up what the replicas find


class _OfAllReplicas:
    """Lets an optimizer see the mean gradient of all replicas before it does anything else.

    Keras clips, and looks for what is not finite, on each replica by itself.
    """

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Apply the mean of the replicas' gradients."""
        super().apply(reduce_replicas(list(grads), "MEAN"), trainable_variables)  # type: ignore[misc]


class _AdamW(_OfAllReplicas, keras.optimizers.AdamW):
    pass


class _LossScale(_OfAllReplicas, keras.optimizers.LossScaleOptimizer):
    pass


def make_trainer(settings: TrainSettings, devices: Devices, start: Bundle | None) -> TrainingModel:
    """Build and compile what is trained; all of its variables exist then."""
    with devices.scope():
        trainer = TrainingModel(settings, devices)
        if start is not None:
            begin_with(trainer.network, start)
        optimizer = _optimizer(trainer.settings, devices.replicas)
        trainer.compile(
            optimizer=optimizer, jit_compile=keras.backend.backend() == "jax", auto_scale_loss=False
        )
        optimizer.build(trainer.trainable_variables)
    return trainer


def begin_with(network: keras.Model, start: Bundle) -> None:
    """Copy a bundle's weights, layer by layer; side heads, which no bundle holds, stay new."""
    given = start.network()
    for layer in given.layers:
        if not layer.weights:
            continue
        try:
            network.get_layer(layer.name).set_weights(layer.get_weights())
        except ValueError as error:
            raise PancreasSegError(
                f"The model {start.card['name']} is a different network from the one to train "
                f"(layer {layer.name}); choose its architecture, or start from another model."
            ) from error


def _optimizer(settings: TrainSettings, replicas: int) -> keras.optimizers.Optimizer:
    warm_up = max(1, round(settings.warm_up * settings.steps))
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=max(1, settings.steps - warm_up),
        warmup_target=settings.learning_rate,
        warmup_steps=warm_up,
    )
    optimizer = _AdamW(
        schedule,
        weight_decay=settings.weight_decay,
        # What is clipped is a mean over replicas; Keras adds it up once more.
        global_clipnorm=settings.clip_norm / replicas or None,
        use_ema=True,
        ema_momentum=settings.averaging,
        name="adamw",
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    # What float16 would round to nothing is scaled up, and a step that overflows is left out.
    scaled = settings.policy == "mixed_float16"
    return _LossScale(optimizer, name="loss_scale") if scaled else optimizer
