"""True masks of the slices beside those to learn from, for `train_mend.py`.

    python research/true_neighbours.py FILE.npz ../shared -o OUT.npz --hold-out 0002,0006,...

`gland-volumes` holds whole glands of some of the patients, `FILE.npz` is by `prepare_slices.py`. A
gland is laid on a slice by the middle of the slice's own mask, and left out if the two differ.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import nibabel as nib
import numpy as np

from napari_pancreas_seg.inference.frame import resampling_matrix
from napari_pancreas_seg.mask.metrics import dice

FARTHEST_MM, LEAST_DICE = 8.5, 0.9


def middle(share: np.ndarray) -> np.ndarray:
    """Centre of mass (y, x)."""
    sums = share.sum(1), share.sum(0)
    return np.array([(np.arange(len(s)) * s).sum() / s.sum() for s in sums])


def main() -> None:
    """Write masks as bits, their rows in the file of slices, and how many mm they are away."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slices", type=Path)
    parser.add_argument("shared", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--hold-out", default="")
    asked = parser.parse_args()
    with (asked.shared / "pancreas-ct" / "manifest.csv").open(encoding="utf-8") as file:
        slices = list(csv.DictReader(file))
    with (asked.shared / "gland-volumes" / "manifest.csv").open(encoding="utf-8") as file:
        glands = {r["patient"]: r for r in csv.DictReader(file) if r["name"].startswith("NIH")}
    with np.load(asked.slices) as file:
        target, rows = file["target"], np.flatnonzero(file["kind"] == "patient")
    bits, of, mm = [], [], []
    for patient in sorted(glands.keys() - set(asked.hold_out.split(","))):
        name = asked.shared / "gland-volumes" / glands[patient]["name"]
        gland = np.asarray(nib.load(name).dataobj).astype(np.float32)
        pixel, _, step = (float(each) for each in glands[patient]["spacing_mm"].split("x"))
        for row, listed in zip(rows, slices, strict=True):
            if listed["patient"] != patient:
                continue
            k, share = int(listed["slice_index"]), target[row] / 255.0
            there = np.rot90(gland[:, :, k])
            start = middle(there) - middle(share) / pixel
            down, across = (
                resampling_matrix(n_in, n, at, 1 / pixel)
                for n_in, n, at in zip(there.shape, share.shape, start, strict=True)
            )
            if dice(down @ there @ across.T > 0.5, share > 0.5) < LEAST_DICE:
                continue
            reach = int(FARTHEST_MM / step)
            for n in {*range(-reach, reach + 1)} - {0}:
                if 0 <= k + n < gland.shape[2]:
                    mask = down @ np.rot90(gland[:, :, k + n]) @ across.T > 0.5
                    bits.append(np.packbits(mask))
                    of.append(row)
                    mm.append(abs(n) * step)
    np.savez(asked.output, bits=np.array(bits), row=np.array(of), mm=np.array(mm))


if __name__ == "__main__":
    main()
