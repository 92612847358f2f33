"""From a path to a CT or a mask, whatever the format."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.hounsfield import AIR_HU, scale, to_hounsfield
from napari_pancreas_seg.io.dicom import read as dicom
from napari_pancreas_seg.io.dicom.read import is_dicom
from napari_pancreas_seg.io.dicom.seg_read import read_segmentation
from napari_pancreas_seg.io.files import explain_os_error
from napari_pancreas_seg.io.itk import read as itk
from napari_pancreas_seg.io.nifti import read as nifti
from napari_pancreas_seg.io.raw import RawImage
from napari_pancreas_seg.io.suffixes import (
    DICOM,
    METAIMAGE,
    NIFTI,
    NRRD,
    list_suffixes,
    stem,
)
from napari_pancreas_seg.volume import CTVolume

__all__ = [
    "SUFFIXES",
    "check_ct",
    "is_dicom",
    "load_ct",
    "load_map",
    "load_mask",
    "load_unchecked",
    "looks_like_map",
    "looks_like_mask",
]

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]


class Format(NamedTuple):
    """A format that can be read."""

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[Path], RawImage]
    few_values: Callable[[Path, int, int, int], bool]
    is_map: Callable[[Path], bool]


_FORMATS = (
    Format("nifti", NIFTI, nifti.read, nifti.few_values, nifti.is_map),
    Format("nrrd", NRRD, itk.read, itk.few_values, itk.is_map),
    Format("metaimage", METAIMAGE, itk.read, itk.few_values, itk.is_map),
)

_DICOM = Format(
    "dicom",
    (*DICOM, ".zip"),
    dicom.read,
    lambda path, low, high, most: dicom.is_segmentation(path),
    lambda path: False,
)
"""Not among the others: its files have any name or none that tells, and a folder is one too."""

SUFFIXES = tuple(suffix for known in _FORMATS for suffix in known.suffixes)
"""Endings of the files that can be read, lower case, longest first."""

_MANY_LABELS = 128
"""More different values than that, and it is no mask."""


def load_ct(path: str | Path, *, series: str | int | None = None) -> CTVolume:
    """Load a CT.

    Parameters
    ----------
    path : str or Path
        A file with one volume in Hounsfield units: NIfTI (``.nii.gz``, ``.nii``), NRRD
        (``.nrrd``, ``.nhdr``) or MetaImage (``.mha``, ``.mhd``). Or DICOM: a folder or a zip
        with a series, or any one of its files, whatever its name.
    series : str or int, optional
        Which series of several in one DICOM folder: its number, its UID, or its place in the
        list (``"#2"``) that the refusal gives. Not needed where one of them is a CT volume.

    Returns
    -------
    CTVolume
        The CT in display order: int16 if its values are integers that fit, else float32.
        Voxels without a value (NaN, infinite) become air. What was unusual is in ``notes``.

    Raises
    ------
    PancreasSegError
        If the file cannot be read, is damaged, or does not hold a CT in Hounsfield units.
    """
    volume, _ = load_unchecked(path, series=series)
    return check_ct(volume)


def load_unchecked(path: str | Path, *, series: str | int | None = None) -> tuple[CTVolume, str]:
    """Load a volume without asking whether its values can be Hounsfield units.

    Parameters
    ----------
    path, series
        See `load_ct`.

    Returns
    -------
    volume : CTVolume
        The volume in display order.
    type_name : str
        Type of the numbers in the file; empty if that does not say much, as with DICOM.

    Raises
    ------
    PancreasSegError
        If the file cannot be read or is damaged.
    """
    path = Path(path)
    found, raw = _read(path, series)
    notes = raw.notes
    scaled = scale(raw.stored, raw.slope, raw.intercept)
    if scaled.invalid == scaled.values.size:
        raise PancreasSegError(
            f"'{path.name}' holds no values: every voxel is NaN or infinite; export it again."
        )
    if scaled.invalid:
        notes += (
            f"{scaled.invalid} voxels of this CT had no value (NaN or infinite): they were taken "
            f"as air ({AIR_HU} HU).",
        )
    volume = _in_display_order(path, found, raw, scaled.values)
    return replace(volume, notes=notes), raw.type_name


def check_ct(volume: CTVolume) -> CTVolume:
    """Take a volume that was read for a CT, if it can be one.

    Parameters
    ----------
    volume : CTVolume
        From `load_unchecked`; its values are changed where an intercept was lost.

    Raises
    ------
    PancreasSegError
        If its values cannot be Hounsfield units.
    """
    path = volume.source.path or Path("CT")
    hu, more = to_hounsfield(volume.hu, f"'{path.name}'", reuse=True)
    notes = volume.notes + more
    for note in notes:
        logger.info("%s", note)
    return replace(volume, hu=hu, notes=notes)


def load_mask(path: str | Path) -> tuple[npt.NDArray[np.uint8], CTVolume]:
    """Load a mask or label map.

    Parameters
    ----------
    path : str or Path
        A file with integers from 0 to 255 (stored in any type): NIfTI, NRRD, MetaImage or
        DICOM-SEG.

    Returns
    -------
    mask : ndarray, shape (Z, Y, X), uint8
        The labels in display order.
    volume : CTVolume
        The grid they lie on and the source they came from; its ``hu`` is the mask. What was
        unusual is in ``notes``.

    Raises
    ------
    PancreasSegError
        If the file cannot be read or does not hold labels.
    """
    path = Path(path)
    if (known := _format(path)) is _DICOM:
        if path.is_dir():
            raise PancreasSegError(f"'{path.name}' is a folder; give the file of a mask.")
        found, raw = known.name, read_segmentation(path)
    else:
        found, raw = known.name, known.read(path)
    labels = raw.stored
    if labels.dtype != np.uint8 or (raw.slope, raw.intercept) != (1.0, 0.0):
        scaled = scale(labels, raw.slope, raw.intercept).values
        if scaled.dtype != np.int16 or scaled.min() < 0 or scaled.max() > 255:
            raise PancreasSegError(
                f"'{path.name}' is no mask: a mask holds whole numbers from 0 to 255 only."
            )
        labels = scaled.astype(np.uint8)
    volume = replace(_in_display_order(path, found, raw, labels), notes=raw.notes)
    return volume.hu, volume


def load_map(path: str | Path) -> tuple[npt.NDArray[np.float32], CTVolume]:
    """Load a probability or attention map that `save_map` wrote.

    Parameters
    ----------
    path : str or Path
        A file with values from 0 to 1, of any format of `load_ct`.

    Returns
    -------
    values : ndarray, shape (Z, H, W), float32
        The map in display order.
    volume : CTVolume
        The grid it lies on and the source it came from; its ``hu`` is the map.

    Raises
    ------
    PancreasSegError
        If the file cannot be read or holds other values.
    """
    path = Path(path)
    found, raw = _read(path)
    values = scale(raw.stored, raw.slope, raw.intercept).values.astype(np.float32)
    if values.min() < 0 or values.max() > 1:
        raise PancreasSegError(f"'{path.name}' is no map: a map holds values from 0 to 1 only.")
    volume = _in_display_order(path, found, raw, values)
    return volume.hu, volume


def looks_like_map(path: str | Path) -> bool:
    """Whether `save_map` wrote this file, as its header tells; False if it cannot be read."""
    path = Path(path)
    try:
        return _format(path).is_map(path)
    except PancreasSegError:
        return False


def looks_like_mask(path: str | Path) -> bool:
    """Whether a file holds a mask rather than a CT; False if it cannot be read.

    A mask holds few different whole numbers from 0 to 255. For a CT the header or the first
    slices with tissue settle the matter.
    """
    path = Path(path)
    try:
        return _format(path).few_values(path, 0, 255, _MANY_LABELS)
    except PancreasSegError:
        return False


def _check_path(path: Path) -> None:
    try:
        if not path.exists():
            raise PancreasSegError(f"'{path}' does not exist; check the path.")
        if path.is_dir() and not is_dicom(path):
            raise PancreasSegError(
                f"'{path.name}' is a folder without DICOM files; give a CT as .nii.gz, or the "
                "folder of a DICOM series."
            )
        if not path.is_file() and not path.is_dir():
            raise PancreasSegError(f"'{path.name}' is not a regular file; give a CT as .nii.gz.")
    except OSError as error:
        raise PancreasSegError(
            f"'{path.name}' cannot be read: {explain_os_error(error)}."
        ) from error


def _format(path: Path) -> Format:
    _check_path(path)
    if path.is_dir():
        return _DICOM
    for known in (*_FORMATS, _DICOM):
        if path.name.lower().endswith(known.suffixes):
            return known
    if is_dicom(path):
        return _DICOM
    raise PancreasSegError(
        f"'{path.name}' is of no known format; give a CT as {list_suffixes(SUFFIXES)}, or DICOM."
    )


def _read(path: Path, series: str | int | None = None) -> tuple[str, RawImage]:
    known = _format(path)
    if known is _DICOM:
        return known.name, dicom.read(path, series)
    if series is not None:
        raise PancreasSegError(
            f"'{path.name}' is not DICOM, so no series of it can be chosen; leave series "
            "(--series) out."
        )
    return known.name, known.read(path)


def _in_display_order(path: Path, found: str, raw: RawImage, values: Array) -> CTVolume:
    try:
        return CTVolume.from_source_array(
            values,
            raw.affine,
            path=path,
            format=found,
            header=raw.header,
            name=stem(path),
            reuse=True,  # nobody else has it
        )
    except PancreasSegError as error:
        raise PancreasSegError(
            f"'{path.name}' cannot be placed in space because its affine is singular or not "
            "finite; repair its header or convert it again."
        ) from error
