"""Reading a CT from DICOM: a folder, a file of a series, a zip, or a multi-frame object."""

from __future__ import annotations

import contextlib
import errno
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.dicom import files as dicom_files
from napari_pancreas_seg.io.dicom.files import DicomFile, is_dicom_file
from napari_pancreas_seg.io.dicom.geometry import place
from napari_pancreas_seg.io.dicom.pixels import read_hounsfield, same_pixels
from napari_pancreas_seg.io.dicom.seg_read import CLASSES
from napari_pancreas_seg.io.dicom.slices import DicomHeader, Slice, slices_of
from napari_pancreas_seg.io.dicom.stacks import Stack, choose, odd_slices, stacks_of
from napari_pancreas_seg.io.memory import check_expansion, check_fits
from napari_pancreas_seg.io.quiet import quiet_libraries
from napari_pancreas_seg.io.raw import RawImage
from napari_pancreas_seg.io.suffixes import PAIR, VOLUME
from napari_pancreas_seg.io.voxels import reading

_NO_SLICES = tuple(f"1.2.840.10008.5.1.4.1.1.{number}." for number in (11, 66, 88, 104, 481))
"""Beginnings of the classes of presentation states, segmentations, structured reports, encapsulated
documents and objects of radiotherapy."""

_NO_FILES_OF_A_SERIES = (*VOLUME, *PAIR, ".zip")
"""Endings of files of which, among thousands, none is opened."""


def read(path: Path, series: str | int | None = None) -> RawImage:
    """Read the CT that a path stands for."""
    with _reading(path), dicom_files.find_files(path) as (files, wanted):
        name = path.name
        slices, damaged = _slices(files, wanted)
        if path.is_dir() and not any(stack.is_volume for stack in stacks_of(slices)):
            # A report or a scout above the folders of the series.
            more, broken = _slices(dicom_files.files_below(path), None)
            slices, damaged = slices + more, damaged + broken
        if not slices:
            raise PancreasSegError(
                f"'{name}' is damaged: no DICOM header in it can be read; copy or export it again."
            )
        asked = None if series is None else str(series)
        stacks = stacks_of(slices)
        stack, notes = choose(name, stacks, asked, wanted)
        if path.is_dir():
            notes += _split(path, stack.first.uid, slices)
        _check_size(name, stack.slices)
        chosen = set(map(id, stack.slices))
        others = [item for item in slices if not item.fault and id(item) not in chosen]
        ordered, affine, on_place = place(name, stack.slices, same_pixels, others)
        hu, headers, on_pixels = read_hounsfield(ordered)
    multiframe = ordered[0].frame > 0
    header = DicomHeader(
        headers,
        tuple(dict.fromkeys(item.file.path for item in ordered)),
        multiframe,
        tuple(item.frame for item in ordered) if multiframe else (),
    )
    notes = (*notes, *_damage(damaged), *on_place, *odd_slices(ordered), *on_pixels)
    return RawImage(hu, 1.0, 0.0, affine, header, notes, whole=_whole(path, stack, stacks, wanted))


def named_after(path: Path) -> Path:
    """What a CT is named after: its path, or the folder of which a file shows the only CT."""
    other = path.name.lower().endswith(_NO_FILES_OF_A_SERIES) or not path.is_file()
    if other or not (path.name.upper() == "DICOMDIR" or is_dicom_file(path)):
        return path
    with contextlib.suppress(PancreasSegError), _reading(path):
        with dicom_files.find_files(path) as (files, wanted):
            stacks = stacks_of(_slices(files, wanted)[0])
        return _whole(path, choose(path.name, stacks, None, wanted)[0], stacks, wanted) or path
    return path  # it fails when it is read


def _whole(
    path: Path, stack: Stack, stacks: Sequence[Stack], wanted: DicomFile | None
) -> Path | None:
    """The folder of a file, if it would give the same stack and the file holds a part of that."""
    if path.name.upper() == "DICOMDIR" and path.is_file():
        return path.absolute().parent
    if wanted is None or len({item.file for item in stack.slices}) == 1:
        return None
    with contextlib.suppress(PancreasSegError):
        if choose(path.name, stacks, None, None)[0] is stack:
            return path.absolute().parent
    return None


def is_dicom(path: Path, *, below: bool = True) -> bool:
    """Whether a path stands for DICOM files, as a look at the beginning of a few tells."""
    if path.is_dir():
        return dicom_files.is_dicom_folder(path, below=below)
    return is_dicom_file(path) or dicom_files.is_dicom_zip(path)


def is_segmentation(path: Path) -> bool:
    """Whether a file is a DICOM segmentation; False if it cannot be read."""
    return is_dicom_file(path) and _uid(path, 0x00080016) in CLASSES


def may_be_slice(path: Path) -> bool:
    """Whether a file is DICOM, and by its class no segmentation, report or radiotherapy object."""
    return is_dicom_file(path) and not _uid(path, 0x00080016).startswith(_NO_SLICES)


def one_of_each_series(paths: Iterable[Path]) -> list[Path]:
    """Drop the DICOM files of a series in a folder but the first: one stands for all of them."""
    paths = list(paths)
    unknown = (path for path in paths if not path.name.lower().endswith(_NO_FILES_OF_A_SERIES))
    slices = [path for path in unknown if path.is_file() and is_dicom_file(path)]
    kept: dict[tuple[Path, str], Path] = {}
    for path in slices if len(slices) > 1 else ():
        kept.setdefault((path.absolute().parent, _uid(path, 0x0020000E) or path.name), path)
    dropped = {*slices} - {*kept.values()} if kept else set()
    return [path for path in paths if path not in dropped]


def _uid(path: Path, tag: int) -> str:
    """A UID in a DICOM file; empty if it cannot be read."""
    try:
        with _reading(path), open(path, "rb") as file:
            header, data, _ = dicom_files.read_header(file, [tag])
            data.close()
            return str(header[tag].value) if tag in header else ""
    except PancreasSegError:
        return ""


def _slices(
    files: Sequence[DicomFile], wanted: DicomFile | None
) -> tuple[list[Slice], list[DicomFile]]:
    """Read all headers; return the slices, and the files whose header makes no sense."""

    def read_one(file: DicomFile) -> list[Slice] | None:
        try:
            return slices_of(file)
        except (PancreasSegError, MemoryError):
            raise
        except Exception as error:  # pydicom raises a dozen types on a damaged header
            if file is wanted or (isinstance(error, OSError) and error.errno is not None):
                raise
            return None

    found = dicom_files.in_threads(read_one, files)
    damaged = [file for file, slices in zip(files, found, strict=True) if slices is None]
    return [item for slices in found for item in slices or ()], damaged


def _damage(files: Sequence[DicomFile]) -> tuple[str, ...]:
    if not files:
        return ()
    what = "1 DICOM file" if len(files) == 1 else f"{len(files)} DICOM files"
    return (
        f"{what} beside this CT cannot be read and took no part: if it belongs to the CT, slices "
        "at its end are missing.",
    )


def _split(folder: Path, uid: str, slices: Sequence[Slice]) -> tuple[str, ...]:
    """Note that folders below hold files of the series, too, where none of them was read."""
    known = {item.file.path for item in slices}
    below, _ = _slices(
        [file for file in dicom_files.samples_below(folder) if file.path not in known], None
    )
    if not uid or all(item.uid != uid for item in below):
        return ()
    return (
        "Folders below hold more files of this series, which took no part: if they belong to the "
        "CT, slices at its end are missing.",
    )


def _check_size(name: str, slices: Sequence[Slice]) -> None:
    """Refuse, before memory is taken, what the files cannot hold or memory cannot."""
    plane = slices[0].plane
    declared = 2 * plane.rows * plane.columns * len(slices)
    files = {id(item.file): item.file.size for item in slices}
    check_expansion(name, sum(files.values()), declared)
    check_fits(name, declared + 8 * plane.rows * plane.columns)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file provokes into one sentence, and keep the libraries silent."""
    try:
        with quiet_libraries(), reading(path, "DICOM"):
            yield
    except PancreasSegError as error:
        cause = error.__cause__
        damaged = isinstance(cause, zipfile.BadZipFile | NotImplementedError | zlib.error)
        if damaged or (isinstance(cause, OSError) and cause.errno in (None, errno.EINVAL)):
            raise PancreasSegError(
                f"'{path.name}' is truncated, damaged, or packed in a way that cannot be read; "
                "copy or download it again."
            ) from error
        raise
