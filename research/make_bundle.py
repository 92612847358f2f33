"""Make a bundle of weights that `train_torch.py` wrote, calibrated on patients held out.

python research/make_bundle.py RUN --score ../shared/pancreas-ct --about ABOUT.json -o BUNDLE
python research/make_bundle.py RUN --calibrated-by TWIN --about ABOUT.json -o BUNDLE
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

import napari_pancreas_seg
from napari_pancreas_seg.model.attention_unet import ARCHITECTURES, build
from napari_pancreas_seg.model.bundle import load_bundle, load_card, save_bundle
from napari_pancreas_seg.training.data.layouts import open_dataset
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.judge.calibration import HeldBack, calibrate, score_predictions

TAKEN = ("threshold", "temperature", "confidence", "validation")
OF_TWIN = (
    "figures of a model of the same recipe that held these patients back; this one was trained "
    "on them too, so that nothing is left to measure it on"
)
OF_SLICES = (
    "Dice per patient on the native grid, all labelled slices, slice by slice, no "
    "post-processing; threshold and temperature were chosen on the same patients"
)


def network(weights: Path, before: Path | None = None, share: float = 0.0) -> Any:
    """The Keras network with weights of a file, mixed with those of a bundle if asked for."""
    made = build(ARCHITECTURES["default"])
    old = None if before is None or not share else load_bundle(before).network()
    with np.load(weights) as file:
        for layer in made.layers:
            if not layer.weights:
                continue
            values = [file[f"{layer.name}/{n}"] for n in range(len(layer.weights))]
            if old is not None:
                pairs = zip(old.get_layer(layer.name).get_weights(), values, strict=True)
                values = [share * a + (1 - share) * b for a, b in pairs]
            layer.set_weights(values)
    return made


def recipe(about: dict[str, Any]) -> dict[str, Any]:
    """What was done, for the card."""
    start = None
    if about["start"]:
        card = load_card(about["start"])
        start = {key: card[key] for key in ("name", "version", "weights_sha256")}
    held = about["hold_out"]
    return {
        "program": "research/train_torch.py",
        "split": {"folds": 5, "fold": 0, "seed": 0} if held else None,
        "start": start,
        "negatives": ["chest_1.nii.gz", "chest_2.nii.gz:40"],
        "crops": "gland-crops",
        "phantoms": 16,
        "labels": {"pancreas": 1},
        "architecture": "default",
        "steps": about["steps"],
        "learning_rate": about["peak"],
        "seed": about["seed"],
        **about["settings"],
        "frame": TrainSettings().frame.to_dict(),
    }


def judged(made: Any, folder: Path, patients: list[str]) -> dict[str, Any]:
    """Threshold, temperature, confidence and Dice of patients held out."""
    data = open_dataset(folder)
    cases = [case for case in data.cases if case.patient in patients]
    predicted = list(HeldBack(cases, data.labels, TrainSettings()).predict(made))
    found = calibrate(predicted)
    scores = score_predictions(predicted, found["temperature"], (found["threshold"],))
    dice = {patient: round(float(d[0]), 4) for patient, d in scores.dice().items()}
    values = np.array(list(dice.values()))
    validation = {
        "what": OF_SLICES,
        "patients": dice,
        "n": len(values),
        "mean": round(float(values.mean()), 4),
        "median": round(float(np.median(values)), 4),
        "worst": round(float(values.min()), 4),
    }
    return {**found, "validation": validation}


def main() -> None:
    """Write the bundle and say how good it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--score", type=Path, help="pancreas-ct, to calibrate on those held out")
    parser.add_argument("--calibrated-by", type=Path, help="a twin that held patients back")
    parser.add_argument("--about", type=Path, required=True, help="further fields of the card")
    parser.add_argument("--start-share", type=float, default=0.0)
    parser.add_argument("--name", help="instead of the one in --about")
    asked = parser.parse_args()
    about = json.loads((asked.run / "training.json").read_text(encoding="utf-8"))
    start = Path(about["start"]) if about["start"] else None
    made = network(asked.run / "weights.npz", start, asked.start_share)
    settings, patients = TrainSettings(), about["patients"]
    card = {
        "architecture": settings.resolved_architecture().to_dict(),
        "frame": settings.frame.to_dict(),
        "windows": [list(window) for window in settings.windows],
        "neighbours_mm": None,
        "labels": {"pancreas": 1},
        "training": {
            "patients": sorted({*patients["slices"], *patients["crops"]}),
            "layout": "slices",
            "recipe": {**recipe(about), "start_share": asked.start_share},
            "machine": f"{platform.machine()}, torch",
            "program": f"napari-pancreas-seg {napari_pancreas_seg.__version__}",
            "cases": about["slices"],
            "slices": about["slices"],
            "crops": about["crops"],
            "hours": about["hours"],
            "made": datetime.datetime.now(datetime.UTC).date().isoformat(),
        },
        "weights_sha256": "",
    }
    if asked.score:
        card |= judged(made, asked.score, about["hold_out"])
    else:
        twin = load_card(asked.calibrated_by)
        card |= {key: twin[key] for key in TAKEN}
        card["validation"] = {**card["validation"], "what": OF_TWIN}
    card |= json.loads(asked.about.read_text(encoding="utf-8"))
    if asked.name:
        card["name"] = asked.name
    save_bundle(made, card, asked.output, overwrite=True)
    sys.stdout.write(json.dumps({key: card[key] for key in TAKEN}, indent=1) + "\n")


if __name__ == "__main__":
    main()
