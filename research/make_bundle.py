"""Make a bundle of weights that `train_torch.py` wrote, calibrated on patients held out.

python research/make_bundle.py RUN --score ../shared/pancreas-ct --about ABOUT.json -o BUNDLE
python research/make_bundle.py RUN --calibrated-by TWIN --about ABOUT.json -o BUNDLE

With `--mix`, the weights are averaged with those of other bundles: of networks that began with the
same weights, that costs nothing later, and CTs from elsewhere gain by it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import napari_pancreas_seg
from napari_pancreas_seg.model.attention_unet import ARCHITECTURES, build
from napari_pancreas_seg.model.bundle import load_bundle, load_card, save_bundle
from napari_pancreas_seg.training.data.layouts.opening import open_dataset
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.judge.calibration import HeldBack, calibrate, score_predictions

TAKEN = ("threshold", "temperature", "confidence", "validation")
OPEN = 20.0
"""Log-odds of a gate that lets everything through."""
OF_TWIN = (
    "figures of a model of the same recipe that held these patients back; this one was trained "
    "on them too, so that nothing is left to measure it on; of the first look alone"
)
OF_SLICES = (
    "Dice per patient on the native grid, all labelled slices, slice by slice, no "
    "post-processing; threshold and temperature were chosen on the same patients; of the first "
    "look alone"
)


def network(weights: Path, others: Sequence[Path]) -> Any:
    """The Keras network with the mean of a file's weights and those of bundles."""
    made = build(ARCHITECTURES["default"])
    former = [load_bundle(path).network() for path in others]
    with np.load(weights) as file:
        for layer in made.layers:
            if not layer.weights:
                continue
            if f"{layer.name}/0" not in file:
                _open(layer)  # learnt without this gate
                continue
            given = [[file[f"{layer.name}/{n}"] for n in range(len(layer.weights))]]
            given += [network.get_layer(layer.name).get_weights() for network in former]
            layer.set_weights([np.mean(each, axis=0) for each in zip(*given, strict=True)])
    return made


def _open(gate: Any) -> None:
    """Let a gate weigh everything with 1, as if it were not there."""
    *others, bias = [np.zeros_like(weight) for weight in gate.get_weights()]
    gate.set_weights([*others, bias + OPEN])


def named(bundle: Path | str) -> dict[str, str]:
    """Which model it is, for the card."""
    card = load_card(bundle)
    return {key: card[key] for key in ("name", "version", "weights_sha256")}


def recipe(about: dict[str, Any], others: Sequence[Path]) -> dict[str, Any]:
    """What was done, for the card."""
    held = about["hold_out"]
    return {
        "program": "research/train_torch.py",
        "split": {"folds": 5, "fold": 0, "seed": 0} if held else None,
        "start": named(about["start"]) if about["start"] else None,
        "averaged_with": [named(path) for path in others],
        "negatives": ["chest_1.nii.gz", "chest_2.nii.gz:40"],
        "crops": "gland-crops",
        "phantoms": 16,
        "labels": {"pancreas": 1},
        "architecture": "default",
        **({"first_gate": about["first_gate"]} if about.get("first_gate", 1) > 1 else {}),
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
    parser.add_argument(
        "--mix", type=Path, action="append", default=[], metavar="BUNDLE",
        help="the weights become the mean of the run's and those of these bundles",
    )  # fmt: skip
    parser.add_argument("--evaluated", type=Path, help="of `evaluate`: says what the gates tell")
    parser.add_argument("--name", help="instead of the one in --about")
    asked = parser.parse_args()
    about = json.loads((asked.run / "training.json").read_text(encoding="utf-8"))
    made = network(asked.run / "weights.npz", asked.mix)
    settings = TrainSettings()
    patients = {name for names in about["patients"].values() for name in names}
    patients = patients.union(*(load_card(path)["training"]["patients"] for path in asked.mix))
    card = {
        "architecture": settings.resolved_architecture().to_dict(),
        "frame": settings.frame.to_dict(),
        "windows": [list(window) for window in settings.windows],
        "neighbours_mm": None,
        "labels": {"pancreas": 1},
        "training": {
            "patients": sorted(patients),
            "layout": "slices",
            "recipe": recipe(about, asked.mix),
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
    if asked.evaluated:
        card["attention"] = json.loads(asked.evaluated.read_text(encoding="utf-8"))["attention"]
    card |= json.loads(asked.about.read_text(encoding="utf-8"))
    if asked.name:
        card["name"] = asked.name
    save_bundle(made, card, asked.output, overwrite=True)
    sys.stdout.write(json.dumps({key: card[key] for key in TAKEN}, indent=1) + "\n")


if __name__ == "__main__":
    main()
