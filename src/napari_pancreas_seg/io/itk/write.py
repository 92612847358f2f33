"""Writing NRRD and MetaImage: header and data in one file, or in two.

Their headers are a dozen lines of text, so they are written here and not by a library: voxels go
out slice by slice without a second copy in memory, every fault of the disk is noticed, and a file
appears whole or not at all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.deflate import GZIP, ZLIB, compressor
from napari_pancreas_seg.io.files import atomic_write, check_target
from napari_pancreas_seg.io.itk.header import Layout, parse_metaimage, parse_nrrd
from napari_pancreas_seg.io.raw import LPS_TO_RAS
from napari_pancreas_seg.io.suffixes import stem
from napari_pancreas_seg.io.voxels import planes

__all__ = ["check_place", "write_metaimage", "write_nrrd"]

Array = npt.NDArray[Any]
Header = Callable[[str, int], str]
"""Makes a header from the name of the data's file (empty if they follow) and their size."""

_NRRD_NAMES = {"u1": "uint8", "i2": "int16", "f4": "float"}
_META_NAMES = {"u1": "MET_UCHAR", "i2": "MET_SHORT", "f4": "MET_FLOAT"}

_LARGEST_SHEAR = 1e-3
"""Cosine of the angle between two axes; headers rounded to float32 stay far below."""


def write_nrrd(
    array: Array, affine: npt.ArrayLike, path: Path, *, content: str = "", overwrite: bool = False
) -> None:
    """Write an array as NRRD, compressed by gzip.

    Parameters
    ----------
    array : ndarray, shape (I, J, K), uint8, int16 or float32
        Voxels; further axes must have the length one.
    affine : array_like, shape (4, 4)
        Maps an index to world coordinates in mm, RAS+.
    path : Path
        Where to write. Ending in ``.nhdr``, it is a header of text, and the data go to a
        ``.raw.gz`` file beside it.
    content : str
        What it is, for the header.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    PancreasSegError
        If the affine is sheared, which the format's readers do not expect.
    """
    array = array.reshape(array.shape[:3])
    spacing, direction, origin = _place(affine, path)
    axes = " ".join(f"({_numbers(axis, ',')})" for axis in (direction * spacing).T)
    lines = [
        "NRRD0004",
        "# Complete NRRD file format specification at:",
        "# http://teem.sourceforge.net/nrrd/format.html",
        f"type: {_NRRD_NAMES[array.dtype.str[1:]]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {_numbers(array.shape)}",
        f"space directions: {axes}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        'space units: "mm" "mm" "mm"',
        f"space origin: ({_numbers(origin, ',')})",
        *([f"content: {content}"] if content else []),
    ]

    def header(data: str, size: int) -> str:
        return "\n".join([*lines, *([f"data file: {data}"] if data else []), "", ""])

    detached = path.name.lower().endswith(".nhdr")
    _write(array, path, header, GZIP, (".raw.gz", parse_nrrd) if detached else None, overwrite)


def write_metaimage(
    array: Array, affine: npt.ArrayLike, path: Path, *, content: str = "", overwrite: bool = False
) -> None:
    """Write an array as MetaImage, compressed by zlib.

    Parameters
    ----------
    array : ndarray, shape (I, J, K), uint8, int16 or float32
        Voxels; further axes must have the length one.
    affine : array_like, shape (4, 4)
        Maps an index to world coordinates in mm, RAS+.
    path : Path
        Where to write. Ending in ``.mhd``, it is a header of text, and the data go to a
        ``.zraw`` file beside it.
    content : str
        What it is, for the header.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    PancreasSegError
        If the affine is sheared, which the format's readers do not expect.
    """
    array = array.reshape(array.shape[:3])
    spacing, direction, origin = _place(affine, path)

    def header(data: str, size: int) -> str:
        lines = [
            "ObjectType = Image",
            "NDims = 3",
            "BinaryData = True",
            "BinaryDataByteOrderMSB = False",
            "CompressedData = True",
            f"CompressedDataSize = {size:<12d}",
            f"TransformMatrix = {_numbers(direction.T.ravel())}",
            f"Offset = {_numbers(origin)}",
            "CenterOfRotation = 0 0 0",
            f"ElementSpacing = {_numbers(spacing)}",
            f"DimSize = {_numbers(array.shape)}",
            *([f"Comment = {content}"] if content else []),
            f"ElementType = {_META_NAMES[array.dtype.str[1:]]}",
            f"ElementDataFile = {data or 'LOCAL'}",
        ]
        return "\n".join([*lines, ""])

    detached = path.name.lower().endswith(".mhd")
    _write(array, path, header, ZLIB, (".zraw", parse_metaimage) if detached else None, overwrite)


def check_place(affine: npt.ArrayLike, path: Path) -> None:
    """Refuse an affine that these formats cannot hold, before any work is done.

    Parameters
    ----------
    affine : array_like, shape (4, 4)
        Maps an index to world coordinates in mm, RAS+.
    path : Path
        Where the file is to go, for what is said.

    Raises
    ------
    PancreasSegError
        If it is sheared.
    """
    _place(affine, path)


def _place(affine: npt.ArrayLike, path: Path) -> tuple[Array, Array, Array]:
    """Take an affine (RAS+) apart into spacing, direction and origin in ITK's world (LPS+)."""
    lps = LPS_TO_RAS @ np.asarray(affine, dtype=np.float64)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    direction = lps[:3, :3] / spacing
    if np.abs(direction.T @ direction - np.eye(3)).max() > _LARGEST_SHEAR:
        raise PancreasSegError(
            f"'{path.name}' cannot be written: the axes of this CT are sheared (a tilted gantry), "
            "which only NIfTI can say; end its name in .nii.gz."
        )
    return spacing, direction, lps[:3, 3]


def _numbers(values: npt.ArrayLike, separator: str = " ") -> str:
    """Write numbers so that reading them gives the same ones."""
    # + 0: no one needs a negative zero.
    return separator.join(repr(value + 0) for value in np.asarray(values).tolist())


def _write(
    array: Array,
    path: Path,
    header: Header,
    format: int,
    detached: tuple[str, Callable[[Path], Layout]] | None,
    overwrite: bool,
) -> None:
    if detached is None:
        with atomic_write(path, overwrite=overwrite) as file:
            start = file.write(header("", 0).encode())
            _compress(array, file, format)
            size = file.tell() - start
            file.seek(0)
            file.write(header("", size).encode())
        return
    check_target(path, overwrite=overwrite)
    path = Path(os.path.realpath(path))
    suffix, parse = detached
    # Under a name that is not in use, so that a header finds the data it was written for,
    # the old ones or the new ones, whenever the power fails.
    before = _own_data(path, suffix, parse)
    data = _free_name(path, suffix)
    try:
        with atomic_write(data) as file:
            _compress(array, file, format)
            size = file.tell()
        with atomic_write(path, overwrite=overwrite) as file:
            file.write(os.fsencode(header(data.name, size)))
    except Exception:
        data.unlink(missing_ok=True)
        raise
    if before is not None:
        before.unlink(missing_ok=True)


def _compress(array: Array, file: IO[bytes], format: int) -> None:
    stream = compressor(format)
    for plane in planes(array):
        file.write(stream.compress(plane))
    file.write(stream.flush())


def _free_name(path: Path, suffix: str) -> Path:
    data, number = path.with_name(f"{stem(path)}{suffix}"), 2
    while os.path.lexists(data):
        data, number = path.with_name(f"{stem(path)}_{number}{suffix}"), number + 1
    return data


def _own_data(path: Path, suffix: str, parse: Callable[[Path], Layout]) -> Path | None:
    """Find the data of a header that is to be replaced, if we have written both."""
    try:
        data = parse(path).data
    except (OSError, PancreasSegError):
        return None
    ours = rf"{re.escape(stem(path))}(_\d+)?{re.escape(suffix)}"
    return data if data.parent == path.parent and re.fullmatch(ours, data.name) else None
