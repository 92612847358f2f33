"""From a path, or an image in memory, to a CT, a mask or a map, whatever the format."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from napari_pancreas_seg.arrays import Array, Labels
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.hounsfield import scale, scale_ct, to_hounsfield
from napari_pancreas_seg.io.dicom import read as dicom
from napari_pancreas_seg.io.dicom.read import is_dicom
from napari_pancreas_seg.io.dicom.seg_read import read_segmentation
from napari_pancreas_seg.io.files import not_read
from napari_pancreas_seg.io.images import read_image
from napari_pancreas_seg.io.itk import read as itk
from napari_pancreas_seg.io.nifti import read as nifti
from napari_pancreas_seg.io.raw import RawImage
from napari_pancreas_seg.io.suffixes import DICOM, METAIMAGE, NIFTI, NRRD, PAIR, list_suffixes, stem
from napari_pancreas_seg.io.voxels import are_labels, holds_labels, labels_in
from napari_pancreas_seg.volume import CTVolume, Source, Volume

logger = logging.getLogger(__name__)

AnyVolume = TypeVar("AnyVolume", CTVolume, Volume)


_Format = tuple[str, Callable[[Path], RawImage]]

_FORMATS: dict[tuple[str, ...], _Format] = {
    (*NIFTI, *PAIR): ("nifti", nifti.read),
    NRRD: ("nrrd", itk.read),
    METAIMAGE: ("metaimage", itk.read),
}
"""Formats of one array in one file, or in two, by the files' endings."""

SUFFIXES = (*NIFTI, PAIR[0], *NRRD, *METAIMAGE)
"""Endings of the files that stand for a volume, lower case; DICOM files have any."""


class Sniffed(NamedTuple):
    """What a file holds: ``"CT"``, ``"mask"`` or ``"map"``; the values of a CT are unchecked."""

    kind: str
    volume: CTVolume | Volume
    type_name: str  # of the numbers in the file; empty if that does not say much, as with DICOM


def load_ct(ct: Any, *, series: str | int | None = None, force: bool = False) -> CTVolume:
    """Load a CT from a file or a folder, or take it from an image in memory.

    Parameters
    ----------
    ct : str, Path, nibabel image, SimpleITK.Image or CTVolume
        A path: of a file with one volume in Hounsfield units, NIfTI (``.nii.gz``, ``.nii``, a
        pair ``.hdr`` and ``.img``), NRRD (``.nrrd``, ``.nhdr``) or MetaImage (``.mha``,
        ``.mhd``); or of DICOM, a folder or a zip with a series, or any one of its files, whatever
        its name. Or an image, which is copied and checked as a file is. A CTVolume is returned as
        it is; for arrays see `CTVolume.from_array`.
    series : str or int, optional
        Which series of several in one DICOM folder: its number, its UID, or its place in the
        list (``"#2"``) that the refusal gives. Not needed where one of them is a CT volume.
    force : bool
        Take the values for Hounsfield units as they are, even if they do not look like it.

    Returns
    -------
    CTVolume
        The CT in display order: int16 if its values are integers that fit, else float32.
        Voxels without a value (NaN, infinite) become air. What was unusual is in ``notes``.

    Raises
    ------
    PancreasSegError
        If the file cannot be read, is damaged, or does not hold a CT in Hounsfield units.
    """
    if isinstance(ct, CTVolume):
        return ct
    if isinstance(ct, str | os.PathLike):
        if not os.fspath(ct):  # which pathlib takes for the current folder
            raise PancreasSegError("The path of the CT is empty.")
        path = _named(ct)
        found, raw = _read(path, series)
        return check_ct(_ct(path, found, raw), force=force)
    found, name, raw, file = read_image(ct)
    if series is not None:
        raise PancreasSegError("An image in memory has no series to choose; leave series out.")
    volume = check_ct(_ct(None, found, raw, name), force=force)
    return replace(volume, source=replace(volume.source, path=file))


def sniff(path: str | Path, *, series: str | int | None = None) -> Sniffed:
    """Read a file once: a CT, a mask (labels, or DICOM-SEG), or a map of ours."""
    path = _named(path)
    if _format(path) is None and dicom.is_segmentation(path):
        return Sniffed("mask", _mask(path, "dicom", read_segmentation(path)), "")
    found, raw = _read(path, series)
    if raw.is_map:
        return Sniffed("map", _map(path, found, raw), raw.type_name)
    if found != "dicom" and holds_labels(raw):
        return Sniffed("mask", _mask(path, found, raw), raw.type_name)
    return Sniffed("CT", _ct(path, found, raw), raw.type_name)


def check_ct(volume: CTVolume, *, force: bool = False) -> CTVolume:
    """Take a volume from `sniff` for a CT, with its values in HU, which may overwrite them."""
    subject = _subject(volume.source.path, volume.name)
    hu, more = to_hounsfield(volume.hu, subject, reuse=True, force=force)
    notes = volume.notes + more
    for note in notes:
        logger.info("%s", note)
    return replace(volume, hu=hu, notes=notes)


def load_mask(path: str | Path) -> tuple[Labels, Volume]:
    """Load a mask or label map.

    Parameters
    ----------
    path : str or Path
        A file with whole numbers from 0 to 255 (stored in any type): NIfTI, NRRD, MetaImage or
        DICOM-SEG.

    Returns
    -------
    mask : ndarray, shape (Z, Y, X), uint8
        The labels in display order.
    volume : Volume
        The same as ``values``, with the ``grid`` they lie on, the ``source`` they came from, and
        ``notes`` on what was unusual.

    Raises
    ------
    PancreasSegError
        If the file cannot be read or does not hold labels.
    """
    if not isinstance(path, str | os.PathLike):
        raise PancreasSegError("A mask is loaded from a file; give its path.")
    if not os.fspath(path):
        raise PancreasSegError("The path of the mask is empty.")
    path = Path(path)
    if os.path.isdir(path):
        raise PancreasSegError(f"'{path.name}' is a folder; give the file of a mask.")
    known = _format(path)
    found, read = known or ("dicom", read_segmentation)
    raw = read(path)
    volume = _mask(path, found, raw)
    return volume.values, volume


def _ct(path: Path | None, found: str, raw: RawImage, name: str = "CT") -> CTVolume:
    values, notes = scale_ct(raw.stored, raw.slope, raw.intercept, _subject(path, name))
    raw = replace(raw, notes=raw.notes + notes)
    volume = _in_display_order(CTVolume, path, found, raw, values, name)
    stamp = stamp_of(files_read(volume.source))
    return replace(volume, source=replace(volume.source, stamp=stamp))


def _named(path: str | os.PathLike[str]) -> Path:
    """A path with a name for messages, which "." has not."""
    return Path(path) if Path(path).name else Path(path).resolve()


def _subject(path: Path | None, name: str) -> str:
    return f"'{path.name}'" if path else f"The image '{name}'"


def _mask(path: Path, found: str, raw: RawImage) -> Volume:
    labels = raw.stored
    if labels.dtype != np.uint8 or (raw.slope, raw.intercept) != (1.0, 0.0):
        values, invalid = scale(labels, raw.slope, raw.intercept)
        if not are_labels(values):
            other = "voxels without a value" if invalid else f"{values[~labels_in(values)][0]:g}"
            raise PancreasSegError(
                f"'{path.name}' is not a mask: a mask holds whole numbers from 0 to 255 only, and "
                f"this file {other}; number its labels anew."
            )
        labels = (values if values.dtype.kind == "i" else np.rint(values)).astype(np.uint8)
    return _in_display_order(Volume, path, found, raw, labels)


def _map(path: Path, found: str, raw: RawImage) -> Volume:
    values = scale(raw.stored, raw.slope, raw.intercept).values.astype(np.float32)
    if values.min() < 0 or values.max() > 1:
        raise PancreasSegError(f"'{path.name}' is not a map: a map holds values from 0 to 1 only.")
    return _in_display_order(Volume, path, found, raw, values)


def _format(path: Path) -> _Format | None:
    """Return the format of a file; None for DICOM, whose files have any name or none that tells."""
    try:
        if not path.exists():
            raise PancreasSegError(f"'{path}' does not exist; check the path.")
        if path.is_dir():
            if is_dicom(path):
                return None
            raise PancreasSegError(
                f"'{path.name or path}' is a folder without DICOM files; give a CT as .nii.gz, or "
                "the folder of a DICOM series."
            )
        if not path.is_file():
            raise PancreasSegError(
                f"'{path.name}' is not a regular file; give one such as .nii.gz."
            )
    except OSError as error:
        raise not_read(path, error) from error
    for suffixes, known in _FORMATS.items():
        if path.name.lower().endswith(suffixes):
            return known
    if path.name.lower().endswith((*DICOM, ".zip")) or is_dicom(path):
        return None
    raise PancreasSegError(
        f"'{path.name}' is of no known format; give a CT as {list_suffixes(SUFFIXES)}, or DICOM."
    )


def files_of(path: Path) -> list[Path]:
    """List the files that a volume of one file is read from: its header, and its data if apart."""
    if path.name.lower().endswith((*NRRD, *METAIMAGE)):
        return sorted({path, itk.layout_of(path).data})
    return sorted({*nifti.header_and_data(path)})


def files_read(source: Source) -> list[Path]:
    """List the files that a CT was read from, each once; none if they are gone."""
    # Those of the one series, not all that may lie in the folder; a detached header's data.
    files = {Path(file) for file in getattr(source.header, "files", ())}
    if files and all(file.is_file() for file in files):
        return sorted(files)
    if source.path is not None and source.path.is_file():
        with contextlib.suppress(PancreasSegError):  # one of a pair is gone
            return files_of(source.path)
    return []


def stamp_of(files: Iterable[Path]) -> tuple[tuple[int, int], ...]:
    """Sizes and times of files, by which a change is known; empty if one has gone."""
    try:
        return tuple((at.st_size, at.st_mtime_ns) for at in map(os.stat, files))
    except OSError:
        return ()


def _read(path: Path, series: str | int | None = None) -> tuple[str, RawImage]:
    known = _format(path)
    if known is None:
        return "dicom", dicom.read(path, series)
    if series is not None:
        raise PancreasSegError(
            f"'{path.name}' is not DICOM, so no series of it can be chosen; leave series out",
            option=" (--series).",
        )
    found, read = known
    return found, read(path)


def _in_display_order(
    kind: type[AnyVolume],
    path: Path | None,
    found: str,
    raw: RawImage,
    values: Array,
    name: str = "",
) -> AnyVolume:
    try:
        return kind.from_source_array(
            values,
            raw.affine,
            path=path,
            format=found,
            header=raw.header,
            name=stem(raw.whole or path) if path else name,
            notes=raw.notes,
            reuse=True,  # nobody else has it
        )
    except PancreasSegError as error:
        raise PancreasSegError(
            f"'{path.name if path else name}' cannot be placed in space because its affine is "
            "singular or not finite; repair its header or convert it again."
        ) from error
