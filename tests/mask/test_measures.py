"""Diameters, agreement and the table."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io import table
from napari_pancreas_seg.io.table import write_table
from napari_pancreas_seg.mask import measures, metrics
from napari_pancreas_seg.volume import CTVolume, Grid

MASKS = hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 3), elements=st.integers(0, 1))
AFFINES = hnp.arrays(float, (3, 3), elements=st.floats(-0.2, 0.2)).map(
    lambda noise: np.block([[np.diag([2.5, 0.8, 0.7]) + noise, np.zeros((3, 1))], [0, 0, 0, 1]])
)


def grid_of(shape, spacing=(2.5, 0.8, 0.7)) -> Grid:
    return Grid(shape, np.diag([*spacing, 1.0]))


def faces(mask, axes) -> np.ndarray:
    """Middles of all faces between inside and outside, one at a time."""
    padded = np.pad(mask, 1)
    found = []
    for index in np.argwhere(padded):
        for axis in axes:
            for step in (-1, 1):
                other = index.copy()
                other[axis] += step
                if not padded[tuple(other)]:
                    found.append((index + other) / 2 - 1)
    return np.array(found)


def widest(points, affine) -> float:
    world = points @ affine[:3, :3].T
    return np.linalg.norm(world[:, None] - world[None], axis=-1).max()


@settings(max_examples=60, deadline=None)
@given(mask=MASKS, affine=AFFINES)
def test_diameters_are_those_of_all_pairs(mask, affine):
    in_space, in_plane = measures.largest_diameters_mm(mask, Grid(mask.shape, affine))
    if not mask.any():
        assert (in_space, in_plane) == (0, 0)
        return
    assert in_space == pytest.approx(widest(faces(mask, (0, 1, 2)), affine))
    slices = [np.where(np.arange(len(mask))[:, None, None] == z, mask, 0) for z in range(len(mask))]
    expected = max(widest(faces(one, (1, 2)), affine) for one in slices if one.any())
    assert in_plane == pytest.approx(expected)


def test_a_sphere_is_as_wide_as_it_is():
    z, y, x = np.indices((40, 60, 60))
    mask = ((z - 20) * 1.5) ** 2 + (y - 30) ** 2 + (x - 30) ** 2 <= 25**2
    in_space, in_plane = measures.largest_diameters_mm(mask, grid_of(mask.shape, (1.5, 1, 1)))
    assert in_space == pytest.approx(50, abs=1.5)
    assert in_plane == pytest.approx(50, abs=1.5)


def test_a_mask_without_hu_has_no_mean():
    mask = np.zeros((3, 4, 5), np.uint8)
    mask[1, 1:3, 1:4] = 2
    ct = CTVolume(np.full(mask.shape, 40, np.int16), grid_of(mask.shape), None)
    assert measures.measure(mask, ct)["mean_hu"] == 40
    found = measures.measure(mask, CTVolume.of_grid(ct.grid, None))
    assert found["mean_hu"] is None
    assert found["volume_ml"] == pytest.approx(6 * 2.5 * 0.8 * 0.7 / 1000)
    assert found["extent_mm"] == pytest.approx([2.5, 1.6, 2.1])


def test_agreement_is_that_of_the_whole_arrays():
    a = np.zeros((12, 20, 20), np.uint8)
    b = a.copy()
    a[3:8, 4:12, 4:12] = 1
    b[4:8, 4:12, 5:14] = 1
    found = metrics.compare_masks(a, b, grid_of(a.shape))
    inner = np.s_[1:, 2:, 2:]
    assert found == metrics.compare_masks(a[inner], b[inner], grid_of(a[inner].shape))
    assert found["dice"] == pytest.approx(2 * 4 * 8 * 7 / (5 * 64 + 4 * 72))
    assert found["hd95_mm"] == pytest.approx(2.5, abs=0.5)
    assert metrics.compare_masks(a, a, grid_of(a.shape)) == {
        "dice": 1.0,
        "hd95_mm": 0.0,
        "surface_dice_2mm": 1.0,
    }


def test_nothing_agrees_with_an_empty_mask():
    a = np.zeros((3, 4, 5), np.uint8)
    b = a.copy()
    b[1, 1, 1] = 1
    expected = {"dice": 0.0, "hd95_mm": None, "surface_dice_2mm": None}
    assert metrics.compare_masks(a, b, grid_of(a.shape)) == expected
    assert metrics.compare_masks(a, a, grid_of(a.shape))["dice"] == 1
    with pytest.raises(PancreasSegError, match="same grid"):
        metrics.compare_masks(a, b[1:], grid_of(a.shape))


def test_the_table_can_be_read_back(tmp_path):
    mask = np.ones((2, 2, 2), np.uint8)
    volume = CTVolume(mask.astype(np.int16), grid_of(mask.shape), None)
    row = table.table_row("a, b", "m", measures.measure(mask, volume))
    path = tmp_path / "t.csv"
    write_table([row], path)
    (read,) = csv.DictReader(path.read_text().splitlines())
    assert tuple(read) == table.COLUMNS
    assert read["case"] == "a, b"
    assert read["slices"] == "2"
    assert float(read["extent_z_mm"]) == 5
    assert read["dice"] == ""
    assert table.table_text([row]).splitlines()[1].split("\t")[0] == "a, b"
    with pytest.raises(PancreasSegError, match="exists already"):
        write_table([row], path)


def test_a_box_keeps_its_place():
    grid = grid_of((10, 10, 10))
    part = measures.sub_box(grid, (slice(2, 5), slice(1, 4), slice(3, 9)))
    assert part.shape == (3, 3, 6)
    assert np.allclose(part.world((1, 1, 1)), grid.world((3, 2, 4)))


def test_negative_labels_are_inside_and_what_is_no_number_is_not() -> None:
    volume = CTVolume.from_array(np.arange(432).reshape(9, 8, 6) - 200, np.diag([-1, -1, 2, 1]))
    mask = np.zeros((6, 8, 9))
    mask[2:4, 3:6, 3:6] = -2
    mask[0, 0, 0] = np.nan
    assert measures.measure(mask, volume)["voxels"] == 18
    for wrong in ((0.5,), (0.2, 0.5, 0.7), 0.5):
        with pytest.raises(PancreasSegError, match="two shares"):
            measures.measure(mask, volume, wrong)
