"""Classes of layouts and of what they find in a folder; functions that read small files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from napari_pancreas_seg.arrays import Bytes
from napari_pancreas_seg.errors import PancreasSegError, few
from napari_pancreas_seg.io import SUFFIXES, suffix_of
from napari_pancreas_seg.io.files import listed
from napari_pancreas_seg.training.data.layouts.cases import LabelledCase


@dataclass(frozen=True)
class Listing:
    """Classes and cases that a layout finds in a folder, before anything is read."""

    classes: tuple[str, ...]
    cases: tuple[LabelledCase, ...]
    notes: tuple[str, ...] = ()


class DataSetLayout(NamedTuple):
    """How a data set's files are laid out, and the function that lists its cases."""

    name: str
    looks_for: str
    fits: Callable[[Path], bool]
    read: Callable[[Path], Listing]


def left_out(what: str, names: list[str]) -> tuple[str, ...]:
    """Say what was left out, by name where there are few."""
    return (f"{what}: {few(names, 6)}.",) if names else ()


def read_picture(path: Path, *, grey: bool = False) -> Bytes:
    """A picture (Y, X): its grey values, or the values of labels as they are."""
    try:
        with Image.open(path) as picture:
            as_it_is = len(picture.getbands()) == 1 and not grey
            values = np.asarray(picture if as_it_is else picture.convert("L"))
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise PancreasSegError(f"{path.name} cannot be read as a picture: {error}.") from error
    return np.clip(values, 0, 255).astype(np.uint8)


def folders_in(folder: Path) -> list[Path]:
    """Folders in a folder, by name."""
    return [folder / item.name for item in listed(folder) if item.is_dir()]


def volumes_in(folder: Path) -> dict[str, Path]:
    """CTs, masks and maps in a folder, by their names without the ending."""
    return {
        item.name[: -len(suffix_of(Path(item.name)))]: folder / item.name
        for item in listed(folder)
        if item.name.lower().endswith(SUFFIXES) and not item.is_dir()
    }
