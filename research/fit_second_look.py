"""How much a second look counts: share and shift for a model's card, and its confidence anew.

    python research/fit_second_look.py DATASET benchmarks/models/fold0 MEND [--mm 4] \\
        [--share 0.4 --write benchmarks/models/fold0 --write src/…/models/default]

Every slice of the patients that neither network has seen is segmented, and looked at again; the
log-odds of both are mixed in several shares. For each share: the log-odds that are best for the
patients' mean Dice, and the Dice at thresholds that were chosen on the other patients. With
``--write``, the cards get `second_look`, with a shift for which their threshold stays the best, and
the `confidence` of what comes out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import special, stats

from napari_pancreas_seg.inference.finishing import places
from napari_pancreas_seg.inference.frame import Frame
from napari_pancreas_seg.inference.loaded import LoadedModel
from napari_pancreas_seg.inference.maps import expected_dice
from napari_pancreas_seg.inference.mend import TASK, log_odds
from napari_pancreas_seg.inference.scan_context import ScanContext
from napari_pancreas_seg.inference.second_look import SecondLook
from napari_pancreas_seg.inference.segment import segment
from napari_pancreas_seg.io.files import write_json
from napari_pancreas_seg.model.bundle import load_bundle, load_card
from napari_pancreas_seg.training.data.layouts.slices import read_slice_layout
from napari_pancreas_seg.training.judge import calibration
from napari_pancreas_seg.training.judge.calibration import PredictedSlice, score_predictions
from napari_pancreas_seg.training.judge.scores import at_others_threshold
from napari_pancreas_seg.training.judge.seen import patients_seen

SHARES = (0.0, 0.3, 0.4, 0.5, 0.7, 1.0)
THRESHOLDS = tuple(special.expit(np.arange(-1.5, 2.51, 0.25)).tolist())


@dataclass(frozen=True, eq=False)
class Looked:
    """A slice with the log-odds (height, width) of both looks, and its true mask (1, Y, X)."""

    patient: str
    name: str
    first: np.ndarray
    second: np.ndarray
    mask: np.ndarray
    frame: Frame

    def mixed(self, share: float, shift: float = 0.0) -> PredictedSlice:
        """What comes out."""
        odds = (1 - share) * self.first + share * self.second + shift
        probability = special.expit(odds).astype(np.float32)
        return PredictedSlice(self.patient, self.name, probability, self.mask, self.frame)


def look_twice(asked: argparse.Namespace) -> list[Looked]:
    """All slices of the patients."""
    loaded = LoadedModel(asked.model)
    told = {"model": asked.mend, "mm": asked.mm, "share": 1.0, "shift": 0.0}
    look = SecondLook({"second_look": told, "threshold": loaded.card["threshold"]}, "cpu")
    seen = patients_seen([loaded.card, load_bundle(asked.mend, TASK).card])
    found = []
    for record in read_slice_layout(asked.dataset):
        if record.patient in seen:
            continue
        volume, truth = record.load()
        result = segment(volume, loaded, postprocess=False, second_look=False)
        frame, slice_grid = places(result)
        first = result.probability.values
        second, body = first.copy(), ScanContext.of(volume).body
        for _ in look.revise(volume, body, frame, slice_grid.z, second, first):
            pass
        truth = np.uint8(truth > 0)
        odds = log_odds(first), log_odds(second)
        found.append(Looked(record.patient, record.name, *odds, truth, frame))
    return found


def best_odds(
    slices: Sequence[Looked], share: float, once: dict[str, float]
) -> tuple[float, dict[str, float]]:
    """The log-odds that are best for the mean Dice, and that of each patient; prints both.

    `once` is the Dice of each patient with one look, if known.
    """
    dice = score_predictions((each.mixed(share) for each in slices), 1.0, THRESHOLDS).dice()
    means = np.mean(list(dice.values()), axis=0)
    best = int(means.argmax())
    honest = np.mean(list(at_others_threshold(dice).values()))
    found = {p: float(d[best]) for p, d in dice.items()}
    odds = float(special.logit(THRESHOLDS[best]))
    gains = [found[p] - once.get(p, found[p]) for p in found]
    print(
        f"share {share:.2f}: best at log-odds {odds:+.2f}: {means[best]:.4f} (worst "
        f"{min(found.values()):.3f}, gain of a patient {min(gains):+.3f} to {max(gains):+.3f}); "
        f"threshold chosen on the other patients: {honest:.4f}",
        flush=True,
    )
    return odds, found


def confidence(
    slices: Sequence[Looked], share: float, shift: float, threshold: float
) -> dict[str, object]:
    """The line from what the first look expects to the Dice of a slice in the end, and more."""
    predicted = [each.mixed(share, shift) for each in slices]
    expected, true = [], []
    for each, one in zip(slices, predicted, strict=True):
        raw = float(expected_dice(special.expit(each.first), threshold)[0])
        if np.isfinite(raw):
            found, target = one.probability[0] > threshold, one.target[0]
            expected.append(raw)
            true.append(2 * target[found].sum() / (found.sum() + target.sum()))
    slope, intercept = np.polyfit(expected, true, 1)
    error = calibration.calibration_error(*calibration._near_either_mask(predicted))
    return {
        "slope": round(float(slope), 4),
        "intercept": round(float(intercept), 4),
        "spearman": round(float(stats.spearmanr(expected, true).statistic), 4),
        "error_after": error,
    }


def main() -> None:
    """Print a line a share, and write the cards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("model")
    parser.add_argument("mend")
    parser.add_argument("--mm", type=float, default=4.0)
    parser.add_argument("--share", type=float, default=0.4)
    parser.add_argument("--write", type=Path, action="append", default=[], metavar="BUNDLE")
    asked = parser.parse_args()
    slices = look_twice(asked)
    threshold, odds, once = load_card(asked.model)["threshold"], {}, {}
    for share in sorted({*SHARES, asked.share}):
        odds[share], found = best_odds(slices, share, once)
        once = once or found
        shift = float(special.logit(threshold)) - odds[share]
        print("  ", confidence(slices, share, shift, threshold), flush=True)
    pinned = load_bundle(asked.mend, TASK).card["weights_sha256"]
    for bundle in asked.write:
        card = json.loads((bundle / "card.json").read_text(encoding="utf-8"))
        shift = round(float(special.logit(card["threshold"])) - odds[asked.share], 2)
        card["confidence"] |= confidence(slices, asked.share, shift, card["threshold"])
        told = {
            **{"model": "mend", "weights_sha256": pinned},
            **{"mm": asked.mm, "share": asked.share, "shift": shift},
        }
        write_json(bundle / "card.json", {**card, "second_look": told}, overwrite=True)
        print(bundle, told, card["confidence"])


if __name__ == "__main__":
    main()
