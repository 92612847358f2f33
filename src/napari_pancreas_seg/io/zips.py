"""Files in zips that come from others: read into memory, never unpacked."""

from __future__ import annotations

import stat
import zipfile


def is_plain(entry: zipfile.ZipInfo) -> bool:
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
