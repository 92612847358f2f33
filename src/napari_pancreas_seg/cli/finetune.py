"""The commands that improve a model with your own cases, and keep these cases."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from napari_pancreas_seg.cli.app import command, command_of, group
from napari_pancreas_seg.cli.options import Classes, Overwrite, Seed, parse_classes
from napari_pancreas_seg.cli.terminal import Bar, echo, guarded, quiet
from napari_pancreas_seg.errors import PancreasSegError

PROGRESS_SECONDS = 0.25
"""Shortest time between two lines of progress for a program."""

Folder = Annotated[
    Path | None, Option(metavar="FOLDER", help="Folder of the cases. Default: the window's own.")
]


@command
def finetune(
    start: Annotated[
        str, Option("--model", metavar="MODEL", help="The model to begin with.")
    ] = "default",
    data: Annotated[
        Path | None,
        Option(
            metavar="FOLDER",
            help="CTs with masks, in any layout that 'dataset check' knows. Default: the cases "
            "that were added in the window.",
        ),
    ] = None,
    classes: Classes = None,
    output: Annotated[
        Path | None,
        Option(
            "-o",
            "--output",
            help="The new model: a folder, or a file that ends in .zip. Default: among your own "
            "models.",
        ),
    ] = None,
    name: Annotated[str | None, Option(metavar="NAME", help="Name of the new model.")] = None,
    minutes: Annotated[float, Option(min=0.1, help="Time for everything, trial included.")] = 10.0,
    steps: Annotated[
        int | None, Option(min=1, help="Steps instead of minutes: repeatable by the seed.")
    ] = None,
    batch_size: Annotated[int, Option(min=1, help="Slices in a step.")] = 8,
    forgets_at_most: Annotated[
        float, Option(min=0, max=1, metavar="DICE", help="Most Dice to lose on usual CTs.")
    ] = 0.02,
    anyway: Annotated[
        bool, Option("--anyway", help="Keep the new model even if it has forgotten more.")
    ] = False,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    # For a program: a line of JSON for each step and for the result; ends when stdin does.
    json_progress: Annotated[bool, Option("--json-progress", hidden=True)] = False,
) -> None:
    """Improve a model with your own corrected cases.

    It takes minutes and no GPU. The new model is a bundle of its own; the first one stays. A trial
    without some of your patients tells whether the model became better on them. It also learns
    from copies of your slices with usual grey values, and measures what it has forgotten of such.
    """
    if json_progress:
        _end_with_parent()
    from napari_pancreas_seg.training.data.layouts import corrected_cases

    cases = data or corrected_cases.corrected_cases_folder()
    if data is None and not corrected_cases.list_corrected_cases(cases):
        raise PancreasSegError(
            "There is no case to learn from yet: add one in the window or with 'corrections add', "
            "or give a folder with --data."
        )
    printed_at, printed = 0.0, ""
    with quiet(), Bar() as bar:
        from napari_pancreas_seg.training.finetune.run import FinetuneSettings
        from napari_pancreas_seg.training.finetune.run import finetune as run

        def report(stage: str, share: float, left: float | None) -> None:
            nonlocal printed_at, printed
            bar.stage(stage, round(100 * share), 100)
            now = time.monotonic()
            if json_progress and (stage != printed or now - printed_at >= PROGRESS_SECONDS):
                printed_at, printed = now, stage
                line = {"stage": stage, "share": share, "seconds_left": left}
                typer.echo(json.dumps(line))  # flushes

        try:
            found = run(
                cases,
                output,
                start,
                labels=parse_classes(classes),
                settings=FinetuneSettings(minutes, steps, batch_size, forgets_at_most, seed),
                name=name,
                anyway=anyway,
                overwrite=overwrite,
                report=report,
            )
        except PancreasSegError as error:
            if not json_progress:
                raise
            raise PancreasSegError(error.in_window) from error
    if json_progress:
        from napari_pancreas_seg.training.judge.scores import rounded

        typer.echo(json.dumps({"result": rounded(found)}))
    else:
        _print(found, own=output is None)


def _print(found: dict[str, Any], *, own: bool) -> None:
    plural = "patient" if found["patients"] == 1 else "patients"
    echo(f"learnt from {found['slices']} slices of {found['patients']} {plural}")
    typer.echo(f"{'Dice':34}  {'n':>3}  before   after")
    _row("your patients, held out", found["held_out"])
    _row("your patients, usual grey values", found["usual"])
    _row("the synthetic CT", found["guard"])
    for note in found["notes"]:
        echo(note)
    if found["better"] is False:
        echo("It did not become better on your patients: keep using the former model.")
    echo(f"model: {found['model']}")
    use = found["name"] if own else found["model"]
    use = f'"{use}"' if " " in use else use
    echo(f"use it with: napari-pancreas-seg segment CT -o MASK --model {use}")


def _row(what: str, gain: dict[str, Any]) -> None:
    if gain["n"]:
        typer.echo(f"{what:34}  {gain['n']:>3}  {gain['before']:.3f}    {gain['after']:.3f}")


def _end_with_parent() -> None:
    """End when standard input does: the program that started this one is gone, or cancels."""
    if hasattr(os, "nice"):
        os.nice(10)  # somebody sits at the window

    def wait() -> None:
        # Not by way of `sys.stdin`: its lock would be held when the interpreter ends.
        while os.read(0, 4096):
            pass
        os._exit(130)

    threading.Thread(target=wait, daemon=True).start()


corrections = group(
    "corrections", "List, add or remove your own corrected cases.", no_args_is_help=False
)


@corrections.callback(invoke_without_command=True)
@guarded
def list_(context: typer.Context, folder: Folder = None) -> None:
    """List the cases."""
    context.obj = folder  # what holds for a subcommand that names no other
    if context.invoked_subcommand is not None:
        return
    from napari_pancreas_seg.training.data.layouts.corrected_cases import list_corrected_cases

    place = _store(context, folder)
    cases = list_corrected_cases(place)
    for case in cases:
        n = "all slices" if case.reviewed is None else f"{len(case.reviewed)} slices"
        whose = "" if case.patient == case.name else f", patient {case.patient}"
        echo(f"{case.name}: {n}{whose}, added {case.added[:10]}")
    plural = "case" if len(cases) == 1 else "cases"
    echo(f"{len(cases)} {plural} in {place}", err=True)


@command_of(corrections)
def add(
    context: typer.Context,
    ct: Annotated[Path, Argument(metavar="CT", help="A CT.")],
    mask: Annotated[Path, Argument(metavar="MASK", help="Its corrected mask.")],
    slices: Annotated[
        str | None,
        Option(
            metavar="A:B,C,…",
            help="Slices whose mask is right, counted from the feet and from 0; A:B are the slices "
            "A to B - 1. Default: all.",
        ),
    ] = None,
    patient: Annotated[
        str | None, Option(help="A pseudonym, if several CTs are of one patient.")
    ] = None,
    folder: Folder = None,
    overwrite: Annotated[
        bool, Option("--overwrite", help="Replace the mask of a CT that is there.")
    ] = False,
) -> None:
    """Add a CT and its corrected mask.

    Of their headers, only the geometry is kept.
    """
    from napari_pancreas_seg.io import load_ct, load_mask
    from napari_pancreas_seg.io.alignment import bring_onto
    from napari_pancreas_seg.training.data.layouts.corrected_cases import add_corrected_case

    volume = load_ct(ct)
    labels, on = load_mask(mask)
    labels = bring_onto(volume, labels, on, mask.name)
    case = add_corrected_case(
        _store(context, folder), volume, labels, _slices(slices), patient, replace=overwrite
    )
    echo(f"{case.name}: added to {case.folder.parent}")
    for source, notes in ((ct, volume.notes), (mask, on.notes)):
        for note in notes:
            echo(f"{source.name}: {note}", err=True)


@command_of(corrections)
def remove(
    context: typer.Context,
    name: Annotated[str, Argument(metavar="NAME", help="As `corrections` lists it.")],
    folder: Folder = None,
) -> None:
    """Remove a case."""
    from napari_pancreas_seg.training.data.layouts.corrected_cases import remove_corrected_case

    remove_corrected_case(_store(context, folder), name)
    echo(f"{name}: removed")


def _store(context: typer.Context, folder: Path | None) -> Path:
    """Folder of the cases, given before or after the subcommand."""
    from napari_pancreas_seg.training.data.layouts.corrected_cases import corrected_cases_folder

    return folder or context.obj or corrected_cases_folder()


def _slices(text: str | None) -> list[int] | None:
    """Read A:B,C."""
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        first, colon, last = part.strip().partition(":")
        if not first.isdecimal() or (colon and not last.isdecimal()):
            raise typer.BadParameter("--slices wants numbers such as 30:60,72")
        some = range(int(first), int(last) if colon else int(first) + 1)
        if not some:
            raise typer.BadParameter(f"--slices: '{part.strip()}' holds no slice")
        found += some
    return found
