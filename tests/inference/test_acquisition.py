"""What the values of a CT tell of how it was taken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from napari_pancreas_seg.cohort.inspection import inspect
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.acquisition import acquisition_warnings, find_acquisition
from napari_pancreas_seg.inference.body import find_body
from napari_pancreas_seg.inference.scan_context import ScanContext
from napari_pancreas_seg.io import load_ct, save_ct
from napari_pancreas_seg.volume import CTVolume

SPACING = (5.0, 2.0, 2.0)


def trunk(aorta: float, liver: float, *, noise: float = 8.0, seed: int = 0) -> CTVolume:
    """A body with a spine, an aorta before it and a liver on the right."""
    y, x = np.ogrid[:160, :200]
    hu = np.full((24, 160, 200), -1000.0)
    fat = ((y - 80) / 62) ** 2 + ((x - 100) / 90) ** 2 < 1
    hu[np.broadcast_to(fat, hu.shape)] = -100
    inner = ((y - 80) / 52) ** 2 + ((x - 100) / 80) ** 2 < 1
    hu[np.broadcast_to(inner, hu.shape)] = 50
    hu[np.broadcast_to(inner & (x > 25) & (x < 88) & (y < 90), hu.shape)] = liver
    hu[np.broadcast_to(((y - 112) / 12) ** 2 + ((x - 100) / 14) ** 2 < 1, hu.shape)] = 500
    hu[np.broadcast_to((y - 92) ** 2 + (x - 106) ** 2 < 30, hu.shape)] = aorta
    hu += np.random.default_rng(seed).normal(0, noise, hu.shape)
    affine = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1])
    return CTVolume.from_source_array(hu.round().astype(np.int16).transpose(2, 1, 0), affine)


def look(volume: CTVolume) -> dict:
    return find_acquisition(volume, find_body(volume.hu, volume.spacing))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("aorta", "liver", "phase"),
    [
        (150, 105, "portal-venous"),
        (320, 65, "arterial"),
        (45, 55, "no contrast agent"),
        (105, 100, "delayed"),
        (240, 85, "unknown"),  # late arterial or early portal-venous
    ],
)
def test_the_phase_is_read_from_aorta_and_liver(aorta: float, liver: float, phase: str) -> None:
    found = look(trunk(aorta, liver))
    assert found["phase"] == phase
    if aorta > 90:
        assert found["aorta_hu"] == pytest.approx(aorta, abs=8)
    assert found["liver_hu"] == pytest.approx(liver, abs=8)


@pytest.mark.slow
def test_without_an_aorta_or_of_a_chest_the_phase_is_not_known() -> None:
    volume = trunk(150, 105)
    hidden = np.where(volume.hu > 130, np.int16(60), volume.hu)
    bright = hidden.copy()
    bright[:, 60:90, 130:160] = 150  # something has taken up contrast agent
    assert look(replace(volume, hu=bright))["phase"] == "unknown"
    body = find_body(volume.hu, volume.spacing)
    assert find_acquisition(volume, replace(body, chest=0.8))["phase"] == "unknown"
    turned = replace(body, turned=("front and back",))
    assert find_acquisition(volume, turned)["phase"] == "unknown"
    few = replace(
        volume, hu=volume.hu[:2], grid=volume.grid.sub_grid((2, 160, 200), (0, 0, 0), (1, 1, 1))
    )
    assert look(few)["phase"] == "unknown"


@pytest.mark.slow
def test_noise_and_metal_are_measured_and_noted_where_they_are() -> None:
    usual = look(trunk(150, 105))
    assert usual["noise_hu"] == pytest.approx(8, abs=1.5)
    assert usual["metal_ml"] == 0
    assert acquisition_warnings(usual) == ()
    noisy = trunk(150, 105, noise=60)
    noisy.hu[10:12, 70:76, 140:144] = 3000
    found = look(noisy)
    assert found["noise_hu"] > 40
    assert found["metal_ml"] == pytest.approx(0.96, abs=0.01)
    noise, metal = acquisition_warnings(found)
    assert "noisy" in noise and "metal" in metal
    beside = trunk(150, 105)
    beside.hu[10:12, :6, :4] = 3000  # a buckle on the table
    assert look(beside)["metal_ml"] == 0


def test_check_says_of_a_ct_what_a_run_says(tmp_path) -> None:
    dark = trunk(50, 50)
    dark = replace(dark, hu=np.where(dark.hu > 30, dark.hu - 30, dark.hu).astype(np.int16))
    notes = ScanContext.of(dark).notes
    assert any("darker than in portal-venous" in note for note in notes)
    assert {*notes} <= {*inspect(save_ct(dark, tmp_path / "ct.nii.gz"))["suspicious"]}


def test_check_names_them(tmp_path) -> None:
    path = save_ct(trunk(150, 105), tmp_path / "ct.nii.gz")
    scan = inspect(path)["scan"]
    assert scan["phase"] == "portal-venous"
    assert scan["slice_spacing_mm"] == 5
    assert (scan["cut_off"], scan["exchanged"]) == ([], [])


@pytest.mark.slow
def test_real_cts(shared) -> None:
    phases = {
        "example/ct.nii.gz": "no contrast agent",
        "dicom": "portal-venous",
        "negatives/chest_1.nii.gz": "unknown",
        "negatives/chest_2.nii.gz": "unknown",
    }
    found = {}
    for name in phases:
        try:
            found[name] = look(load_ct(shared / "ct" / name))["phase"]
        except PancreasSegError as error:  # pragma: no cover
            found[name] = str(error)
    assert found == phases
