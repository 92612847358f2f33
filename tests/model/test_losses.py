"""Losses say what they claim on cases that can be worked out by hand."""

import numpy as np
import pytest

from napari_pancreas_seg.model.losses import LOSSES, dice_loss, mixed_loss


def test_an_empty_slice_found_empty_costs_nothing():
    nothing = np.zeros((2, 8, 8, 1), np.float32)
    np.testing.assert_allclose(np.asarray(dice_loss(nothing, nothing)), 0, atol=1e-6)


def test_dice_is_per_image_over_the_whole_image():
    target = np.zeros((2, 4, 4, 1), np.float32)
    target[0, :2] = 1  # 8 pixels
    found = np.zeros_like(target)
    found[0, 1:3] = 1  # 8 pixels, 4 in common
    np.testing.assert_allclose(
        np.asarray(dice_loss(target, found)), [1 - (2 * 4 + 1) / (16 + 1), 0], atol=1e-6
    )


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_better_masks_cost_less(name):
    rng = np.random.default_rng(0)
    target = (rng.random((1, 16, 16, 1)) > 0.7).astype(np.float32)
    costs = [
        float(np.asarray(LOSSES[name](target, target * p + (1 - target) * (1 - p)))[0])
        for p in (0.95, 0.7, 0.5, 0.1)
    ]
    assert costs == sorted(costs)


def test_the_mixed_loss_pools_the_batch():
    target = np.zeros((2, 8, 8, 1), np.float32)
    target[0, :6] = 1
    target[1, 0, 0] = 1
    found = target.copy()
    found[1] = 0  # one pixel missed: a whole image by itself, nothing in the pool
    assert np.asarray(dice_loss(target, found))[1] == pytest.approx(0.5, abs=1e-5)
    assert np.asarray(mixed_loss(target, found))[0] < 0.02


def test_focal_tversky_weighs_what_is_missed_more_than_excess():
    target = np.zeros((1, 8, 8, 1), np.float32)
    target[:, 2:6, 2:6] = 1
    missed, excess = target.copy(), target.copy()
    missed[:, 2] = 0
    excess[:, 6, 2:6] = 1
    loss = LOSSES["focal_tversky"]
    assert np.asarray(loss(target, missed))[0] > np.asarray(loss(target, excess))[0] > 0
