from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.mask.measures import measure, volume_ml
from napari_pancreas_seg.mask.metrics import (
    SurfaceAgreement,
    compare_masks,
    dice,
    in_plane_surface_distances,
    surface_distances,
)
from napari_pancreas_seg.volume import CTVolume, Grid


@pytest.fixture
def volume() -> CTVolume:
    hu = np.arange(6 * 8 * 10, dtype=np.int16).reshape(6, 8, 10)
    return CTVolume.from_source_array(hu, np.diag([-2.0, -2.5, 4.0, 1]))


def test_dice() -> None:
    a, b = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), bool)
    assert dice(a, b) == 1.0
    a[0, 0] = 2
    assert dice(a, b) == 0.0
    b[0, 0, :2] = True
    assert dice(a, b) == pytest.approx(2 * 2 / 6)
    assert dice(b, a) == dice(a, b)
    assert dice(a, a) == 1.0
    with pytest.raises(PancreasSegError, match="same grid"):
        dice(a, b[:2])
    with pytest.raises(PancreasSegError, match="load_mask"):
        dice("a.nii.gz", "b.nii.gz")


def test_measure(volume: CTVolume) -> None:
    mask = np.zeros(volume.hu.shape, np.uint8)
    mask[2:5, 1, 3:5] = 1
    mask[3] = 0
    found = measure(mask, volume)
    inside = volume.hu[mask > 0]
    assert found["voxels"] == 4
    assert found["volume_ml"] == pytest.approx(4 * 20 / 1000)
    assert volume_ml(mask, volume.grid) == found["volume_ml"]
    assert found["slices"] == 2
    assert found["mean_hu"] == pytest.approx(inside.mean())
    assert found["sd_hu"] == pytest.approx(inside.std())
    assert found["extent_mm"] == pytest.approx([12, 2.5, 4])


def test_measure_of_nothing(volume: CTVolume) -> None:
    found = measure(np.zeros(volume.hu.shape, np.uint8), volume)
    assert found["volume_ml"] == found["slices"] == 0
    assert found["mean_hu"] is None
    assert found.keys() == measure(np.ones(volume.hu.shape, np.uint8), volume).keys()
    with pytest.raises(PancreasSegError, match="does not lie"):
        measure(np.zeros((2, 2, 2)), volume)


def blobs(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=shape)
    return ndimage.gaussian_filter(noise, 2.0) > 0.03


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("shape", "spacing"), [((14, 24, 20), (2.5, 0.8, 0.7)), ((30, 40), (0.9, 0.6))]
)
def test_surfaces_are_those_of_the_reference_implementation(
    shape: tuple[int, ...], spacing: tuple[float, ...]
) -> None:
    reference = pytest.importorskip("surface_distance")
    a, b = blobs(0, shape), ndimage.shift(blobs(0, shape).astype(float), 1.7, order=1) > 0.5
    theirs = reference.compute_surface_distances(a, b, spacing)
    ours = surface_distances(a, b, spacing)
    assert ours.hd95_mm == pytest.approx(reference.compute_robust_hausdorff(theirs, 95))
    assert 0 < ours.hd95_mm < np.inf
    for tolerance in (0.5, 1.0, 2.0):
        expected = reference.compute_surface_dice_at_tolerance(theirs, tolerance)
        assert ours.surface_dice(tolerance) == pytest.approx(expected)
    both = [
        theirs[f"distances_{way}"] @ theirs[f"surfel_areas_{side}"]
        for way, side in (("gt_to_pred", "gt"), ("pred_to_gt", "pred"))
    ]
    size = theirs["surfel_areas_gt"].sum() + theirs["surfel_areas_pred"].sum()
    assert ours.mean_mm == pytest.approx(sum(both) / size)


def test_surfaces_of_shifted_boxes_by_hand() -> None:
    a, b = np.zeros((2, 30, 60, 60), np.uint8)
    a[10:20, 20:40, 20:40] = 1
    b[10:20, 24:44, 20:40] = 1
    moved = surface_distances(a, b, (1.0, 0.5, 0.5))
    assert moved.hd95_mm == pytest.approx(2.0)
    assert moved.surface_dice(2.0) == 1.0
    assert 0 < moved.surface_dice(1.0) < 1.0
    assert 0 < moved.mean_mm < 2.0
    # As large as the boxes: the surface of marching cubes cuts the edges a little.
    assert moved.a_size.sum() == pytest.approx(2 * 10 * 10 + 4 * 10 * 10, rel=0.06)


@pytest.mark.parametrize("in_plane", [False, True])
def test_surfaces_of_nothing(in_plane: bool) -> None:
    function = in_plane_surface_distances if in_plane else surface_distances
    a, empty = np.zeros((3, 30, 40), bool), np.zeros((3, 30, 40), bool)
    a[1, 10:14, 20:30] = True
    spacing = (4.0, 0.5, 0.75)
    for pair in ((a, empty), (empty, a)):
        missed = function(*pair, spacing)
        diagonal = np.hypot(15, 30) if in_plane else np.linalg.norm([12, 15, 30])
        assert (missed.hd95_mm, missed.mean_mm) == pytest.approx((diagonal, diagonal))
        assert missed.surface_dice() == 0.0
    for same, length in ((empty, 0), (a, len(function(a, a, spacing).a_to_b))):
        nothing = function(same, same, spacing)
        assert (nothing.hd95_mm, nothing.mean_mm, nothing.surface_dice()) == (0.0, 0.0, 1.0)
        assert len(nothing.a_to_b) == length
    with pytest.raises(PancreasSegError, match="same grid"):
        function(a, a[:2], spacing)


def test_outlines_in_the_plane_are_pooled() -> None:
    a, b = np.zeros((2, 3, 40, 40), bool)
    a[0, 5:25, 5:25] = b[0, 5:25, 5:25] = True
    a[1, 10:20, 10:20] = True  # missed altogether
    both = in_plane_surface_distances(a, b, (5.0, 1.0, 1.0))
    parts = [surface_distances(x, y, (1.0, 1.0)) for x, y in zip(a, b, strict=True)]
    assert both.hd95_mm == SurfaceAgreement.pooled(parts).hd95_mm == pytest.approx(np.hypot(40, 40))
    perimeters = [part.a_size.sum() for part in parts]
    found = 2 * perimeters[0] / (2 * perimeters[0] + perimeters[1])
    assert both.surface_dice() == pytest.approx(found)
    assert SurfaceAgreement.pooled([]).surface_dice() == 1.0
    # What lies in another slice does not help: unlike in 3-D.
    assert in_plane_surface_distances(a, np.roll(a, 1, 0), (5.0, 1.0, 1.0)).surface_dice() < 1


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(
    hnp.arrays(bool, (2, 5, 6, 7)),
    st.tuples(*[st.floats(0.3, 5.0)] * 3),
    st.tuples(*[st.integers(0, 3)] * 3),
)
def test_surfaces_do_not_care_about_order_place_and_empty_margins(
    pair: np.ndarray, spacing: tuple[float, float, float], margin: tuple[int, int, int]
) -> None:
    a, b = pair
    first = surface_distances(a, b, spacing)
    second = surface_distances(b, a, spacing)
    assert first.hd95_mm == pytest.approx(second.hd95_mm)
    assert first.surface_dice(1.0) == pytest.approx(second.surface_dice(1.0))
    assert 0 <= first.surface_dice(1.0) <= first.surface_dice(3.0) <= 1.0 + 1e-9
    assert first.hd95_mm <= np.linalg.norm(np.multiply(a.shape, spacing))
    if a.any() and b.any():
        around = [(m, 3 - m) for m in margin]
        padded = surface_distances(np.pad(a, around), np.pad(b, around), spacing)
        assert padded.hd95_mm == pytest.approx(first.hd95_mm)
        assert padded.mean_mm == pytest.approx(first.mean_mm)


@pytest.mark.parametrize(("shift", "away"), [(10, 16.4), (-10, 11.5)])
def test_distances_where_the_gantry_was_tilted(shift: int, away: float) -> None:
    sine, cosine = np.sin(np.radians(20)), np.cos(np.radians(20))
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, 1], [2.5 * sine, 1, 0], [2.5 * cosine, 0, 0]]
    grid = Grid((20, 80, 40), affine)
    a, b = np.zeros(grid.shape, np.uint8), np.zeros(grid.shape, np.uint8)
    a[5:8, 38:42, 18:22] = 1
    b[9:12, 38 + shift : 42 + shift, 18:22] = 1
    moved = np.linalg.norm(affine[:3, :3] @ (4, shift, 0))
    assert moved == pytest.approx(away, abs=0.1)
    found = compare_masks(a, b, grid)["hd95_mm"]
    assert moved - 3 < found <= moved + 1e-6
