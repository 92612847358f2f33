"""The command ``check``: what a file is, in plain words."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument

from napari_pancreas_seg.cli.app import command
from napari_pancreas_seg.cli.options import AsJson, Force, Series
from napari_pancreas_seg.cli.terminal import echo, print_json, quiet
from napari_pancreas_seg.errors import why_failed

logger = logging.getLogger(__name__)

_WORDS = {"L": "left", "R": "right", "A": "front", "P": "back", "S": "head", "I": "feet"}


@command
def check(
    files: Annotated[
        list[Path], Argument(metavar="FILE", help="CTs, masks or maps; a folder is a DICOM series.")
    ],
    series: Series = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Say what files are, and what may be wrong with them.

    Exits with 0 if all of them can be used, else with 1.
    """
    from napari_pancreas_seg.cohort.inspection import inspect

    found = []
    for path in files:
        with quiet():
            try:
                found.append(inspect(path, series=series, force=force))
            except Exception as error:  # of one file: what is known of the others stays
                logger.debug("a file failed", exc_info=error)
                problem = why_failed(path.name, error)
                found.append(
                    {"file": path.name, "usable": False, "problem": problem, "suspicious": []}
                )
        if not as_json:
            for line in _lines(found[-1]):
                echo(line)
    if as_json:
        print_json(found)
    if not all(one["usable"] for one in found):
        raise typer.Exit(1)


def _lines(found: dict[str, Any]) -> list[str]:
    """Findings as lines of text."""
    what = f"{found['kind']}, {found['format']}" if "kind" in found else "not readable"
    lines = [f"{found['file']}: {what}"]

    def add(name: str, text: str) -> None:
        lines.append(f"  {name:<12}{text}")

    if "shape" in found:
        stored = f" ({found['data_type']})" if found.get("data_type") else ""
        axes = ", ".join(_WORDS[letter] for letter in found["orientation"])
        add("size", f"{_times(found['shape'])} voxels{stored}")
        add("spacing", f"{_times(found['spacing_mm'])} mm")
        add("orientation", f"{found['orientation']} (axes run to the {axes})")
        add("extent", f"{_times(found['extent_cm'])} cm")
    if "labels" in found:
        for label, measured in found["labels"].items():
            add(f"label {label}", f"{measured['voxels']} voxels, {measured['volume_ml']:.1f} mL")
    elif "values" in found:
        values = found["values"]
        unit = " HU" if found["kind"] == "CT" and found["usable"] else ""
        add(
            "values",
            f"{values['minimum']:g} to {values['maximum']:g}{unit}, most of them "
            f"{values['percentile_1']:g} to {values['percentile_99']:g}",
        )
    if "scan" in found:
        scan = found["scan"]
        organs = {"aorta": scan["aorta_hu"], "liver": scan["liver_hu"]}
        known = ", ".join(f"{organ} {hu:g} HU" for organ, hu in organs.items() if hu is not None)
        add("contrast", scan["phase"] + (f" ({known})" if known else ""))
        if scan["noise_hu"] is not None:
            add("noise", f"{scan['noise_hu']:g} HU (SD in even tissue)")
    for sentence in found["suspicious"]:
        add("warning", sentence)
    if found["problem"] is not None:
        add("unusable", found["problem"])
    return lines


def _times(numbers: list[float]) -> str:
    return " × ".join(f"{number:g}" for number in numbers)
