"""The commands about models: which there are, and the page that describes one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from napari_pancreas_seg.cli import app
from napari_pancreas_seg.cli.terminal import guarded, say

group = typer.Typer(help="List the models there are, with their cards; or describe one.")
app.add_typer(group, name="models")


@group.callback(invoke_without_command=True)
@guarded
def models(context: typer.Context) -> None:
    """List the models there are, with their cards."""
    if context.invoked_subcommand is not None:
        return
    from napari_pancreas_seg.model.bundle import list_models

    for entry in list_models():
        say(f"{entry.name} ({entry.origin})")
        for key, value in entry.card.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            say(f"  {key}: {text}")


@group.command()
@guarded
def card(
    model: Annotated[
        str, typer.Argument(metavar="NAME_OR_PATH", help="Name or path of a model.")
    ] = "default",
    evaluation: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON",
            help="What `evaluate -o` wrote of this model, or of one trained like it that held "
            "patients back.",
        ),
    ] = None,
    folds: Annotated[
        list[Path] | None,
        typer.Option(
            "--fold",
            metavar="JSON",
            help="What `evaluate -o` wrote of a fold's network; once for each fold.",
        ),
    ] = None,
    comparisons: Annotated[
        list[Path] | None,
        typer.Option(
            "--comparison",
            metavar="JSON",
            help="What `compare` wrote; may be repeated.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The Markdown file to write.")
    ] = Path("model-card.md"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write a model's card as a page, all figures from its files and the evaluations given."""
    from napari_pancreas_seg.io.files import check_target, write_text
    from napari_pancreas_seg.model.bundle import load_bundle
    from napari_pancreas_seg.training.report import model_card, read_report

    check_target(output, overwrite=overwrite)
    bundle = load_bundle(model)
    page = model_card(
        bundle.card,
        len(bundle.weights),
        read_report(evaluation) if evaluation else None,
        [read_report(path) for path in comparisons or ()],
        [read_report(path) for path in folds or ()],
    )
    write_text(output, page, overwrite=overwrite)
    say(f"model card: {output}")
