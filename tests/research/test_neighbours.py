"""2.5-D: what lies at its distance below and above a slice is what the network sees."""

import json
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import neighbours
import options
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.io import save_ct, save_mask
from napari_pancreas_seg.model.attention_unet import Architecture
from napari_pancreas_seg.training.data.layouts.opening import open_dataset
from napari_pancreas_seg.training.fit.recipe import TrainSettings


@given(n=st.integers(1, 60), spacing=st.floats(0.4, 12.0), distance=st.floats(1.0, 12.0))
def test_neighbours_lie_at_their_distance(n, spacing, distance):
    below, itself, above = neighbours.neighbouring_slices(n, spacing, distance).T
    assert (itself == np.arange(n)).all()
    inner = (below > 0) & (above < n - 1)
    off = np.abs((above - itself)[inner] * spacing - distance)
    assert (off <= spacing / 2 + 1e-6).all() and (below + above == 2 * itself)[inner].all()


@pytest.fixture(scope="module")
def volumes(drawn, tmp_path_factory):
    """Two patients of a few slices."""
    folder = tmp_path_factory.mktemp("volumes")
    for seed in (1, 3):
        phantom = drawn(seed)
        save_ct(phantom.volume, folder / f"p{seed}.nii.gz")
        save_mask(phantom.mask, phantom.volume, folder / f"p{seed}_mask.nii.gz")
    return folder


@pytest.mark.slow
def test_the_stored_rows_are_the_slices_below_and_above(volumes):
    data = open_dataset(volumes)
    settings = TrainSettings(frame=FrameSpec(32, 48, 6.0))
    slices = neighbours.load(data.cases, dict(data.labels), settings, 10.0)
    below, itself, above = slices.neighbours.T  # at the ends of a CT, the slice at the end
    inner = np.flatnonzero(slices.usable & (below < itself) & (itself < above))
    assert len(inner) > 10
    assert (np.diff(slices.neighbours[inner], axis=1) == 1).all()
    shown = slices.inputs(inner[:3])
    np.testing.assert_array_equal(shown[:, 1], slices.hu[inner[:3]])
    np.testing.assert_array_equal(shown[:, 0], slices.hu[inner[:3] - 1])


@pytest.mark.slow
def test_both_are_trained_and_scored(volumes, tmp_path, monkeypatch, capsys):
    tiny = {
        "architecture": Architecture(filters=1),
        "calibration_batches": 1,
        "frame": FrameSpec(32, 48, 6.0),
    }
    monkeypatch.setattr(neighbours, "settings_of", partial(options.settings_of, **tiny))
    asked = [str(volumes), "-o", str(tmp_path), "--steps", "1", "--batch-size", "2"]
    assert neighbours.main([*asked, "--folds", "2", "--distance-mm", "10"]) == 0
    assert "difference" in capsys.readouterr().out
    found = json.loads((tmp_path / "neighbours.json").read_text())["patients"]
    assert found["single slices"].keys() == found["neighbouring slices"].keys()
