"""A made-up data set in the slice layout."""

import csv
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image

from napari_pancreas_seg.training.fit.checkpoint import CHECKPOINT


@pytest.fixture(scope="session")
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


@pytest.fixture
def no_fit(monkeypatch):
    """Trainings give an untrained network after half an hour, at once; their folders' names.

    What is bright is said to be the gland, without asking a network.
    """
    from napari_pancreas_seg.model.attention_unet import build
    from napari_pancreas_seg.training import run
    from napari_pancreas_seg.training.judge.validation import HeldBack

    folders = []

    def fit(slices, settings, folder, **_):
        folders.append(folder.name)
        (folder / CHECKPOINT).touch()
        line = {"step": settings.steps, "loss": 0.5, "seconds": 1800.0}
        return build(settings.resolved_architecture()), [line]

    def predict(self, network):
        return (self._predicted(one, one.hu / 255) for one in self._slices)

    monkeypatch.setattr(run, "fit", fit)
    monkeypatch.setattr(run, "taught", lambda slices, *_: slices)
    monkeypatch.setattr(run, "Curves", MagicMock())
    monkeypatch.setattr(HeldBack, "predict", predict)
    return folders
