"""How far a mask can be trusted, slice by slice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

DOUBTFUL = 0.1
"""Probabilities below this say no pancreas, and are no part of a slice's doubt."""


def expected_dice(
    probability: npt.NDArray[Any], threshold: float, card: Mapping[str, Any] | None = None
) -> npt.NDArray[np.float32]:
    """Estimate how well each slice's mask would agree with a radiologist's, 0 to 1, shape (Z,).

    With M the mask and p the probability, were p calibrated and pixels independent, the
    expected overlap is Σ p over M, and the expected size of the true mask Σ p over all; so
    Dice is about ``2 Σ_M p / (|M| + Σ p)``. What neighbouring pixels have in common makes
    this too sure of itself: ``confidence`` in the model's card holds the line that was fitted out
    of fold. NaN for slices where no probability (Z, H, W) exceeds `DOUBTFUL`.
    """
    line = {"slope": 1.0, "intercept": 0.0, **((card or {}).get("confidence") or {})}
    expected = np.full(len(probability), np.nan, np.float32)
    for z, plane in enumerate(probability):
        if not plane.max() > DOUBTFUL:  # NaN compares false
            continue
        p = plane[plane > DOUBTFUL].astype(np.float32)
        inside = p > threshold
        dice = 2.0 * p[inside].sum() / (inside.sum() + p.sum())
        expected[z] = np.clip(line["slope"] * dice + line["intercept"], 0.0, 1.0)
    return expected
