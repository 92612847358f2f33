"""Voxels from a stream and into one: what formats of one array in one file have in common."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np

from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.deflate import BROKEN
from napari_pancreas_seg.io.files import not_read
from napari_pancreas_seg.io.memory import check_expansion, check_fits
from napari_pancreas_seg.io.raw import RawImage

_MAX_DEFLATE_RATIO = 1032  # no gzip or zlib stream expands further than this

_LARGEST_OFFSET = 1 << 26
"""Header and extensions (comments, a DICOM header) never take more bytes than that."""

_CHUNK = 1 << 24

_FEW = 50  # no CT has so few different values
_ROUNDED = 1e-3  # programs that choose a slope of their own store 1 as 0.9999999
_PIECE = 1 << 18  # what a processor keeps at hand while it is decompressed, tested and converted


@contextlib.contextmanager
def reading(path: Path, format: str) -> Iterator[None]:
    """Turn whatever a damaged file provokes into one sentence."""
    try:
        with np.errstate(all="ignore"):
            yield
    except PancreasSegError:
        raise
    except BROKEN as error:
        how = "break off" if isinstance(error, EOFError) else "cannot be decompressed"
        raise PancreasSegError(
            f"'{path.name}' is truncated or damaged: its compressed data {how}; copy or "
            "download it again."
        ) from error
    except MemoryError as error:
        raise PancreasSegError(
            f"'{path.name}' does not fit into this machine's memory; crop it or use a machine "
            "with more."
        ) from error
    except OSError as error:
        raise not_read(path, error) from error
    except Exception as error:  # the libraries raise a dozen types on a damaged header
        raise PancreasSegError(
            f"'{path.name}' is not a {format} file that can be read: its header is invalid "
            f"({type(error).__name__}); copy, export or convert it again."
        ) from error


def check_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an array if it is one volume."""
    if not shape or min(shape) <= 0:
        raise PancreasSegError(f"'{path.name}' holds no voxels (its shape is {shape}).")
    if len(shape) < 3:
        raise PancreasSegError(
            f"'{path.name}' is a {len(shape)}-D image of shape {shape} and not a volume; give a "
            "3-D CT (a single slice has the shape 512×512×1)."
        )
    if any(n != 1 for n in shape[3:]):
        raise PancreasSegError(
            f"'{path.name}' holds {math.prod(shape[3:])} volumes (its shape is {shape}); split "
            "it and give one of them."
        )
    return shape


def check_size(
    path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], *, compressed: bool
) -> None:
    """Refuse, before memory is taken, what the file cannot hold or memory cannot."""
    declared = dtype.itemsize * math.prod(shape)
    kept = min(dtype.itemsize, 2) * math.prod(shape)  # what is wider is narrowed on the way
    size = path.stat().st_size
    most = size * _MAX_DEFLATE_RATIO if compressed else size
    if not 0 <= offset <= _LARGEST_OFFSET or offset + declared > most:
        raise PancreasSegError(
            f"'{path.name}' is truncated or damaged: its header declares {shape} voxels, more "
            "than the file can hold; copy or download it again."
        )
    if compressed:
        check_expansion(path.name, size, kept)
    check_fits(path.name, 2 * kept)  # once as it is read, once in display order


def holds_labels(raw: RawImage) -> bool:
    """Whether a volume holds whole numbers from 0 to 255 as a mask does: few, or in patches."""
    flat = raw.stored.ravel(order="K")
    found, changes = np.empty(0), 0
    for start in range(0, flat.size, _CHUNK >> 4):
        numbers = flat[start : start + (_CHUNK >> 4)]
        # Neighbours in a mask are mostly equal: sort only where the value changes.
        changed = np.concatenate([numbers[:1], numbers[1:][numbers[1:] != numbers[:-1]]])
        changes += len(changed)
        values = np.unique(changed).astype(np.float64) * raw.slope + raw.intercept
        found = np.union1d(found, np.rint(values))
        if not are_labels(values):
            return False
    return len(found) <= _FEW or changes < 0.5 * int(np.count_nonzero(flat != flat[0]))


def are_labels(values: Array) -> bool:
    """Whether values are whole numbers from 0 to 255, but for what an automatic slope rounds."""
    if values.dtype.kind in "iu":
        return bool(values.min() >= 0 and values.max() <= 255)
    return bool(labels_in(values).all())


def labels_in(values: Array) -> Array:
    """Which values are such numbers; NaN is none of them."""
    with np.errstate(invalid="ignore"):  # infinite ones
        near = np.abs(values - np.rint(values)) <= _ROUNDED
    return np.asarray(near & (values > -0.5) & (values < 255.5))


def planes(array: Array) -> Iterator[bytes]:
    """Cut an array into the planes of a stream, the first axis fastest; empty ones are cheap."""
    stored = array.dtype.newbyteorder("<")
    volume = array.reshape(*array.shape[:2], -1, order="F")
    mostly_empty = stored == np.uint8  # a mask; of other arrays that is not worth the look
    empty = bytes(stored.itemsize * math.prod(volume.shape[:2]))
    for k in range(volume.shape[2]):
        plane = volume[:, :, k].astype(stored, copy=False)
        # Counting runs at the speed of memory however the axes run, `any` and `max` do not.
        skip = mostly_empty and not np.count_nonzero(plane)
        yield empty if skip else plane.tobytes(order="F")


def read_voxels(
    path: Path, stream: BufferedIOBase, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Array:
    """Read an array, first axis fastest; as int16 where nothing is lost by that."""
    stored = _read_narrowed(path, stream, math.prod(shape), dtype)
    # To the end, where gzip keeps the checksum; a file with a long tail is not worth the time.
    for _ in range(4):
        if not stream.read(_CHUNK):
            break
    return stored.reshape(shape, order="F")


def _read_narrowed(path: Path, stream: BufferedIOBase, count: int, dtype: np.dtype[Any]) -> Array:
    """Read numbers; as int16 where a wider type holds nothing but what fits into that."""
    narrow = dtype.itemsize > 2
    stored: Array = np.empty(count, dtype=np.int16 if narrow else dtype)
    step = (_PIECE if narrow else _CHUNK) // dtype.itemsize
    buffer = np.empty(min(step, count) if narrow else 0, dtype)
    for start in range(0, count, step):
        part = stored[start : start + step]
        target = buffer[: part.size] if narrow else part
        read = _fill(stream, memoryview(target.view(np.uint8).data))
        if read < target.nbytes:
            percent = 100 * (start * dtype.itemsize + read) // (count * dtype.itemsize)
            raise PancreasSegError(
                f"'{path.name}' is truncated: it holds only {percent}% of the voxels "
                "that its header declares; copy or download it again."
            )
        if not narrow or _narrowed(target, part):
            continue
        check_fits(path.name, count * (dtype.itemsize + 2 * 4))
        stored = stored.astype(dtype)
        stored[start : start + step] = target
        narrow = False
    return stored


def _narrowed(numbers: Array, into: Array) -> bool:
    """Convert to int16 if that loses nothing; NaN and infinity do not fit."""
    if not (numbers.min() >= -32768 and numbers.max() <= 32767):
        return False
    into[:] = numbers
    return numbers.dtype.kind in "iu" or bool((into == numbers).all())


def _fill(stream: BufferedIOBase, view: memoryview) -> int:
    """Read until a buffer is full or the stream ends; return how many bytes it gave."""
    done = 0
    while done < len(view) and (count := stream.readinto(view[done : done + _PIECE])):
        done += count
    return done
