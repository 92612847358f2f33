"""How much arithmetic a network needs for a slice."""

from __future__ import annotations

from math import prod

import keras

from napari_pancreas_seg.model.attention_unet import AttentionGate

__all__ = ["gflop_per_slice"]


def gflop_per_slice(network: keras.Model) -> float:
    """Floating-point operations of one slice in units of 10⁹, of a network or an ensemble.

    A multiplication and an addition count as two. Only convolutions are counted: the rest
    (normalisation, activations, pooling) is about a hundredth of them.
    """
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
