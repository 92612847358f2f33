"""Masks with corrections that were not exported yet, kept where a crash does not reach them.

They lie in the application's data folder, one file a mask, and never beside a user's files.
A file holds the mask and what the model wrote, cut to the box that they fill; a key made
from the CT's voxels and geometry, by which the CT is known again wherever it has gone; and
the CT's path, so that it can be offered by name; and what its record says of the model. Nothing
comes from an image's header. The files never leave the computer and go when their mask is
exported or discarded, or too old.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import threading
import time
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from napari_pancreas_seg.arrays import Affine, Array
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.files import atomic_write, explain_os_error, user_folder
from napari_pancreas_seg.volume import box_around

logger = logging.getLogger(__name__)

FORMAT = 1
FIELDS = ("key", "name", "path", "notes", "saved")
"""What a file says of its mask, beside the voxels."""
MOST_DAYS = 60
"""Files that nobody has asked for so long are removed."""
DAMAGED = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, MemoryError),
)
"""Errors that reading a file may raise that was cut off or changed."""


def autosave_folder() -> Path:
    return user_folder("unsaved")


def ct_key(hu: Array | None, shape: tuple[int, ...], affine: Affine) -> str:
    """Name a CT by its voxels (Z, Y, X), if they can be had, and its geometry; for a thread."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([list(shape), np.round(affine, 3).tolist()]).encode())
    if hu is not None:
        digest.update(str(hu.dtype).encode())
        for plane in hu:
            digest.update(np.ascontiguousarray(plane).data)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Unsaved:
    """What it takes to offer a mask with corrections; its voxels are in the file alone."""

    key: str  # from `ct_key`
    name: str  # of the case
    path: str | None  # of the CT
    file: Path
    notes: Mapping[str, Any] = field(default_factory=dict)
    saved: float = field(default_factory=lambda: time.time())  # seconds since 1970

    @property
    def mask_name(self) -> str:
        return str(self.notes.get("name") or f"{self.name} pancreas")


class AutosaveStore:
    """The masks that a window keeps, under a lock while it lives, and those that others left."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or autosave_folder()
        self._name = secrets.token_hex(6)
        self._lock: IO[bytes] | None = None
        self._holding = threading.Lock()  # a thread may write while the window closes
        self._count, self._closed = 0, False

    def new_file(self) -> Path:
        self._count += 1
        return self.folder / f"{self._name}-{self._count}.npz"

    def write(self, unsaved: Unsaved, mask: Array, model: Array | None = None) -> None:
        """Write a mask and the model's, if any, (Z, Y, X) to the file, whole or not at all."""
        self._hold()
        masks = {"mask": mask, "model": model}
        parts = {name: part for name, part in masks.items() if part is not None}
        cut = box_around(*parts.values()) or (slice(0, 0),) * 3
        box = [[int(edge.start), int(edge.stop)] for edge in cut]
        about = {name: getattr(unsaved, name) for name in FIELDS}
        header = {"format": FORMAT, **about, "shape": list(mask.shape), "box": box}
        arrays = {name: np.ascontiguousarray(part[cut]) for name, part in parts.items()}
        text = np.frombuffer(json.dumps(header, default=str).encode(), np.uint8)
        with atomic_write(unsaved.file, overwrite=True) as stream:
            np.savez_compressed(stream, header=text, **arrays)  # type: ignore[arg-type]

    def left_behind(self) -> list[Unsaved]:
        """List masks of windows that are gone, newest first; remove old ones."""
        found, files = [], []
        try:
            files = sorted(self.folder.glob("*-*.npz")) if self.folder.is_dir() else []
        except OSError:
            logger.warning("The folder of autosaved masks cannot be read", exc_info=True)
        for file in files:
            window = file.name.partition("-")[0]
            if window == self._name or _is_held(self.folder / f"{window}.lock"):
                continue
            try:
                unsaved = _unsaved(read_header(file), file)
                if time.time() - unsaved.saved > MOST_DAYS * 24 * 3600:
                    file.unlink()
                else:
                    found.append(unsaved)
            except DAMAGED:
                logger.warning("An autosaved mask cannot be read and is left out", exc_info=True)
        return sorted(found, key=lambda one: -one.saved)

    def close(self) -> None:
        """Release the lock, so that other windows are offered these files, and later ones."""
        with self._holding:
            lock, self._lock, self._closed = self._lock, None, True
        if lock is not None:
            lock.close()
            with contextlib.suppress(OSError):
                (self.folder / f"{self._name}.lock").unlink()

    def _hold(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._holding:
                if self._lock is None and not self._closed:
                    self._lock = open(self.folder / f"{self._name}.lock", "wb")  # noqa: SIM115
                    _try_lock(self._lock)
        except OSError as error:
            raise PancreasSegError(
                f"Nothing can be kept in '{self.folder}': {explain_os_error(error)}."
            ) from error


def read_header(file: Path) -> dict[str, Any]:
    """Read what there is to say about an autosaved mask, without its voxels."""
    # Opened here: NumPy leaves a damaged file open, which then could not be removed on Windows.
    with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as content:
        header: dict[str, Any] = json.loads(content["header"].tobytes())
    if header["format"] != FORMAT:
        raise ValueError(f"format {header['format']}")
    return header


def read_unsaved(file: Path) -> tuple[Unsaved, dict[str, Array]]:
    """Read ``mask`` and, if there is one, ``model`` (Z, Y, X); a PancreasSegError if damaged."""
    try:
        header, whole = read_header(file), {}
        cut = tuple(slice(*edge) for edge in header["box"])
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as content:
            for name in ("mask", *({"model"} & {*content})):
                part = content[name]
                whole[name] = np.zeros(header["shape"], part.dtype)
                whole[name][cut] = part
        return _unsaved(header, file), whole
    except DAMAGED as error:
        raise PancreasSegError(
            f"The autosaved mask '{file.name}' cannot be read: {error}."
        ) from error


def remove_unsaved(file: Path) -> None:
    with contextlib.suppress(OSError):
        file.unlink()


def _unsaved(header: Mapping[str, Any], file: Path) -> Unsaved:
    key, name, path, notes, saved = (header[each] for each in FIELDS)
    return Unsaved(str(key), str(name), path, file, dict(notes), float(saved))


def _is_held(path: Path) -> bool:
    """Whether a living process holds a lock; a lock that nobody holds is removed."""
    try:
        with open(path, "r+b") as file:
            if not _try_lock(file):
                return True
        path.unlink()
    except OSError:
        pass  # there is none, or it cannot be asked: nobody to be spared
    return False


def _try_lock(file: IO[bytes]) -> bool:
    """Lock a file until it is closed or the process ends; False if another has done so."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EWOULDBLOCK, EAGAIN; EACCES
        return False
    except OSError:
        pass  # a disk without locks: nobody can hold one
    return True
