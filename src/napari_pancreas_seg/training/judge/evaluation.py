"""How good a model is, and another program beside it: scores per patient on the CT's own grid."""

from __future__ import annotations

import logging
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from napari_pancreas_seg.arrays import Array, Labels
from napari_pancreas_seg.cohort.given import OF_THE_MASK, GivenMasks
from napari_pancreas_seg.errors import PancreasSegError, few, why_failed
from napari_pancreas_seg.inference.classes import Classes
from napari_pancreas_seg.inference.result import Segmentation
from napari_pancreas_seg.inference.segment import LoadedModel, segment
from napari_pancreas_seg.io import load_mask, stem
from napari_pancreas_seg.io.alignment import bring_onto
from napari_pancreas_seg.model.attention_unet import gflop_per_slice
from napari_pancreas_seg.training.data.layouts import opening, pairs
from napari_pancreas_seg.training.data.layouts.cases import LabelledCase, MaskFile, VolumeCase
from napari_pancreas_seg.training.data.layouts.corrected_cases import CASE_NAME, case_name
from napari_pancreas_seg.training.data.layouts.listing import read_picture
from napari_pancreas_seg.training.data.layouts.opening import DataSet
from napari_pancreas_seg.training.data.layouts.slices import LAYOUT as SLICE_LAYOUT
from napari_pancreas_seg.training.data.layouts.slices import NOMINAL_SPACING_MM, SliceRecord
from napari_pancreas_seg.training.judge.scores import (
    EMPTY_DICE,
    TOLERANCE_MM,
    PatientCounts,
    paired_difference,
    rounded,
    summarise,
    summarise_patients,
)
from napari_pancreas_seg.training.judge.seen import patients_seen, those_seen
from napari_pancreas_seg.volume import CTVolume

logger = logging.getLogger(__name__)

SLICES = SLICE_LAYOUT.name
PAIRED = ("dice", "hd95_mm", f"surface_dice_{TOLERANCE_MM:g}mm", "mean_distance_mm")
"""Figures of which the difference to another program's masks is given."""

_NO_MASKS = "No mask in {} belongs to a patient that is scored; name them like the cases."
Counts = dict[str, PatientCounts]
Figures = dict[str, dict[str, Any]]


def mask_of_others(others: GivenMasks, case: str, volume: CTVolume) -> Labels | None:
    """Another program's mask (Z, Y, X) of a case, 1 in the pancreas; None without one."""
    path = _find(others, case)
    if path is None:
        return None
    if path.suffix.lower() == ".png":
        labels = read_picture(path)[None]
        if labels.shape != volume.grid.shape:
            raise PancreasSegError(
                f"{path.name} has {labels.shape[1:]} pixels, its CT {volume.grid.shape}; a "
                "picture can be the mask of a single slice of its size only."
            )
        if others.value is not None:  # which most slices lack
            return np.isin(labels, others.value).astype(np.uint8)
    else:
        labels, on = load_mask(path)
        labels = bring_onto(volume, labels, on, path.name)
    return others.pancreas(labels, path.name)


def _find(others: GivenMasks, case: str) -> Path | None:
    names = (f"{case}{end}{suffix}" for end in OF_THE_MASK for suffix in (".png", ".PNG"))
    pictures = (others.folder / name for name in names)
    return next((path for path in pictures if path.is_file()), None) or others.find(case)


class _Case(NamedTuple):
    """A case to score: `ct` is its CT's name, by which masks of others are found.

    `slices` are those that are labelled; None for all.
    """

    name: str
    patient: str
    ct: str
    load: Callable[[], tuple[CTVolume, Labels]]
    slices: Sequence[int] | None = None


def evaluate(
    folder: Path,
    model: str | Path | LoadedModel = "default",
    *,
    references: Path | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
    layout: str | None = None,
    every_patient: bool = False,
    threshold: float | None = None,
    postprocess: bool = True,
    also: GivenMasks | None = None,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Score a model on CTs the way it is used, through `segment`; return figures as plain data.

    `folder` is a data set, or holds the CTs of the masks in `references`, see `match_references`.
    Single slices are scored one by one, without post-processing. `labels` say what of the data set
    each of the model's classes is made of, see `open_for_model`. Patients that the model was
    trained on are left out unless `every_patient` is given: their figures say nothing about new
    ones. ``how`` says in words what was done and who was left out, ``not_scored`` why a case
    failed, ``not_compared`` why a mask of `also` did.
    """
    loaded = model if isinstance(model, LoadedModel) else LoadedModel(model)
    if also is not None and not loaded.classes.only_gland:
        raise PancreasSegError(
            "--also compares the pancreas alone, and this model finds other organs: leave it out."
        )
    if references is not None:
        cases, how = _pairs(folder, references, loaded.classes)
    else:
        data = opening.open_for_model(folder, loaded.card, labels, layout=layout)
        cases, how = _cases(data, loaded.classes), _how(data)
        how |= {"notes": " ".join(data.notes)} if data.notes else {}
        how |= _made_of(data.classes)
        postprocess = postprocess and data.layout != SLICES
    seen = those_seen(cases, [loaded.card])
    if not every_patient:
        cases = [case for case in cases if case.patient not in seen]
    if not cases:
        raise _all_seen(seen)
    used = float(loaded.card["threshold"]) if threshold is None else threshold
    if also is not None and not any(_find(also, case.ct) for case in cases):
        raise PancreasSegError(_NO_MASKS.format(also.folder))
    scores = _EvaluationScores(loaded.classes, also, patients_seen([loaded.card]), every_patient)
    for done, case in enumerate(cases, start=1):
        scores.score(case, lambda ct: segment(ct, loaded, threshold=used, postprocess=postprocess))
        on_case(done, len(cases))
    seen = sorted({*seen, *scores.corrected})
    if seen and not every_patient:
        scores.leave_out(seen)
        cases = [case for case in cases if case.patient not in seen]
        how["left_out"] = f"{', '.join(seen)}: the model's card names them as learnt from"
    if not scores.model and not scores.failed:
        raise _all_seen(seen)
    if not scores.model:
        raise PancreasSegError(f"No case could be scored. {next(iter(scores.failed.values()))}")
    trained_on = [patient for patient in seen if patient in scores.model]
    how |= {
        "postprocessing": "as by default" if postprocess else "none",
        "seen_in_training": ", ".join(trained_on) or "none of these patients",
        **scores.how(),
    }
    if scores.in_part:
        how["labelled_in_part"] = (
            f"{few(sorted(scores.in_part), 6)}; of these CTs only the labelled slices count, and "
            "distances are between outlines in the plane"
        )
    if empty := sorted(p for p, counts in scores.model.items() if not counts.reference):
        how["empty_references"] = f"{few(empty, 6)}; {EMPTY_DICE}"
    card = loaded.card
    return {
        "model": f"{card['name']} {card['version']} ({card['weights_sha256'][:12]})",
        "weights_sha256": card["weights_sha256"],
        "threshold": used,
        "recipe": card.get("training", {}).get("recipe"),
        "cases": len(cases),
        "how": how,
        **scores.figures(),
        "cost": _cost(loaded, scores.seconds),
    }


def _all_seen(seen: Sequence[str]) -> PancreasSegError:
    return PancreasSegError(
        f"The model was trained on every patient of this data ({few(seen, 6)}); a score on "
        "them says nothing about others (--every-patient scores them anyway)."
    )


_OF_ALL = {
    "metric": "all voxels of a patient pooled, on the CT's own grid",
    "surface_dice_tolerance": f"{TOLERANCE_MM:g} mm",
    "interval": "95 %, percentile bootstrap over patients, 10,000 resamples",
}
_OF_VOLUMES = {
    **_OF_ALL,
    "surfaces": "in 3-D; in the plane and pooled for CTs of a single slice; where the mask or the "
    "reference shows nothing but not both, every distance is the CT's diagonal",
    "spacing": "as the files say",
}


def _how(data: DataSet) -> dict[str, str]:
    """What is measured on a data set, and what is known of the size of its pixels."""
    if data.layout != SLICES:
        return {"data": f"CTs of {data.root.name} ({data.layout})", **_OF_VOLUMES}
    known = {case.spacing_known for case in data.cases if isinstance(case, SliceRecord)}
    nominal = f"{NOMINAL_SPACING_MM} mm where none is stored, so that distances are approximate"
    return {
        **_OF_ALL,
        "data": f"slices of {data.root.name}, each a CT of its own",
        "surfaces": "outlines in the plane, slice by slice, pooled over a patient's slices; where "
        "a slice shows the reference or the mask but not both, the distance is its diagonal",
        "spacing": "each patient's own" if known == {True} else nominal,
    }


def _made_of(classes: Mapping[str, Sequence[str]]) -> dict[str, str]:
    made = [f"{name} is {' + '.join(of)}" for name, of in classes.items() if of[1:]]
    return {"references": "; ".join(made)} if made else {}


def _cases(data: DataSet, classes: Classes) -> list[_Case]:
    """Cases of a data set, with the values that the model gives its classes."""
    table = np.zeros(256, np.uint8)
    for name, value in data.labels.items():
        table[value] = classes.named[name]

    def load(case: LabelledCase) -> tuple[CTVolume, Labels]:
        volume, labels = case.load()
        return volume, table[labels]

    return [
        _Case(case.name, case.patient, case.name, partial(load, case), case.slices)
        for case in data.cases
    ]


def _pairs(folder: Path, references: Path, known: Classes) -> tuple[list[_Case], dict[str, str]]:
    """CTs with references in files of their own, and what is measured on them."""
    how = {"data": f"CTs of {folder.name}, with references of {references.name}", **_OF_VOLUMES}
    meant, values = pairs.meanings_in(references), known.named
    if not isinstance(meant, str):
        asked = opening.classes_of_model(known.names)
        made = opening.choose_classes([*meant.values()], asked)
        values = {part: known.named[name] for name, parts in made.items() for part in parts}
        how |= _made_of(made)
    elif len(known) > 1:
        meant = {value: name for name, value in values.items()}
        how["references"] = f"values taken as the model's: {values}"
    else:
        meant = known.names[0]
    found = pairs.match_references(folder, references)
    n = Counter(pairs.case_of(name) for _, name, _ in found)
    both = folder.resolve().parent  # as a data set with two folders has it
    beside = both if both == references.resolve().parent else folder
    place = folder if (folder / opening.PATIENTS).is_file() else beside
    try:
        patients, more = opening.read_patients(place, n.keys())
    except PancreasSegError:
        if place == folder:
            raise
        patients, more = {}, ()  # a table of that name above may be about something else
    notes = more + pairs.notes_of_pairs(
        (mask, of) for mask, of, ct in found if isinstance(ct, Path)
    )
    how |= {"notes": " ".join(notes)} if notes else {}
    cases = []
    for mask, of, ct in found:
        name = pairs.case_of(of)  # as trainings name it, so that a card tells who was seen
        if n[name] > 1:
            ct = PancreasSegError(f"{mask.name} is one of several references of {name}; keep one.")
            name = stem(mask)
        nih = re.match(r"PANCREAS_\d+", name)  # which its slices share; else a CT is a patient
        load = partial(_load, ct, MaskFile(mask, meant), values)
        patient = patients.get(pairs.case_of(of), nih[0] if nih else name)
        cases.append(_Case(name, patient, of, load))
    return cases, how


def _load(
    ct: Path | PancreasSegError, mask: MaskFile, values: Mapping[str, int]
) -> tuple[CTVolume, Labels]:
    if isinstance(ct, PancreasSegError):
        raise ct
    return VolumeCase(stem(mask.path), "", ct, (mask,), values).load()


@dataclass
class _EvaluationScores:
    """What was counted of each patient; `lacking` are those without a mask of another program.

    `seen` are the names on the model's card, `corrected` patients whose CT is a correction there.
    """

    known: Classes
    also: GivenMasks | None
    seen: Set[str] = frozenset()
    every_patient: bool = False
    corrected: set[str] = field(default_factory=set)
    in_part: set[str] = field(default_factory=set)
    model: Counts = field(default_factory=dict)
    classes: dict[str, Counts] = field(default_factory=dict)
    others: Counts = field(default_factory=dict)
    lacking: set[str] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    not_compared: dict[str, str] = field(default_factory=dict)

    def score(self, case: _Case, find: Callable[[CTVolume], Segmentation]) -> None:
        """Read a case, let the model find what it can in it, and count; or keep why it failed."""
        try:
            volume, mask = case.load()
            if any(p.startswith(CASE_NAME) for p in self.seen) and case_name(volume) in self.seen:
                self.corrected.add(case.patient)
                if not self.every_patient:
                    return
            found = find(volume)
            looks = sum(found.seconds.get(stage, 0.0) for stage in ("network", "second look"))
            self.seconds.append(looks / len(mask))
            self._count(self.model, case, found, volume, mask)
            if len(self.known) > 1:
                for name, value in zip(self.known.names, self.known.values, strict=True):
                    one = replace(found, mask=(found.mask == value).astype(np.uint8), attention=())
                    counts = self.classes.setdefault(name, {})
                    self._count(counts, case, one, volume, mask == value)
        except Exception as error:  # of one case: the scores of the others stay
            logger.debug("a case failed", exc_info=error)
            self.failed[case.name] = why_failed(case.name, error)
            return
        if self.also is None:
            return
        try:
            other = mask_of_others(self.also, case.ct, volume)
            if other is not None:
                one = replace(found, mask=other, attention=())
                self._count(self.others, case, one, volume, mask)
                return
        except Exception as error:
            logger.debug("a mask of another program failed", exc_info=error)
            name = f"{case.name} ({self.also.folder.name})"
            self.not_compared[name] = why_failed(name, error)
        self.lacking.add(case.patient)

    def _count(
        self, counts: Counts, case: _Case, found: Segmentation, volume: CTVolume, mask: Array
    ) -> None:
        now = counts.get(case.patient, PatientCounts())
        labelled = case.slices if case.slices and len(case.slices) < len(mask) else None
        now.add(found, volume, mask, labelled)
        if labelled is not None:
            self.in_part.add(case.name)
        counts[case.patient] = now

    def leave_out(self, patients: Iterable[str]) -> None:
        """Forget what was counted of patients."""
        for counts in (self.model, self.others, *self.classes.values()):
            for patient in counts.keys() & {*patients}:
                del counts[patient]

    def how(self) -> dict[str, str]:
        """Description of the comparison with another program's masks, if there is one."""
        if self.also is None:
            return {}
        if not self.others.keys() - self.lacking:
            return {"also": f"no mask of {self.also.folder.name} could be compared for any patient"}
        text = f"masks of {self.also.folder.name}, on the same grids and with the same metrics"
        if self.lacking:
            text += f"; no mask, or not of every CT, of {', '.join(sorted(self.lacking))}"
        if self.also.value is not None and not any(c.predicted for c in self.others.values()):
            text += "; none of them shows what --label asks for"
        return {"also": text}

    def figures(self) -> dict[str, Any]:
        """Figures and their summaries: of all classes together, of each, of the other masks."""
        rows = rounded(_figures(self.model))
        several: dict[str, Any] = {}
        if self.classes:
            # A class counts in the patients that show it or in whom it was found.
            exact = {
                name: {p: row for p, row in _figures(counts).items() if row["slices"]}
                for name, counts in self.classes.items()
            }
            several["mean_class_dice"] = summarise(_class_dice(exact).values())
            several["classes"] = {name: _summarised(rounded(each)) for name, each in exact.items()}
        others = rounded(_figures({p: c for p, c in self.others.items() if p not in self.lacking}))
        compared = {"also": self._compared(rows, others)} if others else {}
        found = _summarised(rows, attention=True)
        bad = {"not_scored": self.failed, "not_compared": self.not_compared}
        return {**found, **several, **bad, **compared}

    def _compared(self, rows: Figures, others: Figures) -> dict[str, Any]:
        """The other program's figures, and the paired differences: ours minus the other's."""
        assert self.also is not None
        return {
            "masks": self.also.folder.name,
            **_summarised(others),
            "ours_minus_theirs": {
                name: paired_difference(
                    *({p: row[name] for p, row in of.items()} for of in (rows, others))
                )
                for name in PAIRED
            },
        }


def _figures(counts: Counts) -> Figures:
    return {patient: counts[patient].figures() for patient in sorted(counts)}


def _summarised(rows: Figures, attention: bool = False) -> dict[str, Any]:
    """The figures of each patient, and their summary."""
    summary = summarise_patients(rows)
    if not attention:
        del summary["attention"]
    return {"patients": rows, **summary}


def _class_dice(classes: Mapping[str, Figures]) -> dict[str, float]:
    """Dice of each patient, the mean over the classes that there are."""
    found: dict[str, list[float]] = {}
    for rows in classes.values():
        for patient, row in rows.items():
            found.setdefault(patient, []).append(row["dice"])
    return {patient: statistics.fmean(found[patient]) for patient in sorted(found)}


def _cost(loaded: LoadedModel, seconds: Sequence[float]) -> dict[str, Any]:
    network = loaded.predictor.network
    return {
        "parameters": int(network.count_params()),
        "weights_mb": round(len(loaded.bundle.weights) / 1e6, 2),
        "gflop_per_slice": round(gflop_per_slice(network), 3),
        "seconds_per_slice": round(statistics.median(seconds), 4),
        "device": loaded.device.name,
    }
