"""Corrections made with this program: ``corrections.json``, and a folder for each reviewed case.

In ``NAME/`` lie ``ct.nii.gz``, ``mask.nii.gz`` and ``case.json``, which says whose CT it is and
which slices were reviewed: only these count.
"""

from __future__ import annotations

from pathlib import Path

from napari_pancreas_seg.training.data.layouts.cases import MaskFile, VolumeCase
from napari_pancreas_seg.training.data.layouts.listing import Layout, Listing, folders_in, left_out
from napari_pancreas_seg.training.finetune.corrections import (
    CASE,
    CT,
    INDEX,
    MASK,
    labels_of,
    read_correction,
)


def _read(folder: Path) -> Listing:
    names = {value: name for name, value in labels_of(folder).items()}
    cases, incomplete, unreviewed = [], [], []
    for item in folders_in(folder):
        case = read_correction(item)
        if case is None:
            incomplete.append(item.name)
        elif case.reviewed == ():
            unreviewed.append(item.name)
        else:
            mask = MaskFile(item / MASK, names)
            cases.append(
                VolumeCase(case.name, case.patient, item / CT, (mask,), slices=case.reviewed)
            )
    notes = left_out(f"Folders without {CT}, {MASK} or {CASE}", incomplete)
    notes += left_out("Cases without a reviewed slice", unreviewed)
    return Listing(tuple(names[value] for value in sorted(names)), tuple(cases), notes)


LAYOUT = Layout(
    "corrections",
    f"{INDEX} and folders with {CT}, {MASK} and {CASE} (corrections of this program)",
    lambda folder: (folder / INDEX).is_file(),
    _read,
)
