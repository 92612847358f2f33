"""Where the network runs: which device, how many slices at once."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass

import keras

from napari_pancreas_seg.errors import PancreasSegError

__all__ = ["Device", "choose_device"]

CPU_BATCH = 8
GPU_BATCH = 32


@dataclass(frozen=True)
class Device:
    """A device that Keras can run on.

    Parameters
    ----------
    name : str
        ``"cpu:0"`` or ``"gpu:N"``.
    batch_size : int
        Slices that go through the network at once unless the user says otherwise.
    """

    name: str
    batch_size: int

    def scope(self) -> AbstractContextManager[object]:
        """Within it, Keras computes on this device."""
        scope: AbstractContextManager[object] = keras.device(self.name)
        return scope

    @staticmethod
    def out_of_memory(error: Exception) -> bool:
        """Whether an exception says that the device's memory ran out."""
        text = f"{type(error).__name__} {error}"
        return isinstance(error, MemoryError) or any(
            sign in text for sign in ("ResourceExhausted", "RESOURCE_EXHAUSTED", "OutOfMemory")
        )


def choose_device(asked: str) -> Device:
    """Turn ``auto``, ``cpu`` or ``gpu:N`` into a device.

    Raises
    ------
    PancreasSegError
        If there is no such GPU.
    """
    gpus = _gpu_count() if asked != "cpu" else 0
    if asked == "cpu" or (asked == "auto" and gpus == 0):
        return Device("cpu:0", CPU_BATCH)
    number = int(asked.partition(":")[2] or 0)
    if number >= gpus:
        has = "no GPU" if gpus == 0 else f"{gpus} GPU(s), gpu:0 to gpu:{gpus - 1}"
        raise PancreasSegError(
            f"There is no {asked} here: {keras.backend.backend()} sees {has}. "
            "Use --device auto or cpu."
        )
    return Device(f"gpu:{number}", GPU_BATCH)


def _gpu_count() -> int:
    """How many GPUs the backend sees; asks TensorFlow to take memory only as needed."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        for gpu in gpus:
            # A GPU that this process uses already keeps its setting.
            with contextlib.suppress(RuntimeError):
                tf.config.experimental.set_memory_growth(gpu, True)
        return len(gpus)
    if backend == "jax":
        import jax

        return sum(device.platform in ("gpu", "cuda", "rocm") for device in jax.devices())
    if backend == "torch":
        import torch

        return int(torch.cuda.device_count())
    return 0
