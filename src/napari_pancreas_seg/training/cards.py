"""A model's card: what a training writes of itself, and how good it is on patients held back."""

from __future__ import annotations

import json
import platform
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from napari_pancreas_seg._version import __version__
from napari_pancreas_seg.errors import PancreasSegError, few
from napari_pancreas_seg.model.bundle import SHARED, Bundle
from napari_pancreas_seg.model.card import check_card
from napari_pancreas_seg.training.data.layouts.opening import DataSet
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.judge import calibration
from napari_pancreas_seg.training.judge.calibration import HeldBack, PredictedSlice
from napari_pancreas_seg.training.judge.scores import EMPTY_DICE, summarise

SOME_SLICES = "some slices of each CT"
_OF_ANOTHER = (
    "figures of a model of the same recipe that held these patients back; this one was trained "
    "on them too, so that nothing is left to measure it on"
)


def first_card(
    recipe: dict[str, Any], settings: TrainSettings, data: DataSet, patients: list[str]
) -> dict[str, Any]:
    """The card as it is before training."""
    return {
        "version": "1",
        "licence": "not stated",
        "architecture": settings.resolved_architecture().to_dict(),
        "frame": settings.frame.to_dict(),
        "windows": [list(w) for w in settings.windows],
        "labels": dict(data.labels),
        "threshold": 0.5,
        "temperature": 1.0,
        "training": {
            "patients": patients,
            "layout": data.layout,
            "recipe": recipe,
            "machine": f"{platform.machine()}, {keras.backend.backend()}",
            "program": f"napari-pancreas-seg {__version__}",
        },
        "weights_sha256": "",
    }


def check_about(card: dict[str, Any], about: dict[str, Any] | None, path: Path) -> None:
    """Check the further fields of a card before hours of training."""
    written = {*card, "validation", "confidence", "members"} - {"name", "version", "licence"}
    if wrong := sorted(written & {*(about or ())}):
        raise PancreasSegError(
            f"The model's card cannot take {', '.join(wrong)} from the fields given for it: the "
            "program itself says that. Leave it out."
        )
    try:
        json.dumps(about, allow_nan=False)
        check_card({**card, **(about or {})}, path)
    except (TypeError, ValueError, PancreasSegError) as error:
        raise PancreasSegError(
            f"The model's card would not be valid with the fields given for it: {error}"
        ) from error


def model_entry(model: Bundle) -> dict[str, Any]:
    """Name, version and hash of another model, for a recipe."""
    return {key: model.card[key] for key in ("name", "version", "weights_sha256")}


def what_is_scored(held: HeldBack, settings: TrainSettings) -> str:
    """Description of the validation figures, for a card."""
    slices = "all labelled slices" if held.complete else SOME_SLICES
    chosen = "threshold and temperature"
    if settings.patience is not None:
        chosen = "threshold, temperature and the epoch"
    return (
        f"Dice per patient on the native grid, {slices}, slice by slice, no post-processing; "
        f"{chosen} were chosen on the same patients"
    )


def mean_by_class(
    scores: calibration.ThresholdScores, threshold: float, labels: Mapping[str, int]
) -> dict[str, float]:
    """Mean Dice of each class over the patients that have it or were given it."""
    index = scores.thresholds.index(threshold)
    rows = np.array([rows[index] for rows in scores.dice_by_class().values()])
    return {
        name: round(float(dice[np.isfinite(dice)].mean()), 4)
        for name, dice in zip(labels, rows.T, strict=True)
        if np.isfinite(dice).any()
    }


def judged(
    predicted: Sequence[PredictedSlice], labels: Mapping[str, int], what: str, seen: Sequence[str]
) -> dict[str, Any]:
    """Calibration and validation for the card."""
    found = calibration.calibrate(predicted)
    threshold = found["threshold"]
    scores = calibration.score_predictions(predicted, found["temperature"], (threshold,))
    dice = {patient: float(values[0]) for patient, values in scores.dice().items()}
    patients = {patient: round(value, 4) for patient, value in dice.items()}
    validation: dict[str, Any] = {"what": what, "patients": patients, **summarise(dice.values())}
    if len(labels) > 1:
        validation["mean_by_class"] = mean_by_class(scores, threshold, labels)
    shown = {one.patient for one in predicted if np.isin(one.mask, one.values).any()}
    if seen:
        validation["seen_before"] = [*seen]
    if empty := sorted({*dice} - shown):
        validation["empty_references"] = empty
    validation["what"] += cautions(validation)
    return {**found, "validation": validation}


def out_of_fold(predicted: Sequence[PredictedSlice]) -> dict[str, Any]:
    """Dice of every patient at every threshold."""
    dice = calibration.score_predictions(predicted).dice()
    return {
        "thresholds": list(calibration.THRESHOLDS),
        "dice": {patient: np.round(d, 5).tolist() for patient, d in dice.items()},
    }


def calibration_from(
    card: Mapping[str, Any], other: Mapping[str, Any], patients: Collection[str]
) -> dict[str, Any]:
    """What a card gets from that of a twin: its validation only if that is of these patients."""
    keys = ("threshold", "temperature", "confidence", "validation")
    wrong = [f"no {key}" for key in keys if key not in card]
    wrong += [f"another {k}" for k in SHARED if card[k] != json.loads(json.dumps(other[k]))]
    if wrong:
        raise PancreasSegError(
            f"The model {card['name']} cannot calibrate this one: its card has "
            f"{' and '.join(wrong)}; give one of the same recipe that held patients back."
        )
    taken, validation = {key: card[key] for key in keys[:-1]}, card["validation"]
    if not {*validation.get("patients", ())} <= {*patients}:
        return taken
    return {**taken, "validation": {**validation, "what": _OF_ANOTHER + cautions(validation)}}


def cautions(*validations: Mapping[str, Any]) -> str:
    """What to mind of the figures of patients held back, for the end of their description."""
    seen, empty = (
        [patient for one in validations for patient in one.get(key, ())]
        for key in ("seen_before", "empty_references")
    )
    said = [note_seen_before(len(seen))] if seen else []
    said += [f"nothing is outlined in {few(empty, 6)}: {EMPTY_DICE}"] if empty else []
    return "".join(f"; {text}" for text in said)


def note_seen_before(n: int) -> str:
    """Warning for n patients held back that another model had been trained on."""
    return (
        f"another model, which this one began with or learnt from, had learnt from {n} of the "
        "patients held back, so that their figures say little of new patients"
    )
