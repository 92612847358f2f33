"""The commands that train a model and score it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from napari_pancreas_seg.cli import Model, command
from napari_pancreas_seg.cli.terminal import Bar, quiet
from napari_pancreas_seg.errors import PancreasSegError

DATASET = typer.Argument(help="Folder with images/, masks/ and manifest.csv.")


@command
def train(
    dataset: Annotated[Path, DATASET],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for checkpoint, history and bundle.")
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the folder's checkpoint stands.")
    ] = False,
    architecture: Annotated[str, typer.Option(help="default, unet or article.")] = "default",
    loss: Annotated[str, typer.Option(help="mixed, or dice (the article's).")] = "mixed",
    steps: Annotated[int, typer.Option(min=1)] = 6000,
    steps_per_epoch: Annotated[
        int, typer.Option(min=1, help="A checkpoint and a validation after so many steps.")
    ] = 500,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    learning_rate: Annotated[float, typer.Option(min=0)] = 1.5e-3,
    policy: Annotated[
        str, typer.Option(help="float32, mixed_bfloat16 (processors with it) or mixed_float16.")
    ] = "float32",
    negatives: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:FIRST[:LAST]]",
            help="A CT without pancreas, or its slices from FIRST (from the feet) to before LAST.",
        ),
    ] = None,
    phantoms: Annotated[int, typer.Option(min=0, help="Synthetic phantoms to mix in.")] = 16,
    folds: Annotated[int, typer.Option(min=2, help="Parts the patients are split into.")] = 5,
    fold: Annotated[int, typer.Option(min=0, help="The part that validates.")] = 0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    about: Annotated[
        Path | None,
        typer.Option(help="JSON with fields for the card: name, version, licence, citation …"),
    ] = None,
) -> None:
    """Train a model on slices, resumable, and write it as a bundle with its card."""
    fields = _read_fields(about) if about else {}
    with quiet():
        from napari_pancreas_seg.training.fit import TrainSettings
        from napari_pancreas_seg.training.run import Split
        from napari_pancreas_seg.training.run import train as run

        settings = TrainSettings(
            architecture=architecture,
            loss=loss,
            steps=steps,
            steps_per_epoch=steps_per_epoch,
            batch_size=batch_size,
            learning_rate=learning_rate,
            policy=policy,
            seed=seed,
        )
        bundle = run(
            dataset,
            output,
            settings,
            split=Split(folds, fold, seed),
            negatives=negatives or (),
            phantoms=phantoms,
            about=fields,
            resume=resume,
            report=_line,
        )
    typer.echo(f"model: {bundle}")


def _line(epoch: dict[str, Any]) -> None:
    typer.echo("  ".join(f"{name} {value}" for name, value in epoch.items()))


def _read_fields(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PancreasSegError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise PancreasSegError(f"{path} must hold a JSON object.")
    return fields


@command
def evaluate(
    dataset: Annotated[Path, DATASET],
    model: Model = "default",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the figures to this JSON file.")
    ] = None,
    every_patient: Annotated[
        bool,
        typer.Option("--every-patient", help="Score the patients the model was trained on too."),
    ] = False,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Another threshold than the model's.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the JSON file.")] = False,
) -> None:
    """Score a model on slices: Dice per patient, slice by slice on the native grid."""
    from napari_pancreas_seg.inference.result import Progress
    from napari_pancreas_seg.io.files import check_target, write_json

    if output is not None:
        check_target(output, overwrite=overwrite)
    with quiet(), Bar(1) as bar:
        from napari_pancreas_seg.training.evaluation import evaluate as run

        result = run(
            dataset,
            model,
            every_patient=every_patient,
            threshold=threshold,
            on_slice=lambda done, total: bar.show(0, Progress("scoring", done, total)),
        )
    typer.echo(f"model {result.model}, threshold {result.threshold}")
    typer.echo("patient  slices  Dice")
    for patient, dice in result.dice.items():
        typer.echo(f"{patient:>7}  {result.slices[patient]:>6}  {dice:.4f}")
    typer.echo("  ".join(f"{name} {value}" for name, value in result.summary().items()))
    if output is not None:
        write_json(output, result.to_dict(), overwrite=overwrite)
