"""What the command line makes of real CTs: slices that show the full frame, and whole CTs.

usage: python benchmarks/real_cts.py slices DATASET [--model benchmarks/models/fold0]
       python benchmarks/real_cts.py ct CT REFERENCE [--model default]

The first writes every slice that was not cropped, of the patients that the model's training never
saw, as a CT of its own, runs `segment --no-postprocess` on the folder and pools the voxels of each
patient. The second runs `segment` on a CT and sets volume, slices and Dice beside a reference.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from napari_pancreas_seg import io
from napari_pancreas_seg.model.bundle import load_card
from napari_pancreas_seg.training.data.layouts.slices import SliceRecord, read_slice_layout
from napari_pancreas_seg.training.judge.scores import summarise
from napari_pancreas_seg.training.judge.seen import patients_seen


def segment(*arguments: str) -> None:
    """Run the command line."""
    command = [sys.executable, "-m", "napari_pancreas_seg", "segment", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def voxels(path: Path) -> np.ndarray:
    """A mask's foreground."""
    return np.asarray(nib.load(path).dataobj) > 0


def full_frame(dataset: Path, model: str) -> list[SliceRecord]:
    """Slices of patients that the model never saw, shown whole."""
    known = patients_seen([load_card(model)])
    return [r for r in read_slice_layout(dataset) if r.patient not in known and r.margin_px == 0]


def score_slices(dataset: Path, model: str) -> dict[str, float]:
    """Dice of each patient, all voxels pooled."""
    overlap: dict[str, np.ndarray] = {}
    references: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as name:
        cts, out = Path(name, "cts"), Path(name, "out")
        cts.mkdir()
        records = full_frame(dataset, model)
        if not records:
            sys.exit("the model was trained on every patient of this data set")
        for record in records:
            volume, mask = record.load()
            io.save_ct(volume, cts / f"{record.name}.nii.gz")
            # In the order of axes in which files have it.
            references[record.name] = volume.to_source_order(mask) > 0
        segment(str(cts), "-o", str(out), "--model", model, "--no-postprocess")
        for record in records:
            found = voxels(out / f"{record.name}_mask.nii.gz")
            true = references[record.name]
            counts = np.array([2 * (found & true).sum(), found.sum() + true.sum()], float)
            overlap[record.patient] = overlap.get(record.patient, 0) + counts
    return {patient: both / total for patient, (both, total) in sorted(overlap.items())}


def score_ct(ct: Path, reference: Path, model: str) -> dict[str, object]:
    """Volume, slices and Dice of a mask beside those of a reference."""
    with tempfile.TemporaryDirectory() as name:
        mask = Path(name, "mask.nii.gz")
        segment(str(ct), "-o", str(mask), "--model", model)
        found, true = voxels(mask), voxels(reference)
    ml = float(np.prod(nib.load(reference).header.get_zooms()[:3])) / 1000
    both = 2 * (found & true).sum() / max(1, found.sum() + true.sum())
    return {
        "mL": (found.sum() * ml, true.sum() * ml),
        "slices": tuple(_ends(mask) for mask in (found, true)),
        "Dice": both,
    }


def _ends(mask: np.ndarray) -> str:
    shown = np.flatnonzero(mask.any(axis=(0, 1)))
    return f"{shown[0]} to {shown[-1]}" if shown.size else "none"


def main() -> None:
    """Score slices or a CT."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_subparsers(dest="what", required=True)
    slices = what.add_parser("slices", help="slices of a data set that show the full frame")
    slices.add_argument("dataset", type=Path)
    slices.add_argument("--model", default="benchmarks/models/fold0")
    ct = what.add_parser("ct", help="a whole CT")
    ct.add_argument("ct", type=Path)
    ct.add_argument("reference", type=Path)
    ct.add_argument("--model", default="default")
    asked = parser.parse_args()
    if asked.what == "slices":
        dice = score_slices(asked.dataset, asked.model)
        for patient, value in dice.items():
            print(f"{patient}  {value:.4f}")
        s = summarise(dice.values())
        print(" ".join(f"{k} {s[k]:.4f}" for k in ("mean", "median", "worst")), "n", s["n"])
    else:
        found = score_ct(asked.ct, asked.reference, asked.model)
        print("mask and reference: {:.1f} and {:.1f} mL".format(*found["mL"]), end="; ")
        print("slices {} and {}".format(*found["slices"]), end="; ")
        print(f"Dice {found['Dice']:.3f}")


if __name__ == "__main__":
    main()
