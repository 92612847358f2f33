"""The command ``demo``: a synthetic CT, segmented and drawn."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from napari_pancreas_seg.cli.app import command
from napari_pancreas_seg.cli.options import Device, Model, OutputFolder
from napari_pancreas_seg.cli.terminal import Bar, quiet
from napari_pancreas_seg.errors import PancreasSegError


@command
def demo(
    output: OutputFolder = Path("demo"),
    view: Annotated[bool, Option("--view", help="Open the result in napari.")] = False,
    model: Model = "default",
    device: Device = "auto",
) -> None:
    """Segment and draw a synthetic CT, all offline.

    The CT is made by code and shows no person: its Dice says that the program works, not how
    well it does on patients.
    """
    if view:
        _check_screen()
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


def _check_screen() -> None:
    """Say at once if `--view` cannot work."""
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
