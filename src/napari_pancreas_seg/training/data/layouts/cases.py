"""A case of a data set: a CT and the masks that belong to it, read when its turn comes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from napari_pancreas_seg.arrays import Labels
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io import load_ct, load_mask
from napari_pancreas_seg.io.alignment import bring_onto
from napari_pancreas_seg.training.data.layouts.flips import turn_onto
from napari_pancreas_seg.volume import CTVolume, Volume, bounding_box

PANCREAS = "pancreas"
_MOST_NAMED = 20


class BadCases(PancreasSegError):
    """Cases that cannot be used, all of them in one message."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        n, said = len(self.problems), " ".join(self.problems[:_MOST_NAMED])
        if n > 1:
            said = f"{n} cases cannot be used. {said}"
        if n > _MOST_NAMED:
            said += f" And {n - _MOST_NAMED} more."
        check = " Look at the data set with 'dataset check'."
        super().__init__(said, option=check, in_window="")

    @classmethod
    def of(cls, name: str, error: PancreasSegError) -> BadCases:
        """One case, with what is wrong with it."""
        said = str(error)
        return cls([said if name in said else f"Case {name}: {said}"])


class LabelledCase(Protocol):
    """A CT with its label map."""

    @property
    def name(self) -> str:
        """Name of the case, unlike any other of its data set."""

    @property
    def patient(self) -> str:
        """The patient. Cases of one patient are never split between training and validation."""

    @property
    def slices(self) -> tuple[int, ...] | None:
        """Slices that are labelled, from the feet, counted from 0; None for all of them."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Paths that the case is read from: files, and folders of DICOM series."""

    def load(self) -> tuple[CTVolume, Labels]:
        """Read the CT and its label map, (Z, Y, X), on the CT's grid in display order."""


@dataclass(frozen=True)
class MaskFile:
    """A mask, and the class of each of its values but 0, or of whatever its one value is."""

    path: Path
    classes: Mapping[int, str] | str = PANCREAS

    @property
    def drawn(self) -> frozenset[str]:
        """Classes that can be in it."""
        return frozenset(
            (self.classes,) if isinstance(self.classes, str) else self.classes.values()
        )

    def read(self) -> tuple[Labels, Volume, dict[int, str]]:
        """Read it; return the mask, where it lies, and the class of each value in it."""
        labels, on = load_mask(self.path)
        values = _values(labels)
        if isinstance(self.classes, str):
            if len(values) > 1:
                said = ", ".join(map(str, values[:8]))
                raise PancreasSegError(
                    f"the mask {self.path.name} holds several values ({said}) and nothing says "
                    "what they are; a labels.json in a folder of pairs or references, such as "
                    '{"pancreas": 1, "tumour": 2}, does.'
                )
            return labels, on, dict.fromkeys(values, self.classes)
        unknown = [value for value in values if value not in self.classes]
        if unknown:
            raise PancreasSegError(
                f"the mask {self.path.name} holds the value {unknown[0]}, which the description of "
                f"its classes ({', '.join(self.classes.values())}) does not mention; correct one."
            )
        return labels, on, {value: self.classes[value] for value in values}


@dataclass(frozen=True)
class VolumeCase:
    """A CT in a file or folder, with masks in files of their own; see `LabelledCase`."""

    name: str
    patient: str
    ct: Path
    masks: tuple[MaskFile, ...]
    labels: Mapping[str, int] = field(default_factory=lambda: {PANCREAS: 1})
    slices: tuple[int, ...] | None = None
    turned: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """The CT and its masks."""
        return self.ct, *(mask.path for mask in self.masks)

    def load(self) -> tuple[CTVolume, Labels]:
        """See `LabelledCase.load`."""
        try:
            return self._load()
        except PancreasSegError as error:
            raise PancreasSegError(f"Case {self.name}: {error}") from error

    def _load(self) -> tuple[CTVolume, Labels]:
        volume = load_ct(self.ct)
        labels = np.zeros(volume.grid.shape, np.uint8)
        notes: tuple[str, ...] = ()
        for mask in self.masks:
            drawn, on, found = mask.read()
            if self.turned:
                drawn, more = turn_onto(volume, drawn, mask.path.name)
                notes += more
            else:
                drawn = bring_onto(volume, drawn, on, mask.path.name)
            box = bounding_box(drawn)
            if box is not None:
                table = np.zeros(256, np.uint8)
                for value, name in found.items():
                    table[value] = self.labels.get(name, 0)
                np.maximum(labels[box], table[drawn[box]], out=labels[box])
        if self.slices is not None and self.slices and max(self.slices) >= len(labels):
            raise PancreasSegError(
                f"slice {max(self.slices)} is said to be labelled, but the CT has {len(labels)} "
                "slices only."
            )
        return replace(volume, notes=volume.notes + notes), labels


def _values(labels: Labels) -> tuple[int, ...]:
    """Values in a label map but 0."""
    box = bounding_box(labels)
    return () if box is None else tuple(int(value) for value in np.unique(labels[box]) if value)


def patient_of(name: str) -> str:
    """The patient by the CT's name: the number in NIH Pancreas-CT, else the name itself."""
    found = re.match(r"PANCREAS_(\d+)", name)
    return found[1] if found else name
