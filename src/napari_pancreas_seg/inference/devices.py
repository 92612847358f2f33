"""Where the network runs: which device, how many slices at once."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import keras

from napari_pancreas_seg.errors import PancreasSegError

CPU_BATCH = 8
LARGEST_GPU_BATCH = 64
UNKNOWN_GPU_BATCH = 16
"""Where the backend does not tell how much memory a GPU has left."""
_PROCESSOR = Path("/proc/cpuinfo")
SLICE_BYTES = 100_000_000
"""Memory of a slice in the default network, about, with room for what a library needs besides."""


@dataclass(frozen=True)
class Device:
    """A device for Keras: its name, slices at once, and the fastest dtype policy that it has."""

    name: str
    batch_size: int
    policy: str = "float32"

    def scope(self) -> AbstractContextManager[object]:
        """Within it, Keras computes on this device."""
        return keras.device(self.name)

    @staticmethod
    def out_of_memory(error: Exception) -> bool:
        """Whether an exception says that the device's memory ran out."""
        text = f"{type(error).__name__} {error}"
        return isinstance(error, MemoryError) or any(
            sign in text for sign in ("ResourceExhausted", "RESOURCE_EXHAUSTED", "OutOfMemory")
        )


def choose_device(asked: str) -> Device:
    """Turn ``auto``, ``cpu``, ``gpu`` (the first) or ``gpu:N`` into a device, if there is one."""
    gpus = _gpu_count() if asked != "cpu" else 0
    if asked == "cpu" or (asked == "auto" and gpus == 0):
        return Device("cpu:0", CPU_BATCH, _cpu_policy())
    if not gpus:
        raise PancreasSegError(
            f"The device {asked} cannot be used. {_why_no_gpu()} Or choose the device auto or cpu."
        )
    number = int(asked.partition(":")[2] or 0)
    if number >= gpus:
        raise PancreasSegError(
            f"There is no {asked} here: {keras.backend.backend()} sees {gpus} GPU(s), "
            f"gpu:0 to gpu:{gpus - 1}."
        )
    return Device(f"gpu:{number}", _gpu_batch(_free_bytes(number)), "mixed_float16")


def list_devices() -> tuple[list[dict[str, str]], str]:
    """Devices (``id`` for `choose_device`, ``name``), and why there is no GPU, if so."""
    count = _gpu_count()
    devices = [{"id": "cpu", "name": f"CPU ({os.cpu_count() or 1} cores)"}]
    devices += [{"id": f"gpu:{n}", "name": _gpu_name(n)} for n in range(count)]
    return devices, "" if count else _why_no_gpu()


def _cpu_policy() -> str:
    """bfloat16 where the processor multiplies matrices of it (AMX), else float32."""
    if keras.backend.backend() == "tensorflow":
        with contextlib.suppress(OSError):
            if "amx_bf16" in _PROCESSOR.read_text():
                return "mixed_bfloat16"
    return "float32"


def _gpu_batch(free: int | None) -> int:
    """Slices at once: a power of two that takes half of the free memory at most."""
    if free is None:
        return UNKNOWN_GPU_BATCH
    fits = max(1, free // 2 // SLICE_BYTES)
    return int(min(LARGEST_GPU_BATCH, 1 << (fits.bit_length() - 1)))


def _free_bytes(number: int) -> int | None:
    """Free memory of a GPU in bytes, None if neither backend nor driver reports it."""
    with contextlib.suppress(Exception):  # a guess is not worth a failure
        backend = keras.backend.backend()
        if backend == "torch":
            import torch

            return int(torch.cuda.mem_get_info(number)[0])
        if backend == "jax":
            import jax

            known = jax.devices("gpu")[number].memory_stats()
            return int(known["bytes_limit"] - known["bytes_in_use"])
        # nvidia-smi counts all GPUs, the backend those that it was left.
        left = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        which = left.split(",")[number].strip() if left else number
        query = ("--query-gpu=memory.free", "--format=csv,noheader,nounits", f"--id={which}")
        output = subprocess.run(
            ("nvidia-smi", *query), capture_output=True, check=True, text=True, timeout=5
        )
        return int(output.stdout.split()[0]) * 2**20
    return None


def _gpu_name(number: int) -> str:
    """Product name of a GPU, as far as the backend reports it."""
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
