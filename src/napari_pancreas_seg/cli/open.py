"""The command ``open``: a folder of CTs, one after the other, in napari."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from napari_pancreas_seg.cli.app import command
from napari_pancreas_seg.cli.options import MaskBy, MaskFolder, MaskLabel
from napari_pancreas_seg.errors import PancreasSegError

if TYPE_CHECKING:
    from napari_pancreas_seg.cohort.given import GivenMasks


@command
def open(
    folder: Annotated[
        Path, Argument(metavar="FOLDER", help="Folder of CTs, or one that segment wrote.")
    ],
    output: Annotated[
        Path | None,
        Option("-o", "--output", metavar="FOLDER", help="Where masks are. Default: as before."),
    ] = None,
    masks: MaskFolder = None,
    label: MaskLabel = None,
    by: MaskBy = None,
    only: Annotated[
        str | None,
        Option(metavar="MARK", help="Only cases marked so on the quality page, as look-again."),
    ] = None,
    marks: Annotated[
        Path | None, Option(metavar="CSV", help="The marks. Default: marks.csv in the folder.")
    ] = None,
) -> None:
    """Open a folder of CTs in napari as a worklist.

    FOLDER is what was given to segment, or the folder that it wrote. With --masks, cases without a
    mask of ours start with those: NAME.nii.gz, NAME/pancreas.nii.gz and so on for the CT
    NAME.nii.gz (NAME_0000.nii.gz). They are copied to the output folder and stay as they are.
    """
    from napari_pancreas_seg.cohort.cases import TABLE
    from napari_pancreas_seg.cohort.worklist import (
        Worklist,
        read_marks,
        remembered_inputs,
        state_folder,
    )

    if marks is not None and only is None:
        raise typer.BadParameter("--marks is for --only")
    given = given_masks(masks, label, by)
    check_screen("open")
    if not remembered_inputs(folder, state_folder()):
        check_there([folder])
    named = None
    if only is not None:
        named = read_marks(marks or output or folder, only)
    # What is wrong is said here, before a window opens.
    try:
        worklist = Worklist(folder, state_folder(), output, masks=given, only=named)
    except PancreasSegError:
        if not (folder / TABLE).is_file() or remembered_inputs(folder, state_folder()):
            raise
        raise PancreasSegError(
            f"It is not known here where the CTs of '{folder.name}' lie; give their folder, and "
            f"'-o {folder}'."
        ) from None
    if given is not None and not any(case.given for case in worklist.cases):
        raise PancreasSegError(
            f"No file in '{masks}' is named after one of the {len(worklist)} CTs; rename them as "
            "the CTs are named."
        )
    asked = {
        "folder": str(folder.absolute()),
        "output": None if output is None else str(output.absolute()),
        "masks": None if given is None else [str(given.folder), given.value, given.by],
        "only": None if named is None else sorted(named),
    }
    run_napari(["-m", "napari_pancreas_seg._napari", json.dumps(asked)])


def given_masks(
    folder: Path | None, label: Sequence[int] | None, by: str | None
) -> GivenMasks | None:
    """The masks that the options name, if there are any."""
    from napari_pancreas_seg.cohort.given import GivenMasks

    if folder is None:
        if label or by is not None:
            raise typer.BadParameter(
                "masks of another program are described, but their folder is not given"
            )
        return None
    if not folder.is_dir():
        raise PancreasSegError(f"'{folder}' is not a folder; give one with masks.")
    value = label[0] if label and len(label) == 1 else label or None
    return GivenMasks(folder.absolute(), value, by or "another program")


def check_there(paths: Iterable[Path]) -> None:
    """Refuse places that are not there."""
    for path in paths:
        if not os.path.exists(path):
            raise PancreasSegError(f"'{path}' does not exist; check the path.")


def check_screen(what: str) -> None:
    """Say at once if napari cannot be shown."""
    bindings = ("PyQt6", "PySide6", "PyQt5", "PySide2")
    if not any(importlib.util.find_spec(name) for name in bindings):
        raise PancreasSegError(
            f"{what} needs a Qt binding for napari; install one with "
            "pip install 'napari-pancreas-seg[all]'."
        )
    seen = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
    if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in seen):
        raise PancreasSegError(f"{what} needs a screen and there is none here.")


def run_napari(arguments: Sequence[str]) -> None:
    """Run napari in a process of its own, until it is closed."""
    if subprocess.run([sys.executable, *arguments], check=False).returncode:
        raise PancreasSegError("napari could not be shown; 'napari --info' may say why.")
