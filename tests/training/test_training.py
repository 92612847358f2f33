"""A tiny training on made-up slices: layout in, bundle out, resumable to the bit."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.preprocessing import FrameSpec
from napari_pancreas_seg.model.attention_unet import Architecture
from napari_pancreas_seg.model.bundle import load_bundle
from napari_pancreas_seg.training import fit as fit_module
from napari_pancreas_seg.training.datasets import (
    fold_of_patients,
    load_slices,
    read_slice_layout,
)
from napari_pancreas_seg.training.evaluation import ThresholdScores, evaluate
from napari_pancreas_seg.training.fit import TrainSettings, fit
from napari_pancreas_seg.training.run import Split, train

TINY = Architecture(filters=2, dropout=0.2)
SETTINGS = TrainSettings(
    architecture=TINY, steps=4, steps_per_epoch=2, batch_size=2, frame=FrameSpec(32, 48, 6.0),
    calibration_batches=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Six patients with two slices each: a grey body with a brighter gland."""
    folder = tmp_path_factory.mktemp("slices")
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:512, :512]
    rows = []
    for patient in range(6):
        for k in range(2):
            name = f"P{patient}_slice{k}"
            cy, cx = rng.uniform(210, 240), rng.uniform(250, 290)
            gland = ((y - cy) / 20) ** 2 + ((x - cx) / 50) ** 2 < 1
            body = ((y - 256) / 150) ** 2 + ((x - 256) / 220) ** 2 < 1
            grey = np.where(gland, 130, np.where(body, 50, 0)).astype(np.uint8)
            Image.fromarray(grey).save(folder / "images" / f"{name}.jpg")
            Image.fromarray(gland).save(folder / "masks" / f"{name}.png")
            rows.append({"name": name, "patient": f"P{patient}", "crop_margin_px": "40"})
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_the_layout_is_read(dataset):
    records = read_slice_layout(dataset)
    assert len(records) == 12
    assert records[0].spacing_mm == pytest.approx(0.8 * 432 / 512)
    volume, mask = records[0].load()
    assert volume.hu.shape == mask.shape == (1, 512, 512)
    # The picture is shown as it is: rows from front to back, columns from right to left.
    np.testing.assert_array_equal(volume.hu[0] > 90, mask[0] > 0)


def test_the_working_slices_keep_the_gland(dataset):
    records = read_slice_layout(dataset)
    slices = load_slices(records)
    mm2 = slices.target.astype(float).sum(axis=(1, 2)) / 255
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


def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(dataset, tmp_path):
    slices = load_slices(read_slice_layout(dataset))
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    whole, history = fit(slices, SETTINGS, tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(line):
        raise Killed

    with pytest.raises(Killed):
        fit(slices, SETTINGS, tmp_path / "broken", report=kill)
    again, continued = fit(slices, SETTINGS, tmp_path / "broken", resume=True)
    assert [line["loss"] for line in history] == pytest.approx(
        [line["loss"] for line in continued], rel=1e-4
    )
    for a, b in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    checkpoint = fit_module.Checkpoint(tmp_path)
    variable = np.arange(3.0)
    checkpoint.save([variable], 1, [])
    before = checkpoint.path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fit_module.np, "savez", full)
    with pytest.raises(PancreasSegError, match="checkpoint"):
        checkpoint.save([variable + 1], 2, [])
    assert checkpoint.path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.path.name]
    checkpoint.path.write_bytes(before[: len(before) // 2])
    with pytest.raises(PancreasSegError, match="whole checkpoint"):
        checkpoint.restore([variable])


def test_from_a_data_set_to_a_bundle(dataset, tmp_path):
    lines = []
    bundle = train(
        dataset, tmp_path / "run", SETTINGS, split=Split(3), phantoms=0,
        about={"name": "toy", "licence": "CC0"}, report=lines.append,
    )  # fmt: skip
    card = load_bundle(bundle).card
    assert card["name"] == "toy" and card["licence"] == "CC0"
    assert lines[0] == {"training_slices": 8, "validation_slices": 4}
    assert [line["step"] for line in lines[1:]] == [2, 4]
    held = set(card["validation"]["patients"])
    assert len(held) == 2 and not held & set(card["training"]["patients"])
    result = evaluate(dataset, bundle)
    assert result.dice == pytest.approx(card["validation"]["patients"], abs=2e-3)
    assert set(evaluate(dataset, bundle, every_patient=True).dice) == {f"P{i}" for i in range(6)}
    json.dumps(result.to_dict())
    with pytest.raises(PancreasSegError, match="--resume"):
        train(dataset, tmp_path / "run", SETTINGS, phantoms=0)
    with pytest.raises(PancreasSegError, match="another"):
        train(dataset, tmp_path / "run", SETTINGS, phantoms=0, split=Split(2), resume=True)
    with pytest.raises(PancreasSegError, match="slice layout"):
        train(tmp_path, tmp_path / "never", SETTINGS)
    assert not (tmp_path / "never").exists()


def test_a_few_hundred_steps_learn_the_toy_gland(dataset, tmp_path):
    settings = TrainSettings(
        architecture=TINY, steps=100, steps_per_epoch=100, frame=FrameSpec(32, 48, 6.0),
        averaging=0.9, learning_rate=0.01, calibration_batches=16, batch_size=4,
    )  # fmt: skip
    bundle = train(dataset, tmp_path / "run", settings, split=Split(3), phantoms=0)
    assert evaluate(dataset, bundle).summary()["mean"] > 0.5


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
        load_slices(read_slice_layout(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"architecture": "huge"}, {"loss": "none"}, {"steps": 0}, {"batch_size": 0}]
)
def test_impossible_recipes_are_refused(wrong):
    with pytest.raises(PancreasSegError):
        TrainSettings(**wrong)
