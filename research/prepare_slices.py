"""Bring slices, crops of glands, negatives and phantoms to 1 mm a pixel, for `train_torch.py`.

    python research/prepare_slices.py ../shared -o FILE.npz

Slices are cut as the program cuts them for a training (`load_cases`); crops are resampled alone.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image

from napari_pancreas_seg.inference.body import place_frame
from napari_pancreas_seg.inference.frame import FrameSpec, resampling_matrix
from napari_pancreas_seg.training.data.datasets import (
    TrainingSlices,
    cut_out,
    load_cases,
    load_negatives,
    working_frame,
)
from napari_pancreas_seg.training.data.layouts.opening import open_dataset
from phantom import make_phantom

NEGATIVES = ("ct/negatives/chest_1.nii.gz", "ct/negatives/chest_2.nii.gz:40")
PHANTOMS = 16
LOW_HU, RANGE_HU = -150, 400  # of the crops' grey values


def full_slices(folder: Path) -> TrainingSlices:
    """Everything that has surroundings."""
    data = open_dataset(folder / "pancreas-ct")
    return TrainingSlices.join(
        [
            load_cases(data.cases, data.labels),
            load_negatives([str(folder / name) for name in NEGATIVES]),
            *(phantom_slices(seed) for seed in range(1, PHANTOMS + 1)),
        ]
    )


def phantom_slices(seed: int) -> TrainingSlices:
    """Every second slice of a synthetic CT."""
    made = make_phantom(seed)
    chosen = np.arange(seed % 2, len(made.mask), 2)
    placed = place_frame(made.volume.hu, made.volume.spacing, working_frame(FrameSpec()))
    hu, target = cut_out(made.volume, made.mask, chosen, [1], placed)
    return TrainingSlices.of(hu, target, f"phantom {seed}", "phantom")


def rows_of(path: Path) -> list[dict[str, str]]:
    """The lines of a table."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_crop(folder: Path, row: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """HU clipped to [0, 255] and share of gland, both uint8, at 1 mm a pixel."""
    grey = np.asarray(Image.open(folder / "images" / f"{row['name']}.png").convert("L"))
    mask = np.asarray(Image.open(folder / "masks" / f"{row['name']}.png").convert("L")) > 0
    hu = np.clip(grey / 255.0 * RANGE_HU + LOW_HU, 0, 255)
    step = 1.0 / float(row["spacing_xy_mm"])
    matrices = []
    for n in hu.shape:
        # The last pixels stand for what lies beyond, so that no edge is darkened.
        size = max(4, int(np.floor(n / step)))
        matrix = resampling_matrix(n, size, (n - 1) / 2 - (size - 1) / 2 * step, step)
        matrices.append(matrix / matrix.sum(axis=1, keepdims=True))
    rows, columns = matrices
    return tuple(
        np.rint(rows @ a @ columns.T).astype(np.uint8)
        for a in (hu.astype(np.float32), 255.0 * mask.astype(np.float32))
    )


def whose(row: dict[str, str]) -> str:
    """The patient's name: as in the slices if they are there too, else with its source."""
    source = row["name"].split("_")[0]
    return row["patient"] if source == "NIH" else f"{source}_{row['patient']}"


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    slices = full_slices(arguments.folder)
    usable = np.flatnonzero(slices.usable)
    crops = arguments.folder / "gland-crops"
    rows = rows_of(crops / "manifest.csv")
    pairs = [read_crop(crops, row) for row in rows]
    shapes = np.array([hu.shape for hu, _ in pairs])
    np.savez(
        arguments.output,
        hu=slices.hu[usable],
        target=slices.target[usable][..., 0],
        patient=slices.patient[usable],
        kind=slices.kind[usable],
        crop_patient=np.array([whose(row) for row in rows]),
        crop_shape=shapes,
        crop_hu=np.concatenate([hu.ravel() for hu, _ in pairs]),
        crop_target=np.concatenate([target.ravel() for _, target in pairs]),
    )


if __name__ == "__main__":
    main()
