"""The command ``demo``: a synthetic CT, segmented and drawn."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from napari_pancreas_seg.cli.app import command
from napari_pancreas_seg.cli.open import check_screen, run_napari
from napari_pancreas_seg.cli.options import Device, Model
from napari_pancreas_seg.cli.terminal import Bar, quiet


@command
def demo(
    output: Annotated[
        Path, Option("-o", "--output", metavar="FOLDER", help="Folder to write to.")
    ] = Path("demo"),
    view: Annotated[bool, Option("--view", help="Open the result in napari.")] = False,
    model: Model = "default",
    device: Device = "auto",
) -> None:
    """Segment and draw a synthetic CT, all offline.

    The CT is made by code and shows no person: its Dice says that the program works, not how
    well it does on patients.
    """
    if view:
        check_screen("--view")
    from napari_pancreas_seg.cohort.demo import run_demo

    with quiet(), Bar() as bar:
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


def _view(files: Iterable[Path]) -> None:
    """Open files in napari with the dock widget, in a process of its own."""
    plugin = "napari-pancreas-seg"
    arguments = [*map(str, files), "--plugin", plugin, "-w", plugin, "Pancreas segmentation"]
    run_napari(["-m", "napari", *arguments])
