"""The article's Attention U-Net (Oktay et al. 2018, arXiv:1804.03999) in two dimensions.

One functional model gives the mask's probability and the coefficients of every attention gate in
one pass. It is built from an `Architecture` alone: a released model is weights and parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import prod
from typing import Any

import keras
from keras import layers, ops

from napari_pancreas_seg.errors import PancreasSegError

LEVELS = 4
STRIDE = 2**LEVELS
"""Height and width inside the network are multiples of this."""


@dataclass(frozen=True)
class Architecture:
    """Everything that `build` needs to know.

    `filters` are those of the first block; the article has 32. The input has `height` × `width`
    pixels and `channels`. One class gives a sigmoid, more a softmax with the background. Without
    `attention` it is a plain U-Net that differs in nothing else. `dropout` is the share of the
    bottleneck's activations dropped in training. `head_batch_norm` stands between the last
    convolution and the sigmoid, as in the article; `head_bias` is that convolution's initial bias,
    the log-odds of a class against the background.
    """

    filters: int = 16
    height: int = 160
    width: int = 224
    channels: int = 3
    classes: int = 1
    attention: bool = True
    dropout: float = 0.0
    head_batch_norm: bool = False
    head_bias: float = 0.0

    def __post_init__(self) -> None:
        if min(self.filters, self.height, self.width, self.channels, self.classes) < 1:
            raise PancreasSegError("An architecture needs at least one filter, pixel and class.")
        if not 0 <= self.dropout < 1:
            raise PancreasSegError("dropout must be at least 0 and below 1.")

    def to_dict(self) -> dict[str, Any]:
        """The parameters as plain data, for a card."""
        return asdict(self)


ARCHITECTURES = {
    "article": Architecture(filters=32, height=224, width=224, head_batch_norm=True),
    "default": Architecture(filters=16, dropout=0.2, head_bias=-3.0),
    "unet": Architecture(filters=16, dropout=0.2, head_bias=-3.0, attention=False),
}
"""Configurations by name. ``article`` is the article's network, 7,951,369 parameters."""


class AttentionGate(layers.Layer):
    """Weighs a skip connection by how much the coarser features ask for it.

    The gating signal and the skip connection (brought to its size by a stride of two)
    are projected by 1×1 convolutions and added; ReLU, a 1×1 convolution to one channel
    and a sigmoid give the coefficients α, which are brought to the skip's size bilinearly
    and multiply it (Oktay et al. 2018, equations 1 and 2). ReLU comes after the addition
    only.

    Call with ``(skip, gating)`` of shapes (B, 2H, 2W, C) and (B, H, W, D); returns the
    weighed skip of the same shape and α of shape (B, H, W, 1) in [0, 1].
    """

    def __init__(self, filters: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.project_gating = layers.Conv2D(filters, 1, name="project_gating")
        self.project_skip = layers.Conv2D(filters, 1, strides=2, name="project_skip")
        self.coefficients = layers.Conv2D(1, 1, activation="sigmoid", name="coefficients")
        self.enlarge = layers.UpSampling2D(2, interpolation="bilinear")

    def build(self, input_shape: Any) -> None:
        """Make the weights of the three projections."""
        skip, gating = input_shape
        self.project_gating.build(gating)
        self.project_skip.build(skip)
        self.coefficients.build((*gating[:-1], self.filters))
        super().build(input_shape)

    def call(self, inputs: Any) -> tuple[Any, Any]:
        """Return the weighed skip connection and α."""
        skip, gating = inputs
        together = ops.relu(self.project_gating(gating) + self.project_skip(skip))
        alpha = self.coefficients(together)
        return skip * self.enlarge(alpha), alpha

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, Any]:
        """Shapes of the weighed skip connection and of α."""
        skip, gating = input_shape
        return tuple(skip), (*gating[:-1], 1)


class Normalization(layers.BatchNormalization):
    """Batch normalisation that TensorFlow computes in one kernel when nothing is learnt.

    Keras takes it apart; in half precision on a processor a network then takes 1.4 times as long.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Return the normalised inputs."""
        if training or keras.backend.backend() != "tensorflow":
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        statistics = (self.gamma, self.beta, self.moving_mean, self.moving_variance)
        values = [tf.cast(tf.convert_to_tensor(each), tf.float32) for each in statistics]
        return tf.compat.v1.nn.fused_batch_norm(
            inputs, *values, epsilon=self.epsilon, is_training=False
        )[0]


class Foreground(layers.Layer):
    """Softmax over the background, which comes first and is left out, and the classes.

    From (B, H, W, 1 + classes) to (B, H, W, classes) in float32.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})

    def call(self, inputs: Any) -> Any:
        """Return the probability of each class."""
        return ops.softmax(inputs, axis=-1)[..., 1:]

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Shape without the background's channel."""
        return (*input_shape[:-1], input_shape[-1] - 1)


def build(
    architecture: Architecture, *, deep_supervision: bool = False, policy: str = "float32"
) -> keras.Model:
    """Build the network with fresh weights, float32 whatever the Keras dtype policy.

    It leads from (B, height, width, channels) to a dict of ``probability`` (B, height, width,
    classes), without the background, and, with gates, ``attention_1`` (finest) to
    ``attention_4`` (B, height / 2ⁿ, width / 2ⁿ, 1), heights and widths rounded up to a
    multiple of 16 before they are divided. With `deep_supervision`, for training only,
    ``side_2`` and ``side_3`` are the probability as the decoder's second and third finest
    levels see it; the weights that the two networks share have the same names.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        return _build(architecture, deep_supervision)
    finally:
        keras.config.set_dtype_policy(before)


def average(networks: Sequence[keras.Model]) -> keras.Model:
    """One network that runs several of one architecture and averages each of their outputs."""
    for number, network in enumerate(networks, start=1):
        network.name = f"member_{number}"
    inputs = keras.Input(networks[0].input_shape[1:])
    found: list[dict[str, Any]] = [network(inputs) for network in networks]
    outputs = {
        name: keras.layers.Average(dtype="float32", name=f"mean_{name}")([f[name] for f in found])
        for name in found[0]
    }
    return keras.Model(inputs, outputs, name="ensemble")


def count_parameters(architecture: Architecture) -> int:
    """Count the parameters of a network without building it."""
    f, outputs = architecture.filters, architecture.classes + (architecture.classes > 1)
    widths = [f * 2**level for level in range(LEVELS + 1)]
    total = sum(map(_parameters_of_block, [architecture.channels, *widths], widths))
    for skip, gating in pairwise(widths):
        total += _parameters_of_block(skip + gating, skip)
        if architecture.attention:  # two projections to 2f channels, and the coefficients
            total += (skip + 1) * 2 * f + (gating + 1) * 2 * f + 2 * f + 1
    return total + (f + 1) * outputs + 4 * outputs * architecture.head_batch_norm


def gflop_per_slice(network: keras.Model) -> float:
    """GFLOP of the convolutions on one slice; a multiplication and an addition are two."""
    total, total_of_members = 0, 0.0
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D):
            total += _operations(layer, layer.output.shape)
        elif isinstance(layer, keras.Model):  # a member of an ensemble
            total_of_members += gflop_per_slice(layer)
        elif isinstance(layer, AttentionGate):
            alpha = layer.output[1].shape
            parts = (layer.project_gating, layer.project_skip, layer.coefficients)
            total += sum(_operations(part, alpha) for part in parts)
    return total / 1e9 + total_of_members


def _operations(convolution: keras.layers.Conv2D, output_shape: tuple[int | None, ...]) -> int:
    height, width = output_shape[1:3]
    assert height is not None
    assert width is not None
    return 2 * prod(convolution.kernel.shape) * height * width


def _parameters_of_block(channels: int, filters: int) -> int:
    """Two convolutions with their biases, and four statistics a filter after each."""
    return (9 * (channels + filters) + 2 * 5) * filters


def _build(architecture: Architecture, deep_supervision: bool) -> keras.Model:
    f = architecture.filters
    inputs = keras.Input((architecture.height, architecture.width, architecture.channels))
    x, cropping = _pad(inputs)
    skips = []
    for level in range(LEVELS):
        x = _block(x, f * 2**level, f"encoder_{level + 1}")
        skips.append(x)
        x = layers.MaxPooling2D(2, name=f"pool_{level + 1}")(x)
    x = _block(x, f * 2**LEVELS, "bottleneck", architecture.dropout)
    outputs = {}
    for level in reversed(range(LEVELS)):
        number = level + 1
        skip = skips[level]
        if architecture.attention:
            gate = AttentionGate(2 * f, name=f"gate_{number}")
            skip, outputs[f"attention_{number}"] = gate((skip, x))
        x = layers.UpSampling2D(2, name=f"up_{number}")(x)
        x = layers.Concatenate(name=f"join_{number}")([skip, x])
        x = _block(x, f * 2**level, f"decoder_{number}")
        if deep_supervision and number in (2, 3):
            outputs[f"side_{number}"] = _head(x, architecture, f"side_{number}")
    probability = _head(x, architecture, "head")
    if any(cropping[0]) or any(cropping[1]):
        probability = layers.Cropping2D(cropping, name="crop")(probability)
    outputs["probability"] = probability
    return keras.Model(inputs, dict(sorted(outputs.items())), name="attention_unet")


def _pad(inputs: Any) -> tuple[Any, tuple[tuple[int, int], tuple[int, int]]]:
    """Zeros around the input up to the next multiple of the stride, half on each side."""
    missing = [-size % STRIDE for size in inputs.shape[1:3]]
    vertical, horizontal = ((n // 2, n - n // 2) for n in missing)
    padding = (vertical, horizontal)
    if any(missing):
        inputs = layers.ZeroPadding2D(padding, name="pad")(inputs)
    return inputs, padding


def _block(x: Any, filters: int, name: str, dropout: float = 0.0) -> Any:
    """Twice convolution, ReLU and batch normalisation; dropout at the end."""
    for i in (1, 2):
        x = layers.Conv2D(
            filters, 3, padding="same", activation="relu",
            kernel_initializer="he_normal", name=f"{name}_conv_{i}",
        )(x)  # fmt: skip
        x = Normalization(name=f"{name}_norm_{i}")(x)
    return layers.Dropout(dropout, name=f"{name}_dropout")(x) if dropout else x


def _head(x: Any, architecture: Architecture, name: str) -> Any:
    """1×1 convolution to the classes and their probabilities, in float32 always."""
    classes, bias = architecture.classes, architecture.head_bias
    x = layers.Conv2D(
        classes if classes == 1 else classes + 1, 1, name=f"{name}_conv",
        bias_initializer=keras.initializers.Constant(
            bias if classes == 1 else [0.0] + [bias] * classes
        ),
    )(x)  # fmt: skip
    if architecture.head_batch_norm:
        x = layers.BatchNormalization(name=f"{name}_norm")(x)
    if classes > 1:
        return Foreground(name=f"{name}_probability")(x)
    return layers.Activation("sigmoid", dtype="float32", name=f"{name}_probability")(x)
