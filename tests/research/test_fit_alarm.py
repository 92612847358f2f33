"""The fit of the expected Dice, on cases that are made up."""

from __future__ import annotations

import numpy as np
import pytest

import fit_alarm
from napari_pancreas_seg.inference.quality import FEATURES, predict


def cases(n: int = 60) -> list[dict]:
    """Dice follows the first feature; the others are noise."""
    rng = np.random.default_rng(0)
    made = []
    for k in range(n):
        seen = dict(zip(FEATURES, rng.uniform(0, 1, len(FEATURES)).tolist(), strict=True))
        dice = float(np.clip(0.2 + 0.7 * seen[FEATURES[0]] + rng.normal(0, 0.03), 0, 1))
        made.append({"patient": f"P{k % 6}", "spoiling": "none", **seen, "dice": dice})
    return made


def test_what_dice_follows_is_found_and_the_figures_tell() -> None:
    known, new = cases()[:48], cases()[48:]
    weights = fit_alarm.fit(known)
    for case in new:
        case["expected"] = predict(case, weights)
        assert case["expected"] == pytest.approx(case["dice"], abs=0.12)
    found = fit_alarm.figures(new)
    assert found["rank correlation"] > 0.9
    assert found["AUC of Dice < 0.7"] > 0.9
    upside_down = fit_alarm.figures([{**case, "expected": -case["expected"]} for case in new])
    assert upside_down["AUC of Dice < 0.7"] == pytest.approx(1 - found["AUC of Dice < 0.7"])


def test_a_feature_that_never_changes_does_no_harm() -> None:
    still = [{**case, FEATURES[1]: 0.5} for case in cases()]
    weights = fit_alarm.fit(still)
    usual = predict(still[0], weights)
    assert predict({**still[0], FEATURES[1]: 0.6}, weights) == pytest.approx(usual, abs=0.02)


def test_spoilings_keep_masks_with_their_slices() -> None:
    rng = np.random.default_rng(0)
    hu = rng.uniform(0, 255, (4, 90, 110)).astype(np.float32)
    mask = np.zeros(hu.shape, bool)
    mask[1:3, 40:50, 30:60] = True
    for name, spoil in fit_alarm.SPOILINGS.items():
        spoiled, reference, mm = spoil(hu, mask, 0.8, rng)
        assert spoiled.shape == reference.shape, name
        assert reference.any() and mm > 0
        assert spoiled.min() >= -60 and spoiled.max() <= 256
