"""From a DICOM-SEG, whoever wrote it, to a label map with its place in space."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from napari_pancreas_seg.arrays import Floats
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.dicom.files import open_file, read_header
from napari_pancreas_seg.io.dicom.slices import DicomHeader
from napari_pancreas_seg.io.memory import check_expansion, check_fits
from napari_pancreas_seg.io.quiet import quiet_libraries
from napari_pancreas_seg.io.raw import LPS_TO_RAS, RawImage
from napari_pancreas_seg.io.voxels import reading
from napari_pancreas_seg.volume import Source

if TYPE_CHECKING:
    import pydicom
    from highdicom import Volume
    from highdicom.seg import Segmentation

CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentation and Label Map Segmentation Storage."""

_CLASS = 0x00080016

_OBJECT = {
    **dict.fromkeys(("FrameOfReferenceUID", "StudyInstanceUID", "SeriesInstanceUID"), "2.25.0"),
    **{"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0},
}
_SEGMENT = {"SegmentAlgorithmType": "MANUAL"}
_TISSUE = {"CodeValue": "85756007", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Tissue"}
"""Defaults for missing attributes that do not matter to a label map."""

_UNEVEN = 0.25
"""How far a frame may be from its place in an even spacing, as a part of that; as for a CT."""

_LEANING = 0.5  # cosine of how far a stack may lean, as from a tilted gantry

_WHOLE = 0.05  # how far a distance in slices may be from a whole number: headers round

_OVERLAP = (
    "Segments of this DICOM-SEG overlap; where they do, the one with the highest number was taken."
)
_FRACTIONAL = "This DICOM-SEG holds fractions; what is half or more was taken as inside."


def read_segmentation(path: Path) -> RawImage:
    """Read a DICOM-SEG, frames in any order, as a label map; a label is the number of a segment."""
    from pydicom import dcmread

    with reading(path, "DICOM-SEG"), quiet_libraries():
        with open_file(path) as file:
            _, data, _ = read_header(file, [_CLASS])
            data.seek(0)  # all of a file, inflated if need be, but no more than there is
            dataset = dcmread(data, force=True)  # without a preamble, too
        if dataset.get("SOPClassUID") not in CLASSES:
            raise PancreasSegError(f"'{path.name}' is not a DICOM-SEG.")
        header = _drawn_on(dataset)
        guess = _complete(dataset)
        segmentation, stacking = _checked(path, dataset)
        volume, notes = _label_map(segmentation, stacking)
        affine = LPS_TO_RAS @ _leaning(volume, dataset)
        # From (slice, row, column), highdicom's order, to that of a DICOM series here.
        labels = volume.array.transpose(2, 1, 0)
        return RawImage(labels, 1.0, 0.0, affine[:, [2, 1, 0, 3]], header, guess + notes)


class _DrawnOn(NamedTuple):
    """What a DICOM-SEG says it was drawn on; empty where it does not."""

    series: frozenset[str]
    places: tuple[str, ...]  # study and frame of reference


_PLACES = ("StudyInstanceUID", "FrameOfReferenceUID")


def _drawn_on(dataset: pydicom.Dataset) -> _DrawnOn:
    series = dataset.get("ReferencedSeriesSequence") or ()
    return _DrawnOn(
        frozenset(str(each.SeriesInstanceUID) for each in series),
        tuple(str(dataset.get(name) or "") for name in _PLACES),
    )


def is_drawn_on(mask: Source, ct: Source) -> bool:
    """Whether a mask is a DICOM-SEG that refers to the series of a CT."""
    said, header = mask.header, ct.header
    if not isinstance(said, _DrawnOn) or not isinstance(header, DicomHeader):
        return False
    return str(header.datasets[0].get("SeriesInstanceUID")) in said.series


def is_of_another_study(mask: Source, ct: Source) -> bool:
    """Whether a mask is a DICOM-SEG of another study and frame of reference than a CT's."""
    said, header = mask.header, ct.header
    if not isinstance(said, _DrawnOn) or not isinstance(header, DicomHeader):
        return False
    places = zip(said.places, (header.datasets[0].get(name) for name in _PLACES), strict=True)
    return not is_drawn_on(mask, ct) and all(one and its and one != its for one, its in places)


def _complete(dataset: pydicom.Dataset) -> tuple[str, ...]:
    """Fill in what highdicom insists on; with a note on what is a guess."""
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, _ = dataset.original_encoding
        plain = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = plain
    _default(dataset, _OBJECT)
    for segment in dataset.get("SegmentSequence") or ():
        _default(segment, _SEGMENT | {"SegmentLabel": f"segment {segment.SegmentNumber}"})
        for name in ("SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence"):
            if not segment.get(name):
                setattr(segment, name, [_default(type(segment)(), _TISSUE)])
    groups = (*dataset.SharedFunctionalGroupsSequence, *dataset.PerFrameFunctionalGroupsSequence)
    sizes = [item for group in groups for item in group.get("PixelMeasuresSequence") or ()]
    notes = _space(dataset, sizes)
    for size in sizes:
        if "SliceThickness" not in size:
            size.SliceThickness = size.get("SpacingBetweenSlices") or 1
    return notes


def _space(dataset: pydicom.Dataset, sizes: Iterable[pydicom.Dataset]) -> tuple[str, ...]:
    """Fill in how far slices lie apart, of which empty ones may have no frame; with a note."""
    places = _places(dataset)
    if any(size.get("SpacingBetweenSlices") for size in sizes) or not len(places):
        return ()
    thickness = float(next((size.get("SliceThickness") for size in sizes), None) or 0)
    # From the frame at one end, along a stack that may lean.
    end = places[np.linalg.norm(places - places[0], axis=1).argmax()]
    away = np.unique(np.linalg.norm(places - end, axis=1).round(3))
    gaps = np.diff(away) if len(away) > 1 else np.array([thickness or 1.0])
    least = float(gaps.min())
    even = gaps.max() <= (1 + _UNEVEN) * least
    parts = (1,) if even else (1, 2, 3)
    for step in (thickness, *(least / part for part in parts)):
        if step and np.abs(away / step - np.rint(away / step)).max() <= _WHOLE:
            break
    else:
        return ()
    for size in sizes:
        size.SpacingBetweenSlices = step
    if 0.9 * least < step and least < 1.5 * thickness:
        return ()
    return (
        f"This DICOM-SEG does not say how far its slices lie apart: {step:.3g} mm was taken, on "
        "which its volume depends. Given its CT, each lies on a slice of that.",
    )


def _default(dataset: pydicom.Dataset, values: Mapping[str, Any]) -> pydicom.Dataset:
    for name, value in values.items():
        if dataset.get(name) in (None, ""):
            setattr(dataset, name, value)
    return dataset


def _checked(path: Path, dataset: pydicom.Dataset) -> tuple[Segmentation, dict[str, Any]]:
    """Refuse what is cut off, too large or no stack; return the object and how to stack it."""
    from highdicom.seg import Segmentation

    syntax = dataset.file_meta.TransferSyntaxUID
    frames, rows, columns = (
        int(dataset[name].value) for name in ("NumberOfFrames", "Rows", "Columns")
    )
    needed = math.ceil(frames * rows * columns * int(dataset.BitsAllocated) / 8)
    if min(frames, rows, columns) < 1 or (
        not syntax.is_encapsulated and needed > len(dataset.get("PixelData") or b"")
    ):
        raise PancreasSegError(
            f"'{path.name}' is truncated or damaged: it holds less than its header declares; copy "
            "it again."
        )
    segmentation = Segmentation.from_dataset(dataset, copy=False)
    # Without gaps first: with them, the smallest gap counts as the spacing, rounded as it may be.
    for gaps in (False, True):
        stacking: dict[str, Any] = {
            "allow_missing_positions": gaps,
            "rtol": _UNEVEN,
            "perpendicular_tol": _LEANING,
        }
        geometry = segmentation.get_volume_geometry(**stacking)
        if geometry is not None:
            break
    else:
        raise PancreasSegError(
            f"The frames of '{path.name}' are not one evenly spaced stack, so it cannot be shown "
            "as a volume; export the segmentation with the geometry of its CT."
        )
    declared = math.prod(geometry.spatial_shape)
    check_expansion(path.name, path.stat().st_size, declared)
    check_fits(path.name, 5 * declared)
    return segmentation, stacking


def _leaning(volume: Volume, dataset: pydicom.Dataset) -> Floats:
    """Place the slices where the frames say; highdicom puts them at right angles."""
    affine = np.array(volume.affine, dtype=np.float64)
    places = _places(dataset)
    count = volume.spatial_shape[0]
    if len(places) and count > 1:
        away = np.linalg.norm(places - affine[:3, 3], axis=1)
        affine[:3, 0] = (places[away.argmax()] - places[away.argmin()]) / (count - 1)
    return affine


def _places(dataset: pydicom.Dataset) -> Floats:
    """Where each frame lies, as far as that is said."""
    groups = dataset.PerFrameFunctionalGroupsSequence
    said = [each.PlanePositionSequence[0] for each in groups if "PlanePositionSequence" in each]
    return np.array([plane.ImagePositionPatient for plane in said], dtype=np.float64)


def _label_map(
    segmentation: Segmentation, stacking: dict[str, Any]
) -> tuple[Volume, tuple[str, ...]]:
    if segmentation.SegmentationType == "FRACTIONAL":
        return _from_fractions(segmentation, stacking)
    try:
        return segmentation.get_volume(combine_segments=True, **stacking), ()
    except RuntimeError:
        # Found while the frames were put in place, which leaves the index of frames locked.
        again = type(segmentation).from_dataset(segmentation, copy=False)
        volume = again.get_volume(combine_segments=True, skip_overlap_checks=True, **stacking)
        return volume, (_OVERLAP,)


def _from_fractions(
    segmentation: Segmentation, stacking: dict[str, Any]
) -> tuple[Volume, tuple[str, ...]]:
    """One segment after the other: all at once would take many times the memory."""
    half = int(segmentation.MaximumFractionalValue) / 2
    labels: Volume | None = None
    overlap = False
    for number in sorted(segmentation.segment_numbers):
        part = segmentation.get_volume(
            segment_numbers=[number], rescale_fractional=False, **stacking
        )
        inside = part.array[..., 0] >= half
        if labels is None:
            kind = np.uint8 if max(segmentation.segment_numbers) < 256 else np.uint16
            labels = part.with_array(np.zeros(inside.shape, kind), channels={})
        overlap = overlap or bool(labels.array[inside].any())
        labels.array[inside] = number
    if labels is None:
        raise PancreasSegError("This DICOM-SEG has no segments.")
    return labels, (_FRACTIONAL, _OVERLAP) if overlap else (_FRACTIONAL,)
