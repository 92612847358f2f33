"""From a path to a CT or a mask, whatever the format."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io import nifti
from napari_pancreas_seg.io.files import explain_os_error
from napari_pancreas_seg.io.hounsfield import AIR_HU, check_hounsfield, scale
from napari_pancreas_seg.io.raw import MAP_SLOPE, RawImage
from napari_pancreas_seg.volume import CTVolume

__all__ = [
    "SUFFIXES",
    "load_ct",
    "load_map",
    "load_mask",
    "looks_like_map",
    "looks_like_mask",
    "stem",
]

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]


class Format(NamedTuple):
    """A format that can be read."""

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[Path], RawImage]
    few_values: Callable[[Path, int, int, int], bool]
    stored_slope: Callable[[Path], float]


_FORMATS = (Format("nifti", (".nii.gz", ".nii"), nifti.read, nifti.few_values, nifti.stored_slope),)

SUFFIXES = tuple(suffix for known in _FORMATS for suffix in known.suffixes)
"""Endings of the files that can be read, lower case, longest first."""

_MANY_LABELS = 128
"""More different values than that, and it is no mask."""


def stem(path: Path) -> str:
    """Name of a file without the ending of its format: ``ct`` for ``ct.nii.gz``."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def load_ct(path: str | Path) -> CTVolume:
    """Load a CT.

    Parameters
    ----------
    path : str or Path
        A ``.nii`` or ``.nii.gz`` file with one volume in Hounsfield units.

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
    path = Path(path)
    found, raw = _read(path)
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
    try:
        shift, more = check_hounsfield(volume.hu)
    except PancreasSegError as error:
        raise PancreasSegError(f"'{path.name}' {error}.") from None
    if shift:
        np.add(volume.hu, np.asarray(shift, volume.hu.dtype), out=volume.hu)
    notes += more
    for note in notes:
        logger.info("%s", note)
    return CTVolume(volume.hu, volume.grid, volume.source, notes)


def load_mask(path: str | Path) -> tuple[npt.NDArray[np.uint8], CTVolume]:
    """Load a mask or label map.

    Parameters
    ----------
    path : str or Path
        A ``.nii`` or ``.nii.gz`` file with integers from 0 to 255 (stored in any type).

    Returns
    -------
    mask : ndarray, shape (Z, Y, X), uint8
        The labels in display order.
    volume : CTVolume
        The grid they lie on and the source they came from; its ``hu`` is the mask.

    Raises
    ------
    PancreasSegError
        If the file cannot be read or does not hold labels.
    """
    path = Path(path)
    found, raw = _read(path)
    scaled = scale(raw.stored, raw.slope, raw.intercept).values
    if scaled.dtype != np.int16 or scaled.min() < 0 or scaled.max() > 255:
        raise PancreasSegError(
            f"'{path.name}' is no mask: a mask holds whole numbers from 0 to 255 only."
        )
    volume = _in_display_order(path, found, raw, scaled.astype(np.uint8))
    return volume.hu, volume


def load_map(path: str | Path) -> tuple[npt.NDArray[np.float32], CTVolume]:
    """Load a probability or attention map that `save_map` wrote.

    Parameters
    ----------
    path : str or Path
        A ``.nii`` or ``.nii.gz`` file with values from 0 to 1.

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
        _check_path(path)
        return _format(path).stored_slope(path) == MAP_SLOPE
    except PancreasSegError:
        return False


def looks_like_mask(path: str | Path) -> bool:
    """Whether a file holds a mask rather than a CT; False if it cannot be read.

    A mask holds few different whole numbers from 0 to 255. For a CT the header or the first
    slices with tissue settle the matter.
    """
    path = Path(path)
    try:
        _check_path(path)
        return _format(path).few_values(path, 0, 255, _MANY_LABELS)
    except PancreasSegError:
        return False


def _check_path(path: Path) -> None:
    try:
        if path.is_dir():
            raise PancreasSegError(f"'{path.name}' is a folder; give a CT as .nii or .nii.gz.")
        if not path.exists():
            raise PancreasSegError(f"'{path}' does not exist; check the path.")
        if not path.is_file():
            raise PancreasSegError(f"'{path.name}' is not a regular file; give a CT as .nii.gz.")
    except OSError as error:
        raise PancreasSegError(
            f"'{path.name}' cannot be read: {explain_os_error(error)}."
        ) from error


def _format(path: Path) -> Format:
    for known in _FORMATS:
        if path.name.lower().endswith(known.suffixes):
            return known
    raise PancreasSegError(
        f"'{path.name}' is of no known format; give a CT as NIfTI (.nii or .nii.gz)."
    )


def _read(path: Path) -> tuple[str, RawImage]:
    _check_path(path)
    known = _format(path)
    return known.name, known.read(path)


def _in_display_order(path: Path, found: str, raw: RawImage, values: Array) -> CTVolume:
    try:
        return CTVolume.from_source_array(
            values, raw.affine, path=path, format=found, header=raw.header
        )
    except PancreasSegError as error:
        raise PancreasSegError(
            f"'{path.name}' cannot be placed in space because its affine is singular or not "
            "finite; repair its header or convert it again."
        ) from error
