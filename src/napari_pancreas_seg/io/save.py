"""From a mask, a CT or a map to a file, on the grid of the CT's source and of any format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_pancreas_seg.arrays import Array, Labels
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.dicom import seg_write as dicom_seg
from napari_pancreas_seg.io.dicom.uids import check_uids
from napari_pancreas_seg.io.files import same_file
from napari_pancreas_seg.io.itk import write as itk_write
from napari_pancreas_seg.io.mesh import write as write_surface
from napari_pancreas_seg.io.nifti import write as nifti_write
from napari_pancreas_seg.io.raw import MAP_CONTENT, MAP_SLOPE
from napari_pancreas_seg.io.suffixes import (
    CSV,
    DICOM,
    METAIMAGE,
    NIFTI,
    NRRD,
    SURFACE,
    WRITTEN,
    list_suffixes,
    stem,
)
from napari_pancreas_seg.io.table import table_row, write_table
from napari_pancreas_seg.mask.centreline import CUTS, Cuts
from napari_pancreas_seg.mask.measures import measure
from napari_pancreas_seg.volume import CTVolume, OnSourceGrid, ScalarMap, Volume, mask_array

if TYPE_CHECKING:
    import nibabel

VOLUME_SUFFIXES = WRITTEN
"""Endings of the files that a CT or a map can be written to."""

MASK_SUFFIXES = (*WRITTEN, *DICOM, *SURFACE, *CSV)
"""Endings of the files that a mask can be written to."""


_ROUNDED = 1e-3
"""A map that lies so far outside of 0 to 1 has been rounded."""


def check_can_save(path: str | Path, like: OnSourceGrid) -> None:
    """Refuse, before any work is done, a format that cannot hold a mask of this CT."""
    name = _writable(path, like, MASK_SUFFIXES).name.lower()
    if name.endswith(DICOM):
        check_uids(like)
    elif name.endswith((*NRRD, *METAIMAGE)):
        itk_write.check_axes(like.source.affine, Path(path))


def report_path(mask: Path) -> Path:
    """Path of the report of a DICOM-SEG; PancreasSegError for a mask of another format."""
    if not mask.name.lower().endswith(DICOM):
        raise PancreasSegError(
            f"A report refers to a DICOM-SEG, and '{mask.name}' is not one: its name must end in "
            ".dcm (in a folder: --format dcm), or leave the report out."
        )
    return mask.with_name(f"{stem(mask)}_report.dcm")


def save_mask(
    mask: Array,
    like: OnSourceGrid,
    path: str | Path,
    *,
    overwrite: bool = False,
    card: Mapping[str, Any] | None = None,
    edited: bool = False,
    mint_uids: bool = False,
    cuts: Cuts = CUTS,
) -> Path:
    """Write a mask; as a volume, onto the grid of a CT's source, bit for bit.

    For NIfTI from NIfTI, shape, affine and every field of geometry are those of the source's
    header; nothing else of that header is copied. Else the affine carries over exactly. The file
    appears whole or not at all.

    Parameters
    ----------
    mask : ndarray, shape (Z, Y, X)
        Whole numbers from 0 to 255 (bool too) in display order.
    like : CTVolume or Volume
        The CT that the mask belongs to, or what `load_mask` gave.
    path : str or Path
        Where to write; its folder is created if needed. The ending chooses the format: a volume
        (``.nii.gz``, ``.nii``, ``.nrrd``, ``.mha``), DICOM-SEG that refers to the CT's slices
        (``.dcm``), a closed surface in mm, LPS+ (``.stl``, ``.ply``, ``.obj``), or measurements
        (``.csv``).
    overwrite : bool
        Whether an existing file may be replaced. The CT itself never is. A record beside the mask
        (`Segmentation.save`) stays as it is, and is no longer of it.
    card : Mapping, optional
        Card of the model, for DICOM: names of the labels and of the algorithm.
    edited : bool
        Whether a person has changed what the model found, for DICOM.
    mint_uids : bool
        Whether a DICOM series without UIDs may be given some.
    cuts : tuple of float
        For measurements: where head, body and tail meet, see `measure`.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    PancreasSegError
        If the mask does not lie on the CT's grid or is no mask, or the file cannot be written.
    """
    path = _writable(path, like, MASK_SUFFIXES)
    mask = mask_array(mask)
    if mask.dtype != np.uint8:
        mask = as_uint8(mask)
    ordered = like.to_source_order(mask)
    name = path.name.lower()
    if name.endswith(DICOM):
        dicom_seg.write_segmentation(
            mask, like, path, overwrite=overwrite, card=card, edited=edited, mint_uids=mint_uids
        )
    elif name.endswith(SURFACE):
        write_surface(mask, like.grid, path, overwrite=overwrite)
    elif name.endswith(CSV):
        volume = like if isinstance(like, CTVolume) else CTVolume.of_grid(like.grid, like.source)
        row = table_row(like.name, "", measure(mask, volume, cuts))
        write_table([row], path, overwrite=overwrite)
    else:
        _save_like(ordered, like, path, overwrite)
    return path


def save_ct(volume: CTVolume, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a CT as NIfTI, NRRD or MetaImage in its source's orientation, shape and affine."""
    path = _writable(path, volume, VOLUME_SUFFIXES)
    _save_like(volume.to_source_order(volume.hu), volume, path, overwrite)
    return path


def save_map(
    scalar_map: ScalarMap | Volume, like: OnSourceGrid, path: str | Path, *, overwrite: bool = False
) -> Path:
    """Write a probability or attention map at its own resolution.

    Axes run as in the CT's source, so that the map overlays the CT in any program that honours
    affines. NIfTI stores int16 with a slope of 2⁻¹⁴: [0, 1] to within 0.00003. The others, which
    have no slope, store float32.

    Parameters
    ----------
    scalar_map : ScalarMap or Volume
        Values in [0, 1], shape (Z, H, W), and their grid. NaN (not computed) is written as 0.
    like : CTVolume
        The CT that the map belongs to.
    path, overwrite
        See `save_mask`: a volume only.

    Raises
    ------
    PancreasSegError
        If the values are none of a map, or the file cannot be written.
    """
    path = _writable(path, like, VOLUME_SUFFIXES)
    if not isinstance(scalar_map, ScalarMap | Volume):
        raise PancreasSegError("A map holds values from 0 to 1 and their grid (ScalarMap).")
    values = np.nan_to_num(np.asarray(scalar_map.values, dtype=np.float32), nan=0.0)
    if values.size and (values.min() < -_ROUNDED or values.max() > 1 + _ROUNDED):
        raise PancreasSegError("A map holds values from 0 to 1; this one holds others.")
    values = values.clip(0, 1)
    if path.name.lower().endswith(NIFTI):
        stored = np.rint(values / MAP_SLOPE).astype(np.int16)
        array, affine = like.grid_to_source_order(stored, scalar_map.grid)
        header = nifti_write.header_of(array.shape, affine, _world(like))
        nifti_write.write(array, header, path, slope=MAP_SLOPE, overwrite=overwrite)
    else:
        array, affine = like.grid_to_source_order(values, scalar_map.grid)
        itk_write.write(array, affine, path, content=MAP_CONTENT, overwrite=overwrite)
    return path


def as_uint8(mask: Array) -> Labels:
    """Labels as they are stored; refuses other numbers than 0 to 255. A view of what is bool."""
    if mask.dtype == bool:
        return mask.view(np.uint8)
    if mask.dtype.kind not in "iuf":
        raise PancreasSegError("A mask holds whole numbers from 0 to 255.")
    with np.errstate(invalid="ignore"):
        small = mask.astype(np.uint8)
    if not np.array_equal(small, mask):
        raise PancreasSegError("A mask holds whole numbers from 0 to 255; this array holds others.")
    return small


def _writable(path: str | Path, like: OnSourceGrid, endings: tuple[str, ...]) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise PancreasSegError("A file is written to a path; give its name.")
    path = Path(path)
    if not isinstance(like, OnSourceGrid):
        raise PancreasSegError("The grid is that of a loaded CT or mask; load it first.")
    if not path.name.lower().endswith(endings):
        known = list_suffixes(endings)
        raise PancreasSegError(f"'{path.name}' cannot be written: its name must end in {known}.")
    check_spared(path, like)
    return path


def check_spared(path: Path, like: OnSourceGrid) -> None:
    """Refuse a name under which a file of the CT itself would be replaced."""
    if not isinstance(like, CTVolume):  # a mask, which may be edited in its own file
        return
    own = [like.source.path, *getattr(like.source.header, "files", ())]
    if any(file is not None and same_file(path, file) for file in own):
        raise PancreasSegError(
            f"'{path.name}' is the CT itself and is never overwritten; choose another name."
        )


def _save_like(array: Array, like: OnSourceGrid, path: Path, overwrite: bool) -> None:
    if not path.name.lower().endswith(NIFTI):
        itk_write.write(array, like.source.affine, path, overwrite=overwrite)
    else:
        nifti_write.write(array, _nifti_header(like), path, overwrite=overwrite)


def mask_image(mask: Labels, like: OnSourceGrid) -> nibabel.Nifti1Image:
    """A mask (Z, Y, X) as nibabel reads it from the NIfTI that `save_mask` writes."""
    return nifti_write.image_of(np.array(like.to_source_order(mask)), _nifti_header(like))


def _nifti_header(like: OnSourceGrid) -> Any:
    source = like.source
    if source.format == "nifti" and source.header is not None:
        return nifti_write.header_like(source.header)
    return nifti_write.header_of(source.shape, source.affine)


def _world(like: OnSourceGrid) -> int:
    """Return the header's code for the CT's world, so that a map claims the same."""
    if like.source.format == "nifti" and like.source.header is not None:
        header = like.source.header
        return int(header["sform_code"]) or int(header["qform_code"]) or 1
    return 1
