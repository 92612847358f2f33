"""Which CTs go in, and under which names everything about each comes out."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference import saving
from napari_pancreas_seg.io import (
    MASK_SUFFIXES,
    SUFFIXES,
    is_dicom,
    stem,
    suffix_of,
)
from napari_pancreas_seg.io.dicom.files import is_dicom_file
from napari_pancreas_seg.io.dicom.read import is_segmentation
from napari_pancreas_seg.io.files import check_folder, explain_os_error

__all__ = [
    "TABLE",
    "Case",
    "check_targets",
    "find_inputs",
    "is_ours",
    "literal",
    "output_path",
    "plan",
]

TABLE = "cohort.csv"
"""Name of the table of all cases in the folder with their masks."""

_OURS = re.compile(r"_(mask|probability|attention_\d+)(\.raw)?$")
"""Ends of the names that we give: in a folder they are not CTs."""

_LOOKS = 32
"""At how many files, of how many folders, one looks to tell whether they are slices of a CT."""

_ENDING = re.compile(r"\.[a-z][a-z0-9]{1,5}")
"""Ends of names that were meant for files: a new folder is not called ``mask.tif``."""


@dataclass(frozen=True)
class Case:
    """A CT to segment and where its files go.

    Parameters
    ----------
    source : Path
        The CT.
    mask : Path
        Where the mask goes.
    maps : str
        Start of the names of the probability and attention files, beside the mask.
    series : str, optional
        Which of several DICOM series.
    """

    source: Path
    mask: Path
    maps: str
    series: str | None = None

    @property
    def sidecar(self) -> Path:
        """Provenance and measurements."""
        return saving.sidecar_path(self.mask)

    @property
    def probability(self) -> Path:
        """The probability, at the network's resolution."""
        return saving.probability_path(self.mask, self.maps)

    def attention(self, number: int) -> Path:
        """Attention coefficients of a gate, 1 for the finest."""
        return saving.attention_path(self.mask, self.maps, number)


def find_inputs(paths: Sequence[str | Path]) -> list[Path]:
    """List the CTs that files and folders stand for.

    Parameters
    ----------
    paths : sequence of str or Path
        Files are taken as they are, and so is a folder with DICOM files. Of another folder all
        volumes in it (``.nii.gz`` and so on, but the masks and maps that an earlier run left
        there), the folders in it that hold DICOM files, each as one case, and zips of such. DICOM
        segmentations, and what an earlier run left there as DICOM, make no folder a case.

    Returns
    -------
    list of Path
        In the order given, within a folder by name; each once.

    Raises
    ------
    PancreasSegError
        If a folder holds no CT or cannot be listed.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        path = path if path.name else path.resolve()  # "." has no name to give to a mask
        for item in _in_folder(path) if path.is_dir() else [path]:
            found.setdefault(item.absolute(), item)
    return list(found.values())


def is_ours(path: Path) -> bool:
    """Whether a file's name is one that we give to what we write into a folder."""
    # Not `stem`, which asks the disk: a DICOM series is thousands of files.
    suffix = suffix_of(path)
    name = path.name[: -len(suffix)] if suffix else path.stem
    return path.name == TABLE or _OURS.search(name) is not None


def output_path(source: Path, output: Path, single: bool, suffix: str = ".nii.gz") -> Path:
    """Where the mask of a CT goes.

    Parameters
    ----------
    source : Path
        The CT.
    output : Path
        What the user asked for.
    single : bool
        Whether `output` is the mask itself rather than a folder.
    suffix : str
        Ending of the masks in a folder.
    """
    return output if single else output / f"{stem(source)}_mask{suffix}"


def plan(
    inputs: Sequence[Path],
    output: str | Path,
    suffix: str | None = None,
    series: str | None = None,
) -> list[Case]:
    """Decide where everything goes, before any work is done.

    Parameters
    ----------
    inputs : sequence of Path
        The CTs.
    output : str or Path
        For one CT a file of any format that a mask can be written to, else a folder.
    suffix : str, optional
        Ending of the masks in a folder, ``.nii.gz`` if it is not given.
    series : str, optional
        Which of several DICOM series.

    Raises
    ------
    PancreasSegError
        If the output is one file for several CTs, or of a format that is not written, if two
        CTs would have the same mask, or if nothing can be written there.
    """
    output = Path(output)
    is_file = output.name.lower().endswith(MASK_SUFFIXES) and not output.is_dir()
    if is_file and suffix is not None:
        raise PancreasSegError(
            f"'{output.name}' is a file, whose name says its format; leave --format out, or give a "
            "folder."
        )
    if is_file and len(inputs) > 1:
        raise PancreasSegError(
            f"'{output.name}' is one file for {len(inputs)} CTs; give a folder as output."
        )
    if not is_file and not output.is_dir() and _ENDING.fullmatch(output.suffix.lower()):
        raise PancreasSegError(
            f"'{output.name}' is of a format that is not written; end its name in .nii.gz, or "
            "give a folder."
        )
    cases = [
        Case(source, mask, stem(mask) if is_file else stem(source), series)
        for source in inputs
        for mask in [output_path(source, output, is_file, suffix or ".nii.gz")]
    ]
    seen: dict[str, Path] = {}
    for case in cases:
        other = seen.setdefault(case.mask.name.lower(), case.source)
        if other is not case.source:
            raise PancreasSegError(
                f"'{other}' and '{case.source}' would both give '{case.mask.name}'; rename one of "
                "them or give them different output folders."
            )
    check_folder(output.parent if is_file else output)
    return cases


def check_targets(case: Case, *, attention: bool, probability: bool, overwrite: bool) -> None:
    """Refuse a case some of whose files must not be written; see `saving.check_targets`."""
    saving.check_targets(
        case.mask,
        case.maps,
        case.source,
        attention=attention,
        probability=probability,
        overwrite=overwrite,
    )


def _in_folder(folder: Path) -> list[Path]:
    try:
        items = sorted(folder.iterdir())
    except OSError as error:
        raise PancreasSegError(
            f"The folder '{folder}' cannot be listed: {explain_os_error(error)}."
        ) from error
    if _holds_slices(folder, below=False):
        return [folder]
    found = [item for item in items if not item.name.startswith(".") and _is_ct(item)]
    if not found:
        raise PancreasSegError(
            f"The folder '{folder}' holds no CT (.nii.gz and so on, or DICOM); give another one."
        )
    if len(found) == 1 and any(item.name.upper() == "DICOMDIR" for item in items):
        # On every CD the folder of the first patient has the same name, such as PT000000.
        return [folder]
    return found


def _is_ct(item: Path) -> bool:
    """Whether something in a folder is taken for a CT."""
    if item.is_dir():
        return _holds_slices(item)
    return _is_volume(item) or (_is_zip(item) and is_dicom(item))


def _holds_slices(folder: Path, *, below: bool = True) -> bool:
    """Whether a folder, or one below it, holds DICOM files that are neither masks nor ours.

    A look at the beginning of a few tells. Masks of CTs lie beside the folders of these, or in a
    folder of their own beside them.
    """
    return any(
        is_dicom_file(file) and not is_segmentation(file)
        for files in itertools.islice(_files_below(folder), _LOOKS if below else 1)
        for file in files[:: max(1, len(files) // _LOOKS)]
    )


def _files_below(folder: Path) -> Iterator[list[Path]]:
    """Yield the files of a folder and of each one below it that may be slices."""
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = [Path(here, name) for name in sorted(names) if not name.startswith(".")]
        yield [file for file in files if file.name.upper() != "DICOMDIR" and not is_ours(file)]


def _is_volume(item: Path) -> bool:
    known = item.name.lower().endswith(SUFFIXES)
    return known and not is_ours(item)


def _is_zip(item: Path) -> bool:
    return item.suffix.lower() == ".zip"


def literal(name: str) -> str:
    """A name as a pattern that matches it alone."""
    return re.sub(r"([*?[])", r"[\1]", name)
