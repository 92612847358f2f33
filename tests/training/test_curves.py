"""Learning curves: a table, a picture, and TensorBoard's events, each epoch told once."""

import csv
import importlib.util

import numpy as np
import pytest
from PIL import Image

from napari_pancreas_seg.io.table import csv_text
from napari_pancreas_seg.training.fit import curves as module
from napari_pancreas_seg.training.fit.curves import show

HISTORY = [
    {"step": 2, "loss": 1.5, "seconds": 3.0},
    {"step": 4, "loss": 1.2, "seconds": 2.0, "validation_dice": 0.4, "dice_tumour": 0.1},
    {"step": 6, "loss": 1.1, "seconds": 2.0, "validation_dice": 0.6, "dice_tumour": 0.3},
]


def test_the_table_has_a_column_for_every_figure():
    rows = list(csv.DictReader(csv_text(HISTORY).splitlines()))
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert [row["validation_dice"] for row in rows] == ["", "0.4", "0.6"]
    assert [float(row["loss"]) for row in rows] == [1.5, 1.2, 1.1]


@pytest.fixture
def without_tensorboard(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)


@pytest.mark.slow
def test_everything_is_written_anew(without_tensorboard, tmp_path):
    show(tmp_path, HISTORY[:1])
    with Image.open(tmp_path / "curves.png") as picture:
        one = np.asarray(picture)
    show(tmp_path, HISTORY)
    with Image.open(tmp_path / "curves.png") as picture:
        both = np.asarray(picture)
    assert both.shape[0] > 1.5 * one.shape[0]  # the second panel is there with the first Dice
    assert (tmp_path / "history.csv").read_text() == csv_text(HISTORY)
    names = {"curves.png", "history.csv", "history.json"}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="TensorBoard is not installed"
)
def test_tensorboard_is_told_of_no_epoch_twice(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for epochs in (1, 2, 3):
        show(tmp_path, HISTORY[:epochs])
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    tags = found.Tags()["tensors"]
    assert set(tags) == {"loss", "seconds", "validation_dice", "dice_tumour"}
    assert [event.step for event in found.Tensors("loss")] == [2, 4, 6]
    assert [event.step for event in found.Tensors("dice_tumour")] == [4, 6]
