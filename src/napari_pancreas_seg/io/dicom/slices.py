"""What a DICOM header says of the slices in its file: kind, place, and what they belong to."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_pancreas_seg.arrays import Floats
from napari_pancreas_seg.io.dicom.files import DicomFile, read_header

if TYPE_CHECKING:
    import pydicom
    from pydicom import Dataset

SPLITS = {
    "AcquisitionNumber": "acquisition",
    "TemporalPositionIdentifier": "phase",
    "TemporalPositionIndex": "phase",
    "NominalPercentageOfCardiacPhase": "cardiac phase",
    "ConvolutionKernel": "kernel",
    "ImageType": "image type",
    "SliceThickness": "thickness (mm)",
    "ReconstructionDiameter": "diameter (mm)",
    "FilterType": "filter",
    "KVP": "tube voltage (kV)",
    "SeriesNumber": "series number",
    "SeriesDescription": "description",
    "SeriesTime": "time",
    "AcquisitionTime": "time",
}
"""What tells two volumes in one series apart, in words; the first that does counts."""

_KEYWORDS = (
    *("SOPClassUID", "Modality", "SeriesInstanceUID", "InstanceNumber"),
    *("StudyInstanceUID", "FrameOfReferenceUID", "ImagePositionPatient"),
    *("ImageOrientationPatient", "PixelSpacing", "SpacingBetweenSlices", "Rows", "Columns"),
    *("SamplesPerPixel", "NumberOfFrames", "SharedFunctionalGroupsSequence"),
    *("PerFrameFunctionalGroupsSequence", "RescaleType", "RescaleSlope", "RescaleIntercept"),
    *("ConcatenationUID", "VolumeBasedCalculationTechnique"),
    *(keyword for keyword in SPLITS if keyword != "TemporalPositionIndex"),
)

_CODE = re.compile(r"[A-Z0-9_]{0,16}")

_STANDARD = "1.2.840.10008."  # what the UIDs of the standard's own classes begin with

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_CT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "enhanced CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "legacy converted enhanced CT",
}

_HOUNSFIELD = {"", "HU", "HU_MOD", "US"}
"""Types of rescaled values that are Hounsfield units, or not said to be others."""

_OTHER_UNITS = {
    *("OD", "MGML", "MG/ML", "Z_EFF", "ED", "EDW", "PCT", "%", "KEV", "BQML", "SUV", "ML/G"),
    *("MSEC", "S", "MM", "GY", "CM2/G", "G/CM3", "1/CM", "ML/100G/MIN", "ML/100ML"),
}
"""Types that are other quantities: of maps made from spectral or perfusion CT."""

_PROJECTION = re.compile(r"(?<![A-Z])M(AX|IN)?[ _]?IP(?![A-Z])")
"""How headers name projections of the brightest or darkest voxels of several slices."""

_DOUBTS = {
    "class": "The SOP class of these images is not one of CT's (an anonymiser may have replaced "
    "it): they were read as CT.",
    "capture": "These images are stored as secondary captures, but say where they lie: they were "
    "read as CT.",
    "unit": "The header names the unit of the values in words that the standard does not have: "
    "Hounsfield units were assumed.",
    "modality": "The header does not name CT as the modality: these images were read as CT.",
    "projection": "The description of this series has the word MIP: if these images are "
    "projections of several slices, neither their values nor the mask are to be relied on.",
}


@dataclass(frozen=True, eq=False)
class Plane:
    """Where an image lies, in DICOM's coordinates: LPS, mm."""

    rows: int
    columns: int
    spacing: tuple[float, float] | None  # between rows, then between columns
    orientation: Floats | None  # direction in which the column index grows, then the row index
    position: Floats | None  # centre of the first pixel
    thickness: float  # distance to the next slice, or thickness, as far as it is said; else 0

    @property
    def has_place(self) -> bool:
        """Whether it says where it lies."""
        return not any(item is None for item in (self.spacing, self.orientation, self.position))


@dataclass(frozen=True, eq=False)
class Slice:
    """An image, or a frame of one."""

    file: DicomFile
    frame: int  # its number in a multi-frame object, from 1; 0 for an image by itself
    series: tuple[str, ...]  # the same for all images of a series
    uid: str  # of the series, may be empty
    number: int | None  # of the series
    instance: int  # number of the image in the series, 0 if it has none
    modality: str
    fault: str  # why it is no slice of a CT, as the end of "it is ..."; empty if it is one
    doubts: tuple[str, ...]  # notes on why it may not be one
    plane: Plane
    marks: tuple[str, ...]  # values of `SPLITS`
    rescale: tuple[Any, Any]  # slope and intercept as the header has them

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"frame {self.frame}" if self.frame else f"'{self.file.path.name}'"


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


def slices_of(file: DicomFile) -> list[Slice]:
    """Read what there is to know of the slices in a file but their pixels."""
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
    uid = _text(dataset, "SeriesInstanceUID")
    study = tuple(
        _text(dataset, k) for k in ("StudyInstanceUID", "FrameOfReferenceUID", "SeriesNumber")
    )
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or [None]
    multiframe = frames[0] is not None
    count = int(dataset.get("NumberOfFrames") or 1)
    if multiframe and count != len(frames):
        raise ValueError("the number of frames is not that of their descriptions")
    shared = next(iter(dataset.get("SharedFunctionalGroupsSequence") or ()), None)
    for index, frame in enumerate(frames, start=1):
        find = _finder(dataset, shared, frame)
        plane = _plane(find, dataset)
        kind, doubts = _kind(dataset, modality, plane, find)
        fault = _fault(dataset, kind, plane, has_pixels, find)
        if count > 1 and not multiframe:
            fault = fault or "a multi-frame image that does not say where its frames lie"
        # An anonymiser may have emptied the UID of the series: then what else images share
        # counts. Each multi-frame object is a volume, or several, by itself.
        series = (uid, kind) if uid else ("", kind, *study)
        if multiframe:
            series = (*series, str(file.path), str(find("StackID") or ""))
        yield Slice(
            file,
            index if multiframe else 0,
            series,
            uid,
            _number(dataset, "SeriesNumber"),
            _number(dataset, "InstanceNumber") or 0,
            kind,
            fault,
            doubts,
            plane,
            tuple(_plain(find(keyword)) for keyword in SPLITS),
            (find("RescaleSlope"), find("RescaleIntercept")),
        )


_WHERE = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "RescaleType": "PixelValueTransformationSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    **dict.fromkeys(("FrameType", "VolumeBasedCalculationTechnique"), "CTImageFrameTypeSequence"),
    "StackID": "FrameContentSequence",
    "TemporalPositionIndex": "FrameContentSequence",
}


def _finder(
    dataset: Dataset, shared: Dataset | None, frame: Dataset | None
) -> Callable[[str], Any]:
    """Look a value up in a frame's description, in the one that all share, in the header."""

    def find(keyword: str) -> Any:
        group = _WHERE.get(keyword)
        for item in (frame, shared):
            if group is not None and item is not None and item.get(group):
                value = item[group][0].get(keyword)
                if value is not None:
                    return value
        return dataset.get(keyword)

    return find


def _kind(
    dataset: Dataset, modality: str, plane: Plane, find: Callable[[str], Any]
) -> tuple[str, tuple[str, ...]]:
    """Return the modality, and notes on what of the header is unusual in a CT."""
    sop_class, unit = _text(dataset, "SOPClassUID"), _unit(find)
    doubts = []
    x_ray = plane.has_place and (_text(dataset, "KVP") or unit == "HU")
    if modality in ("", "OT") and sop_class in _CT_CLASSES:
        modality = "CT"
    elif modality in ("", "OT") and x_ray and not _is_other_class(sop_class):
        modality = "CT"
        doubts.append(_DOUBTS["modality"])
    if sop_class.startswith(_SECONDARY_CAPTURE):
        doubts.append(_DOUBTS["capture"])
    elif sop_class and sop_class not in _CT_CLASSES:
        doubts.append(_DOUBTS["class"])
    if unit not in _HOUNSFIELD:
        doubts.append(_DOUBTS["unit"])
    if _PROJECTION.search(_text(dataset, "SeriesDescription").upper()):
        doubts.append(_DOUBTS["projection"])
    return modality, tuple(doubts)


def _is_other_class(sop_class: str) -> bool:
    """Whether a class is one of the standard's for something else than CT images."""
    return sop_class.startswith(_STANDARD) and not (
        sop_class in _CT_CLASSES or sop_class.startswith(_SECONDARY_CAPTURE)
    )


def _unit(find: Callable[[str], Any]) -> str:
    return _plain(find("RescaleType")).strip(" []()").upper()


def _fault(
    dataset: Dataset, modality: str, plane: Plane, has_pixels: bool, find: Callable[[str], Any]
) -> str:
    sop_class = _text(dataset, "SOPClassUID")
    if modality != "CT":
        return f"{modality or 'of an unnamed modality'} and not CT"
    if sop_class.startswith(_SECONDARY_CAPTURE) and not plane.has_place:
        return "a secondary capture (a screenshot, not a slice)"
    if _is_other_class(sop_class):
        return "CT data but no CT image"
    if not has_pixels or not plane.rows or not plane.columns:
        return "without pixels, or cut off"
    if (_number(dataset, "SamplesPerPixel") or 1) != 1:
        return "in colour"
    named = dataset.get("ImageType"), find("FrameType"), find("VolumeBasedCalculationTechnique")
    kinds = " ".join(map(_plain, named)).upper()
    if "LOCALIZER" in kinds:
        return "a localizer"
    if _PROJECTION.search(kinds):
        return "a projection of several slices (MIP or MinIP)"
    if _unit(find) in _OTHER_UNITS:
        return "not in Hounsfield units but in others"
    if "ConcatenationUID" in dataset:
        return "a part of a concatenation (one volume split over several objects)"
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


def _vector(value: Any, length: int) -> Floats | None:
    if value is None or isinstance(value, str) or not hasattr(value, "__len__"):
        return None
    if len(value) != length or any(item is None or item == "" for item in value):
        return None
    vector = np.array([float(item) for item in value])
    return vector if np.isfinite(vector).all() else None


def _text(dataset: Dataset, keyword: str) -> str:
    return _plain(dataset.get(keyword))


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return "" if value is None else str(value).strip(" \0")


def _number(dataset: Dataset, keyword: str) -> int | None:
    value = dataset.get(keyword)
    if value is None or value == "" or not math.isfinite(float(value)):
        return None
    return int(value)
