"""One stage and two on the same slices: the same patients, the same thresholds, a table."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cascade
import options
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.model.attention_unet import Architecture
from napari_pancreas_seg.training.data.datasets import working_frame
from napari_pancreas_seg.training.data.layouts.slices import read_slice_layout

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients with two slices each, one of them learnt from."""
    folder = tmp_path_factory.mktemp("slices")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    y, x = np.mgrid[:512, :512]
    rows = []
    for patient in "abc":
        for k in (0, 1):
            gland = ((y - 220 - 9 * k) / 20) ** 2 + ((x - 270) / 50) ** 2 < 1
            body = ((y - 256) / 150) ** 2 + ((x - 256) / 220) ** 2 < 1
            grey = np.where(gland, 130, np.where(body, 50, 0)).astype(np.uint8)
            Image.fromarray(grey).save(folder / "images" / f"{patient}{k}.jpg")
            Image.fromarray(gland).save(folder / "masks" / f"{patient}{k}.png")
            rows.append({"name": f"{patient}{k}", "patient": patient, "crop_margin_px": "0"})
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.mark.slow
def test_every_way_scores_the_same_patients(
    slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = {
        "architecture": Architecture(filters=1),
        "calibration_batches": 1,
        "frame": FrameSpec(32, 48, 6.0),
    }
    monkeypatch.setattr(cascade, "FINE_FRAME", FrameSpec(32, 48, 4.0, (0.0, 0.0)))
    monkeypatch.setattr(cascade, "settings_of", partial(options.settings_of, **tiny))
    asked = [str(slices), "-o", str(tmp_path), "--steps", "1", "--batch-size", "2"]
    assert cascade.main([*asked, "--folds", "2"]) == 0
    data = json.loads((tmp_path / "cascade.json").read_text())
    assert [row["way"] for row in data["dice"]] == list(cascade.WHAT)
    assert len({tuple(row["patients"]) for row in data["dice"]}) == 1
    assert data["dice"][0]["gain"]["mean"] == 0
    assert cascade.table(data).count("\n| ") >= 5


def test_slices_of_a_patient_share_a_place_of_the_body(slices: Path) -> None:
    records = [r for r in read_slice_layout(slices) if r.patient == "a"]
    spec = FrameSpec(32, 48, 4.0, (0.0, 0.0))
    kept = working_frame(spec)
    target = cascade.slices_around_glands(records, spec).target[..., 0] > 127
    rows = [np.argwhere(one).mean(axis=0) for one in target]
    # One place for both, half-way between the two glands, which lie 7.2 mm apart.
    middle = [(n - 1) / 2 for n in (kept.height, kept.width)]
    np.testing.assert_allclose(np.mean(rows, axis=0), middle, atol=1)
    assert (rows[1][0] - rows[0][0]) * kept.mm_per_pixel == pytest.approx(7.2, abs=1)


def test_a_gain_is_paired() -> None:
    single = {"a": 0.5, "b": 0.9, "c": 0.7}
    rows = cascade.compared({"single": single, "slices": {p: d + 0.1 for p, d in single.items()}})
    assert rows[1]["gain"] == {"mean": 0.1, "low": 0.1, "high": 0.1}


def test_the_page_shows_what_was_measured() -> None:
    results = ROOT / "benchmarks" / "results" / "cascade.json"
    if not results.exists():
        pytest.skip("nothing was measured yet")
    page = (ROOT / "docs" / "cascade.md").read_text(encoding="utf-8")
    assert cascade.table(json.loads(results.read_text(encoding="utf-8"))) in page
