"""Fine-tuning a tiny network on made-up slices: trial, guard, mixed weights, a bundle."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import keras
import nibabel as nib
import numpy as np
import pytest

from napari_pancreas_seg.cli import main
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.model.attention_unet import Architecture, build
from napari_pancreas_seg.model.bundle import Bundle, load_bundle, save_bundle
from napari_pancreas_seg.training.data.datasets import load_cases, working_frame
from napari_pancreas_seg.training.data.layouts import opening
from napari_pancreas_seg.training.data.layouts.opening import open_dataset
from napari_pancreas_seg.training.finetune import run as finetune_module
from napari_pancreas_seg.training.finetune.result import Gain, finetuned_card
from napari_pancreas_seg.training.finetune.run import FinetuneSettings, finetune
from napari_pancreas_seg.training.finetune.score import (
    USUAL_GREY,
    Scorer,
    rows_to_score,
    usual_grey,
    with_usual_grey,
)
from napari_pancreas_seg.training.finetune.tuner import (
    STAGES,
    Tuner,
    mixed,
    rate_share,
    tune_settings,
)

QUICK = FinetuneSettings(steps=8, batch_size=2, stages=tuple(replace(s, rate=3e-3) for s in STAGES))


FRAME = FrameSpec(32, 48, 6.0)
"""Of the tiny model."""


@pytest.fixture
def no_learning(monkeypatch):
    """A tuning that gives the weights that it began with, at once."""
    monkeypatch.setattr(Tuner, "tune", lambda self, *_, **__: self.start)


@pytest.fixture(scope="session")
def start(tiny_card, tmp_path_factory) -> Bundle:
    """A tiny untrained network whose decoder has an encoder to listen to."""
    keras.utils.set_random_seed(3)
    network = build(Architecture(**tiny_card["architecture"]))
    card = {**tiny_card, "licence": "CC BY 4.0", "training": {"patients": ["A"]}}
    return load_bundle(save_bundle(network, card, tmp_path_factory.mktemp("start") / "start"))


@pytest.fixture(scope="session")
def slices(dataset):
    data = open_dataset(dataset)
    return load_cases(data.cases, data.labels, frame=FRAME)


def changed(tuner, weights) -> set[str]:
    triples = zip(tuner.network.weights, weights, tuner.start, strict=True)
    return {one.path.split("/")[0] for one, new, old in triples if (new != old).any()}


@pytest.mark.slow
def test_the_decoder_learns_first_and_normalisation_never(start, slices):
    tuner = Tuner(start, tune_settings(start.card, 2, 0), STAGES[:1])
    tuned = tuner.tune(slices, 4)
    names = changed(tuner, tuned)
    assert {"decoder_1_conv_1", "gate_1", "head_conv"} <= names
    assert not any(name.startswith(("encoder", "bottleneck")) for name in names)
    tuner.stages = STAGES
    shares = []
    whole = tuner.tune(slices, 1000, 0.0, lambda *step: shares.append(step))
    assert tuner.steps == 8  # the fewest of two stages
    assert {stage for stage, _ in shares} == {"the decoder", "the whole network"}
    names = changed(tuner, whole)
    assert any(name.startswith("encoder_1_conv") for name in names)
    assert not any("norm" in name for name in names)
    for share in (0.0, 1.0):
        network = tuner.use(mixed(tuner.start, whole, share))
        for found, expected in zip(
            network.get_weights(), whole if share else tuner.start, strict=True
        ):
            np.testing.assert_array_equal(found, expected)


def test_the_rate_warms_up_and_falls():
    rates = [rate_share(done) for done in np.linspace(0, 1, 101)]
    assert max(rates) == pytest.approx(1.0, abs=0.02) and np.argmax(rates) in range(8, 13)
    assert rates[-1] == pytest.approx(0.05) and min(rates) >= 0.05
    assert rate_share(7.0) == rates[-1]


@pytest.mark.slow
def test_the_scorer_counts_what_the_network_finds(start, slices):
    settings = tune_settings(start.card, 4, 0)
    rows = rows_to_score(slices, slices.kind == "patient", 24)
    network = start.network()
    network.set_weights([np.zeros_like(w) for w in network.get_weights()])
    scorer = Scorer(network, settings, {**start.card, "threshold": 0.4})
    everything = scorer.dice(slices, rows)  # every pixel is 0.5: all of it found
    assert set(everything) == {f"P{i}" for i in range(6)}
    assert all(0 < dice < 0.5 for dice in everything.values())
    said = scorer.answers(slices, rows[:5])
    assert said.shape == (5, *slices.target.shape[1:])
    # 0.5 within the frame of 32 × 48 pixels of 6 mm, nothing beyond.
    assert abs(int(said[0, 152, 212, 0]) - 128) <= 1 and said[0, 152, 0, 0] == 0
    kept = working_frame(FRAME)
    share = 32 * 6 * 48 * 6 / (kept.height * kept.width)
    assert (said > 0).mean() == pytest.approx(share, rel=0.1)
    scorer = Scorer(network, settings, {**start.card, "threshold": 0.6})
    assert set(scorer.dice(slices, rows).values()) == {0.0}


def test_usual_grey_values_undo_a_curve():
    rng = np.random.default_rng(0)
    hu = np.interp(rng.random((40, 200)), np.linspace(0, 1, 21), USUAL_GREY).astype(np.uint8)
    curve = np.rint(255 * (1 - np.exp(-np.arange(256) / 60))).astype(np.uint8)
    table = usual_grey(curve[hu])
    assert table[0] == 0 and (np.diff(table.astype(int)) >= 0).all()
    middle = (hu > 30) & (hu < 160)
    assert np.abs(table[curve[hu]].astype(int) - hu)[middle].mean() < 3
    np.testing.assert_array_equal(usual_grey(np.zeros((3, 3), np.uint8)), np.arange(256))


def test_copies_keep_mask_and_patient(slices):
    copies = with_usual_grey(slices, ["P1", "P4"], "patient", 10)
    assert copies.usable.sum() == len(copies.hu) == 4
    assert set(copies.patient) == {"P1", "P4"}
    assert copies.inputs(np.arange(4)).shape == (4, 1, *slices.hu.shape[1:])
    np.testing.assert_array_equal(
        copies.target, slices.target[np.isin(slices.patient, ["P1", "P4"])]
    )


def test_the_users_patients_are_told_of_whatever_the_former_card_says(start):
    gains = dict.fromkeys(("held_out", "guard", "usual"), Gain())
    for training in ({}, {"training": {}}, {"training": {"patients": []}}):
        former = {**{k: v for k, v in start.card.items() if k != "training"}, **training}
        card = finetuned_card(former, "new", ["P1", "P0"], gains, {"slices": 2})
        assert card["training"]["patients"] == ["P0", "P1"]
    card = finetuned_card(former, "new", ["P1"], gains, {"slices": 2}, ["P1", "case-1"])
    assert card["training"]["patients"] == ["P1", "case-1"]
    assert "of 1 patient" in card["description"] and card["finetuned"]["patients"] == 1


def test_a_model_of_windows_that_training_slices_lack_is_refused(start):
    card = {**start.card, "windows": [[0, 255], [-100, 240], [80, 140]]}
    with pytest.raises(PancreasSegError, match="-100 to 240 does not lie within 0 to 255"):
        tune_settings(card, 2, 0)


def test_the_least_of_the_new_weights_that_wins_most(monkeypatch):
    def trial(share, after):
        return finetune_module._Trial(share, Gain({"p": 0.5}, {"p": after}))

    least = finetune_module._smallest_sufficient
    trials = [trial(0.25, 0.55), trial(0.5, 0.68), trial(0.75, 0.7), trial(1.0, 0.65)]
    assert least(trials).share == 0.5
    assert least([trial(0.25, 0.4), trial(0.5, 0.3)]).share == 0.25
    assert least(trials[:1]).share == 0.25


@pytest.fixture
def told(monkeypatch, tiny_card, dataset, tmp_path):
    """A fine-tuning whose trial and learning are made up, at once: its result and its card."""

    class Told(finetune_module._FineTuning):
        steps, tested, taken = 80, 80, 0.5

        def read(self, data):
            self.patients, self.n_slices = [*data.patients], 12
            self.tuner = SimpleNamespace(steps=self.steps, use=lambda weights: b"")

        def trial(self):
            self.trial_steps = self.tested
            for share, after in ((0.25, 0.503), (0.5, 0.7)):
                gain = Gain({"P0": 0.5}, {"P0": after})
                self.tried[share] = finetune_module._Trial(share, gain, gain)
            return self.tried[0.5]

        def learn(self, share):
            return {}, self.taken, Gain()

    def go(seen=(), *, output=tmp_path / "new", **changes):
        cards = []
        monkeypatch.setattr(finetune_module, "_FineTuning", type("Now", (Told,), changes))
        monkeypatch.setattr(
            finetune_module, "save_bundle", lambda _, card, *a, **k: cards.append(card)
        )
        start = Bundle({**tiny_card, "training": {"patients": [*seen]}}, b"")
        return finetune(dataset, output, start), cards[0]

    return go


def test_figures_are_those_of_the_share_that_was_taken(told):
    found, card = told()
    assert found["better"] and found["held_out"]["after"] == 0.7
    assert found["notes"] == [finetune_module.CHOSEN_ON_THEM]
    less, card = told(taken=0.25)  # what the guard allowed in the end
    assert less["held_out"]["after"] == card["finetuned"]["held_out"]["after"] == 0.503
    assert less["better"] is False  # by less than what is clearly more


def test_patients_that_the_model_knew_before_tell_nothing(told):
    found, card = told(seen=[f"P{i}" for i in range(6)])
    assert found["better"] is None and found["held_out"]["n"] == 0
    assert found["notes"] == [finetune_module.ALL_KNOWN]
    assert "left out" not in card["description"]
    assert told(seen=["P0_slice0"])[0]["better"]


def test_a_trial_is_tested_on_patients_that_the_model_did_not_know(tiny_card):
    work = finetune_module._FineTuning(Bundle(tiny_card, b""), QUICK, lambda *_: None)
    work.patients = [f"P{i}" for i in range(10)]
    assert len(work.testing()) == 2
    work.seen = [f"P{i}" for i in range(10) if i not in (3, 7)]
    assert work.fresh == ["P3", "P7"] and work.testing()[0] in work.fresh
    work.seen = work.patients[1:]
    assert work.testing() == ["P0"]
    work.seen = work.patients
    assert len(work.testing()) == 2


def test_too_few_steps_are_said(told):
    assert "time for 8 steps only" in told(steps=8)[0]["notes"][0]
    assert "time for 9 steps only" in told(tested=9)[0]["notes"][0]


def test_a_trial_that_forgets_too_much_ends_the_fine_tuning(told):
    lost = finetune_module._Trial(0.25, usual=Gain({"P0": 0.5}, {"P0": 0.4}))
    with pytest.raises(PancreasSegError, match=r"would lose 0\.10 Dice"):
        told(trial=lambda self: lost, learn=None)  # which would fail


def test_figures_from_before_are_said_to_be_such_once(start):
    gains = dict.fromkeys(("held_out", "guard", "usual"), Gain())
    card = {**start.card, "validation": {"what": "Dice"}}
    for _ in range(2):
        card = finetuned_card({**card, "weights_sha256": ""}, "new", ["P1"], gains, {"slices": 2})
    what = "Dice; figures from before this was fine-tuned, not measured again"
    assert card["validation"]["what"] == what


def test_a_name_that_another_fine_tuning_took_meanwhile_is_not_used(told, monkeypatch):
    names = iter(("improved-1", "improved-2"))
    monkeypatch.setattr(finetune_module, "_free_name", lambda: next(names))
    found, card = told(output=None)
    assert found["name"] == card["name"] == "improved-2"
    assert found["model"].endswith("improved-2.zip")


@pytest.mark.slow
def test_what_has_forgotten_too_much_is_not_kept(dataset, start, tmp_path, no_learning):
    strict = replace(QUICK, forgets_at_most=-1.0)
    with pytest.raises(PancreasSegError, match="--anyway"):
        finetune(dataset, tmp_path / "new", start, settings=strict)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_one_patient_is_learnt_from_and_said_so(
    dataset, tiny_bundle, tmp_path, monkeypatch, capsys, no_learning
):
    data = open_dataset(dataset)
    one = replace(data, cases=tuple(case for case in data.cases if case.patient == "P3"))
    monkeypatch.setattr(finetune_module, "open_for_model", lambda *_: one)
    monkeypatch.setenv("NAPARI_PANCREAS_SEG_MODELS", str(tmp_path / "own"))
    arguments = [
        "finetune",
        "--model",
        str(tiny_bundle),
        "--data",
        str(dataset),
        "--batch-size",
        "2",
    ]
    assert main([*arguments, "--anyway"]) == 0
    out = capsys.readouterr().out
    assert "learnt from 2 slices of 1 patient\n" in out and "one patient only" in out
    assert "the synthetic CT" in out and "held out" not in out
    assert "--model improved-1" in out
    assert load_bundle("improved-1").card["finetuned"]["held_out"]["n"] == 0
    # Before any work: what is there stays, and a name is used once.
    assert main([*arguments, "--name", "improved-1"]) == 1
    assert "already" in capsys.readouterr().err
    assert main([*arguments, "-o", str(tmp_path / "own" / "improved-1.zip")]) == 1
    assert "already exists" in capsys.readouterr().err
    assert finetune_module._free_name() == "improved-2"


def test_a_folder_that_is_no_data_set_is_named(tmp_path, tiny_bundle, capsys):
    arguments = ["finetune", "--model", str(tiny_bundle), "-o", str(tmp_path / "new")]
    assert main([*arguments, "--data", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert main(arguments) == 1
    assert "no case to learn from yet" in capsys.readouterr().err


@pytest.mark.parametrize("asked", [None, {"liver": ("liver",)}])
def test_a_program_is_told_of_no_option(asked, tmp_path, tiny_bundle, monkeypatch, capsys):
    monkeypatch.setattr("napari_pancreas_seg.cli.finetune._end_with_parent", lambda: None)
    refused = lambda *_: opening.choose_classes(["spleen", "kidney"], asked)  # noqa: E731
    monkeypatch.setattr(finetune_module, "open_for_model", refused)
    arguments = ["finetune", "--model", str(tiny_bundle), "-o", str(tmp_path / "new")]
    assert main([*arguments, "--data", str(tmp_path)]) == 1
    assert "--classes" in capsys.readouterr().err
    assert main([*arguments, "--data", str(tmp_path), "--json-progress"]) == 1
    said = capsys.readouterr().err
    assert said.endswith("; choose a model that knows one of them.\n") and "--" not in said


@pytest.mark.slow
def test_for_a_program_it_tells_in_json_and_ends_with_its_input(tmp_path, tiny_bundle):
    command = [sys.executable, "-m", "napari_pancreas_seg", "finetune", "--json-progress"]
    command += ["--data", str(tmp_path), "-o", str(tmp_path / "new")]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdin.close()
    assert child.wait(60) == 130
    child.stderr.close()


def test_corrections_from_the_command_line(tmp_path, capsys):
    affine = np.diag([-1.0, -1.0, 3.0, 1.0])
    ct, mask, store = tmp_path / "ct.nii.gz", tmp_path / "mask.nii.gz", tmp_path / "store"
    hu = np.random.default_rng(0).integers(-1000, 300, (40, 40, 6)).astype(np.int16)
    nib.save(nib.Nifti1Image(hu, affine), ct)
    nib.save(nib.Nifti1Image((hu > 250).astype(np.uint8), affine), mask)
    add = ["corrections", "add", str(ct), str(mask), "--slices", "1:3,5", "--folder", str(store)]
    assert main(add) == 0
    assert main(add) == 1 and "replace" in capsys.readouterr().err
    assert main([*add, "--overwrite"]) == 0
    capsys.readouterr()
    assert main(["corrections", "--folder", str(store)]) == 0
    line = capsys.readouterr().out
    assert "3 slices" in line
    assert main(["corrections", "remove", line.split(":")[0], "--folder", str(store)]) == 0
    capsys.readouterr()
    assert main(["corrections", "--folder", str(store)]) == 0
    assert "0 cases" in capsys.readouterr().err
    for slices in ("x", "1:3,5:5", "1,4:2"):
        assert main([*add[:4], "--slices", slices, "--folder", str(store)]) == 2


@pytest.mark.parametrize("unusual", [False, True])
def test_what_was_unusual_of_a_correction_is_said(tmp_path, capsys, unusual):
    affine, paths = np.diag([-1.0, -1.0, 3.0, 1.0]), [tmp_path / "ct.nii.gz", tmp_path / "m.nii.gz"]
    hu = np.full((60, 60, 6), -1000, np.float32)
    hu[5:55, 5:55] = np.random.default_rng(0).normal(50, 1, (50, 50, 6)).round()
    hu[0, 0, 0] = np.nan if unusual else -1000
    for path, array in zip(paths, (hu, (hu > 51).astype(np.uint8)), strict=True):
        nib.save(nib.Nifti1Image(array, affine), path)
    assert main(["corrections", "add", *map(str, paths), "--folder", str(tmp_path / "store")]) == 0
    said = capsys.readouterr().err
    assert said.startswith("ct.nii.gz: 1 voxel") if unusual else not said


@pytest.mark.parametrize(("values", "kept"), [((0, 255), True), ((0, 1, 255), False)])
def test_a_correction_of_one_value_is_one_whatever_it_is(tmp_path, capsys, values, kept):
    affine, store = np.diag([-1.0, -1.0, 3.0, 1.0]), tmp_path / "store"
    hu = np.random.default_rng(0).integers(-1000, 300, (40, 40, 6)).astype(np.int16)
    mask = np.resize(np.array(values, np.uint8), hu.shape)
    paths = [tmp_path / "ct.nii.gz", tmp_path / "mask.nii.gz"]
    for path, array in zip(paths, (hu, mask), strict=True):
        nib.save(nib.Nifti1Image(array, affine), path)
    status = main(["corrections", "add", *map(str, paths), "--folder", str(store)])
    assert (status == 0) is kept
    if kept:
        (path,) = store.glob("*/mask.nii.gz")
        assert (np.asarray(nib.load(path).dataobj) == (mask > 0)).all()


@pytest.mark.parametrize(
    ("options", "asked"), [((), None), (("--classes", "pancreas=gland+cyst"), ["gland", "cyst"])]
)
def test_classes_may_have_other_names_in_the_cases(
    options, asked, tiny_bundle, tmp_path, monkeypatch, capsys
):
    def opened(folder, classes, layout):
        assert classes == (asked and {"pancreas": asked})
        raise PancreasSegError("enough")

    monkeypatch.setattr(opening, "open_dataset", opened)
    arguments = ["finetune", "--model", str(tiny_bundle), "-o", str(tmp_path / "new")]
    assert main([*arguments, "--data", str(tmp_path), *options]) == 1
    assert "enough" in capsys.readouterr().err
    assert main([*arguments, "--data", str(tmp_path), "--classes", "liver"]) == 1
    assert "knows pancreas, not liver" in capsys.readouterr().err
