"""Temperature, threshold and confidence from predictions whose truth is known."""

import numpy as np
import pytest

from napari_pancreas_seg.inference.preprocessing import Frame, FrameSpec
from napari_pancreas_seg.training.calibration import (
    PredictedSlice,
    calibrate,
    calibration_error,
    tempered,
)

SPEC = FrameSpec(40, 40, 1.0, (0.0, 0.0))
FRAME = Frame(SPEC, (40, 40), (0.0, 0.0), (1.0, 1.0))


def too_sure(n, factor, seed=0):
    """Slices whose log-odds are `factor` times what the truth warrants."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :40]
    predicted = []
    for i in range(n):
        doubt = rng.uniform(0.5, 4.0)
        odds = (8 - np.hypot(y - rng.uniform(15, 25), x - 20)) / doubt
        true = rng.random((40, 40)) < 1 / (1 + np.exp(-odds))
        sure = (1 / (1 + np.exp(-factor * odds))).astype(np.float32)
        mask = true.astype(np.uint8)
        predicted.append(
            PredictedSlice(f"P{i % 5}", f"s{i}", sure, mask.astype(np.float32), mask[None], FRAME)
        )
    return predicted


def test_the_temperature_undoes_overconfidence():
    found = calibrate(too_sure(40, 3.0))
    assert found.temperature == pytest.approx(3.0, rel=0.1)
    assert found.error_after < 0.02 < found.error_before
    assert found.patients == 5 and found.slices == 40


def test_expected_dice_ranks_slices_as_their_true_dice_does():
    found = calibrate(too_sure(60, 1.0))
    assert found.spearman > 0.6
    assert found.slope > 0


def test_tempering_is_what_the_predictor_does():
    p = np.array([0.02, 0.5, 0.9], np.float32)
    np.testing.assert_allclose(tempered(p, 1.0), p, rtol=1e-5)
    odds = np.log(p / (1 - p)) / 2.5
    np.testing.assert_allclose(tempered(p, 2.5), 1 / (1 + np.exp(-odds)), rtol=1e-5)
    assert np.isfinite(tempered(np.array([0.0, 1.0]), 3.0)).all()


def test_calibration_error_by_hand():
    assert calibration_error(np.array([0.9, 0.9]), np.array([1.0, 0.0])) == pytest.approx(0.4)
    assert calibration_error(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == pytest.approx(0.0)
