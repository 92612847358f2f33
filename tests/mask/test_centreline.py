"""Length, calibre and parts of glands whose centreline is known."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.mask.centreline import (
    IN_PIECES,
    TOO_LARGE,
    TOO_SMALL,
    follow,
    on_cubes,
)
from napari_pancreas_seg.mask.measures import MEASURES, measure
from napari_pancreas_seg.volume import CTVolume, Grid


def grid_of(shape, spacing) -> Grid:
    return Grid(shape, np.diag([*spacing, 1.0]))


def tube(spacing=(2.0, 1.0, 1.0), radius_mm=8.0) -> np.ndarray:
    """A quarter of a ring of radius 60 mm, from the patient's right upwards to the left."""
    z, y, x = (np.arange(round(90 / s)) * s for s in spacing)
    z, y, x = np.meshgrid(z, y, x, indexing="ij", sparse=True)
    ring = np.hypot(z - 75, x - 10)
    inside = (np.hypot(ring - 60, y - 30) <= radius_mm) & (z <= 75) & (x >= 10)
    return inside.astype(np.uint8)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.8, 0.8), (1.0, 0.7, 0.7)])
def test_a_bent_tube_is_as_long_and_as_thick_as_it_is(spacing):
    mask = tube(spacing)
    line = follow(*on_cubes(mask, grid_of(mask.shape, spacing)))
    assert line.length_mm == pytest.approx(60 * np.pi / 2, rel=0.08)
    assert line.calibre_mm == pytest.approx(16, abs=2.5)
    assert line.shares == pytest.approx((1 / 3,) * 3, abs=0.05)


def test_the_head_is_on_the_patients_right_and_cuts_move():
    mask = tube((1, 1, 1))
    grid = grid_of(mask.shape, (1, 1, 1))
    head, body, tail = follow(*on_cubes(mask, grid), (0.2, 0.9)).shares
    assert (head, body, tail) == pytest.approx((0.2, 0.7, 0.1), abs=0.05)
    line = follow(*on_cubes(mask, grid), (0.2, 0.9))
    (_, _, first), (_, _, second) = line.line[list(line.cuts)]
    assert first < second  # x runs from the patient's right to the left
    assert follow(*on_cubes(mask, grid), (0.9, 0.2)).shares == line.shares
    mirrored = np.ascontiguousarray(mask[:, :, ::-1])
    again = follow(*on_cubes(mirrored, grid), (0.2, 0.9))
    assert again.shares == pytest.approx((0.2, 0.7, 0.1), abs=0.05)


def test_axes_that_are_not_at_right_angles_are_taken_for_what_they_are():
    spacing = (2.0, 1.0, 1.0)
    straight = grid_of(tube(spacing).shape, spacing)
    leaning = straight.affine.copy()
    leaning[1, 0] = 0.8  # each slice lies 0.8 mm beside the one below
    z, y, x = np.indices(straight.shape)
    mask = ((y - 20) ** 2 + (x - 40) ** 2 <= 64) & (z < 40)
    upright = follow(*on_cubes(mask, straight))
    length = follow(*on_cubes(mask, Grid(straight.shape, leaning))).length_mm
    assert length == pytest.approx(upright.length_mm * np.hypot(2, 0.8) / 2, rel=0.04)


def test_a_ball_has_the_surface_of_a_ball():
    z, y, x = np.indices((30, 70, 70))
    mask = (((z - 15) * 2.5) ** 2 + (y - 35) ** 2 + (x - 35) ** 2 <= 30**2).astype(np.uint8)
    found = measure(mask, CTVolume.of_grid(grid_of(mask.shape, (2.5, 1, 1)), None))
    assert found["surface_cm2"] == pytest.approx(4 * np.pi * 9, rel=0.05)
    assert found["calibre_mm"] == pytest.approx(60, abs=4)
    mask[:] = 0
    mask[5, 5, 5] = 1
    found = measure(mask, CTVolume.of_grid(grid_of(mask.shape, (1, 0.5, 0.5)), None))
    assert found["surface_cm2"] is found["length_mm"] is None
    assert found["not_measured"]["surface_cm2"] == TOO_SMALL


def test_what_has_no_centreline_says_why():
    mask = np.zeros((20, 60, 60), np.uint8)
    grid = grid_of(mask.shape, (2, 1, 1))
    mask[5, 5, 5] = mask[5, 5, 6] = mask[6, 5, 5] = 1
    assert follow(*on_cubes(mask, grid)) in (IN_PIECES, TOO_SMALL)
    mask[2:8, 5:15, 5:15] = 1
    mask[12:18, 40:50, 40:50] = 1
    assert follow(*on_cubes(mask, grid)) == IN_PIECES
    ct = CTVolume.of_grid(grid, None)
    found = measure(mask, ct)
    assert found["length_mm"] is found["head_ml"] is found["cuts"] is None
    assert found["not_measured"]["length_mm"] == IN_PIECES
    mask[12:18, 40:50, 40:50] = 0
    mask[12, 40, 40] = 1  # a speck beside it does not matter
    assert isinstance(follow(*on_cubes(mask, grid)), tuple)


@pytest.mark.slow
def test_a_mask_larger_than_any_pancreas_is_not_followed():
    mask = np.ones((50, 100, 200), np.uint8)
    found = measure(mask, CTVolume.of_grid(grid_of(mask.shape, (1, 1, 1.1)), None))
    assert found["length_mm"] is found["head_ml"] is None
    assert found["not_measured"]["length_mm"] == TOO_LARGE
    assert found["volume_ml"] == pytest.approx(1100)
    found = measure(mask, CTVolume.of_grid(grid_of(mask.shape, (1, 1, 0.9)), None))
    assert found["length_mm"] > 150
    assert TOO_LARGE not in found["not_measured"].values()


@pytest.mark.slow
def test_a_stray_voxel_far_away_costs_no_memory_and_changes_nothing():
    mask = np.zeros((160, 160, 160), np.uint8)
    mask[:45, :90, :90] = tube((2, 1, 1))
    grid = grid_of(mask.shape, (2, 2, 2))
    alone = follow(*on_cubes(mask, grid))
    mask[-2:, -2:, -2:] = 1
    cubes, to_index = on_cubes(mask, grid)
    tracemalloc.start()
    line = follow(cubes, to_index)
    assert tracemalloc.get_traced_memory()[1] < 35 * cubes.size
    tracemalloc.stop()
    assert line.length_mm == pytest.approx(alone.length_mm)
    assert line.calibre_mm == alone.calibre_mm


def noisy(shape=(10, 60, 60), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(90, 15, shape).round().astype(np.int16)


def test_hu_of_the_eroded_gland_and_fat_within_the_closed_outline():
    hu = noisy()
    hu[:, :, 35:] = np.random.default_rng(1).normal(-100, 10, (10, 60, 25)).round()
    mask = np.zeros(hu.shape, np.uint8)
    mask[1:9, 20:40, 10:36] = 1  # its last column is of fat
    mask[:, 28:31, 10:15] = 0  # a notch, narrower than what is closed
    hu[:, 28:31, 10:15] = -80
    ct = CTVolume(hu, grid_of(hu.shape, (1, 1, 1)), None)
    found = measure(mask, ct)
    core = hu[2:8, 21:39, 11:35].astype(float)
    core = np.delete(core.reshape(6, 18, 24), np.s_[6:11], axis=1)  # rows beside the notch
    assert found["eroded_mean_hu"] == pytest.approx(core.mean(), abs=0.3)
    assert found["eroded_sd_hu"] == pytest.approx(15, abs=1)
    assert found["mean_hu"] < found["eroded_mean_hu"] - 5
    fat = 8 * 20 + 8 * 3 * 5
    assert found["fat_fraction"] == pytest.approx(fat / (8 * 20 * 26), abs=1e-3)
    assert found["not_measured"] == {}
    assert set(MEASURES) - {"extent_z_mm", "extent_y_mm", "extent_x_mm"} <= set(found)


def test_where_hu_were_cut_off_what_they_hid_is_not_measured():
    hu = noisy()
    hu[:, :, 35:] = np.random.default_rng(1).normal(-100, 10, (10, 60, 25)).round()
    mask = np.zeros(hu.shape, np.uint8)
    mask[1:9, 20:40, 10:37] = 1
    hu[:, ::4, :20] -= 100  # a fatty gland
    grid = grid_of(hu.shape, (1, 1, 1))

    def of(clipped):
        return measure(mask, CTVolume(clipped.astype(np.int16), grid, None))

    assert of(hu)["not_measured"] == {}
    assert of(hu.clip(-60, 400))["fat_fraction"] == of(hu)["fat_fraction"]
    at_zero = of(hu.clip(0, 255))
    assert at_zero["fat_fraction"] is at_zero["eroded_mean_hu"] is None
    assert at_zero["not_measured"]["fat_fraction"] == (
        "HU were cut off below 0: fat cannot be seen."
    )
    bright = of(hu.clip(-1000, 90))
    assert bright["eroded_mean_hu"] is None
    assert "above 90" in bright["not_measured"]["eroded_mean_hu"]
    assert bright["fat_fraction"] == of(hu)["fat_fraction"]


@pytest.mark.parametrize("seed", range(4))
def test_a_small_mask_is_not_taken_to_be_cut_off(seed):
    hu = np.random.default_rng(seed).normal(90, 20, (10, 20, 20)).round().astype(np.int16)
    mask = np.zeros(hu.shape, np.uint8)
    mask[3:7, 5:10, 5:10] = 1
    found = measure(mask, CTVolume(hu, grid_of(hu.shape, (1, 1, 1)), None))
    assert "fat_fraction" not in found["not_measured"]


def test_a_drawing_without_noise_was_not_cut_off():
    hu = np.full((10, 60, 60), 40, np.int16)
    hu[:, :, 30:] = -100
    mask = np.zeros(hu.shape, np.uint8)
    mask[1:9, 20:40, 10:35] = 1
    found = measure(mask, CTVolume(hu, grid_of(hu.shape, (1, 1, 1)), None))
    assert found["eroded_mean_hu"] is not None
    assert found["fat_fraction"] == pytest.approx(0.2)
    assert found["not_measured"] == {}


def test_without_a_ct_or_without_a_mask_nothing_is_said_of_hu():
    mask = tube()
    grid = grid_of(mask.shape, (2, 1, 1))
    found = measure(mask, CTVolume.of_grid(grid, None))
    assert found["fat_fraction"] is found["eroded_sd_hu"] is None
    assert "no CT" in found["not_measured"]["fat_fraction"]
    assert found["head_ml"] + found["body_ml"] + found["tail_ml"] == pytest.approx(
        found["volume_ml"]
    )
    empty = measure(mask * 0, CTVolume.of_grid(grid, None))
    assert empty["length_mm"] is empty["mean_hu"] is None
    assert empty["not_measured"]["calibre_mm"] == "The mask is empty."
    tumour = measure(mask, CTVolume.of_grid(grid, None), cuts=None)
    assert "length_mm" not in tumour


def test_cuts_are_recorded_as_they_were_used_and_no_others_are_taken():
    mask = tube()
    ct = CTVolume.of_grid(grid_of(mask.shape, (2, 1, 1)), None)
    assert measure(mask, ct, (0.6, 0.3)) == measure(mask, ct, (0.3, 0.6))
    for cuts in ((2, 3), (0.3, float("nan"))):
        with pytest.raises(PancreasSegError, match="from 0 to 1"):
            measure(mask, ct, cuts)
    with pytest.raises(PancreasSegError, match="load_ct"):
        measure(mask, "ct.nii.gz")
