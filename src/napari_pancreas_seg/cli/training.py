"""The command that trains models."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_pancreas_seg.cli.app import command
from napari_pancreas_seg.cli.options import Layout, parse_classes
from napari_pancreas_seg.cli.terminal import Bar, quiet, say

if TYPE_CHECKING:
    from napari_pancreas_seg.training.fit.loop import TrainingProgress
    from napari_pancreas_seg.training.run import Watch


def _under(heading: str) -> Callable[..., Any]:
    """Make options that `--help` lists under a heading."""

    def option(help: str | None = None, *names: str, **more: Any) -> Any:
        return typer.Option(*names, help=help, rich_help_panel=heading, **more)

    return option


_data, _recipe = _under("What to learn from"), _under("Recipe")
_length, _split, _machine = _under("How long"), _under("Patients held back"), _under("Machine")


def _devices(value: str) -> str:
    if value != "all" and not (value.isdecimal() and int(value) > 0):
        raise typer.BadParameter("give a number of devices, or all")
    return value


@command
def train(
    dataset: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="A data set of any layout; see 'dataset check FOLDER'."
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for checkpoint, curves and the model.")
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the folder's checkpoint.")
    ] = False,
    about: Annotated[
        Path | None,
        typer.Option(help="JSON with fields for the card: name, version, licence, citation …"),
    ] = None,
    layout: Layout = None,
    labels: Annotated[
        list[str] | None,
        _data(
            "A class to learn, and the data set's classes that it is made of; may be repeated. "
            "Default: pancreas, with its tumours.",
            metavar="NAME=CLASS[+CLASS]",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        _data(
            "Classes and recipe of a known task: pancreas-tumour (as in the Decathlon) or organs "
            "(pancreas, liver, spleen, kidneys, stomach, duodenum, gallbladder).",
            metavar="NAME",
        ),
    ] = None,
    negatives: Annotated[
        list[str] | None,
        _data(
            "A CT without pancreas, or its slices FIRST to LAST - 1, counted from the feet and "
            "from 0; may be repeated.",
            metavar="FILE[:FIRST[:LAST]]",
        ),
    ] = None,
    crops: Annotated[
        Path | None,
        _data(
            "Glands without surroundings to mix into slices: images/, masks/ and manifest.csv.",
            metavar="FOLDER",
        ),
    ] = None,
    phantoms: Annotated[int, _data("Number of synthetic phantoms to mix in.", min=0)] = 16,
    cache: Annotated[
        Path | None,
        _data(
            "Where slices of whole CTs are stored; default: in the output folder.", metavar="FOLDER"
        ),
    ] = None,
    start: Annotated[
        str | None, _recipe("Begin with this model's weights.", metavar="MODEL")
    ] = None,
    architecture: Annotated[str, _recipe("default, unet or article.")] = "default",
    loss: Annotated[str, _recipe("mixed, dice (the article's) or focal_tversky.")] = "mixed",
    window: Annotated[
        list[str] | None,
        _recipe(
            "HU window of an input channel, within 0 and 255; may be repeated. Default: 0:255, "
            "40:150 and 80:140.",
            metavar="LOW:HIGH",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, _recipe("Slices in a step.", min=1)] = 8,
    learning_rate: Annotated[float, _recipe(min=0)] = 1.5e-3,
    averaging: Annotated[
        float | None,
        _recipe(
            "Momentum of the average of weights. Default: 0.999, less for a short training.",
            min=0,
            max=0.99999,
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, _recipe("Seed of everything random.", min=0)] = 0,
    steps: Annotated[int, _length(min=1)] = 6000,
    steps_per_epoch: Annotated[
        int, _length("Steps between two checkpoints and validations.", min=1)
    ] = 500,
    patience: Annotated[
        int | None,
        _length(
            "Stop after this many epochs without a better validation Dice, and keep the best "
            "epoch's network.",
            min=1,
        ),
    ] = None,
    folds: Annotated[int, _split("Number of parts to split the patients into.", min=2)] = 5,
    fold: Annotated[
        int | None, _split("The part that validates, counted from 0; default: 0.", min=0)
    ] = None,
    all_folds: Annotated[
        bool,
        _split(
            "Cross-validate: train on every fold, score every patient by the network that never "
            "saw them, and join the networks to an ensemble.",
            "--all-folds",
        ),
    ] = False,
    calibrated_by: Annotated[
        str | None,
        _split(
            "Train on every patient, and take threshold, temperature and confidence from this "
            "model of the same recipe, which held patients back.",
            metavar="MODEL",
        ),
    ] = None,
    policy: Annotated[
        str,
        _machine(
            "Precision: float32, mixed_bfloat16, mixed_float16, or auto, which suits the GPU."
        ),
    ] = "auto",
    devices: Annotated[
        str, _machine("Number of GPUs that share a batch.", metavar="N|all", callback=_devices)
    ] = "1",
    deterministic: Annotated[
        bool, _machine("Compute the same bits every time; slower.", "--deterministic")
    ] = False,
) -> None:
    """Train a model on a data set.

    The model is a bundle with its card. The output folder shows how it goes: curves.png,
    history.csv, and TensorBoard's files if TensorBoard is installed. Ctrl+C stops it; --resume
    goes on.
    """
    if all_folds and calibrated_by:
        raise typer.BadParameter("--all-folds and --calibrated-by do not go together")
    if fold is not None and (all_folds or calibrated_by):
        raise typer.BadParameter("--fold is for a training that holds one part back")
    with quiet(), Bar() as bar:
        from napari_pancreas_seg.inference.result import Progress

        bar.show(0, Progress("starting", 0, 1))
        from napari_pancreas_seg.training.crossvalidation import cross_validate
        from napari_pancreas_seg.training.data.layouts import classes_in, open_dataset
        from napari_pancreas_seg.training.data.layouts.listing import read_json
        from napari_pancreas_seg.training.fit.presets import preset_named
        from napari_pancreas_seg.training.fit.recipe import (
            WINDOWS_HU,
            TrainSettings,
            averaging_for,
        )
        from napari_pancreas_seg.training.run import Split, default_cache
        from napari_pancreas_seg.training.run import train as run

        settings = TrainSettings(
            windows=parse_windows(window) or WINDOWS_HU,
            architecture=architecture,
            loss=loss,
            steps=steps,
            steps_per_epoch=steps_per_epoch,
            batch_size=batch_size,
            learning_rate=learning_rate,
            averaging=averaging_for(steps) if averaging is None else averaging,
            patience=patience,
            policy=policy,
            seed=seed,
        )
        classes = parse_classes(labels)
        notes: tuple[str, ...] = ()
        if preset is not None:
            task = preset_named(preset)
            settings = replace(settings, **task.settings)
            if classes is None:
                classes, notes = task.labels(classes_in(dataset, layout=layout))
        data = open_dataset(dataset, classes, layout=layout)
        data = replace(data, notes=(*data.notes, *notes))
        with bar.paused():
            n, patients, names = len(data.cases), len(data.patients), ", ".join(data.labels)
            say(f"{data.layout}: {n} cases of {patients} patients; classes: {names}")
            for note in data.notes:
                say(note)
        options: dict[str, Any] = {
            "start": start,
            "negatives": negatives or (),
            "crops": crops,
            "phantoms": phantoms,
            "about": read_json(about) if about else {},
            "resume": resume,
            "cache": cache or default_cache(data, output),
            "devices": devices,
            "deterministic": deterministic,
        }
        if all_folds:
            bundle = cross_validate(
                data,
                output,
                settings,
                folds=folds,
                watch=lambda n: watch(bar, f"fold {n + 1} of {folds}: "),
                **options,
            )
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


def parse_windows(texts: Sequence[str] | None) -> tuple[tuple[float, float], ...]:
    """Read windows such as ``40:150``."""
    found = []
    for text in texts or ():
        low, _, high = text.partition(":")
        try:
            found.append((float(low), float(high)))
        except ValueError as error:
            raise typer.BadParameter(f"--window wants LOW:HIGH in HU, not '{text}'") from error
    return tuple(found)


def watch(bar: Bar, what: str = "") -> Watch:
    """Show a training in a bar, and print a line an epoch that begins with `what`."""
    from napari_pancreas_seg.inference.result import Progress
    from napari_pancreas_seg.training.run import Watch

    def tell(text: str) -> None:
        with bar.paused():
            say(what + text)

    def step(p: TrainingProgress) -> None:
        left = datetime.timedelta(seconds=round(p.seconds_left))
        said = f"loss {p.loss:.3f}, {p.images_per_second:.1f} images/s, {left} left"
        bar.show(0, Progress(what + said, p.step, p.steps))

    return Watch(
        on_start=lambda n, held: tell(f"training on {n} cases, {held} held back"),
        on_case=lambda done, total: bar.show(0, Progress(f"{what}reading", done, total)),
        on_step=step,
        on_epoch=lambda line: tell(epoch_line(line)),
        on_note=tell,
    )


def epoch_line(line: Mapping[str, Any]) -> str:
    """One epoch of a history, for a person to read."""
    parts = [f"step {line['step']}", f"loss {line['loss']:.4f}"]
    if "validation_dice" in line:
        parts.append(f"Dice {line['validation_dice']:.4f}")
    if "threshold" in line:
        parts.append(f"at threshold {line['threshold']:g}")
    parts.append(f"{line['images_per_second']:g} images/s")
    return "  ".join(parts)


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
