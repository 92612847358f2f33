"""The slice layout: single slices as pictures, a row of ``manifest.csv`` each.

The columns are ``name``, ``patient`` and ``crop_margin_px``; ``images/NAME.jpg`` holds grey = HU
clipped to [0, 255], ``masks/NAME.png`` the mask. ``spacing.csv``, if it is there, holds
``patient, pixel_spacing_mm, slice_spacing_mm``; a patient that it lacks is taken to have pixels of
0.8 mm before cropping.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from napari_pancreas_seg.arrays import Labels
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.table import read_rows
from napari_pancreas_seg.training.data.layouts.cases import PANCREAS
from napari_pancreas_seg.training.data.layouts.listing import (
    DataSetLayout,
    Listing,
    read_picture,
)
from napari_pancreas_seg.volume import CTVolume

NOMINAL_SPACING_MM = 0.8
"""Pixel spacing where none is known: the middle of the range of NIH Pancreas-CT."""
NOMINAL_THICKNESS_MM = 5.0

Spacing = tuple[float, float]


@dataclass(frozen=True)
class SliceRecord:
    """One slice of the slice layout: its two files, and the size of a pixel.

    `spacing_known` is whether pixel and slice spacing are the CT's own; `margin_px` were cut off at
    each side before the rest was enlarged.
    """

    name: str
    patient: str
    image: Path
    mask: Path
    spacing_mm: float
    thickness_mm: float = NOMINAL_THICKNESS_MM
    spacing_known: bool = False
    margin_px: int = 0

    @property
    def slices(self) -> None:
        """All that there is: the one slice."""
        return

    @property
    def files(self) -> tuple[Path, ...]:
        """The two pictures."""
        return self.image, self.mask

    def load(self) -> tuple[CTVolume, Labels]:
        """Read the slice as a volume of one slice, and its mask, both (1, Y, X)."""
        grey, mask = read_picture(self.image, grey=True), read_picture(self.mask) > 0
        if mask.shape != grey.shape:
            raise PancreasSegError(
                f"The mask of {self.name} is {mask.shape} pixels, the image {grey.shape}."
            )
        # A picture's rows run from front to back, its columns from right to left.
        affine = np.diag([-self.spacing_mm, -self.spacing_mm, self.thickness_mm, 1.0])
        volume = CTVolume.from_source_array(
            grey.astype(np.int16).T[:, :, None], affine, path=self.image, name=self.name
        )
        return volume, mask[None].astype(np.uint8)


def read_slice_layout(folder: Path) -> list[SliceRecord]:
    """List the slices of a folder in the slice layout."""
    rows = read_rows(folder / "manifest.csv", {"name", "patient", "crop_margin_px"})
    spacing = _read_spacing(folder / "spacing.csv")
    return [_record(folder, row, spacing) for row in rows]


def _read_spacing(path: Path) -> dict[str, Spacing]:
    """Pixel and slice spacing in mm by patient; none where there is no such file."""
    if not path.exists():
        return {}
    rows = read_rows(path, {"patient", "pixel_spacing_mm", "slice_spacing_mm"})
    try:
        found = {
            row["patient"]: (float(row["pixel_spacing_mm"]), float(row["slice_spacing_mm"]))
            for row in rows
        }
    except ValueError as error:
        raise PancreasSegError(f"{path} must have numbers for its spacings ({error}).") from error
    for patient, spacing in found.items():
        if not all(math.isfinite(mm) and mm > 0 for mm in spacing):
            raise PancreasSegError(f"{path}: the spacing of {patient} is not a positive number.")
    return found


def _record(folder: Path, row: dict[str, str], spacing: dict[str, Spacing]) -> SliceRecord:
    name, patient = ((row[column] or "").strip() for column in ("name", "patient"))
    if not name or not patient:
        raise PancreasSegError(f"{folder}: a row of the manifest names no slice or no patient.")
    if Path(name).name != name:
        raise PancreasSegError(f"{folder}: the manifest's name {name!r} is not a plain file name.")
    image, mask = folder / "images" / f"{name}.jpg", folder / "masks" / f"{name}.png"
    try:
        margin = int(row["crop_margin_px"])
    except ValueError:
        raise PancreasSegError(f"{folder}: crop_margin_px of {name} is not a number.") from None
    # The margins were cut off and the rest blown up to 512 pixels again.
    if not 0 <= margin < 256:
        raise PancreasSegError(f"{folder}: crop_margin_px of {name} is not from 0 to 255.")
    known = patient in spacing
    pixel, thickness = spacing.get(patient, (NOMINAL_SPACING_MM, NOMINAL_THICKNESS_MM))
    pixel *= 1 - margin / 256
    return SliceRecord(name, patient, image, mask, pixel, thickness, known, margin)


LAYOUT = DataSetLayout(
    "slices",
    "manifest.csv with images/ and masks/ (single slices)",
    lambda folder: (folder / "manifest.csv").is_file() and (folder / "images").is_dir(),
    lambda folder: Listing((PANCREAS,), tuple(read_slice_layout(folder))),
)
