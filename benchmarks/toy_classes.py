"""Three organs, learnt from synthetic CTs: does a network of several classes train?

Makes phantoms, writes them as a data set in nnU-Net's layout (pancreas, liver, spleen), trains a
small network on most of them by the way of `train`, and segments the others with it. Prints
Dice per class on the phantoms held back, and how long it took. A figure on phantoms says that the
program works, nothing about patients.

    PYTHONPATH=research python benchmarks/toy_classes.py [--phantoms 15] [--steps 300] [-o FOLDER]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from napari_pancreas_seg.mask.metrics import dice
from phantom import make_phantom
from phantom.anatomy import ORGANS

CLASSES = {"pancreas": 1, "liver": 2, "spleen": 3}
COARSE = {"spacing_mm": (5.0, 2.4, 2.4), "shape": (50, 117, 150)}
FRAME = (96, 128, 3.0)
"""Rows, columns and mm per pixel: the whole body, coarsely."""
LEAST_DICE, MOST_MINUTES = 0.8, 10.0


def write_dataset(folder: Path, seeds: range) -> None:
    """Phantoms in nnU-Net's raw layout."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for seed in seeds:
        phantom = make_phantom(seed, **COARSE)
        labels = np.zeros_like(phantom.organs)
        for name, value in CLASSES.items():
            labels[phantom.organs == ORGANS[name]] = value
        volume = phantom.volume
        for array, path in (
            (volume.hu, folder / "imagesTr" / f"phantom{seed:03}_0000.nii.gz"),
            (labels, folder / "labelsTr" / f"phantom{seed:03}.nii.gz"),
        ):
            nib.save(nib.Nifti1Image(volume.to_source_order(array), volume.source.affine), path)
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **CLASSES},
        "numTraining": len(seeds),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def train_model(folder: Path, output: Path, steps: int) -> tuple[Path, list[str]]:
    """Train on most patients; return the bundle and the names of the others."""
    from napari_pancreas_seg.inference.frame import FrameSpec
    from napari_pancreas_seg.model.attention_unet import Architecture
    from napari_pancreas_seg.training.data.layouts.opening import open_dataset
    from napari_pancreas_seg.training.fit.recipe import TrainSettings
    from napari_pancreas_seg.training.run import Split, train

    settings = TrainSettings(
        architecture=Architecture(filters=16, head_bias=-2.0),
        frame=FrameSpec(*FRAME, (0.0, 0.0)),
        steps=steps,
        steps_per_epoch=max(1, steps // 3),
        averaging=0.98,
        learning_rate=3e-3,
        calibration_batches=16,
    )
    data = open_dataset(folder, {name: [name] for name in CLASSES})
    split = Split(folds=5)
    started = time.perf_counter()

    def say(line: str) -> None:
        print(f"{time.perf_counter() - started:6.0f} s  {line}", flush=True)

    bundle = train(data, output, settings, split=split, log=say)
    return bundle, [case.name for case in split.divide(data.cases)[1]]


def score(folder: Path, bundle: Path, names: list[str]) -> dict[str, list[float]]:
    """Dice per class on whole CTs, segmented as ever."""
    from napari_pancreas_seg.inference.segment import LoadedModel, segment
    from napari_pancreas_seg.io import load_ct, load_mask

    model = LoadedModel(bundle)
    found: dict[str, list[float]] = {name: [] for name in CLASSES}
    for name in names:
        volume = load_ct(folder / "imagesTr" / f"{name}_0000.nii.gz")
        truth, _ = load_mask(folder / "labelsTr" / f"{name}.nii.gz")
        result = segment(volume, model)
        for organ, value in CLASSES.items():
            found[organ].append(dice(result.mask == value, truth == value))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phantoms", type=int, default=15)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("-o", "--output", type=Path, help="keep data set and model here")
    asked = parser.parse_args()
    folder = asked.output or Path(tempfile.mkdtemp())
    write_dataset(folder / "data", range(1, asked.phantoms + 1))
    started, computed = time.perf_counter(), time.process_time()
    bundle, held = train_model(folder / "data", folder / "run", asked.steps)
    minutes = (time.perf_counter() - started) / 60
    busy = (time.process_time() - computed) / 60
    found = score(folder / "data", bundle, held)
    means = {organ: float(np.mean(values)) for organ, values in found.items()}
    for organ, values in found.items():
        print(f"{organ:>9}: Dice {means[organ]:.3f} ({', '.join(f'{v:.3f}' for v in values)})")
    mean = float(np.mean(list(means.values())))
    print(
        f"mean Dice {mean:.3f} on {len(held)} phantoms held back, {minutes:.1f} min of training "
        f"({busy:.1f} of all cores together)"
    )
    print(f"model: {bundle}")
    reached = mean >= LEAST_DICE and minutes < MOST_MINUTES
    print("reached" if reached else f"not reached: {LEAST_DICE} in {MOST_MINUTES} min")
    raise SystemExit(0 if reached else 1)


if __name__ == "__main__":
    main()
