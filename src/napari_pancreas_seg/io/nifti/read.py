"""Reading NIfTI-1 and NIfTI-2, single files and pairs: nibabel knows the header."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np

from napari_pancreas_seg.arrays import Floats
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.deflate import inflated
from napari_pancreas_seg.io.quiet import quiet_libraries
from napari_pancreas_seg.io.raw import MAP_SLOPE, RawImage
from napari_pancreas_seg.io.suffixes import PAIR, stem
from napari_pancreas_seg.io.voxels import check_shape, check_size, read_voxels, reading

Header = Any  # nibabel's carry no types

_TO_MM = {1: 1000.0, 3: 0.001}  # codes of the units of length that are not mm: metre and micrometre


def read(path: Path) -> RawImage:
    """Read a NIfTI file, or a pair of header and data."""
    with quiet_libraries(), reading(path, "NIfTI"), contextlib.ExitStack() as stack:
        header_path, data_path = header_and_data(path)
        stream, compressed = stack.enter_context(_open(header_path))
        raw, fixed = _parse_header(header_path, stream)
        offset = int(fixed.get_data_offset())
        between = offset - fixed.template_dtype.itemsize
        if data_path != header_path:
            stream, compressed = stack.enter_context(_open(data_path))
            between = offset
        shape = check_shape(path, tuple(int(n) for n in fixed.get_data_shape()))
        dtype = _number_type(path, fixed)
        check_size(data_path, offset, shape, dtype, compressed=compressed)
        if between < 0:
            raise PancreasSegError(
                f"'{path.name}' says that its voxels begin within its header (vox_offset "
                f"{offset}); repair the header or convert the CT again."
            )
        stream.read(between)  # a gzip stream knows no way back
        stored = read_voxels(data_path, stream, shape, dtype)
        slope, intercept = fixed.get_slope_inter()
        sizes = raw["pixdim"][1:4][np.greater(shape[:3], 1)]  # of one slice it may be missing
        if fixed["sform_code"] <= 0 and not (np.isfinite(sizes) & (sizes != 0)).all():
            raise PancreasSegError(  # nibabel would take 1 mm
                f"'{path.name}' cannot be placed in space because its voxels have no size (pixdim "
                f"{sizes.tolist()}); repair its header or convert it again."
            )
        affine, notes = affine_of(fixed)
    return RawImage(
        stored,
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
        affine,
        raw,
        notes,
        dtype.name,
        slope == MAP_SLOPE,
    )


def header_and_data(path: Path) -> tuple[Path, Path]:
    """Return the files of header and data: the same one, or the two of a pair."""
    low = path.name.lower()
    if not low.endswith(PAIR):
        return path, path
    start = stem(path)
    found = []
    for kind in ("hdr", "img"):
        names = [f"{start}.{e}{z}" for e in (kind, kind.upper()) for z in ("", ".gz", ".GZ")]
        own = [path] if f".{kind}" in low[len(start) :] else []
        there = [*own, *(item for name in names if (item := path.with_name(name)).is_file())]
        if not there:
            what = "header" if kind == "hdr" else "voxels"
            raise PancreasSegError(
                f"'{path.name}' is one file of a pair, and the one with its {what}, "
                f"'{start}.{kind}', is not beside it; copy both."
            )
        found.append(there[0])
    return found[0], found[1]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[BufferedIOBase, bool]]:
    """Open for reading, decompressing if the content is gzip, whatever the name says."""
    with open(path, "rb") as file:
        compressed = file.peek(2)[:2] == b"\x1f\x8b"
        yield inflated(file) if compressed else file, compressed


def _parse_header(path: Path, stream: BufferedIOBase) -> tuple[Header, Header]:
    """Return the header as it is in the file, and with its harmless faults mended."""
    from nibabel import Nifti1Header, Nifti2Header

    block = stream.read(4)
    kind: Header
    for kind in (Nifti1Header, Nifti2Header):
        size = kind.template_dtype.itemsize
        if size in (int.from_bytes(block, "little"), int.from_bytes(block, "big")):
            block += stream.read(size - 4)
            magic = block[344:347] if size == 348 else block[4:7]
            if len(block) == size and magic in (b"n+1", b"n+2", b"ni1", b"ni2"):
                raw = kind(block, check=False)
                return raw, kind(block, check=True)
    if path.name.lower().endswith(PAIR):
        raise PancreasSegError(
            f"'{path.name}' is not the header of a NIfTI pair (it may be Analyze 7.5, which does "
            "not say where left and right are); convert the CT to .nii.gz."
        )
    what = "is empty" if not block else "is not a NIfTI file"
    raise PancreasSegError(f"'{path.name}' {what}; export it again as .nii.gz.")


def _number_type(path: Path, header: Header) -> np.dtype[Any]:
    dtype: np.dtype[Any] = header.get_data_dtype()
    if dtype.kind not in "iuf":
        what = "complex numbers" if dtype.kind == "c" else "colours (RGB)"
        raise PancreasSegError(
            f"'{path.name}' holds {what} and not one number per voxel, so it is not a CT; give the "
            "CT in Hounsfield units."
        )
    return dtype


def sform_is_empty(header: Any) -> bool:
    """Whether the matrix that has precedence is all zeros, and there is another."""
    rows = np.stack([header[f"srow_{axis}"][:3] for axis in "xyz"])
    both = header["sform_code"] > 0 and header["qform_code"] > 0
    return bool(both and not np.nan_to_num(rows).any())


def affine_of(header: Header) -> tuple[Floats, tuple[str, ...]]:
    """Return where a header places its voxels, in mm (RAS+), and notes on that."""
    from nibabel.spatialimages import HeaderDataError

    notes: list[str] = []
    affine = np.array(header.get_best_affine(), dtype=np.float64)
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    if sform_is_empty(header):
        affine = np.asarray(header.get_qform())
        notes.append("The header's sform is empty: the qform places this CT.")
    elif sform > 0 and qform > 0:
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
