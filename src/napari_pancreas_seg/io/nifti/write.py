"""Writing NIfTI single files: onto the grid of another file's header, or with one of their own."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.io.deflate import gzip_writer
from napari_pancreas_seg.io.files import atomic_write
from napari_pancreas_seg.io.nifti.read import sform_is_empty
from napari_pancreas_seg.io.quiet import quiet_libraries
from napari_pancreas_seg.io.voxels import planes

if TYPE_CHECKING:
    import nibabel

_GEOMETRY = (
    *("dim", "pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)
"""The only fields that go from a CT's header to a mask's; the rest can name the patient."""


def header_like(source: Any) -> Any:
    """Make a header with the geometry of another file's, bit for bit."""
    header = type(source)(endianness="<")
    for name in _GEOMETRY:
        header[name] = source[name]
    if sform_is_empty(header):
        header["sform_code"] = 0  # else programs that prefer it would place the mask nowhere
    return header


def header_of(shape: tuple[int, ...], affine: npt.ArrayLike, code: int = 1) -> Any:
    """Make a header for an array with an affine; `code` says which world that maps to."""
    from nibabel import Nifti1Header, Nifti2Header

    affine = np.asarray(affine, dtype=np.float64)
    large = max(shape) > np.iinfo(np.int16).max
    kind: Any = Nifti2Header if large else Nifti1Header  # carry no types
    header = kind(endianness="<")
    header.set_data_shape(shape)
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.allclose(axes.T @ axes, np.eye(3), atol=1e-4):
        header.set_qform(affine, code)
    else:  # a quaternion cannot hold a sheared affine
        header.set_zooms((*np.linalg.norm(affine[:3, :3], axis=0), *[1.0] * (len(shape) - 3)))
    header.set_sform(affine, code)
    header.set_xyzt_units("mm")
    return header


def image_of(array: Array, header: Any) -> nibabel.Nifti1Image:
    """Make the image that nibabel would read from a file with this header."""
    import nibabel

    header.set_data_dtype(array.dtype)
    with quiet_libraries():
        header.check_fix(error_level=1000)  # of what is no fault to nibabel on reading either
    large = isinstance(header, nibabel.Nifti2Header)
    kind: Any = nibabel.Nifti2Image if large else nibabel.Nifti1Image
    image: nibabel.Nifti1Image = kind(array, header.get_best_affine(), header)
    return image


def write(
    array: Array, header: Any, path: Path, *, slope: float = 1.0, overwrite: bool = False
) -> None:
    """Write an array behind a header."""
    header.set_data_dtype(array.dtype.newbyteorder("<"))
    header["vox_offset"] = header.single_vox_offset
    header["scl_slope"], header["scl_inter"] = slope, 0.0
    with atomic_write(path, overwrite=overwrite) as file, ExitStack() as stack:
        zipped = path.name.lower().endswith(".gz")
        out = stack.enter_context(gzip_writer(file)) if zipped else file
        out.write(header.binaryblock)
        out.write(b"\0" * (header.single_vox_offset - len(header.binaryblock)))
        for plane in planes(array):
            out.write(plane)
