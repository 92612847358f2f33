from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from napari_pancreas_seg.mask.postprocessing import (
    clear_small_ends,
    largest_component,
    main_pieces,
    remove_holes,
    smooth_along_z,
)


@pytest.mark.parametrize("spacing", [0.5, 1.0, 2.5])
def test_smoothing_is_a_gaussian_in_mm(spacing: float) -> None:
    probability = np.random.default_rng(0).random((40, 9, 7)).astype(np.float16)
    smooth = smooth_along_z(probability, spacing)
    expected = ndimage.gaussian_filter1d(
        probability.astype(np.float32), 2 / spacing, axis=0, mode="nearest", truncate=3
    )
    assert smooth.dtype == np.float16
    np.testing.assert_allclose(smooth, expected, atol=2e-3)


def test_smoothing_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    probability = np.random.default_rng(0).random((20, 9, 7)).astype(np.float32)
    probability[:, 2:4] = 0
    whole = smooth_along_z(probability, 1)
    monkeypatch.setattr("napari_pancreas_seg.mask.postprocessing._CHUNK_VOXELS", 150)
    np.testing.assert_array_equal(smooth_along_z(probability, 1), whole)


@pytest.mark.parametrize(
    ("slices", "spacing", "sigma"), [(9, 4, 2), (9, 5, 2), (1, 1, 2), (9, 1, 0)]
)
def test_thick_slices_are_not_mixed(slices: int, spacing: float, sigma: float) -> None:
    probability = np.random.default_rng(0).random((slices, 4, 4)).astype(np.float16)
    assert smooth_along_z(probability, spacing, sigma) is probability


def brute_force(mask: np.ndarray, connectivity: int) -> np.ndarray:
    labels, _ = ndimage.label(mask, ndimage.generate_binary_structure(3, connectivity))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return (labels == sizes.argmax()) & (mask > 0)


@pytest.mark.parametrize("connectivity", [1, 2, 3])
@pytest.mark.parametrize("seed", range(15))
def test_largest_component(seed: int, connectivity: int) -> None:
    rng = np.random.default_rng(seed)
    mask = (rng.random((12, 10, 9)) < 0.15).astype(np.uint8)
    mask[rng.integers(0, 12, 4)] = 0  # gaps between slices
    kept = largest_component(mask, connectivity)
    assert kept.dtype == np.uint8
    np.testing.assert_array_equal(kept, brute_force(mask, connectivity))


def test_largest_component_of_little() -> None:
    empty = np.zeros((3, 4, 5), bool)
    assert not largest_component(empty).any()
    assert not remove_holes(empty).any()
    empty[1, 2, 3] = True
    assert largest_component(empty).sum() == 1
    corner = np.zeros((2, 2, 2), np.uint8)
    corner[0, 0, 0] = corner[1, 1, 1] = 1
    assert largest_component(corner).sum() == 2
    assert largest_component(corner, connectivity=2).sum() == 1


def test_holes() -> None:
    mask = np.zeros((7, 9, 9), np.uint8)
    mask[1:6, 1:8, 1:8] = 1
    solid = mask.copy()
    mask[3, 4, 4] = 0
    np.testing.assert_array_equal(remove_holes(mask), solid)
    mask[:, 4, 4] = 0  # a vessel that passes through
    np.testing.assert_array_equal(remove_holes(mask), mask)
    np.testing.assert_array_equal(remove_holes(mask[3:4]), solid[3:4])
    assert remove_holes(np.ones((1, 1, 1))).tolist() == [[[1]]]


def ball(shape, centre, radius):
    grid = np.indices(shape)
    return sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2


def test_the_surest_piece_is_kept_not_the_largest() -> None:
    shape, everywhere = (40, 40, 40), np.ones(40, bool)
    sure, large = ball(shape, (10, 10, 10), 4), ball(shape, (30, 30, 30), 5)
    probability = np.where(sure, 0.99, np.where(large, 0.45, 0.0)).astype(np.float16)
    kept = main_pieces(probability, 0.4, (3.0, 3.0, 3.0), everywhere)
    assert kept[sure].all() and not kept[large].any()
    # Where no pancreas can lie, nothing is kept, however sure the network is.
    kept = main_pieces(probability, 0.4, (3.0, 3.0, 3.0), np.arange(40) > 20)
    assert kept[large].all() and not kept[sure].any()


@pytest.mark.parametrize(("gap", "together"), [(3, True), (8, False)])
def test_a_gland_in_two_parts_stays_whole(gap: int, together: bool) -> None:
    shape = (20, 20, 50)
    head, tail = ball(shape, (10, 10, 10), 5), ball(shape, (10, 10, 19 + gap), 4)
    speck = ball(shape, (10, 17, 10), 0)
    probability = (head | tail | speck).astype(np.float32)
    kept = main_pieces(probability, 0.5, (3.0, 3.0, 3.0), np.ones(20, bool), gap_mm=15.0)
    assert kept[head].all() and kept[tail].all() == together
    assert not kept[speck].any()


@pytest.mark.parametrize(
    ("slices_between", "aside", "kept"),
    [(1, 0, True), (1, 3, True), (2, 0, False), (1, 7, False), (0, 7, True)],
)
def test_a_piece_above_the_gland_is_kept_in_line_with_it_and_near(slices_between, aside, kept):
    volume = np.zeros((20, 12, 24), np.float32)
    volume[2:8, 3:9, 3:9] = 0.8
    above = slice(8 + slices_between, 12 + slices_between), slice(4, 8), slice(4 + aside, 8 + aside)
    volume[above] = 0.9
    found = main_pieces(volume, 0.5, (3.0, 2.0, 2.0), np.ones(20, bool))
    assert found[2:8, 3:9, 3:9].all()
    assert found[above].any() == kept
    # Of organs of two parts, both are kept.
    found = main_pieces(volume, 0.5, (3.0, 2.0, 2.0), np.ones(20, bool), np.inf, missed_mm=None)
    assert found[above].all()


def test_small_pieces_in_a_row_are_the_gland_and_small_pieces_alone_are_not() -> None:
    volume = np.zeros((20, 12, 60), np.float32)
    volume[:8, 2:10, 2:12] = 1
    for n in range(4):  # each lies over the next but for a slice that lacks it
        volume[9 + 2 * n : 10 + 2 * n, 4:8, 10 + n : 14 + n] = 1
    volume[4, 4:8, 16:20] = 1
    kept = main_pieces(volume, 0.5, (3.0, 2.0, 2.0), np.ones(20, bool))
    assert kept[(volume > 0) & (np.indices(volume.shape)[0] != 4)].all()
    assert not kept[4, 4:8, 16:20].any()


@pytest.mark.parametrize(("spacing", "missed", "whole"), [(1.0, 5, True), (1.0, 6, False)])
def test_a_thin_end_beyond_missed_slices_stays(spacing: float, missed: int, whole: bool) -> None:
    volume = np.zeros((30, 12, 12), np.float32)
    volume[:8, 3:9, 3:9] = volume[8 + missed, 2:10, 2:10] = 0.8
    volume[:8] *= 0.9
    for turned in (volume, volume[::-1]):
        kept = main_pieces(turned, 0.5, (spacing, 2.0, 2.0), np.ones(30, bool), share=0.0)
        assert (kept & (turned > 0)).sum() == ((turned > 0).sum() if whole else 8 * 36)


def test_a_kept_piece_keeps_its_outline() -> None:
    y, x = np.mgrid[:30, :30]
    probability = (1 / (1 + np.exp(np.hypot(y - 15, x - 15) - 8)))[None].astype(np.float32)
    kept = main_pieces(probability, 0.5, (1.0, 1.0, 1.0), np.ones(1, bool))
    cut = np.where(kept, probability, 0)
    fine = [
        np.interp(np.arange(0, 29, 0.1), np.arange(30), row[0, 15]) for row in (probability, cut)
    ]
    np.testing.assert_array_equal(fine[0] > 0.5, fine[1] > 0.5)


def test_nothing_found_is_nothing_kept() -> None:
    assert not main_pieces(np.zeros((3, 4, 5)), 0.5, (1, 1, 1), np.ones(3, bool)).any()


def test_a_few_pixels_at_either_end_are_cleared_and_within_they_stay():
    mask = np.zeros((9, 20, 20), np.uint8)
    for z, side in enumerate([0, 3, 8, 2, 7, 8, 4, 3, 0]):
        mask[z, :side, :side] = 2
    clear_small_ends(mask, pixel_mm2=1.0)
    assert mask.any(axis=(1, 2)).tolist() == [False, False, True, True, True, True] + [False] * 3


def test_a_mask_that_is_small_everywhere_stays():
    mask = np.zeros((5, 20, 20), np.uint8)
    mask[1:4, :6, :6] = 1
    clear_small_ends(mask, pixel_mm2=1.0)
    assert mask.sum() == 108
