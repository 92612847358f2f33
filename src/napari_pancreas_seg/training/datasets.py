"""Data sets: slices with masks, brought to one physical scale for training.

The slice layout is a folder with ``manifest.csv`` (columns ``name``, ``patient``,
``crop_margin_px``), ``images/NAME.jpg`` (grey = HU clipped to [0, 255]) and
``masks/NAME.png``, as NIH Pancreas-CT slices come. Their spacing is not stored: a pixel
is taken as 0.8 mm before cropping, and augmentation covers the rest.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from napari_pancreas_seg.data.phantom import make_phantom
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.preprocessing import FrameSpec, place_frame
from napari_pancreas_seg.io import load_ct
from napari_pancreas_seg.volume import CTVolume

__all__ = [
    "SliceRecord",
    "TrainingSlices",
    "fold_of_patients",
    "load_negatives",
    "load_phantoms",
    "load_slices",
    "read_slice_layout",
]

Array = npt.NDArray[Any]
_log = logging.getLogger(__name__)

NOMINAL_SPACING_MM = 0.8
"""Pixel spacing where none is stored: the middle of the set's range, 0.66 to 0.98 mm."""
NOMINAL_THICKNESS_MM = 5.0
WORKING_FRAME = FrameSpec(height=304, width=400, mm_per_pixel=1.0)
"""What is kept of a slice for training: room around the network's frame to turn and shift."""


@dataclass(frozen=True)
class SliceRecord:
    """One slice of the slice layout.

    Parameters
    ----------
    name, patient : str
        Name of the slice, and the patient it belongs to.
    image, mask : Path
        The two files.
    spacing_mm : float
        Nominal size of a pixel.
    """

    name: str
    patient: str
    image: Path
    mask: Path
    spacing_mm: float

    def load(self) -> tuple[CTVolume, npt.NDArray[np.uint8]]:
        """Read the slice as a volume of one slice, and its mask, both (1, Y, X).

        Raises
        ------
        PancreasSegError
            If a file is missing or damaged, or the two differ in size.
        """
        try:
            with Image.open(self.image) as picture:
                grey = np.asarray(picture.convert("L"))
            with Image.open(self.mask) as picture:
                mask = (np.asarray(picture) > 0).astype(np.uint8)
        except (OSError, UnidentifiedImageError, ValueError) as error:
            raise PancreasSegError(f"Slice {self.name} cannot be read: {error}.") from error
        if mask.shape != grey.shape:
            raise PancreasSegError(
                f"Slice {self.name}: the mask is {mask.shape} pixels, the image {grey.shape}."
            )
        # A picture's rows run from front to back, its columns from right to left.
        affine = np.diag([-self.spacing_mm, -self.spacing_mm, NOMINAL_THICKNESS_MM, 1.0])
        volume = CTVolume.from_source_array(
            grey.astype(np.int16).T[:, :, None], affine, path=self.image
        )
        return volume, mask[None]


@dataclass(frozen=True, eq=False)
class TrainingSlices:
    """Slices at the working scale, ready to be augmented.

    Parameters
    ----------
    hu : ndarray, shape (N, H, W), uint8
        HU clipped to [0, 255].
    target : ndarray, shape (N, H, W), uint8
        Share of each pixel that is pancreas, 255 for all of it: area-averaged, so that
        what resampling blurs is not lost.
    patient : ndarray, shape (N,), str
        Whose slice it is.
    kind : ndarray, shape (N,), str
        ``"patient"``, ``"negative"`` (a CT without pancreas) or ``"phantom"``.
    """

    hu: npt.NDArray[np.uint8]
    target: npt.NDArray[np.uint8]
    patient: npt.NDArray[np.str_]
    kind: npt.NDArray[np.str_]

    @classmethod
    def join(cls, parts: Iterable[TrainingSlices]) -> TrainingSlices:
        """All slices of several sets."""
        parts = list(parts)
        return cls(
            np.concatenate([p.hu for p in parts]),
            np.concatenate([p.target for p in parts]),
            np.concatenate([p.patient for p in parts]),
            np.concatenate([p.kind for p in parts]),
        )


def read_slice_layout(folder: Path) -> list[SliceRecord]:
    """List the slices of a folder in the slice layout.

    Raises
    ------
    PancreasSegError
        If the manifest is missing, lacks a column, or names a file that is not there.
    """
    manifest = Path(folder) / "manifest.csv"
    try:
        with manifest.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PancreasSegError(
            f"{folder} is not a data set in the slice layout: its manifest.csv cannot be read "
            f"({error})."
        ) from error
    if not rows or not {"name", "patient", "crop_margin_px"} <= rows[0].keys():
        raise PancreasSegError(
            f"{manifest} must have the columns name, patient and crop_margin_px, and a row a slice."
        )
    return [_record(Path(folder), row) for row in rows]


def _record(folder: Path, row: dict[str, str]) -> SliceRecord:
    name = row["name"]
    if Path(name).name != name:
        raise PancreasSegError(f"{folder}: the manifest's name {name!r} is not a plain file name.")
    image, mask = folder / "images" / f"{name}.jpg", folder / "masks" / f"{name}.png"
    for path in (image, mask):
        if not path.is_file():
            raise PancreasSegError(f"{folder}: {path.relative_to(folder)} is missing.")
    try:
        margin = int(row["crop_margin_px"])
    except (TypeError, ValueError):
        raise PancreasSegError(f"{folder}: crop_margin_px of {name} is not a number.") from None
    # The margins were cut off and the rest blown up to 512 pixels again.
    return SliceRecord(name, row["patient"], image, mask, NOMINAL_SPACING_MM * (1 - margin / 256))


def fold_of_patients(patients: Sequence[str], folds: int, fold: int, seed: int) -> list[str]:
    """Patients of one fold, a pure function of the patients' names and the seed.

    Raises
    ------
    PancreasSegError
        If there are fewer patients than folds, or no fold of that number.
    """
    unique = sorted(set(patients))
    if not 0 <= fold < folds or not 2 <= folds <= len(unique):
        raise PancreasSegError(
            f"Fold {fold} of {folds} is not possible with {len(unique)} patients."
        )
    order = np.random.default_rng(seed).permutation(len(unique))
    return sorted(unique[i] for i in order[fold::folds])


def load_slices(records: Sequence[SliceRecord]) -> TrainingSlices:
    """Bring the slices of the slice layout to the working scale."""
    parts = []
    for record in records:
        volume, mask = record.load()
        parts.append(_working(volume, mask, [0], record.patient, "patient"))
    return TrainingSlices.join(parts)


def load_negatives(paths: Sequence[str]) -> TrainingSlices:
    """Slices of CTs that show no pancreas, at the working scale.

    Parameters
    ----------
    paths : sequence of str
        Files; ``FILE:40`` leaves out the lowest 40 slices, ``FILE:40:90`` keeps slices 40
        to 89, counted from the feet.

    Raises
    ------
    PancreasSegError
        If a file cannot be read or no slice is left of it.
    """
    parts = []
    for text in paths:
        found = re.fullmatch(r"(.+?)(?::(\d+))?(?::(\d+))?", text)
        assert found is not None
        volume = load_ct(Path(found[1]))
        last = min(int(found[3] or volume.grid.shape[0]), volume.grid.shape[0])
        chosen = range(int(found[2] or 0), last)
        if not chosen:
            raise PancreasSegError(f"{text}: no slice is left of {volume.grid.shape[0]}.")
        parts.append(_working(volume, None, chosen, volume.name, "negative"))
    return TrainingSlices.join(parts)


def load_phantoms(seeds: Iterable[int]) -> TrainingSlices:
    """Every second slice of synthetic phantoms, at the working scale."""
    parts = []
    for seed in seeds:
        phantom = make_phantom(seed)
        chosen = range(seed % 2, phantom.mask.shape[0], 2)
        parts.append(_working(phantom.volume, phantom.mask, chosen, f"phantom {seed}", "phantom"))
    return TrainingSlices.join(parts)


def _working(
    volume: CTVolume, mask: Array | None, chosen: Sequence[int], patient: str, kind: str
) -> TrainingSlices:
    """Cut the working frame out of the chosen slices."""
    rows, columns = place_frame(volume.hu, volume.spacing, WORKING_FRAME).into()
    hu = np.empty((len(chosen), WORKING_FRAME.height, WORKING_FRAME.width), np.uint8)
    target = np.zeros_like(hu)
    for i, z in enumerate(chosen):
        clipped = np.clip(volume.hu[z], 0, 255).astype(np.float32)
        hu[i] = np.rint(rows @ clipped @ columns.T)
        if mask is not None and mask[z].any():
            target[i] = np.rint(255.0 * (rows @ mask[z].astype(np.float32) @ columns.T))
    n = len(chosen)
    return TrainingSlices(hu, target, np.full(n, patient), np.full(n, kind))
