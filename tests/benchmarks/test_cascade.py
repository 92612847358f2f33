"""One stage and two on the same slices: the same patients, the same thresholds, a table."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
cascade = pytest.importorskip("cascade", reason="the benchmarks are not part of this")


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


@pytest.fixture(scope="module")
def bundles(tiny_card: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages, untrained: what they find is of no account here."""
    from napari_pancreas_seg.inference.frame import FrameSpec
    from napari_pancreas_seg.model.attention_unet import Architecture, build
    from napari_pancreas_seg.model.bundle import save_bundle

    folder = tmp_path_factory.mktemp("models")
    recipe = {"split": {"folds": 3, "fold": 0, "seed": 0}, "steps": 2}
    for name, frame in (
        ("single", FrameSpec(32, 48, 6.0)),
        ("fine", FrameSpec(32, 48, 4.0, (0.0, 0.0), "gland")),
    ):
        card = {
            **tiny_card,
            "name": name,
            "frame": frame.to_dict(),
            "training": {"patients": ["b"], "recipe": recipe},
        }
        save_bundle(build(Architecture(**card["architecture"])), card, folder / name)
    return folder


def test_every_way_scores_the_same_patients(slices: Path, bundles: Path, tmp_path: Path) -> None:
    import nibabel as nib

    hu = np.full((64, 48, 4), -1000, np.int16)
    hu[8:56, 6:42] = 60
    nib.save(nib.Nifti1Image(hu, np.diag([-4.0, -4.0, 5.0, 1.0])), tmp_path / "ct.nii.gz")
    models = ["--single", str(bundles / "single"), "--fine", str(bundles / "fine")]
    ct = ["--ct", str(tmp_path / "ct.nii.gz"), "--runs", "1"]
    assert cascade.main([str(slices), *models, *ct, "-o", str(tmp_path / "found.json")]) == 0
    data = json.loads((tmp_path / "found.json").read_text())
    assert [row["way"] for row in data["dice"]] == list(cascade.WHAT)
    assert all(row["patients"].keys() == {"a", "c"} for row in data["dice"])
    assert data["dice"][0]["gain"]["mean"] == 0
    timing = data["cts"][0]
    assert timing["network_slices"]["single"] == 4 <= timing["network_slices"]["patient"]
    assert cascade.table(data).count("\n| ") >= 6


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
