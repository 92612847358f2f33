"""The compiled function from int16 HU to probability and attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from napari_pancreas_seg.arrays import Array, Floats32
from napari_pancreas_seg.model.probabilities import tempered


def windowed(hu: Any, windows: Sequence[Sequence[float]]) -> Any:
    """HU (B, H, W, 1) in windows (low, high), as channels: low becomes 0, high 1, clipped."""
    low = np.array([w[0] for w in windows], np.float32)
    high = np.array([w[1] for w in windows], np.float32)
    return ops.clip((hu - low) / (high - low), 0.0, 1.0)


class FramePredictor(keras.Model):
    """Clipping, cutting the frame, windows and network in one function; `compact`: to float16."""

    def __init__(
        self,
        network: keras.Model,
        windows: Sequence[Sequence[float]],
        temperature: float = 1.0,
        compact: bool = False,
    ) -> None:
        super().__init__()
        self.compact = compact
        self.network = network
        self.temperature = temperature
        self.windows = tuple(tuple(w) for w in windows)
        self.lowest = float(min(w[0] for w in windows))
        self.highest = float(max(w[1] for w in windows))
        # XLA's convolutions are slow on a CPU; JAX has no other way.
        self.compile(jit_compile=keras.backend.backend() == "jax")
        self._graphs: dict[tuple[Any, ...], Any] = {}

    def call(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Maps of slices ``hu`` (B, Y, X), brought into the frame by ``rows`` and ``columns``."""
        hu = ops.cast(inputs["hu"], "float32") + inputs["shift"]
        # Clip before resampling: otherwise metal and air bleed into their surroundings.
        hu = ops.clip(hu, self.lowest, self.highest) - self.lowest
        hu = ops.matmul(inputs["rows"], hu)
        hu = ops.matmul(hu, ops.transpose(inputs["columns"])) + self.lowest
        outputs = dict(self.network(windowed(hu[..., None], self.windows), training=False))
        probability = ops.cast(outputs.pop("probability"), "float32")
        maps = {name: ops.cast(value[..., 0], "float32") for name, value in outputs.items()}
        maps["probability"] = tempered(probability, self.temperature)
        if self.compact:
            maps = {name: ops.cast(value, "float16") for name, value in maps.items()}
        return maps

    def predict_batch(
        self, hu: Array, rows: Floats32, columns: Floats32, shift: float = 0.0
    ) -> dict[str, Array]:
        """Run `call` compiled, from NumPy to NumPy."""
        inputs = {"hu": hu, "rows": rows, "columns": columns, "shift": np.float32(shift)}
        if keras.backend.backend() == "tensorflow":
            return self._run_graph(inputs)
        return self.predict_on_batch(inputs)

    def _run_graph(self, inputs: dict[str, Any]) -> dict[str, Array]:
        """Run one graph for each shape: Keras would leave sizes open, which changes last digits."""
        import tensorflow as tf

        tensors = {name: tf.convert_to_tensor(each) for name, each in inputs.items()}
        key = tuple((each.dtype.name, *each.shape) for each in tensors.values())
        if key not in self._graphs:
            function = tf.function(self.call, autograph=False)
            self._graphs[key] = function.get_concrete_function(tensors)
        return {name: each.numpy() for name, each in self._graphs[key](tensors).items()}
