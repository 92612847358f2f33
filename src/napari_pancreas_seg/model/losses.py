"""Losses on probabilities, with soft targets in [0, 1].

All take, as a third argument, how much each pixel counts, (B, H, W, 1): where a slice is known in
parts only, nothing is learnt from the rest.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from napari_pancreas_seg.model.probabilities import with_background
from napari_pancreas_seg.model.replicas import reduce_replicas

SMOOTHING = 1.0
"""Added to numerator and denominator, in pixels: an empty slice found empty costs nothing."""


def soft_dice(target: Any, probability: Any, axes: tuple[int, ...], weight: Any = None) -> Any:
    """Dice of probabilities (B, H, W, classes) in [0, 1], summed over the given axes.

    The article's is (1, 2, 3); without 3 there is one a class, with 0 the batch is pooled. A pixel
    counts as its weight (B, H, W, 1) says; where that is 0, nothing is known.
    """
    known = 1.0 if weight is None else weight
    both = ops.sum(known * target * probability, axis=axes)
    total = ops.sum(known * target, axis=axes) + ops.sum(known * probability, axis=axes)
    if 0 in axes:
        both, total = reduce_replicas([both, total], "SUM")
    return (2.0 * both + SMOOTHING) / (total + SMOOTHING)


def dice_loss(target: Any, probability: Any, weight: Any = None) -> Any:
    """The article's loss: 1 - Dice per image, over all classes at once, shape (B,)."""
    return 1.0 - soft_dice(target, probability, (1, 2, 3), weight)


def mixed_loss(target: Any, probability: Any, weight: Any = None) -> Any:
    """Dice per image and over the batch in equal parts, plus cross-entropy, shape (B,).

    Dice per image weighs small cross-sections like large ones, the pooled one keeps a
    slice with three pixels from ruling the gradient, cross-entropy calibrates. Dice is the
    mean over the classes, so that a small organ counts like a large one.
    """
    per_image = ops.mean(1.0 - soft_dice(target, probability, (1, 2), weight), axis=-1)
    pooled = ops.mean(1.0 - soft_dice(target, probability, (0, 1, 2), weight))
    entropy = cross_entropy(target, probability)
    if weight is not None:
        entropy = entropy * weight[..., 0]
    entropy = ops.mean(entropy, axis=(1, 2))
    return 0.5 * (per_image + pooled) + entropy


def cross_entropy(target: Any, probability: Any) -> Any:
    """Cross-entropy of each pixel, shape (B, H, W); what the classes leave is background."""
    if probability.shape[-1] == 1:
        return keras.losses.binary_crossentropy(target, probability)
    return keras.losses.categorical_crossentropy(
        with_background(target), with_background(probability)
    )


LOSSES = {"dice": dice_loss, "mixed": mixed_loss}
"""Losses by name; ``dice`` is the article's."""
