"""Whole volumes and single slices at the working scale, with their neighbours."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_pancreas_seg.data.phantom import make_phantom
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.frame import contrast_shift, place_frame
from napari_pancreas_seg.inference.neighbours import neighbouring_slices
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
    load_phantoms,
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


def test_a_volume_is_shown_as_inference_shows_it():
    dark = body(spacing=5.0, n=40, first=10, last=30)
    dark = replace(dark, hu=np.where(dark.hu > -500, dark.hu % 3 + 30, -1000).astype(np.int16))
    volume, mask = dark.load()
    shift = contrast_shift(volume.hu)
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


def test_slices_are_thinned_and_what_lies_beyond_the_gland_is_bounded():
    slices = load_cases([body()], LABELS)
    z = heights(slices)
    assert (np.diff(z) >= 2).all()
    shown = slices.present.any(axis=1)
    assert 40 / SLICE_STEP_MM - 1 <= shown.sum() <= 40 / SLICE_STEP_MM + 5
    away = np.abs(z[:, None] - z[shown]).min(axis=1)
    assert (away > NEAR_MM).sum() == FAR_SLICES
    assert z.min() == 0 and z.max() > 195
    assert len(load_cases([body()], LABELS, slice_step_mm=0.5)) > 90


def heights(slices, n=200):
    """Slice of the made-up body that each stored slice is, by its HU and the slices' order."""
    value = slices.hu[np.arange(len(slices)), 200 - 2, 200].astype(int) - 60
    turns = np.cumsum(np.r_[0, np.diff(value) < 0])
    return value + 100 * turns


def test_reviewed_slices_alone_are_learnt_from_and_others_serve_as_neighbours():
    case = body(slices=(0, 50, 110, 111, 199))
    alone = load_cases([case], LABELS)
    assert heights(alone).tolist() == [0, 50, 110, 199] and alone.usable.all()
    slices = load_cases([case], LABELS, neighbours_mm=5.0)
    z = heights(slices)
    assert z[slices.usable].tolist() == [0, 50, 110, 199]
    assert not slices.target[~slices.usable].any()
    around = z[slices.neighbours[slices.usable]]
    assert around.tolist() == [[0, 0, 5], [45, 50, 55], [105, 110, 115], [194, 199, 199]]


@given(
    n=st.integers(2, 120),
    spacing=st.floats(0.4, 12.0),
    distance=st.floats(1.0, 12.0),
    step=st.floats(0.1, 4.0),
    seed=st.integers(0, 99),
)
def test_neighbours_lie_at_their_distance(n, spacing, distance, step, seed):
    rng = np.random.default_rng(seed)
    labelled = np.flatnonzero(rng.random(n) < 0.7)
    choice = datasets._Choice(LABELS, distance, step)
    chosen = datasets._chosen(labelled, rng.random(len(labelled)) < 0.3, spacing, choice)
    stored, neighbours = datasets._with_neighbours(chosen, n, spacing, choice)
    assert set(chosen) <= set(stored) and (np.diff(stored) > 0).all()
    table = neighbouring_slices(n, spacing, distance)
    for row in np.flatnonzero(np.isin(stored, chosen)):
        got = stored[neighbours[row]]
        assert got[1] == stored[row]
        off = np.abs(got - table[stored[row]]) * spacing
        assert off.max() <= min(step, distance) / 2 + 1e-6
        inner = table[stored[row]].min() > 0 and table[stored[row]].max() < n - 1
        if inner and spacing <= 2 * distance:
            assert got[0] < got[1] < got[2]


def test_single_slices_have_no_neighbours(dataset):
    with pytest.raises(PancreasSegError, match="single slice") as caught:
        load_cases(read_slice_layout(dataset), {"pancreas": 1}, neighbours_mm=5.0)
    assert "\n" not in str(caught.value)


def test_a_case_without_a_body_is_named():
    air = body(n=12, first=4, last=8)
    air = replace(air, hu=np.full_like(air.hu, -1000))
    with pytest.raises(PancreasSegError, match="Case P1: No soft tissue"):
        load_cases([air], LABELS)
    with pytest.raises(PancreasSegError, match="no cases"):
        load_cases([], LABELS)


def test_from_a_cache_comes_the_same(dataset, tmp_path, monkeypatch):
    cases = read_slice_layout(dataset)
    told = []
    plain = load_cases(cases, {"pancreas": 1})
    cached = load_cases(
        cases, {"pancreas": 1}, cache=tmp_path, on_case=lambda *done: told.append(done)
    )
    assert told[0] == (1, 12) and told[-1] == (12, 12)
    monkeypatch.setattr(datasets, "_rows_of", None)
    again = load_cases(cases, {"pancreas": 1}, cache=tmp_path)
    for other in (cached, again):
        for name in ("hu", "target"):
            np.testing.assert_array_equal(getattr(other, name)[:], getattr(plain, name))
        for name in ("patient", "kind", "neighbours", "usable", "present"):
            np.testing.assert_array_equal(getattr(other, name), getattr(plain, name))
    assert len(list(tmp_path.glob("*.rows"))) == 12


def test_sets_are_joined_with_their_neighbours(monkeypatch):
    small = {"spacing_mm": (3.0, 5.0, 5.0), "shape": (84, 56, 72)}
    monkeypatch.setattr(datasets, "make_phantom", lambda seed: make_phantom(seed, **small))
    phantoms = load_phantoms([1], neighbours_mm=5.0)
    both = TrainingSlices.join([load_cases([body()], {"pancreas": 1}, neighbours_mm=5.0), phantoms])
    first = len(both) - len(phantoms)
    assert (both.neighbours[:first] < first).all() and (both.neighbours[first:] >= first).all()
    chosen = np.flatnonzero(both.usable)[[0, -1]]
    shown = both.inputs(chosen)
    assert shown.shape == (2, 3, 304, 400)
    np.testing.assert_array_equal(shown[:, 1], both.hu[chosen])
    assert set(both.kind) == {"patient", "phantom"}
    # A phantom's slices lie 3 mm apart: the neighbours of every second are among those.
    assert phantoms.usable.sum() >= len(phantoms) - 4


def test_a_ct_without_pancreas_shows_nothing(tmp_path):
    volume = CTVolume.from_source_array(
        np.moveaxis(body(n=20, first=8, last=12).hu, 0, 2), np.diag([3.0, 3.0, 5.0, 1.0]), name="a"
    )
    path = tmp_path / "none.nii.gz"
    save_ct(volume, path)
    slices = load_negatives([f"{path}:5:9"], neighbours_mm=5.0, classes=2)
    assert slices.usable.sum() == 4 and not slices.target[:].any()
    assert slices.target.shape[-1] == 2
    with pytest.raises(PancreasSegError, match="no slice is left"):
        load_negatives([f"{path}:500"])
