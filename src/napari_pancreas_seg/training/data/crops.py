"""Glands without surroundings: pictures of CT and mask, cut to the box around the mask.

A folder holds ``images/NAME.png``, ``masks/NAME.png`` and ``manifest.csv`` with the columns
``name``, ``patient`` and ``spacing_xy_mm``. Grey values are HU from `LOW_HU` to `HIGH_HU`. A part
of the name before the first ``_`` says where the patient comes from: numbers of patients of two
sources may be the same.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.blocks import SOFT_TISSUE_HU
from napari_pancreas_seg.inference.frame import resampling_matrix
from napari_pancreas_seg.training.data.layouts.listing import read_pictures, read_table

LOW_HU, HIGH_HU = -150, 250
SAME_SOURCE = "NIH"
"""Where patients of the slice layout come from: their crops are theirs."""
FEWEST_PIXELS = 4
_COLUMNS = ("name", "patient", "spacing_xy_mm")

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Crop:
    """A gland at the scale of working slices."""

    patient: str
    hu: Bytes  # (H, W), HU clipped to [0, 255]
    target: Bytes  # (H, W), share of each pixel that belongs to the gland, 255 for all of it


def load_crops(folder: Path, mm_per_pixel: float, without: Collection[str] = ()) -> list[Crop]:
    """Read the crops of a folder, but those of patients who are held back.

    PancreasSegError if the manifest lacks a column, a file cannot be read, or two of a pair differ
    in size.
    """
    folder = Path(folder)
    what = f"{folder} holds no crops of glands: its "
    rows = read_table(folder / "manifest.csv", _COLUMNS, what)
    return [_read(folder, row, mm_per_pixel) for row in rows if _patient(row) not in without]


def _patient(row: dict[str, str]) -> str:
    source = row["name"].partition("_")[0]
    return row["patient"] if source == SAME_SOURCE else f"{source}_{row['patient']}"


def _read(folder: Path, row: dict[str, str], mm_per_pixel: float) -> Crop:
    name = row["name"]
    if Path(name).name != name:
        raise PancreasSegError(f"{folder}: the manifest's name {name!r} is not a plain file name.")
    try:
        step = mm_per_pixel / float(row["spacing_xy_mm"])
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise PancreasSegError(f"Crop {name} has no size of a pixel: {error}.") from error
    grey, mask = read_pictures(folder / "images" / f"{name}.png", folder / "masks" / f"{name}.png")
    rows, columns = (_matrix(n, step) for n in grey.shape)
    hu = np.clip(LOW_HU + grey.astype(np.float32) / 255 * (HIGH_HU - LOW_HU), *SOFT_TISSUE_HU)
    target = 255 * mask.astype(np.float32)
    return Crop(
        _patient(row), *(np.rint(rows @ a @ columns.T).astype(np.uint8) for a in (hu, target))
    )


def _matrix(n: int, step: float) -> npt.NDArray[np.float32]:
    """To another pixel size; the last pixels stand for what lies beyond, so that no rim darkens."""
    size = max(FEWEST_PIXELS, int(n / step))
    matrix = resampling_matrix(n, size, (n - 1) / 2 - (size - 1) / 2 * step, step)
    return np.asarray(matrix / matrix.sum(axis=1, keepdims=True))
