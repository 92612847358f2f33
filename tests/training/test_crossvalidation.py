"""Every fold once, resumable; figures of all patients; one ensemble of all networks."""

import json
import shutil
from dataclasses import replace

import pytest

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.model.attention_unet import Architecture
from napari_pancreas_seg.model.bundle import Bundle, load_bundle
from napari_pancreas_seg.training.crossvalidation import (
    _what,
    cross_validate,
    fold_folder,
    out_of_fold_dice,
)
from napari_pancreas_seg.training.data.layouts.opening import open_dataset
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.run import Split, train

SETTINGS = TrainSettings(architecture=Architecture(filters=1), frame=FrameSpec(32, 32, 8.0))


ABOUT = {"name": "toy", "licence": "CC0"}


def go(dataset, tmp_path, settings=SETTINGS, **changes):
    how = {"folds": 2, "about": ABOUT, "resume": True, **changes}
    return cross_validate(dataset, tmp_path, settings, **how)


@pytest.fixture(scope="module")
def done(dataset, without_fit, tmp_path_factory):
    """A cross-validation that has come to its end."""
    folder = tmp_path_factory.mktemp("done") / "run"
    with pytest.MonkeyPatch.context() as patch:
        trained = without_fit(patch)
        assert go(dataset, folder) == folder / "bundle"
    assert trained == ["fold0", "fold1"]
    return folder


@pytest.fixture
def copy(done, tmp_path):
    """It may be gone on with."""
    return shutil.copytree(done, tmp_path / "run")


@pytest.mark.slow
def test_folds_are_trained_once_and_joined(dataset, copy, no_fit):
    result = json.loads((copy / "crossvalidation.json").read_text())
    assert sorted(result["patients"]) == [f"P{i}" for i in range(6)]
    assert result["summary"]["n"] == 6
    dice = out_of_fold_dice(fold_folder(copy, fold) for fold in range(2))
    assert result["patients"] == pytest.approx(dice, abs=1e-4)
    ensemble = load_bundle(copy / "bundle")
    members = [load_bundle(fold_folder(copy, fold) / "bundle") for fold in range(2)]
    assert ensemble.card["members"] == 2 and ensemble.card["name"] == "toy"
    assert [m.card["name"] for m in members] == ["toy fold 0", "toy fold 1"]
    assert ensemble.card["training"]["members"] == [m.card["weights_sha256"] for m in members]
    assert ensemble.card["training"]["patients"] == [f"P{i}" for i in range(6)]
    assert ensemble.card["training"]["hours"] == 1.0
    assert "not of the ensemble" in ensemble.card["validation"]["what"]
    assert "learnt from" not in ensemble.card["validation"]["what"]
    assert ensemble.card["confidence"]["patients"] == 6
    again = go(dataset, copy)
    assert not no_fit
    assert load_bundle(again).card == ensemble.card


@pytest.mark.slow
def test_a_fold_that_was_interrupted_is_trained(dataset, copy, no_fit):
    bundle = fold_folder(copy, 1) / "bundle"
    for path in bundle.iterdir():
        path.unlink()
    bundle.rmdir()
    go(dataset, copy)
    assert no_fit == ["fold1"]


@pytest.mark.slow
def test_folds_of_other_settings_or_patients_are_not_mixed(dataset, copy, no_fit):
    for other in ({"steps": 10}, {"patience": 3}, {"loss": "dice"}):
        with pytest.raises(PancreasSegError, match=f"fold0 .* another {next(iter(other))}"):
            go(dataset, copy, replace(SETTINGS, **other))
    with pytest.raises(PancreasSegError, match="another split;"):
        go(dataset, copy, folds=3)
    data = open_dataset(dataset)
    with pytest.raises(PancreasSegError, match="fold0 was trained on other patients"):
        go(replace(data, cases=data.cases[2:]), copy)
    assert not no_fit
    # What an older version wrote does not say who was trained on.
    for fold in range(2):
        path = fold_folder(copy, fold) / "recipe.json"
        recipe = json.loads(path.read_text())
        del recipe["patients"], recipe["piece_share"]
        path.write_text(json.dumps(recipe))
    go(dataset, copy)
    assert not no_fit


def test_more_folds_than_an_ensemble_has_members_are_refused_at_once(dataset, tmp_path, no_fit):
    for folds in (1, 33):
        with pytest.raises(PancreasSegError, match=f"2 to 32 folds .* not {folds}"):
            go(dataset, tmp_path, folds=folds)
    with pytest.raises(PancreasSegError, match="a proper name"):
        go(dataset, tmp_path, about={"name": 1})
    assert not no_fit and not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_what_the_start_had_seen_is_said_of_all_folds(dataset, tmp_path, no_fit):
    first = train(dataset, tmp_path / "first", SETTINGS, split=Split(2))
    found = go(dataset, tmp_path, start=first)
    said = load_bundle(found).card["validation"]["what"]
    assert "learnt from 3 of the patients held back" in said


def test_what_the_figures_are_of_and_what_was_chosen_on_the_same_patients_is_said():
    def said(what="all labelled slices", **settings):
        member = Bundle({"validation": {"what": what}}, b"")
        return _what([member], replace(SETTINGS, **settings))

    assert "some slices" not in said() and "the epoch" not in said()
    assert "native grid, some slices of each CT, out of fold" in said(
        "Dice, some slices of each CT"
    )
    assert said(patience=2).endswith("; the epoch was chosen on the same patients")
