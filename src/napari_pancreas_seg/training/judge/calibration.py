"""Patients that a model never saw: what it says of them, and what is fitted on that.

They are read once and scored after every epoch on the CTs' own pixels. Temperature, threshold and
confidence of the model are fitted on them in the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import keras
import numpy as np
from scipy import ndimage, optimize, stats

from napari_pancreas_seg.arrays import Array, Floats, Floats32, Indices, Labels, Mask
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.body import find_body, place_frame
from napari_pancreas_seg.inference.frame import Frame
from napari_pancreas_seg.inference.maps import expected_dice
from napari_pancreas_seg.inference.predictor import windowed
from napari_pancreas_seg.tissue import evenly_spread
from napari_pancreas_seg.training.data.layouts.cases import BadCases, LabelledCase
from napari_pancreas_seg.training.fit.recipe import TrainSettings

NEAR_MM = 10.0
"""Calibration is measured this near to either mask: far away it is trivially good."""
MOST_VALUES = 1 << 23
"""Probabilities to fit a temperature on: it needs no more, and they take memory."""
LEAST_RANGE = 0.01
"""Of the expected Dice of slices, below which no line can be laid through them."""
TEMPERATURES = (0.5, 8.0)
BINS = 15
MOST_SLICES = 1500
"""Slices of all cases together; of one class and in the default frame they take a GB."""
MOST_BYTES = 2 << 30
"""Memory for them, with their masks and predictions: fewer of several classes fit into it."""
FEWEST_SLICES = 8
"""Slices of one case, however many cases there are; fewer only if the memory is full."""
WITH_ORGAN = 0.75
"""Share of a case's slices that show something, where not all slices are taken."""
BATCH = 8
THRESHOLDS = tuple(float(t) for t in np.round(np.arange(0.2, 0.81, 0.02), 2))


@dataclass(frozen=True, eq=False)
class PredictedSlice:
    """A slice, and the prediction of a network that was not trained on its patient.

    `probability` (C, height, width) lies in the frame, before any temperature; `mask` (1, Y, X),
    with the `values` of the classes, on the slice's own grid.
    """

    patient: str
    name: str
    probability: Floats32
    mask: Labels
    frame: Frame
    values: tuple[int, ...] = (1,)

    @cached_property
    def shares(self) -> Labels:
        """Share of each of the frame's pixels that belongs to each class, 255 for all of it."""
        rows, columns = self.frame.into()
        shares = [rows @ (self.mask[0] == v).astype(np.float32) @ columns.T for v in self.values]
        return np.rint(255 * np.stack(shares)).astype(np.uint8)

    @property
    def target(self) -> Floats32:
        """Share of each of the frame's pixels that each class has, from 0 to 1."""
        return np.asarray(self.shares / 255, np.float32)


class HeldBack:
    """Labelled slices of the cases that validate, in memory: evenly spread, if not all of them."""

    def __init__(
        self,
        cases: Sequence[LabelledCase],
        labels: Mapping[str, int],
        settings: TrainSettings,
        *,
        most_slices: int = MOST_SLICES,
        most_bytes: int = MOST_BYTES,
        on_case: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.labels, self.settings = dict(labels), settings
        self.complete = True
        self._slices: list[tuple[Floats32, PredictedSlice]] = []  # what the network sees first
        n = max(1, len(cases))
        fit = most_bytes // _bytes_of_slice(settings, len(labels)) // n
        each = max(1, min(fit, max(FEWEST_SLICES, most_slices // n)))
        problems: list[str] = []
        for done, case in enumerate(cases, start=1):
            try:
                self._slices += self._read(case, each)
            except PancreasSegError as error:
                problems += BadCases.of(case.name, error).problems
            on_case(done, len(cases))
        if problems:
            raise BadCases(problems)

    def __len__(self) -> int:
        return len(self._slices)

    @property
    def shows_something(self) -> bool:
        """Whether any of the references shows any of the classes."""
        values = [*self.labels.values()]
        return any(np.isin(one.mask, values).any() for _, one in self._slices)

    def predict(self, network: keras.Model) -> Iterator[PredictedSlice]:
        """Run a network over all slices; yield its prediction for each."""
        for first in range(0, len(self._slices), BATCH):
            part = self._slices[first : first + BATCH]
            # Every batch alike, so that the network is compiled once.
            hu = np.stack([part[min(i, len(part) - 1)][0] for i in range(BATCH)])
            inputs = np.asarray(keras.ops.convert_to_numpy(windowed(hu, self.settings.windows)))
            found = network.predict_on_batch(inputs)["probability"]
            for (_, one), probability in zip(part, found[: len(part)], strict=True):
                by_class = np.ascontiguousarray(np.moveaxis(probability, -1, 0), np.float32)
                yield replace(one, probability=by_class)

    def _read(self, case: LabelledCase, most: int) -> list[tuple[Floats32, PredictedSlice]]:
        """Slices of a case, cut out of the CT as inference does, with nothing predicted yet."""
        volume, labels = case.load()
        frame = place_frame(volume.hu, volume.spacing, self.settings.frame)
        body = find_body(volume.hu, volume.spacing)
        windows = self.settings.windows
        low, high = min(w[0] for w in windows), max(w[1] for w in windows)
        rows, columns = frame.into()
        values, nothing, held = tuple(self.labels.values()), np.zeros(0, np.float32), []
        for z in self._chosen(case, labels, most):
            seen = body.shown(volume.hu[z : z + 1])[0].astype(np.float32)
            clipped = np.clip(seen + body.shift, low, high) - low
            hu = np.asarray(rows @ clipped @ columns.T + low, np.float32)[..., None]
            name = case.name if len(labels) == 1 else f"{case.name} slice {z}"
            mask = labels[z : z + 1].copy()
            held.append((hu, PredictedSlice(case.patient, name, nothing, mask, frame, values)))
        return held

    def _chosen(self, case: LabelledCase, labels: Labels, most: int) -> Indices:
        """Labelled slices to score: all, or most of them from those that show something."""
        z = np.arange(len(labels)) if case.slices is None else np.array(sorted(case.slices))
        if len(z) <= most:
            return z.astype(np.intp)
        self.complete = False
        values = list(self.labels.values())
        shown = np.array([np.isin(labels[i], values).any() for i in z], bool)
        few = min(int(np.count_nonzero(~shown)), most - round(WITH_ORGAN * most))
        taken = evenly_spread(z[shown], most - few)
        return np.sort(np.concatenate([taken, evenly_spread(z[~shown], most - len(taken))]))


def _bytes_of_slice(settings: TrainSettings, classes: int) -> int:
    """Memory of a slice and of a prediction of it; most masks have 512 × 512 pixels."""
    pixels = settings.frame.height * settings.frame.width
    # In float32 what is shown and what is said, in a byte what is true; see `PredictedSlice`.
    return 512 * 512 + pixels * (4 + 5 * classes)


_WHAT = (
    "fitted on patients the network never saw; calibration error within "
    f"{NEAR_MM:.0f} mm of either mask; spearman is the rank correlation of the expected with the "
    "true Dice of a slice"
)


def tempered(probability: Array, temperature: float) -> Floats32:
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
    both: dict[str, Array] = field(default_factory=dict)
    total: dict[str, Array] = field(default_factory=dict)

    def add(
        self, patient: str, probability: Array, mask: Array, values: Sequence[int] = (1,)
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

    def _exceeding(self, steps: Array) -> Array:
        """Pixels above each threshold, from how many each pixel exceeds."""
        counts = np.bincount(steps, minlength=len(self.thresholds) + 1)
        return np.asarray(counts[::-1].cumsum()[::-1][1:], np.int64)

    def dice(self) -> dict[str, Floats]:
        """Dice of each patient for each threshold, the mean over the classes that there are."""
        found = {}
        for patient, rows in self.dice_by_class().items():
            there = np.isfinite(rows)
            n = there.sum(axis=1)
            sums = np.where(there, rows, 0.0).sum(axis=1)
            found[patient] = np.where(n > 0, sums / np.maximum(n, 1), 1.0)
        return found

    def dice_by_class(self) -> dict[str, Floats]:
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
        rows, columns = one.frame.out_of()
        on_slice = rows @ tempered(one.probability, temperature) @ columns.T  # (C, Y, X)
        scores.add(one.patient, on_slice[:, None], one.mask, one.values)
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
        after = tempered(probability, temperature)
        confidence["error_before"] = round(calibration_error(probability, target), 4)
        confidence["error_after"] = round(calibration_error(after, target), 4)
    confidence["slices"] = len(predicted)
    confidence["patients"] = len({one.patient for one in predicted})
    return {"temperature": temperature, "threshold": threshold, "confidence": confidence}


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


def calibration_error(probability: Array, target: Array) -> float:
    """Expected calibration error: mean gap between probability and frequency (Naeini 2015)."""
    probability, target = probability.ravel(), target.ravel()
    index = np.clip((probability * BINS).astype(int), 0, BINS - 1)
    gap = np.bincount(index, probability, BINS) - np.bincount(index, target, BINS)
    return float(np.abs(gap).sum() / len(probability))


def _near(one: PredictedSlice) -> Mask:
    either = (one.probability.sum(axis=0) > 0.5) | (one.target.sum(axis=0) > 0.5)
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
