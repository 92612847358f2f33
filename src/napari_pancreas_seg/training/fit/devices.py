"""Where a training computes: on how many devices, how precisely, how exactly repeatable."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.devices import list_devices

POLICIES = ("auto", "float32", "mixed_bfloat16", "mixed_float16")


@dataclass(frozen=True)
class Devices:
    """The devices that a batch is split over (one by default), and the backend's strategy."""

    count: int = 1
    strategy: Any = field(default=None, compare=False)

    @property
    def replicas(self) -> int:
        """In how many parts the program itself sees a batch: on JAX it is whole always."""
        return self.count if keras.backend.backend() == "tensorflow" else 1

    def scope(self) -> AbstractContextManager[Any]:
        """Within it, variables are made for these devices, and they train."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def check(self, batch_size: int) -> None:
        """Refuse a batch that cannot be split evenly."""
        if batch_size % self.count:
            raise PancreasSegError(
                f"A batch of {batch_size} slices cannot be split evenly over {self.count} devices; "
                f"choose a batch size that is a multiple of {self.count}."
            )

    def split(self, batch: Mapping[str, Array]) -> dict[str, Any]:
        """Give every device its part of a batch."""
        if self.strategy is None or self.replicas == 1:
            return dict(batch)  # Keras splits it itself on JAX
        return {name: self._split(values) for name, values in batch.items()}

    def _split(self, values: Array) -> Any:
        import tensorflow as tf

        parts = np.split(values, self.count)
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.convert_to_tensor(parts[context.replica_id_in_sync_group])
        )


def choose_devices(asked: int | str) -> Devices:
    """Turn a number, or ``all``, into devices: GPUs or TPUs if there are any, else processors."""
    backend = keras.backend.backend()
    if asked != "all" and not (str(asked).isdecimal() and int(asked) > 0):
        raise PancreasSegError(f"{asked!r} is no number of devices; give 1, 2, … or all.")
    if str(asked) == "1":
        return Devices()
    if backend not in ("tensorflow", "jax"):
        raise PancreasSegError(
            f"Training on several devices needs TensorFlow or JAX; Keras runs on {backend} here."
        )
    names = _devices(backend)
    count = len(names) if asked == "all" else int(asked)
    if count > len(names):
        raise PancreasSegError(
            f"There are no {count} devices here: {backend} sees {len(names)} ({', '.join(names)})."
        )
    if count == 1:
        return Devices()
    if backend == "tensorflow":
        import tensorflow as tf

        return Devices(count, tf.distribute.MirroredStrategy(names[:count]))
    return Devices(count, keras.distribution.DataParallel(devices=names[:count]))


def _devices(backend: str) -> list[str]:
    """Names of the accelerators, or of the processors where there is none."""
    if backend == "jax":
        return [str(name) for name in keras.distribution.list_devices()]
    import tensorflow as tf

    list_devices()  # asks TensorFlow to take a GPU's memory only as needed
    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return [device.name for device in found]


def choose_policy(asked: str) -> str:
    """Turn ``auto`` into the fastest Keras dtype policy that the device is built for.

    ``mixed_bfloat16`` on NVIDIA GPUs from compute capability 8 (Ampere) and on TPUs,
    ``mixed_float16`` on those from 7 (Volta), ``float32`` on everything else.
    """
    if asked != "auto":
        return asked
    found = _compute_capability()
    if found is None or found < 7:
        return "float32"
    return "mixed_bfloat16" if found >= 8 else "mixed_float16"


def _compute_capability() -> float | None:
    """Of the first GPU, as NVIDIA counts; None without one."""
    backend = keras.backend.backend()
    with contextlib.suppress(ImportError, RuntimeError, ValueError, AttributeError, TypeError):
        if backend == "tensorflow":
            import tensorflow as tf

            for gpu in tf.config.list_physical_devices("GPU"):
                found = tf.config.experimental.get_device_details(gpu).get("compute_capability")
                return None if found is None else float(f"{found[0]}.{found[1]}")
        elif backend == "jax":
            import jax

            device = jax.devices()[0]
            if device.platform == "tpu":
                return 8.0
            return float(device.compute_capability)
    return None


def make_deterministic() -> None:
    """Let this process compute the same bits every time, at some cost in speed."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
