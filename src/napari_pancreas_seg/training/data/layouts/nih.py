"""NIH Pancreas-CT (CT-82) as The Cancer Imaging Archive gives it out.

DICOM series lie somewhere below ``PANCREAS_0001`` and so on, labels are ``label0001.nii.gz`` and
so on (Roth et al. 2016, doi:10.7937/K9/TCIA.2016.tNB1kqBU). The labels' rows run against those of
the DICOM and their headers do not say so: how each lies on its CT is found by overlap.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from napari_pancreas_seg.io import SUFFIXES, is_dicom, stem
from napari_pancreas_seg.training.data.layouts.cases import PANCREAS, MaskFile, VolumeCase
from napari_pancreas_seg.training.data.layouts.listing import DataSetLayout, Listing, left_out

_CT = re.compile(r"PANCREAS_(\d{4})", re.IGNORECASE)
_LABEL = re.compile(r"label_?(\d{4})", re.IGNORECASE)
_MOST_LEVELS = 3
"""A download has its manifest's folder and the collection's around the patients'."""


def _read(folder: Path) -> Listing:
    cts, labels = _find(folder)
    cases = tuple(
        VolumeCase(f"PANCREAS_{n}", n, cts[n], (MaskFile(labels[n]),), turned=True)
        for n in sorted(cts.keys() & labels.keys())
    )
    notes = left_out("CTs without a label", [cts[n].name for n in sorted(cts.keys() - labels)])
    notes += left_out("Labels without a CT", [labels[n].name for n in sorted(labels.keys() - cts)])
    return Listing((PANCREAS,), cases, notes)


def _find(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Find CTs and labels by number: DICOM folders, or volumes made of them."""
    cts: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for item in _walk(folder):
        if found := _CT.fullmatch(stem(item)):
            if item.is_dir() and not is_dicom(item):
                continue
            cts.setdefault(found[1], item)
        elif (found := _LABEL.fullmatch(stem(item))) and not item.is_dir():
            labels.setdefault(found[1], item)
    return cts, labels


def _walk(folder: Path) -> Iterator[Path]:
    """Folders of patients and volumes, some levels down; what is in the former is not listed."""
    for name, folders, files in os.walk(folder):
        here = Path(name)
        folders[:] = sorted(item for item in folders if not item.startswith("."))
        patients = [item for item in folders if _CT.fullmatch(item)]
        yield from (here / item for item in patients)
        for item in sorted(files):  # by their names: other data sets have 100,000 files
            low = item.lower()
            if low.startswith(("pancreas_", "label")) and low.endswith(SUFFIXES):
                yield here / item
        deep = len(here.relative_to(folder).parts) >= _MOST_LEVELS
        folders[:] = [] if deep else [item for item in folders if item not in patients]


LAYOUT = DataSetLayout(
    "nih",
    "PANCREAS_0001/ with DICOM and label0001.nii.gz (NIH Pancreas-CT, CT-82)",
    lambda folder: all(_find(folder)),
    _read,
)
