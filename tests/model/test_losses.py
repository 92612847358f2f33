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


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_several_classes_cost_what_they_are_worth(name):
    """Right costs next to nothing, the wrong class as much as none, and order matters not."""
    target = np.zeros((1, 8, 8, 2), np.float32)
    target[:, :4, :, 0] = target[:, 4:, :4, 1] = 1
    loss = lambda found: float(np.asarray(LOSSES[name](target, np.clip(found, 0, 1)))[0])  # noqa: E731
    assert loss(target) < 0.01
    swapped, missing = target[..., ::-1], np.zeros_like(target)
    assert min(loss(swapped), loss(missing)) > 0.4
    both = np.asarray(LOSSES[name](target[..., ::-1], swapped * 0.8))[0]
    assert both == pytest.approx(loss(target * 0.8), rel=1e-5)


def test_a_small_class_counts_like_a_large_one():
    target = np.zeros((1, 16, 16, 2), np.float32)
    target[:, :12, :, 0] = 1
    target[:, 14:, :4, 1] = 1
    only = np.eye(2, dtype=np.float32)
    without_small, without_large = target * only[0], target * only[1]
    costs = [float(np.asarray(mixed_loss(target, x))[0]) for x in (without_small, without_large)]
    entropy_small = 8 / 256 * -np.log(1e-7)
    assert costs[0] == pytest.approx(0.5 * (1 - 1 / 9) + entropy_small, abs=0.02)
    article = [float(np.asarray(dice_loss(target, x))[0]) for x in (without_small, without_large)]
    assert article[0] < 0.05 < 0.9 < article[1]  # the article's is over all classes at once


def test_one_class_costs_what_it_cost_before_there_were_several():
    rng = np.random.default_rng(1)
    target, found = rng.random((2, 3, 8, 8, 1)).astype(np.float32)
    both, total = (target * found).sum((1, 2, 3)), (target + found).sum((1, 2, 3))
    per_image = 1 - (2 * both + 1) / (total + 1)
    pooled = 1 - (2 * both.sum() + 1) / (total.sum() + 1)
    entropy = -(target * np.log(found) + (1 - target) * np.log(1 - found)).mean((1, 2, 3))
    np.testing.assert_allclose(
        np.asarray(mixed_loss(target, found)), 0.5 * (per_image + pooled) + entropy, rtol=1e-4
    )


def test_the_mixed_loss_pools_the_batch():
    target = np.zeros((2, 8, 8, 1), np.float32)
    target[0, :6] = 1
    target[1, 0, 0] = 1
    found = target.copy()
    found[1] = 0  # one pixel missed: a whole image by itself, nothing in the pool
    assert np.asarray(dice_loss(target, found))[1] == pytest.approx(0.5, abs=1e-5)
    assert np.asarray(mixed_loss(target, found))[0] < 0.02


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_nothing_is_learnt_where_nothing_is_known(name):
    rng = np.random.default_rng(0)
    target = (rng.random((2, 16, 16, 1)) > 0.7).astype(np.float32)
    found = np.clip(target + rng.normal(0, 0.2, target.shape), 0.05, 0.95).astype(np.float32)
    known = np.zeros_like(target)
    known[:, :, :8] = 1
    wrong = np.where(known > 0, found, 1 - found).astype(np.float32)
    loss = LOSSES[name]
    np.testing.assert_allclose(
        np.asarray(loss(target, found, known)), np.asarray(loss(target, wrong, known)), rtol=1e-5
    )
    everywhere = np.ones_like(known)
    np.testing.assert_allclose(
        np.asarray(loss(target, found, everywhere)), np.asarray(loss(target, found)), rtol=1e-5
    )
