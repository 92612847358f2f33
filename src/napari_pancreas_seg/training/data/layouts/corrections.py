"""Corrections made with this program: ``corrections.json``, and a folder for each reviewed case.

In ``NAME/`` lie ``ct.nii.gz``, ``mask.nii.gz`` and ``case.json``, which says whose CT it is and
which slices were reviewed: only these count.
"""

from __future__ import annotations

from pathlib import Path

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.training.data.layouts.cases import MaskFile, VolumeCase
from napari_pancreas_seg.training.data.layouts.listing import (
    Layout,
    Listing,
    folders_in,
    left_out,
    read_json,
)

_INDEX, _CASE = "corrections.json", "case.json"
_FORMAT = 1


def _read(folder: Path) -> Listing:
    index = read_json(folder / _INDEX)
    if index.get("format") != _FORMAT:
        raise PancreasSegError(
            f"{_INDEX} is of format {index.get('format')!r}, which this version does not know; "
            "update the program."
        )
    labels = index.get("labels")
    if not isinstance(labels, dict) or not all(
        isinstance(v, int) and 0 < v < 256 for v in labels.values()
    ):
        raise PancreasSegError(f"{_INDEX} does not say what the masks' values mean; repair it.")
    names = {value: name for name, value in labels.items()}
    cases, incomplete, unreviewed = [], [], []
    for item in folders_in(folder):
        ct, mask, about = item / "ct.nii.gz", item / "mask.nii.gz", item / _CASE
        if not all(path.is_file() for path in (ct, mask, about)):
            incomplete.append(item.name)
            continue
        case = _case(item.name, ct, MaskFile(mask, names), about)
        if case.slices == ():
            unreviewed.append(item.name)
        else:
            cases.append(case)
    notes = left_out(f"Folders without ct.nii.gz, mask.nii.gz or {_CASE}", incomplete)
    notes += left_out("Cases without a reviewed slice", unreviewed)
    return Listing(tuple(names[value] for value in sorted(names)), tuple(cases), notes)


def _case(name: str, ct: Path, mask: MaskFile, about: Path) -> VolumeCase:
    data = read_json(about)
    reviewed, patient = data.get("reviewed"), data.get("patient")
    if reviewed is not None and not (
        isinstance(reviewed, list) and all(isinstance(z, int) and z >= 0 for z in reviewed)
    ):
        raise PancreasSegError(f"{name}/{_CASE}: 'reviewed' must be a list of slices, or null.")
    slices = None if reviewed is None else tuple(sorted(set(reviewed)))
    return VolumeCase(name, str(patient or name), ct, (mask,), slices=slices)


LAYOUT = Layout(
    "corrections",
    f"{_INDEX} and folders with ct.nii.gz, mask.nii.gz and {_CASE} (corrections of this program)",
    lambda folder: (folder / _INDEX).is_file(),
    _read,
)
