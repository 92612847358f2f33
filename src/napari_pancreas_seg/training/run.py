"""From a data set to a bundle: split by patient, fit, score, write the card."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from napari_pancreas_seg.errors import PancreasSegError, few
from napari_pancreas_seg.io.files import write_json
from napari_pancreas_seg.model.bundle import Bundle, load_bundle, save_bundle
from napari_pancreas_seg.training import cards, folder
from napari_pancreas_seg.training.data.datasets import (
    TrainingSlices,
    fold_of_patients,
    load_cases,
    load_negatives,
)
from napari_pancreas_seg.training.data.layouts.cases import BadCases, LabelledCase, VolumeCase
from napari_pancreas_seg.training.data.layouts.opening import DataSet, open_dataset
from napari_pancreas_seg.training.fit import curves
from napari_pancreas_seg.training.fit.devices import (
    choose_devices,
    choose_policy,
    make_deterministic,
)
from napari_pancreas_seg.training.fit.loop import ChangeWeights, fit
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.judge.calibration import HeldBack, score_predictions
from napari_pancreas_seg.training.judge.seen import names_for_card, patients_seen, those_seen

Show = Callable[[str, int, int], None]
"""Called with the stage, and how much of how much is done."""


@dataclass(frozen=True)
class Split:
    """Which patients validate: fold number `fold` of `folds`, shuffled by `seed`."""

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
class Experiment:
    """What a script in ``research/`` changes in a training.

    `recipe` is what recipe and card say of it; patients of `models` count as seen; `slices` makes
    other training slices, `weights` other weights of the averaged ones, before their statistics are
    computed.
    """

    recipe: Mapping[str, Any] = field(default_factory=dict)
    models: Sequence[Bundle] = ()
    slices: Callable[[TrainingSlices, TrainSettings], TrainingSlices] | None = None
    weights: ChangeWeights | None = None


def train(
    dataset: Path | DataSet,
    output: Path,
    settings: TrainSettings,
    *,
    split: Split | None = Split(),
    start: str | Path | None = None,
    calibrated_by: str | Path | None = None,
    negatives: Sequence[str] = (),
    about: dict[str, Any] | None = None,
    resume: bool = False,
    once: bool = False,
    cache: Path | None = None,
    devices: int | Literal["all"] = 1,
    deterministic: bool = False,
    experiment: Experiment = Experiment(),
    log: Callable[[str], None] = lambda text: None,
    show: Show = lambda stage, done, total: None,
) -> Path:
    """Train a model, write it as a bundle and return the bundle's path.

    `output` gets checkpoint, history, learning curves and, at the end, ``bundle``. `split` says
    which patients validate; with None all are trained on, and threshold, temperature and confidence
    come from `calibrated_by`, a model of the same recipe that held patients back. `start` is a
    model whose weights to begin with; `negatives` are CTs that show no pancreas (see
    `load_negatives`); `about` is further fields of the card, whose name is the folder's by default.
    `resume` goes on from a checkpoint of the same recipe and patients; with `once` a training that
    is done is left as it is. With `cache`, slices need not fit into memory. `log` gets the
    beginning, what is noticed, and every epoch; `show` what goes on, and how much of it is done.
    """
    data = dataset if isinstance(dataset, DataSet) else open_dataset(dataset)
    before = folder.recipe_in(output) if resume else None
    if before and settings.policy == "auto":  # which may mean another one on another machine
        settings = replace(settings, policy=folder.policy_after(before))
    settings = settings_for(settings, data)
    _check_split(settings, split, calibrated_by)
    given = None if start is None else load_bundle(start)
    training, validation = ([*data.cases], []) if split is None else split.divide(data.cases)
    whose = {"training": _patients(training), "held_back": _patients(validation)}
    others = [m.card for m in (given, *experiment.models) if m is not None]
    seen = those_seen(validation, others)
    recipe = {
        "split": None if split is None else vars(split),
        "start": None if given is None else cards.model_entry(given),
        "negatives": [Path(n).name for n in negatives],
        "labels": dict(data.labels),
        "classes": {name: list(parts) for name, parts in data.classes.items()},
        **asdict(settings),
        "experiment": dict(experiment.recipe),
    }
    about = {"name": output.resolve().name, **(about or {})}
    learnt_from = sorted(names_for_card(training) | patients_seen(others))
    card = cards.first_card(recipe, settings, data, learnt_from)
    cards.check_about(card, about, output / folder.BUNDLE)
    twin = None if calibrated_by is None else load_bundle(calibrated_by).card
    calibrated = None if twin is None else cards.calibration_from(twin, card, data.patients)
    on = choose_devices(devices)
    on.check(settings.batch_size)
    files = {case.name: folder.files_stamp(case) for case in data.cases}
    if before and (changed := folder.changed_cases(before.get("files"), files)):
        log(
            f"Note: the files of {few(changed, 6)} have another size or time than when this "
            "training began: if a CT or mask was changed, what was learnt before is of the former."
        )
    if folder.claim(output, {**recipe, "patients": whose, "files": files}, resume, once):
        return output / folder.BUNDLE
    if deterministic:
        make_deterministic()
    log(f"training on {len(training)} cases, {len(validation)} held back")
    if seen:
        log(f"Note: {cards.note_seen_before(len(seen))}.")
    if calibrated and "validation" not in calibrated:
        log("Note: --calibrated-by held other patients back, so its figures are not taken.")
    if negatives:  # first, as a wrong name is soon found
        none = load_negatives(negatives, classes=len(data.labels), frame=settings.frame)
    slices, held = _read(training, validation, data, settings, cache, log, show)
    card["training"] |= {"cases": len(training), "slices": int(slices.usable.sum())}
    if negatives:
        slices = TrainingSlices.join([slices, none])
    if experiment.slices is not None:
        slices = experiment.slices(slices, settings)
    on_fit = {"on_step": show, "resume": resume, "start": given, "devices": on}
    network = _fit(
        slices, held, settings, output, card, log, change_weights=experiment.weights, **on_fit
    )
    predicted = list(held.predict(network))
    what = cards.what_is_scored(held, settings)
    card |= calibrated or cards.judged(predicted, data.labels, what, seen)
    bundle = save_bundle(network, {**card, **about}, output / folder.BUNDLE, overwrite=True)
    if predicted:
        write_json(output / folder.OUT_OF_FOLD, cards.out_of_fold(predicted), overwrite=True)
    return bundle


def _fit(
    slices: TrainingSlices,
    held: HeldBack,
    settings: TrainSettings,
    output: Path,
    card: dict[str, Any],
    log: Callable[[str], None],
    **options: Any,
) -> keras.Model:
    """Train a network, with learning curves and a line for each epoch; say on the card how long."""
    said: set[str] = set()

    def draw(history: list[dict[str, Any]]) -> None:
        try:
            curves.show(output, history)
        except (PancreasSegError, OSError) as error:  # open in another program, as on Windows
            if (what := str(error)) not in said:
                log(f"Note: the training goes on, but its curves are not up to date. {what}")
            said.add(what)

    def report(history: list[dict[str, Any]]) -> None:
        log(epoch_line(history[-1]))
        draw(history)

    score = functools.partial(_scored, held) if len(held) else None
    network, history = fit(slices, settings, output, score=score, report=report, **options)
    draw(history)
    card["training"] |= {
        "hours": round(sum(line["seconds"] for line in history) / 3600, 2),
        "made": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    return network


def epoch_line(line: Mapping[str, Any]) -> str:
    """One epoch of a history, for a person to read."""
    parts = [f"step {line['step']}", f"loss {line['loss']:.4f}"]
    if "validation_dice" in line:
        parts.append(f"Dice {line['validation_dice']:.4f}")
    if "threshold" in line:
        parts.append(f"at threshold {line['threshold']:g}")
    parts.append(f"{line['images_per_second']:g} images/s")
    return "  ".join(parts)


def default_cache(data: DataSet, output: Path) -> Path | None:
    """Where training slices are kept: beside the result for whole volumes, else in memory."""
    if any(isinstance(case, VolumeCase) for case in data.cases):
        return output / "cache"
    return None


def settings_for(settings: TrainSettings, data: DataSet) -> TrainSettings:
    """The recipe with the number of classes and the precision filled in."""
    architecture = settings.resolved_architecture()
    if architecture.classes != len(data.labels):
        settings = replace(settings, architecture=replace(architecture, classes=len(data.labels)))
    return replace(settings, policy=choose_policy(settings.policy))


def _patients(cases: Sequence[LabelledCase]) -> list[str]:
    return sorted({case.patient for case in cases})


def _check_split(
    settings: TrainSettings, split: Split | None, calibrated_by: str | Path | None
) -> None:
    """Check that split, calibration and patience go together."""
    if (split is None) != (calibrated_by is not None):
        raise PancreasSegError(
            "A training on every patient needs --calibrated-by: a model of the same recipe that "
            "held patients back gives the threshold. Other trainings do not take one."
        )
    if split is None and settings.patience is not None:
        raise PancreasSegError(
            "--patience needs patients held back, and a training on every patient has none: "
            "leave it out."
        )


def _read(
    training: Sequence[LabelledCase],
    validation: Sequence[LabelledCase],
    data: DataSet,
    settings: TrainSettings,
    cache: Path | None,
    log: Callable[[str], None],
    show: Show,
) -> tuple[TrainingSlices, HeldBack]:
    """Read the cases to train on and those held back; name all bad cases at once."""
    n = len(training) + len(validation)
    problems: list[str] = []
    slices = held = None
    try:
        slices = load_cases(
            training,
            data.labels,
            cache=cache,
            frame=settings.frame,
            on_case=lambda done, _: show("reading", done, n),
        )
    except BadCases as error:
        problems += error.problems
    try:
        held = HeldBack(
            validation,
            data.labels,
            settings,
            on_case=lambda done, _: show("reading", len(training) + done, n),
        )
    except BadCases as error:
        problems += error.problems
    if slices is None or held is None:
        raise BadCases(problems)
    classes = ", ".join(data.labels)
    if not slices.present.any():
        raise PancreasSegError(
            f"All masks to train on are empty: none of them shows {classes}. Look at the data set "
            "with 'dataset check', and choose the classes with --classes."
        )
    if validation and not held.shows_something:
        raise PancreasSegError(
            f"All masks of the patients held back ({', '.join(_patients(validation))}) are empty, "
            "so no Dice can be measured on them. Look at the data set with 'dataset check', or "
            "choose another --fold."
        )
    for name, shown in zip(data.labels, np.any(slices.present, axis=0).tolist(), strict=True):
        if not shown:
            log(f"No case to train on shows {name}, so it cannot be learnt.")
    return slices, held


def _scored(held: HeldBack, network: keras.Model) -> dict[str, Any]:
    """An epoch's figures: the best threshold, and Dice at it."""
    scores = score_predictions(held.predict(network))
    threshold, dice = scores.best()
    found = {"threshold": threshold, "validation_dice": round(dice, 4)}
    if len(held.labels) > 1:
        by_class = cards.mean_by_class(scores, threshold, held.labels)
        found |= {f"dice_{name}": dice for name, dice in by_class.items()}
    return found
