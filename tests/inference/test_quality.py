"""The expected Dice of a case, and what is said against its mask."""

from __future__ import annotations

from typing import Any

import numpy as np

from napari_pancreas_seg.inference.quality import FEATURES, features, mask_quality, predict
from napari_pancreas_seg.inference.result import ScalarMap
from napari_pancreas_seg.volume import Grid

GRID = Grid(
    (40, 60, 60), np.array([[0, 0, -1.5, 0], [0, -1.5, 0, 0], [2.5, 0, 0, 0], [0, 0, 0, 1]])
)
SCAN = {"phase": "portal-venous", "noise_hu": 12.0, "cut_off": [], "contrast_shift_hu": 0}


def gland(*, first: int = 10, last: int = 26) -> np.ndarray:
    mask = np.zeros(GRID.shape, np.uint8)
    mask[first:last, 20:40, 20:50] = 1
    return mask


def case(mask: np.ndarray, probability: np.ndarray | None = None, **scan: Any) -> dict[str, Any]:
    p = 0.95 * mask if probability is None else probability
    expected = np.where(mask.any(axis=(1, 2)), 0.85, np.nan).astype(np.float32)
    return {
        "mask": mask,
        "grid": GRID,
        "probability": ScalarMap(p.astype(np.float16), GRID),
        "threshold": 0.5,
        "expected_dice": expected,
        "scan": {**SCAN, **scan},
    }


def test_a_usual_mask_is_expected_to_be_good_and_nothing_is_said() -> None:
    found = mask_quality(**case(gland()))
    assert found["noticed"] == []
    assert found["expected_dice"] > 0.7
    assert found["phase"] == "portal-venous"


def test_what_speaks_against_a_mask_is_said() -> None:
    pieces = gland(last=16)
    pieces[20:23, 20:40, 20:50] = 1
    seen = gland()
    said = {
        "9 in 10 of 78 glands": case(gland(last=12)),
        "reaches the lowest slice of the CT": case(gland(first=0)),
        "in pieces: the largest holds 67%": case(pieces),
        "lies elsewhere": case(gland(last=18), 0.95 * seen),
        "other thresholds": case(seen, 0.6 * seen),
        "noisy": case(seen, noise_hu=50.0),
        "phase (arterial)": case(seen, phase="arterial"),
    }
    for words, each in said.items():
        assert any(words in sentence for sentence in mask_quality(**each)["noticed"]), words


def test_of_a_part_nothing_is_said_that_holds_for_a_whole_gland_only() -> None:
    part = (slice(12, 14), slice(0, 60), slice(0, 60))
    cut = case(gland(first=12, last=14))
    assert "9 in 10 of 78 glands" in " ".join(mask_quality(**cut)["noticed"])
    (said,) = mask_quality(**cut, region=part)["noticed"]
    assert "lowest slice and the highest slice of the part that was asked for" in said
    wide = (slice(5, 30), *part[1:])
    assert mask_quality(**case(gland()), region=wide)["noticed"] == []
    huge = gland(first=1, last=38)
    huge[1:38, 10:50] = huge[1:38, 20:21]
    (said,) = mask_quality(**case(huge), region=(slice(0, 39), *part[1:]))["noticed"]
    assert "9 in 10 of 78 glands" in said, "a part has no more than the whole"


def test_without_a_mask_there_is_no_expectation() -> None:
    found = mask_quality(**case(np.zeros(GRID.shape, np.uint8)))
    assert found["expected_dice"] is None
    assert found["noticed"] == ["No pancreas was found."]


def test_doubt_lowers_the_expectation() -> None:
    sure, unsure = case(gland()), case(gland(), 0.6 * gland())
    unsure["expected_dice"] = unsure["expected_dice"] - np.float32(0.4)
    unsure["expected_dice"][0] = 0  # something seen where the mask is not
    good, bad = mask_quality(**sure), mask_quality(**unsure)
    assert bad["expected_dice"] < good["expected_dice"] - 0.1
    assert any("look at this mask" in sentence for sentence in bad["noticed"])
    assert any("below 0.7 in 16 slices" in sentence for sentence in bad["noticed"])


def test_features_are_those_that_were_fitted() -> None:
    seen = features(**case(gland(), 0.95 * gland()))
    assert seen is not None
    assert set(FEATURES) <= set(seen)
    assert seen["kept"] == 1
    assert 0 < predict(seen) < 1
