"""From the bytes of DICOM pixel data to stored numbers, whatever the transfer syntax.

imagecodecs decodes (libjpeg-turbo, CharLS, OpenJPEG, OpenJPH); the size that a codestream
declares is compared with the header's before it is given memory, which pydicom's own decoders do
not do; and they need other plugins for each syntax.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.errors import PancreasSegError

if TYPE_CHECKING:
    from pydicom import Dataset

_UNDEFINED = 0xFFFFFFFF

_NATIVE = {
    "",  # no meta information: nothing compressed is stored so
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.98",
    "1.2.840.10008.1.2.2",
}
_JPEG = {f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70)}
_JPEG_LS = {"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"}
_JPEG_2000 = {"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"}
_HTJ2K = {f"1.2.840.10008.1.2.4.{number}" for number in (201, 202, 203)}
_RLE = {"1.2.840.10008.1.2.5"}

_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Markers of JPEG and JPEG-LS that are followed by the image's size."""


class PixelLayout(NamedTuple):
    """Size of a frame, and how its pixels are stored."""

    rows: int
    columns: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool


def frames(
    stream: BinaryIO, header: Dataset, layout: PixelLayout, numbers: Sequence[int]
) -> Iterator[tuple[int, Array]]:
    """Read frames from an open file."""
    syntax = str(header.file_meta.get("TransferSyntaxUID") or "")
    count = int(header.get("NumberOfFrames") or 1)
    implicit, little = header.original_encoding
    element = stream.read(8 if implicit else 12)
    length = int.from_bytes(element[-4:], "little" if little else "big")
    if syntax in _NATIVE:
        yield from _native(stream, layout, length, count, numbers, "<" if little else ">")
        return
    decode = _decoder(syntax, layout)
    for number, data in _encapsulated(stream, header, length, count, numbers):
        values, precision = decode(data)
        if values.shape != (layout.rows, layout.columns) or values.dtype.kind not in "iu":
            raise ValueError("the decoded image has another size than its header declares")
        yield number, _meaning(values, layout._replace(stored=min(precision, layout.stored)))


def _native(
    file: BinaryIO, layout: PixelLayout, length: int, count: int, numbers: Sequence[int], order: str
) -> Iterator[tuple[int, Array]]:
    dtype = np.dtype(f"{order}u{layout.allocated // 8}")
    size = layout.rows * layout.columns * dtype.itemsize
    start = file.tell()
    if layout.high_bit != layout.stored - 1:
        raise PancreasSegError(
            "The pixels of this DICOM series are stored in a way that was retired long ago (the "
            "high bit is not the highest of the stored bits); export the series again."
        )
    if length == _UNDEFINED or length < size * count:
        raise EOFError("fewer pixels than the header declares")
    for number in numbers:
        file.seek(start + (number - 1) * size)
        data = file.read(size)
        if len(data) < size:
            raise EOFError("the pixels break off")
        values = np.frombuffer(data, dtype).reshape(layout.rows, layout.columns)
        yield number, _meaning(values.astype(dtype.newbyteorder("=")), layout)


def _meaning(values: Array, layout: PixelLayout) -> Array:
    """Mask unused bits, such as an overlay's, and interpret the sign."""
    size = 8 * values.itemsize
    unused = max(0, size - layout.stored)
    plain = values.view(f"u{values.itemsize}")
    if not layout.signed:
        return plain & np.asarray((1 << (size - unused)) - 1, plain.dtype) if unused else plain
    if not unused:
        return plain.view(f"i{values.itemsize}")
    return np.asarray((plain << unused).view(f"i{values.itemsize}") >> unused)


def _encapsulated(
    stream: BinaryIO, header: Dataset, length: int, count: int, numbers: Sequence[int]
) -> Iterator[tuple[int, bytes]]:
    from pydicom.encaps import generate_frames

    if length != _UNDEFINED:
        raise ValueError("compressed pixels of a length that compressed pixels cannot have")
    data = stream.read()
    _check_whole(data)
    offsets = None
    if "ExtendedOffsetTable" in header and "ExtendedOffsetTableLengths" in header:
        offsets = (header.ExtendedOffsetTable, header.ExtendedOffsetTableLengths)
    wanted, last = set(numbers), max(numbers)
    found = generate_frames(data, number_of_frames=count, extended_offsets=offsets)
    for number, frame in enumerate(found, start=1):
        if number in wanted:
            wanted.remove(number)
            yield number, frame
        if number == last:
            break
    if wanted:
        raise EOFError("fewer frames than the header declares")


def _check_whole(data: bytes) -> None:
    """Walk the fragments to the delimiter that ends them."""
    at = 0
    while data[at : at + 4] == b"\xfe\xff\x00\xe0":
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    if data[at : at + 4] != b"\xfe\xff\xdd\xe0":
        raise EOFError("the compressed pixels break off")


def _decoder(syntax: str, layout: PixelLayout) -> Callable[[bytes], tuple[Array, int]]:
    """Return what decodes a frame and tells how many bits of its numbers count."""
    import imagecodecs

    if syntax in _JPEG:
        return lambda data: _checked(data, layout, _jpeg_size, imagecodecs.jpeg8_decode)
    if syntax in _JPEG_LS:
        return lambda data: _checked(data, layout, _jpeg_size, imagecodecs.jpegls_decode)
    if syntax in _JPEG_2000:
        return lambda data: _checked(data, layout, _jpeg_2000_size, imagecodecs.jpeg2k_decode)
    if syntax in _HTJ2K:
        return lambda data: _checked(data, layout, _jpeg_2000_size, imagecodecs.htj2k_decode)
    if syntax in _RLE:
        return lambda data: (_rle(data, layout), layout.stored)
    shown = syntax if re.fullmatch(r"[0-9.]{0,64}", syntax) else "unknown"
    raise PancreasSegError(
        f"The pixels of this DICOM series are compressed in a way that cannot be read (transfer "
        f"syntax {shown}); export the series uncompressed."
    )


def _checked(
    data: bytes,
    layout: PixelLayout,
    size_of: Callable[[bytes], tuple[int, int, int, int]],
    decode: Callable[[bytes], Any],
) -> tuple[Array, int]:
    rows, columns, components, precision = size_of(data)
    if (rows, columns, components) != (layout.rows, layout.columns, 1):
        raise ValueError("the compressed image has another size than the header declares")
    return np.asarray(decode(data)), precision


def _jpeg_size(data: bytes) -> tuple[int, int, int, int]:
    """Return rows, columns, components and bits from the frame header (ISO 10918-1, B.2.2)."""
    at = 2
    while at + 10 <= len(data) and data[:2] == b"\xff\xd8":
        if data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        if marker in _FRAME_MARKERS:
            rows = int.from_bytes(data[at + 5 : at + 7], "big")
            columns = int.from_bytes(data[at + 7 : at + 9], "big")
            return rows, columns, data[at + 9], data[at + 4]
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise ValueError("no JPEG image")


def _jpeg_2000_size(data: bytes) -> tuple[int, int, int, int]:
    """Return rows, columns, components and bits from the codestream (ISO 15444-1, A.5.1)."""
    at = data.find(b"\xff\x4f\xff\x51")  # a codestream, maybe in the wrapping of a file
    if at < 0 or len(data) < at + 43:
        raise ValueError("no JPEG 2000 image")
    x1, y1, x0, y0 = np.frombuffer(data[at + 8 : at + 24], ">u4").tolist()
    components = int.from_bytes(data[at + 40 : at + 42], "big")
    return y1 - y0, x1 - x0, components, (data[at + 42] & 0x7F) + 1


def _rle(data: bytes, layout: PixelLayout) -> Array:
    import imagecodecs

    dtype = np.dtype(f"<u{layout.allocated // 8}")
    expected = layout.rows * layout.columns
    if len(data) > 2 * expected * dtype.itemsize + 128:  # it would expand without a need
        raise ValueError("more compressed data than the image needs")
    values = np.frombuffer(imagecodecs.dicomrle_decode(data, dtype), dtype)
    if len(values) < expected:
        raise EOFError("the compressed pixels break off")
    return values[:expected].reshape(layout.rows, layout.columns).astype(dtype.newbyteorder("="))
