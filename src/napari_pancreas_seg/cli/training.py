"""The commands that train models."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_pancreas_seg.cli import command
from napari_pancreas_seg.cli.dataset import parse_classes
from napari_pancreas_seg.cli.terminal import Bar, quiet, say
from napari_pancreas_seg.errors import PancreasSegError

if TYPE_CHECKING:
    from napari_pancreas_seg.training.data.layouts import DataSet
    from napari_pancreas_seg.training.fit.loop import TrainingProgress
    from napari_pancreas_seg.training.run import Watch

DATA, RECIPE, LENGTH = "What to learn from", "Recipe", "How long"
SPLIT, MACHINE = "Patients held back", "Machine"

DATASET = typer.Argument(
    metavar="FOLDER", help="A data set of any layout; 'dataset check FOLDER' says what is in it."
)
Policy = Annotated[
    str,
    typer.Option(
        help="Precision: float32, mixed_bfloat16, mixed_float16, or auto, what a GPU is built for.",
        rich_help_panel=MACHINE,
    ),
]
Negatives = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE[:FIRST[:LAST]]",
        help="A CT without pancreas, or its slices from FIRST (from the feet) to before LAST.",
        rich_help_panel=DATA,
    ),
]
Phantoms = Annotated[
    int, typer.Option(min=0, help="Synthetic phantoms to mix in.", rich_help_panel=DATA)
]
Windows = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LOW:HIGH",
        help="HU window of an input channel, within 0 and 255; may be repeated. 0:255, 40:150 "
        "and 80:140 by default.",
        show_default=False,
        rich_help_panel=RECIPE,
    ),
]
Folds = Annotated[
    int,
    typer.Option(min=2, help="Parts the patients are split into.", rich_help_panel=SPLIT),
]
Batch = Annotated[int, typer.Option(min=1, help="Slices of a step.", rich_help_panel=RECIPE)]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.", rich_help_panel=RECIPE)]


def _devices(value: str) -> str:
    if value != "all" and not (value.isdecimal() and int(value) > 0):
        raise typer.BadParameter("give a number of devices, or all")
    return value


@command
def train(
    dataset: Annotated[Path, DATASET],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Folder for checkpoint, curves and the model."),
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the folder's checkpoint stands.")
    ] = False,
    about: Annotated[
        Path | None,
        typer.Option(help="JSON with fields for the card: name, version, licence, citation …"),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Of the data set, if looking does not tell.", rich_help_panel=DATA
        ),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=CLASS[+CLASS]",
            help="A class to learn and what of the data set it is made of; may be repeated. "
            "pancreas by default, with its tumours.",
            rich_help_panel=DATA,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Classes and recipe of a known task: pancreas-tumour (as in the Decathlon) or "
            "organs (pancreas, liver, spleen, kidneys, stomach, duodenum, gallbladder). --labels "
            "says it otherwise.",
            rich_help_panel=DATA,
        ),
    ] = None,
    negatives: Negatives = None,
    crops: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Glands without surroundings to mix into slices: images/, masks/, manifest.csv.",
            rich_help_panel=DATA,
        ),
    ] = None,
    phantoms: Phantoms = 16,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where slices of whole CTs are kept; in the output's folder by default.",
            rich_help_panel=DATA,
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Whose weights to begin with.", rich_help_panel=RECIPE),
    ] = None,
    start_share: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.99,
            help="Share that it keeps in the weights of the new model.",
            rich_help_panel=RECIPE,
        ),
    ] = 0.0,
    architecture: Annotated[
        str, typer.Option(help="default, unet or article.", rich_help_panel=RECIPE)
    ] = "default",
    loss: Annotated[
        str,
        typer.Option(help="mixed, dice (the article's) or focal_tversky.", rich_help_panel=RECIPE),
    ] = "mixed",
    stage: Annotated[
        str,
        typer.Option(
            metavar="single|fine",
            help="fine: the second stage of a cascade, on finer pixels around the gland; another "
            "model finds it.",
            rich_help_panel=RECIPE,
        ),
    ] = "single",
    localiser: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="For --stage fine: the model that is to find the gland; default if not given.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="A model whose answers the masks are mixed with; may be repeated. A patient is "
            "taught by those that never saw them, if there are any.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    teacher_share: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Weight of the teachers, above 0; the mask's is the rest. 0.5 by default.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    window: Windows = None,
    neighbours_mm: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Show the network the slices so far below and above too, instead of three HU "
            "windows; for whole CTs.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    batch_size: Batch = 8,
    learning_rate: Annotated[float, typer.Option(min=0, rich_help_panel=RECIPE)] = 1.5e-3,
    averaging: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.99999,
            help="Momentum of the average of weights; 0.999, less for a short training.",
            show_default=False,
            rich_help_panel=RECIPE,
        ),
    ] = None,
    seed: Seed = 0,
    steps: Annotated[int, typer.Option(min=1, rich_help_panel=LENGTH)] = 6000,
    steps_per_epoch: Annotated[
        int,
        typer.Option(
            min=1, help="A checkpoint and a validation after so many.", rich_help_panel=LENGTH
        ),
    ] = 500,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Stop after so many epochs without a better validation Dice, and keep the best "
            "epoch's network.",
            rich_help_panel=LENGTH,
        ),
    ] = None,
    folds: Folds = 5,
    fold: Annotated[
        int | None,
        typer.Option(min=0, help="The part that validates; 0 by default.", rich_help_panel=SPLIT),
    ] = None,
    all_folds: Annotated[
        bool,
        typer.Option(
            "--all-folds",
            help="Cross-validate: train on every fold, score every patient by the network that "
            "never saw them, and join the networks to an ensemble.",
            rich_help_panel=SPLIT,
        ),
    ] = False,
    calibrated_by: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Train on every patient, and take threshold, temperature and confidence from "
            "this model of the same recipe, which held patients back.",
            rich_help_panel=SPLIT,
        ),
    ] = None,
    policy: Policy = "auto",
    devices: Annotated[
        str,
        typer.Option(
            metavar="N|all",
            callback=_devices,
            help="GPUs that share a batch.",
            rich_help_panel=MACHINE,
        ),
    ] = "1",
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic",
            help="Compute the same bits every time; slower.",
            rich_help_panel=MACHINE,
        ),
    ] = False,
) -> None:
    """Train a model on a data set, resumable, and write it as a bundle with its card.

    Watch it in the output's folder: curves.png and history.csv are kept up to date, and
    TensorBoard's files if TensorBoard is installed. Ctrl+C stops it; --resume goes on.
    """
    fields = _read_fields(about) if about else {}
    if all_folds and calibrated_by:
        raise typer.BadParameter("--all-folds and --calibrated-by do not go together")
    if fold is not None and (all_folds or calibrated_by):
        raise typer.BadParameter("--fold is for a training that holds one part back")
    if teacher_share is not None and not teacher:
        raise typer.BadParameter("--teacher-share needs a --teacher")
    if teacher_share == 0:
        raise typer.BadParameter("--teacher-share 0 would ask no teacher; leave --teacher out")
    with quiet(), Bar(1) as bar:
        from napari_pancreas_seg.inference.result import Progress

        bar.show(0, Progress("starting", 0, 1))
        from napari_pancreas_seg.training.data.layouts import classes_in, open_dataset
        from napari_pancreas_seg.training.distillation import TEACHER_SHARE
        from napari_pancreas_seg.training.fit.loop import TrainSettings
        from napari_pancreas_seg.training.fit.presets import preset_named
        from napari_pancreas_seg.training.run import Split, default_cache
        from napari_pancreas_seg.training.run import train as run
        from napari_pancreas_seg.training.stages import stage_named

        settings = TrainSettings(
            **stage_named(stage),
            windows=_windows(window),
            architecture=architecture,
            loss=loss,
            steps=steps,
            steps_per_epoch=steps_per_epoch,
            batch_size=batch_size,
            learning_rate=learning_rate,
            start_share=start_share,
            averaging=averaging_for(steps) if averaging is None else averaging,
            neighbours_mm=neighbours_mm,
            patience=patience,
            policy=policy,
            seed=seed,
        )
        classes = parse_classes(labels)
        notes: tuple[str, ...] = ()
        if preset is not None:
            task = preset_named(preset)
            settings = replace(settings, **{**task.settings, **stage_named(stage)})
            if classes is None:
                classes, notes = task.labels(classes_in(dataset, layout=layout))
        data = open_dataset(dataset, classes, layout=layout)
        data = replace(data, notes=(*data.notes, *notes))
        with bar.paused():
            _say_what(data)
        options: dict[str, Any] = {
            "start": start,
            "localiser": localiser,
            "teachers": teacher or (),
            "teacher_share": TEACHER_SHARE if teacher_share is None else teacher_share,
            "negatives": negatives or (),
            "crops": crops,
            "phantoms": phantoms,
            "about": fields,
            "resume": resume,
            "cache": cache or default_cache(data, output),
            "devices": devices,
            "deterministic": deterministic,
        }
        if all_folds:
            from napari_pancreas_seg.training.crossvalidation import cross_validate

            found = cross_validate(
                data,
                output,
                settings,
                folds=folds,
                watch=lambda n: watch(bar, f"fold {n + 1} of {folds}: "),
                **options,
            )
            bundle = found.bundle
        else:
            bundle = run(
                data,
                output,
                settings,
                split=None if calibrated_by else Split(folds, fold or 0, seed),
                calibrated_by=calibrated_by,
                watch=watch(bar),
                **options,
            )
    _say_result(bundle)


@command
def compare(
    dataset: Annotated[Path, DATASET],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the trainings and the tables.")
    ],
    runs: Annotated[
        list[str] | None,
        typer.Option("--run", help="attention, unet, article, or a lever; all three networks."),
    ] = None,
    levers: Annotated[
        bool, typer.Option("--levers", help="Every part of the recipe by itself, on one fold.")
    ] = False,
    folds: Folds = 5,
    steps: Annotated[int, typer.Option(min=1, rich_help_panel=LENGTH)] = 3000,
    window: Windows = None,
    batch_size: Batch = 8,
    policy: Policy = "auto",
    negatives: Negatives = None,
    phantoms: Phantoms = 16,
    seed: Seed = 0,
) -> None:
    """Train networks alike and compare them on patients they never saw, as the article does."""
    with quiet():
        from napari_pancreas_seg.training.comparison import LEVERS, RUNS
        from napari_pancreas_seg.training.comparison import compare as run
        from napari_pancreas_seg.training.fit.loop import TrainSettings

        settings = TrainSettings(
            steps=steps,
            steps_per_epoch=max(1, steps // 2),
            windows=_windows(window),
            batch_size=batch_size,
            averaging=averaging_for(steps),
            policy=policy,
            seed=seed,
        )
        run(
            dataset,
            output,
            settings,
            folds=folds,
            runs=[*(runs or RUNS), *(LEVERS if levers else ())],
            negatives=negatives or (),
            phantoms=phantoms,
            report=typer.echo,
        )
    typer.echo((output / "compare.md").read_text(encoding="utf-8"))


def _windows(texts: Sequence[str] | None) -> tuple[tuple[float, float], ...]:
    """The windows asked for, or those of the recipe."""
    from napari_pancreas_seg.training.fit.recipe import WINDOWS_HU

    return tuple(map(_window, texts or ())) or WINDOWS_HU


def _window(text: str) -> tuple[float, float]:
    """Read ``40:150``."""
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError as error:
        raise typer.BadParameter(f"--window wants LOW:HIGH in HU, not '{text}'") from error


def averaging_for(steps: int) -> float:
    """Momentum of the average of weights: over an eighth of a short training."""
    return round(min(0.999, 1 - 8 / max(steps, 16)), 5)


def watch(bar: Bar, what: str = "") -> Watch:
    """Show a training in a bar, and print a line an epoch.

    Parameters
    ----------
    bar : Bar
        The bar.
    what : str
        What to begin every line with.
    """
    from napari_pancreas_seg.inference.result import Progress
    from napari_pancreas_seg.training.run import Watch

    def on_start(training: int, validation: int) -> None:
        with bar.paused():
            say(f"{what}training on {training} cases, {validation} held back")

    def on_epoch(line: dict[str, Any]) -> None:
        with bar.paused():
            say(what + epoch_line(line))

    def on_note(note: str) -> None:
        with bar.paused():
            say(what + note)

    return Watch(
        on_start=on_start,
        on_case=lambda done, total: bar.show(0, Progress(f"{what}reading", done, total)),
        on_step=lambda p: bar.show(0, Progress(what + _progress(p), p.step, p.steps)),
        on_epoch=on_epoch,
        on_note=on_note,
    )


def _progress(p: TrainingProgress) -> str:
    left = datetime.timedelta(seconds=round(p.seconds_left))
    return f"loss {p.loss:.3f}, {p.images_per_second:.1f} images/s, {left} left"


def epoch_line(line: Mapping[str, Any]) -> str:
    """One epoch of a history, for a person to read."""
    parts = [f"step {line['step']}", f"loss {line['loss']:.4f}"]
    if "validation_dice" in line:
        parts.append(f"Dice {line['validation_dice']:.4f}")
    if "threshold" in line:
        parts.append(f"at threshold {line['threshold']:g}")
    parts.append(f"{line['images_per_second']:g} images/s")
    return "  ".join(parts)


def _say_what(data: DataSet) -> None:
    patients = len({case.patient for case in data.cases})
    classes = ", ".join(data.labels)
    say(f"{data.layout}: {len(data.cases)} cases of {patients} patients; classes: {classes}")
    for note in data.notes:
        say(note)


def _say_result(bundle: Path) -> None:
    from napari_pancreas_seg.model.bundle import load_card

    found = load_card(bundle).get("validation", {})
    if "mean" in found:
        interval = f" (95 % {found['low']:.3f} to {found['high']:.3f})" if "low" in found else ""
        say(
            f"Dice of {found['n']} patients: mean {found['mean']:.3f}{interval}, "
            f"median {found['median']:.3f}, worst {found['worst']:.3f}"
        )
    say(f"model: {bundle}")


def _read_fields(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PancreasSegError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise PancreasSegError(f"{path} must hold a JSON object.")
    return fields
