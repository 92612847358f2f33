"""Every fold once, resumable; figures of all patients; one ensemble of all networks."""

import json
from dataclasses import replace

import pytest

from napari_pancreas_seg.inference.preprocessing import FrameSpec
from napari_pancreas_seg.io.files import write_json
from napari_pancreas_seg.model.attention_unet import Architecture, build
from napari_pancreas_seg.model.bundle import load_bundle, save_bundle
from napari_pancreas_seg.training import crossvalidation
from napari_pancreas_seg.training.crossvalidation import cross_validate, fold_folder
from napari_pancreas_seg.training.recipe import TrainSettings
from napari_pancreas_seg.training.run import OUT_OF_FOLD

SETTINGS = TrainSettings(architecture=Architecture(filters=1), frame=FrameSpec(32, 32, 8.0))


@pytest.fixture
def trained(monkeypatch):
    """Which folds have been trained; what a training leaves behind, without training."""
    folds = []

    def train(data, output, settings, *, split, about, resume, cache, watch, **options):
        folds.append(split.fold)
        training, held = split.divide(data.cases)
        patients = sorted({case.patient for case in held})
        dice = {p: [0.5 + 0.1 * split.fold, 0.2] for p in patients}
        write_json(output / OUT_OF_FOLD, {"thresholds": [0.4, 0.6], "dice": dice}, overwrite=True)
        card = {
            "name": about["name"], "version": "1", "licence": "CC0",
            "architecture": settings.resolved_architecture().to_dict(),
            "frame": settings.frame.to_dict(), "windows": [list(w) for w in settings.windows],
            "neighbours_mm": None, "labels": dict(data.labels), "threshold": 0.5,
            "weights_sha256": "",
            "training": {
                "patients": sorted({case.patient for case in training}), "hours": 0.5,
                "cases": len(training), "slices": 8, "recipe": {"split": vars(split)},
            },
        }  # fmt: skip
        save_bundle(build(settings.resolved_architecture()), card, output / "bundle")
        return output / "bundle"

    monkeypatch.setattr(crossvalidation, "train", train)
    return folds


def test_folds_are_trained_once_and_joined(dataset, tmp_path, trained):
    about = {"name": "toy", "licence": "CC0"}

    def go():
        return cross_validate(dataset, tmp_path, SETTINGS, folds=2, about=about, resume=True)

    found = go()
    assert trained == [0, 1]
    assert sorted(found.dice) == [f"P{i}" for i in range(6)]
    assert sorted(found.dice.values()) == pytest.approx([0.5] * 3 + [0.6] * 3)
    assert found.summary["n"] == 6 and found.summary["low"] < 0.55 < found.summary["high"]
    result = json.loads((tmp_path / "crossvalidation.json").read_text())
    assert result["patients"] == pytest.approx(found.dice)
    ensemble = load_bundle(found.bundle)
    members = [load_bundle(fold_folder(tmp_path, fold) / "bundle") for fold in range(2)]
    assert ensemble.card["members"] == 2 and ensemble.card["name"] == "toy"
    assert [m.card["name"] for m in members] == ["toy fold 0", "toy fold 1"]
    assert ensemble.card["training"]["members"] == [m.card["weights_sha256"] for m in members]
    assert ensemble.card["training"]["patients"] == [f"P{i}" for i in range(6)]
    assert ensemble.card["training"]["hours"] == 1.0
    assert "not of the ensemble" in ensemble.card["validation"]["what"]
    assert ensemble.card["confidence"]["patients"] == 6
    again = go()
    assert trained == [0, 1]
    assert load_bundle(again.bundle).card == ensemble.card


def test_a_fold_that_was_interrupted_is_trained(dataset, tmp_path, trained):
    cross_validate(dataset, tmp_path, SETTINGS, folds=2, about={"name": "toy"}, resume=True)
    (fold_folder(tmp_path, 1) / OUT_OF_FOLD).unlink()
    for path in (fold_folder(tmp_path, 1) / "bundle").iterdir():
        path.unlink()
    (fold_folder(tmp_path, 1) / "bundle").rmdir()
    other = replace(SETTINGS, steps=10)
    cross_validate(dataset, tmp_path, other, folds=2, about={"name": "toy"}, resume=True)
    assert trained == [0, 1, 1]
