"""The command that trains models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from napari_pancreas_seg.cli.app import command
from napari_pancreas_seg.cli.options import Classes, DataSetFolder, Layout, parse_classes
from napari_pancreas_seg.cli.terminal import Bar, echo, quiet


def _under(heading: str) -> Callable[..., Any]:
    """Make options that `--help` lists under a heading."""
    return lambda help, *names, **more: Option(*names, help=help, rich_help_panel=heading, **more)


_data, _recipe = _under("What to learn from"), _under("Recipe")
_length, _split, _machine = _under("How long"), _under("Patients held back"), _under("Machine")


@command
def train(
    dataset: DataSetFolder,
    output: Annotated[
        Path, Option("-o", "--output", help="Folder for checkpoint, curves and the model.")
    ],
    resume: Annotated[
        bool, Option("--resume", help="Go on from the checkpoint in the folder.")
    ] = False,
    about: Annotated[
        Path | None,
        Option(help="JSON with fields for the card: name, version, licence, citation …"),
    ] = None,
    layout: Layout = None,
    classes: Classes = None,
    preset: Annotated[
        str | None,
        _data(
            "Classes and recipe of a task: pancreas-tumour, or organs (pancreas, liver, spleen, "
            "kidneys, stomach, duodenum, gallbladder).",
            metavar="NAME",
        ),
    ] = None,
    negatives: Annotated[
        list[str] | None,
        _data(
            "A CT without pancreas, or its slices START to STOP - 1, counted from the feet and "
            "from 0; repeatable.",
            metavar="FILE[:START[:STOP]]",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        _data("Where slices of CTs are stored. Default: in the output folder.", metavar="FOLDER"),
    ] = None,
    start: Annotated[
        str | None, _recipe("Begin with the weights of this model.", metavar="MODEL")
    ] = None,
    architecture: Annotated[str, _recipe("default, unet or article.")] = "default",
    loss: Annotated[str, _recipe("mixed, or dice (the article's).")] = "mixed",
    window: Annotated[
        list[str] | None,
        _recipe(
            "HU window of an input channel, within 0 and 255; repeatable. Default: 0:255, 40:150 "
            "and 80:140.",
            metavar="LOW:HIGH",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, _recipe("Slices in a step.", min=1)] = 8,
    learning_rate: Annotated[float, _recipe("Learning rate after the warm-up.", min=0)] = 1.5e-3,
    seed: Annotated[int, _recipe("Seed of all random numbers.", min=0)] = 0,
    steps: Annotated[int, _length("Steps of the whole training.", min=1)] = 6000,
    steps_per_epoch: Annotated[
        int, _length("Steps between two checkpoints and validations.", min=1)
    ] = 500,
    patience: Annotated[
        int | None,
        _length(
            "Stop after this many epochs without a better validation Dice, and keep the network of "
            "the best epoch.",
            min=1,
        ),
    ] = None,
    folds: Annotated[int, _split("Number of parts to split the patients into.", min=2)] = 5,
    fold: Annotated[
        int | None, _split("The part to validate on, counted from 0. Default: 0.", min=0)
    ] = None,
    all_folds: Annotated[
        bool,
        _split(
            "Cross-validate: train on every fold, score each patient with the network that never "
            "saw them, and join the networks to an ensemble.",
            "--all-folds",
        ),
    ] = False,
    calibrated_by: Annotated[
        str | None,
        _split(
            "Train on every patient. Take threshold, temperature and confidence from this model, "
            "which was trained by the same recipe and held patients back.",
            metavar="MODEL",
        ),
    ] = None,
    policy: Annotated[
        str,
        _machine(
            "Precision: float32, mixed_bfloat16, mixed_float16, or auto (the best for the GPU)."
        ),
    ] = "auto",
    devices: Annotated[str, _machine("Number of GPUs that share a batch.", metavar="N|all")] = "1",
    deterministic: Annotated[
        bool, _machine("Compute the same bits every time; slower.", "--deterministic")
    ] = False,
    # No training has synthetic CTs any more; commands that asked for none still run.
    phantoms: Annotated[int, Option("--phantoms", min=0, max=0, hidden=True)] = 0,
) -> None:
    """Train a model on a data set.

    The model is a bundle with its card. While it runs, the output folder shows curves.png and
    history.csv, and files for TensorBoard if that is installed. Ctrl+C stops it; --resume goes on.
    """
    if all_folds and calibrated_by:
        raise typer.BadParameter("--all-folds and --calibrated-by do not go together")
    if fold is not None and (all_folds or calibrated_by):
        raise typer.BadParameter("--fold is for a training that holds one part back")
    recipe: dict[str, Any] = {"architecture": architecture, "loss": loss, "batch_size": batch_size}
    recipe |= {"learning_rate": learning_rate, "seed": seed, "policy": policy}
    recipe |= {"steps": steps, "steps_per_epoch": steps_per_epoch, "patience": patience}
    if window:
        recipe["windows"] = parse_windows(window)
    labels = parse_classes(classes)
    options: dict[str, Any] = {"start": start, "negatives": negatives or (), "resume": resume}
    options |= {"devices": devices, "deterministic": deterministic}
    with quiet(), Bar() as bar:
        bar.stage("starting", 0, 1)
        from napari_pancreas_seg.io.files import read_json
        from napari_pancreas_seg.training.crossvalidation import cross_validate
        from napari_pancreas_seg.training.fit.presets import open_for
        from napari_pancreas_seg.training.run import Split, default_cache
        from napari_pancreas_seg.training.run import train as run

        data, settings = open_for(dataset, recipe, preset, labels, layout)
        n, patients, names = len(data.cases), len(data.patients), ", ".join(data.labels)
        bar.echo(f"{data.layout}: {n} cases of {patients} patients; classes: {names}")
        for note in data.notes:
            bar.echo(note)
        options |= {"about": read_json(about) if about else {}, "log": bar.echo, "show": bar.stage}
        options["cache"] = cache or default_cache(data, output)
        if all_folds:
            bundle = cross_validate(data, output, settings, folds=folds, **options)
        else:
            split = None if calibrated_by else Split(folds, fold or 0, seed)
            options |= {"split": split, "calibrated_by": calibrated_by}
            bundle = run(data, output, settings, **options)
    _echo_result(bundle)


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


def _echo_result(bundle: Path) -> None:
    from napari_pancreas_seg.model.bundle import load_card

    found = load_card(bundle).get("validation", {})
    if "mean" in found:
        interval = f" (95 % {found['low']:.3f} to {found['high']:.3f})" if "low" in found else ""
        if found["n"] == 1:
            echo(f"Dice of 1 patient: {found['mean']:.3f}")
        else:
            echo(
                f"Dice of {found['n']} patients: mean {found['mean']:.3f}{interval}, "
                f"median {found['median']:.3f}, worst {found['worst']:.3f}"
            )
    echo(f"model: {bundle}")
