"""How much arithmetic a network needs for a slice."""

from __future__ import annotations

from math import prod

import keras

from napari_pancreas_seg.model.attention_unet import AttentionGate


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
