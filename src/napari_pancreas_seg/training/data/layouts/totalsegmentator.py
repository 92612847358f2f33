"""TotalSegmentator's data: a folder for each subject, with ``ct.nii.gz`` and a mask for each class.

(Wasserthal et al. 2023, doi:10.1148/ryai.230024.) The split that its ``meta.csv`` proposes is not
used: patients are split as those of any other data set.
"""

from __future__ import annotations

from pathlib import Path

from napari_pancreas_seg.training.data.layouts.cases import MaskFile, VolumeCase
from napari_pancreas_seg.training.data.layouts.listing import (
    DataSetLayout,
    Listing,
    folders_in,
    left_out,
    volumes_in,
)

_CT, _MASKS = "ct", "segmentations"


def _read(folder: Path) -> Listing:
    cases: list[VolumeCase] = []
    classes: set[str] = set()
    without_ct: list[str] = []
    without_masks: list[str] = []
    for subject in folders_in(folder):
        ct, masks = _ct(subject), subject / _MASKS
        drawn = volumes_in(masks) if masks.is_dir() else {}
        if ct is None and drawn:
            without_ct.append(subject.name)
        elif ct is not None and not drawn:
            without_masks.append(subject.name)
        elif ct is not None:
            files = tuple(MaskFile(path, name) for name, path in drawn.items())
            cases.append(VolumeCase(subject.name, subject.name, ct, files))
            classes |= drawn.keys()
    notes = left_out("Subjects without a CT", without_ct)
    notes += left_out("Subjects without masks", without_masks)
    return Listing(tuple(sorted(classes)), tuple(cases), notes)


def _ct(subject: Path) -> Path | None:
    return volumes_in(subject).get(_CT)


LAYOUT = DataSetLayout(
    "totalsegmentator",
    "folders with ct.nii.gz and segmentations/*.nii.gz (TotalSegmentator)",
    lambda folder: any(_ct(item) and (item / _MASKS).is_dir() for item in folders_in(folder)),
    _read,
)
