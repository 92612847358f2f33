"""Fine-tuning: from a model and a few corrected cases to a model that knows them.

A trial comes first: it learns from some of the patients and is tested on the others, and says how
far the new weights may replace the old ones. Then the model that is kept learns from all of
them, in the same way. What is forgotten is watched on two guards: the synthetic sample CT, which
it never learns from, and the patients that the trial did not see, with the grey values of usual
CT. Cases with such grey values are learnt from as well, so that little is.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_pancreas_seg.arrays import Indices, Mask
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.files import check_folder
from napari_pancreas_seg.model.bundle import (
    Bundle,
    list_models,
    load_bundle,
    own_folder,
    save_bundle,
)
from napari_pancreas_seg.model.library import check_name
from napari_pancreas_seg.training.data.datasets import (
    TrainingSlices,
    fold_of_patients,
    load_cases,
    sample_slices,
)
from napari_pancreas_seg.training.data.layouts.cases import PANCREAS
from napari_pancreas_seg.training.data.layouts.opening import DataSet, open_for_model
from napari_pancreas_seg.training.finetune.result import WRITING, Gain, finetuned_card
from napari_pancreas_seg.training.finetune.score import Scorer, rows_to_score, with_usual_grey
from napari_pancreas_seg.training.finetune.tuner import (
    STAGES,
    Stage,
    Tuner,
    Weights,
    mixed,
    tune_settings,
)
from napari_pancreas_seg.training.judge.seen import names_for_card, those_seen

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Shares of the new weights that are tried."""
FEW_PATIENTS, SHARE_OF_FEW = 5, 0.5
"""So few patients tell little of others: at most this share of new weights is tried then."""
PASSES, FEWEST_STEPS = 10, 80
"""Passes over the user's slices, at most; and steps that are made whatever that gives."""
ENOUGH = 0.75
"""Share of the Dice that the trial can win with which it is content."""
SLICES_PER_PATIENT, COPIES_PER_PATIENT = 24, 200
TRIAL_UNTIL = 0.4
"""Share of the time after which the trial is over."""
READING, AS_IT_IS, TESTING, TEST_GUARD = (
    "reading the cases",
    "scoring the model as it is",
    "testing the trial",
    "testing what is forgotten",
)
ONE_PATIENT = (
    "There is one patient only, so nothing is left to test on: whether the model became better on "
    "other CTs of yours is not known."
)
ALL_KNOWN = (
    "The model's card names all of these patients as learnt from, so nobody is left to test on: "
    "whether it became better on other CTs of yours is not known."
)
CHOSEN_ON_THEM = "How much of the new weights was taken was chosen on the patients held out."
CLEARLY = 0.005
"""Differences in Dice below this are none."""


@dataclass(frozen=True)
class FinetuneSettings:
    """How to fine-tune: `minutes` for everything, reading and testing included.

    `steps`, of trial and training each, come in place of the time: the same seed then gives the
    same model. At most `forgets_at_most` Dice may be lost on either guard.
    """

    minutes: float = 10.0
    steps: int | None = None
    batch_size: int = 8
    forgets_at_most: float = 0.02
    seed: int = 0
    stages: tuple[Stage, ...] = STAGES

    def __post_init__(self) -> None:
        if not self.minutes > 0 or (self.steps is not None and self.steps < 1):
            raise PancreasSegError("A fine-tuning needs some time: give minutes above 0.")
        if self.batch_size < 1:
            raise PancreasSegError("A fine-tuning needs at least one slice in a batch.")


Report = Callable[[str, float, float | None], None]
"""Called with the stage, the share that is done, and the seconds left if known."""


def finetune(
    data: str | Path | DataSet,
    output: str | Path | None = None,
    start: str | Path | Bundle = "default",
    *,
    labels: Mapping[str, Sequence[str]] | None = None,
    settings: FinetuneSettings | None = None,
    name: str | None = None,
    anyway: bool = False,
    overwrite: bool = False,
    report: Report = lambda stage, share, seconds_left: None,
) -> dict[str, Any]:
    """Fine-tune a model on a few cases and write the result as a bundle; the model stays.

    `data` may have any layout that `open_dataset` knows; `labels` say what of it each of the
    model's classes is made of. `output` is a folder, or a file that ends in ``.zip``; by default it
    lies among the user's own models, as ``improved-1`` and so on. A model that has forgotten more
    than the settings allow is written only if `anyway` says so.

    Returns plain data: ``held_out`` is the Dice of the user's patients that a trial did not learn
    from, nor the given model before (of none if there is no such patient), ``usual`` that of the
    patients of the trial with the grey values of usual CT, ``guard`` that of the synthetic sample
    CT; ``share`` is how much of the new weights went into the model, ``better`` whether Dice rose
    clearly on the patients held out, None if unknown.
    """
    settings = settings or FinetuneSettings()
    target, label = _target(output, name, overwrite)
    given = load_bundle(start)
    if given.card.get("members", 1) != 1:
        raise PancreasSegError(
            f"The model {given.card['name']} is an ensemble, which cannot be fine-tuned; begin "
            "with a model of one network."
        )
    work = _FineTuning(given, settings, report)
    work.report(READING)
    dataset = data if isinstance(data, DataSet) else open_for_model(data, given.card, labels)
    work.seen = those_seen(dataset.cases, [given.card])
    work.read(dataset)
    most = math.inf if anyway else settings.forgets_at_most
    trial = work.trial()
    _check_forgotten(trial.usual.lost, most)  # before the time for learning is spent
    weights, share, guard = work.learn(trial.share)
    trial = work.tried.get(share, trial)  # less of the new weights may have been taken
    _check_forgotten(max(guard.lost, trial.usual.lost), most)
    work.report(WRITING, 1.0)
    held_out = trial.held_out if work.fresh else Gain()
    gains = {"held_out": held_out, "guard": guard, "usual": trial.usual}
    about = {
        "slices": work.n_slices,
        "share_of_new_weights": share,
        "minutes": round(work.elapsed / 60, 1),
        "steps": work.tuner.steps,
        "stages": [[stage.name, stage.rate, stage.share] for stage in settings.stages],
        "seed": settings.seed,
    }
    if output is None and name is None:  # the name that was free may be another's by now
        target, label = _target(None, None, overwrite)
    names = names_for_card(dataset.cases)
    card = finetuned_card(given.card, label, work.patients, gains, about, names)
    save_bundle(work.tuner.use(weights), card, target, overwrite=overwrite)
    return {
        "model": str(target),
        "name": card["name"],
        **{what: gain.to_dict() for what, gain in gains.items()},
        "share": share,
        "patients": len(work.patients),
        "slices": work.n_slices,
        "better": None if held_out.means is None else -held_out.lost > CLEARLY,
        "notes": [*dataset.notes, *work.notes()],
    }


def _check_forgotten(lost: float, most: float) -> None:
    if lost > most:
        raise PancreasSegError(
            f"The new model would lose {lost:.2f} Dice on usual CTs and was not kept. Add cases "
            "or give it more time",
            option=", or keep it with --anyway.",
        )


def _target(output: str | Path | None, name: str | None, overwrite: bool) -> tuple[Path, str]:
    """Return path and name of the new model; PancreasSegError if it cannot be written."""
    if output is None:
        name = _free_name() if name is None else check_name(name, overwrite=overwrite)
        output = own_folder() / f"{name}.zip"
    output = Path(output)
    if output.exists() and not overwrite:
        raise PancreasSegError(
            f"{output} already exists; choose another name or allow overwriting."
        )
    check_folder(output.parent)
    return output, name or output.name.removesuffix(".zip")


@dataclass(frozen=True)
class _Trial:
    """Result of the trial with one share of the new weights."""

    share: float
    held_out: Gain = field(default_factory=Gain)
    usual: Gain = field(default_factory=Gain)


def _smallest_sufficient(found: Sequence[_Trial]) -> _Trial:
    """Of the trials, by rising share, the first that wins most of what can be won."""
    # Fewer than half is for when the guards allow no more: a short trial wins little with any.
    enough = [trial for trial in found if trial.share >= SHARE_OF_FEW] or list(found)
    most = max(-trial.held_out.lost for trial in enough)
    if most <= 0:
        return found[0]
    return next(trial for trial in enough if -trial.held_out.lost >= ENOUGH * most)


class _FineTuning:
    """One fine-tuning: its slices, its network, its time."""

    def __init__(self, given: Bundle, settings: FinetuneSettings, report: Report) -> None:
        self.given, self.settings, self._report = given, settings, report
        self.began = time.perf_counter()
        self.seconds = settings.minutes * 60.0
        self._share = 0.0
        self._scoring_s = 0.0  # of all rows with one network
        self.patients: list[str] = []
        self.seen: list[str] = []  # from whom the given model has learnt
        self.tried: dict[float, _Trial] = {}
        self.trial_steps = FEWEST_STEPS

    # -- time

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self.began

    def report(self, stage: str, share: float | None = None) -> None:
        """Report; without a share, that nothing more is done than before."""
        self._share = max(self._share, self._share if share is None else share)
        by_pace = self.elapsed * (1.0 - self._share) / self._share if self._share > 0.05 else None
        left = by_pace
        if self.settings.steps is None:
            by_clock = max(0.0, self.seconds - self.elapsed)
            left = by_clock if by_pace is None else min(by_clock, by_pace)
        self._report(stage, self._share, left)

    # -- what there is

    def read(self, dataset: DataSet) -> None:
        """Bring all slices to the working scale and score the model as it is."""
        settings, card = self.settings, self.given.card
        recipe = tune_settings(card, settings.batch_size, settings.seed)
        mine = load_cases(
            dataset.cases,
            dataset.labels,
            frame=recipe.frame,
            on_case=lambda done, n: self.report(READING, 0.05 * done / n),
        )
        self.n_slices = int(mine.usable.sum())
        if not self.n_slices:
            raise PancreasSegError("There is no slice to learn from in these cases.")
        self.patients = sorted({str(p) for p in mine.patient[mine.usable]})
        copies = with_usual_grey(mine, self.patients, "patient", COPIES_PER_PATIENT)
        # The sample's mask is a pancreas's, and no batch ever draws a slice of this kind.
        guard = [sample_slices(recipe.frame)] if [*card["labels"]] == [PANCREAS] else []
        self.slices = TrainingSlices.join([mine, copies, *guard])
        self._own = np.arange(len(self.slices)) < len(mine)
        self._copied = ~self._own & (self.slices.kind == "patient")
        self._guard = rows_to_score(self.slices, self.slices.kind == "sample", SLICES_PER_PATIENT)
        self.report("building the network")
        self.tuner = Tuner(self.given, recipe, settings.stages)
        self._scorer = Scorer(self.tuner.network, recipe, card)
        self._guard_before = self._score(self.tuner.start, self._guard, AS_IT_IS)
        self._taught = TrainingSlices.join([mine, self._recalled(copies), *guard])

    def _recalled(self, copies: TrainingSlices) -> TrainingSlices:
        """Copies with the model's predictions as targets (Li & Hoiem 2016, arXiv:1606.09282)."""
        self.tuner.use(self.tuner.start)
        rows = np.flatnonzero(copies.usable)
        target = np.zeros_like(np.asarray(copies.target))
        target[rows] = self._scorer.answers(copies, rows, lambda: self.report(AS_IT_IS))
        return replace(copies, target=target)

    def _score(self, weights: Weights, rows: Indices, stage: str) -> dict[str, float]:
        began = time.perf_counter()
        self.tuner.use(weights)
        found = self._scorer.dice(self.slices, rows, lambda: self.report(stage))
        if len(rows):
            self._scoring_s = (time.perf_counter() - began) / len(rows)
        return found

    @property
    def fresh(self) -> list[str]:
        """Patients that the given model has not learnt from."""
        return [patient for patient in self.patients if patient not in self.seen]

    def notes(self) -> list[str]:
        """What the figures do not say."""
        notes = []
        steps = min(self.trial_steps, self.tuner.steps)
        if self.settings.steps is None and steps < FEWEST_STEPS:
            notes.append(
                f"There was time for {steps} steps only, which is too few to learn "
                f"much (at least {FEWEST_STEPS} should be made): give it more minutes."
            )
        if len(self.patients) < 2:
            return [*notes, ONE_PATIENT]
        return [*notes, CHOSEN_ON_THEM if self.fresh else ALL_KNOWN]

    # -- what is done

    def testing(self) -> list[str]:
        """Whom the trial is tested on: one of few, a fifth of many; of those not seen before."""
        among = self.fresh or self.patients
        if len(among) == 1:
            return among
        return fold_of_patients(among, min(len(among), 5), 0, self.settings.seed)

    def trial(self) -> _Trial:
        """Learn from some patients and test on the others."""
        n = len(self.patients)
        if n < 2:
            return _Trial(SHARE_OF_FEW)  # there is no patient to try a share on
        held = np.isin(self.slices.patient, self.testing())
        rows = rows_to_score(self.slices, held & self._own, SLICES_PER_PATIENT)
        usual = rows_to_score(self.slices, held & self._copied, SLICES_PER_PATIENT)
        before = self._score(self.tuner.start, rows, AS_IT_IS)
        usual_before = self._score(self.tuner.start, usual, AS_IT_IS)
        to_score = len(rows) + len(usual) + len(self._guard)
        reserve = self._scoring_s * len(SHARES) * to_score
        seconds = TRIAL_UNTIL * self.seconds - self.elapsed - reserve
        tuned = self._tune(~held, seconds, "trial", (0.05, 0.45))
        self.trial_steps = self.tuner.steps
        found: list[_Trial] = []
        for share in (s for s in SHARES if s <= SHARE_OF_FEW or n >= FEW_PATIENTS):
            weights = mixed(self.tuner.start, tuned, share)
            result = _Trial(
                share,
                Gain(before, self._score(weights, rows, TESTING)),
                Gain(usual_before, self._score(weights, usual, TESTING)),
            )
            self.tried[share] = result
            guard = Gain(self._guard_before, self._score(weights, self._guard, TEST_GUARD))
            if max(guard.lost, result.usual.lost) <= self.settings.forgets_at_most or not found:
                found.append(result)
        return _smallest_sufficient(found)

    def learn(self, share: float) -> tuple[Weights, float, Gain]:
        """Learn from every patient; return weights, the share of new ones, and the guard."""
        reserve = self._scoring_s * len(SHARES) * len(self._guard) + 5.0
        seconds = self.seconds - self.elapsed - reserve
        tuned = self._tune(np.ones(len(self.slices), bool), seconds, "learning", (0.5, 0.97))
        for less in sorted({s for s in SHARES if s <= share}, reverse=True):
            weights = mixed(self.tuner.start, tuned, less)
            guard = Gain(self._guard_before, self._score(weights, self._guard, TEST_GUARD))
            if guard.lost <= self.settings.forgets_at_most:
                break
        return weights, less, guard

    def _tune(self, chosen: Mask, seconds: float, what: str, span: tuple[float, float]) -> Weights:
        slices = replace(self._taught, usable=self._taught.usable & chosen)
        low, high = span

        def on_step(stage: str, done: float) -> None:
            self.report(f"{what}: {stage}", low + (high - low) * done)

        if (steps := self.settings.steps) is not None:
            return self.tuner.tune(slices, steps, on_step=on_step)
        # A few passes over the user's slices, as far as the time goes; the other half are copies.
        n = int((chosen & self._own & self.slices.usable).sum())
        steps = max(FEWEST_STEPS, round(PASSES * n / (0.5 * self.settings.batch_size)))
        return self.tuner.tune(slices, steps, seconds, on_step)


def _free_name() -> str:
    taken = {entry.name.lower() for entry in list_models()}
    return next(name for n in itertools.count(1) if (name := f"improved-{n}") not in taken)
