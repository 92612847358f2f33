"""The command that scores a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from napari_pancreas_seg.cli.app import command
from napari_pancreas_seg.cli.open import given_masks
from napari_pancreas_seg.cli.options import (
    Classes,
    Layout,
    MaskLabel,
    Model,
    NoPostprocess,
    Overwrite,
    Threshold,
    parse_classes,
)
from napari_pancreas_seg.cli.terminal import Bar, echo, echo_page, fail_naming, quiet


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
    label: MaskLabel = None,
    classes: Classes = None,
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
    from napari_pancreas_seg.io.files import check_folder, check_target, write_json, write_text

    if references is not None and (classes or layout):
        raise typer.BadParameter(
            "--classes and --layout are for a data set, and with --references there is none"
        )
    for target in filter(None, (output, markdown)):
        check_target(target, overwrite=overwrite)
        check_folder(target.parent)
    with quiet(), Bar() as bar:
        from napari_pancreas_seg.training.judge.evaluation import evaluate as run
        from napari_pancreas_seg.training.judge.tables import evaluation_markdown

        data = run(
            dataset,
            model,
            references=references,
            labels=parse_classes(classes),
            layout=layout,
            every_patient=every_patient,
            threshold=threshold,
            postprocess=not no_postprocess,
            also=given_masks(also, label, None),
            on_case=lambda done, total: bar.stage("scoring", done, total),
        )
    page = evaluation_markdown(data)
    echo_page(page.splitlines())
    if output is not None:
        write_json(output, data, overwrite=overwrite)
    if markdown is not None:
        write_text(markdown, page, overwrite=overwrite)
    failed, unread = data["not_scored"], data["not_compared"]
    for name, reason in (*failed.items(), *unread.items()):
        echo(f"{name}: failed: {reason}", err=True)
    if failed:
        fail_naming(f"{len(failed)} of {data['cases']} cases could not be scored", list(failed))
    if unread and also is not None:
        fail_naming(f"{len(unread)} of the masks in {also} could not be compared", list(unread))
