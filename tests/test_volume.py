"""Grids and volumes made in memory; files are tested in tests/io."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.volume import CTVolume, Grid, bounding_box

AFFINE = np.array([[0, 0, -0.8, 100], [0, -0.7, 0, 50], [2.5, 0, 0, -300], [0, 0, 0, 1]])


def test_grid_measures() -> None:
    grid = Grid((4, 5, 6), AFFINE)
    np.testing.assert_allclose(grid.spacing, (2.5, 0.7, 0.8))
    assert grid.voxel_volume_mm3 == pytest.approx(1.4)
    np.testing.assert_allclose(grid.world((1, 0, 2)), (98.4, 50, -297.5))
    np.testing.assert_allclose(grid.index(grid.world([[1, 2, 3], [0, 0, 0]])), [[1, 2, 3], [0] * 3])
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 1


def test_sub_grid_lies_where_its_voxels_do() -> None:
    grid = Grid((8, 8, 8), AFFINE)
    coarse = grid.sub_grid((8, 2, 2), (0, 1.5, 1.5), (1, 4, 4))
    np.testing.assert_allclose(coarse.world((3, 1, 0)), grid.world((3, 5.5, 1.5)))
    assert not grid.same_as(coarse)
    assert grid.same_as(Grid((8, 8, 8), AFFINE + 1e-5))


@pytest.mark.parametrize(
    "affine",
    [
        *(np.eye(3), np.full((4, 4), np.nan), np.zeros((4, 4)), np.diag([1, 1, 0, 1])),
        *(np.ones((4, 4)), AFFINE.T),
    ],
)
def test_impossible_affines(affine: np.ndarray) -> None:
    with pytest.raises(PancreasSegError, match="affine"):
        Grid((2, 2, 2), affine)


def test_array_round_trip_in_memory() -> None:
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    volume = CTVolume.from_source_array(array, np.diag([1, 2, 3, 1]))
    assert volume.hu.shape == (5, 4, 3)
    assert volume.hu.flags.c_contiguous
    # RAS: up is kept, front to back and right to left are flipped.
    np.testing.assert_array_equal(volume.hu, array.transpose(2, 1, 0)[:, ::-1, ::-1])
    np.testing.assert_array_equal(volume.to_source_order(volume.hu), array)
    assert volume.name == "CT"
    with pytest.raises(PancreasSegError, match="does not lie"):
        volume.to_source_order(array)


@pytest.mark.parametrize("shape", [(5, 5), (5, 5, 5, 2), (5, 0, 5)])
def test_what_is_no_volume(shape: tuple[int, ...]) -> None:
    with pytest.raises(PancreasSegError, match="not one 3-D volume"):
        CTVolume.from_source_array(np.zeros(shape, np.int16), np.eye(4))


def test_other_grid_to_source_order() -> None:
    volume = CTVolume.from_source_array(np.zeros((9, 8, 7), np.int16), np.diag([1, 2, 3, 1]))
    grid = volume.grid.sub_grid((7, 4, 3), (0, 0.5, 1), (1, 2, 3))
    values = np.random.default_rng(0).random(grid.shape)
    array, affine = volume.grid_to_source_order(values, grid)
    assert array.shape == (3, 4, 7)
    place = np.argwhere(array == values[5, 1, 2])[0]
    np.testing.assert_allclose((affine @ (*place, 1))[:3], grid.world((5, 1, 2)))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("signs", itertools.product((1, -1), repeat=3))
@pytest.mark.parametrize("n", [4, 5])
def test_an_array_that_may_be_overwritten_gives_the_same_volume(
    order: tuple[int, ...], signs: tuple[int, ...], n: int
) -> None:
    array = np.random.default_rng(n).integers(0, 999, (3, 6, n)).astype(np.int16, order="F")
    affine = np.eye(4)
    affine[:3, :3] = np.diag(signs)[:, order]
    read_only = array.copy(order="F")
    read_only.setflags(write=False)
    expected = CTVolume.from_source_array(array.copy(order="K"), affine)
    np.testing.assert_array_equal(expected.to_source_order(expected.hu), array)
    for given in (array, read_only, np.ascontiguousarray(array)):
        may_stay = given is array and order == (0, 1, 2)
        found = CTVolume.from_source_array(given, affine, reuse=True)
        np.testing.assert_array_equal(found.hu, expected.hu)
        assert found.hu.flags.c_contiguous
        assert np.shares_memory(found.hu, given) or not may_stay
        np.testing.assert_array_equal(found.grid.affine, expected.grid.affine)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16])
def test_bounding_box(dtype: type) -> None:
    mask = np.zeros((9, 8, 7), dtype)
    assert bounding_box(mask) is None
    assert bounding_box(mask[:0]) is None
    mask[3, 2, 6] = mask[5, 4, 0] = 1
    assert bounding_box(mask) == (slice(3, 6), slice(2, 5), slice(0, 7))


def test_grids_of_spacings_that_add_up_to_a_voxel_are_not_the_same() -> None:
    one, other = (Grid((1000, 512, 512), np.diag([s, 0.7, 0.7, 1])) for s in (0.8, 0.8009))
    near = Grid((20, 512, 512), np.diag([0.8, 0.7, 0.7, 1]))
    assert not one.same_as(other)
    assert near.same_as(Grid((20, 512, 512), np.diag([0.80001, 0.7, 0.7, 1])))


def test_a_ct_has_the_shape_of_its_grid() -> None:
    volume = CTVolume.from_array(np.arange(480).reshape(8, 10, 6) - 200, np.diag([-1, -1, 2, 1]))
    with pytest.raises(PancreasSegError, match="does not lie on the grid"):
        replace(volume, hu=volume.hu[1:3])
    with pytest.raises(PancreasSegError, match="different lengths"):
        CTVolume.from_array([[[1, 2], [3]]], np.eye(4))
