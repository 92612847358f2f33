"""Slice and mask move together, and chance is a function of seed and step."""

from dataclasses import replace

import numpy as np
import pytest

from napari_pancreas_seg.inference.preprocessing import FrameSpec
from napari_pancreas_seg.training.augmentation import Augment, AugmentationSettings, draw

FRAME = FrameSpec(40, 56, 4.0)
WORKING = FrameSpec(80, 96, 3.0)
NONE = AugmentationSettings(
    rotation_deg=0.0,
    scale_log=0.0,
    anisotropy=0.0,
    shear=0.0,
    shift_mm=0.0,
    elastic_mm=(0.0, 0.0),
    gamma_sd=0.0,
    gain=0.0,
    offset_hu=0.0,
    noise_hu=0.0,
    blur_share=0.0,
    phase_share=0.0,
    paint_share=0.0,
)


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
    batch = {"hu": hu, "target": target, **drawn}
    return tuple(np.asarray(v)[..., 0] for v in augment(batch))


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
    only_geometry = AugmentationSettings(
        gamma_sd=0, gain=0, offset_hu=0, noise_hu=0, blur_share=0, phase_share=0, paint_share=0
    )
    got, target = apply(augment, hu, hu, draw(rng, 16, FRAME, only_geometry))
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


def test_what_was_clipped_away_stays_away(augment):
    hu = np.zeros((8, 80, 96), np.uint8)
    drawn = draw(np.random.default_rng(0), 8, FRAME, AugmentationSettings(paint_share=0))
    got, _ = apply(augment, hu, hu, drawn)
    assert got.max() < 1


def test_chance_is_a_function_of_the_generator():
    one, two, other = (
        draw(np.random.default_rng(seed), 4, FRAME, AugmentationSettings()) for seed in (7, 7, 8)
    )
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    assert any((one[name] != other[name]).any() for name in one)
