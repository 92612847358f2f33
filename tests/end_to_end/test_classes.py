"""Two classes, from a data set in the Decathlon's layout to figures for each."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from napari_pancreas_seg.cli import main
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.model.attention_unet import Architecture
from napari_pancreas_seg.model.bundle import load_card
from napari_pancreas_seg.training.data.layouts.opening import classes_in, open_dataset
from napari_pancreas_seg.training.fit.presets import PRESETS
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.judge.evaluation import evaluate
from napari_pancreas_seg.training.judge.tables import evaluation_markdown
from napari_pancreas_seg.training.run import Split, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def decathlon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six bodies, each with a grey gland and a bright tumour in it."""
    root = tmp_path_factory.mktemp("Task07")
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir()
    rng = np.random.default_rng(0)
    for case in range(6):
        hu = np.full((60, 48, 8), -1000, np.int16)
        hu[6:54, 6:42] = 20
        x, y = rng.integers(16, 30), rng.integers(12, 22)
        labels = np.zeros(hu.shape, np.uint8)
        labels[x : x + 14, y : y + 12, 2:7] = 1
        labels[x + 4 : x + 10, y + 3 : y + 9, 3:6] = 2
        hu[labels == 1], hu[labels == 2] = 110, 220
        hu = (hu + rng.normal(0, 4, hu.shape)).astype(np.int16)
        affine = np.diag([-6.0, -6.0, 5.0, 1.0])
        for array, folder in ((hu, "imagesTr"), (labels, "labelsTr")):
            nib.save(nib.Nifti1Image(array, affine), root / folder / f"pancreas_{case}.nii.gz")
    about = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "pancreas", "2": "cancer"},
    }
    (root / "dataset.json").write_text(json.dumps(about))
    return root


@pytest.fixture(scope="module")
def bundle(decathlon: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels, _ = PRESETS["pancreas-tumour"].labels(classes_in(decathlon))
    settings = TrainSettings(
        architecture=Architecture(filters=4), steps=150, steps_per_epoch=75, batch_size=4,
        frame=FrameSpec(32, 48, 6.0), averaging=0.9, learning_rate=0.01, calibration_batches=4,
    )  # fmt: skip
    output = tmp_path_factory.mktemp("run")
    return train(open_dataset(decathlon, labels), output, settings, split=Split(3))


def test_the_card_says_which_classes(bundle: Path) -> None:
    card = load_card(bundle)
    assert card["labels"] == {"pancreas": 1, "tumour": 2}
    assert card["architecture"]["classes"] == 2
    assert card["validation"]["n"] == 2


def test_figures_of_each_class(decathlon: Path, bundle: Path) -> None:
    renamed = {"pancreas": ["pancreas"], "tumour": ["cancer"]}
    data = evaluate(decathlon, bundle, labels=renamed)
    json.dumps(data, allow_nan=False)
    assert list(data["classes"]) == ["pancreas", "tumour"]
    assert all(len(found["patients"]) == 2 for found in data["classes"].values())
    assert data["mean_class_dice"]["mean"] > 0.5
    page = evaluation_markdown(data)
    assert "## Classes" in page and "| tumour |" in page


def test_classes_are_named_alike(
    decathlon: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--classes", "pancreas", "--classes", "tumour=cancer"]
    for how in ([], told):  # the model's recipe says so, too
        output = ["-o", str(tmp_path / f"{len(how)}.json")]
        assert main(["evaluate", str(decathlon), "--model", str(bundle), *how, *output]) == 0
        assert re.search(r"^tumour +[01]\.\d{3}", capsys.readouterr().out, re.MULTILINE)
    wrong = ["--classes", "pancreas", "--classes", "tumour"]
    assert main(["evaluate", str(decathlon), "--model", str(bundle), *wrong]) == 1
    assert "cancer" in capsys.readouterr().err  # what the data set calls its classes


def test_the_label_map_and_its_names_are_written(
    decathlon: Path, bundle: Path, tmp_path: Path
) -> None:
    ct, mask = decathlon / "imagesTr" / "pancreas_0.nii.gz", tmp_path / "m.nii.gz"
    assert main(["segment", str(ct), "-o", str(mask), "--model", str(bundle)]) == 0
    assert set(np.unique(nib.load(mask).dataobj)) == {0, 1, 2}
    record = json.loads((tmp_path / "m.json").read_text())
    assert {name: each["value"] for name, each in record["labels"].items()} == {
        "pancreas": 1,
        "tumour": 2,
    }
