"""The article's comparison: networks trained alike and scored on patients they never saw.

    python research/compare.py DATASET -o FOLDER [--run NAME ...] [--levers] [--folds 5] [--steps N]

Every run is trained fold by fold by `train`, each in a folder of its own, so that an
interrupted comparison goes on where it stopped. Thresholds are chosen without the patient
that they are applied to.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

import tversky  # noqa: F401  (adds its loss)
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.io.files import atomic_write, write_json
from napari_pancreas_seg.model.attention_unet import ARCHITECTURES
from napari_pancreas_seg.model.bundle import load_bundle
from napari_pancreas_seg.training.crossvalidation import out_of_fold_dice
from napari_pancreas_seg.training.data.layouts.opening import open_dataset
from napari_pancreas_seg.training.fit.augmentation import AugmentationSettings
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.folder import is_done
from napari_pancreas_seg.training.judge.scores import FAILURE_DICE, paired_difference, summarise
from napari_pancreas_seg.training.judge.tables import interval, number
from napari_pancreas_seg.training.run import (
    Experiment,
    Split,
    default_cache,
    settings_for,
    train,
)
from options import settings_of, training_parser
from teachers import TEACHER_SHARE, teaching

BASELINE = "attention"


@dataclass(frozen=True)
class Run:
    """Something to compare.

    Parameters
    ----------
    what : str
        A sentence for the table.
    changes : Mapping
        Fields of `TrainSettings` in which it differs from the baseline.
    folds : int, optional
        So many of the comparison's folds only; None for all.
    taught_by : tuple of str
        Runs, trained on the same patients before, whose networks teach this one.
    """

    what: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    folds: int | None = None
    taught_by: tuple[str, ...] = ()


RUNS = {
    BASELINE: Run("Attention U-Net, our recipe"),
    "unet": Run("plain U-Net: the same without gates", {"architecture": "unet"}),
    "article": Run(
        "the article's network and loss on our frame: 32 filters, Dice alone",
        {
            "architecture": replace(ARCHITECTURES["article"]),
            "loss": "dice",
            "side_weights": (0.0, 0.0),
        },
        folds=1,
    ),
}
"""The article's question: do gates help?"""

_ZERO: dict[str, Any] = {f.name: 0.0 for f in fields(AugmentationSettings)}
_PAIRS = dict.fromkeys(("elastic_mm", "elastic_fine_mm", "field_mm"), (0.0, 0.0))
NO_AUGMENTATION = AugmentationSettings(**_ZERO | _PAIRS)
NO_INTENSITY = replace(
    AugmentationSettings(), gamma_sd=0.0, gain=0.0, offset_hu=0.0, curve_share=0.0, bias_hu=0.0,
    noise_hu=0.0, window_share=0.0, blur_share=0.0, phase_share=0.0, fat_share=0.0, cut_share=0.0,
)  # fmt: skip
"""The geometry alone, with HU as they are."""

LEVERS = {
    "windows": Run("one channel, [0, 255] HU, instead of three", {"windows": ((0, 255),)}, 1),
    "augmentation": Run("no augmentation at all", {"augmentation": NO_AUGMENTATION}, 1),
    "intensity": Run(
        "no intensity augmentation (geometry stays)",
        {"augmentation": NO_INTENSITY},
        1,
    ),
    "deep supervision": Run("no deep supervision", {"side_weights": (0.0, 0.0)}, 1),
    "loss: Dice": Run("the article's loss instead of ours", {"loss": "dice"}, 1),
    "loss: focal Tversky": Run("focal Tversky instead of ours", {"loss": "focal_tversky"}, 1),
    "averaging": Run("last weights instead of averaged ones", {"averaging": 0.0}, 1),
    "frame": Run(
        "the frame on the body's centre, not shifted towards the gland",
        {"frame": FrameSpec(offset_mm=(0.0, 0.0))},
        1,
    ),
    "filters 24": Run(
        "24 filters instead of 16, 2.2 times the cost",
        {"architecture": replace(ARCHITECTURES["default"], filters=24)},
        1,
    ),
    "dropout": Run(
        "no dropout", {"architecture": replace(ARCHITECTURES["default"], dropout=0.0)}, 1
    ),
    "filters 32": Run(
        "32 filters instead of 16, 4 times the cost",
        {"architecture": replace(ARCHITECTURES["default"], filters=32)},
        1,
    ),
    "distillation": Run(
        "masks mixed in equal parts with the mean of the networks attention, windows and deep "
        "supervision, of the same patients",
        folds=1,
        taught_by=(BASELINE, "windows", "deep supervision"),
    ),
}
"""Parts of the recipe, each taken out, added or changed by itself, on one fold."""


def compare(
    dataset: Path,
    output: Path,
    settings: TrainSettings,
    *,
    folds: int = 5,
    runs: Sequence[str] = tuple(RUNS),
    negatives: Sequence[str] = (),
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train every run on the same folds with the same steps and seeds, and set them side by side.

    Parameters
    ----------
    dataset : Path
        Folder in any layout that `open_dataset` knows.
    output : Path
        Folder for the trainings, ``compare.json`` and ``compare.md``. What is done there already
        must be of the same settings and patients, and is not trained again.
    settings : TrainSettings
        The recipe that all runs share.
    folds : int
        Parts into which the patients are split.
    runs : sequence of str
        Names in `RUNS` and `LEVERS`; the baseline is always among them.
    negatives
        See `train`.
    report : callable
        Called with a line of text whenever there is something to tell.

    Returns
    -------
    dict
        What is written to ``compare.json``.

    Raises
    ------
    PancreasSegError
        If a run is not known, or `train` refuses: what is there already, for instance.
    """
    known = {**RUNS, **LEVERS}
    for name in runs:
        if name not in known:
            raise PancreasSegError(f"There is no run {name!r}; known are {', '.join(known)}.")
    data = open_dataset(dataset)
    taught_by = [teacher for name in runs for teacher in known[name].taught_by]
    chosen = list(dict.fromkeys([BASELINE, *taught_by, *runs]))
    for name in dict.fromkeys([*chosen, *known]):
        wanted = range(min(folds, known[name].folds or folds)) if name in chosen else ()
        for fold in range(folds):
            folder = run_folder(output, name, fold)
            # What is done comes into the tables whether asked for or not: `train` checks that too.
            if fold not in wanted and not is_done(folder):
                continue
            recipe = settings_for(replace(settings, **known[name].changes), data)
            experiment = Experiment()
            if known[name].taught_by:
                by = [
                    load_bundle(run_folder(output, teacher, fold) / "bundle")
                    for teacher in known[name].taught_by
                ]
                experiment = teaching(by, recipe, [*data.labels], TEACHER_SHARE)
            train(
                data,
                folder,
                recipe,
                split=Split(folds, fold, settings.seed),
                experiment=experiment,
                negatives=negatives,
                resume=True,
                once=True,
                cache=default_cache(data, output),
                log=lambda text, what=f"{name}, fold {fold}: ": report(what + text),
            )
    return gather(output, settings, folds)


def run_folder(output: Path, name: str, fold: int) -> Path:
    """Folder of one training of a comparison."""
    return Path(output) / f"{name.replace(':', '').replace(' ', '-')}-fold{fold}"


def gather(output: Path, settings: TrainSettings, folds: int) -> dict[str, Any]:
    """Gather what has been trained in a folder, and write ``compare.json`` and ``compare.md``."""
    known = {**RUNS, **LEVERS}
    found = {
        name: out_of_fold_dice(run_folder(output, name, fold) for fold in range(folds))
        for name in known
    }
    found = {name: dice for name, dice in found.items() if dice}
    base = found[BASELINE]
    result = {
        "what": "Dice per patient on the native grid, slice by slice, out of fold, no "
        "post-processing; each patient's threshold was chosen on the run's other patients",
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "folds": folds,
        "seed": settings.seed,
        "runs": [_run_entry(output, n, known[n], found[n], settings) for n in RUNS if n in found],
        "differences": [_difference(BASELINE, base, n, found[n]) for n in RUNS if n in found][1:],
        "levers": [
            lever_entry(
                name, LEVERS[name].what, base, found[name], f"networks of {settings.steps} steps"
            )
            for name in LEVERS
            if name in found
        ],
    }
    write_json(Path(output) / "compare.json", result, overwrite=True)
    with atomic_write(Path(output) / "compare.md", overwrite=True) as file:
        file.write(_markdown(result).encode())
    return result


def _run_entry(
    output: Path, name: str, run: Run, dice: Mapping[str, float], settings: TrainSettings
) -> dict[str, Any]:
    changed = replace(settings, **run.changes)
    hours, trained = 0.0, []
    for path in sorted(Path(output).glob(run_folder(output, name, 0).name[:-1] + "*/history.json")):
        history = json.loads(path.read_text(encoding="utf-8"))
        hours += sum(line["seconds"] for line in history) / 3600
        trained.append(int(path.parent.name.rsplit("fold", 1)[1]))
    return {
        "name": name,
        "what": run.what,
        "architecture": changed.resolved_architecture().to_dict(),
        "loss": changed.loss,
        "windows": [list(window) for window in changed.windows],
        "folds": trained,
        "steps": settings.steps,
        "hours": round(hours, 2),
        "patients": {p: round(d, 4) for p, d in dice.items()},
        "summary": {
            **summarise(dice.values()),
            f"below_{FAILURE_DICE}": sum(d < FAILURE_DICE for d in dice.values()),
        },
    }


def _difference(
    a: str, dice_a: Mapping[str, float], b: str, dice_b: Mapping[str, float]
) -> dict[str, Any]:
    """Paired difference a - b over the patients that both have, with its interval."""
    return {"a": a, "b": b, **paired_difference(dice_a, dice_b)}


def lever_entry(
    name: str, what: str, base: Mapping[str, float], dice: Mapping[str, float], measured_on: str
) -> dict[str, Any]:
    """A line of the table of levers.

    Parameters
    ----------
    name, what : str
        The lever, and what is changed.
    base, dice : Mapping of str to float
        Dice of patients with the recipe as it is, and with the change; those in both count.
    measured_on : str
        Which networks these are figures of.
    """
    gap = _difference(name, dice, BASELINE, base)
    both = sorted(base.keys() & dice.keys())
    return {
        "lever": name,
        "what": what,
        "measured_on": measured_on,
        "n": gap["n"],
        "dice_recipe": round(float(np.mean([base[p] for p in both])), 4),
        "dice_changed": round(float(np.mean([dice[p] for p in both])), 4),
        "difference": gap["mean"],
        **{end: gap[end] for end in ("low", "high") if end in gap},
    }


def _markdown(result: Mapping[str, Any]) -> str:
    lines = [
        f"{result['what']}. {result['steps']} steps of {result['batch_size']} slices, "
        f"{result['folds']} folds by patient, seed {result['seed']}; 95 % bootstrap intervals "
        "over patients.",
        "",
        "| network | n | mean (95 %) | SD | median | worst | below 0.5 | hours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in result["runs"]:
        s = run["summary"]
        lines.append(
            f"| {run['what']} | {s['n']} | {s['mean']:.3f}{interval(s)} | "
            f"{number(s.get('sd'))} | {s['median']:.3f} | {s['worst']:.3f} | {s['below_0.5']} | "
            f"{run['hours']} |"
        )
    lines += ["", "| paired difference | n | mean (95 %) |", "| --- | --- | --- |"]
    for gap in result["differences"]:
        lines.append(
            f"| {gap['a']} − {gap['b']} | {gap['n']} | {gap['mean']:+.3f}{interval(gap, '+.3f')} |"
        )
    if result["levers"]:
        lines += [
            "",
            "| lever | the change | n | Dice | Dice with the change | difference (95 %) |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
    for lever in result["levers"]:
        lines.append(
            f"| {lever['lever']} | {lever['what']} | {lever['n']} | {lever['dice_recipe']:.3f} | "
            f"{lever['dice_changed']:.3f} | {lever['difference']:+.3f}{interval(lever, '+.3f')} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing, and print the tables."""
    parser = training_parser(__doc__, steps=3000)
    parser.add_argument(
        "--run", action="append", metavar="NAME",
        help="attention, unet, article, or a lever; by default all three networks",
    )  # fmt: skip
    parser.add_argument(
        "--levers", action="store_true", help="every part of the recipe by itself, on one fold"
    )
    asked = parser.parse_args(arguments)
    try:
        compare(
            asked.dataset,
            asked.output,
            settings_of(asked),
            folds=asked.folds,
            runs=[*(asked.run or RUNS), *(LEVERS if asked.levers else ())],
            negatives=asked.negatives,
            report=lambda line: print(line, flush=True),
        )
    except PancreasSegError as error:
        print(error, file=sys.stderr)
        return 1
    print((asked.output / "compare.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
