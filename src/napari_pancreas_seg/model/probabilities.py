"""Probabilities of one or several classes, of which the background is what they leave of 1."""

from __future__ import annotations

from typing import Any

from keras import ops

CERTAIN = 1e-6
"""No probability counts as nearer to 0 or 1: its logarithm would not be finite."""


def with_background(classes: Any) -> Any:
    """Put the background, what is left of 1, before the classes in the last axis."""
    rest = 1.0 - ops.sum(classes, axis=-1, keepdims=True)
    return ops.concatenate([ops.clip(rest, 0.0, 1.0), classes], axis=-1)


def tempered(probability: Any, temperature: float) -> Any:
    """Divide the logits by a temperature (Guo et al. 2017, arXiv:1706.04599).

    `probability` (..., classes) is without the background's; above 1 makes it less sure.
    """
    if temperature == 1.0:
        return probability
    if probability.shape[-1] == 1:  # the same, with half as much to compute
        certain = ops.clip(probability, CERTAIN, 1.0 - CERTAIN)
        return ops.sigmoid((ops.log(certain) - ops.log(1.0 - certain)) / temperature)
    certain = ops.clip(with_background(probability), CERTAIN, 1.0 - CERTAIN)
    return ops.softmax(ops.log(certain) / temperature, axis=-1)[..., 1:]
