"""The command ``report``: the quality page of masks that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from napari_pancreas_seg.cli.app import command
from napari_pancreas_seg.cli.open import check_there, given_masks
from napari_pancreas_seg.cli.options import MaskBy, MaskFolder, MaskLabel
from napari_pancreas_seg.cli.terminal import dispensable, echo, fail, fail_naming, quiet
from napari_pancreas_seg.errors import PancreasSegError


@command
def report(
    folder: Annotated[
        Path, Argument(metavar="OUT", help="Folder that 'segment FOLDER -o OUT' wrote.")
    ],
    ct: Annotated[
        list[Path] | None,
        Option(help="Folder of the CTs, if it was moved or is not known here; repeatable."),
    ] = None,
    masks: MaskFolder = None,
    label: MaskLabel = None,
    by: MaskBy = None,
    pairs: Annotated[
        Path | None,
        Option(
            metavar="CSV",
            help="Two CTs of a patient a row, columns 'before' and 'after': write "
            "OUT/followup.csv too.",
        ),
    ] = None,
) -> None:
    """Write the quality page OUT/index.html again.

    It has a card for each case: the mask's outline, volume, expected Dice and what was noticed.
    Masks that were changed since are drawn and measured again, as far as the CTs are found. With
    --masks and --ct, masks of another program are copied to OUT first, for the CTs that have none
    there.

    OUT/followup.csv sets the measures of both CTs of each pair side by side, with the change and
    the limit below which most changes lie where nothing has changed.
    """
    from napari_pancreas_seg.cohort.cases import TABLE
    from napari_pancreas_seg.cohort.page import adopt_cases, write_page
    from napari_pancreas_seg.cohort.pairs import write_follow_up
    from napari_pancreas_seg.cohort.table import CohortTable
    from napari_pancreas_seg.cohort.worklist import (
        known_cases,
        remember_inputs,
        remembered_inputs,
        state_folder,
    )

    given = given_masks(masks, label, by)
    check_there(ct or ())
    cts = [ct] if ct else remembered_inputs(folder, state_folder())
    if given is not None and not cts:
        raise typer.BadParameter("--masks needs the CTs: give them with --ct")
    with quiet():
        try:
            cases = known_cases(cts, folder, state_folder()) if cts else []
        except PancreasSegError as error:
            if ct or given is not None:
                raise
            cases = []  # what was remembered is no longer there
            echo(f"{error} (--ct)", err=True)
        failed = []
        if given is not None:
            table = CohortTable(folder / TABLE, cases)
            for result in adopt_cases(cases, given):
                table.add(result)
                if result.error is not None:
                    failed.append(result.case.name)
                    echo(f"{result.case.name}: {result.status}: {result.error}")
            table.write()
        page = write_page(folder, cases, echo)
    echo(f"-> {page}")
    if ct:
        with dispensable():
            remember_inputs(folder, ct, state_folder())
    if pairs is not None:
        path, missing = write_follow_up(folder, pairs)
        echo(f"-> {path}")
        if missing:
            n = "1 pair" if missing == 1 else f"{missing} pairs"
            said = f"{n} could not be compared; the column 'reason' says why."
            if not failed:
                fail(said)
            echo(said, err=True)
    if failed:
        n = "1 case has" if len(failed) == 1 else f"{len(failed)} cases have"
        fail_naming(f"{n} no mask", failed)
