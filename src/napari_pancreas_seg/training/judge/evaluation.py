"""How good a model is: scores per patient on the CT's own grid."""

from __future__ import annotations

import logging
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError, why_failed
from napari_pancreas_seg.inference.classes import Classes
from napari_pancreas_seg.inference.segment import LoadedModel, segment
from napari_pancreas_seg.io import load_ct, load_mask, stem
from napari_pancreas_seg.io.alignment import bring_onto
from napari_pancreas_seg.model.cost import gflop_per_slice
from napari_pancreas_seg.training.data.layouts import DataSet, LabelledCase, open_dataset
from napari_pancreas_seg.training.data.layouts.pairs import match_references
from napari_pancreas_seg.training.data.layouts.slices import LAYOUT as SLICE_LAYOUT
from napari_pancreas_seg.training.data.layouts.slices import NOMINAL_SPACING_MM, SliceRecord
from napari_pancreas_seg.training.judge.others import OtherMasks
from napari_pancreas_seg.training.judge.scores import (
    TOLERANCE_MM,
    PatientCounts,
    PatientScore,
    paired_difference,
    summarise,
    summarise_patients,
)
from napari_pancreas_seg.volume import CTVolume

logger = logging.getLogger(__name__)

SLICES = SLICE_LAYOUT.name
THRESHOLDS = tuple(float(t) for t in np.round(np.arange(0.2, 0.85, 0.05), 2))
PAIRED = ("dice", "hd95_mm", f"surface_dice_{TOLERANCE_MM:g}mm", "mean_distance_mm")
"""Figures of which the difference to another program's masks is given."""


@dataclass
class ThresholdScores:
    """Overlap per patient for several thresholds, pooled over each patient's slices.

    A pixel is foreground where the probabilities of all classes together exceed the threshold,
    and then of the most probable class. `both` and `total` hold, for each patient, the voxels
    (thresholds, C) in both masks, and in either counted twice.
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


@dataclass(frozen=True)
class Evaluation:
    """Figures per patient of a model on a data set.

    `how` says in words what was done. `patients` are of all classes taken together; `classes` hold,
    of a model of several, each class in the patients that show it or in whom it was found. `also`
    are the figures of another program's masks; `not_scored` says why a case failed.
    """

    card: Mapping[str, Any]
    threshold: float
    patients: dict[str, PatientScore]
    how: dict[str, str]
    cost: dict[str, Any]
    classes: dict[str, dict[str, PatientScore]] = field(default_factory=dict)
    not_scored: dict[str, str] = field(default_factory=dict)
    also: dict[str, PatientScore] = field(default_factory=dict)
    also_name: str = ""

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
            "not_scored": self.not_scored,
            **({"also": self._compared(rows)} if self.also else {}),
            "cost": self.cost,
        }

    def _compared(self, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The other program's figures, and the paired differences: ours minus the other's."""
        others = _rows(self.also)
        figures = [name for name in PAIRED if all(name in row for row in others.values())]
        return {
            "masks": self.also_name,
            "patients": others,
            **_without_attention(summarise_patients(others)),
            "ours_minus_theirs": {
                name: paired_difference(
                    *({p: row[name] for p, row in of.items()} for of in (rows, others))
                )
                for name in figures
            },
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

    name: str
    patient: str
    load: Callable[[], tuple[CTVolume, npt.NDArray[np.uint8]]]
    ct: str


def evaluate(
    dataset: Path,
    model: str | Path | LoadedModel = "default",
    *,
    labels: Mapping[str, Sequence[str]] | None = None,
    layout: str | None = None,
    every_patient: bool = False,
    threshold: float | None = None,
    postprocess: bool = True,
    also: OtherMasks | None = None,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score a model on a data set the way it is used: through `segment`.

    Single slices are scored one by one, without post-processing. `labels` say what of the data set
    each of the model's classes is made of, see `open_dataset`. Patients that the model was trained
    on are left out unless `every_patient` is given: their figures say nothing about new ones.
    """
    loaded = model if isinstance(model, LoadedModel) else LoadedModel(model)
    data = open_dataset(dataset, labels or _asked(loaded.classes), layout=layout)
    cases = _cases(data, loaded.classes)
    if data.layout != SLICES:
        how = {"data": f"CTs of {data.root.name} ({data.layout})", **_OF_VOLUMES}
        return _evaluate(cases, loaded, how, every_patient, threshold, postprocess, also, on_case)
    how = {
        "data": f"slices of {data.root.name}, each a CT of its own",
        "surfaces": "outlines in the plane, slice by slice, pooled over a patient's slices; where "
        "a slice shows the reference or the mask but not both, the distance is its diagonal",
        "spacing": _spacing_of(data),
    }
    return _evaluate(cases, loaded, how, every_patient, threshold, False, also, on_case)


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

    return [
        _Case(case.name, case.patient, lambda case=case: load(case), case.name)  # type: ignore[misc]
        for case in data.cases
    ]


def evaluate_volumes(
    cts: Path,
    references: Path,
    model: str | Path | LoadedModel = "default",
    *,
    every_patient: bool = False,
    threshold: float | None = None,
    postprocess: bool = True,
    also: OtherMasks | None = None,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score a model on CTs with reference masks in another folder; see `match_references`."""
    pairs = match_references(Path(cts), Path(references))
    cases = [
        _Case(stem(mask), _patient(mask), lambda ct=ct, m=mask: _load(ct, m), _name_of(ct))  # type: ignore[misc]
        for mask, ct in pairs
    ]
    how = {
        "data": f"CTs of {Path(cts).name}, with references of {Path(references).name}",
        **_OF_VOLUMES,
    }
    return _evaluate(cases, model, how, every_patient, threshold, postprocess, also, on_case)


def _patient(reference: Path) -> str:
    """Slices of one patient of the NIH set share ``PANCREAS_NNNN``; else a file is a patient."""
    found = re.match(r"PANCREAS_\d+", reference.name)
    return found[0] if found else stem(reference)


def _name_of(ct: Path | PancreasSegError) -> str:
    return stem(ct) if isinstance(ct, Path) else ""


def _load(ct: Path | PancreasSegError, reference: Path) -> tuple[CTVolume, npt.NDArray[np.uint8]]:
    if isinstance(ct, PancreasSegError):
        raise ct
    volume = load_ct(ct)
    mask, on = load_mask(reference)
    return volume, bring_onto(volume, mask, on, reference.name)


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
    also: OtherMasks | None,
    report: Callable[[int, int], None],
) -> Evaluation:
    loaded = model if isinstance(model, LoadedModel) else LoadedModel(model)
    known = patients_seen([loaded.card])
    if not every_patient:
        cases = [c for c in cases if not was_seen(c.patient, known)]
    if not cases:
        raise PancreasSegError(
            "The model was trained on every patient of this data; a score on them says nothing "
            "about others (--every-patient gives it all the same)."
        )
    used = float(loaded.card["threshold"]) if threshold is None else threshold
    tallies: dict[str, PatientCounts] = {}
    several = dict(zip(loaded.classes.names, loaded.classes.values, strict=True))
    by_class: dict[str, dict[str, PatientCounts]] = {
        name: {} for name in (several if len(several) > 1 else ())
    }
    theirs: dict[str, PatientCounts] = {}
    lacking: list[str] = []
    seconds = []
    failed: dict[str, str] = {}
    for done, case in enumerate(cases, start=1):
        try:
            volume, mask = case.load()
            found = segment(volume, loaded, threshold=used, postprocess=postprocess)
        except Exception as error:  # of one case: the scores of the others stay
            logger.debug("a case failed", exc_info=error)
            failed[case.name] = why_failed(case.name, error)
            report(done, len(cases))
            continue
        tallies.setdefault(case.patient, PatientCounts()).add(found, volume, mask)
        for name, tally in by_class.items():
            value = several[name]
            one = replace(found, mask=(found.mask == value).astype(np.uint8), attention=())
            tally.setdefault(case.patient, PatientCounts()).add(one, volume, mask == value)
        seconds.append(found.seconds["network"] / len(mask))
        if also is not None:
            try:
                other = also.of(case.ct, volume)
            except PancreasSegError as error:
                failed[f"{case.name} ({also.folder.name})"] = str(error)
                other = None
            if other is None:
                lacking.append(case.patient)
            else:
                one = replace(found, mask=other, attention=())
                theirs.setdefault(case.patient, PatientCounts()).add(one, volume, mask)
        report(done, len(cases))
    if not tallies:
        raise PancreasSegError(f"No case could be scored. {next(iter(failed.values()))}")
    trained_on = sorted(p for p in tallies if was_seen(p, known))
    how = {
        "metric": "all voxels of a patient pooled, on the CT's own grid",
        **how,
        "surface_dice_tolerance": f"{TOLERANCE_MM:g} mm",
        "interval": "95 %, percentile bootstrap over patients, 10,000 resamples",
        "postprocessing": "as by default" if postprocess else "none",
        "seen_in_training": ", ".join(trained_on) or "none of these patients",
    }
    if also is not None:
        how |= _also_how(also, theirs, lacking)
    scores = {patient: tallies[patient].score() for patient in sorted(tallies)}
    others = {p: theirs[p].score() for p in sorted(theirs) if p not in lacking}
    classes = {
        name: {p: score for p in sorted(tally) if (score := tally[p].score()).slices}
        for name, tally in by_class.items()
    }
    cost = _cost(loaded, seconds)
    name = also.folder.name if also else ""
    return Evaluation(loaded.card, used, scores, how, cost, classes, failed, others, name)


def _also_how(
    also: OtherMasks, theirs: Mapping[str, PatientCounts], lacking: Sequence[str]
) -> dict[str, str]:
    """Description of the comparison with another program's masks, for `Evaluation.how`."""
    if not theirs.keys() - {*lacking}:
        raise PancreasSegError(
            f"None of the masks in {also.folder} belongs to a patient that is scored; name them "
            "like the cases."
        )
    said = f"masks of {also.folder.name}, on the same grids and with the same metrics"
    if lacking:
        said += f"; no mask, or not of every CT, of {', '.join(sorted({*lacking}))}"
    return {"also": said}


def _cost(loaded: LoadedModel, seconds: Sequence[float]) -> dict[str, Any]:
    network = loaded.predictor.network
    return {
        "parameters": int(network.count_params()),
        "weights_mb": round(len(loaded.bundle.weights) / 1e6, 2),
        "gflop_per_slice": round(gflop_per_slice(network), 3),
        "seconds_per_slice": round(statistics.median(seconds), 4),
        "device": loaded.device.name,
    }
