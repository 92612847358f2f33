"""The weights file of a bundle, HDF5: plain arrays, and nothing else is ever read from it."""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

if TYPE_CHECKING:
    import keras


LARGEST_WEIGHTS = 1 << 30

DAMAGED = (
    *(OSError, EOFError, KeyError, ValueError, TypeError, RuntimeError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
"""Errors that reading a damaged zip, JSON or HDF5 file may raise."""


def pack_weights(network: keras.Model) -> bytes:
    """Weights as HDF5: kernels in float16, everything else (statistics too) in float32."""
    import keras

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:  # with an order of its own it would hold the time
        for variable in network.weights:
            values = keras.ops.convert_to_numpy(variable)
            small = values.ndim > 1
            file.create_dataset(
                variable.path, data=values.astype(np.float16 if small else np.float32),
                track_times=False,
            )  # fmt: skip
    return buffer.getvalue()


def fill_weights(network: keras.Model, file: h5py.File, prefix: str) -> None:
    """Set a network's weights to those of a file; raises one of `DAMAGED` if they do not fit."""
    for variable in network.weights:
        name = prefix + variable.path
        stored = plain_dataset(file, name, tuple(variable.shape))
        values = np.asarray(stored[()], dtype=np.float32)
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds values that are not finite")
        variable.assign(values)


def member_prefix(number: int, members: int) -> str:
    """Prefix of the names of an ensemble member's (0, 1, …) weights in the file."""
    return f"member_{number + 1}/" if members > 1 else ""


def plain_dataset(file: h5py.File, name: str, shape: tuple[int, ...]) -> h5py.Dataset:
    """Find an array of a known shape, without reading it; ValueError if it is something else."""
    found: Any = file
    for part in name.split("/"):
        if not isinstance(found, h5py.Group):
            raise ValueError(f"there is no {name}")
        # A link may lead to another file on this machine, or to a group that holds itself.
        if not isinstance(found.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{part} in its weights is missing or a link")
        found = found[part]
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise ValueError(f"{name} in its weights is no plain array")
    if found.dtype.kind not in "fiu" or found.nbytes > LARGEST_WEIGHTS:
        raise ValueError(f"{name} in its weights has shape {found.shape} and type {found.dtype}")
    # Whatever size the file declares, only this one is ever allocated.
    if found.shape != shape:
        raise ValueError(f"{name} has shape {found.shape}, not {shape}")
    return found
