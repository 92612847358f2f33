"""What a layout is, and what it finds in a folder before anything is read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io import SUFFIXES, suffix_of
from napari_pancreas_seg.io.files import explain_os_error
from napari_pancreas_seg.training.data.layouts.cases import LabelledCase


@dataclass(frozen=True)
class Listing:
    """What a layout finds in a folder, before anything is read."""

    classes: tuple[str, ...]
    cases: tuple[LabelledCase, ...]
    notes: tuple[str, ...] = ()


class Layout(NamedTuple):
    """A way in which data sets are laid out."""

    name: str
    looks_for: str
    fits: Callable[[Path], bool]
    read: Callable[[Path], Listing]


def left_out(what: str, names: list[str]) -> tuple[str, ...]:
    """Say what was left out, by name where there are few."""
    if not names:
        return ()
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return (f"{what}: {shown}.",)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise PancreasSegError(f"'{path.name}' cannot be read as JSON: {error}.") from error
    if not isinstance(data, dict):
        raise PancreasSegError(f"'{path.name}' must hold a JSON object.")
    return data


def entries(folder: Path) -> list[Path]:
    """List a folder by name, without hidden files: macOS leaves ``._NAME`` beside every NAME."""
    return [folder / item.name for item in _scan(folder)]


def folders_in(folder: Path) -> list[Path]:
    """Folders in a folder, by name."""
    return [folder / item.name for item in _scan(folder) if item.is_dir()]


def volumes_in(folder: Path) -> dict[str, Path]:
    """CTs, masks and maps in a folder, by their names without the ending."""
    return {
        item.name[: -len(suffix_of(Path(item.name)))]: folder / item.name
        for item in _scan(folder)
        if item.name.lower().endswith(SUFFIXES) and not item.is_dir()
    }


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    # An entry knows whether it is a folder: asking the disk 100,000 times takes minutes.
    try:
        with os.scandir(folder) as items:
            found = [item for item in items if not item.name.startswith(".")]
    except OSError as error:
        raise PancreasSegError(
            f"The folder '{folder}' cannot be read: {explain_os_error(error)}."
        ) from error
    return sorted(found, key=lambda item: item.name)
