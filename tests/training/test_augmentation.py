"""Slice and mask move together, and chance is a function of seed and step."""

from dataclasses import fields, replace

import numpy as np
import pytest

from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.training.fit.augmentation import Augment, AugmentationSettings, draw

FRAME = FrameSpec(40, 56, 4.0)
WORKING = FrameSpec(80, 96, 3.0)
NONE = AugmentationSettings(
    **{
        f.name: (0.0, 0.0) if isinstance(f.default, tuple) else 0.0
        for f in fields(AugmentationSettings)
    }
)
GEOMETRY = (
    *("rotation_deg", "scale_log", "anisotropy", "shear", "shift_mm"),
    *("elastic_mm", "elastic_fine_mm", "field_share", "field_mm"),
)
ONLY_GEOMETRY = replace(NONE, **{name: getattr(AugmentationSettings(), name) for name in GEOMETRY})


@pytest.fixture(scope="module")
def augment():
    return Augment(FRAME, WORKING)


def blobs(n, rng):
    """Smooth slices whose mask is the slice itself."""
    y, x = np.mgrid[:80, :96]
    out = np.zeros((n, 80, 96))
    for i in range(n):
        cy, cx = rng.uniform(30, 50), rng.uniform(35, 60)
        out[i] = 255 * (((y - cy) / 9) ** 2 + ((x - cx) / 14) ** 2 < 1)
    return out.astype(np.uint8)


def apply(augment, hu, target, drawn):
    batch = {"hu": hu[:, None], "target": target[..., None], **drawn}
    return tuple(np.asarray(v)[..., 0] for v in augment(batch)[:2])


def test_no_augmentation_cuts_the_frame(augment):
    hu = blobs(2, np.random.default_rng(0))
    drawn = draw(np.random.default_rng(0), 2, FRAME, NONE)
    got, target = apply(augment, hu, hu, drawn)
    # The frame's pixel (i, j) lies (i - 19.5) * 4 mm from the shared centre.
    y = (np.arange(40) - 19.5) * 4 / 3 + 39.5
    x = (np.arange(56) - 27.5) * 4 / 3 + 47.5
    near = hu[:, np.rint(y).astype(int)][:, :, np.rint(x).astype(int) % 96]
    inside = (x >= 0) & (x <= 95)
    assert np.mean(np.abs(got - near)[:, :, inside] > 130) < 0.02
    np.testing.assert_allclose(target * 255, got, atol=1.0)


def test_slice_and_mask_agree_under_every_geometry(augment):
    rng = np.random.default_rng(3)
    hu = blobs(16, rng)
    got, target = apply(augment, hu, hu, draw(rng, 16, FRAME, ONLY_GEOMETRY))
    np.testing.assert_allclose(got / 255, target, atol=1e-3)
    moved = [np.abs(got[i] - got[0]).max() for i in range(1, 16)]
    assert min(moved) > 50


def test_paint_takes_the_gland_out_of_the_target(augment):
    rng = np.random.default_rng(0)
    target = blobs(4, rng)
    hu = np.full_like(target, 90)
    painted = replace(NONE, paint_share=1.0)
    drawn = draw(rng, 4, FRAME, painted)
    drawn["paint_hu"][:] = 20
    got, left = apply(augment, hu, target, drawn)
    assert left.max() < 0.05
    assert (np.abs(got - 20) < 1).any(axis=(1, 2)).all()


def test_fat_streaks_darken_and_leave_the_target_alone(augment):
    rng = np.random.default_rng(0)
    target = blobs(4, rng)
    hu = np.full_like(target, 90)
    plain, before = apply(augment, hu, target, draw(np.random.default_rng(1), 4, FRAME, NONE))
    drawn = draw(np.random.default_rng(1), 4, FRAME, replace(NONE, fat_share=1.0))
    drawn["fat_other"][:] = 0
    got, after = apply(augment, hu, target, drawn)
    np.testing.assert_array_equal(before, after)
    assert (got <= plain + 1e-3).all()
    darker = plain - got > 20
    assert darker.any(axis=(1, 2)).all() and not darker[before == 0].any()


def test_slices_without_agent_are_brightened_as_inference_does(augment):
    hu = np.full((8, 80, 96), 100, np.uint8)
    drawn = draw(
        np.random.default_rng(0), 8, FRAME, replace(NONE, phase_share=1.0, phase_offset_hu=40.0)
    )
    middle = apply(augment, hu, hu, drawn)[0][:, 20, 28]
    squeezed = 45 + (100 - 45) * 25 / 155
    assert ((middle > squeezed - 1) & (middle < squeezed + 41)).all() and np.ptp(middle) > 5


def test_what_was_clipped_away_stays_away(augment):
    hu = np.zeros((8, 80, 96), np.uint8)
    # But for what is painted, cut out, or brightened by a window whose lower end lies above it.
    settings = AugmentationSettings(paint_share=0, cut_share=0, window_share=0)
    drawn = draw(np.random.default_rng(0), 8, FRAME, settings)
    got, _ = apply(augment, hu, hu, drawn)
    assert got.max() < 1


def test_chance_is_a_function_of_the_generator():
    one, two, other = (
        draw(np.random.default_rng(seed), 4, FRAME, AugmentationSettings()) for seed in (7, 7, 8)
    )
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    assert any((one[name] != other[name]).any() for name in one)


def test_neighbours_and_classes_move_together(augment):
    rng = np.random.default_rng(3)
    planes = blobs(12, rng).reshape(4, 3, 80, 96)
    drawn = draw(rng, 4, FRAME, ONLY_GEOMETRY, slices=3)
    stack = np.ascontiguousarray(np.moveaxis(planes, 1, -1))
    hu, target = (np.asarray(v) for v in augment({"hu": planes, "target": stack, **drawn})[:2])
    assert hu.shape == target.shape == (4, 40, 56, 3)
    np.testing.assert_allclose(hu / 255, target, atol=1e-3)
    drawn = {**drawn, "noise": drawn["noise"][..., :1]}
    for s in range(3):
        alone = {"hu": planes[:, s : s + 1], "target": stack[..., s : s + 1], **drawn}
        got, _, _ = augment(alone)
        np.testing.assert_allclose(np.asarray(got)[..., 0], hu[..., s], atol=1e-3)


def test_each_slice_has_its_own_noise_and_paint_goes_through_all(augment):
    target = np.zeros((2, 80, 96, 2), np.uint8)
    target[:, 30:40, 30:45, 0] = target[:, 40:50, 45:60, 1] = 255
    hu = np.full((2, 3, 80, 96), 90, np.uint8)
    drawn = draw(
        np.random.default_rng(0), 2, FRAME, replace(NONE, paint_share=1.0, noise_hu=15.0), slices=3
    )
    drawn["paint_hu"][:] = 200
    got, left = (np.asarray(v) for v in augment({"hu": hu, "target": target, **drawn})[:2])
    assert left.max() < 0.05
    assert ((got > 140).any(axis=(1, 2))).all()
    assert np.abs(got[..., 0] - got[..., 1]).max() > 1


def test_a_small_field_of_view_lies_around_its_point(augment):
    hu = np.full((4, 80, 96), 90, np.uint8)
    target = np.zeros_like(hu)
    target[:, 40:44, 50:54] = 255
    points = np.tile([[6.0, 10.5]], (4, 1))
    drawn = draw(
        np.random.default_rng(0), 4, FRAME,
        replace(NONE, field_share=1.0, field_mm=(60.0, 60.0)), points=points,
    )  # fmt: skip
    batch = {"hu": hu[:, None], "target": target[..., None], **drawn}
    got, left, weight = (np.asarray(v)[..., 0] for v in augment(batch))
    assert (weight == 1).all()
    for i in range(4):
        rows, columns = (np.flatnonzero((got[i] > 45).any(axis=a)) for a in (1, 0))
        assert len(rows) == len(columns) == 15  # 60 mm
        assert left[i].sum() > 0
    unasked = draw(np.random.default_rng(0), 4, FRAME, replace(NONE, field_share=1.0))
    assert (apply(augment, hu, target, unasked)[0][:, 18:22, 26:30] == 90).all()


def test_nothing_is_learnt_from_what_is_cut_out(augment):
    hu = np.full((8, 80, 96), 90, np.uint8)
    drawn = draw(np.random.default_rng(0), 8, FRAME, replace(NONE, cut_share=1.0))
    batch = {"hu": hu[:, None], "target": hu[..., None], **drawn}
    got, _, weight = (np.asarray(v)[..., 0] for v in augment(batch))
    cut = drawn["cut"][..., 0] > 0
    assert cut.any(axis=(1, 2)).all() and not cut.all(axis=(1, 2)).any()
    np.testing.assert_array_equal(weight, 1 - cut)
    for i in range(8):
        assert np.ptp(got[i][cut[i]]) < 1e-3


def test_curves_bend_contrast_and_keep_its_ends(augment):
    grey = np.arange(0, 256, 5, dtype=np.uint8)
    hu = np.zeros((6, 80, 96), np.uint8)
    hu[:, 40, 20 : 20 + len(grey)] = grey
    frame = FrameSpec(80, 96, 3.0)
    drawn = draw(np.random.default_rng(0), 6, frame, replace(NONE, curve_share=1.0, curve_sd=0.5))
    got, _ = apply(Augment(frame, WORKING), hu, hu, drawn)
    got = got[:, 40, 20 : 20 + len(grey)]
    assert (np.diff(got, axis=1) > 0).all()
    np.testing.assert_allclose(got[:, [0, -1]], np.tile([0, 255], (6, 1)), atol=0.1)
    assert (np.abs(got - grey).max(axis=1) > 5).all()


def test_windows_end_within_the_soft_tissue(augment):
    hu = np.tile(np.array([10, 240], np.uint8), (4, 80, 48))
    drawn = draw(np.random.default_rng(1), 4, FRAME, replace(NONE, window_share=1.0))
    got, _ = apply(augment, hu, hu, drawn)
    for i in range(4):
        assert got[i].min() >= drawn["low"][i] - 1e-3 and got[i].max() <= drawn["high"][i] + 1e-3
    assert drawn["high"].max() < 255 and drawn["low"].max() > 0
