"""What a ``.keras`` file may hold, looked at before Keras sees it.

Keras' safe mode refuses Lambda layers, but it imports whatever module the configuration names,
follows links in the HDF5 file and unpacks what else lies in the archive. A model of this
program needs none of that, so everything but layers and plain arrays is refused.
"""

from __future__ import annotations

import io
import json
import lzma
import stat
import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py

from napari_pancreas_seg.errors import PancreasSegError

__all__ = ["DAMAGED", "check_keras_file", "plain_dataset"]

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
LARGEST = {CONFIG: 1 << 24, METADATA: 1 << 16, WEIGHTS: 1 << 30}
"""The members of a ``.keras`` file, and how many bytes each may have."""

KNOWN = {
    None: {"__keras_tensor__", "__tuple__"},
    "keras": {"DTypePolicy"},
    "keras.src.models.functional": {"Functional"},
    "keras.initializers": {"Constant", "GlorotUniform", "HeNormal", "Ones", "Zeros"},
    "keras.layers": {
        *("Activation", "BatchNormalization", "Concatenate", "Conv2D", "Dropout", "InputLayer"),
        *("MaxPooling2D", "UpSampling2D"),
    },
    "napari_pancreas_seg.model.attention_unet": {"AttentionGate", "Foreground"},
}
"""What networks of this program are made of, by module. A name alone is dangerous: Keras would
import any module that is on the path, and some of its own functions fetch files."""

DAMAGED = (
    *(OSError, EOFError, KeyError, ValueError, TypeError, RuntimeError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
"""What reading a damaged zip, JSON or HDF5 file may raise."""


def check_keras_file(path: Path) -> None:
    """Refuse a ``.keras`` file that holds more than layers and arrays.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    PancreasSegError
        If it is damaged, or holds or names code, links, or files of other kinds.
    """
    if not path.is_file():
        raise PancreasSegError(f"{path} cannot be loaded safely: it is not a regular file.")
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _check_member(member)
            _check_classes(json.loads(archive.read(CONFIG)))
            with h5py.File(io.BytesIO(archive.read(WEIGHTS)), "r") as file:
                _check_links(file)
    except DAMAGED as error:
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise PancreasSegError(f"{path} cannot be loaded safely: {what}.") from error


def _check_member(member: zipfile.ZipInfo) -> None:
    mode = member.external_attr >> 16
    if member.filename not in LARGEST or (stat.S_IFMT(mode) not in (0, stat.S_IFREG)):
        raise ValueError(f"it holds {member.filename!r}, which no model needs")
    if member.file_size > LARGEST[member.filename]:
        raise ValueError(f"its {member.filename} is too large")


def _check_classes(config: Any) -> None:
    """Refuse names of anything but Keras' own parts and this program's gate."""
    waiting = [config]
    while waiting:  # no recursion: the nesting may be as deep as it likes
        item = waiting.pop()
        if isinstance(item, list):
            waiting += item
        if not isinstance(item, dict):
            continue
        waiting += item.values()
        if "class_name" not in item:
            continue
        module, name = item.get("module"), item["class_name"]
        if not (isinstance(module, str | None) and isinstance(name, str)):
            raise ValueError("its configuration makes no sense")
        if name not in KNOWN.get(module, ()):
            raise ValueError(
                f"it holds {module}.{name}, which networks of this program do not have and which "
                "may be code"
            )


def _check_links(file: h5py.File) -> None:
    waiting: list[tuple[h5py.Group, int]] = [(file, 0)]
    while waiting:
        group, depth = waiting.pop()
        if depth > 32 or len(group) > 10_000:
            raise ValueError("its weights are nested too deeply")
        for name in group:
            found = plain_object(group, name)
            if isinstance(found, h5py.Group):
                waiting.append((found, depth + 1))
            else:
                check_plain(found, name)


def plain_object(group: h5py.Group, name: str) -> Any:
    """What lies in a group under a name, unless it is a link to somewhere else."""
    # A link may lead to another file on this machine, or to a group that holds itself.
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} in its weights is missing or a link")
    return group[name]


def check_plain(found: Any, name: str) -> None:
    """Refuse what is no plain array, or one that declares more than the file holds."""
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise ValueError(f"{name} in its weights is no plain array")
    if found.dtype.kind not in "fiu" or found.nbytes > LARGEST[WEIGHTS]:
        raise ValueError(f"{name} in its weights has shape {found.shape} and type {found.dtype}")


def plain_dataset(file: h5py.File, name: str, shape: tuple[int, ...]) -> h5py.Dataset:
    """Find an array of a known shape, without reading it.

    Parameters
    ----------
    file : h5py.File
        Weights.
    name : str
        Path of the array in the file.
    shape : tuple of int
        The shape that it must have.

    Raises
    ------
    ValueError
        If it is not there, leads out of the file, or is something else.
    """
    found: Any = file
    for part in name.split("/"):
        if not isinstance(found, h5py.Group):
            raise ValueError(f"there is no {name}")
        found = plain_object(found, part)
    check_plain(found, name)
    # Whatever size the file declares, only this one is ever allocated.
    if found.shape != shape:
        raise ValueError(f"{name} has shape {found.shape}, not {shape}")
    return found
