"""Training slices on disk, one file for each case, read row by row: more than memory holds.

A file is a zip with a member for each slice, for each target that shows something (all others are
zero), and a description. It appears under its name when it is complete. Its name is a hash of what
it was made from, so nothing out of date is ever read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from napari_pancreas_seg._version import __version__
from napari_pancreas_seg.arrays import Bytes, Indices, Mask
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.files import (
    atomic_write,
    explain_os_error,
    make_folder,
    walk,
    write_text,
)
from napari_pancreas_seg.io.load import files_of
from napari_pancreas_seg.model.weights import DAMAGED
from napari_pancreas_seg.training.data.layouts.cases import BadCases, LabelledCase

_log = logging.getLogger(__name__)

FORMAT = 3
"""Rises whenever the bytes of a file, or the way from a CT to them, mean something else."""
_ABOUT = "about.json"


class _StoredRows:
    """Rows in a file that is open only while some are read: a data set may have many cases."""

    def __init__(self, path: Path, places: Sequence[int], item: tuple[int, ...], shown: Mask):
        self._path, self._places = path, places
        self.shape, self.shown = (len(places), *item), shown

    def __getitem__(self, rows: Indices) -> Bytes:
        """The rows of those numbers; those without a place are zero."""
        out = np.zeros((len(rows), *self.shape[1:]), np.uint8)
        whole = True
        try:
            with self._path.open("rb", buffering=0) as file:
                for i, row in enumerate(rows):
                    if self._places[row]:
                        file.seek(self._places[row])
                        whole = whole and file.readinto(out[i].data) == out[i].nbytes
        except OSError as error:
            raise self._gone(explain_os_error(error)) from error
        if not whole:
            raise self._gone("it has become shorter")
        return out

    def _gone(self, why: str) -> PancreasSegError:
        return PancreasSegError(
            f"The training's cache file '{self._path.name}' cannot be read any more: {why}. Start "
            "the training again with --resume, and the file is made anew."
        )


class Gathered:
    """Rows of several arrays and files, indexed as if they were one array in memory."""

    dtype = np.dtype(np.uint8)

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = tuple(parts)
        self._ends = np.cumsum([p.shape[0] for p in self.parts])
        self.shape: tuple[int, ...] = (int(self._ends[-1]), *self.parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Bytes:
        """Read rows; any index that NumPy knows for the first axis."""
        rows = np.arange(len(self))[index]
        wanted = rows.ravel() if isinstance(rows, np.ndarray) else np.array([rows])
        out = np.empty((len(wanted), *self.shape[1:]), np.uint8)
        part_of = np.searchsorted(self._ends, wanted, side="right")
        for part in np.unique(part_of):
            here = part_of == part
            first = self._ends[part] - self.parts[part].shape[0]
            out[here] = self.parts[part][wanted[here] - first]
        return out.reshape(*np.shape(rows), *self.shape[1:])


Rows = Bytes | Gathered
"""Slices, or targets, in memory or on disk: indexed alike."""


def joined_rows(parts: Sequence[Rows]) -> Rows:
    """All rows of several sets: in memory if all of them are, else where they lie."""
    if not any(isinstance(part, Gathered) for part in parts):
        return np.concatenate([np.asarray(part) for part in parts])
    return Gathered([p for part in parts for p in (getattr(part, "parts", None) or (part,))])


def classes_shown(target: Any) -> Mask:
    """Which classes each target (N, H, W, C) shows, shape (N, C); nothing is read from files."""
    if isinstance(target, Gathered):
        return np.concatenate([classes_shown(part) for part in target.parts])
    if (shown := getattr(target, "shown", None)) is not None:
        return np.asarray(shown)
    # Row by row: an array of this size, even of booleans, is not made by the way.
    shown = [row.any(axis=(0, 1)) for row in target]
    return np.array(shown, bool).reshape(len(target), target.shape[-1])


class CachedRows(NamedTuple):
    """Content of a file: slices (n, H, W) and their targets (n, H, W, C)."""

    hu: Rows
    target: Rows


def case_key(case: LabelledCase, settings: Mapping[str, Any]) -> str:
    """Hash of everything that a case's slices depend on: file contents, reading, settings."""
    digest = hashlib.sha256()
    try:
        for file in files_of_case(case):
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    except OSError as error:
        name, why = Path(error.filename or "").name, explain_os_error(error)
        raise BadCases([f"Case {case.name}: '{name}' cannot be read: {why}."]) from error
    made = [FORMAT, __version__, case, case.slices, settings]
    digest.update(json.dumps(made, sort_keys=True, default=_plain).encode())
    return digest.hexdigest()[:40]


def files_of_case(case: LabelledCase) -> list[Path]:
    """Every file that a case is read from, the data of a detached header included."""
    found: list[Path] = []
    for path in case.files:
        try:
            below = (here / name for here, _, names in walk(path) for name in names)
            found += sorted(file for file in below if file.is_file()) or files_of(path)
        except PancreasSegError:  # which is said when the case is read
            found.append(path)
    return found


def _plain(value: Any) -> Any:
    """Settings that JSON does not know; paths are reduced to their names."""
    if isinstance(value, Path):
        return value.name
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return dict(value) if isinstance(value, Mapping) else type(value).__name__


def cached_rows(folder: Path, key: str, make: Callable[[], CachedRows]) -> CachedRows:
    """Rows from the cache; computed and stored if they are missing or damaged."""
    path = folder / f"{key}.rows"
    found = _read(path)
    if found is None:
        if path.exists():
            _log.warning("A file of the training cache was not whole and is made anew.")
        made = make()
        try:
            make_folder(folder)
            if not (folder / ".gitignore").exists():
                write_text(folder / ".gitignore", "*\n", overwrite=True)
            with atomic_write(path, overwrite=True) as file:
                _write(file, made)
        except PancreasSegError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            raise PancreasSegError(
                f"The cache of training slices in '{folder}' cannot be written: "
                f"{explain_os_error(error.__cause__)}."
            ) from error
        found = _read(path)
    if found is None:
        raise PancreasSegError(
            f"The cache of training slices in '{folder}' does not give back what was written; "
            "choose a folder on another disk."
        )
    return found


def _write(file: Any, made: CachedRows) -> None:
    hu, target = np.asarray(made.hu), np.asarray(made.target)
    shown = classes_shown(target)
    with zipfile.ZipFile(file, "w") as archive:
        for row in range(len(hu)):
            archive.writestr(f"hu{row}", hu[row].tobytes())
            if shown[row].any():
                archive.writestr(f"target{row}", target[row].tobytes())
        about = {"item": target.shape[1:], "shown": shown.astype(int).tolist()}
        archive.writestr(_ABOUT, json.dumps(about))


def _read(path: Path) -> CachedRows | None:
    """Open a file; None if it is missing or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            about = json.loads(archive.read(_ABOUT))
            if archive.testzip() is not None:
                return None
            # Members are stored as they are, behind a header of 30 bytes and their name.
            places = {i.filename: i.header_offset + 30 + len(i.filename) for i in archive.filelist}
    except DAMAGED:
        return None
    item, n = tuple(about["item"]), len(about["shown"])
    shown = np.array(about["shown"], bool).reshape(n, item[-1])
    hu, target = ([places.get(f"{name}{row}", 0) for row in range(n)] for name in ("hu", "target"))
    return CachedRows(
        Gathered([_StoredRows(path, hu, item[:-1], shown)]),
        Gathered([_StoredRows(path, target, item, shown)]),
    )
