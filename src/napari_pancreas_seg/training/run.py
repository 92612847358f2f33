"""From a data set to a bundle: split by patient, fit, score, write the card."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

import napari_pancreas_seg
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.cascade import DEFAULT_LOCALISER, localiser_entry
from napari_pancreas_seg.io.files import write_json
from napari_pancreas_seg.model.bundle import Bundle, load_bundle, save_bundle
from napari_pancreas_seg.model.card import check_card
from napari_pancreas_seg.training.data.crops import Crop, load_crops
from napari_pancreas_seg.training.data.datasets import (
    TrainingSlices,
    fold_of_patients,
    load_cases,
    load_negatives,
    load_phantoms,
    working_frame,
)
from napari_pancreas_seg.training.data.layouts import (
    DataSet,
    LabelledCase,
    VolumeCase,
    open_dataset,
)
from napari_pancreas_seg.training.data.layouts.cases import PANCREAS
from napari_pancreas_seg.training.data.placing import check_classes
from napari_pancreas_seg.training.distillation import TEACHER_SHARE, check_teachers, taught
from napari_pancreas_seg.training.fit.checkpoint import Checkpoint
from napari_pancreas_seg.training.fit.curves import Curves
from napari_pancreas_seg.training.fit.devices import (
    choose_devices,
    choose_policy,
    make_deterministic,
)
from napari_pancreas_seg.training.fit.loop import TrainingProgress, best_epoch, fit
from napari_pancreas_seg.training.fit.recipe import TrainSettings, settings_to_dict
from napari_pancreas_seg.training.judge.calibration import (
    THRESHOLDS,
    PredictedSlice,
    calibrate,
    score_predictions,
)
from napari_pancreas_seg.training.judge.evaluation import ThresholdScores, patients_seen, was_seen
from napari_pancreas_seg.training.judge.validation import HeldBack

__all__ = [
    "OUT_OF_FOLD",
    "Split",
    "Watch",
    "default_cache",
    "flattered",
    "is_done",
    "settled",
    "train",
]

OUT_OF_FOLD = "out_of_fold.json"
"""Dice of each patient held back, for several thresholds; before any temperature. It is written
last: where it lies, the training is done."""
RECIPE, BUNDLE = "recipe.json", "bundle"
LENGTH = ("steps", "patience", "averaging")
"""How long to train is what one may change on the way, and the averaging goes with it."""


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

    def divide(
        self, cases: Sequence[LabelledCase]
    ) -> tuple[list[LabelledCase], list[LabelledCase]]:
        """Cases to train on, and cases of the patients that validate."""
        held = fold_of_patients([c.patient for c in cases], self.folds, self.fold, self.seed)
        return (
            [c for c in cases if c.patient not in held],
            [c for c in cases if c.patient in held],
        )


@dataclass(frozen=True)
class Watch:
    """Who is told what, while it happens.

    Parameters
    ----------
    on_start : callable
        Called with the numbers of cases to train on and to validate on, once.
    on_case : callable
        Called with cases read and in all.
    on_step : callable
        Called with a `TrainingProgress` after every step.
    on_epoch : callable
        Called with a line of the history after every epoch.
    on_note : callable
        Called with a sentence that the user should read.
    """

    on_start: Callable[[int, int], None] = lambda training, validation: None
    on_case: Callable[[int, int], None] = lambda done, total: None
    on_step: Callable[[TrainingProgress], None] = lambda progress: None
    on_epoch: Callable[[dict[str, Any]], None] = lambda line: None
    on_note: Callable[[str], None] = lambda note: None


def train(
    dataset: Path | DataSet,
    output: Path,
    settings: TrainSettings,
    *,
    split: Split | None = Split(),
    start: str | Path | None = None,
    calibrated_by: str | Path | None = None,
    localiser: str | Path | None = None,
    teachers: Sequence[str | Path] = (),
    teacher_share: float = TEACHER_SHARE,
    negatives: Sequence[str] = (),
    crops: Path | None = None,
    phantoms: int = 16,
    about: dict[str, Any] | None = None,
    resume: bool = False,
    once: bool = False,
    cache: Path | None = None,
    devices: int | Literal["all"] = 1,
    deterministic: bool = False,
    watch: Watch = Watch(),
) -> Path:
    """Train a model and write it as a bundle.

    Parameters
    ----------
    dataset : Path or DataSet
        Folder in any layout that `open_dataset` knows, or what it gave.
    output : Path
        Folder for checkpoint, history, learning curves and, at the end, ``bundle``.
    settings : TrainSettings
        The recipe. Classes are the data set's.
    split : Split or None
        Which patients validate; None trains on all of them.
    start : str or Path, optional
        Name or path of a model whose weights to begin with.
    calibrated_by : str or Path, optional
        A model of the same recipe that held patients back: without a split of its own, this
        one takes threshold, temperature and confidence from it.
    localiser : str or Path, optional
        For a frame around the gland: the model whose name and hash the card gives as the one that
        finds it; ``"default"`` if None. Nothing of it is learnt from.
    teachers : sequence of str or Path
        Models whose answers the targets are mixed with; see `napari_pancreas_seg.training.
        distillation`. A patient is taught by those that never saw them, if there are any.
    teacher_share : float
        Weight of the teachers in the target, above 0 to 1; the mask has the rest.
    negatives : sequence of str
        CTs that show no pancreas; see `load_negatives`.
    crops : Path, optional
        Folder of glands without surroundings to mix into the slices of the pancreas, those of
        patients held back left out; see `load_crops` and `MixingSettings`.
    phantoms : int
        Number of synthetic phantoms to mix in; their seeds start at 1, the sample's is 0. They
        have a pancreas and no other class: with several, none is mixed in.
    about : dict, optional
        Further fields of the card: ``name``, ``version``, ``licence``, ``citation`` ….
    resume : bool
        Go on where the folder's checkpoint stands, of the same recipe and the same patients.
    once : bool
        With `resume`, leave a training as it is that is done; it must be of the same length too.
    cache : Path, optional
        Folder for training slices, so that they need not fit into memory; see `load_cases`.
    devices : int or "all"
        Over how many GPUs a batch is split.
    deterministic : bool
        Compute the same bits every time, at some cost in speed.
    watch : Watch
        Who is told what.

    Returns
    -------
    Path
        The bundle.

    Raises
    ------
    PancreasSegError
        If the data cannot be read, what is asked for does not go together, or the folder cannot
        be used or holds another training.
    """
    output = Path(output)
    data = dataset if isinstance(dataset, DataSet) else open_dataset(dataset)
    settings = settled(settings, data)
    if len(data.labels) > 1:
        phantoms = 0
    recipe: dict[str, Any] = {
        "split": None if split is None else vars(split),
        "start": None,
        "teachers": [],
        "negatives": [Path(n).name for n in negatives],
        "crops": None if crops is None else Path(crops).name,
    }
    recipe |= {"phantoms": phantoms, "labels": dict(data.labels), **settings_to_dict(settings)}
    if (split is None) != (calibrated_by is not None):
        raise PancreasSegError(
            "A training on every patient has none left to find its threshold on: it needs a "
            "model of the same recipe that held patients back (and no other training does)."
        )
    if split is None and settings.patience is not None:
        raise PancreasSegError(
            "Patience waits for a better Dice of patients held back, and a training on every "
            "patient has none: leave --patience out."
        )
    if settings.start_share and start is None:
        raise PancreasSegError(
            "A share of the model to begin with can only be kept if there is one to begin with."
        )
    check_classes(settings.frame, data.labels)
    found_by = _localiser(settings, localiser)
    given = None if start is None else load_bundle(start)
    if given is not None:
        recipe["start"] = _name(given)
    by = [load_bundle(teacher) for teacher in teachers]
    if by:
        check_teachers(by, settings, [*data.labels], teacher_share)
        recipe |= {"teachers": [_name(t) for t in by], "teacher_share": teacher_share}
    calibrated = None if calibrated_by is None else load_bundle(calibrated_by).card
    if calibrated is not None:
        _taken_over(calibrated)  # what is missing is said before hours of training
    cases = list(data.cases)
    training, validation = (cases, []) if split is None else split.divide(cases)
    whose = {"training": _patients(training), "held_back": _patients(validation)}
    further = _crops(crops, data, settings, whose["held_back"])
    known = patients_seen([model.card for model in (given, *by) if model is not None])
    known |= {crop.patient for crop in further}
    seen = [patient for patient in whose["held_back"] if was_seen(patient, known)]
    card = _card(recipe, settings, data, sorted({*whose["training"], *known})) | found_by
    _check_about(card, about, output / BUNDLE)
    on = choose_devices(devices)
    on.check(settings.batch_size)
    if _claim(output, {**recipe, "patients": whose}, resume, once):
        return output / BUNDLE
    if deterministic:
        make_deterministic()
    watch.on_start(len(training), len(validation))
    if seen:
        watch.on_note(f"Mind that {flattered(len(seen))}.")
    n_cases = len(training) + len(validation)
    slices = _load(training, data, settings, negatives, phantoms, cache, n_cases, watch)
    slices = replace(slices, crops=tuple(further))
    if by:
        slices = taught(slices, settings, by, teacher_share)
    held = HeldBack(
        validation,
        data.labels,
        settings,
        on_case=lambda done, _: watch.on_case(len(training) + done, n_cases),
    )

    def score(network: keras.Model) -> dict[str, Any]:
        scores = score_predictions(held.predict(network))
        threshold, dice = scores.best()
        found = {"threshold": threshold, "validation_dice": round(dice, 4)}
        if len(data.labels) > 1:
            found |= {f"dice_{n}": d for n, d in _by_class(scores, threshold, data.labels).items()}
        return found

    curves = Curves(output)

    def report(history: list[dict[str, Any]]) -> None:
        watch.on_epoch(history[-1])
        curves.show(history, best_epoch(history))

    network, history = fit(
        slices,
        settings,
        output,
        score=score if validation else None,
        report=report,
        on_step=watch.on_step,
        resume=resume,
        start=given,
        devices=on,
    )
    curves.show(history, best_epoch(history))
    curves.close()
    card["training"] |= {
        "cases": len(training),
        "slices": int((slices.usable & (slices.kind == "patient")).sum()),
        "hours": round(sum(line["seconds"] for line in history) / 3600, 2),
        "made": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    predicted = list(held.predict(network))
    if calibrated is not None:
        card |= _taken_over(calibrated)
    else:
        card |= _judged(predicted, data.labels, _what(held, settings), seen)
    card |= about or {}
    bundle = save_bundle(network, card, output / BUNDLE, overwrite=True)
    if predicted:
        write_json(output / OUT_OF_FOLD, _out_of_fold(predicted), overwrite=True)
    return bundle


def is_done(output: Path) -> bool:
    """Whether a folder holds a training that came to its end."""
    return (Path(output) / OUT_OF_FOLD).exists() and (Path(output) / BUNDLE).is_dir()


def flattered(n: int) -> str:
    """What is to be said where so many patients held back had been seen by other models."""
    return (
        f"the model to start from or a teacher had learnt from {n} of the patients held back, "
        "whose figures say little of new ones"
    )


def default_cache(data: DataSet, output: Path) -> Path | None:
    """Where training slices are kept: beside the result for whole volumes, else in memory."""
    if any(isinstance(case, VolumeCase) for case in data.cases):
        return Path(output) / "cache"
    return None


def settled(settings: TrainSettings, data: DataSet) -> TrainSettings:
    """The recipe for these classes on this computer."""
    architecture = settings.resolved_architecture()
    if architecture.classes != len(data.labels):
        settings = replace(settings, architecture=replace(architecture, classes=len(data.labels)))
    return replace(settings, policy=choose_policy(settings.policy))


def _patients(cases: Sequence[LabelledCase]) -> list[str]:
    return sorted({case.patient for case in cases})


def _name(model: Bundle) -> dict[str, Any]:
    """What a recipe says of another model."""
    return {key: model.card[key] for key in ("name", "version", "weights_sha256")}


def _localiser(settings: TrainSettings, model: str | Path | None) -> dict[str, Any]:
    """What a card says of the model that finds the gland for this one."""
    if settings.frame.centre != "gland":
        if model is not None:
            raise PancreasSegError(
                "Only the second stage of a cascade, whose frame lies around the gland, has "
                "another model find the gland."
            )
        return {}
    return {"localiser": localiser_entry(model or DEFAULT_LOCALISER)}


def _crops(
    folder: Path | None, data: DataSet, settings: TrainSettings, held: Sequence[str]
) -> list[Crop]:
    """Glands without surroundings, none of a patient held back."""
    if folder is None:
        return []
    if [*data.labels] != [PANCREAS] or settings.neighbours_mm is not None:
        raise PancreasSegError(
            "Crops of glands are for the pancreas alone, on single slices: leave --crops out."
        )
    return load_crops(folder, working_frame(settings.frame).mm_per_pixel, held)


def _load(
    training: Sequence[LabelledCase],
    data: DataSet,
    settings: TrainSettings,
    negatives: Sequence[str],
    phantoms: int,
    cache: Path | None,
    n_cases: int,
    watch: Watch,
) -> TrainingSlices:
    """Everything that is learnt from."""
    how: dict[str, Any] = {"neighbours_mm": settings.neighbours_mm, "frame": settings.frame}
    parts = [
        load_cases(
            training,
            data.labels,
            cache=cache,
            on_case=lambda done, _: watch.on_case(done, n_cases),
            **how,
        )
    ]
    if negatives:
        parts.append(load_negatives(negatives, classes=len(data.labels), **how))
    if phantoms:
        parts.append(load_phantoms(range(1, phantoms + 1), **how))
    return TrainingSlices.join(parts)


def _what(held: HeldBack, settings: TrainSettings) -> str:
    """What a card says its validation figures are."""
    slices = "all labelled slices" if held.complete else "some slices of each CT"
    chosen = (
        "threshold and temperature"
        if settings.patience is None
        else ("threshold, temperature and the epoch")
    )
    placed = ""
    if settings.frame.centre == "gland":
        placed = "; frames were laid around the reference's gland, so that no first stage could err"
    return (
        f"Dice per patient on the native grid, {slices}, slice by slice, no post-processing; "
        f"{chosen} were chosen on the same patients{placed}"
    )


def _by_class(
    scores: ThresholdScores, threshold: float, labels: Mapping[str, int]
) -> dict[str, float]:
    """Mean Dice of each class over the patients that have it or were given it."""
    index = scores.thresholds.index(threshold)
    rows = np.array([rows[index] for rows in scores.dice_by_class().values()])
    return {
        name: round(float(dice[np.isfinite(dice)].mean()), 4)
        for name, dice in zip(labels, rows.T, strict=True)
        if np.isfinite(dice).any()
    }


def _judged(
    predicted: Sequence[PredictedSlice],
    labels: Mapping[str, int],
    what: str,
    seen: Sequence[str],
) -> dict[str, Any]:
    """Calibration and validation for the card."""
    found = calibrate(predicted)
    scores = score_predictions(predicted, found.temperature, (found.threshold,))
    validation = _validation({p: float(d[0]) for p, d in scores.dice().items()}, what)
    if len(labels) > 1:
        validation["mean_by_class"] = _by_class(scores, found.threshold, labels)
    if seen:
        validation |= {"what": f"{what}; {flattered(len(seen))}", "seen_before": [*seen]}
    return {**found.card_fields(), "validation": validation}


def _out_of_fold(predicted: Sequence[PredictedSlice]) -> dict[str, Any]:
    """Dice of every patient at every threshold."""
    dice = score_predictions(predicted).dice()
    return {
        "thresholds": list(THRESHOLDS),
        "dice": {patient: np.round(d, 5).tolist() for patient, d in dice.items()},
    }


def _taken_over(card: Mapping[str, Any]) -> dict[str, Any]:
    """The same from the card of a twin that held patients back."""
    try:
        taken = {k: card[k] for k in ("threshold", "temperature", "confidence", "validation")}
    except KeyError as error:
        raise PancreasSegError(
            f"The model {card['name']} cannot calibrate another: its card has no {error}."
        ) from error
    seen = taken["validation"].get("seen_before")
    what = f"{_OF_ANOTHER}; {flattered(len(seen))}" if seen else _OF_ANOTHER
    return {**taken, "validation": {**taken["validation"], "what": what}}


def _check_about(card: dict[str, Any], about: dict[str, Any] | None, path: Path) -> None:
    """Refuse further fields that no card may have, before hours of training."""
    try:
        json.dumps(about, allow_nan=False)
        check_card({**card, **(about or {})}, path)
    except (TypeError, ValueError, PancreasSegError) as error:
        raise PancreasSegError(
            f"The model's card would not be valid with the fields given for it: {error}"
        ) from error


def _claim(output: Path, recipe: dict[str, Any], resume: bool, once: bool) -> bool:
    """Make the folder, or make sure that it holds the same training; whether that is done."""
    known = output / RECIPE
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
    done = resume and once and is_done(output)
    if before is not None and resume:
        _check_same(output, before, now, () if done else LENGTH)
    if not done and before != now:
        (output / OUT_OF_FOLD).unlink(missing_ok=True)  # it was done, and is so no longer
        write_json(known, now, overwrite=True)
    return done


def _check_same(
    output: Path, before: dict[str, Any], now: dict[str, Any], free: Sequence[str]
) -> None:
    """Refuse a folder of another recipe; keys that an older version did not write may be missing.

    Raises
    ------
    PancreasSegError
        If they differ in more than what is free to change.
    """
    changed = {k for k in (now.keys() & before.keys()) - {*free} if before[k] != now[k]}
    if changed == {"patients"}:
        raise PancreasSegError(
            f"{output} was trained on other patients, or held others back: go on with the data "
            "set as it was, or choose another folder."
        )
    if changed:
        what = ", ".join(sorted(changed - {"patients"}))  # another split has others anyway
        raise PancreasSegError(f"{output} was trained with another {what}; choose another folder.")


def _card(
    recipe: dict[str, Any], settings: TrainSettings, data: DataSet, patients: list[str]
) -> dict[str, Any]:
    """What a card says before anything has been learnt."""
    return {
        "name": "unnamed",
        "version": "1",
        "licence": "not stated",
        "architecture": settings.resolved_architecture().to_dict(),
        "frame": settings.frame.to_dict(),
        "windows": [list(w) for w in settings.input_windows],
        "neighbours_mm": settings.neighbours_mm,
        "labels": dict(data.labels),
        "threshold": 0.5,
        "temperature": 1.0,
        "training": {
            "patients": patients,
            "layout": data.layout,
            "recipe": recipe,
            "machine": f"{platform.machine()}, {keras.backend.backend()}",
            "program": f"napari-pancreas-seg {napari_pancreas_seg.__version__}",
        },
        "weights_sha256": "",
    }


_OF_ANOTHER = (
    "figures of a model of the same recipe that held these patients back; this one was trained "
    "on them too, so that nothing is left to measure it on"
)


def _validation(metrics: dict[str, float], what: str) -> dict[str, Any]:
    values = np.array(list(metrics.values()))
    return {
        "what": what,
        "patients": {p: round(d, 4) for p, d in metrics.items()},
        "n": len(values),
        "mean": round(float(values.mean()), 4),
        "median": round(float(np.median(values)), 4),
        "worst": round(float(values.min()), 4),
    }
