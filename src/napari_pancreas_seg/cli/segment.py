"""The command ``segment``: masks of one CT or of many."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from napari_pancreas_seg.cli.app import command
from napari_pancreas_seg.cli.open import check_there
from napari_pancreas_seg.cli.options import (
    Device,
    Force,
    MintUids,
    Model,
    NoPostprocess,
    Overwrite,
    Series,
    StructuredReport,
    Threshold,
)
from napari_pancreas_seg.cli.terminal import Bar, dispensable, echo, quiet

if TYPE_CHECKING:
    from napari_pancreas_seg.cohort.cases import Case


def _slice_range(value: str | None) -> tuple[int, int] | None:
    """Read A:B, half-open."""
    if value is None:
        return None
    first, colon, last = value.partition(":")
    if not (colon and first.strip().isdecimal() and last.strip().isdecimal()):
        raise typer.BadParameter("--slices wants two numbers such as 30:60")
    if int(first) >= int(last):
        raise typer.BadParameter("--slices wants the lower number first, and B itself is left out")
    return int(first), int(last)


def _format(value: str | None) -> str | None:
    if value is None:
        return None
    from napari_pancreas_seg.io import MASK_SUFFIXES

    suffix = f".{value.lower().removeprefix('.')}"
    if suffix not in MASK_SUFFIXES:
        known = ", ".join(name[1:] for name in MASK_SUFFIXES)
        raise typer.BadParameter(f"give one of {known}")
    return suffix


@command
def segment(
    output: Annotated[
        Path,
        Option(
            "-o", "--output", help="For one CT a file, whose ending is the format; else a folder."
        ),
    ],
    inputs: Annotated[
        list[Path] | None, Argument(metavar="INPUT", help="CTs, or folders with CTs.")
    ] = None,
    input: Annotated[
        list[Path] | None, Option("-i", "--input", help="The same as INPUT; repeatable.")
    ] = None,
    model: Model = "default",
    attention: Annotated[bool, Option("--attention", help="Write the attention maps too.")] = False,
    probability: Annotated[
        bool, Option("--probability", help="Write the probability map too.")
    ] = False,
    no_postprocess: NoPostprocess = False,
    no_second_look: Annotated[
        bool,
        Option(
            "--no-second-look",
            help="Do not look again at slices with pancreas, closer (default: do so, if the model "
            "has a network for it).",
        ),
    ] = False,
    every_slice: Annotated[
        bool,
        Option(
            "--every-slice",
            help="Run on every slice (default: a coarse sweep, then every 3 mm within the "
            "pancreas).",
        ),
    ] = False,
    device: Device = "auto",
    batch_size: Annotated[
        int | None, Option(min=1, help="Slices in a batch. Default: chosen for the device.")
    ] = None,
    threshold: Threshold = None,
    slices: Annotated[
        str | None,
        Option(
            metavar="A:B",
            help="Only slices A to B - 1, counted from the feet and from 0. Default: all.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    format: Annotated[
        str | None,
        Option(
            metavar="SUFFIX",
            callback=_format,
            help="Format of the masks in a folder. Default: nii.gz.",
        ),
    ] = None,
    series: Series = None,
    force: Force = False,
    mint_uids: MintUids = False,
    report: StructuredReport = False,
    workers: Annotated[
        int | None,
        Option(
            min=0,
            max=64,
            help="Threads that read and write CTs while the network runs. Each keeps one more CT "
            "in memory. Default: 2; 0 for one CT at a time.",
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        Option(
            metavar="ADDRESS",
            help="Run on the workers of a Dask cluster, such as tcp://node1:8786.",
        ),
    ] = None,
) -> None:
    """Find the pancreas in CTs and write masks.

    Masks lie on the CTs' own grids, voxel for voxel.

    For one CT and -o m.nii.gz: m.nii.gz (the mask), m.json (provenance and measurements), and on
    request m_probability.nii.gz and m_attention_1.nii.gz (finest) and so on. If -o is a folder,
    NAME.nii.gz gives NAME_mask.nii.gz, NAME_mask.json and so on.

    Formats: volumes (.nii.gz, .nii, .nrrd, .mha), DICOM-SEG (.dcm) if the CT is a DICOM series,
    closed surfaces in mm (.stl, .ply, .obj), a row of measurements (.csv); the last two are of the
    pancreas alone where a model finds other organs, too.

    Probability and attention maps have grids of their own, at the network's resolution, and lie
    on the CT in any viewer. Values are from 0 to 1, and 0 where nothing was computed.

    A folder also gets cohort.csv, the measurements of every case or why it failed, and index.html,
    a page to look through the masks. Run the same command again to go on after a stop: finished
    cases are kept.
    """
    from napari_pancreas_seg.cli.reporter import finish, follow
    from napari_pancreas_seg.cohort.cases import TABLE, find_inputs, plan
    from napari_pancreas_seg.cohort.run import WORKERS, segment_cases
    from napari_pancreas_seg.cohort.table import CohortTable
    from napari_pancreas_seg.inference.options import OutputOptions
    from napari_pancreas_seg.inference.result import Options
    from napari_pancreas_seg.io import report_path

    asked = [*(inputs or ()), *(input or ())]
    if not asked:
        raise typer.BadParameter("give a CT or a folder of CTs, as INPUT or with -i")
    if scheduler is not None and workers is not None:
        raise typer.BadParameter(
            "--workers is for this machine; on a cluster 'dask worker --nthreads' says how many"
        )
    within = _slice_range(slices)
    if not any(map(os.path.exists, asked)):  # else one that is missing is a case that failed
        check_there(asked)
    options = Options(
        device,
        batch_size,
        threshold,
        not no_postprocess,
        every_slice=every_slice,
        slices=within,
        second_look=not no_second_look,
    )
    cases = plan(
        find_inputs(asked, lambda text: echo(text, err=True)), output, format, series, force
    )
    for case in cases if report else ():
        report_path(case.mask)  # refused before any work
    in_folder = any(case.mask != output for case in cases)
    outputs = OutputOptions(
        attention, probability, overwrite, mint_uids, in_folder, report, pictures=in_folder
    )
    with quiet(), Bar(len(cases) if scheduler is None else 1) as bar:
        what = (cases, model, options, outputs)
        if scheduler is None:
            threads = WORKERS if workers is None else workers
            results = segment_cases(*what, workers=threads, on_progress=bar.show)
        else:
            from napari_pancreas_seg.cohort.cluster.client import segment_on_cluster

            results = segment_on_cluster(scheduler, *what, on_progress=bar.show)
        with contextlib.closing(results):
            table = CohortTable(output / TABLE, cases) if in_folder else None
            ended = follow(results, len(cases), table, bar)
    if in_folder:
        made = [result.case for result in ended if result.error is None]
        _finish_folder(output, asked if made else [], made)
    finish(ended, table)


def _finish_folder(folder: Path, inputs: list[Path], made: list[Case]) -> None:
    """Write the quality page, and remember the CTs; masks are none the worse without either."""
    from napari_pancreas_seg.cohort.page import write_page
    from napari_pancreas_seg.cohort.worklist import remember_inputs, state_folder

    with dispensable():
        echo(f"Quality page: {write_page(folder)}", err=True)
        if inputs:
            remember_inputs(folder, inputs, state_folder(), made)
