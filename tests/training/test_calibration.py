"""Temperature, threshold and confidence from predictions whose truth is known."""

import json

import numpy as np
import pytest

from napari_pancreas_seg.inference.frame import Frame, FrameSpec
from napari_pancreas_seg.training import cards
from napari_pancreas_seg.training.judge import calibration
from napari_pancreas_seg.training.judge.calibration import (
    PredictedSlice,
    ThresholdScores,
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
        predicted.append(PredictedSlice(f"P{i % 5}", f"s{i}", sure[None], mask[None], FRAME))
    return predicted


def test_the_temperature_undoes_overconfidence():
    found = calibrate(too_sure(40, 3.0))
    assert found["temperature"] == pytest.approx(3.0, rel=0.1)
    assert found["confidence"]["error_after"] < 0.02 < found["confidence"]["error_before"]
    assert found["confidence"]["patients"] == 5 and found["confidence"]["slices"] == 40


def test_expected_dice_ranks_slices_as_their_true_dice_does():
    found = calibrate(too_sure(60, 1.0))["confidence"]
    assert found["spearman"] > 0.6
    assert found["slope"] > 0


def slices_of(*pairs):
    """Slices on which the network says one thing (a probability) of a square and of the rest."""
    predicted = []
    for i, (said, elsewhere, rows) in enumerate(pairs):
        mask = np.zeros((40, 40), np.uint8)
        mask[10 : 10 + rows, 10:30] = 1
        p = np.full((40, 40, 1), elsewhere, np.float32)
        p[10:30, 10:30] = said
        predicted.append(PredictedSlice(f"P{i}", f"s{i}", np.moveaxis(p, -1, 0), mask[None], FRAME))
    return predicted


@pytest.mark.parametrize(
    "predicted",
    [
        slices_of((0.9, 0.05, 20)),
        slices_of((0.9, 0.05, 20), (0.9, 0.05, 10), (0.9, 0.05, 0)),  # expected alike
        slices_of((0.99, 0.0, 20), (0.7, 0.0, 20)),  # true alike
        slices_of((0.01, 0.01, 20), (0.01, 0.01, 15)),  # nothing found
        slices_of((0.3, 0.2, 0), (0.2, 0.1, 0)),  # found at a low threshold, and no gland
        slices_of((0.01, 0.01, 0), (0.01, 0.01, 0)),  # neither
    ],
)
def test_what_cannot_be_measured_is_left_out(predicted):
    card = calibrate(predicted)
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    assert "spearman" not in card["confidence"]
    near = any(one.mask.any() for one in predicted)
    assert ("error_after" in card["confidence"]) == near
    if not near:
        assert card["temperature"] == 1.0
        assert (card["confidence"]["slope"], card["confidence"]["intercept"]) == (1.0, 0.0)


def test_a_card_says_in_whom_nothing_is_outlined():
    predicted = slices_of((0.9, 0.05, 20), (0.9, 0.05, 10), (0.01, 0.01, 0))
    found = cards.judged(predicted, {"pancreas": 1}, "Dice", [])["validation"]
    assert found["patients"]["P2"] == 1 and found["empty_references"] == ["P2"]
    said = "nothing is outlined in P2: Dice is 1 if nothing was found there, else 0"
    assert found["what"] == f"Dice; {said}"
    both = cards.cautions({"seen_before": ["P1"]}, found)
    assert "learnt from 1 of the patients" in both and both.endswith(said)
    whole = cards.judged(predicted[:2], {"pancreas": 1}, "Dice", [])["validation"]
    assert whole["what"] == "Dice" and "empty_references" not in whole


def test_a_line_through_slices_that_hardly_differ_is_not_laid():
    found = calibrate(slices_of((0.9, 0.0, 20), (0.90001, 0.0, 10)))["confidence"]
    assert (found["slope"], found["intercept"]) == (1.0, 0.0)


def test_few_of_many_pixels_give_the_same_temperature(monkeypatch):
    predicted = too_sure(40, 3.0)
    every = calibrate(predicted)["temperature"]
    monkeypatch.setattr(calibration, "MOST_VALUES", 8000)
    probability, target = calibration._near_either_mask(predicted)
    assert 4000 < probability.size == target.size <= 8000 + len(predicted)
    assert calibrate(predicted)["temperature"] == pytest.approx(every, rel=0.1)


def test_what_is_true_is_kept_in_bytes():
    spec = FrameSpec(40, 40, 1.7, (0.0, 0.0))
    frame = Frame(spec, (40, 40), (0.3, 0.6), (1.7, 1.7))
    mask = too_sure(1, 1.0)[0].mask
    one = PredictedSlice("P", "s", np.zeros((1, 40, 40), np.float32), mask, frame)
    assert one.shares.nbytes == 40 * 40
    rows, columns = frame.into()
    np.testing.assert_allclose(one.target[0], rows @ mask[0] @ columns.T, atol=0.51 / 255)


def test_tempering_is_what_the_predictor_does():
    p = np.array([[0.02, 0.5, 0.9]], np.float32)
    np.testing.assert_allclose(tempered(p, 1.0), p, rtol=1e-5)
    odds = np.log(p / (1 - p)) / 2.5
    np.testing.assert_allclose(tempered(p, 2.5), 1 / (1 + np.exp(-odds)), rtol=1e-5)
    assert np.isfinite(tempered(np.array([[0.0, 1.0]]), 3.0)).all()


def test_calibration_error_by_hand():
    assert calibration_error(np.array([0.9, 0.9]), np.array([1.0, 0.0])) == pytest.approx(0.4)
    assert calibration_error(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == pytest.approx(0.0)


def logits_of(n, temperature, seed=0):
    """Three classes and a background whose logits are `temperature` times the warranted ones."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :40]
    predicted = []
    for i in range(n):
        places = rng.uniform(8, 32, (3, 2))
        scores = [6 - np.hypot(y - a, x - b) / rng.uniform(1, 2) for a, b in places]
        logits = np.stack([np.zeros((40, 40)), *scores])
        p = np.exp(logits) / np.exp(logits).sum(0)
        true = (rng.random((40, 40)) > p.cumsum(0)).sum(0).clip(0, 3).astype(np.uint8)
        sure = np.exp(temperature * (logits - logits.max(0)))
        sure = (sure / sure.sum(0))[1:].astype(np.float32)
        predicted.append(PredictedSlice(f"P{i % 5}", f"s{i}", sure, true[None], FRAME, (1, 2, 3)))
    return predicted


def test_several_classes_are_calibrated_together():
    found = calibrate(logits_of(30, 2.5))
    assert found["temperature"] == pytest.approx(2.5, rel=0.1)
    assert found["confidence"]["error_after"] < 0.02 < found["confidence"]["error_before"]


def test_tempering_several_classes_is_what_the_predictor_does():
    from napari_pancreas_seg.model.probabilities import tempered as on_device

    p = np.random.default_rng(0).dirichlet(np.ones(4), 50)[:, 1:].astype(np.float32)
    np.testing.assert_allclose(tempered(p.T, 1.7).T, np.asarray(on_device(p, 1.7)), atol=1e-5)


def test_a_class_wins_only_where_something_is():
    """The sum must exceed the threshold; then the most probable class has the pixel."""
    scores = ThresholdScores((0.5, 0.8))
    p = np.array([[[0.3, 0.1, 0.2]], [[0.3, 0.7, 0.2]]])  # sums 0.6, 0.8, 0.4
    p[1, 0, 0] += 0.01
    scores.add("A", p, np.array([[4, 4, 2]]), (2, 4))
    by_class = scores.dice_by_class()["A"]
    np.testing.assert_allclose(by_class[0], [0.0, 1.0])
    np.testing.assert_allclose(by_class[1], [0.0, 0.0])
    np.testing.assert_allclose(scores.dice()["A"], [0.5, 0.0])
    scores = ThresholdScores((0.5,))
    scores.add("B", np.array([[[0.9]], [[0.0]]]), np.array([[2]]), (2, 4))
    assert np.isnan(scores.dice_by_class()["B"][0, 1])  # nobody has the other class
    assert scores.best() == (0.5, 1.0)
