"""True masks of the slices beside those to learn from, for `train_mend.py`.

    python research/true_neighbours.py FILE.npz ../shared -o OUT.npz --hold-out 0002,0006,...

`gland-volumes` holds whole glands of those that the crops show and of some of the patients,
`FILE.npz` is by `prepare_slices.py`. A gland is laid on a slice by the middle of the slice's own
mask, and left out if the two differ.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from napari_pancreas_seg.inference.frame import resampling_matrix
from napari_pancreas_seg.mask.metrics import dice
from prepare_slices import rows_of, whose

FARTHEST_MM, LEAST_DICE = 8.5, 0.9
RIM = 24
"""How far a neighbour is kept beyond a crop, in pixels of 1 mm."""


class Gland:
    """A whole gland, in the order of display."""

    def __init__(self, folder: Path, listed: dict[str, str]) -> None:
        self.voxels = np.asarray(nib.load(folder / listed["name"]).dataobj) > 0
        self.pixel, _, self.step = (float(each) for each in listed["spacing_mm"].split("x"))
        self.mirrored = listed["name"].startswith("MSD")

    def plane(self, k: int) -> np.ndarray:
        """One slice (512, 512), float32."""
        plane = np.rot90(self.voxels[:, :, k])
        return (np.fliplr(plane) if self.mirrored else plane).astype(np.float32)

    def near(self, k: int) -> Iterator[tuple[np.ndarray, float]]:
        """The slices beside one, and how many mm they are away."""
        reach = int(FARTHEST_MM / self.step)
        for n in {*range(-reach, reach + 1)} - {0}:
            if 0 <= k + n < self.voxels.shape[2]:
                yield self.plane(k + n), abs(n) * self.step


def middle(share: np.ndarray) -> np.ndarray:
    """Centre of mass (y, x)."""
    sums = share.sum(1), share.sum(0)
    return np.array([(np.arange(len(s)) * s).sum() / s.sum() for s in sums])


def of_slices(
    slices: Path, shared: Path, glands: dict[str, Gland]
) -> Iterator[tuple[int, np.ndarray, float]]:
    """Row of a slice, mask of a neighbour at 1 mm a pixel, mm."""
    listed = rows_of(shared / "pancreas-ct" / "manifest.csv")
    with np.load(slices) as file:
        target, rows = file["target"], np.flatnonzero(file["kind"] == "patient")
    for row, each in zip(rows, listed, strict=True):
        gland = glands.get(each["patient"])
        if gland is None:
            continue
        k, share = int(each["slice_index"]), target[row] / 255.0
        there = gland.plane(k)
        start = middle(there) - middle(share) / gland.pixel
        down, across = (
            resampling_matrix(n_in, n, at, 1 / gland.pixel)
            for n_in, n, at in zip(there.shape, share.shape, start, strict=True)
        )
        if dice(down @ there @ across.T > 0.5, share > 0.5) < LEAST_DICE:
            continue
        for mask, mm in gland.near(k):
            yield int(row), down @ mask @ across.T > 0.5, mm


def of_crops(
    slices: Path, shared: Path, glands: dict[str, Gland]
) -> Iterator[tuple[int, np.ndarray, float]]:
    """Row of a crop, mask of a neighbour about it and `RIM` beyond, mm."""
    with np.load(slices) as file:
        shapes = file["crop_shape"]
    for row, each in enumerate(rows_of(shared / "gland-crops" / "manifest.csv")):
        gland = glands.get(whose(each))
        if gland is None:
            continue
        matrices = []
        for n, first, size in zip(
            (each["height"], each["width"]), (each["y0"], each["x0"]), shapes[row], strict=True
        ):
            step = 1 / gland.pixel
            start = int(first) + (int(n) - 1) / 2 - ((size - 1) / 2 + RIM) * step
            matrices.append(resampling_matrix(512, int(size) + 2 * RIM, start, step))
        down, across = matrices
        for mask, mm in gland.near(int(each["slice_index"])):
            yield row, down @ mask @ across.T > 0.5, mm


def main() -> None:
    """Write masks as bits, their rows in the file of slices, and how many mm they are away."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slices", type=Path)
    parser.add_argument("shared", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--hold-out", default="")
    asked = parser.parse_args()
    folder, held = asked.shared / "gland-volumes", asked.hold_out.split(",")
    listed = {
        each["patient"] if each["name"].startswith("NIH") else f"MSD07_{each['patient']}": each
        for each in rows_of(folder / "manifest.csv")
    }
    glands = {name: Gland(folder, each) for name, each in listed.items() if name not in held}
    found = {}
    for prefix, of in (("", of_slices), ("crop_", of_crops)):
        rows, masks, mm = zip(*of(asked.slices, asked.shared, glands), strict=True)
        bits = [np.packbits(mask) for mask in masks]
        found |= {f"{prefix}row": np.array(rows), f"{prefix}mm": np.array(mm)}
        found[f"{prefix}bits"] = np.concatenate(bits)
        found[f"{prefix}end"] = np.cumsum([len(each) for each in bits])
        found[f"{prefix}shape"] = np.array([mask.shape for mask in masks])
    np.savez(asked.output, **found)


if __name__ == "__main__":
    main()
