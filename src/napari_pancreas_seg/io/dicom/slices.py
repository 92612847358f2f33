"""What a DICOM header says of the slices in its file: kind, place, and what they belong to."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.io.dicom.files import DicomFile, read_header

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["SPLITS", "Plane", "Slice", "slices_of"]

Vector = npt.NDArray[np.float64]

SPLITS = (
    *("AcquisitionNumber", "TemporalPositionIdentifier", "TemporalPositionIndex"),
    *("NominalPercentageOfCardiacPhase", "ConvolutionKernel", "ImageType"),
    *("SliceThickness", "SeriesTime", "AcquisitionTime"),
)
"""What tells two volumes apart that lie at the same place, the first that does counts."""

_KEYWORDS = (
    *("SOPClassUID", "Modality", "ImageType", "SeriesInstanceUID", "SeriesNumber"),
    *("StudyInstanceUID", "FrameOfReferenceUID", "ImagePositionPatient"),
    *("ImageOrientationPatient", "PixelSpacing", "SpacingBetweenSlices", "Rows", "Columns"),
    *("SamplesPerPixel", "NumberOfFrames", "SharedFunctionalGroupsSequence"),
    *("PerFrameFunctionalGroupsSequence", "RescaleType", "ConcatenationUID"),
    *(keyword for keyword in SPLITS if keyword != "TemporalPositionIndex"),
)

_CODE = re.compile(r"[A-Z0-9_]{0,16}")

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_CT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "enhanced CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "legacy converted enhanced CT",
}

_HOUNSFIELD = {"", "HU", "HU_MOD", "US"}
"""Types of rescaled values that are Hounsfield units, or not said to be others."""


@dataclass(frozen=True, eq=False)
class Plane:
    """Where an image lies, in DICOM's coordinates: LPS, mm.

    Parameters
    ----------
    rows, columns : int
        Size in pixels.
    spacing : tuple of float, or None
        Distance between rows, then between columns.
    orientation : ndarray, shape (6,), or None
        Direction in which the column index grows, then the row index.
    position : ndarray, shape (3,), or None
        Centre of the first pixel.
    thickness : float
        Distance to the next slice, or thickness, as far as the header says; else 0.
    """

    rows: int
    columns: int
    spacing: tuple[float, float] | None
    orientation: Vector | None
    position: Vector | None
    thickness: float


@dataclass(frozen=True, eq=False)
class Slice:
    """An image, or a frame of one.

    Parameters
    ----------
    file : DicomFile
        Where it lies.
    frame : int
        Its number in a multi-frame object, from 1; 0 for an image by itself.
    series : tuple of str
        The same for all images of a series.
    uid : str
        UID of the series, may be empty.
    number : int or None
        Number of the series.
    modality : str
        Such as ``"CT"``.
    fault : str
        Why it cannot be a slice of a CT volume, as the end of "it is …"; empty if it can.
    plane : Plane
        Where it lies.
    marks : tuple of str
        Values of `SPLITS`.
    """

    file: DicomFile
    frame: int
    series: tuple[str, ...]
    uid: str
    number: int | None
    modality: str
    fault: str
    plane: Plane
    marks: tuple[str, ...]


def slices_of(file: DicomFile) -> list[Slice]:
    """Read what there is to know of the slices in a file but their pixels.

    Raises
    ------
    Exception
        Of many types, from pydicom, if the file is damaged.
    """
    from pydicom.datadict import tag_for_keyword

    tags = [tag for keyword in _KEYWORDS if (tag := tag_for_keyword(keyword)) is not None]
    with file.open() as stream:
        dataset, data, has_pixels = read_header(stream, tags)
        data.close()
    if not len(dataset):
        raise ValueError("an empty header")
    return list(_slices(file, dataset, has_pixels))


def _slices(file: DicomFile, dataset: Dataset, has_pixels: bool) -> Iterator[Slice]:
    modality = _text(dataset, "Modality").upper()
    if not _CODE.fullmatch(modality):  # a damaged one may hold anything, the patient's name too
        modality = ""
    if not modality and _text(dataset, "SOPClassUID") in _CT_CLASSES:
        modality = "CT"
    uid = _text(dataset, "SeriesInstanceUID")
    number = _number(dataset, "SeriesNumber")
    # An anonymiser may have emptied the UID of the series: then what else images share counts.
    others = ("StudyInstanceUID", "FrameOfReferenceUID", "SeriesNumber")
    series = (uid, modality) if uid else ("", modality, *(_text(dataset, k) for k in others))
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    if not frames:
        plane = _plane(lambda keyword: dataset.get(keyword), dataset)
        fault = _fault(dataset, modality, has_pixels, _text(dataset, "RescaleType"))
        if int(dataset.get("NumberOfFrames") or 1) > 1:
            fault = fault or "a multi-frame image that does not say where its frames lie"
        marks = tuple(_text(dataset, keyword) for keyword in SPLITS)
        yield Slice(file, 0, series, uid, number, modality, fault, plane, marks)
        return
    if int(dataset.get("NumberOfFrames") or 1) != len(frames):
        raise ValueError("the number of frames is not that of their descriptions")
    shared = next(iter(dataset.get("SharedFunctionalGroupsSequence") or ()), None)
    # Each multi-frame object is a volume, or several, by itself.
    series = (*series, str(file.path))
    for index, frame in enumerate(frames, start=1):
        find = _finder(dataset, shared, frame)
        fault = _fault(dataset, modality, has_pixels, str(find("RescaleType") or ""))
        if "ConcatenationUID" in dataset:
            fault = fault or "a part of a concatenation (one volume split over several objects)"
        kind = str(find("FrameType") or "")
        fault = fault or ("a localizer" if "LOCALIZER" in kind else "")
        marks = tuple(str(find(keyword) or "") for keyword in SPLITS)
        stack = (*series, str(find("StackID") or ""))
        plane = _plane(find, dataset)
        yield Slice(file, index, stack, uid, number, modality, fault, plane, marks)


_WHERE = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "RescaleType": "PixelValueTransformationSequence",
    "FrameType": "CTImageFrameTypeSequence",
    "StackID": "FrameContentSequence",
    "TemporalPositionIndex": "FrameContentSequence",
}


def _finder(dataset: Dataset, shared: Dataset | None, frame: Dataset) -> Callable[[str], Any]:
    """Look a value up in a frame's description, then in the one that all share."""

    def find(keyword: str) -> Any:
        group = _WHERE.get(keyword)
        for item in (frame, shared):
            if group is not None and item is not None and item.get(group):
                value = item[group][0].get(keyword)
                if value is not None:
                    return value
        return dataset.get(keyword)

    return find


def _fault(dataset: Dataset, modality: str, has_pixels: bool, rescale_type: str) -> str:
    sop_class = _text(dataset, "SOPClassUID")
    if modality != "CT":
        return f"{modality or 'of an unnamed modality'} and not CT"
    if sop_class.startswith(_SECONDARY_CAPTURE):
        return "a secondary capture (a screenshot, not a slice)"
    if sop_class and sop_class not in _CT_CLASSES:
        return "CT data but no CT image"
    if not has_pixels or not _number(dataset, "Rows") or not _number(dataset, "Columns"):
        return "without pixels, or cut off"
    if (_number(dataset, "SamplesPerPixel") or 1) != 1:
        return "in colour"
    if "LOCALIZER" in _text(dataset, "ImageType").upper():
        return "a localizer"
    if rescale_type.strip().upper() not in _HOUNSFIELD:
        return "not in Hounsfield units but in others"
    return ""


def _plane(find: Callable[[str], Any], dataset: Dataset) -> Plane:
    spacing = _vector(find("PixelSpacing"), 2)
    return Plane(
        _number(dataset, "Rows") or 0,
        _number(dataset, "Columns") or 0,
        None if spacing is None else (float(spacing[0]), float(spacing[1])),
        _vector(find("ImageOrientationPatient"), 6),
        _vector(find("ImagePositionPatient"), 3),
        abs(float(find("SpacingBetweenSlices") or find("SliceThickness") or 0)),
    )


def _vector(value: Any, length: int) -> Vector | None:
    if value is None or isinstance(value, str) or not hasattr(value, "__len__"):
        return None
    if len(value) != length or any(item is None or item == "" for item in value):
        return None
    vector = np.array([float(item) for item in value])
    return vector if np.isfinite(vector).all() else None


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip(" \0")


def _number(dataset: Dataset, keyword: str) -> int | None:
    value = dataset.get(keyword)
    if value is None or value == "" or not math.isfinite(float(value)):
        return None
    return int(value)
