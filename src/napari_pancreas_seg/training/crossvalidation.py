"""Cross-validation: a network for every fold, figures of all patients, one ensemble."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.files import read_json, write_json
from napari_pancreas_seg.model.bundle import SHARED, Bundle, join_weights, load_bundle, save_bundle
from napari_pancreas_seg.model.card import MOST_MEMBERS
from napari_pancreas_seg.training import run
from napari_pancreas_seg.training.cards import SOME_SLICES, cautions
from napari_pancreas_seg.training.data.layouts.opening import DataSet, open_dataset
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.folder import OUT_OF_FOLD, SUMMARY, check_free, fold_folder
from napari_pancreas_seg.training.judge import calibration
from napari_pancreas_seg.training.judge.calibration import PredictedSlice
from napari_pancreas_seg.training.judge.scores import FAILURE_DICE, at_others_threshold, summarise


def cross_validate(
    dataset: Path | DataSet,
    output: Path,
    settings: TrainSettings,
    *,
    folds: int = 5,
    about: dict[str, Any] | None = None,
    log: Callable[[str], None] = lambda text: None,
    show: Callable[[str, int, int], None] = lambda stage, done, total: None,
    **options: Any,
) -> Path:
    """Train every fold, score every patient out of fold, join the networks; return the ensemble.

    `output` then holds the folds' trainings, ``crossvalidation.json`` and ``bundle``. `options` are
    `train`'s: with `resume`, folds that are done by the same recipe are not trained again.
    """
    if not 2 <= folds <= MOST_MEMBERS:
        raise PancreasSegError(
            f"The networks of 2 to {MOST_MEMBERS} folds can be joined to an ensemble, not {folds}."
        )
    about = {"name": output.resolve().name, **(about or {})}
    check_free(output, bool(options.get("resume")), folds=True)
    data = dataset if isinstance(dataset, DataSet) else open_dataset(dataset)
    for fold in range(folds):
        which = f"fold {fold + 1} of {folds}: "
        run.train(
            data,
            fold_folder(output, fold),
            settings,
            split=run.Split(folds, fold, settings.seed),
            about=_named(about, f"fold {fold}"),
            once=True,
            log=lambda text, which=which: log(which + text),  # type: ignore[misc]
            show=lambda stage, *far, which=which: show(which + stage, *far),
            **options,
        )
    folders = [fold_folder(output, fold) for fold in range(folds)]
    members = [load_bundle(folder / "bundle") for folder in folders]
    dice = out_of_fold_dice(folders)
    result = {
        "what": _what(members, settings),
        "folds": folds,
        "seed": settings.seed,
        "patients": {p: round(d, 4) for p, d in dice.items()},
        "summary": {
            **summarise(dice.values()),
            f"below_{FAILURE_DICE}": sum(d < FAILURE_DICE for d in dice.values()),
        },
    }
    write_json(output / SUMMARY, result, overwrite=True)
    predicted = _predicted(members, data, run.settings_for(settings, data), folds)
    card = {**_card(members, predicted, result), **about}
    return save_bundle(join_weights(members), card, output / "bundle", overwrite=True)


def out_of_fold_dice(folders: Iterable[Path]) -> dict[str, float]:
    """Dice of each patient held back in trainings that have ended; see `at_others_threshold`."""
    patients: dict[str, list[float]] = {}
    for path in (Path(folder) / OUT_OF_FOLD for folder in folders):
        if path.exists():
            patients |= read_json(path)["dice"]
    return at_others_threshold(patients)


def _named(about: dict[str, Any], what: str) -> dict[str, Any]:
    name = about["name"]
    return {**about, "name": f"{name} {what}" if isinstance(name, str) else name}


def _what(members: Sequence[Bundle], settings: TrainSettings) -> str:
    """Description of the figures of all patients."""
    what = (
        "Dice per patient on the native grid, out of fold, no post-processing; each patient's "
        "threshold was chosen on all others; 95 % bootstrap interval over patients"
    )
    validations = [member.card["validation"] for member in members]
    if any(SOME_SLICES in validation["what"] for validation in validations):
        what = what.replace("native grid", f"native grid, {SOME_SLICES}")
    if settings.patience is not None:
        what += "; the epoch was chosen on the same patients"
    return what + cautions(*validations)


def _predicted(
    members: Sequence[Bundle], data: DataSet, settings: TrainSettings, folds: int
) -> list[PredictedSlice]:
    """Predictions of each member for the patients that it was not trained on."""
    found: list[PredictedSlice] = []
    for fold, member in enumerate(members):
        _, held = run.Split(folds, fold, settings.seed).divide(data.cases)
        slices = calibration.HeldBack(
            held,
            data.labels,
            settings,
            most_slices=calibration.MOST_SLICES // folds,
            most_bytes=calibration.MOST_BYTES // folds,
        )
        found += slices.predict(member.network())
    return found


def _card(
    members: Sequence[Bundle], predicted: Sequence[PredictedSlice], result: dict[str, Any]
) -> dict[str, Any]:
    """The ensemble's card: what its members share, and joint calibration and figures."""
    cards = [member.card for member in members]
    training = dict(cards[0]["training"])
    training["recipe"] = {**training["recipe"], "split": None}
    training |= {
        "patients": sorted({p for card in cards for p in card["training"]["patients"]}),
        "hours": round(sum(card["training"]["hours"] for card in cards), 2),
        "members": [card["weights_sha256"] for card in cards],
    }
    for key in ("cases", "slices"):
        training.pop(key, None)
    return {
        "version": "1",
        "licence": cards[0]["licence"],
        **{key: cards[0][key] for key in SHARED if key in cards[0]},
        "members": len(members),
        **calibration.calibrate(predicted),
        "training": training,
        "validation": {
            "what": f"of the members, not of the ensemble, which has no patient left: "
            f"{result['what']}",
            "patients": result["patients"],
            **result["summary"],
        },
        "weights_sha256": "",
    }
