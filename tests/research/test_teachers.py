"""What teachers say lands where they said it, from those who may say it, and no mask is lost."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import compare as comparison
from compare import RUNS, Run, compare, run_folder
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.frame import Frame, FrameSpec
from napari_pancreas_seg.model.attention_unet import Architecture
from napari_pancreas_seg.model.bundle import load_bundle, load_card
from napari_pancreas_seg.training.data.cache import CachedRows, cached_rows
from napari_pancreas_seg.training.data.datasets import TrainingSlices
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.run import Split, train
from teachers import TaughtRows, _said_by, check_teachers, taught, teachers_of, teaching

HERE = Frame(FrameSpec(4, 6, 2.0), (12, 16), (2.5, 2.5), (2.0, 2.0))


def rows(target, said, known, share):
    return TaughtRows(target, said, np.array(known), HERE, share)


def test_masks_and_teachers_are_mixed_inside_the_teachers_frame():
    target = np.zeros((2, 12, 16, 1), np.uint8)
    target[:, 4:8, 4:8] = 255
    said = np.full((2, 4, 6, 1), 255, np.uint8)
    mixed = rows(target, said, [True, False], 0.4)
    first = mixed[np.array([0])][0, ..., 0]
    assert first[5, 5] == 255 and first[6, 10] == 102  # both agree; the teacher alone
    assert not first[0].any() and not first[:, 0].any()  # outside of the frame
    np.testing.assert_array_equal(mixed[1], target[1])
    np.testing.assert_array_equal(mixed[[1, 0]][1, ..., 0], first)
    np.testing.assert_array_equal(mixed[:1][0, ..., 0], first)
    assert mixed.shape == target.shape and len(mixed) == 2


def test_the_mask_outside_of_the_frame_stays():
    target = np.full((1, 12, 16, 1), 255, np.uint8)
    mixed = rows(target, np.zeros((1, 4, 6, 1), np.uint8), [True], 1.0)[0][..., 0]
    assert mixed[0, 0] == 255 and mixed[6, 8] == 0


def test_what_shows_an_organ_is_what_the_mask_shows(tmp_path):
    target = np.zeros((2, 12, 16, 1), np.uint8)
    target[1, 5, 5] = 1
    stored = cached_rows(tmp_path, "a", lambda: CachedRows(target[..., 0], target)).target
    for masks in (target, stored):
        mixed = rows(masks, np.full((2, 4, 6, 1), 200, np.uint8), [True, True], 0.5)
        slices = TrainingSlices(
            target[..., 0], mixed, np.array(["a", "a"]), np.array(["patient"] * 2),
            np.ones(2, bool),
        )  # fmt: skip
        assert slices.present.tolist() == [[False], [True]]


class Bright:
    """A network that takes what is bright for pancreas."""

    def predict_on_batch(self, inputs):
        return {"probability": (inputs[..., :1] > 0.6).astype(np.float32)}


def teacher(frame, seen=(), **card):
    about = {
        "name": "T", "labels": {"pancreas": 1}, "frame": frame.to_dict(), "windows": [[0, 200]],
        "temperature": 1.0, "training": {"patients": list(seen)},
    }  # fmt: skip
    return SimpleNamespace(card={**about, **card}, network=Bright)


def test_a_teacher_without_a_temperature_is_taken_at_its_word():
    frame = FrameSpec(4, 6, 2.0)
    plain, one = teacher(frame), teacher(frame)
    del plain.card["temperature"]
    hu = np.random.default_rng(0).uniform(0, 255, (2, 1, 4, 6)).astype(np.float32)
    said = [_said_by(who, Bright(), hu) for who in (plain, one)]
    np.testing.assert_array_equal(*said)


@pytest.mark.parametrize("other", [(-28.0, 14.0), (0.0, 0.0)])
def test_a_teacher_with_another_frame_says_it_in_the_right_place(other):
    y, x = np.mgrid[:304, :400]
    gland = ((y - 140) / 22) ** 2 + ((x - 215) / 50) ** 2 < 1
    hu = np.where(gland, 150, 60).astype(np.uint8)[None].repeat(3, 0)
    slices = TrainingSlices(
        hu, np.zeros((3, 304, 400, 1), np.uint8), np.array(["P0", "P1", "CT"]),
        np.array(["patient", "patient", "negative"]), np.ones(3, bool),
    )  # fmt: skip
    settings = TrainSettings(frame=FrameSpec())
    found = taught(slices, settings, [teacher(FrameSpec(160, 224, 1.2, other))], 1.0)
    target = found.target[np.arange(3)][..., 0]
    assert not target[2].any()
    np.testing.assert_array_equal(target[0], target[1])
    assert 2 * (target[0][gland] > 127).sum() / ((target[0] > 127).sum() + gland.sum()) > 0.98
    for axis in (y, x):
        middle = (axis * target[0].astype(float)).sum() / target[0].sum()
        assert middle == pytest.approx(axis[gland].mean(), abs=0.3)


def test_a_patient_is_taught_by_those_who_never_saw_them():
    frame = FrameSpec(32, 48, 6.0)
    by = [teacher(frame, ["a", "b"]), teacher(frame, ["b", "c"]), teacher(frame, [])]
    assert teachers_of("a", by) == [1, 2]
    assert teachers_of("b", by) == [2]
    assert teachers_of("b", by[:2]) == [0, 1]


@pytest.mark.parametrize(
    ("card", "share", "sentence"),
    [
        ({}, 0.0, "share of the teachers"),
        ({"labels": {"liver": 1}}, 0.5, "knows liver, and pancreas"),
        ({"frame": FrameSpec(96, 96, 2.0).to_dict()}, 0.5, "one size"),
        ({"windows": [[0, 255], [-100, 240]]}, 0.5, "T cannot teach: .* -100 to 240 .* clipped"),
    ],
)
def test_teachers_of_something_else_are_refused(card, share, sentence):
    by = [teacher(FrameSpec()), teacher(FrameSpec())]
    by[1].card.update(card)
    with pytest.raises(PancreasSegError, match=sentence):
        check_teachers(by, TrainSettings(), ["pancreas"], share)


TINY = TrainSettings(
    architecture=Architecture(filters=2), steps=2, steps_per_epoch=2, batch_size=2,
    frame=FrameSpec(32, 48, 6.0), calibration_batches=2,
)  # fmt: skip


@pytest.mark.slow
def test_folds_teach_a_network_for_every_patient(dataset, tmp_path, no_fit):
    folds = [train(dataset, tmp_path / str(f), TINY, split=Split(2, f)) for f in range(2)]
    by = [load_bundle(fold) for fold in folds]
    settings = replace(TINY, seed=1)
    how = {"split": None, "calibrated_by": folds[0]}
    student = train(
        dataset, tmp_path / "student", settings,
        experiment=teaching(by, settings, ["pancreas"], 0.3), **how,
    )  # fmt: skip
    recipe = load_card(student)["training"]["recipe"]["experiment"]
    assert recipe["teacher_share"] == 0.3
    hashes = [fold.card["weights_sha256"] for fold in by]
    assert [t["weights_sha256"] for t in recipe["teachers"]] == hashes
    with pytest.raises(PancreasSegError, match="another experiment"):
        train(dataset, tmp_path / "student", settings, resume=True, **how)


@pytest.mark.slow
def test_a_comparison_trains_the_teachers_first(dataset, tmp_path, monkeypatch, no_fit):
    monkeypatch.setattr(comparison, "RUNS", {"attention": RUNS["attention"]})
    taught_run = {"taught": Run("taught", folds=1, taught_by=("attention",))}
    monkeypatch.setattr(comparison, "LEVERS", taught_run)
    result = compare(dataset, tmp_path, TINY, folds=2, runs=["taught"])
    assert [lever["lever"] for lever in result["levers"]] == ["taught"]
    card = load_card(run_folder(tmp_path, "taught", 0) / "bundle")
    recipe = card["training"]["recipe"]["experiment"]
    base = load_card(run_folder(tmp_path, "attention", 0) / "bundle")
    assert [t["weights_sha256"] for t in recipe["teachers"]] == [base["weights_sha256"]]
