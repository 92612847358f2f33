"""How good a model is: figures per patient on the native grid, by the way of inference."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.classes import Classes
from napari_pancreas_seg.inference.segment import LoadedModel, segment
from napari_pancreas_seg.io import load_ct, load_mask, stem
from napari_pancreas_seg.io.alignment import bring_onto
from napari_pancreas_seg.model.cost import gflop_per_slice
from napari_pancreas_seg.training.data.layouts import DataSet, LabelledCase, open_dataset
from napari_pancreas_seg.training.data.layouts.pairs import match_references
from napari_pancreas_seg.training.data.layouts.slices import LAYOUT as SLICE_LAYOUT
from napari_pancreas_seg.training.data.layouts.slices import NOMINAL_SPACING_MM, SliceRecord
from napari_pancreas_seg.training.judge.scores import (
    TOLERANCE_MM,
    PatientScore,
    PatientTally,
    summarise,
    summarise_patients,
)
from napari_pancreas_seg.volume import CTVolume

__all__ = [
    "Evaluation",
    "ThresholdScores",
    "evaluate",
    "evaluate_volumes",
    "match_references",
    "patients_seen",
    "was_seen",
]

SLICES = SLICE_LAYOUT.name
THRESHOLDS = tuple(float(t) for t in np.round(np.arange(0.2, 0.85, 0.05), 2))


@dataclass
class ThresholdScores:
    """Overlap per patient for several thresholds, pooled over each patient's slices.

    A pixel is foreground where the probabilities of all classes together exceed the threshold,
    and then of the most probable class.

    Parameters
    ----------
    thresholds : tuple of float
        Thresholds tried, ascending.
    both, total : dict of str to ndarray, shape (len(thresholds), C)
        Voxels of each class in both masks, and in either counted twice, for each patient.
    """

    thresholds: tuple[float, ...] = THRESHOLDS
    both: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    total: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)

    def add(
        self,
        patient: str,
        probability: npt.NDArray[Any],
        mask: npt.NDArray[Any],
        values: Sequence[int] = (1,),
    ) -> None:
        """Count a slice, or several.

        Parameters
        ----------
        patient : str
            Whose it is.
        probability : ndarray, shape (C, ...)
            Probability of each class; of a single one, shape (...) will do.
        mask : ndarray, shape (...)
            The reference.
        values : sequence of int
            Value of each class in the reference.
        """
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


@dataclass(frozen=True)
class Evaluation:
    """Figures per patient of a model on a data set.

    Parameters
    ----------
    card : Mapping
        The model's card.
    threshold : float
        The threshold that was applied.
    patients : dict of str to PatientScore
        The figures of each patient.
    how : dict of str to str
        What was done, in words: ``data``, ``surfaces``, ``spacing``, ``postprocessing`` ….
    cost : dict
        ``parameters``, ``weights_mb``, ``gflop_per_slice``, ``seconds_per_slice``, ``device``.
    classes : dict of str to dict
        For each class of a model of several, the figures of each patient that shows it or in
        whom it was found; `patients` are of all classes taken together.
    """

    card: Mapping[str, Any]
    threshold: float
    patients: dict[str, PatientScore]
    how: dict[str, str]
    cost: dict[str, Any]
    classes: dict[str, dict[str, PatientScore]] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """Name and version of the model, and the hash of its weights."""
        return f"{self.card['name']} {self.card['version']} ({self.card['weights_sha256'][:12]})"

    @property
    def dice(self) -> dict[str, float]:
        """Dice of each patient, pooled over all of the patient's voxels."""
        return {patient: score.dice for patient, score in self.patients.items()}

    def summary(self) -> dict[str, float]:
        """Dice over patients; see `summarise`."""
        return summarise(self.dice.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        rows = _rows(self.patients)
        by_class = {name: _rows(scores) for name, scores in self.classes.items()}
        several = {
            "mean_class_dice": summarise(self.class_dice().values()),
            "classes": {
                name: {"patients": each, **_without_attention(summarise_patients(each))}
                for name, each in by_class.items()
            },
        }
        return {
            "model": self.model,
            "weights_sha256": self.card["weights_sha256"],
            "threshold": self.threshold,
            "recipe": self.card.get("training", {}).get("recipe"),
            "how": self.how,
            "patients": rows,
            **summarise_patients(rows),
            **(several if self.classes else {}),
            "cost": self.cost,
        }

    def class_dice(self) -> dict[str, float]:
        """Dice of each patient, the mean over the classes that there are."""
        found: dict[str, list[float]] = {}
        for scores in self.classes.values():
            for patient, score in scores.items():
                found.setdefault(patient, []).append(score.dice)
        return {patient: statistics.fmean(found[patient]) for patient in sorted(found)}


def _rows(scores: Mapping[str, PatientScore]) -> dict[str, dict[str, Any]]:
    return {patient: score.to_dict() for patient, score in scores.items()}


def _without_attention(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key != "attention"}


@dataclass(frozen=True)
class _Case:
    """A CT with its reference, read when its turn comes.

    The reference has the values of the model's classes; of a single class, any but 0.
    """

    patient: str
    load: Callable[[], tuple[CTVolume, npt.NDArray[np.uint8]]]


def evaluate(
    dataset: Path,
    model: str | Path | LoadedModel = "default",
    *,
    labels: Mapping[str, Sequence[str]] | None = None,
    layout: str | None = None,
    every_patient: bool = False,
    threshold: float | None = None,
    postprocess: bool = True,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score a model on a data set the way it is used: through `segment`.

    Single slices are scored one by one, without post-processing.

    Parameters
    ----------
    dataset : Path
        Folder in any layout that `open_dataset` knows.
    model : str, Path or LoadedModel
        The model.
    labels : Mapping of str to sequence of str, optional
        What of the data set each of the model's classes is made of, where they are called
        otherwise; see `open_dataset`.
    layout : str, optional
        Name of the data set's layout, where looking does not tell.
    every_patient : bool
        Score the patients the model was trained on too; by default they are left out,
        because their figures say nothing about new patients.
    threshold : float, optional
        Another threshold than the model's.
    postprocess : bool
        Of whole CTs: smooth along z and drop small pieces, as is done by default.
    on_case : callable
        Called with slices or CTs done and in all.

    Raises
    ------
    PancreasSegError
        If data or model cannot be read, or no patient is left.
    """
    loaded = model if isinstance(model, LoadedModel) else LoadedModel(model)
    data = open_dataset(dataset, labels or _asked(loaded.classes), layout=layout)
    cases = _cases(data, loaded.classes)
    if data.layout != SLICES:
        how = {"data": f"CTs of {data.root.name} ({data.layout})", **_OF_VOLUMES}
        return _evaluate(cases, loaded, how, every_patient, threshold, postprocess, on_case)
    how = {
        "data": f"slices of {data.root.name}, each a CT of its own",
        "surfaces": "outlines in the plane, slice by slice, pooled over a patient's slices; where "
        "a slice shows the reference or the mask but not both, the distance is its diagonal",
        "spacing": _spacing_of(data),
    }
    return _evaluate(cases, loaded, how, every_patient, threshold, False, on_case)


_OF_VOLUMES = {
    "surfaces": "in 3-D; in the plane and pooled for CTs of a single slice",
    "spacing": "as the files say",
}


def _spacing_of(data: DataSet) -> str:
    """What is known of the pixel size of single slices."""
    known = {case.spacing_known for case in data.cases if isinstance(case, SliceRecord)}
    if known == {True}:
        return "each patient's own"
    return f"{NOMINAL_SPACING_MM} mm where none is stored, so that distances are approximate"


def _asked(classes: Classes) -> dict[str, list[str]] | None:
    """The model's classes as a data set is asked for them; None for the pancreas alone."""
    return None if len(classes) == 1 else {name: [name] for name in classes.names}


def _cases(data: DataSet, classes: Classes) -> list[_Case]:
    """Cases of a data set, with the values that the model gives its classes."""
    if sorted(data.labels) != sorted(classes.names) and len(classes) > 1:
        raise PancreasSegError(
            f"The model knows {', '.join(classes.names)}, but the classes asked for are "
            f"{', '.join(data.labels)}; name them alike."
        )
    table = np.zeros(256, np.uint8)
    for name, value in data.labels.items():
        same = name in classes.names
        table[value] = classes.values[classes.names.index(name)] if same else 1

    def load(case: LabelledCase) -> tuple[CTVolume, npt.NDArray[np.uint8]]:
        volume, labels = case.load()
        if case.slices is not None and len(case.slices) < len(labels):
            raise PancreasSegError(
                f"Case {case.name} is labelled in some slices only, so that it cannot be scored."
            )
        return volume, table[labels]

    return [_Case(case.patient, lambda case=case: load(case)) for case in data.cases]  # type: ignore[misc]


def evaluate_volumes(
    cts: Path,
    references: Path,
    model: str | Path | LoadedModel = "default",
    *,
    every_patient: bool = False,
    threshold: float | None = None,
    postprocess: bool = True,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score a model on CTs with reference masks, through `segment`.

    Parameters
    ----------
    cts, references : Path
        Two folders; see `match_references`.
    model, every_patient, threshold, on_case
        See `evaluate`; `on_case` is called with CTs.
    postprocess : bool
        Smooth along z and drop small pieces, as is done by default.

    Raises
    ------
    PancreasSegError
        If a file or the model cannot be read, a reference has no CT, two of a pair do not lie
        on the same grid, or no patient is left.
    """
    pairs = match_references(Path(cts), Path(references))
    cases = [_Case(_patient(mask), lambda ct=ct, m=mask: _load(ct, m)) for mask, ct in pairs]  # type: ignore[misc]
    how = {
        "data": f"CTs of {Path(cts).name}, with references of {Path(references).name}",
        **_OF_VOLUMES,
    }
    return _evaluate(cases, model, how, every_patient, threshold, postprocess, on_case)


def _patient(reference: Path) -> str:
    """Slices of one patient of the NIH set share ``PANCREAS_NNNN``; else a file is a patient."""
    found = re.match(r"PANCREAS_\d+", reference.name)
    return found[0] if found else stem(reference)


def _load(ct: Path, reference: Path) -> tuple[CTVolume, npt.NDArray[np.uint8]]:
    volume = load_ct(ct)
    mask, on = load_mask(reference)
    return volume, bring_onto(volume, mask, on.grid, reference.name)


def patients_seen(cards: Iterable[Mapping[str, Any]]) -> set[str]:
    """Patients from whom any of these models has learnt, as their cards say."""
    return {p for card in cards for p in card.get("training", {}).get("patients", ())}


def was_seen(patient: str, seen: Set[str]) -> bool:
    """Whether a patient is among those, with or without the prefix of the NIH set's files."""
    return not seen.isdisjoint({patient, patient.removeprefix("PANCREAS_")})


def _evaluate(
    cases: Sequence[_Case],
    model: str | Path | LoadedModel,
    how: dict[str, str],
    every_patient: bool,
    threshold: float | None,
    postprocess: bool,
    report: Callable[[int, int], None],
) -> Evaluation:
    loaded = model if isinstance(model, LoadedModel) else LoadedModel(model)
    both = [loaded.card, *([] if loaded.localiser is None else [loaded.localiser.card])]
    known = patients_seen(both)
    if not every_patient:
        cases = [c for c in cases if not was_seen(c.patient, known)]
    if not cases:
        raise PancreasSegError(
            "The model was trained on every patient of this data; a score on them says nothing "
            "about others (--every-patient gives it all the same)."
        )
    used = float(loaded.card["threshold"]) if threshold is None else threshold
    tallies: dict[str, PatientTally] = {}
    several = dict(zip(loaded.classes.names, loaded.classes.values, strict=True))
    by_class: dict[str, dict[str, PatientTally]] = {
        name: {} for name in (several if len(several) > 1 else ())
    }
    seconds = []
    for done, case in enumerate(cases, start=1):
        volume, mask = case.load()
        found = segment(volume, loaded, threshold=used, postprocess=postprocess)
        tallies.setdefault(case.patient, PatientTally()).add(found, volume, mask)
        for name, tally in by_class.items():
            value = several[name]
            one = replace(found, mask=(found.mask == value).astype(np.uint8), attention=())
            tally.setdefault(case.patient, PatientTally()).add(one, volume, mask == value)
        seconds.append(found.seconds["network"] / len(mask))
        report(done, len(cases))
    trained_on = sorted(p for p in tallies if was_seen(p, known))
    how = {
        "metric": "all voxels of a patient pooled, on the CT's own grid",
        **how,
        "surface_dice_tolerance": f"{TOLERANCE_MM:g} mm",
        "interval": "95 %, percentile bootstrap over patients, 10,000 resamples",
        "postprocessing": "as by default" if postprocess else "none",
        "seen_in_training": ", ".join(trained_on) or "none of these patients",
    }
    scores = {patient: tallies[patient].score() for patient in sorted(tallies)}
    classes = {
        name: {p: score for p in sorted(tally) if (score := tally[p].score()).slices}
        for name, tally in by_class.items()
    }
    return Evaluation(loaded.card, used, scores, how, _cost(loaded, seconds), classes)


def _cost(loaded: LoadedModel, seconds: Sequence[float]) -> dict[str, Any]:
    network = loaded.predictor.network
    return {
        "parameters": int(network.count_params()),
        "weights_mb": round(len(loaded.bundle.weights) / 1e6, 2),
        "gflop_per_slice": round(gflop_per_slice(network), 3),
        "seconds_per_slice": round(statistics.median(seconds), 4),
        "device": loaded.device.name,
    }
