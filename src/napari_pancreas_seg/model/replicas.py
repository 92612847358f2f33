"""Sums over a batch that several devices share.

TensorFlow's `tf.distribute` runs a step on every device with its part of the batch. JAX's arrays
are whole wherever they lie; there, and on one device, nothing needs to be gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras
from keras import ops


def reduce_replicas(values: Sequence[Any], how: Literal["SUM", "MEAN"]) -> list[Any]:
    """Add up, or average, tensors over all devices; the gradient is that of the sum or mean."""
    context = _context()
    if context is None:
        return list(values)
    import tensorflow as tf

    return list(context.all_reduce(tf.distribute.ReduceOp[how], list(values)))


def roll_batch(values: Any, shift: int) -> Any:
    """Roll a device's part (B, ...) along the whole batch's first axis; gradients do not pass."""
    context = _context()
    if context is None:
        return ops.roll(values, shift, axis=0)
    part = ops.shape(values)[0]
    whole = ops.roll(context.all_gather(values, axis=0), shift, axis=0)
    first = context.replica_id_in_sync_group * part
    return whole[first : first + part]


def _context() -> Any:
    """TensorFlow's context of a step that several devices run, or None."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context if context is not None and context.num_replicas_in_sync > 1 else None
