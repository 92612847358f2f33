"""Runs on the same folds, resumable, thresholds chosen without the patient they are applied to."""

import json
from dataclasses import replace

import numpy as np
import pytest

import compare as comparison
from compare import LEVERS, RUNS, Run, compare, gather
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.model.attention_unet import Architecture
from napari_pancreas_seg.model.losses import LOSSES
from napari_pancreas_seg.training.fit.recipe import TrainSettings

SETTINGS = TrainSettings(
    architecture=Architecture(filters=2), steps=2, steps_per_epoch=2, batch_size=2,
    frame=FrameSpec(32, 48, 6.0), calibration_batches=2,
)  # fmt: skip


def put(folder, name, fold, dice, thresholds=(0.3, 0.5)):
    place = comparison.run_folder(folder, name, fold)
    place.mkdir(parents=True)
    content = {"thresholds": list(thresholds), "dice": dice}
    (place / "out_of_fold.json").write_text(json.dumps(content))
    (place / "history.json").write_text('[{"step": 2, "seconds": 36.0}]')
    (place / "bundle").mkdir()


def test_the_table_by_hand(tmp_path):
    put(tmp_path, "attention", 0, {"a": [0.6, 0.8], "b": [0.7, 0.4]})
    put(tmp_path, "attention", 1, {"c": [0.9, 0.5]})
    put(tmp_path, "unet", 0, {"a": [0.5, 0.5], "b": [0.5, 0.5]})
    put(tmp_path, "unet", 1, {"c": [0.5, 0.5]})
    put(tmp_path, "windows", 0, {"a": [0.4, 0.4], "b": [0.4, 0.4]})
    result = gather(tmp_path, SETTINGS, 2)
    attention, unet = result["runs"]
    # a's threshold is the best for b and c, that is 0.3; so are the others'.
    assert attention["patients"] == {"a": 0.6, "b": 0.7, "c": 0.9}
    assert attention["summary"]["mean"] == pytest.approx(0.7333, abs=1e-4)
    assert attention["folds"] == [0, 1] and attention["hours"] == 0.02
    assert unet["architecture"]["attention"] is False
    (gap,) = result["differences"]
    assert gap["n"] == 3 and gap["mean"] == pytest.approx(0.2333, abs=1e-4)
    assert gap["low"] <= gap["mean"] <= gap["high"]
    (lever,) = result["levers"]
    assert lever["n"] == 2 and lever["difference"] == pytest.approx(-0.25)
    text = (tmp_path / "compare.md").read_text()
    assert "| attention − unet | 3 | +0.233" in text
    assert json.loads((tmp_path / "compare.json").read_text()) == result


def test_focal_tversky_weighs_what_is_missed_more_than_excess():
    target = np.zeros((1, 8, 8, 1), np.float32)
    target[:, 2:6, 2:6] = 1
    missed, excess = target.copy(), target.copy()
    missed[:, 2] = 0
    excess[:, 6, 2:6] = 1
    loss = LOSSES[LEVERS["loss: focal Tversky"].changes["loss"]]
    assert np.asarray(loss(target, missed))[0] > np.asarray(loss(target, excess))[0] > 0


def test_a_threshold_is_never_chosen_on_its_own_patient(tmp_path):
    put(tmp_path, "attention", 0, {"a": [1.0, 0.0], "b": [0.0, 0.9], "c": [0.0, 0.9]})
    result = gather(tmp_path, SETTINGS, 2)
    assert result["runs"][0]["patients"] == {"a": 0.0, "b": 0.0, "c": 0.0}


@pytest.mark.slow
def test_runs_are_trained_once_and_resumed(dataset, tmp_path, monkeypatch, no_fit):
    plain = Architecture(filters=2, attention=False)
    tiny = {"unet": Run("no gates", {"architecture": plain}, folds=1)}
    monkeypatch.setattr(comparison, "RUNS", {"attention": RUNS["attention"], **tiny})
    put(tmp_path, "attention", 0, {"P0": [0.6, 0.8], "P1": [0.7, 0.4]})
    put(tmp_path, "attention", 1, {"P2": [0.6, 0.8], "P3": [0.7, 0.4]})
    lines = []

    def go():
        return compare(dataset, tmp_path, SETTINGS, folds=2, runs=["unet"], report=lines.append)

    first = go()
    assert next(line for line in lines if "step 2" in line).startswith("unet, fold 0: ")
    assert [r["summary"]["n"] for r in first["runs"]] == [4, 3]
    lines.clear()
    assert go() == first
    assert not lines
    # Figures of other settings are not put into one table, whether they are asked for or not.
    for runs, other in ((["unet"], {"steps": 4}), ([], {"loss": "dice"}), ([], {"seed": 1})):
        with pytest.raises(PancreasSegError, match=f"unet-fold0 .* another .*{next(iter(other))}"):
            compare(dataset, tmp_path, replace(SETTINGS, **other), folds=2, runs=runs)
    with pytest.raises(PancreasSegError, match="no run"):
        compare(dataset, tmp_path, SETTINGS, runs=["magic"])


def test_slices_are_kept_on_disk_as_for_a_single_training(dataset, tmp_path, monkeypatch):
    caches = []
    monkeypatch.setattr(comparison, "default_cache", lambda data, output: output / "cache")
    monkeypatch.setattr(comparison, "train", lambda *_, cache, **__: caches.append(cache))
    monkeypatch.setattr(comparison, "gather", lambda *_: {})
    compare(dataset, tmp_path, SETTINGS, folds=2, runs=[])
    assert caches == [tmp_path / "cache"] * 2


@pytest.mark.parametrize("name", LEVERS)
def test_every_lever_changes_something(name):
    changed = replace(TrainSettings(), **LEVERS[name].changes)
    assert changed != TrainSettings() or LEVERS[name].taught_by
    assert changed.resolved_architecture().channels == len(changed.windows)


def test_a_comparison_takes_windows_and_refuses_wrong_ones(tmp_path, monkeypatch, capsys):
    asked = []

    def compare(dataset, output, settings, **options):
        asked.append(settings.windows)
        (output / "compare.md").write_text("a table")

    monkeypatch.setattr(comparison, "compare", compare)
    arguments = [str(tmp_path), "-o", str(tmp_path)]
    assert comparison.main([*arguments, "--window", "0:255", "--window", "40:150"]) == 0
    assert "a table" in capsys.readouterr().out
    assert comparison.main(arguments) == 0
    assert asked == [((0, 255), (40, 150)), ((0, 255), (40, 150), (80, 140))]
    with pytest.raises(SystemExit):
        comparison.main([*arguments, "--window", "40"])
    capsys.readouterr()
