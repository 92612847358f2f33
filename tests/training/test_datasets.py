"""Whole volumes and single slices at the working scale."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.body import find_body, place_frame
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.io import save_ct
from napari_pancreas_seg.training.data import datasets
from napari_pancreas_seg.training.data.datasets import (
    FAR_SLICES,
    NEAR_MM,
    SLICE_STEP_MM,
    WORKING_FRAME,
    TrainingSlices,
    load_cases,
    load_negatives,
    sample_slices,
    working_frame,
)
from napari_pancreas_seg.training.data.layouts.slices import read_slice_layout
from napari_pancreas_seg.volume import CTVolume, Grid

LABELS = {"pancreas": 1, "tumour": 2}


@dataclass(frozen=True, eq=False)
class Case:
    """A case that is made up, not read."""

    name: str
    hu: np.ndarray
    mask: np.ndarray
    spacing: tuple = (1.0, 3.0, 3.0)
    slices: tuple[int, ...] | None = None
    files: tuple = ()

    @property
    def patient(self):
        return self.name

    def load(self):
        grid = Grid(self.hu.shape, np.diag([*self.spacing, 1.0]))
        return replace(make_volume(), hu=self.hu, grid=grid), self.mask


def make_volume():
    affine = np.diag([-3.0, -3.0, 1.0, 1.0])
    return CTVolume.from_source_array(np.zeros((4, 4, 2), np.int16), affine, name="made up")


def body(n=200, first=90, last=130, spacing=1.0, **kwargs):
    """A body whose slices differ in HU, with a gland, and a tumour in the middle of it."""
    y, x = np.mgrid[:100, :130]
    inside = ((y - 50) / 35) ** 2 + ((x - 65) / 55) ** 2 < 1
    hu = np.where(inside, 60, -1000)[None] + np.arange(n)[:, None, None] % 100 * inside
    mask = np.zeros((n, 100, 130), np.uint8)
    mask[first:last, 35:45, 50:80] = 1
    mask[(first + last) // 2, 38:42, 60:70] = 2
    return Case("P1", hu.astype(np.int16), mask, (spacing, 3.0, 3.0), **kwargs)


@pytest.mark.slow
def test_a_volume_is_shown_as_inference_shows_it():
    dark = body(spacing=5.0, n=40, first=10, last=30)
    dark = replace(dark, hu=np.where(dark.hu > -500, dark.hu % 3 + 30, -1000).astype(np.int16))
    volume, mask = dark.load()
    shift = find_body(volume.hu, volume.spacing).shift
    assert shift > 30
    rows, columns = place_frame(volume.hu, volume.spacing, WORKING_FRAME).into()
    slices = load_cases([dark], LABELS)
    assert len(slices) == 40 and slices.usable.all()
    for i in (0, 20):
        shown = rows @ np.clip(volume.hu[i].astype(np.float32) + shift, 0, 255) @ columns.T
        assert np.abs(slices.hu[i] - shown).max() <= 0.5
        for c in (0, 1):
            share = rows @ (mask[i] == c + 1).astype(np.float32) @ columns.T
            assert np.abs(slices.target[i, ..., c] / 255.0 - share).max() < 1 / 255
    assert slices.target.astype(int).sum(axis=-1).max() <= 255
    assert slices.present.sum(axis=0).tolist() == [20, 1]


@pytest.mark.slow
def test_slices_are_thinned_and_what_lies_beyond_the_gland_is_bounded(monkeypatch):
    slices = load_cases([body()], LABELS)
    z = heights(slices)
    assert (np.diff(z) >= 2).all()
    shown = slices.present.any(axis=1)
    assert 40 / SLICE_STEP_MM - 1 <= shown.sum() <= 40 / SLICE_STEP_MM + 5
    away = np.abs(z[:, None] - z[shown]).min(axis=1)
    assert (away > NEAR_MM).sum() == FAR_SLICES
    assert z.min() == 0 and z.max() > 195
    monkeypatch.setattr(datasets, "SLICE_STEP_MM", 0.5)
    assert len(load_cases([body()], LABELS)) > 90


def heights(slices, n=200):
    """Slice of the made-up body that each stored slice is, by its HU and the slices' order."""
    value = slices.hu[np.arange(len(slices)), 200 - 2, 200].astype(int) - 60
    turns = np.cumsum(np.r_[0, np.diff(value) < 0])
    return value + 100 * turns


@pytest.mark.slow
def test_reviewed_slices_alone_are_learnt_from():
    slices = load_cases([body(slices=(0, 50, 110, 111, 199))], LABELS)
    assert heights(slices).tolist() == [0, 50, 110, 199] and slices.usable.all()


def test_a_case_without_a_body_is_named():
    air = body(n=12, first=4, last=8)
    air = replace(air, hu=np.full_like(air.hu, -1000))
    with pytest.raises(PancreasSegError, match="Case P1: No soft tissue"):
        load_cases([air], LABELS)
    with pytest.raises(PancreasSegError, match="no cases"):
        load_cases([], LABELS)


@pytest.mark.slow
def test_from_a_cache_comes_the_same(dataset, tmp_path, monkeypatch):
    cases = read_slice_layout(dataset)
    told = []
    plain = load_cases(cases, {"pancreas": 1})
    cached = load_cases(
        cases, {"pancreas": 1}, cache=tmp_path, on_case=lambda *done: told.append(done)
    )
    assert told[0] == (1, 12) and told[-1] == (12, 12)
    monkeypatch.setattr(datasets, "_rows_of", lambda *case: pytest.fail("made anew"))
    again = load_cases(cases, {"pancreas": 1}, cache=tmp_path)
    for other in (cached, again):
        for name in ("hu", "target"):
            np.testing.assert_array_equal(getattr(other, name)[:], getattr(plain, name))
        for name in ("patient", "kind", "usable", "present"):
            np.testing.assert_array_equal(getattr(other, name), getattr(plain, name))
    assert len(list(tmp_path.glob("*.rows"))) == 12


@pytest.mark.slow
def test_sets_are_joined(drawn, monkeypatch):
    monkeypatch.setattr(datasets, "load_sample", lambda: drawn(0))
    both = TrainingSlices.join([load_cases([body()], {"pancreas": 1}), sample_slices()])
    chosen = np.array([0, len(both) - 1])
    shown = both.inputs(chosen)
    assert shown.shape == (2, 1, 304, 400)
    np.testing.assert_array_equal(shown[:, 0], both.hu[chosen])
    assert set(both.kind) == {"patient", "sample"}


def test_what_is_kept_has_room_to_move_the_frame_in_and_its_resolution():
    assert working_frame(FrameSpec()) == WORKING_FRAME
    assert working_frame(FrameSpec(offset_mm=(0.0, 0.0))).offset_mm == (0.0, 0.0)
    small = FrameSpec(32, 32, 2.0, (5.0, 0.0))
    assert working_frame(small) == replace(WORKING_FRAME, offset_mm=(5.0, 0.0))
    organs = working_frame(FrameSpec(224, 288, 1.3, (0.0, 0.0)))
    assert organs == FrameSpec(408, 512, 1.0, (0.0, 0.0))
    fine = FrameSpec(160, 224, 0.8, (0.0, 0.0))
    kept = working_frame(fine)
    assert kept.mm_per_pixel == fine.mm_per_pixel
    for size, all_of_it in ((fine.height, kept.height), (fine.width, kept.width)):
        assert (all_of_it - size) * kept.mm_per_pixel >= 110


def test_a_ct_without_pancreas_shows_nothing(tmp_path):
    volume = CTVolume.from_source_array(
        np.moveaxis(body(n=20, first=8, last=12).hu, 0, 2), np.diag([3.0, 3.0, 5.0, 1.0]), name="a"
    )
    path = tmp_path / "none.nii.gz"
    save_ct(volume, path)
    slices = load_negatives([f"{path}:5:9"], classes=2)
    assert slices.usable.sum() == 4 and not slices.target[:].any()
    assert slices.target.shape[-1] == 2
    with pytest.raises(PancreasSegError, match="no slice is left"):
        load_negatives([f"{path}:500"])
