"""The command that scores a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from napari_pancreas_seg.cli.app import command
from napari_pancreas_seg.cli.options import (
    Classes,
    Layout,
    Model,
    NoPostprocess,
    Overwrite,
    Threshold,
    parse_classes,
)
from napari_pancreas_seg.cli.terminal import Bar, fail_naming, quiet, say


@command
def evaluate(
    dataset: Annotated[
        Path, Argument(metavar="FOLDER", help="A data set of any layout; with --references, CTs.")
    ],
    references: Annotated[
        Path | None,
        Option(
            metavar="FOLDER", help="Masks to compare with, named like their CTs (or CT_pancreas)."
        ),
    ] = None,
    model: Model = "default",
    also: Annotated[
        Path | None,
        Option(
            metavar="FOLDER",
            help="Masks of another program, named like the cases. They are scored too, with the "
            "paired difference.",
        ),
    ] = None,
    also_value: Annotated[
        int | None,
        Option(min=1, max=255, help="Value of the pancreas in --also, if it has several organs."),
    ] = None,
    labels: Classes = None,
    layout: Layout = None,
    output: Annotated[
        Path | None, Option("-o", "--output", help="Write the figures to this JSON file.")
    ] = None,
    markdown: Annotated[
        Path | None, Option(help="Write the figures as Markdown tables to this file.")
    ] = None,
    every_patient: Annotated[
        bool, Option("--every-patient", help="Score the patients the model was trained on too.")
    ] = False,
    threshold: Threshold = None,
    no_postprocess: NoPostprocess = False,
    overwrite: Overwrite = False,
) -> None:
    """Score a model on CTs with reference masks.

    Dice, HD95, surface Dice and more, for each patient, on the CTs' own grids.
    A data set of single slices is scored slice by slice, without post-processing. CTs are segmented
    as `segment` does it. If the model has several classes, each is scored too.
    """
    from napari_pancreas_seg.io.files import check_target, write_json, write_text

    if references is not None and (labels or layout):
        raise typer.BadParameter(
            "--labels and --layout are for a data set, and with --references there is none"
        )
    for target in filter(None, (output, markdown)):
        check_target(target, overwrite=overwrite)
    cases = 0
    with quiet(), Bar() as bar:
        from napari_pancreas_seg.inference.result import Progress
        from napari_pancreas_seg.training.judge.evaluation import OtherMasks
        from napari_pancreas_seg.training.judge.evaluation import evaluate as run

        def count(done: int, total: int) -> None:
            nonlocal cases
            cases = total
            bar.show(0, Progress("scoring", done, total))

        data = run(
            dataset,
            model,
            references=references,
            labels=parse_classes(labels),
            layout=layout,
            every_patient=every_patient,
            threshold=threshold,
            postprocess=not no_postprocess,
            also=None if also is None else OtherMasks(also, also_value),
            on_case=count,
        )
    _print_evaluation(data)
    if output is not None:
        write_json(output, data, overwrite=overwrite)
    if markdown is not None:
        from napari_pancreas_seg.training.judge.tables import evaluation_markdown

        write_text(markdown, evaluation_markdown(data), overwrite=overwrite)
    if failed := data["not_scored"]:
        for name, reason in failed.items():
            say(f"{name}: failed: {reason}", err=True)
        fail_naming(f"{len(failed)} of {cases} cases could not be scored", list(failed))


def _print_evaluation(data: dict[str, Any]) -> None:
    from napari_pancreas_seg.training.judge.tables import FIGURES

    shown = ("dice", "hd95_mm", next(n for n in FIGURES if n.startswith("surface_dice")))
    say(f"model {data['model']}, threshold {data['threshold']}")
    for what in ("surfaces", "spacing", "postprocessing", "seen_in_training"):
        say(f"{what.replace('_', ' ')}: {data['how'][what]}")
    width = max(len("patient"), *map(len, data["patients"]))
    headings = "  ".join(f"{FIGURES[n]:>17}" for n in shown)
    say(f"{'patient':>{width}}  slices  {headings}")
    for patient, row in data["patients"].items():
        figures = "  ".join(f"{row[n]:>17.4f}" for n in shown)
        say(f"{patient:>{width}}  {row['slices']:>6}  {figures}")
    summaries = {FIGURES[name]: data["summary"][name] for name in shown}
    for name, found in data.get("classes", {}).items():
        summaries[f"Dice of {name}"] = found["summary"].get("dice", {"n": 0})
    for title, s in summaries.items():
        if s["n"]:
            say(
                f"{title}: mean {s['mean']:.4f} (95 % interval {s['low']:.4f} to {s['high']:.4f})"
                f"  sd {s['sd']:.4f}  median {s['median']:.4f}  worst {s['worst']:.4f}  n {s['n']}"
            )
    _print_shares(data)
    if "also" in data:
        _print_also(data["also"])


def _print_shares(data: dict[str, Any]) -> None:
    good, failed, n = data["good"], data["failures"], len(data["patients"])
    say(f"Dice of at least {good['from']}: {good['n']} of {n} patients")
    say(
        f"failures (Dice below {failed['below']}): {len(failed['patients'])} of {n}"
        + (f": {', '.join(failed['patients'])}" if failed["patients"] else "")
    )


def _print_also(also: dict[str, Any]) -> None:
    from napari_pancreas_seg.training.judge.tables import FIGURES

    say(f"masks of {also['masks']}:")
    width = max(map(len, also["patients"]))
    for patient, row in also["patients"].items():
        say(f"{patient:>{width}}  Dice {row['dice']:.4f}")
    _print_shares(also)
    for name, gap in also["ours_minus_theirs"].items():
        ours = f"{FIGURES[name]}, this model minus {also['masks']}, paired"
        say(
            f"{ours}: {gap['mean']:+.4f} (95 % interval {gap['low']:+.4f} to {gap['high']:+.4f})  "
            f"n {gap['n']}"
        )
