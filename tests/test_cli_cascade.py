"""Both stages of a cascade from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from napari_pancreas_seg.cli import main


@pytest.fixture(scope="module")
def fine_bundle(tiny_card: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained second stage whose card names no localiser."""
    from napari_pancreas_seg.inference.frame import FrameSpec
    from napari_pancreas_seg.model.attention_unet import Architecture, build
    from napari_pancreas_seg.model.bundle import save_bundle

    frame = FrameSpec(32, 48, 3.0, (0.0, 0.0), "gland").to_dict()
    card = {**tiny_card, "name": "fine", "frame": frame}
    network = build(Architecture(**card["architecture"]))
    return save_bundle(network, card, tmp_path_factory.mktemp("fine") / "fine")


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    hu = np.full((64, 48, 5), -1000, np.int16)
    hu[8:56, 6:42] = 60
    nib.save(nib.Nifti1Image(hu, np.diag([-4.0, -4.0, 5.0, 1.0])), tmp_path / "ct.nii.gz")
    return tmp_path / "ct.nii.gz"


def test_the_user_names_the_localiser(
    ct: Path, fine_bundle: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ct.parent / "out"
    asked = ["segment", str(ct), "-o", str(out), "--model", str(fine_bundle)]
    assert main(asked) == 1
    assert "does not say which model finds the gland" in capsys.readouterr().err
    assert main([*asked, "--localiser", str(tiny_bundle)]) == 0
    record = json.loads((out / "ct_mask.json").read_text())
    assert record["model"]["name"] == "fine" and record["localiser"]["name"] == "tiny"
    # The same again: there is nothing left to do; with another localiser there is.
    before = (out / "ct_mask.json").stat().st_mtime_ns
    assert main([*asked, "--localiser", str(tiny_bundle)]) == 0
    assert (out / "ct_mask.json").stat().st_mtime_ns == before


def test_a_model_that_finds_the_gland_itself_takes_no_localiser(
    ct: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["segment", str(ct), "-o", str(ct.parent / "m.nii.gz"), "--model", str(tiny_bundle)]
    assert main([*asked, "--localiser", str(tiny_bundle)]) == 1
    assert "leave out the localiser" in capsys.readouterr().err
