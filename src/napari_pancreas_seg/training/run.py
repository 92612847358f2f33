"""From a data set to a bundle: split by patient, fit, score, write the card."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

import napari_pancreas_seg
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.predictor import FramePredictor
from napari_pancreas_seg.io.files import write_json
from napari_pancreas_seg.model.bundle import save_bundle
from napari_pancreas_seg.training.datasets import (
    SliceRecord,
    TrainingSlices,
    fold_of_patients,
    load_negatives,
    load_phantoms,
    load_slices,
    read_slice_layout,
)
from napari_pancreas_seg.training.evaluation import ThresholdScores, score_thresholds
from napari_pancreas_seg.training.fit import (
    WINDOWS_HU,
    Checkpoint,
    TrainSettings,
    fit,
    settings_to_dict,
)

__all__ = ["Split", "train"]


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
    split: Split = Split(),
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
    split : Split
        Which patients validate.
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
    recipe: dict[str, Any] = {"split": vars(split), "negatives": [Path(n).name for n in negatives]}
    recipe |= {"phantoms": phantoms, **settings_to_dict(settings)}
    training, validation = split.divide(read_slice_layout(dataset))
    _claim(output, recipe, resume)
    if report is not None:
        report({"training_slices": len(training), "validation_slices": len(validation)})
    parts = [load_slices(training)]
    if negatives:
        parts.append(load_negatives(negatives))
    if phantoms:
        parts.append(load_phantoms(range(1, phantoms + 1)))

    def validate(network: keras.Model) -> ThresholdScores:
        return score_thresholds(FramePredictor(network, WINDOWS_HU), settings.frame, validation)

    def score(network: keras.Model) -> dict[str, Any]:
        threshold, dice = validate(network).best()
        return {"threshold": threshold, "validation_dice": round(dice, 4)}

    network, history = fit(
        TrainingSlices.join(parts), settings, output, score=score, report=report, resume=resume
    )
    write_json(output / "history.json", history, overwrite=True)
    scores = validate(network)
    threshold, _ = scores.best()
    column = scores.thresholds.index(threshold)
    metrics = {p: round(float(d[column]), 4) for p, d in scores.dice().items()}
    card = _card(recipe, settings, history, threshold, metrics, training)
    return save_bundle(network, {**card, **(about or {})}, output / "bundle", overwrite=True)


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
    threshold: float,
    metrics: dict[str, float],
    training: Sequence[SliceRecord],
) -> dict[str, Any]:
    values = sorted(metrics.values())
    return {
        "name": "unnamed",
        "version": "1",
        "licence": "not stated",
        "architecture": settings.resolved_architecture().to_dict(),
        "frame": settings.frame.to_dict(),
        "windows": [list(w) for w in WINDOWS_HU],
        "labels": {"pancreas": 1},
        "threshold": threshold,
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
        "validation": {
            "what": "Dice per patient on the native grid, slice by slice, no post-processing; "
            "the threshold was chosen on the same patients",
            "patients": metrics,
            "n": len(values),
            "mean": round(sum(values) / len(values), 4),
            "median": round((values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2, 4),
            "worst": values[0],
        },
        "weights_sha256": "",
    }
