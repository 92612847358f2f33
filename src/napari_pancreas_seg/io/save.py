"""From a mask, a CT or a map to a file on the grid of the CT's source."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io import nifti_write
from napari_pancreas_seg.io.files import same_file
from napari_pancreas_seg.io.raw import MAP_SLOPE
from napari_pancreas_seg.volume import CTVolume, Grid

__all__ = ["OnGrid", "save_ct", "save_map", "save_mask"]

Array = npt.NDArray[Any]

_WRITABLE = (".nii.gz", ".nii")


class OnGrid(Protocol):
    """Values with a grid of their own, such as a probability or an attention map."""

    @property
    def values(self) -> Array:
        """Values in [0, 1], shape (Z, H, W)."""

    @property
    def grid(self) -> Grid:
        """Where they lie."""


def save_mask(mask: Array, like: CTVolume, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a mask onto the grid of a CT's source, bit for bit.

    Shape, affine and every field of geometry are those of the source's header; nothing else of
    that header is copied. The file appears whole or not at all.

    Parameters
    ----------
    mask : ndarray, shape (Z, Y, X)
        Whole numbers from 0 to 255 (bool too) in display order.
    like : CTVolume
        The CT that the mask belongs to.
    path : str or Path
        Where to write: ``.nii.gz`` or ``.nii``. Its folder is created if needed.
    overwrite : bool
        Whether an existing file may be replaced. The CT itself never is.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    PancreasSegError
        If the mask does not lie on the CT's grid or is no mask, or the file cannot be written.
    """
    path = _writable(path, like)
    mask = np.asarray(mask)
    if mask.dtype != np.uint8:
        mask = _as_uint8(mask)
    return _save_like(like.to_source_order(mask), like, path, overwrite)


def save_ct(volume: CTVolume, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a CT in its source's orientation, shape and affine.

    Parameters
    ----------
    volume : CTVolume
        The CT; int16 stays int16, float32 stays float32.
    path : str or Path
        Where to write: ``.nii.gz`` or ``.nii``. Its folder is created if needed.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    PancreasSegError
        If the file cannot be written.
    """
    path = _writable(path, volume)
    return _save_like(volume.to_source_order(volume.hu), volume, path, overwrite)


def save_map(
    scalar_map: OnGrid, like: CTVolume, path: str | Path, *, overwrite: bool = False
) -> Path:
    """Write a probability or attention map at its own resolution.

    Axes run as in the CT's source, so that the map overlays the CT in any program that honours
    affines. Values are stored as int16 with a slope of 2⁻¹⁴: [0, 1] to within 0.00003.

    Parameters
    ----------
    scalar_map : ScalarMap
        Values in [0, 1], shape (Z, H, W), and their grid. NaN (not computed) is written as 0.
    like : CTVolume
        The CT that the map belongs to.
    path : str or Path
        Where to write: ``.nii.gz`` or ``.nii``. Its folder is created if needed.
    overwrite : bool
        Whether an existing file may be replaced. The CT itself never is.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    PancreasSegError
        If the file cannot be written.
    """
    path = _writable(path, like)
    values = np.nan_to_num(np.asarray(scalar_map.values, dtype=np.float32), nan=0.0)
    stored = np.rint(np.clip(values, 0.0, 1.0) / MAP_SLOPE).astype(np.int16)
    array, affine = like.grid_to_source_order(stored, scalar_map.grid)
    nifti_write.write(array, affine, path, slope=MAP_SLOPE, code=_world(like), overwrite=overwrite)
    return path


def _as_uint8(mask: Array) -> npt.NDArray[np.uint8]:
    if mask.dtype.kind not in "biuf":
        raise PancreasSegError("A mask holds whole numbers from 0 to 255.")
    with np.errstate(invalid="ignore"):
        small = mask.astype(np.uint8)
    if not np.array_equal(small, mask):
        raise PancreasSegError("A mask holds whole numbers from 0 to 255; this array holds others.")
    return small


def _writable(path: str | Path, like: CTVolume) -> Path:
    path = Path(path)
    if not path.name.lower().endswith(_WRITABLE):
        raise PancreasSegError(f"'{path.name}' cannot be written: end its name in .nii.gz or .nii.")
    if like.source.path is not None and same_file(path, like.source.path):
        raise PancreasSegError(
            f"'{path.name}' is the CT itself and is never overwritten; choose another name."
        )
    return path


def _save_like(array: Array, like: CTVolume, path: Path, overwrite: bool) -> Path:
    if like.source.format == "nifti" and like.source.header is not None:
        nifti_write.write_like(like.source.header, array, path, overwrite=overwrite)
    else:
        nifti_write.write(array, like.source.affine, path, overwrite=overwrite)
    return path


def _world(like: CTVolume) -> int:
    """Return the header's code for the CT's world, so that a map claims the same."""
    if like.source.format == "nifti" and like.source.header is not None:
        header = like.source.header
        return int(header["sform_code"]) or int(header["qform_code"]) or 1
    return 1
