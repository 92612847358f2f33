"""Writing NIfTI single files: onto the grid of another file's header, or with one of their own."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.io.files import atomic_write

__all__ = ["COMPRESSION", "write", "write_like"]

Array = npt.NDArray[Any]

# nibabel's headers carry no types.
_NIFTI1: Any = nib.Nifti1Header
_NIFTI2: Any = nib.Nifti2Header

_GEOMETRY = (
    *("dim", "pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)
"""The only fields that go from a CT's header to a mask's; the rest can name the patient."""

COMPRESSION = 4
"""Masks come out nearly as small as at 9 and a CT takes a third of the time."""


def write_like(source: Any, array: Array, path: Path, *, overwrite: bool = False) -> None:
    """Write an array with the geometry of another file's header, bit for bit.

    Parameters
    ----------
    source : nibabel.Nifti1Header or Nifti2Header
        Header of the CT as it was read.
    array : ndarray
        Voxels in the source's axis order and shape.
    path : Path
        Where to write; compressed if it ends in ``.gz``.
    overwrite : bool
        Whether an existing file may be replaced.
    """
    header = type(source)(endianness="<")
    for name in _GEOMETRY:
        header[name] = source[name]
    _write(header, array, path, overwrite=overwrite)


def write(
    array: Array,
    affine: npt.ArrayLike,
    path: Path,
    *,
    slope: float = 1.0,
    code: int = 1,
    overwrite: bool = False,
) -> None:
    """Write an array with a header of its own.

    Parameters
    ----------
    array : ndarray, shape (I, J, K, ...)
        Voxels.
    affine : array_like, shape (4, 4)
        Maps an index to world coordinates in mm, RAS+.
    path : Path
        Where to write; compressed if it ends in ``.gz``.
    slope : float
        A value is the stored number times this.
    code : int
        What the world is: 1 the scanner's, 2 aligned to another image, ….
    overwrite : bool
        Whether an existing file may be replaced.
    """
    affine = np.asarray(affine, dtype=np.float64)
    large = max(array.shape) > np.iinfo(np.int16).max
    header = (_NIFTI2 if large else _NIFTI1)(endianness="<")
    header.set_data_shape(array.shape)
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.allclose(axes.T @ axes, np.eye(3), atol=1e-4):
        header.set_qform(affine, code)
    else:  # a quaternion cannot hold a sheared affine
        header.set_zooms((*np.linalg.norm(affine[:3, :3], axis=0), *[1.0] * (len(array.shape) - 3)))
    header.set_sform(affine, code)
    header.set_xyzt_units("mm")
    _write(header, array, path, slope=slope, overwrite=overwrite)


def _write(
    header: Any, array: Array, path: Path, *, slope: float = 1.0, overwrite: bool = False
) -> None:
    stored = array.dtype.newbyteorder("<")
    header.set_data_dtype(stored)
    header["vox_offset"] = header.single_vox_offset
    header["scl_slope"], header["scl_inter"] = slope, 0.0
    volume = array.reshape(*array.shape[:2], -1, order="F")
    with atomic_write(path, overwrite=overwrite) as file, _compressed(file, path) as out:
        out.write(header.binaryblock)
        out.write(b"\0" * (header.single_vox_offset - len(header.binaryblock)))
        for k in range(volume.shape[2]):
            out.write(volume[:, :, k].astype(stored, copy=False).tobytes(order="F"))


@contextlib.contextmanager
def _compressed(file: IO[bytes], path: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
    if not path.name.lower().endswith(".gz"):
        yield file
        return
    # Neither a name nor a time in the gzip header: the same mask gives the same bytes.
    with gzip.GzipFile("", "wb", COMPRESSION, file, mtime=0) as out:
        yield out
