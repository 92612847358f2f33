"""Parts of other patients in a slice, and crops of glands: what is blended, and what is learnt."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.training.data.crops import Crop, load_crops
from napari_pancreas_seg.training.data.datasets import TrainingSlices
from napari_pancreas_seg.training.fit.mixing import MixingSettings, mix

NONE = MixingSettings.none()


def slices(crops=()):
    """Three patients with a gland of 50, 60, 70 HU in a body of 20, 30, 40, and a chest."""
    hu = np.zeros((4, 120, 160), np.uint8)
    target = np.zeros((4, 120, 160, 1), np.uint8)
    for i in range(4):
        hu[i] = 20 + 10 * i
        if i < 3:
            hu[i, 50:70, 60:100] = 50 + 10 * i
            target[i, 50:70, 60:100] = 255
    return TrainingSlices(
        hu, target, np.array(["A", "B", "C", "D"]), np.array(["patient"] * 3 + ["negative"]),
        np.ones(4, bool), tuple(crops),
    )  # fmt: skip


def crop():
    """A gland of 200 HU, that touches its box, in 100."""
    y, x = np.mgrid[:24, :44]
    gland = ((y - 11.5) / 12) ** 2 + ((x - 21.5) / 22) ** 2 < 1
    return Crop("N", np.where(gland, 200, 100).astype(np.uint8), 255 * gland.astype(np.uint8))


def mixed(settings, data=None, rows=range(4), n=6, seed=0):
    data = slices([crop()]) if data is None else data
    chances = np.full(len(data), 1 / len(data))
    chosen = np.array([row for row in rows for _ in range(n)])
    return mix(np.random.default_rng(seed), data, chances, chosen, settings), chosen


def test_nothing_mixed_is_the_slices_themselves():
    batch, chosen = mixed(NONE)
    data = slices()
    np.testing.assert_array_equal(batch["hu"], data.inputs(chosen))
    np.testing.assert_array_equal(batch["target"], data.target[chosen])
    assert (batch["weight"] == 255).all()


def test_a_crop_covers_the_gland_and_its_edge_counts_less():
    batch, _ = mixed(replace(NONE, crop_share=1.0), rows=[0, 1])
    assert (batch["hu"].reshape(12, -1).max(axis=1) > 170).all()  # less of noise
    there = batch["target"][:, 45:75, 55:105, 0]
    assert (there.max(axis=(1, 2)) > 250).all()
    assert (batch["weight"].min(axis=(1, 2, 3)) < 120).all()
    # Far from it nothing changes.
    assert (batch["weight"][:, :20] == 255).all() and (batch["target"][:, :20] == 0).all()


def test_of_a_crop_that_stands_alone_the_rest_is_not_learnt():
    batch, _ = mixed(replace(NONE, alone_share=1.0), rows=[0], n=12)
    weight = batch["weight"][..., 0] / 255
    assert (weight.mean(axis=(1, 2)) < 24 * 44 / (120 * 160)).all()
    assert weight.max(axis=(1, 2)).min() > 0.8
    # What counts in full is the crop alone, not blended.
    full = weight > 0.99
    assert set(np.unique(batch["hu"][:, 0][full] // 10)) <= {9, 10, 19, 20}


def test_a_piece_brings_its_mask_along():
    data = slices()
    batch, _ = mixed(replace(NONE, piece_share=1.0), data, rows=[0], n=30)
    bright = batch["hu"][:, 0] >= 59.5
    assert bright.any(axis=(1, 2)).sum() > 5  # another's gland
    assert (batch["target"][..., 0][bright] > 100).all()


def test_negatives_stay_as_they_are():
    batch, chosen = mixed(MixingSettings(0.4, 0.3, 0.3), rows=[3])
    np.testing.assert_array_equal(batch["hu"], slices().inputs(chosen))


def write(folder, rows, sizes):
    for part in ("images", "masks"):
        (folder / part).mkdir()
    for row, (height, width) in zip(rows, sizes, strict=True):
        grey = np.full((height, width), 175, np.uint8)
        grey[0] = 0
        Image.fromarray(grey).save(folder / "images" / f"{row['name']}.png")
        Image.fromarray(255 * (grey > 100).astype(np.uint8)).save(
            folder / "masks" / f"{row['name']}.png"
        )
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_crops_are_read_at_the_scale_of_the_slices_without_those_held_back(tmp_path):
    names = [("NIH_0002_a", "0002"), ("OTHER_0002_a", "0002"), ("NIH_0003_b", "0003")]
    rows = [{"name": n, "patient": p, "spacing_xy_mm": "0.5"} for n, p in names]
    write(tmp_path, rows, [(40, 60)] * 3)
    crops = load_crops(tmp_path, 1.0, {"0002"})
    assert [c.patient for c in crops] == ["OTHER_0002", "0003"]
    assert crops[0].hu.shape == crops[0].target.shape == (20, 30)
    assert abs(int(crops[0].hu[10, 15]) - (175 / 255 * 400 - 150)) <= 1
    assert crops[0].target[10].min() == 255 and crops[0].hu[10, 0] == crops[0].hu[10, 15]


@pytest.mark.parametrize("damage", ["column", "file", "spacing"])
def test_what_is_wrong_with_crops_is_said(tmp_path, damage):
    row = {"name": "NIH_0002_a", "patient": "0002", "spacing_xy_mm": "0.5"}
    if damage == "column":
        del row["spacing_xy_mm"]
    if damage == "spacing":
        row["spacing_xy_mm"] = "0"
    write(tmp_path, [row], [(40, 60)])
    if damage == "file":
        (tmp_path / "masks" / "NIH_0002_a.png").unlink()
    with pytest.raises(PancreasSegError, match="spacing_xy_mm" if damage == "column" else "NIH_"):
        load_crops(tmp_path, 1.0)
    with pytest.raises(PancreasSegError, match="holds no crops"):
        load_crops(tmp_path / "nowhere", 1.0)
