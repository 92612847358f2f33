"""Options that several commands have, declared once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|gpu(:\d+)?", value):
        raise typer.BadParameter("give auto, cpu, gpu or gpu:N")
    return value


def _threshold(value: float | None) -> float | None:
    if value is not None and not 0 < value < 1:  # NaN too
        raise typer.BadParameter(f"{value} is not in the range 0<x<1.")
    return value


def parse_classes(texts: list[str] | None) -> dict[str, list[str]] | None:
    """Read ``pancreas=pancreas+cancer``; ``spleen`` stands for ``spleen=spleen``."""
    if not texts:
        return None
    classes: dict[str, list[str]] = {}
    for text in texts:
        name, equals, parts = text.partition("=")
        made_of = [part.strip() for part in (parts if equals else name).split("+")]
        if not name.strip() or not all(made_of) or name.strip() in classes:
            raise typer.BadParameter(f"--classes wants NAME=CLASS[+CLASS], each once; not '{text}'")
        classes[name.strip()] = made_of
    return classes


AsJson = Annotated[bool, Option("--json", help="Print JSON.")]
Classes = Annotated[
    list[str] | None,
    Option(
        "--classes",
        metavar="NAME=CLASS[+CLASS]",
        help="A class, and the data set's classes that it is made of; repeatable. Default: "
        "pancreas, with its tumours.",
    ),
]
DataSetFolder = Annotated[
    Path, Argument(metavar="FOLDER", help="A data set; 'dataset check --help' lists the layouts.")
]
Device = Annotated[
    str,
    Option(
        metavar="auto|cpu|gpu|gpu:N",
        callback=_device,
        help="Where the network runs; gpu means gpu:0.",
    ),
]
Layout = Annotated[
    str | None, Option(metavar="NAME", help="Layout of the data set, if it is not recognised.")
]
MintUids = Annotated[
    bool,
    Option("--mint-uids", help="For DICOM-SEG: make new UIDs if the series has none to refer to."),
]
MaskFolder = Annotated[
    Path | None,
    Option("--masks", metavar="FOLDER", help="Masks of another program, in place of a run."),
]
MaskLabel = Annotated[
    list[int] | None,
    Option(
        "--label",
        min=1,
        max=255,
        help="Label of the pancreas, if those masks show several organs; repeatable, as for "
        "pancreas and tumour.",
    ),
]
MaskBy = Annotated[
    str | None, Option("--by", metavar="NAME", help="Who made those masks; the sidecar says so.")
]
Model = Annotated[str, Option(metavar="MODEL", help="Name or path of a model.")]
ModelArgument = Annotated[str, Argument(metavar="MODEL", help="Name or path of a model.")]
NoPostprocess = Annotated[
    bool,
    Option(
        "--no-postprocess",
        help="Do not smooth along z, and keep every piece in every slice (default: smooth, keep "
        "the pieces that belong to the gland, where one can lie, and clear tiny ends).",
    ),
]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace existing files.")]
StructuredReport = Annotated[
    bool,
    Option(
        "--sr",
        help="For DICOM-SEG: write the measures too, as a DICOM structured report (SR) beside it.",
    ),
]
Seed = Annotated[int, Option(min=0, help="Seed of all random numbers.")]
Series = Annotated[
    str | None,
    Option(
        metavar="NUMBER_OR_UID", help="Which series to take if a DICOM folder holds several CTs."
    ),
]
Force = Annotated[
    bool,
    Option(
        "--force",
        help="Take the values as Hounsfield units, even if they do not look like those of a CT.",
    ),
]
Threshold = Annotated[
    float | None,
    Option(
        callback=_threshold,
        help="Probability above which a voxel is pancreas. Default: the model's own.  [0<x<1]",
    ),
]
