"""Finding the DICOM files that a path stands for, and reading their headers safely.

pydicom parses; what it cannot know is guarded here: a length that a damaged header declares is
never read beyond the end of the file, and deflated data never grow beyond a limit.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.files import is_plain_entry, read_entry, walk
from napari_pancreas_seg.io.memory import LARGEST_RATIO, check_expansion, check_fits

if TYPE_CHECKING:
    from pydicom import Dataset

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_MOST_THREADS = 8
_HEAD = 1024  # bytes that tell a DICOM file from others and name its transfer syntax
_MOST_FILES = 100_000  # a folder with more is not one export of a scanner but a whole archive

_MOST_LEVELS = 8
"""A DICOM medium has patient, study, series below its root; some add a level or two."""

_PREAMBLE = 132  # zeros, as a rule, and the mark
_LOOKS = 32  # at how many files, of how many folders, one looks to tell whether they are DICOM

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_EXPLICIT = b"1.2.840.10008.1.2.1\0\0\0"

_SMALLEST_LIMIT = 1 << 26  # deflated data may always grow to this many bytes

_FIRST_GROUPS = (b"\x08\x00", b"\x02\x00")
"""First bytes of a dataset without preamble: group 0008, or 0002, in little endian."""

_WORTH_CHECKING = 1 << 16  # shorter reads need no look at how much is left


@dataclass(frozen=True, eq=False)
class DicomFile:
    """A DICOM file in a folder or in a zip."""

    path: Path  # the file; in a zip, the zip's path followed by the name within it
    size: int  # its length in bytes
    open: Callable[[], BinaryIO]  # opens it for reading


@contextlib.contextmanager
def find_files(path: Path) -> Iterator[tuple[list[DicomFile], DicomFile | None]]:
    """List the DICOM files that a path stands for; whatever else lies there is passed over."""
    if path.is_dir():
        yield _in_folder(path), None
    elif is_zip(path):
        with zipfile.ZipFile(path) as archive:
            yield _in_zip(path, archive), None
    elif path.name.upper() == "DICOMDIR":
        yield _in_folder(path.absolute().parent), None
    else:
        if not is_dicom_file(path):
            raise PancreasSegError(f"'{path.name}' is not a DICOM file; export it again.")
        files = _dicom_files(_entries(path.absolute().parent))
        wanted = next((file for file in files if file.path.name == path.name), None)
        if wanted is None:  # hidden, or a link
            wanted = _on_disk(path)
            files.append(wanted)
        yield files, wanted


def is_dicom_file(path: Path) -> bool:
    """Whether a file begins like DICOM; False if it cannot be read."""
    return _is_dicom(_head_if_readable(path))


def is_zip(path: Path) -> bool:
    """Whether a file begins as a zip does; False if it cannot be read."""
    return _head_if_readable(path)[:4] == b"PK\3\4"


def is_dicom_folder(
    path: Path, *, below: bool = True, counts: Callable[[Path], bool] = is_dicom_file
) -> bool:
    """Whether a folder holds a file that `counts`, itself or `below`; looks at a few only."""
    return any(
        counts(folder / name)
        for folder, files in itertools.islice(_walk(path), _LOOKS if below else 1)
        for name in _few(files)
    )


def _few(names: Iterable[str]) -> list[str]:
    """A few of many files, evenly: those named as DICOM first, for previews may lie beside each."""
    ordered = sorted(names, key=lambda name: not name.lower().endswith((".dcm", ".dicom", ".ima")))
    return ordered[:: max(1, len(ordered) // _LOOKS)]


def is_dicom_zip(path: Path) -> bool:
    """Whether a zip holds a DICOM file; looks at the beginning of a few only."""
    if not is_zip(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            for name in _few(e.filename for e in archive.infolist() if _is_plain_file(e)):
                with archive.open(name) as stream:
                    if _is_dicom(stream.read(_HEAD)):
                        return True
    except (OSError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error):
        return False  # encrypted, packed in an unusual way, or damaged
    return False


def read_header(
    stream: BinaryIO, tags: Sequence[int] | None = None
) -> tuple[Dataset, BinaryIO, bool]:
    """Read a header up to the pixel data."""
    from pydicom import dcmread

    head = stream.read(_HEAD)
    stream.seek(0)
    if _DEFLATED in head and head[128:132] == b"DICM":
        stream = _inflated(head, stream)
    dataset = dcmread(
        stream,
        stop_before_pixels=True,
        force=head[128:132] != b"DICM",
        specific_tags=None if tags is None else list(tags),
    )
    at = stream.tell()
    tag = stream.read(4)
    stream.seek(at)
    return dataset, stream, tag in (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")


def in_threads(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """Work on several items at a time, in the order of the items; an error stops the others."""
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, items))


class _Bounded(io.BufferedReader):
    """A file of which no more is read than there is: `read` would take the memory first."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _WORTH_CHECKING:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def open_file(path: Path) -> BinaryIO:
    """Open a file of which no more is read than there is, whatever lengths it declares."""
    return _Bounded(io.FileIO(path, "rb"))


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(_HEAD)


def _head_if_readable(path: Path) -> bytes:
    with contextlib.suppress(OSError):
        if path.is_file():
            return _head(path)
    return b""


def _is_dicom(head: bytes) -> bool:
    """Whether a file that begins so is DICOM: by its mark, or a plausible first element."""
    if head[128:132] == b"DICM":
        return True
    if len(head) < 132 or head[:2] not in _FIRST_GROUPS or head[3] != 0 or head[2] > 0x70:
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return explicit or int.from_bytes(head[4:8], "little") <= 256


def _stop(error: OSError) -> None:
    raise error


def _walk(
    folder: Path, on_error: Callable[[OSError], None] | None = None
) -> Iterator[tuple[Path, list[str]]]:
    """Yield folders with the names of the files in them, from the top."""
    root = len(folder.parts)
    for here, folders, files in walk(folder, on_error):
        folders[:] = sorted(item for item in folders if not item.startswith("."))
        if len(here.parts) - root >= _MOST_LEVELS:
            folders.clear()
        yield here, sorted(filter(_may_be_image, files))


def _in_folder(folder: Path) -> list[DicomFile]:
    files = _dicom_files(_entries(folder)) or files_below(folder)
    if not files:
        raise PancreasSegError(
            f"The folder '{_name(folder)}' holds no DICOM files; give the folder of a CT series."
        )
    return files


def files_below(folder: Path) -> list[DicomFile]:
    """List the DICOM files in the folders below one."""
    return _dicom_files(
        here / name for here, names in _walk(folder, _stop) for name in names if here != folder
    )


def samples_below(folder: Path) -> list[DicomFile]:
    """List a DICOM file of each of the first folders below one."""
    below = itertools.islice(_walk(folder), 1, _LOOKS)
    firsts = [here / name for here, names in below for name in names[:1]]
    return [_on_disk(path) for path in firsts if is_dicom_file(path)]


def _entries(folder: Path) -> list[Path]:
    return sorted(item for item in folder.iterdir() if _may_be_image(item.name))


def _may_be_image(name: str) -> bool:
    """Whether a file is neither hidden nor the table of contents of a medium."""
    return not name.startswith(".") and name.upper() != "DICOMDIR"


def _dicom_files(paths: Iterable[Path]) -> list[DicomFile]:
    """Return those that are DICOM; and, beside such, those of which nothing but zeros is left."""
    found, lost = [], []
    for number, path in enumerate(paths):
        if number >= _MOST_FILES:
            raise PancreasSegError(
                f"There are more than {_MOST_FILES} files in '{_name(path.parent)}' and around it; "
                "give the folder of one CT series."
            )
        if not path.is_file():
            continue
        head = _head(path)
        if _is_dicom(head):
            found.append(_on_disk(path))
        elif len(head) <= _PREAMBLE and not head.strip(b"\0"):
            lost.append(_on_disk(path))
    return found + lost if found else []


def _on_disk(path: Path) -> DicomFile:
    return DicomFile(path, path.stat().st_size, lambda: open_file(path))


def _in_zip(path: Path, archive: zipfile.ZipFile) -> list[DicomFile]:
    """List the DICOM files in a zip. Nothing is extracted: each is read into memory by itself."""
    entries = [entry for entry in archive.infolist() if _is_plain_file(entry)]
    if len(entries) > _MOST_FILES:
        raise PancreasSegError(f"'{path.name}' holds more than {_MOST_FILES} files; zip one CT.")
    if any(entry.flag_bits & 1 for entry in entries):
        raise PancreasSegError(f"'{path.name}' is encrypted; unpack it and give its folder.")
    largest = max((entry.file_size for entry in entries), default=0)
    check_expansion(path.name, path.stat().st_size, sum(entry.file_size for entry in entries))
    check_fits(path.name, largest, "Unpacking one of its files")
    files = []
    for entry in sorted(entries, key=lambda entry: entry.filename):
        with archive.open(entry) as stream:
            if not _is_dicom(stream.read(_HEAD)):
                continue
        files.append(_zipped(path, archive, entry))
    if not files:
        raise PancreasSegError(f"'{path.name}' holds no DICOM files; give the zip of a CT series.")
    return files


def _is_plain_file(entry: zipfile.ZipInfo) -> bool:
    return is_plain_entry(entry) and _may_be_image(entry.filename.rpartition("/")[2])


def _zipped(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> DicomFile:
    return DicomFile(
        path / entry.filename.lstrip("/"),
        entry.file_size,
        # To its end, where the checksum is verified.
        lambda: io.BytesIO(read_entry(archive, entry, entry.file_size)),
    )


def _inflated(head: bytes, stream: BinaryIO) -> BinaryIO:
    """Inflate the dataset of a deflated file, up to a limit, and call it explicit."""
    start = 144 + int.from_bytes(head[140:144], "little")
    if head[132:138] != b"\x02\x00\x00\x00UL" or start > len(head):
        raise ValueError("the meta information of a deflated file makes no sense")
    stream.seek(start)
    packed = stream.read()
    limit = max(_SMALLEST_LIMIT, LARGEST_RATIO * len(packed))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(packed, limit)
    if not inflater.eof:
        what = "expands too far" if len(data) >= limit else "breaks off"
        raise zlib.error(f"the deflated data set {what}")
    return io.BytesIO(head[:start].replace(_DEFLATED, _EXPLICIT) + data)


def _name(folder: Path) -> str:
    return folder.name or folder.absolute().name
