"""The command ``convert``: from one format to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from napari_pancreas_seg.cli.app import command
from napari_pancreas_seg.cli.options import Force, MintUids, Overwrite, Series, StructuredReport
from napari_pancreas_seg.cli.terminal import echo, quiet


@command
def convert(
    source: Annotated[
        Path, Argument(metavar="IN", help="A CT, mask or map; a folder is a DICOM series.")
    ],
    target: Annotated[Path, Argument(metavar="OUT", help="Its ending is the format.")],
    ct: Annotated[
        Path | None, Option(help="The CT of a mask; needed for .dcm, and for the HU in a .csv.")
    ] = None,
    mint_uids: MintUids = False,
    report: StructuredReport = False,
    series: Series = None,
    force: Force = False,
    label: Annotated[
        list[int] | None,
        Option(
            min=1, max=255, help="Take only this label of a mask, such as the pancreas; repeatable."
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a CT, a mask or a map in another format.

    Every voxel stays where it is. Formats: .nii.gz, .nii, .nrrd, .mha. A mask also as DICOM-SEG
    (.dcm, with --ct) and, of one label, as a surface (.stl, .ply, .obj) or measurements (.csv).
    """
    from napari_pancreas_seg.io.convert import convert as run

    with quiet():
        kind, notes = run(
            source,
            target,
            ct=ct,
            series=series,
            overwrite=overwrite,
            mint_uids=mint_uids,
            report=report,
            label=label or None,
            force=force,
        )
    name = source.name or source.resolve().name  # "." has none
    echo(f"{name}: {kind} -> {target}")
    for note in notes:
        echo(f"{name}: {note}", err=True)
