"""Reads the text header of an NRRD or MetaImage file: where its voxels are, and their type.

This is what must be known, and refused, before a library follows such a header anywhere: it may
name any file as the one with the data, and declare any size.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.voxels import check_shape

_LONGEST = 1 << 20  # bytes that a header may have

_NRRD_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": (
        *("longlong", "long long", "long long int", "signed long long"),
        *("signed long long int", "int64", "int64_t"),
    ),
    "u8": (*("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),),
    "f4": ("float",),
    "f8": ("double",),
}
_NRRD_CODES = {name: code for code, names in _NRRD_TYPES.items() for name in names}

_META_CODES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}

_ENCODINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}

_UNITS = {"m": 1000.0, "cm": 10.0, "um": 0.001, "µm": 0.001, "micron": 0.001, "microns": 0.001}

_ANATOMICAL = ("left-", "right-", "lps", "las", "ras")
"""Beginnings of the names of spaces that belong to the patient."""

_PLACE = {"TransformMatrix", "Rotation", "Orientation", "Offset", "Position", "Origin"}
_NUMBERS = {
    *(*_PLACE, "ElementSpacing", "ElementSize"),
    *("space directions", "space origin", "spacings", "axis mins", "axis maxs"),
}
"""Fields whose numbers place the volume in space."""


@dataclass(frozen=True)
class VoxelLayout:
    """Where a file's voxels are and how they are stored, as its header says."""

    shape: tuple[int, ...]  # first axis fastest
    dtype: np.dtype[Any]  # byte order included
    data: Path  # the file that holds them: the header's own, or one in its folder
    encoding: str  # "raw", "gzip" or "zlib"
    start: int  # bytes before the encoded data; -1 if they are the last ones of the file
    skip: int = 0  # bytes to skip after decompression
    content: str = ""  # what the header says of the content in free text
    to_mm: float = 1.0  # what lengths are multiplied by to get mm
    placed: bool = True  # whether the header says how the volume lies in the patient
    sized: bool = True  # whether it says how large a voxel is
    segments: tuple[tuple[int, int], ...] = ()  # layer and label value, where masks overlap

    @property
    def volume_shape(self) -> tuple[int, ...]:
        """Shape without the axis of layers."""
        return self.shape[1:] if self.segments else self.shape


def parse_nrrd(path: Path) -> VoxelLayout:
    """Read a header by https://teem.sourceforge.net/nrrd/format.html."""
    with open(path, "rb") as file:
        if not re.fullmatch(rb"NRRD000[1-5]\r?\n?", file.readline(16)):
            raise _no_format(path, "NRRD")
        fields: dict[str, str] = {}
        extra: dict[str, str] = {}
        for line in _lines(path, file):
            if not line:
                break
            name, colon, value = line.partition(":")
            if colon and value.startswith("="):
                extra[name.strip()] = value[1:].strip()
            elif colon and not line.startswith("#"):
                fields[name.strip().lower()] = value.strip()
        start = file.tell()
    fields["data file"] = fields.get("data file", fields.get("datafile", ""))
    shape = _integers(path, fields, "sizes")
    if len(shape) != _integer(path, fields, "dimension", len(shape)):
        raise _senseless(path, "sizes")
    segments = _segments(fields, extra) if len(shape) == 4 else ()
    listed = fields.get("space directions", "").startswith("none")
    if len(shape) == 4 and listed and not segments:  # a sequence of volumes, perhaps of one
        shape = check_shape(path, (*shape[1:], shape[0]))[:3]
    kind = fields.get("type", "").lower()
    if kind not in _NRRD_CODES:
        raise _no_numbers(path, kind)
    encoding = _ENCODINGS.get(fields.get("encoding", "").lower())
    lines = _integer(path, fields, "line skip", _integer(path, fields, "lineskip", 0))
    if encoding is None or lines:
        given = "after lines of text" if encoding else repr(fields.get("encoding", "")[:20])
        raise _no_encoding(path, given)
    _check_numbers(path, fields)
    data = _data_file(path, fields["data file"]) if fields["data file"] else path
    skip = _integer(path, fields, "byte skip", _integer(path, fields, "byteskip", 0))
    if skip < -1 or (skip == -1 and encoding != "raw"):
        raise _senseless(path, "byte skip")
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", "")))
    return VoxelLayout(
        shape,
        np.dtype((">" if fields.get("endian", "").lower() == "big" else "<") + _NRRD_CODES[kind]),
        data,
        encoding,
        -1 if skip == -1 else start if data == path else 0,
        max(skip, 0),
        fields.get("content", ""),
        _UNITS.get(units.pop(), 1.0) if len(units) == 1 else 1.0,
        fields.get("space", "").lower().startswith(_ANATOMICAL),
        bool({"space directions", "spacings"} & fields.keys()),
        segments,
    )


def _segments(fields: Mapping[str, str], extra: Mapping[str, str]) -> tuple[tuple[int, int], ...]:
    """Layer and label value of each segment in a ``.seg.nrrd`` of 3D Slicer with layers."""
    if fields.get("kinds", "").split()[:1] not in (["list"], ["vector"]):
        return ()
    found = []
    for number in range(len(extra)):
        layer, value = (extra.get(f"Segment{number}_{k}", "") for k in ("Layer", "LabelValue"))
        if layer.isdecimal() and value.isdecimal() and len(layer + value) < 9:
            found.append((int(layer), int(value)))
    return tuple(found)


def parse_metaimage(path: Path) -> VoxelLayout:
    """Read a header by https://itk.org/Wiki/ITK/MetaIO/Documentation."""
    fields: dict[str, str] = {}
    with open(path, "rb") as file:
        for line in _lines(path, file):
            name, equals, value = line.partition("=")
            if not equals and not fields:
                raise _no_format(path, "MetaImage")
            # ITK writes whatever metadata an image has: keys such as 0008|0005 or dim[0], and
            # values of several lines.
            if equals:
                fields[name.strip()] = value.strip()
            if name.strip() == "ElementDataFile":
                break
        start = file.tell()
    if "NDims" not in fields or "ElementDataFile" not in fields:
        raise _no_format(path, "MetaImage")
    shape = _integers(path, fields, "DimSize")
    dimensions = _integer(path, fields, "NDims", 0)
    if len(shape) != dimensions or dimensions > 8:
        raise _senseless(path, "DimSize")
    kind = fields.get("ElementType", "")
    if kind not in _META_CODES:
        raise _no_numbers(path, kind)
    if _integer(path, fields, "ElementNumberOfChannels", 1) != 1:
        raise _no_numbers(path, "colours or vectors")
    _check_numbers(path, fields, dimensions)
    local = fields["ElementDataFile"].upper() == "LOCAL"
    skip = _integer(path, fields, "HeaderSize", 0)
    compressed = _true(fields, "CompressedData")
    if not _true(fields, "BinaryData", "true") and not compressed:
        raise _no_encoding(path, "'text'")
    if skip < -1 or (skip == -1 and compressed):
        raise _senseless(path, "HeaderSize")
    big = _true(fields, "BinaryDataByteOrderMSB") or _true(fields, "ElementByteOrderMSB")
    return VoxelLayout(
        shape,
        np.dtype((">" if big else "<") + _META_CODES[kind]),
        path if local else _data_file(path, fields["ElementDataFile"]),
        "zlib" if compressed else "raw",
        skip if skip else start if local else 0,
        content=fields.get("Comment", ""),
        placed=bool(_PLACE & fields.keys()),
        sized=bool({"ElementSpacing", "ElementSize"} & fields.keys()),
    )


def _lines(path: Path, file: IO[bytes]) -> Iterator[str]:
    """Yield a header's lines without their ends, as far as a header may go."""
    while (left := _LONGEST - file.tell()) > 0 and (line := file.readline(left)):
        yield line.decode("utf-8", "surrogateescape").rstrip("\r\n")
    if left <= 0:
        raise PancreasSegError(f"'{path.name}' has a header without end; convert it again.")


def _data_file(path: Path, name: str) -> Path:
    """Find the file that a detached header names, which must lie in the header's folder."""
    if re.search(r"%|\bLIST\b", name):
        raise PancreasSegError(
            f"'{path.name}' stores its voxels in several files, which is not supported; save it as "
            "one file."
        )
    folder = Path(os.path.realpath(path)).parent
    data = Path(os.path.realpath(folder / name.replace("\\", "/")))
    if "\0" in name or folder not in data.parents:
        raise PancreasSegError(
            f"'{path.name}' refers to a file outside its own folder for its voxels, which is not "
            "followed; put both files into one folder and correct the header."
        )
    if not data.is_file():
        raise PancreasSegError(
            f"'{path.name}' is only a header: the file with its voxels, {data.name!r}, is not "
            "beside it; copy both."
        )
    return data


def _integers(path: Path, fields: Mapping[str, str], name: str) -> tuple[int, ...]:
    words = fields.get(name, "").split()
    if not words or not all(re.fullmatch(r"[+-]?\d{1,18}", word) for word in words):
        raise _senseless(path, name)
    return tuple(int(word) for word in words)


def _integer(path: Path, fields: Mapping[str, str], name: str, default: int) -> int:
    if name not in fields:
        return default
    numbers = _integers(path, fields, name)
    if len(numbers) != 1:
        raise _senseless(path, name)
    return numbers[0]


def _true(fields: Mapping[str, str], name: str, default: str = "false") -> bool:
    return fields.get(name, default)[:1].lower() in {"t", "1"}


def _check_numbers(path: Path, fields: Mapping[str, str], dimensions: int = 0) -> None:
    """Refuse numbers that place no volume in space, which libraries read all the same."""
    for name in _NUMBERS & fields.keys():
        value = fields[name]
        words = [word for word in re.split(r"[\s(),]+", value) if word and word != "none"]
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            raise _senseless(path, name) from None
        wanted = {dimensions, dimensions**2 if name in _PLACE else dimensions}
        if dimensions and len(numbers) not in wanted:
            raise _senseless(path, name)
        if not np.isfinite(numbers).all() and name not in ("spacings", "axis mins", "axis maxs"):
            raise PancreasSegError(
                f"'{path.name}' cannot be placed in space because its {name} is not finite; "
                "repair its header or convert it again."
            )
        if name in ("ElementSpacing", "ElementSize", "spacings") and not min(numbers) > 0:
            raise PancreasSegError(
                f"'{path.name}' cannot be placed in space because its voxels have no size "
                f"({name} {value[:40]!r}); repair its header or convert it again."
            )


def _no_format(path: Path, format: str) -> PancreasSegError:
    what = "is empty" if path.stat().st_size == 0 else f"is not a {format} file"
    return PancreasSegError(f"'{path.name}' {what}; export it again as .nii.gz, .nrrd or .mha.")


def _no_encoding(path: Path, how: str) -> PancreasSegError:
    return PancreasSegError(
        f"'{path.name}' holds its voxels in a way that is not supported ({how}); save it again as "
        "raw or gzip."
    )


def _senseless(path: Path, field: str) -> PancreasSegError:
    return PancreasSegError(
        f"'{path.name}' cannot be read: its header's '{field}' is missing or invalid; "
        "convert the CT again."
    )


def _no_numbers(path: Path, kind: str) -> PancreasSegError:
    return PancreasSegError(
        f"'{path.name}' does not hold one number per voxel ({kind[:30]!r}), so it is not a CT; "
        "give the CT in Hounsfield units."
    )
