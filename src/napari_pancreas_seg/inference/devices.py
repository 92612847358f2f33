"""Where the network runs: which device, how many slices at once."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import keras

from napari_pancreas_seg.errors import PancreasSegError

__all__ = ["Device", "choose_device", "list_devices"]

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


def list_devices() -> tuple[list[dict[str, str]], str]:
    """List what the network can run on.

    Returns
    -------
    devices : list of dict
        ``id`` as `choose_device` takes it, and ``name`` for a person to read.
    why : str
        A sentence on why there is no GPU; empty if there is one.
    """
    count = _gpu_count()
    devices = [{"id": "cpu", "name": f"CPU ({os.cpu_count() or 1} cores)"}]
    devices += [{"id": f"gpu:{n}", "name": _gpu_name(n)} for n in range(count)]
    return devices, "" if count else _why_no_gpu()


def _gpu_name(number: int) -> str:
    """What the maker calls a GPU, as far as the backend tells."""
    name = None
    with contextlib.suppress(Exception):  # a name is not worth a failure
        backend = keras.backend.backend()
        if backend == "tensorflow":
            import tensorflow as tf

            gpu = tf.config.list_physical_devices("GPU")[number]
            name = tf.config.experimental.get_device_details(gpu).get("device_name")
        elif backend == "torch":
            import torch

            name = torch.cuda.get_device_name(number)
        elif backend == "jax":
            import jax

            name = jax.devices("gpu")[number].device_kind
    return f"GPU {number}: {name}" if name else f"GPU {number}"


def _why_no_gpu() -> str:
    """Say in a sentence why the backend sees no GPU."""
    backend = keras.backend.backend()
    if backend != "tensorflow":
        return f"No GPU: {backend} sees none on this computer."
    if sys.platform == "darwin":
        return "No GPU: TensorFlow uses none on a Mac without the package tensorflow-metal."
    if sys.platform == "win32":
        return (
            "No GPU: TensorFlow uses none on Windows itself; it does within WSL2, and Keras "
            "does with PyTorch as its backend."
        )
    if shutil.which("nvidia-smi") is None and not Path("/proc/driver/nvidia").exists():
        return "No GPU: this computer has no NVIDIA driver."
    return (
        "No GPU: there is an NVIDIA driver, but TensorFlow cannot load its CUDA libraries. "
        "Install napari-pancreas-seg[gpu]."
    )


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
