"""Reading NIfTI-1 and NIfTI-2 single files.

nibabel knows the header; the data are read here, so that a file is read to its end (which
verifies a gzip checksum) and is never held twice.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import math
import os
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel import imageglobals
from nibabel.spatialimages import HeaderDataError

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.files import explain_os_error
from napari_pancreas_seg.io.raw import RawImage

__all__ = ["few_values", "read", "stored_slope"]

Array = npt.NDArray[Any]
Header = Any  # nibabel's carry no types
_KINDS: tuple[Any, ...] = (nib.Nifti1Header, nib.Nifti2Header)

_TO_MM = {1: 1000.0, 3: 0.001}
"""Codes of the units of length that are not mm: metre and micrometre."""

_MAX_DEFLATE_RATIO = 1032
"""No gzip stream expands further than this."""

_CHUNK = 1 << 24


def read(path: Path) -> RawImage:
    """Read a NIfTI file.

    Parameters
    ----------
    path : Path
        ``.nii`` or ``.nii.gz``.

    Returns
    -------
    RawImage
        Stored numbers, scaling and geometry in the file's own axis order.

    Raises
    ------
    PancreasSegError
        If it cannot be read, is damaged, or holds something other than one volume.
    """
    with _reading(path), _open(path) as stream:
        raw, fixed = _parse_header(path, stream)
        shape = _volume_shape(path, fixed)
        dtype = _number_type(path, fixed)
        offset = int(fixed.get_data_offset())
        _check_size(path, stream, offset, shape, dtype)
        stored = _read_data(path, stream, offset, shape, dtype)
        slope, intercept = fixed.get_slope_inter()
        affine, notes = _affine(fixed)
    return RawImage(
        stored,
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
        affine,
        raw,
        notes,
    )


def stored_slope(path: Path) -> float:
    """Read what a file's stored numbers are multiplied by; 1 if its header does not say.

    Raises
    ------
    PancreasSegError
        If it is not a NIfTI file with one volume of plain numbers.
    """
    with _reading(path), _open(path) as stream:
        _, header = _parse_header(path, stream)
        _volume_shape(path, header)
        slope, _ = header.get_slope_inter()
    return 1.0 if slope is None else float(slope)


def few_values(path: Path, low: int, high: int, most: int) -> bool:
    """Whether a file holds at most so many different whole numbers from `low` to `high`.

    Stops reading as soon as the answer is no, which for a CT is at once.

    Raises
    ------
    PancreasSegError
        If it is not a NIfTI file with one volume of plain numbers, or is damaged.
    """
    found = np.empty(0)
    with _reading(path), _open(path) as stream:
        _, header = _parse_header(path, stream)
        dtype = _number_type(path, header)
        slope, intercept = header.get_slope_inter()
        left = math.prod(_volume_shape(path, header))
        stream.seek(int(header.get_data_offset()))
        while left > 0 and (block := stream.read(min(left, _CHUNK >> 4) * dtype.itemsize)):
            numbers = np.frombuffer(block[: len(block) // dtype.itemsize * dtype.itemsize], dtype)
            left -= numbers.size
            # Neighbours in a mask are mostly equal: sort only where the value changes.
            changed = np.concatenate([numbers[:1], numbers[1:][numbers[1:] != numbers[:-1]]])
            values = np.unique(changed).astype(np.float64) * (slope or 1.0) + (intercept or 0.0)
            found = np.union1d(found, values)
            whole = (found >= low) & (found <= high) & (np.rint(found) == found)
            if len(found) > most or not whole.all():
                return False
    return True


def _open(path: Path) -> BufferedIOBase:
    """Open for reading, decompressing whatever the name says if the content is gzip."""
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return gzip.GzipFile(path, "rb") if compressed else open(path, "rb")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file provokes into one sentence, and keep nibabel silent."""
    try:
        with imageglobals.LoggingOutputSuppressor(), np.errstate(all="ignore"):
            yield
    except PancreasSegError:
        raise
    except (EOFError, zlib.error) as error:
        raise PancreasSegError(
            f"'{path.name}' is truncated or damaged: its compressed data break off; copy or "
            "download it again."
        ) from error
    except gzip.BadGzipFile as error:
        raise PancreasSegError(
            f"'{path.name}' is not a gzip file or is damaged; check that it is a NIfTI file and "
            "copy or download it again."
        ) from error
    except MemoryError as error:
        raise PancreasSegError(
            f"'{path.name}' does not fit into this machine's memory; crop it or use a machine "
            "with more."
        ) from error
    except OSError as error:
        raise PancreasSegError(
            f"'{path.name}' cannot be read: {explain_os_error(error)}."
        ) from error
    except Exception as error:  # nibabel and struct raise a dozen types on a damaged header
        raise PancreasSegError(
            f"'{path.name}' is not a NIfTI file that can be read: its header makes no sense "
            f"({type(error).__name__}); convert the CT to NIfTI again."
        ) from error


def _parse_header(path: Path, stream: BufferedIOBase) -> tuple[Header, Header]:
    """Return the header as it is in the file, and with its harmless faults mended."""
    block = stream.read(4)
    for kind in _KINDS:
        size = kind.template_dtype.itemsize
        if size in (int.from_bytes(block, "little"), int.from_bytes(block, "big")):
            block += stream.read(size - 4)
            magic = block[344:347] if size == 348 else block[4:7]
            if len(block) == size and magic in (b"n+1", b"n+2"):
                raw = kind(block, check=False)
                return raw, kind(block, check=True)
    what = "is empty" if not block else "is not a NIfTI file"
    raise PancreasSegError(
        f"'{path.name}' {what}; give a CT as .nii or .nii.gz (one file with header and data)."
    )


def _volume_shape(path: Path, header: Header) -> tuple[int, ...]:
    shape = tuple(int(n) for n in header.get_data_shape())
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
            "it and give one 3-D CT."
        )
    return shape


def _number_type(path: Path, header: Header) -> np.dtype[Any]:
    dtype: np.dtype[Any] = header.get_data_dtype()
    if dtype.kind not in "iuf":
        what = "complex numbers" if dtype.kind == "c" else "colours (RGB)"
        raise PancreasSegError(
            f"'{path.name}' holds {what} and not one number per voxel, so it is no CT; give the "
            "CT in Hounsfield units."
        )
    return dtype


def _check_size(
    path: Path, stream: BufferedIOBase, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> None:
    """Refuse, before memory is taken, what the file cannot hold or memory cannot."""
    declared = dtype.itemsize * math.prod(shape)
    size = path.stat().st_size * (_MAX_DEFLATE_RATIO if isinstance(stream, gzip.GzipFile) else 1)
    if offset < 0 or offset + declared > size:
        raise PancreasSegError(
            f"'{path.name}' is truncated or damaged: its header declares {shape} voxels, more "
            "than the file can hold; copy or download it again."
        )
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if declared * 2 > memory:
            raise PancreasSegError(
                f"'{path.name}' declares {shape} voxels, {declared / 1e9:.0f} GB, which do not fit "
                f"into this machine's {memory / 1e9:.0f} GB of memory; crop it or use a machine "
                "with more."
            )


def _read_data(
    path: Path, stream: BufferedIOBase, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Array:
    stream.seek(offset)
    stored: Array = np.empty(shape, dtype=dtype, order="F")
    view = memoryview(stored.reshape(-1, order="F").view(np.uint8).data)
    done = 0
    while done < len(view):
        count = stream.readinto(view[done : done + _CHUNK])
        if not count:
            raise PancreasSegError(
                f"'{path.name}' is truncated: it holds only {done / len(view):.0%} of the voxels "
                "that its header declares; copy or download it again."
            )
        done += count
    # To the end, where gzip keeps the checksum; a file with a long tail is not worth the time.
    for _ in range(4):
        if not stream.read(_CHUNK):
            break
    return stored


def _affine(header: Header) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    notes: list[str] = []
    affine = np.array(header.get_best_affine(), dtype=np.float64)
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    if sform > 0 and qform > 0:
        other = affine
        with contextlib.suppress(ValueError, HeaderDataError):  # an unused qform may be junk
            other = np.asarray(header.get_qform())
        corners = list(itertools.product(*((0, n - 1) for n in header.get_data_shape()[:3])))
        step = (affine - other)[:3]
        away = np.linalg.norm(np.asarray(corners) @ step[:, :3].T + step[:, 3], axis=1).max()
        if away > 0.5:
            notes.append(
                f"The header's sform and qform place this CT {away:.3g} mm apart: the sform is "
                "used, and a mask keeps both."
            )
    elif sform <= 0 and qform <= 0:
        notes.append(
            "The header does not say how this CT lies in the patient (no sform, no qform): left "
            "and right, front and back are assumed."
        )
    unit = int(header["xyzt_units"]) & 7
    if unit in _TO_MM:
        affine[:3] *= _TO_MM[unit]
        notes.append("The header gives lengths in another unit than mm: they were converted.")
    return affine, tuple(notes)
