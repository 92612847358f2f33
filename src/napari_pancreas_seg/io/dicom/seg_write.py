"""From a mask to a DICOM-SEG that refers to the slices of its CT.

highdicom builds the object; here it is told what belongs to which slice. Frames are handed over
together with the header of their own slice, in the order of the source's array, so no sign of a
direction cosine can mirror them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_pancreas_seg._version import __version__
from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.dicom import uids as dicom_uids
from napari_pancreas_seg.io.dicom.segments import (
    MANUFACTURER,
    describe_segments,
    names_of,
    plain_text,
)
from napari_pancreas_seg.io.dicom.slices import DicomHeader
from napari_pancreas_seg.io.files import atomic_write, check_target
from napari_pancreas_seg.io.quiet import quiet_libraries
from napari_pancreas_seg.mask.measures import voxels_by_label
from napari_pancreas_seg.volume import CTVolume, OnSourceGrid

if TYPE_CHECKING:
    import pydicom
    from highdicom.seg import Segmentation
    from highdicom.sr import Comprehensive3DSR

_LARGEST_WITH_EMPTY_FRAMES = 1 << 28
"""Bytes. Up to that, every slice gets a frame, empty ones too: then every program places the mask
on the whole grid of the CT, those included that stack frames without looking at their positions.
A slice of 512×512 takes 32 kB."""

_COPIED = (
    *("ImageType", "Modality", "PositionReferenceIndicator", "SOPClassUID", "SOPInstanceUID"),
    *("LossyImageCompression", "LossyImageCompressionMethod", "LossyImageCompressionRatio"),
)
"""What the object takes from each slice, besides its place; patient and study come later."""

EMPTY = (
    *("PatientBirthDate", "PatientID", "PatientName", "PatientSex", "ReferringPhysicianName"),
    *("AccessionNumber", "StudyDate", "StudyID", "StudyTime"),
)
"""What the standard wants in every object, if only empty."""


def write_segmentation(
    mask: Array,
    like: OnSourceGrid,
    path: Path,
    *,
    overwrite: bool = False,
    card: Mapping[str, Any] | None = None,
    edited: bool = False,
    mint_uids: bool = False,
) -> Path:
    """Write a mask as a binary DICOM-SEG of the CT's study that refers to the CT's slices."""
    if mint_uids and isinstance(like, CTVolume):
        like = dicom_uids.mint_uids(like)
    dicom_uids.check_uids(like)
    header = dicom_uids.header_of(like)
    check_target(path, overwrite=overwrite)
    if card is None and np.count_nonzero(voxels_by_label(mask.view(np.uint8))[1:]) == 1:
        mask = mask != 0  # one value, such as 255, is a mask
    with quiet_libraries():
        segmentation = _build(mask.view(np.uint8), like, header, card, edited)
        with atomic_write(path, overwrite=overwrite) as file:
            segmentation.save_as(file, enforce_file_format=True)
    return path


def _build(
    mask: Array,
    like: OnSourceGrid,
    header: DicomHeader,
    card: Mapping[str, Any] | None,
    edited: bool,
) -> Segmentation:
    from highdicom.seg import Segmentation
    from pydicom.valuerep import DSfloat

    ordered = like.to_source_order(mask)
    frames = ordered.reshape(ordered.shape[:3]).transpose(2, 1, 0)  # slice, row, column
    names = names_of(card, int(mask.max()))
    with_empty = frames.size * len(names) // 8 <= _LARGEST_WITH_EMPTY_FRAMES
    title = ", ".join(names.values())
    first = header.datasets[0]
    columns, rows, step = like.source.affine[:3, :3].T
    normal = np.cross(columns, rows)  # along it, the standard measures the distance of slices
    gap_mm = DSfloat(float(abs(step @ normal) / np.linalg.norm(normal)), auto_format=True)
    segmentation = Segmentation(
        source_images=(_multiframe if header.multiframe else _single_frames)(header, gap_mm),
        pixel_array=frames,
        segmentation_type="BINARY",
        segment_descriptions=describe_segments(names, card, edited=edited),
        **new_series(first),
        omit_empty_frames=not with_empty,
        content_label="SEGMENTATION",
        content_description=plain_text(title),
        series_description=plain_text(f"Segmentation: {title}"),
    )
    _number_source_frames(segmentation, header)
    copy_patient_and_study(segmentation, first)
    if dicom_uids.MINTED in like.notes:
        segmentation.ImageComments = dicom_uids.MINTED
    return segmentation


def _single_frames(header: DicomHeader, gap_mm: pydicom.valuerep.DSfloat) -> list[pydicom.Dataset]:
    """Return the headers that highdicom needs, with what real ones lack filled in."""
    first = header.datasets[0]
    return [
        _reference(
            each,
            first,
            ImagePositionPatient=each.ImagePositionPatient,
            # The series was read as one stack; the last digits may differ from slice to slice.
            ImageOrientationPatient=first.ImageOrientationPatient,
            PixelSpacing=first.PixelSpacing,
            SliceThickness=first.get("SliceThickness") or gap_mm,
            SpacingBetweenSlices=gap_mm,  # not the scanner's, which is often wrong
        )
        for each in header.datasets
    ]


def _multiframe(header: DicomHeader, gap_mm: pydicom.valuerep.DSfloat) -> list[pydicom.Dataset]:
    """The same for a multi-frame object: as if it held the frames of our stack alone."""
    (whole,) = header.datasets
    start = header.frames[0]
    measures = _group(whole, start, "PixelMeasuresSequence")
    sizes = copy_elements(measures, ("PixelSpacing",), SpacingBetweenSlices=gap_mm)
    sizes.SliceThickness = measures.get("SliceThickness") or gap_mm
    shared = copy_elements(whole, (), PixelMeasuresSequence=[sizes])
    shared.PlaneOrientationSequence = [_group(whole, start, "PlaneOrientationSequence")]
    places = (_group(whole, number, "PlanePositionSequence") for number in header.frames)
    positions = [copy_elements(whole, (), PlanePositionSequence=[place]) for place in places]
    return [
        _reference(
            whole,
            whole,
            NumberOfFrames=len(header.frames),
            SharedFunctionalGroupsSequence=[shared],
            PerFrameFunctionalGroupsSequence=positions,
        )
    ]


def _group(dataset: pydicom.Dataset, number: int, name: str) -> pydicom.Dataset:
    """Return what a multi-frame object says of a frame (from 1), or else of all of them."""
    for groups in (
        dataset.PerFrameFunctionalGroupsSequence[number - 1],
        dataset.SharedFunctionalGroupsSequence[0],
    ):
        if name in groups and len(groups[name].value):
            return groups[name].value[0]  # type: ignore[no-any-return]
    raise PancreasSegError(
        f"This multi-frame CT says nothing about the {name} of its frames; write .nii.gz instead."
    )


def _reference(
    dataset: pydicom.Dataset, first: pydicom.Dataset, **values: object
) -> pydicom.Dataset:
    shared = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Rows", "Columns")
    return copy_elements(
        dataset, _COPIED, **dict.fromkeys(EMPTY), **{k: first[k].value for k in shared}, **values
    )


def copy_elements(
    dataset: pydicom.Dataset, names: tuple[str, ...], **values: object
) -> pydicom.Dataset:
    """Copy some elements, with values for others (or for these, where they are missing)."""
    import pydicom

    copy = pydicom.Dataset()
    for name, value in values.items():
        setattr(copy, name, value)
    for name in names:
        if name in dataset:
            copy[name] = dataset[name]
    return copy


def _number_source_frames(segmentation: Segmentation, header: DicomHeader) -> None:
    """Turn the place in our stack into the number of the frame in the CT's own object."""
    if header.frames == tuple(range(1, len(header.frames) + 1)):
        return
    for frame in segmentation.PerFrameFunctionalGroupsSequence if header.multiframe else ():
        for derivation in frame.DerivationImageSequence:
            for source in derivation.SourceImageSequence:
                place = int(source.ReferencedFrameNumber)
                source.ReferencedFrameNumber = header.frames[place - 1]


def copy_patient_and_study(made: Segmentation | Comprehensive3DSR, source: pydicom.Dataset) -> None:
    """Take over what the object shares with its CT, as it is written there."""
    if "SpecificCharacterSet" in source:
        made["SpecificCharacterSet"] = source["SpecificCharacterSet"]
    made.copy_patient_and_study_information(source)


def new_series(source: pydicom.Dataset, place: int = 0) -> dict[str, Any]:
    """Return highdicom's parameters of a series of ours, behind those that the scanner made."""
    from pydicom.uid import generate_uid

    try:
        number = max(0, int(source.get("SeriesNumber") or 0)) % 1_000_000 + 1000
    except (TypeError, ValueError):
        number = 1000
    return {
        "series_instance_uid": generate_uid(prefix=None),
        "series_number": number + place,
        "sop_instance_uid": generate_uid(prefix=None),
        "instance_number": 1,
        **dict.fromkeys(("manufacturer", "manufacturer_model_name"), MANUFACTURER),
        **dict.fromkeys(("software_versions", "device_serial_number"), __version__),
    }
