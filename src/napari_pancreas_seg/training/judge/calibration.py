"""Temperature, threshold and confidence of a model, fitted on patients it never saw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage, optimize, stats

from napari_pancreas_seg.inference.frame import Frame
from napari_pancreas_seg.inference.maps import expected_dice

Array = npt.NDArray[Any]

NEAR_MM = 10.0
"""Calibration is measured this near to either mask: far away it is trivially good."""
MOST_VALUES = 1 << 23
"""Probabilities to fit a temperature on: it needs no more, and they take memory."""
LEAST_RANGE = 0.01
"""Of the expected Dice of slices, below which no line can be laid through them."""
TEMPERATURES = (0.5, 8.0)
BINS = 15
THRESHOLDS = tuple(float(t) for t in np.round(np.arange(0.2, 0.81, 0.02), 2))


@dataclass(frozen=True, eq=False)
class PredictedSlice:
    """A slice, and the prediction of a network that was not trained on its patient.

    In the frame: `probability` (C, height, width) before any temperature, and `shares`, how much of
    each pixel belongs to each class, 255 for all of it. On the slice's own grid: `mask` (1, Y, X),
    with the `values` of the classes.
    """

    patient: str
    name: str
    probability: npt.NDArray[np.float32]
    shares: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    frame: Frame
    values: tuple[int, ...] = (1,)

    @classmethod
    def of(
        cls,
        patient: str,
        name: str,
        probability: Array,
        mask: npt.NDArray[np.uint8],
        frame: Frame,
        values: Sequence[int] = (1,),
    ) -> PredictedSlice:
        """Bring the reference into the frame, beside what the network says (height, width, C)."""
        rows, columns = frame.into()
        target = [rows @ (mask[0] == value).astype(np.float32) @ columns.T for value in values]
        shares = np.rint(255 * np.stack(target)).astype(np.uint8)
        classes_first = np.ascontiguousarray(np.moveaxis(probability, -1, 0), np.float32)
        return cls(patient, name, classes_first, shares, mask, frame, tuple(values))

    @property
    def target(self) -> npt.NDArray[np.float32]:
        """Share of each of the frame's pixels that each class has, from 0 to 1."""
        return np.asarray(self.shares / 255, np.float32)

    def on_slice(self, temperature: float = 1.0) -> Array:
        """Probability of each class on the slice's own grid, shape (C, 1, Y, X)."""
        rows, columns = self.frame.out_of()
        return np.asarray(rows @ tempered(self.probability, temperature) @ columns.T)[:, None]


_WHAT = (
    "fitted on patients the network never saw; calibration error within "
    f"{NEAR_MM:.0f} mm of either mask; spearman is the rank correlation of the expected with the "
    "true Dice of a slice"
)


def tempered(probability: Array, temperature: float) -> npt.NDArray[np.float32]:
    """Divide the logits of probabilities (C, ...) by a temperature, as `FramePredictor` does."""
    if len(probability) == 1:
        certain = np.clip(probability, 1e-6, 1 - 1e-6).astype(np.float64)
        odds = np.log(certain) - np.log1p(-certain)
        return (1.0 / (1.0 + np.exp(-odds / temperature))).astype(np.float32)
    rest = 1.0 - probability.sum(axis=0, keepdims=True, dtype=np.float64)
    every = np.clip(np.concatenate([rest, probability]), 1e-6, 1 - 1e-6)
    weights = every ** (1.0 / temperature)
    return (weights[1:] / weights.sum(axis=0)).astype(np.float32)


@dataclass
class ThresholdScores:
    """Overlap per patient for several thresholds, pooled over each patient's slices.

    A pixel is foreground where the probabilities of all classes together exceed the threshold,
    and then of the most probable class. `both` and `total` hold, for each patient, the voxels
    (thresholds, C) in both masks, and in either counted twice.
    """

    thresholds: tuple[float, ...]
    both: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    total: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)

    def add(
        self,
        patient: str,
        probability: npt.NDArray[Any],
        mask: npt.NDArray[Any],
        values: Sequence[int] = (1,),
    ) -> None:
        """Count slices: probability (C, ...), or (...) of one class, and the reference (...)."""
        if probability.shape == mask.shape:
            probability = probability[None]
        foreground = probability.sum(axis=0)
        above = foreground > self.thresholds[0]
        # How many of the thresholds a pixel exceeds.
        limits = np.asarray(self.thresholds, probability.dtype)
        steps = np.searchsorted(limits, foreground[above], side="left")
        winner, truth = probability[:, above].argmax(axis=0), mask[above]
        both, found, reference = [], [], []
        for c, value in enumerate(values):
            mine = winner == c
            found.append(self._exceeding(steps[mine]))
            both.append(self._exceeding(steps[mine & (truth == value)]))
            reference.append(np.count_nonzero(mask == value))
        self.both[patient] = self.both.get(patient, 0) + np.stack(both, axis=1)
        counted = np.stack(found, axis=1) + np.array(reference)
        self.total[patient] = self.total.get(patient, 0) + counted

    def _exceeding(self, steps: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Pixels above each threshold, from how many each pixel exceeds."""
        counts = np.bincount(steps, minlength=len(self.thresholds) + 1)
        return np.asarray(counts[::-1].cumsum()[::-1][1:], np.int64)

    def dice(self) -> dict[str, npt.NDArray[np.float64]]:
        """Dice of each patient for each threshold, the mean over the classes that there are."""
        found = {}
        for patient, rows in self.dice_by_class().items():
            there = np.isfinite(rows)
            n = there.sum(axis=1)
            sums = np.where(there, rows, 0.0).sum(axis=1)
            found[patient] = np.where(n > 0, sums / np.maximum(n, 1), 1.0)
        return found

    def dice_by_class(self) -> dict[str, npt.NDArray[np.float64]]:
        """Dice of each patient, shape (len(thresholds), C); NaN for a class in neither mask."""
        with np.errstate(invalid="ignore"):
            return {p: 2 * self.both[p] / self.total[p] for p in sorted(self.both)}

    def best(self) -> tuple[float, float]:
        """The threshold with the best mean Dice over patients, and that Dice."""
        mean = np.mean(list(self.dice().values()), axis=0)
        return self.thresholds[int(mean.argmax())], float(mean.max())


def score_predictions(
    predicted: Iterable[PredictedSlice],
    temperature: float = 1.0,
    thresholds: tuple[float, ...] = THRESHOLDS,
) -> ThresholdScores:
    """Overlap per patient on the slices' own grids, for every threshold."""
    scores = ThresholdScores(thresholds)
    for one in predicted:
        scores.add(one.patient, one.on_slice(temperature), one.mask, one.values)
    return scores


def calibrate(predicted: Sequence[PredictedSlice]) -> dict[str, Any]:
    """Fit temperature, threshold and confidence: a card's fields, as far as they can be told.

    The temperature divides log-odds, of several classes the logits (Guo et al. 2017,
    arXiv:1706.04599); the threshold gives the best mean Dice after it. Slope and intercept of the
    confidence lead from a slice's raw expected Dice to its Dice.
    """
    probability, target = _near_either_mask(predicted)
    temperature = _best_temperature(probability, target) if probability.size else 1.0
    threshold, _ = score_predictions(predicted, temperature).best()
    expected, true = _expected_and_true(predicted, temperature, threshold)
    varies = len(expected) > 0 and np.ptp(expected) > LEAST_RANGE
    slope, intercept = np.polyfit(expected, true, 1) if varies else (1.0, 0.0)
    confidence = {"what": _WHAT, "slope": round(float(slope), 4)}
    confidence["intercept"] = round(float(intercept), 4)
    if varies and np.ptp(true) > 0:
        ranked = stats.spearmanr(expected, true).statistic
        confidence["spearman"] = round(float(ranked), 4)
    if probability.size:
        confidence["error_before"] = _error(probability, target)
        confidence["error_after"] = _error(tempered(probability, temperature), target)
    confidence["slices"] = len(predicted)
    confidence["patients"] = len({one.patient for one in predicted})
    return {"temperature": temperature, "threshold": threshold, "confidence": confidence}


def _error(probability: Array, target: Array) -> float:
    return round(calibration_error(probability.ravel(), target.ravel()), 4)


def _near_either_mask(predicted: Sequence[PredictedSlice]) -> tuple[Array, Array]:
    """Probability and target (C, n) of the pixels to calibrate on, evenly spread if many."""
    near = [np.flatnonzero(_near(one)) for one in predicted]
    classes = len(predicted[0].probability)
    step = max(1, math.ceil(classes * sum(map(len, near)) / MOST_VALUES))
    pairs = [(one, where[::step]) for one, where in zip(predicted, near, strict=True)]
    probability = [one.probability.reshape(classes, -1)[:, where] for one, where in pairs]
    shares = [one.shares.reshape(classes, -1)[:, where] for one, where in pairs]
    return np.concatenate(probability, axis=1), np.concatenate(shares, axis=1) / np.float32(255)


def _best_temperature(probability: Array, target: Array) -> float:
    """The temperature with the smallest cross-entropy."""
    background = np.clip(1 - target.sum(axis=0), 0, 1)

    def cross_entropy(log_temperature: float) -> float:
        p = tempered(probability, float(np.exp(log_temperature))).astype(np.float64)
        rest = np.clip(1 - p.sum(axis=0), 1e-9, 1)
        return float(-((target * np.log(p)).sum(axis=0) + background * np.log(rest)).mean())

    best = optimize.minimize_scalar(cross_entropy, bounds=np.log(TEMPERATURES), method="bounded")
    return round(float(np.exp(best.x)), 3)


def calibration_error(probability: Array, target: Array, bins: int = BINS) -> float:
    """Expected calibration error: mean gap between probability and frequency (Naeini 2015)."""
    index = np.clip((probability * bins).astype(int), 0, bins - 1)
    gap = np.bincount(index, probability, bins) - np.bincount(index, target, bins)
    return float(np.abs(gap).sum() / len(probability))


def _near(one: PredictedSlice, threshold: float = 0.5) -> npt.NDArray[np.bool_]:
    either = (one.probability.sum(axis=0) > threshold) | (one.target.sum(axis=0) > 0.5)
    if not either.any():
        return np.asarray(either)
    distance = ndimage.distance_transform_edt(~either) * one.frame.spec.mm_per_pixel
    return np.asarray(distance <= NEAR_MM)


def _expected_and_true(
    predicted: Sequence[PredictedSlice], temperature: float, threshold: float
) -> tuple[Array, Array]:
    """Raw expected Dice and true Dice of every slice in which something was found."""
    expected, true = [], []
    for one in predicted:
        p = tempered(one.probability, temperature).sum(axis=0)
        target = one.target.sum(axis=0)
        raw = float(expected_dice(p[None], threshold)[0])
        if not np.isfinite(raw):
            continue
        found = p > threshold
        both = 2.0 * target[found].sum()
        expected.append(raw)
        true.append(both / max(found.sum() + target.sum(), 1e-6))
    return np.array(expected), np.array(true)
