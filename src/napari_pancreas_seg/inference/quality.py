"""Quality of a mask: the expected Dice of the whole case, and what is unusual, in words.

`data/alarm.json` holds the weights, fitted out of fold by ``research/fit_alarm.py``.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from importlib import resources
from typing import Any

import numpy as np

from napari_pancreas_seg.arrays import Array, Box
from napari_pancreas_seg.inference.acquisition import NOISY_HU
from napari_pancreas_seg.mask.measures import volume_ml
from napari_pancreas_seg.mask.postprocessing import largest_component
from napari_pancreas_seg.volume import Grid, ScalarMap, bounding_box

FEATURES = ("slices", "firm", "kept", "noise")
"""Features that the expected Dice is computed from; see `features`."""

LOW_DICE = 0.7
"""A case with a lower expected Dice should be looked at."""
USUAL_ML = (37.0, 174.0)
"""Between these lie 9 in 10 of 78 glands outlined by hand: 20 patients of NIH Pancreas-CT, 58 of
the Medical Segmentation Decathlon (task 7), tumours included."""
USUAL_NOISE_HU = 15.0
IN_PIECES, LEFT_OUT, INFIRM = 0.85, 0.8, 0.45


def mask_quality(
    mask: Array,
    grid: Grid,
    probability: ScalarMap,
    threshold: float,
    expected_dice: Array,
    scan: Mapping[str, Any],
    region: Box | None = None,
) -> dict[str, Any]:
    """Return ``expected_dice`` (None for an empty mask), ``phase`` and ``noticed``, for JSON.

    `region` (z, y, x) is the part of the CT that was asked for, if not all of it.
    """
    phase = scan.get("phase", "unknown")
    seen = features(mask, grid, probability, threshold, expected_dice, scan)
    if seen is None:
        return {"expected_dice": None, "phase": phase, "noticed": ["No pancreas was found."]}
    expected = predict(seen)
    place = _about_place(mask, grid, region)
    shown = mask.any(axis=(1, 2))  # what was seen elsewhere is no part of the mask
    of_mask = expected_dice[shown] if len(expected_dice) else expected_dice
    noticed = [*place, *_about_doubt(seen, of_mask), *_about_scan(scan)]
    if expected < LOW_DICE:
        noticed.insert(0, f"The expected Dice is {expected:.2f}: look at this mask.")
    return {"expected_dice": round(expected, 3), "phase": phase, "noticed": noticed}


def given_mask_quality(
    mask: Array | None, grid: Grid, scan: Mapping[str, Any], region: Box | None = None
) -> dict[str, Any]:
    """`mask_quality` without an expected Dice, for masks (Z, Y, X) that it was not fitted to.

    None for a mask of other organs alone.
    """
    noticed = _about_scan(scan)
    if mask is not None and not mask.any():
        noticed = ["The mask is empty."]
    elif mask is not None:
        noticed = [*_about_place(mask, grid, region), *_about_pieces(_largest(mask)), *noticed]
    return {"phase": scan.get("phase", "unknown"), "noticed": noticed}


def features(
    mask: Array,
    grid: Grid,
    probability: ScalarMap,
    threshold: float,
    expected_dice: Array,
    scan: Mapping[str, Any],
) -> dict[str, float] | None:
    """Compute the features of a mask (Z, Y, X); None if it is empty.

    ``slices``: mean of the slices' expected Dice, by area. ``firm``: volume above a threshold
    halfway to 1, as a share of that above half the threshold. ``kept``: share of what exceeds the
    threshold that is in the mask. ``noise``: log of the noise to the usual one. ``largest``: share
    of the largest piece.
    """
    box = bounding_box(mask)
    if box is None:
        return None
    inside = mask[box] != 0
    areas = np.count_nonzero(inside, axis=(1, 2))
    expected = expected_dice[box[0]] if len(expected_dice) else np.full(len(inside), np.nan)
    judged = (areas > 0) & np.isfinite(expected)
    of_slices, of_areas = expected[judged], areas[judged]
    values = probability.values[np.isfinite(probability.values[:, 0, 0])]
    levels = threshold / 2, threshold, (1 + threshold) / 2
    low, middle, high = (int(np.count_nonzero(values > level)) for level in levels)
    above_ml = middle * probability.grid.voxel_volume_mm3 / 1000
    return {
        "slices": float(np.average(of_slices, weights=of_areas)) if judged.any() else 0.0,
        "firm": high / max(1, low),
        "kept": min(1.0, volume_ml(inside, grid) / max(above_ml, 1e-6)),
        "largest": _largest(inside),
        "noise": math.log(max(1.0, scan.get("noise_hu") or USUAL_NOISE_HU) / USUAL_NOISE_HU),
    }


def predict(seen: Mapping[str, float], weights: Mapping[str, Any] | None = None) -> float:
    """The expected Dice, a logistic function of the features."""
    fitted = weights or _fitted()
    z = fitted["intercept"] + sum(
        fitted["weights"][name] * (seen[name] - fitted["mean"][name]) / fitted["sd"][name]
        for name in fitted["weights"]
    )
    return 1 / (1 + math.exp(-z))


@functools.cache
def _fitted() -> dict[str, Any]:
    data = resources.files("napari_pancreas_seg.data").joinpath("alarm.json")
    return json.loads(data.read_text(encoding="utf-8"))


def _largest(mask: Array) -> float:
    """Share of a mask that is in its largest piece."""
    return float(largest_component((mask != 0).astype(np.uint8)).sum() / np.count_nonzero(mask))


def _about_pieces(largest: float) -> list[str]:
    if largest >= IN_PIECES:
        return []
    return [f"The mask is in pieces: the largest holds {largest:.0%} of it."]


def _about_place(mask: Array, grid: Grid, region: Box | None = None) -> list[str]:
    noticed = []
    part = mask if region is None else mask[region]
    whole = part.shape == mask.shape
    ml, (low, high) = volume_ml(mask, grid), USUAL_ML
    if ml > high or (whole and ml < low):
        noticed.append(
            f"The mask has {ml:.0f} mL; 9 in 10 of 78 glands have {low:.0f} to {high:.0f} mL."
        )
    faces = [part.take(end, axis).any() for axis in range(3) for end in (0, -1)]
    names = ("lowest slice", "highest slice", "front edge", "back edge", "right edge", "left edge")
    if touched := [name for name, face in zip(names, faces, strict=True) if face]:
        where = " and the ".join(touched)
        what = "the CT" if whole else "the part that was asked for"
        noticed.append(f"The mask reaches the {where} of {what}: the gland may be cut off.")
    return noticed


def _about_doubt(seen: Mapping[str, float], expected_dice: Array) -> list[str]:
    noticed = _about_pieces(seen["largest"])
    if seen["kept"] < LEFT_OUT:
        noticed.append(
            f"{1 - seen['kept']:.0%} of what the network saw lies elsewhere and was left out."
        )
    if seen["firm"] < INFIRM:
        noticed.append("The network is unsure of the outline: other thresholds give other masks.")
    doubtful = int(np.count_nonzero(expected_dice < LOW_DICE))
    if doubtful and seen["slices"] < LOW_DICE:
        noticed.append(f"The expected Dice is below {LOW_DICE} in {doubtful} slices.")
    return noticed


def _about_scan(scan: Mapping[str, Any]) -> list[str]:
    noticed = []
    if (scan.get("noise_hu") or 0) > NOISY_HU:
        noticed.append("The CT is noisy.")
    if scan.get("phase") in ("no contrast agent", "arterial", "delayed"):
        noticed.append(f"The contrast phase ({scan['phase']}) is not that of the training.")
    return noticed
