"""Masks that another program or a person has made, taken in place of a run."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from napari_pancreas_seg.arrays import Labels
from napari_pancreas_seg.cohort.cases import Case
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import describe_given
from napari_pancreas_seg.inference.saving import mask_sha256, prepare, sidecar_path, write_sidecar
from napari_pancreas_seg.io import load_ct, load_mask, save_mask, stem, suffix_of
from napari_pancreas_seg.io.alignment import bring_onto
from napari_pancreas_seg.io.files import all_or_none, not_listed, same_file
from napari_pancreas_seg.io.organs import only_organ
from napari_pancreas_seg.io.suffixes import DICOM, VOLUME
from napari_pancreas_seg.volume import CTVolume

_OF_THE_CT = re.compile(r"_0000$|[-_. ](ct|image|img|volume)$", re.IGNORECASE)
"""What the name of a CT has that its mask's lacks, as nnU-Net's channel."""
OF_THE_MASK = ("", "_mask", "_pancreas", "_seg", "_segmentation", "_label")
_IN_A_FOLDER = ("pancreas", "segmentations/pancreas", "mask", "segmentation", "seg")
_DEPTHS = ("*", "*/*", "*/segmentations/*")


@dataclass(frozen=True)
class GivenMasks:
    """A folder of masks made `by` others; `value`: which of their labels are the pancreas."""

    folder: Path
    value: int | Sequence[int] | None = None
    by: str = "another program"

    def find(self, name: str, ct: Path | None = None) -> Path | None:
        """The file with the mask of a case, known by its name, not its `ct`; None without one."""
        places = []
        for case in dict.fromkeys((name, _OF_THE_CT.sub("", name))):
            names = [f"{case}{end}" for end in OF_THE_MASK]
            places += [*names, *(f"{case}/{place}" for place in (*_IN_A_FOLDER, *names))]
        spelt, small = self._files
        # Another case may differ by capital letters only.
        found = [spelt[place] for place in places if place in spelt]
        found += [small[place.lower()] for place in places if place.lower() in small]
        return next((path for path in found if ct is None or not same_file(path, ct)), None)

    def find_each(self, cases: Sequence[Case]) -> dict[str, Path]:
        """Masks of cases by the cases' names (`maps`), called after those or after the CT's file.

        The latter only where no other case or CT is called so, as many are called ``ct``.
        """
        found = {case.maps: self.find(case.maps, case.source) for case in cases}
        taken = {*found.values()}
        called = Counter(n for case in cases for n in {case.maps.lower(), _file(case).lower()})
        for case in cases:
            if found[case.maps] is None and called[_file(case).lower()] == 1:
                path = self.find(_file(case), case.source)
                found[case.maps] = None if path in taken else path
        return {name: path for name, path in found.items() if path is not None}

    @cached_property
    def _files(self) -> tuple[dict[str, Path], dict[str, Path]]:
        """Masks in the folder and in those below, by path without ending; and in small letters."""
        try:
            found = [path for depth in _DEPTHS for path in self.folder.glob(depth)]
        except OSError as error:
            raise not_listed(self.folder, error) from error
        spelt: dict[str, Path] = {}
        small: dict[str, Path] = {}
        for path in sorted(found):
            if suffix_of(path).lower() in (*VOLUME, *DICOM):
                name = stem(path).removesuffix(".seg")  # which 3D Slicer adds
                place = path.relative_to(self.folder).with_name(name).as_posix()
                spelt.setdefault(place, path)
                small.setdefault(place.lower(), path)
        return spelt, small

    def pancreas(self, labels: Labels, name: str) -> Labels:
        """The pancreas (Z, Y, X) in what a file holds; empty if only other files hold it."""
        if self.value is not None and not self._in(labels) and self._shown:
            return np.zeros(labels.shape, np.uint8)
        return only_organ(labels, name, self.value)

    def _in(self, labels: Labels) -> bool:
        return self.value is not None and bool(np.isin(labels, self.value).any())

    @cached_property
    def _shown(self) -> bool:
        """Whether any mask of the folder shows the pancreas: else its label is a mistake."""
        for path in self._files[0].values():
            with contextlib.suppress(PancreasSegError):  # such as a CT beside them
                if self._in(load_mask(path)[0]):
                    return True
        return False


def _file(case: Case) -> str:
    return stem(case.source)


def adopt(
    source: Path,
    target: Path,
    given: GivenMasks,
    path: Path,
    *,
    series: str | None = None,
    force: bool = False,
) -> tuple[dict[str, Any], CTVolume, Labels]:
    """Write a given mask as that of a case; return the sidecar's content, the CT and the mask."""
    volume = load_ct(source, series=series, force=force)
    labels, on = load_mask(path)
    mask = given.pancreas(bring_onto(volume, labels, on, path.name), path.name)
    volume = replace(volume, notes=(*volume.notes, *on.notes))
    volume = prepare(volume, target, mint_uids=False)
    record = describe_given(volume, mask, given.by)
    sidecar = sidecar_path(target)
    with all_or_none(target.parent, last=sidecar.name) as folder:
        save_mask(mask, volume, folder / target.name)
        record["resume"] = {"mask_sha256": mask_sha256(folder / target.name)}
        write_sidecar(folder / sidecar.name, record)
    return record, volume, mask
