"""The command ``napari-pancreas-seg``: parses, calls, prints.

What does the work is imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from napari_pancreas_seg.cli.grouped import GroupedCommand
from napari_pancreas_seg.cli.terminal import Bar, guarded, quiet
from napari_pancreas_seg.errors import PancreasSegError

if TYPE_CHECKING:
    from napari_pancreas_seg.cohort.steps import CaseResult

__all__ = ["app", "main"]

logger = logging.getLogger("napari_pancreas_seg")

app = typer.Typer(
    name="napari-pancreas-seg",
    help="Find the pancreas in abdominal CT with an Attention U-Net.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    args : list of str, optional
        Arguments; those of the process by default.

    Returns
    -------
    int
        Exit status: 0, 1 for what went wrong, 2 for wrong usage, 130 when cancelled.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name may not fit the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        app(args=args, prog_name="napari-pancreas-seg")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command."""
    app.command(cls=GroupedCommand)(guarded(function))
    return function


def _version(asked: bool) -> None:
    if asked:
        from napari_pancreas_seg import __version__

        typer.echo(f"napari-pancreas-seg {__version__}")
        raise typer.Exit


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|gpu(:\d+)?", value):
        raise typer.BadParameter("give auto, cpu, gpu or gpu:N")
    return value


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


@app.callback()
def _global(
    debug: Annotated[bool, typer.Option("--debug", help="Log in detail, tracebacks too.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.ERROR)
    if debug:
        logger.setLevel(logging.DEBUG)
    else:
        # Set here and not on import: who imports this module keeps an untouched environment.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        warnings.simplefilter("ignore")


Model = Annotated[str, typer.Option(metavar="NAME_OR_PATH", help="Name or path of a model.")]
Localiser = Annotated[
    str | None,
    typer.Option(
        metavar="NAME_OR_PATH",
        help="For a model that is the second stage of a cascade: the model that finds the gland; "
        "the one that its card names by default.",
    ),
]
Device = Annotated[
    str,
    typer.Option(metavar="auto|cpu|gpu|gpu:N", callback=_device, help="Where the network runs."),
]


@command
def segment(
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT", help="CTs or folders of them.")],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help="A file for one INPUT, its ending says the format; or a folder."
        ),
    ],
    model: Model = "default",
    localiser: Localiser = None,
    attention: Annotated[
        bool, typer.Option("--attention", help="Write the attention maps too.")
    ] = False,
    probability: Annotated[
        bool, typer.Option("--probability", help="Write the probability too.")
    ] = False,
    no_postprocess: Annotated[
        bool,
        typer.Option("--no-postprocess", help="Neither smooth along z nor choose among pieces."),
    ] = False,
    every_slice: Annotated[
        bool,
        typer.Option(
            "--every-slice", help="Show the network every slice, not a sweep and the gland."
        ),
    ] = False,
    device: Device = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Slices at once; chosen for the device by default.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Probability that counts as pancreas.")
    ] = None,
    slices: Annotated[
        str | None,
        typer.Option(
            metavar="A:B",
            help="Only slices A to B - 1, counted from 0 at the feet; all by default.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist.")
    ] = False,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="SUFFIX",
            callback=_format,
            help="Ending of the masks in a folder; nii.gz by default.",
        ),
    ] = None,
    series: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER_OR_UID", help="Which series, if a DICOM folder holds several CTs."
        ),
    ] = None,
    mint_uids: Annotated[
        bool,
        typer.Option(
            "--mint-uids", help="For .dcm: make UIDs for a series that has none to refer to."
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=64,
            help="Threads that read the next CTs and write finished ones while the network works, "
            "and CTs in memory beside the one in it; 2 by default, 0 for one thing at a time.",
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Hand the CTs to the workers of a Dask cluster, such as tcp://node1:8786.",
        ),
    ] = None,
) -> None:
    """Find the pancreas in CTs and write masks onto their own grids.

    For one INPUT and -o m.nii.gz: m.nii.gz (the mask), m.json (provenance and measurements),
    and if asked for m_probability.nii.gz and m_attention_1.nii.gz (finest) and so on. Else OUTPUT
    is a folder, where NAME.nii.gz gives NAME_mask.nii.gz, NAME_mask.json and so on.

    Probability and attention lie on grids of their own, at the resolution of the network, with
    values from 0 to 1; 0 where nothing was computed. They overlay the CT in any viewer.

    A mask is written as a volume (.nii.gz, .nii, .nrrd, .nhdr, .mha, .mhd), as DICOM-SEG (.dcm)
    where the CT is a DICOM series, as a closed surface in mm (.stl, .ply, .obj), or as a row of
    measurements (.csv).

    A folder also gets cohort.csv: measurements of every case, or why it failed. Run again, the
    command goes on where it stopped: what was made from the same CT in the same way stays, and
    other files are replaced with --overwrite only.
    """
    from napari_pancreas_seg.cli.reporter import CohortReporter
    from napari_pancreas_seg.cohort.cases import TABLE, find_inputs, plan
    from napari_pancreas_seg.cohort.resume import OutputOptions
    from napari_pancreas_seg.cohort.run import WORKERS, segment_cases
    from napari_pancreas_seg.inference.result import Options

    if scheduler is not None and workers is not None:
        raise typer.BadParameter(
            "--workers is for this machine; on a cluster 'dask worker --nthreads' says how many"
        )

    options = Options(
        device,
        batch_size,
        threshold,
        not no_postprocess,
        every_slice=every_slice,
        slices=_slice_range(slices),
        localiser=localiser,
    )
    cases = plan(find_inputs(inputs), output, format, series)
    in_folder = any(case.mask != output for case in cases)
    wanted = OutputOptions(attention, probability, overwrite, mint_uids, resume=in_folder)
    with quiet(), Bar(len(cases)) as bar:
        results: Generator[CaseResult]
        if scheduler is None:
            beside = WORKERS if workers is None else workers
            results = segment_cases(
                cases, model, options, wanted, workers=beside, on_progress=bar.show
            )
        else:
            from napari_pancreas_seg.cohort.cluster.client import segment_on_cluster

            results = segment_on_cluster(
                scheduler, cases, model, options, wanted, on_progress=bar.count
            )
        with contextlib.closing(results):
            tally = CohortReporter(cases, output / TABLE if in_folder else None)
            tally.follow(results, bar)
    tally.finish()


@command
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")] = Path(
        "demo"
    ),
    view: Annotated[bool, typer.Option("--view", help="Open the result in napari.")] = False,
    model: Model = "default",
    device: Device = "auto",
) -> None:
    """Make a synthetic CT, segment it and draw it, all offline.

    The CT is made by code and shows no person: its Dice says that the program works, not how
    well it does on patients.
    """
    if view:
        _check_screen()
    from napari_pancreas_seg.cohort.demo import run_demo

    with quiet(), Bar(1) as bar:
        result = run_demo(
            output, model=model, device=device, progress=functools.partial(bar.show, 0)
        )
    typer.echo(
        f"synthetic CT: Dice {result.dice:.3f}, {result.volume_ml:.1f} mL "
        f"(true: {result.reference_volume_ml:.1f} mL), {result.seconds:.1f} s"
    )
    for path in result.files:
        typer.echo(f"  {path}")
    if view:
        _view(path for path in result.files if path.name.endswith(".nii.gz"))


def _check_screen() -> None:
    """Say at once what `--view` lacks."""
    bindings = ("PyQt6", "PySide6", "PyQt5", "PySide2")
    if not any(importlib.util.find_spec(name) for name in bindings):
        raise PancreasSegError(
            "--view needs a Qt binding for napari; install one with "
            "pip install 'napari-pancreas-seg[all]'."
        )
    seen = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
    if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in seen):
        raise PancreasSegError(
            "--view needs a screen and there is none here; leave it out and look at the overview "
            "picture."
        )


def _view(files: Iterable[Path]) -> None:
    """Open files in napari with the dock widget, in a process of its own."""
    plugin = "napari-pancreas-seg"
    arguments = [*map(str, files), "--plugin", plugin, "-w", plugin, "Pancreas segmentation"]
    if subprocess.run([sys.executable, "-m", "napari", *arguments], check=False).returncode:
        raise PancreasSegError("napari could not show the result; the files are written.")


from napari_pancreas_seg.cli import (  # noqa: E402 - register commands
    bundle,  # noqa: F401
    check,  # noqa: F401
    convert,  # noqa: F401
    dataset,  # noqa: F401
    evaluation,  # noqa: F401
    finetune,  # noqa: F401
    models,  # noqa: F401
    training,  # noqa: F401
)
