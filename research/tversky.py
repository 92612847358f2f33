"""The focal Tversky loss, a lever of the comparison; importing this adds it to the losses.

Networks did worse with it than with the recipe's own: docs/model-card.md.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from napari_pancreas_seg.model.losses import LOSSES, SMOOTHING


def focal_tversky_loss(target: Any, probability: Any, weight: Any = None) -> Any:
    """Focal Tversky loss with α 0.7, β 0.3, γ 4/3 (Abraham & Khan 2019), shape (B,)."""
    axes = (1, 2)
    known = 1.0 if weight is None else weight
    both = ops.sum(known * target * probability, axis=axes)
    missed = ops.sum(known * target * (1.0 - probability), axis=axes)
    excess = ops.sum(known * (1.0 - target) * probability, axis=axes)
    index = (both + SMOOTHING) / (both + 0.7 * missed + 0.3 * excess + SMOOTHING)
    # The root has no slope at 0; a slice found perfectly must not give infinity.
    return ops.mean(ops.power(ops.maximum(1.0 - index, 1e-6), 0.75), axis=-1)


LOSSES["focal_tversky"] = focal_tversky_loss
