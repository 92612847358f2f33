"""From the pixel data of a DICOM stack to Hounsfield units."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.hounsfield import AIR_HU, scale
from napari_pancreas_seg.io.dicom.codecs import Layout, frames
from napari_pancreas_seg.io.dicom.files import DicomFile, read_header
from napari_pancreas_seg.io.dicom.slices import Slice

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["Hounsfield", "read_hounsfield", "same_pixels"]

Array = npt.NDArray[Any]

_INT16 = np.iinfo(np.int16)

_BODY_HU = (-200.0, 2000.0)
"""A padding value in this range is doubted: it would turn fat, soft tissue or bone into air."""

_MOST_THREADS = 8


class Hounsfield(NamedTuple):
    """The values of a stack.

    Parameters
    ----------
    hu : ndarray, shape (columns, rows, slices)
        Hounsfield units: int16 if all of them fit, else float32.
    headers : tuple of pydicom.Dataset
        Header of each slice's file, or the one of a multi-frame object, without pixels, private
        elements and overlays.
    notes : tuple of str
        Notes for the user.
    """

    hu: Array
    headers: tuple[Dataset, ...]
    notes: tuple[str, ...]


def read_hounsfield(slices: Sequence[Slice]) -> Hounsfield:
    """Read the values of a stack, several files at a time.

    Parameters
    ----------
    slices : sequence of Slice
        All of one size, in order.

    Raises
    ------
    PancreasSegError
        If a file is damaged or stored in a way that cannot be read.
    """
    plane = slices[0].plane
    volume = _Volume((plane.columns, plane.rows, len(slices)))
    wanted: dict[DicomFile, dict[int, int]] = defaultdict(dict)
    for k, item in enumerate(slices):
        wanted[item.file][max(1, item.frame)] = k

    def read(file: DicomFile) -> tuple[Dataset, set[str]]:
        with _naming(file):
            return _read_file(file, wanted[file], volume)

    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        try:
            results = list(pool.map(read, wanted))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    notes = sorted(set[str]().union(*(found for _, found in results)))
    return Hounsfield(volume.values, tuple(header for header, _ in results), tuple(notes))


def same_pixels(one: Slice, other: Slice) -> bool:
    """Whether two slices hold the same Hounsfield units."""
    return np.array_equal(read_hounsfield([one]).hu, read_hounsfield([other]).hu)


class _Volume:
    """An array into which several threads put slices."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.values: Array = np.empty(shape, dtype=np.int16, order="F")
        self._lock = threading.Lock()

    def put(self, k: int, hu: Array) -> None:
        """Put a slice, shape (rows, columns), into its place."""
        with self._lock:
            if hu.dtype != np.int16 and self.values.dtype == np.int16:
                self.values = self.values.astype(np.float32)
            self.values[:, :, k] = hu.T


@contextlib.contextmanager
def _naming(file: DicomFile) -> Iterator[None]:
    """Say which of many files is damaged."""
    try:
        yield
    except (PancreasSegError, MemoryError):
        raise
    except Exception as error:  # pydicom and the decoders raise a dozen types
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's, not a library's
        raise PancreasSegError(
            f"The pixels of '{file.path.name}' cannot be read: the file is truncated or damaged "
            f"({type(error).__name__}); copy or export the series again."
        ) from error


def _read_file(
    file: DicomFile, places: dict[int, int], volume: _Volume
) -> tuple[Dataset, set[str]]:
    """Put frames, by their numbers, into their places; return the header and notes."""
    notes: set[str] = set()
    header, stream, has_pixels = read_header(file.open())
    with stream:
        if not has_pixels:
            raise EOFError("no pixels")
        layout = _layout(header)
        if str(header.get("PhotometricInterpretation", "")).strip() == "MONOCHROME1":
            notes.add(
                "This CT asks to be shown inverted (MONOCHROME1): its Hounsfield units are taken "
                "as they are."
            )
        for number, values in frames(stream, header, layout, sorted(places)):
            slope, intercept = _rescaling(header, number)
            hu = _hounsfield(values, slope, intercept)
            padding = _padding(header, layout)
            if padding is not None:
                low, high = (bound * slope + intercept for bound in padding)
                if max(low, high) < _BODY_HU[0] or min(low, high) > _BODY_HU[1]:
                    hu[(values >= padding[0]) & (values <= padding[1])] = AIR_HU
                else:
                    notes.add(
                        f"The padding value of this CT ({high:g} HU) is one that tissue has too: "
                        "it was not taken as padding."
                    )
            volume.put(places[number], hu)
    _strip(header)
    return header, notes


def _layout(header: Dataset) -> Layout:
    allocated, stored = int(header.BitsAllocated), int(header.get("BitsStored") or 0)
    layout = Layout(
        int(header.Rows),
        int(header.Columns),
        allocated,
        stored or allocated,
        int(header.get("HighBit") or (stored or allocated) - 1),
        int(header.get("PixelRepresentation") or 0) == 1,
    )
    if allocated not in (8, 16, 32) or not 1 < layout.stored <= allocated:
        raise PancreasSegError(
            f"The pixels of this DICOM series are stored in {stored} of {allocated} bits, which "
            "no CT is; export the series again."
        )
    if not str(header.get("PhotometricInterpretation", "MONOCHROME2")).startswith("MONOCHROME"):
        raise PancreasSegError(
            "The pixels of this DICOM series are colours and no Hounsfield units; give a CT."
        )
    return layout


def _rescaling(header: Dataset, number: int) -> tuple[float, float]:
    """Return slope and intercept of a frame."""
    places: list[Any] = []
    frames = header.get("PerFrameFunctionalGroupsSequence")
    if frames:
        shared = header.get("SharedFunctionalGroupsSequence") or ()
        for group in (frames[number - 1], *shared):
            places += group.get("PixelValueTransformationSequence") or ()
    slope = intercept = None
    for place in (*places, header):
        if slope is None and intercept is None:
            slope, intercept = place.get("RescaleSlope"), place.get("RescaleIntercept")
    if slope is None and intercept is None and header.get("ModalityLUTSequence"):
        raise PancreasSegError(
            "The pixels of this DICOM series need a lookup table (Modality LUT), which no CT "
            "should; export the series again."
        )
    numbers = (
        1.0 if slope in (None, "") else float(slope),
        0.0 if intercept in (None, "") else float(intercept),
    )
    if not all(map(math.isfinite, numbers)) or numbers[0] == 0:
        raise ValueError("a rescale slope of 0")
    return numbers


def _hounsfield(values: Array, slope: float, intercept: float) -> Array:
    """Apply slope and intercept to a slice: int16 if all values fit, else float32."""
    if slope == 1 and intercept == int(intercept) and abs(intercept) <= _INT16.max:
        low, high = int(values.min()) + int(intercept), int(values.max()) + int(intercept)
        if _INT16.min <= low and high <= _INT16.max:
            # The sum fits, so that wrapping around on the way to it does no harm.
            return np.add(values.astype(np.int16), np.int16(intercept))
    return np.array(scale(values[..., np.newaxis], slope, intercept).values[..., 0])


def _padding(header: Dataset, layout: Layout) -> tuple[int, int] | None:
    """Return the range of stored numbers that mean 'no value here'."""
    values = [header.get(key) for key in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    numbers = [_as_stored(value, layout) for value in values if value not in (None, "", b"")]
    return (min(numbers), max(numbers)) if numbers else None


def _as_stored(value: Any, layout: Layout) -> int:
    """Read a number that may be given with the wrong sign, or as raw bytes."""
    number = int.from_bytes(value[:4], "little") if isinstance(value, bytes) else int(value)
    number %= 1 << layout.stored
    half = 1 << (layout.stored - 1)
    return number - 2 * half if layout.signed and number >= half else number


def _strip(header: Dataset) -> None:
    """Drop what nobody who writes back needs: it may be large, and may name the patient."""
    for tag in list(header.keys()):
        if tag.group % 2 or 0x6000 <= tag.group <= 0x60FF:
            del header[tag]
