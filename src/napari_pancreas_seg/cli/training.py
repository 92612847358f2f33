"""The commands that train a model and score it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from napari_pancreas_seg.cli import Model, command
from napari_pancreas_seg.cli.terminal import Bar, quiet
from napari_pancreas_seg.errors import PancreasSegError

Policy = Annotated[
    str, typer.Option(help="float32, mixed_bfloat16 (processors with it) or mixed_float16.")
]
Negatives = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE[:FIRST[:LAST]]",
        help="A CT without pancreas, or its slices from FIRST (from the feet) to before LAST.",
    ),
]
Phantoms = Annotated[int, typer.Option(min=0, help="Synthetic phantoms to mix in.")]
Folds = Annotated[int, typer.Option(min=2, help="Parts the patients are split into.")]
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
    start: Annotated[
        str | None, typer.Option(help="Name or path of a model whose weights to begin with.")
    ] = None,
    architecture: Annotated[str, typer.Option(help="default, unet or article.")] = "default",
    loss: Annotated[
        str, typer.Option(help="mixed, dice (the article's) or focal_tversky.")
    ] = "mixed",
    steps: Annotated[int, typer.Option(min=1)] = 6000,
    steps_per_epoch: Annotated[
        int, typer.Option(min=1, help="A checkpoint and a validation after so many steps.")
    ] = 500,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    learning_rate: Annotated[float, typer.Option(min=0)] = 1.5e-3,
    averaging: Annotated[
        float, typer.Option(min=0, max=0.99999, help="Momentum of the average of weights.")
    ] = 0.999,
    policy: Policy = "float32",
    negatives: Negatives = None,
    phantoms: Phantoms = 16,
    folds: Folds = 5,
    fold: Annotated[int, typer.Option(min=0, help="The part that validates.")] = 0,
    calibrated_by: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Train on every patient, and take threshold, temperature and confidence from "
            "this model of the same recipe, which held patients back.",
        ),
    ] = None,
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
            averaging=averaging,
            policy=policy,
            seed=seed,
        )
        bundle = run(
            dataset,
            output,
            settings,
            split=None if calibrated_by else Split(folds, fold, seed),
            start=start,
            calibrated_by=calibrated_by,
            negatives=negatives or (),
            phantoms=phantoms,
            about=fields,
            resume=resume,
            report=_line,
        )
    typer.echo(f"model: {bundle}")


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
    steps: Annotated[int, typer.Option(min=1)] = 3000,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    policy: Policy = "float32",
    negatives: Negatives = None,
    phantoms: Phantoms = 16,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train networks alike and compare them on patients they never saw, as the article does."""
    with quiet():
        from napari_pancreas_seg.training.comparison import LEVERS, RUNS
        from napari_pancreas_seg.training.comparison import compare as run
        from napari_pancreas_seg.training.fit import TrainSettings

        settings = TrainSettings(
            steps=steps,
            steps_per_epoch=max(1, steps // 2),
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


def averaging_for(steps: int) -> float:
    """Momentum of the average of weights: over an eighth of a short training."""
    return round(min(0.999, 1 - 8 / max(steps, 16)), 5)


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
    dataset: Annotated[
        Path,
        typer.Argument(
            help="Folder with images/, masks/ and manifest.csv; with --references, of CTs."
        ),
    ],
    references: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Masks to compare with, named like their CTs (or CT_pancreas)."
        ),
    ] = None,
    model: Model = "default",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the figures to this JSON file.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write them as a page of Markdown tables.")
    ] = None,
    every_patient: Annotated[
        bool,
        typer.Option("--every-patient", help="Score the patients the model was trained on too."),
    ] = False,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Another threshold than the model's.")
    ] = None,
    no_postprocess: Annotated[
        bool,
        typer.Option(
            "--no-postprocess", help="With --references: neither smooth along z nor drop pieces."
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist.")
    ] = False,
) -> None:
    """Score a model: Dice, HD95, surface Dice and more, per patient on the CTs' own grids.

    A data set of slices is scored slice by slice, without post-processing; CTs with
    --references as a whole, the way they are segmented.
    """
    from napari_pancreas_seg.inference.result import Progress
    from napari_pancreas_seg.io.files import check_target, write_json, write_text

    for target in filter(None, (output, markdown)):
        check_target(target, overwrite=overwrite)
    with quiet(), Bar(1) as bar:
        from napari_pancreas_seg.training.evaluation import evaluate as run
        from napari_pancreas_seg.training.evaluation import evaluate_volumes

        common: dict[str, Any] = {
            "every_patient": every_patient,
            "threshold": threshold,
            "on_case": lambda done, total: bar.show(0, Progress("scoring", done, total)),
        }
        result = (
            run(dataset, model, **common)
            if references is None
            else evaluate_volumes(
                dataset, references, model, postprocess=not no_postprocess, **common
            )
        )
    data = result.to_dict()
    _print_evaluation(result.model, data)
    if output is not None:
        write_json(output, data, overwrite=overwrite)
    if markdown is not None:
        from napari_pancreas_seg.training.report import evaluation_markdown

        write_text(markdown, evaluation_markdown(data), overwrite=overwrite)


def _print_evaluation(model: str, data: dict[str, Any]) -> None:
    from napari_pancreas_seg.training.report import FIGURES

    shown = ("dice", "hd95_mm", next(n for n in FIGURES if n.startswith("surface_dice")))
    typer.echo(f"model {model}, threshold {data['threshold']}")
    for what in ("surfaces", "spacing", "postprocessing", "seen_in_training"):
        typer.echo(f"{what.replace('_', ' ')}: {data['how'][what]}")
    width = max(len("patient"), *map(len, data["patients"]))
    headings = "  ".join(f"{FIGURES[n]:>17}" for n in shown)
    typer.echo(f"{'patient':>{width}}  slices  {headings}")
    for patient, row in data["patients"].items():
        figures = "  ".join(f"{row[n]:>17.4f}" for n in shown)
        typer.echo(f"{patient:>{width}}  {row['slices']:>6}  {figures}")
    for name in shown:
        s = data["summary"][name]
        typer.echo(
            f"{FIGURES[name]}: mean {s['mean']:.4f} (95 % interval {s['low']:.4f} to "
            f"{s['high']:.4f})  sd {s['sd']:.4f}  median {s['median']:.4f}  "
            f"worst {s['worst']:.4f}  n {s['n']}"
        )
    failed = data["failures"]
    typer.echo(
        f"failures (Dice below {failed['below']}): {len(failed['patients'])}"
        + (f": {', '.join(failed['patients'])}" if failed["patients"] else "")
    )
