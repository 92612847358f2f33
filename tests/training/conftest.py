"""A made-up data set in the slice layout."""

import csv

import numpy as np
import pytest
from PIL import Image


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
