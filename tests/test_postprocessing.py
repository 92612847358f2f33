from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from napari_pancreas_seg.postprocessing import largest_component, remove_holes, smooth_along_z


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
    monkeypatch.setattr("napari_pancreas_seg.postprocessing._CHUNK_VOXELS", 150)
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
