"""What a DICOM series leaves behind for those who write back onto it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pydicom


@dataclass(frozen=True, eq=False)
class DicomHeader:
    """The headers of a CT series; its source array has the axes column, row, slice."""

    # Headers without pixel data; one for each slice, or the one of a multi-frame object. Patient
    # data are in them: nothing of them belongs in a log.
    datasets: tuple[pydicom.Dataset, ...]
    # Where each dataset was read from. For a series in a zip, the zip followed by the name within
    # it.
    files: tuple[Path, ...]
    multiframe: bool = False  # whether all slices come from one multi-frame object
    # For a multi-frame object the number of each slice's frame, from 1; else empty.
    frames: tuple[int, ...] = ()
