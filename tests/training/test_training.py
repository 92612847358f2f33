"""A tiny training on made-up slices: layout in, bundle out, resumable to the bit."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.model.attention_unet import Architecture
from napari_pancreas_seg.model.bundle import Bundle, load_bundle
from napari_pancreas_seg.training import run
from napari_pancreas_seg.training.cards import calibration_from, first_card
from napari_pancreas_seg.training.data.datasets import (
    fold_of_patients,
    load_cases,
)
from napari_pancreas_seg.training.data.layouts.opening import open_dataset
from napari_pancreas_seg.training.data.layouts.slices import read_slice_layout
from napari_pancreas_seg.training.fit import loop as loop_module
from napari_pancreas_seg.training.fit.devices import choose_policy
from napari_pancreas_seg.training.fit.loop import Checkpoint, TrainingState
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.folder import (
    OUT_OF_FOLD,
    _check_same,
    check_free,
    policy_after,
)
from napari_pancreas_seg.training.judge.calibration import ThresholdScores
from napari_pancreas_seg.training.judge.evaluation import evaluate
from napari_pancreas_seg.training.run import (
    Experiment,
    Split,
    epoch_line,
    settings_for,
    train,
)

TINY = Architecture(filters=2, dropout=0.2)
SETTINGS = TrainSettings(
    architecture=TINY, steps=4, steps_per_epoch=2, batch_size=2, frame=FrameSpec(32, 48, 6.0),
    calibration_batches=4,
)  # fmt: skip


def test_the_layout_is_read(dataset):
    records = read_slice_layout(dataset)
    assert len(records) == 12
    assert records[0].spacing_mm == pytest.approx(0.8 * 432 / 512)
    volume, mask = records[0].load()
    assert volume.hu.shape == mask.shape == (1, 512, 512)
    # The picture is shown as it is: rows from front to back, columns from right to left.
    np.testing.assert_array_equal(volume.hu[0] > 90, mask[0] > 0)


@pytest.mark.slow
def test_the_working_slices_keep_the_gland(dataset):
    records = read_slice_layout(dataset)
    slices = load_cases(records, {"pancreas": 1})
    mm2 = slices.target.astype(float).sum(axis=(1, 2, 3)) / 255
    true = [record.load()[1].sum() * record.spacing_mm**2 for record in records]
    np.testing.assert_allclose(mm2, true, rtol=0.02)


def test_patients_are_split_not_slices(dataset):
    records = read_slice_layout(dataset)
    parts = [Split(3, fold, 0).divide(records)[1] for fold in range(3)]
    held = [{r.patient for r in part} for part in parts]
    assert set.union(*held) == {f"P{i}" for i in range(6)}
    assert sum(map(len, held)) == 6
    training, validation = Split(3, 0, 0).divide(records)
    assert not {r.patient for r in training} & {r.patient for r in validation}
    assert fold_of_patients(["b", "a", "c"], 3, 1, 5) == fold_of_patients(["c", "b", "a"], 3, 1, 5)


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path)
    variable = np.arange(3.0)
    checkpoint.save([variable], TrainingState(1))
    before = checkpoint.path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop_module.np, "savez", full)
    with pytest.raises(PancreasSegError, match="checkpoint"):
        checkpoint.save([variable + 1], TrainingState(2))
    assert checkpoint.path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.path.name]
    checkpoint.path.write_bytes(before[: len(before) // 2])
    with pytest.raises(PancreasSegError, match="whole checkpoint"):
        checkpoint.restore([variable])


LINE = {"step": 500, "loss": 0.41234, "seconds": 60.0, "images_per_second": 66.7}


def test_an_epoch_is_one_short_line():
    assert epoch_line(LINE) == "step 500  loss 0.4123  66.7 images/s"
    scored = {**LINE, "threshold": 0.44, "validation_dice": 0.7}
    assert (
        epoch_line(scored) == "step 500  loss 0.4123  Dice 0.7000  at threshold 0.44  66.7 images/s"
    )


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """A folder with a training of one fold of three, its bundle, and what was reported."""
    folder, lines = tmp_path_factory.mktemp("trained") / "run", []
    bundle = train(
        dataset, folder, SETTINGS, split=Split(3),
        about={"name": "toy", "licence": "CC0"}, log=lines.append,
    )  # fmt: skip
    return folder, bundle, lines


@pytest.mark.slow
def test_from_a_data_set_to_a_bundle(dataset, trained, tmp_path):
    folder, bundle, lines = trained
    card = load_bundle(bundle).card
    assert card["name"] == "toy" and card["licence"] == "CC0"
    assert lines[0] == "training on 8 cases, 4 held back"
    assert [line.split("  ")[0] for line in lines[1:]] == ["step 2", "step 4"]
    held = set(card["validation"]["patients"])
    assert len(held) == 2 and not held & set(card["training"]["patients"])
    result = evaluate(dataset, bundle)
    dice = {patient: row["dice"] for patient, row in result["patients"].items()}
    assert dice == pytest.approx(card["validation"]["patients"], abs=2e-3)
    everybody = evaluate(dataset, bundle, every_patient=True)["patients"]
    assert set(everybody) == {f"P{i}" for i in range(6)}
    json.dumps(result)
    with pytest.raises(PancreasSegError, match="--resume"):
        train(dataset, folder, SETTINGS)
    with pytest.raises(PancreasSegError, match="another"):
        train(dataset, folder, SETTINGS, split=Split(2), resume=True)
    with pytest.raises(PancreasSegError, match="layout"):
        train(tmp_path, tmp_path / "never", SETTINGS)
    assert not (tmp_path / "never").exists()


@pytest.mark.slow
def test_every_patient_can_train_if_another_model_held_some_back(dataset, trained, tmp_path):
    held, lines = trained[1], []
    every = train(
        dataset, tmp_path / "all", SETTINGS, split=None, start=held, calibrated_by=held,
        log=lines.append,
    )  # fmt: skip
    assert load_bundle(every).card["name"] == "all"  # the folder's, as none was given
    card, other = load_bundle(every).card, load_bundle(held).card
    assert card["training"]["patients"] == [f"P{i}" for i in range(6)]
    assert card["training"]["recipe"]["start"]["weights_sha256"] == other["weights_sha256"]
    assert [card[k] for k in ("threshold", "temperature", "confidence")] == [
        other[k] for k in ("threshold", "temperature", "confidence")
    ]
    assert "held these patients back" in card["validation"]["what"]
    assert lines[0] == "training on 12 cases, 0 held back"
    with pytest.raises(PancreasSegError, match="held patients back"):
        train(dataset, tmp_path / "none", SETTINGS, split=None)


@pytest.fixture
def twin(dataset):
    """Card of a training on the data set, with the calibration of two patients held back."""
    data = open_dataset(dataset)
    card = {"name": "toy", **first_card({}, settings_for(SETTINGS, data), data, [])}
    validation = {"what": "", "patients": {"P1": 0.8, "P2": 0.7}}
    return card | {"confidence": {}, "validation": validation}


def test_a_twin_of_another_recipe_calibrates_nothing(twin):
    stored, patients = json.loads(json.dumps(twin)), ["P1", "P2", "P3"]
    found = calibration_from(stored, twin, patients)
    assert "held these patients back" in found["validation"]["what"]
    assert "validation" not in calibration_from(stored, twin, ["P1", "P3"])
    assert found.keys() == {"threshold", "temperature", "confidence", "validation"}
    for key, other in (
        ("labels", {"liver": 1}), ("windows", [[0, 255]]),
        ("frame", {**twin["frame"], "height": 64}),
        ("architecture", {**twin["architecture"], "attention": False}),
    ):  # fmt: skip
        with pytest.raises(PancreasSegError, match=f"its card has another {key}; give one"):
            calibration_from({**stored, key: other}, twin, patients)
    del stored["confidence"]
    with pytest.raises(PancreasSegError, match="its card has no confidence; give one"):
        calibration_from(stored, twin, patients)


def test_figures_of_other_patients_are_not_taken_from_a_twin(
    dataset, twin, tmp_path, no_fit, monkeypatch
):
    for name, patients, noted in (("same", ["P1"], False), ("others", ["Q1"], True)):
        card = twin | {"validation": {"what": "", "patients": dict.fromkeys(patients, 0.8)}}
        monkeypatch.setattr(run, "load_bundle", lambda _, card=card: Bundle(card, b""))
        lines = []
        how = {"split": None, "calibrated_by": "twin", "log": lines.append}
        found = load_bundle(train(dataset, tmp_path / name, SETTINGS, **how)).card
        assert ("validation" not in found) is noted
        assert any("held other patients back" in line for line in lines) is noted


def test_a_wrong_name_of_a_negative_is_noticed_before_the_cases_are_read(
    dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(run, "load_cases", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(PancreasSegError, match=r"nowhere\.nii"):
        train(dataset, tmp_path / "run", SETTINGS, negatives=[str(tmp_path / "nowhere.nii")])


@pytest.mark.slow
def test_a_warm_start_begins_where_the_model_stands(dataset, trained, tmp_path):
    first = trained[1]
    still = replace(SETTINGS, learning_rate=0.0, averaging=0.0)
    second = train(dataset, tmp_path / "second", still, split=Split(3), start=first)
    before, after = (load_bundle(b).network() for b in (first, second))
    for a, b in zip(before.trainable_variables, after.trainable_variables, strict=True):
        # A bundle holds float16.
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=2e-3)
    other = replace(SETTINGS, architecture=Architecture(filters=4))
    with pytest.raises(PancreasSegError, match="different network"):
        train(dataset, tmp_path / "other", other, split=Split(3), start=first)


@pytest.mark.slow
def test_whom_other_models_had_seen_is_remembered(dataset, tmp_path, no_fit):
    def go(name, fold, **how):
        lines = []
        bundle = train(
            dataset, tmp_path / name, SETTINGS, split=Split(3, fold),
            log=lines.append, **how,
        )  # fmt: skip
        notes = [line for line in lines if line.startswith("Note: ")]
        return bundle, load_bundle(bundle).card, notes

    first, card, notes = go("first", 0)
    held = sorted(card["validation"]["patients"])
    assert not notes and "seen_before" not in card["validation"]
    assert "learnt from" not in card["validation"]["what"]
    taught = {"experiment": Experiment(models=[load_bundle(first)])}
    for name, how in (("start", {"start": first}), ("teacher", taught)):
        _, same, notes = go(f"same {name}", 0, **how)
        assert not notes and same["training"]["patients"] == card["training"]["patients"]
        other, another, notes = go(f"other {name}", 1, **how)
        assert another["training"]["patients"] == [f"P{i}" for i in range(6)]
        validation = another["validation"]
        assert validation["seen_before"] == sorted({*validation["patients"]} - {*held})
        assert "learnt from 2 of the patients held back" in validation["what"]
        assert len(notes) == 1 and "learnt from 2 of the patients held back" in notes[0]
    with pytest.raises(PancreasSegError, match="--every-patient"):
        evaluate(dataset, other)
    every = train(dataset, tmp_path / "every", SETTINGS, split=None, calibrated_by=other)
    assert "learnt from 2" in load_bundle(every).card["validation"]["what"]


@pytest.mark.slow
def test_a_training_goes_on_with_the_same_patients_only(dataset, tmp_path, no_fit):
    data = open_dataset(dataset)
    fewer = replace(data, cases=tuple(c for c in data.cases if c.patient != "P5"))
    how = {"split": Split(2), "resume": True}
    card = load_bundle(train(fewer, tmp_path / "run", SETTINGS, **how)).card
    stored = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert stored["patients"] == {
        "training": card["training"]["patients"],
        "held_back": sorted(card["validation"]["patients"]),
    }
    assert "patients" not in card["training"]["recipe"]
    assert stored["classes"] == {"pancreas": ["pancreas"]}
    with pytest.raises(PancreasSegError, match="run was trained on other patients, or held"):
        train(data, tmp_path / "run", SETTINGS, **how)
    train(fewer, tmp_path / "run", replace(SETTINGS, steps=6), **how)  # longer
    del stored["patients"]
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(stored))
    train(data, tmp_path / "run", SETTINGS, **how)  # begun by an older version
    assert len(no_fit) == 3


@pytest.mark.slow
def test_a_training_is_done_when_its_bundle_is_written(dataset, tmp_path, no_fit, monkeypatch):
    def go(**changes):
        how = {"split": Split(3), "resume": True, "once": True}
        return train(dataset, tmp_path, replace(SETTINGS, **changes), **how)

    def full(*_, **__):
        raise PancreasSegError("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(run, "save_bundle", full)
        with pytest.raises(PancreasSegError, match="full"):
            go()
    assert not (tmp_path / OUT_OF_FOLD).exists()
    go()
    assert (tmp_path / OUT_OF_FOLD).exists()
    go()
    assert len(no_fit) == 2
    with monkeypatch.context() as patch:
        patch.setattr(run, "fit", full)  # a longer training that is interrupted is not done
        with pytest.raises(PancreasSegError, match="full"):
            train(
                dataset, tmp_path, replace(SETTINGS, steps=6), split=Split(3),
                resume=True,
            )  # fmt: skip
    assert not (tmp_path / OUT_OF_FOLD).exists()


@pytest.mark.parametrize(
    ("about", "sentence"),
    [
        ({"version": 1}, "proper version"),
        ({"note": float("nan")}, "not JSON"),
        ({"threshold": 2}, ""),
    ],
)
def test_fields_that_no_card_may_have_are_refused_before_training(
    dataset, tmp_path, no_fit, about, sentence
):
    with pytest.raises(PancreasSegError, match=f"fields given for it.*{sentence}"):
        train(dataset, tmp_path / "run", SETTINGS, split=Split(3), about=about)
    assert not no_fit and not (tmp_path / "run").exists()


def test_what_the_program_says_of_a_model_is_not_given(dataset, tmp_path, no_fit):
    for field in ("training", "labels", "validation", "threshold", "members"):
        with pytest.raises(PancreasSegError, match=f"cannot take {field} from the fields given"):
            train(dataset, tmp_path / "run", SETTINGS, about={field: {}, "note": "from A"})
    assert not no_fit


@pytest.mark.parametrize("left", ["checkpoint.npz", "bundle", OUT_OF_FOLD, "crossvalidation.json"])
@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("folds", [False, True])
def test_a_model_that_is_there_is_not_overwritten(tmp_path, left, resume, folds):
    (tmp_path / left).mkdir()
    same = folds == (left == "crossvalidation.json")
    if same and resume:
        check_free(tmp_path, resume, folds=folds)
        return
    with pytest.raises(PancreasSegError, match="--resume" if same else "choose another folder"):
        check_free(tmp_path, resume, folds=folds)


def test_curves_that_cannot_be_written_end_no_training(dataset, tmp_path, monkeypatch):
    def fit(slices, settings, folder, *, report, **options):
        (tmp_path / "history.csv").mkdir()  # nothing is put in its place
        history = [dict(LINE), dict(LINE)]
        report(history[:1])
        report(history)
        return "network", history

    monkeypatch.setattr(run, "fit", fit)
    lines, card = [], {"training": {}}
    assert run._fit(None, [], SETTINGS, tmp_path, card, lines.append) == "network"
    assert [line[:4] for line in lines] == ["step", "Note", "step"]
    assert "'history.csv'" in lines[1] and (tmp_path / "history.json").exists()
    assert (tmp_path / "curves.png").exists()


def test_masks_that_changed_meanwhile_are_told_of(dataset, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise PancreasSegError("enough")

    data, lines = tmp_path / "data", []
    shutil.copytree(dataset, data)
    monkeypatch.setattr(run, "_read", stop)
    for run_number in range(3):
        if run_number == 1:
            shutil.copy(data / "masks" / "P0_slice0.png", data / "masks" / "P1_slice1.png")
        with pytest.raises(PancreasSegError, match="enough"):
            train(data, tmp_path / "run", SETTINGS, resume=True, log=lines.append)
    (note,) = (line for line in lines if line.startswith("Note"))
    assert "the files of P1_slice1 have another size or time" in note


def test_a_training_goes_on_in_the_precision_of_another_machine(tmp_path):
    def check(before, now):
        return _check_same(tmp_path, {"policy": before}, {"policy": now}, ())

    check("float32", "mixed_bfloat16")
    check("mixed_bfloat16", "float32")
    with pytest.raises(PancreasSegError, match=r"policy \(mixed_float16, now float32\); give the"):
        check("mixed_float16", "float32")
    assert policy_after({"policy": "mixed_float16"}) == "mixed_float16"
    assert policy_after({"policy": "float32"}) == choose_policy("auto")
    assert policy_after({}) == "auto"


@pytest.mark.slow
def test_masks_that_are_all_empty_teach_nothing(dataset, tmp_path):
    def emptied(*patients):
        class Empty:
            def __init__(self, case):
                self.name, self.patient, self.slices = case.name, case.patient, None
                self.files, self._case = case.files, case

            def load(self):
                volume, mask = self._case.load()
                return volume, mask * (self.patient not in patients)

        data = open_dataset(dataset)
        return replace(data, cases=tuple(map(Empty, data.cases)))

    everyone = [f"P{i}" for i in range(6)]
    with pytest.raises(PancreasSegError, match=r"All masks to train on .*dataset check"):
        train(emptied(*everyone), tmp_path / "none", SETTINGS, split=Split(3))
    assert not (tmp_path / "none" / "bundle").exists()
    _, held = Split(3).divide(open_dataset(dataset).cases)
    whose = {case.patient for case in held}
    with pytest.raises(PancreasSegError, match=f"held back .{sorted(whose)[0]}, .* are empty"):
        train(emptied(*whose), tmp_path / "held", SETTINGS, split=Split(3))


@pytest.mark.slow
def test_all_bad_cases_are_named_at_once(dataset, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(dataset, folder)
    for name in ("P1_slice0", "P3_slice1"):
        (folder / "images" / f"{name}.jpg").write_bytes(b"no picture")
    for fold in range(3):
        with pytest.raises(PancreasSegError) as caught:
            train(folder, tmp_path / f"{fold}", SETTINGS, split=Split(3, fold))
        said = str(caught.value)
        assert said.startswith("2 cases cannot be used.") and "dataset check" in said
        assert "P1_slice0" in said and "P3_slice1" in said


def test_one_patient_is_told_what_to_do(dataset, tmp_path):
    data = open_dataset(dataset)
    alone = replace(data, cases=data.cases[:2])
    with pytest.raises(PancreasSegError, match=r"one patient, .* 'finetune'") as caught:
        train(alone, tmp_path / "run", SETTINGS)
    assert "--calibrated-by" not in str(caught.value)  # that needs a twin that held some back
    with pytest.raises(PancreasSegError, match="--folds from 2 to 2"):
        fold_of_patients(["a", "b"], 5, 0, 0)
    with pytest.raises(PancreasSegError, match="counted from 0 to 1"):
        fold_of_patients(["a", "b"], 2, 2, 0)


def test_patience_needs_patients_held_back(dataset, tiny_bundle, tmp_path):
    patient = replace(SETTINGS, patience=3)
    with pytest.raises(PancreasSegError, match="--patience"):
        train(dataset, tmp_path / "run", patient, split=None, calibrated_by=tiny_bundle)
    assert not (tmp_path / "run").exists()


def test_dice_of_thresholds_by_hand():
    scores = ThresholdScores((0.5, 0.9))
    scores.add("a", np.array([0.95, 0.6, 0.1]), np.array([1, 0, 1]))
    scores.add("a", np.array([0.0]), np.array([0]))
    np.testing.assert_allclose(scores.dice()["a"], [2 * 1 / 4, 2 * 1 / 3])
    assert scores.best() == (0.9, pytest.approx(2 / 3))


@pytest.mark.parametrize("fault", ["no manifest", "no column", "no image", "path", "rubbish"])
def test_a_damaged_data_set_is_one_sentence(dataset, tmp_path, fault):
    if fault != "no manifest":
        text = (dataset / "manifest.csv").read_text()
        if fault == "no column":
            text = text.replace("patient", "who", 1)
        if fault == "path":
            text = text.replace("P0_slice0", "../P0_slice0", 1)
        (tmp_path / "manifest.csv").write_text(text)
    if fault == "rubbish":
        for kind in ("images", "masks"):
            (tmp_path / kind).mkdir()
            for path in (dataset / kind).iterdir():
                (tmp_path / kind / path.name).write_bytes(path.read_bytes()[:40])
    with pytest.raises(PancreasSegError) as caught:
        load_cases(read_slice_layout(tmp_path), {"pancreas": 1})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"architecture": "huge"},
        {"loss": "none"},
        {"steps": 0},
        {"batch_size": 0},
        {"windows": ((0, 255), (-100, 240))},
        {"windows": ((0, 256),)},
        {"windows": ((80, 80),)},
    ],
)
def test_impossible_recipes_are_refused(wrong):
    with pytest.raises(PancreasSegError):
        TrainSettings(**wrong)


@pytest.mark.parametrize("gone", ["crops", "phantoms"])
def test_a_training_with_what_is_gone_is_not_gone_on_with(tmp_path, gone):
    with pytest.raises(PancreasSegError, match=f"another {gone}"):
        _check_same(tmp_path, {gone: 16, "steps": 5}, {"steps": 5}, ())
    _check_same(tmp_path, {gone: 0, "steps": 5}, {"steps": 5}, ())


def test_a_training_does_not_go_on_with_classes_made_of_others(tmp_path):
    before, now = ({"classes": {"pancreas": parts}} for parts in (["pancreas"], ["pancreas", "x"]))
    with pytest.raises(PancreasSegError, match="another classes"):
        _check_same(tmp_path, before, now, ())
    _check_same(tmp_path, now, now, ())
    _check_same(tmp_path, {"steps": 5}, {"steps": 5, **now}, ())  # begun by an older version
