"""Writing a file so that it is whole or not there, and naming what went wrong."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from napari_pancreas_seg.errors import PancreasSegError

_REASONS = {
    errno.ENOSPC: "the disk is full; make room or choose another folder",
    errno.EDQUOT: "your disk quota is used up; make room or choose another folder",
    errno.EFBIG: "the system allows no file of that size; choose another folder or raise the limit",
    errno.EACCES: "you have no permission for that; choose another folder or change its rights",
    errno.EPERM: "you have no permission for that; choose another folder or change its rights",
    errno.EROFS: "that folder is read-only; choose another one",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ENOTDIR: "a part of that path is a file, not a folder; choose another folder",
    errno.ENOENT: "that folder does not exist; choose another one",
    errno.EIO: "the disk reported a fault; try another disk",
}


def explain_os_error(error: OSError) -> str:
    """Say in plain words why the system refused, and what can be done."""
    if error.errno in _REASONS:
        return _REASONS[error.errno]
    return f"the system said: {error.strerror or type(error).__name__}"


def not_read(path: Path, error: OSError) -> PancreasSegError:
    """The error that says why a file cannot be read."""
    return PancreasSegError(f"'{path.name}' cannot be read: {explain_os_error(error)}.")


def listed(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, by name; nothing hidden: macOS leaves ``._NAME`` beside every NAME."""
    # An entry knows whether it is a folder: asking the disk 100,000 times takes minutes.
    try:
        with os.scandir(folder) as items:
            found = [item for item in items if not item.name.startswith(".")]
    except OSError as error:
        raise not_listed(folder, error) from error
    return sorted(found, key=lambda item: item.name)


def not_listed(folder: Path, error: OSError) -> PancreasSegError:
    """The error that says why a folder cannot be listed."""
    return PancreasSegError(f"The folder '{folder}' cannot be listed: {explain_os_error(error)}.")


def make_folder(folder: Path) -> None:
    """Create a folder, and those above it, if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise PancreasSegError(
            f"'{folder.name}' is a file, not a folder, so nothing can be written into it; "
            "choose another folder."
        ) from None
    except OSError as error:
        raise PancreasSegError(
            f"The folder '{folder}' cannot be created: {explain_os_error(error)}."
        ) from error


def walk(
    folder: Path, on_error: Callable[[OSError], None] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield folders from the top, as `os.walk` does, and follow links, each folder once."""
    seen = set()
    for name, folders, files in os.walk(folder, onerror=on_error, followlinks=True):
        if (real := os.path.realpath(name)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield Path(name), folders, files


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same existing file."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def check_folder(folder: Path) -> None:
    """Refuse, before any work, a folder that could not be written to; creates nothing."""
    existing = folder
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    probe = _temporary_beside(existing / "probe")
    try:
        with open(probe, "xb"):
            pass
    except OSError as error:
        raise PancreasSegError(
            f"Nothing can be written into the folder '{folder}': {explain_os_error(error)}."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def check_target(path: Path, *, overwrite: bool = False) -> None:
    """Refuse, before any work is done, a target that must not be written."""
    try:
        if path.is_dir():
            raise PancreasSegError(f"'{path.name}' is a folder; give the name of a file.")
        if path.exists() and not path.is_file():
            raise PancreasSegError(f"'{path.name}' is not a regular file; choose another name.")
        if path.exists() and not overwrite:
            raise PancreasSegError(
                f"'{path.name}' exists already and was left as it is; choose another name",
                option=" or allow overwriting (--overwrite).",
            )
    except OSError as error:
        raise _not_written(path, error) from error


@contextlib.contextmanager
def atomic_path(path: str | Path, *, overwrite: bool = False, suffix: str = "") -> Iterator[Path]:
    """Name a temporary file that becomes the target only when it is complete and on the disk."""
    path = Path(path)
    check_target(path, overwrite=overwrite)
    make_folder(path.parent)
    target = Path(os.path.realpath(path))  # a link stays a link, what it points to is replaced
    temporary = _temporary_beside(target, suffix)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        check_target(path, overwrite=overwrite)  # somebody may have written it meanwhile
        os.replace(temporary, target)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def atomic_write(path: str | Path, *, overwrite: bool = False) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears under its name only when it is complete."""
    with atomic_path(path, overwrite=overwrite) as temporary, open(temporary, "xb") as file:
        yield file


@contextlib.contextmanager
def all_or_none(folder: Path, *, last: str = "", overwrite: bool = False) -> Iterator[Path]:
    """Give a folder for files that appear in another one when all are complete, or none."""
    make_folder(folder)
    temporary = _temporary_beside(folder / "files")
    try:
        temporary.mkdir()
        yield temporary
        ready = sorted(temporary.iterdir(), key=lambda item: (item.name == last, item.name))
        for item in ready:
            check_target(folder / item.name, overwrite=overwrite)
        for item in ready:
            _move(item, folder / item.name)
    except OSError as error:
        raise _not_written(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move(source: Path, target: Path) -> None:
    """Rename a file, or write it anew where the target is a link to another disk."""
    real = Path(os.path.realpath(target))
    try:
        os.replace(source, real)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with open(source, "rb") as file, atomic_write(target, overwrite=True) as out:
            shutil.copyfileobj(file, out)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def user_folder(name: str, variable: str | None = None) -> Path:
    """Where the program keeps something of the user's; the folder may not exist yet."""
    if variable is not None and (chosen := os.environ.get(variable)):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("napari-pancreas-seg", appauthor=False)) / name


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise PancreasSegError(f"'{path.name}' cannot be read as JSON: {error}.") from error
    if not isinstance(data, dict):
        raise PancreasSegError(f"'{path.name}' must hold a JSON object.")
    return data


def write_json(
    path: str | Path, data: Any, *, overwrite: bool = False, indent: int | None = 2
) -> None:
    """Write plain data as JSON; the file appears whole or not at all."""
    text = json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    # A file's name may hold bytes that are no UTF-8. Python has them as lone surrogates, of which
    # JSON's own escape "\udcfc" is made; reading the JSON gives the same name back.
    write_text(path, text, overwrite=overwrite)


def write_text(path: str | Path, text: str, *, overwrite: bool = False) -> None:
    """Write text as UTF-8; the file appears whole or not at all."""
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(text.encode(errors="backslashreplace"))


def escaped(name: str) -> str:
    r"""A file's name as text that leads back to it: odd bytes and the backslash become ``\xNN``."""
    raw = re.sub(rb"[\x00-\x1f\x7f\\]", lambda found: b"\\x%02x" % found[0][0], os.fsencode(name))
    return raw.decode(errors="backslashreplace")


def is_plain_entry(entry: zipfile.ZipInfo) -> bool:
    """Whether it is a file, and no folder, link or device."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    return kind in (0, stat.S_IFREG) and not entry.is_dir()


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, largest: int) -> bytes:
    """Read a file; ValueError if it is encrypted, or longer than so many bytes."""
    if entry.flag_bits & 1:
        raise ValueError(f"its {entry.filename} is encrypted")
    if entry.file_size > largest:
        raise ValueError(f"its {entry.filename} is too large")
    return archive.read(entry)


def _temporary_beside(path: Path, suffix: str = "") -> Path:
    # Not tempfile: its files are private to the user, and a mask should have the rights that
    # the folder and the umask give. The name is short: the target's may be at the limit.
    return path.parent / f".{secrets.token_hex(8)}.part{suffix}"


def _not_written(path: Path, error: OSError) -> PancreasSegError:
    return PancreasSegError(f"'{path.name}' was not written: {explain_os_error(error)}.")
