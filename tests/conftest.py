"""What the tests share: a tiny model, a small phantom, and where real data may lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports TensorFlow: its notes on start-up are not the tests' business.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The optional folder of real CT data beside the checkout."""
    if not (SHARED / "ct").is_dir():
        pytest.skip("no real CT data in ../shared")
    return SHARED


@pytest.fixture(scope="session")
def tiny_card() -> dict:
    """Card of an untrained network with 4 filters."""
    from napari_pancreas_seg.inference.frame import FrameSpec

    return {
        "name": "tiny",
        "version": "0",
        "licence": "BSD-3-Clause",
        "architecture": {"filters": 4, "height": 32, "width": 48},
        "frame": FrameSpec(32, 48, 6.0).to_dict(),
        "windows": [[0, 255], [40, 150], [80, 140]],
        "labels": {"pancreas": 1},
        "threshold": 0.5,
        "weights_sha256": "",
    }


@pytest.fixture(scope="session")
def tiny_bundle(tiny_card: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a bundle with an untrained network: fast, and right in everything but skill."""
    import keras

    from napari_pancreas_seg.model.attention_unet import Architecture, build
    from napari_pancreas_seg.model.bundle import save_bundle

    keras.utils.set_random_seed(0)
    network = build(Architecture(**tiny_card["architecture"]))
    return save_bundle(network, tiny_card, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slices of six patients, two each: a grey body with a brighter gland."""
    import csv

    import numpy as np
    from PIL import Image

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
