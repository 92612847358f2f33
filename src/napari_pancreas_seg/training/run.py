"""From a data set to a bundle: split by patient, fit, score, write the card."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

import napari_pancreas_seg
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.predictor import FramePredictor
from napari_pancreas_seg.io.files import write_json
from napari_pancreas_seg.model.bundle import load_bundle, save_bundle
from napari_pancreas_seg.training.calibration import (
    THRESHOLDS,
    PredictedSlice,
    calibrate,
    predict_slices,
    score_predictions,
)
from napari_pancreas_seg.training.datasets import (
    SliceRecord,
    TrainingSlices,
    fold_of_patients,
    load_negatives,
    load_phantoms,
    load_slices,
    read_slice_layout,
)
from napari_pancreas_seg.training.fit import (
    Checkpoint,
    TrainSettings,
    fit,
    settings_to_dict,
)

__all__ = ["OUT_OF_FOLD", "Split", "train"]

OUT_OF_FOLD = "out_of_fold.json"
"""Dice of each patient held back, for several thresholds; before any temperature."""


@dataclass(frozen=True)
class Split:
    """Which patients validate: fold number `fold` of `folds`, shuffled by `seed`.

    Parameters
    ----------
    folds, fold, seed : int
        See `fold_of_patients`.
    """

    folds: int = 5
    fold: int = 0
    seed: int = 0

    def divide(self, records: Sequence[SliceRecord]) -> tuple[list[SliceRecord], list[SliceRecord]]:
        """Slices to train on, and slices of the patients that validate."""
        held = fold_of_patients([r.patient for r in records], self.folds, self.fold, self.seed)
        return (
            [r for r in records if r.patient not in held],
            [r for r in records if r.patient in held],
        )


def train(
    dataset: Path,
    output: Path,
    settings: TrainSettings,
    *,
    split: Split | None = Split(),
    start: str | Path | None = None,
    calibrated_by: str | Path | None = None,
    negatives: Sequence[str] = (),
    phantoms: int = 16,
    about: dict[str, Any] | None = None,
    resume: bool = False,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Train a model and write it as a bundle.

    Parameters
    ----------
    dataset : Path
        Folder in the slice layout.
    output : Path
        Folder for checkpoint, history and, at the end, ``bundle``.
    settings : TrainSettings
        The recipe.
    split : Split or None
        Which patients validate; None trains on all of them.
    start : str or Path, optional
        Name or path of a model whose weights to begin with.
    calibrated_by : str or Path, optional
        A model of the same recipe that held patients back: without a split of its own, this
        one takes threshold, temperature and confidence from it.
    negatives : sequence of str
        CTs that show no pancreas; see `load_negatives`.
    phantoms : int
        Number of synthetic phantoms to mix in; their seeds start at 1, the sample's is 0.
    about : dict, optional
        Further fields of the card: ``name``, ``version``, ``licence``, ``citation`` ….
    resume : bool
        Go on where the folder's checkpoint stands.
    report : callable, optional
        Called with the numbers of slices, then with a line of the history after every epoch.

    Returns
    -------
    Path
        The bundle.

    Raises
    ------
    PancreasSegError
        If the data cannot be read or the folder cannot be used.
    """
    output = Path(output)
    recipe: dict[str, Any] = {
        "split": None if split is None else vars(split),
        "start": None,
        "negatives": [Path(n).name for n in negatives],
    }
    recipe |= {"phantoms": phantoms, **settings_to_dict(settings)}
    if (split is None) != (calibrated_by is not None):
        raise PancreasSegError(
            "A training on every patient has none left to find its threshold on: it needs a "
            "model of the same recipe that held patients back (and no other training does)."
        )
    given = None if start is None else load_bundle(start)
    if given is not None:
        recipe["start"] = {k: given.card[k] for k in ("name", "version", "weights_sha256")}
    calibrated = None if calibrated_by is None else load_bundle(calibrated_by).card
    if calibrated is not None:
        _taken_over(calibrated)  # what is missing is said before hours of training
    records = read_slice_layout(dataset)
    training, validation = (records, []) if split is None else split.divide(records)
    _claim(output, recipe, resume)
    if report is not None:
        report({"training_slices": len(training), "validation_slices": len(validation)})
    parts = [load_slices(training)]
    if negatives:
        parts.append(load_negatives(negatives))
    if phantoms:
        parts.append(load_phantoms(range(1, phantoms + 1)))

    def predictions(network: keras.Model) -> list[PredictedSlice]:
        return predict_slices(FramePredictor(network, settings.windows), settings.frame, validation)

    def score(network: keras.Model) -> dict[str, Any]:
        threshold, dice = score_predictions(predictions(network)).best()
        return {"threshold": threshold, "validation_dice": round(dice, 4)}

    network, history = fit(
        TrainingSlices.join(parts),
        settings,
        output,
        score=score if validation else None,
        report=report,
        resume=resume,
        start=given,
    )
    write_json(output / "history.json", history, overwrite=True)
    card = _card(recipe, settings, history, training)
    card |= _taken_over(calibrated) if calibrated else _judged(predictions(network), output)
    return save_bundle(network, {**card, **(about or {})}, output / "bundle", overwrite=True)


def _judged(predicted: Sequence[PredictedSlice], output: Path) -> dict[str, Any]:
    """Calibration and validation for the card; the Dice of every threshold goes to a file."""
    found = calibrate(predicted)
    scores = score_predictions(predicted, found.temperature, (found.threshold,))
    out_of_fold = {
        "thresholds": list(THRESHOLDS),
        "dice": {
            p: np.round(d, 5).tolist() for p, d in score_predictions(predicted).dice().items()
        },
    }
    write_json(output / OUT_OF_FOLD, out_of_fold, overwrite=True)
    validation = _validation({p: float(d[0]) for p, d in scores.dice().items()})
    return {**found.card_fields(), "validation": validation}


def _taken_over(card: Mapping[str, Any]) -> dict[str, Any]:
    """The same from the card of a twin that held patients back."""
    try:
        taken = {k: card[k] for k in ("threshold", "temperature", "confidence", "validation")}
    except KeyError as error:
        raise PancreasSegError(
            f"The model {card['name']} cannot calibrate another: its card has no {error}."
        ) from error
    return {**taken, "validation": {**taken["validation"], "what": _OF_ANOTHER}}


def _claim(output: Path, recipe: dict[str, Any], resume: bool) -> None:
    """Make the folder, or make sure that it holds the same recipe."""
    known = output / "recipe.json"
    if Checkpoint(output).path.exists() and not resume:
        raise PancreasSegError(
            f"{output} holds a training already: go on with --resume, or choose another folder."
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        before = json.loads(known.read_text(encoding="utf-8")) if known.exists() else None
    except (OSError, ValueError) as error:
        raise PancreasSegError(f"{output} cannot be used: {error}.") from error
    now = json.loads(json.dumps(recipe))
    if before is not None and resume:
        # More or fewer steps is what one may change on the way.
        changed = [k for k in now if k != "steps" and before.get(k) != now[k]]
        if changed:
            raise PancreasSegError(
                f"{output} was trained with another {', '.join(changed)}; choose another folder."
            )
    write_json(known, now, overwrite=True)


def _card(
    recipe: dict[str, Any],
    settings: TrainSettings,
    history: list[dict[str, Any]],
    training: Sequence[SliceRecord],
) -> dict[str, Any]:
    return {
        "name": "unnamed",
        "version": "1",
        "licence": "not stated",
        "architecture": settings.resolved_architecture().to_dict(),
        "frame": settings.frame.to_dict(),
        "windows": [list(w) for w in settings.windows],
        "labels": {"pancreas": 1},
        "threshold": 0.5,
        "temperature": 1.0,
        "training": {
            "patients": sorted({r.patient for r in training}),
            "slices": len(training),
            "recipe": recipe,
            "hours": round(sum(line["seconds"] for line in history) / 3600, 2),
            "machine": f"{platform.machine()}, {keras.backend.backend()}",
            "made": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "program": f"napari-pancreas-seg {napari_pancreas_seg.__version__}",
        },
        "weights_sha256": "",
    }


_OF_ANOTHER = (
    "figures of a model of the same recipe that held these patients back; this one was trained "
    "on them too, so that nothing is left to measure it on"
)


def _validation(metrics: dict[str, float]) -> dict[str, Any]:
    values = np.array(list(metrics.values()))
    return {
        "what": "Dice per patient on the native grid, slice by slice, no post-processing; "
        "threshold and temperature were chosen on the same patients",
        "patients": {p: round(d, 4) for p, d in metrics.items()},
        "n": len(values),
        "mean": round(float(values.mean()), 4),
        "median": round(float(np.median(values)), 4),
        "worst": round(float(values.min()), 4),
    }
