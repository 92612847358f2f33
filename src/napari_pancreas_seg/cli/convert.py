"""The command ``convert``: from one format to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from napari_pancreas_seg.cli import command
from napari_pancreas_seg.cli.terminal import quiet, say

__all__ = ["convert"]


@command
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="A CT, mask or map; a folder is a DICOM series.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Its ending says the format.")],
    ct: Annotated[
        Path | None,
        typer.Option(help="The CT that a mask was drawn on, for .dcm and for the HU in a .csv."),
    ] = None,
    mint_uids: Annotated[
        bool,
        typer.Option(
            "--mint-uids", help="For .dcm: make UIDs for a series that has none to refer to."
        ),
    ] = False,
    series: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER_OR_UID", help="Which series, if a DICOM folder holds several CTs."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
) -> None:
    """Write a CT, a mask or a map in another format; every voxel stays where it is.

    All are written as .nii.gz, .nii, .nrrd, .nhdr, .mha and .mhd; a mask also as a surface (.stl,
    .ply, .obj), as measurements (.csv) and, with --ct, as DICOM-SEG (.dcm).
    """
    from napari_pancreas_seg.io.convert import convert as run

    with quiet():
        kind, notes = run(
            source, target, ct=ct, series=series, overwrite=overwrite, mint_uids=mint_uids
        )
    say(f"{source.name}: {kind} -> {target}")
    for note in notes:
        say(f"{source.name}: {note}", err=True)
