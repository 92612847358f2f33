"""Glands without surroundings: pictures of CT and mask, cut to the box around the mask.

A folder holds ``images/NAME.png``, ``masks/NAME.png`` and ``manifest.csv`` with the columns
``name``, ``patient`` and ``spacing_xy_mm``. Grey values are HU from `LOW_HU` to `HIGH_HU`. A part
of the name before the first ``_`` says where the patient comes from: numbers of patients of two
sources may be the same.
"""

from __future__ import annotations

import csv
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.body import SOFT_TISSUE_HU
from napari_pancreas_seg.inference.frame import resampling_matrix

__all__ = ["Crop", "load_crops"]

LOW_HU, HIGH_HU = -150, 250
SAME_SOURCE = "NIH"
"""Where patients of the slice layout come from: their crops are theirs."""
FEWEST_PIXELS = 4
_COLUMNS = {"name", "patient", "spacing_xy_mm"}

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Crop:
    """A gland at the scale of working slices.

    Parameters
    ----------
    patient : str
        Whose it is.
    hu : ndarray, shape (H, W), uint8
        HU clipped to [0, 255].
    target : ndarray, shape (H, W), uint8
        Share of each pixel that belongs to the gland, 255 for all of it.
    """

    patient: str
    hu: Bytes
    target: Bytes


def load_crops(folder: Path, mm_per_pixel: float, without: Collection[str] = ()) -> list[Crop]:
    """Read the crops of a folder.

    Parameters
    ----------
    folder : Path
        See the module.
    mm_per_pixel : float
        Size of a pixel of the working slices.
    without : collection of str
        Patients of whom nothing is taken: those held back.

    Raises
    ------
    PancreasSegError
        If the manifest lacks a column, a file cannot be read, or two of a pair differ in size.
    """
    manifest = Path(folder) / "manifest.csv"
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PancreasSegError(
            f"{folder} holds no crops of glands: its manifest.csv cannot be read ({error})."
        ) from error
    if not rows or not rows[0].keys() >= _COLUMNS:
        raise PancreasSegError(
            f"{manifest} must have the columns {', '.join(sorted(_COLUMNS))}, and a row a crop."
        )
    learnt = [row for row in rows if _patient(row) not in without]
    return [_read(Path(folder), row, mm_per_pixel) for row in learnt]


def _patient(row: dict[str, str]) -> str:
    source = row["name"].partition("_")[0]
    return row["patient"] if source == SAME_SOURCE else f"{source}_{row['patient']}"


def _read(folder: Path, row: dict[str, str], mm_per_pixel: float) -> Crop:
    name = row["name"]
    if Path(name).name != name:
        raise PancreasSegError(f"{folder}: the manifest's name {name!r} is not a plain file name.")
    try:
        step = mm_per_pixel / float(row["spacing_xy_mm"])
        with Image.open(folder / "images" / f"{name}.png") as picture:
            grey = np.asarray(picture.convert("L"), np.float32)
        with Image.open(folder / "masks" / f"{name}.png") as picture:
            mask = np.asarray(picture.convert("L")) > 0
    except (OSError, UnidentifiedImageError, TypeError, ValueError, ZeroDivisionError) as error:
        raise PancreasSegError(f"Crop {name} cannot be read: {error}.") from error
    if mask.shape != grey.shape:
        raise PancreasSegError(
            f"Crop {name}: the mask is {mask.shape} pixels, the image {grey.shape}."
        )
    rows, columns = (_matrix(n, step) for n in grey.shape)
    hu = np.clip(LOW_HU + grey / 255 * (HIGH_HU - LOW_HU), *SOFT_TISSUE_HU)
    target = 255 * mask.astype(np.float32)
    return Crop(
        _patient(row), *(np.rint(rows @ a @ columns.T).astype(np.uint8) for a in (hu, target))
    )


def _matrix(n: int, step: float) -> npt.NDArray[np.float32]:
    """To another pixel size; the last pixels stand for what lies beyond, so that no rim darkens."""
    size = max(FEWEST_PIXELS, int(n / step))
    matrix = resampling_matrix(n, size, (n - 1) / 2 - (size - 1) / 2 * step, step)
    return np.asarray(matrix / matrix.sum(axis=1, keepdims=True))
