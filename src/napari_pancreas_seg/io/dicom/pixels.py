"""From the pixel data of a DICOM stack to Hounsfield units."""

from __future__ import annotations

import contextlib
import math
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.errors import PancreasSegError, few
from napari_pancreas_seg.hounsfield import AIR_HU, scale
from napari_pancreas_seg.io.dicom.codecs import PixelLayout, frames
from napari_pancreas_seg.io.dicom.files import DicomFile, in_threads, read_header
from napari_pancreas_seg.io.dicom.slices import Slice
from napari_pancreas_seg.io.dicom.stacks import numbered

if TYPE_CHECKING:
    from pydicom import Dataset

_BODY_HU = (-200.0, 2000.0)
"""A padding value in this range is doubted: it would turn fat, soft tissue or bone into air."""

_STEP_HU = 600.0
"""No two neighbouring slices of a CT differ so much in their medians; a lost intercept does."""


_Target = tuple[int, float, float]
"""Which slice a frame is, and the slope and intercept that make HU of its values."""


def read_hounsfield(slices: Sequence[Slice]) -> tuple[Array, tuple[Dataset, ...], tuple[str, ...]]:
    """Read HU (columns, rows, slices) of slices of one size; with their headers and notes."""
    plane = slices[0].plane
    volume = _Volume((plane.columns, plane.rows, len(slices)))
    scales, scale_notes = _rescaling(slices)
    wanted: dict[DicomFile, dict[int, _Target]] = defaultdict(dict)
    for k, item in enumerate(slices):
        wanted[item.file][max(1, item.frame)] = (k, *scales[k])

    def read(file: DicomFile) -> tuple[Dataset, set[str]]:
        with _naming(file):
            return _read_file(file, wanted[file], volume)

    results = in_threads(read, wanted)
    _check_steps(volume.values, scales, slices)
    notes = sorted(set[str]().union(*(found for _, found in results)))
    return volume.values, tuple(header for header, _ in results), (*scale_notes, *notes)


def same_pixels(one: Slice, other: Slice) -> bool:
    """Whether two slices hold the same Hounsfield units."""
    return np.array_equal(read_hounsfield([one])[0], read_hounsfield([other])[0])


class _Volume:
    """An array into which several threads put slices (rows, columns)."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.values: Array = np.empty(shape, dtype=np.int16, order="F")
        self._lock = threading.Lock()

    def put(self, k: int, hu: Array) -> None:
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
    file: DicomFile, targets: dict[int, _Target], volume: _Volume
) -> tuple[Dataset, set[str]]:
    """Put frames, by their numbers, into their places; return the header and notes."""
    notes: set[str] = set()
    header, stream, has_pixels = read_header(file.open())
    with stream:
        if not has_pixels:
            raise EOFError("no pixels")
        layout = _layout(header)
        if header.get("ModalityLUTSequence") and header.get("RescaleSlope") in (None, ""):
            raise PancreasSegError(
                "The pixels of this DICOM series need a lookup table (Modality LUT), which is "
                "not supported; export the series again."
            )
        if str(header.get("PhotometricInterpretation", "")).strip() == "MONOCHROME1":
            notes.add(
                "This CT asks to be shown inverted (MONOCHROME1): its Hounsfield units are taken "
                "as they are."
            )
        for number, values in frames(stream, header, layout, sorted(targets)):
            k, slope, intercept = targets[number]
            hu = np.array(scale(values[..., np.newaxis], slope, intercept).values[..., 0])
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
            volume.put(k, hu)
    # Nobody who writes back needs these; they may be large, and may name the patient.
    for tag in list(header.keys()):
        if tag.group % 2 or 0x6000 <= tag.group <= 0x60FF:
            del header[tag]
    return header, notes


def _layout(header: Dataset) -> PixelLayout:
    allocated, stored = int(header.BitsAllocated), int(header.get("BitsStored") or 0)
    layout = PixelLayout(
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
            "is not valid for CT; export the series again."
        )
    if not str(header.get("PhotometricInterpretation", "MONOCHROME2")).startswith("MONOCHROME"):
        raise PancreasSegError(
            "The pixels of this DICOM series are colours and not Hounsfield units; give a CT."
        )
    return layout


def _rescaling(slices: Sequence[Slice]) -> tuple[list[tuple[float, float]], tuple[str, ...]]:
    """Slope and intercept of each slice; what one lacks is taken from the others, with a note."""
    given: list[tuple[float | None, float | None]] = []
    for item in slices:
        with _naming(item.file):
            slope, intercept = (
                None if number in (None, "") else float(number) for number in item.rescale
            )
            if slope == 0 or not all(math.isfinite(n or 0) for n in (slope, intercept)):
                raise ValueError("a rescale slope of 0")
            given.append((slope, intercept))
    lacking = [k for k, pair in enumerate(given) if None in pair]
    complete = {(s, i) for s, i in given if s is not None and i is not None}
    if not lacking or not complete:
        return [(1.0 if s is None else s, i or 0.0) for s, i in given], ()
    if len(complete) > 1 or len(lacking) > len(slices) // 2:
        many = few([slices[k].label for k in lacking], 3)
        raise PancreasSegError(
            "Not all slices of this CT say what makes Hounsfield units of their numbers (no "
            f"rescale slope or intercept in {many}), and the others cannot stand in for them; "
            "export the series again."
        )
    ((slope, intercept),) = complete
    scales = [(slope if s is None else s, intercept if i is None else i) for s, i in given]
    return scales, (
        f"The rescale slope or intercept is missing in {numbered(lacking)} of {len(slices)} "
        f"slices: those of the others were taken (slope {slope:g}, intercept {intercept:g}).",
    )


def _check_steps(
    values: Array, scales: Sequence[tuple[float, float]], slices: Sequence[Slice]
) -> None:
    """Refuse a slice with another slope or intercept that lies far from its neighbours for it."""
    usual, count = Counter(scales).most_common(1)[0]
    odd = [k for k, pair in enumerate(scales) if pair != usual]
    if not odd or count < 3 or len(odd) > len(scales) // 4:
        return
    for k in odd:
        around = [j for j in (k - 1, k + 1) if 0 <= j < len(scales) and scales[j] == usual]
        level, *others = (float(np.median(values[::4, ::4, j])) for j in (k, *around))
        if others and min(abs(level - other) for other in others) > _STEP_HU:
            raise PancreasSegError(
                f"The slice {slices[k].label} has another rescale slope or intercept than the "
                "others and lies far from its neighbours in Hounsfield units: its header is "
                "wrong; export the series again."
            )


def _padding(header: Dataset, layout: PixelLayout) -> tuple[int, int] | None:
    """Return the range of stored numbers that mean 'no value here'."""
    values = [header.get(key) for key in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    numbers = [_as_stored(value, layout) for value in values if value not in (None, "", b"")]
    return (min(numbers), max(numbers)) if numbers else None


def _as_stored(value: Any, layout: PixelLayout) -> int:
    """Read a number that may be given with the wrong sign, or as raw bytes."""
    number = int.from_bytes(value[:4], "little") if isinstance(value, bytes) else int(value)
    number %= 1 << layout.stored
    half = 1 << (layout.stored - 1)
    return number - 2 * half if layout.signed and number >= half else number
