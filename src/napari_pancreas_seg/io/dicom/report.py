"""The measures of a mask as a DICOM structured report (TID 1500), built by highdicom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_pancreas_seg._version import __version__
from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.dicom import seg_write
from napari_pancreas_seg.io.dicom import uids as dicom_uids
from napari_pancreas_seg.io.dicom.segments import MANUFACTURER, plain_text
from napari_pancreas_seg.io.files import atomic_write
from napari_pancreas_seg.io.quiet import quiet_libraries
from napari_pancreas_seg.mask.centreline import CUTS, Cuts
from napari_pancreas_seg.mask.measures import measure
from napari_pancreas_seg.volume import CTVolume

if TYPE_CHECKING:
    import pydicom
    from highdicom.sr import Measurement
    from pydicom.sr.coding import Code


_ML, _MM = ("mL", "mL"), ("mm", "mm")
_HU, _SHARE = ("[hnsf'U]", "Hounsfield unit"), ("1", "no units")
_VOLUME = ("118565006", "SCT", "Volume")
_DENSITY = ("112031", "DCM", "Attenuation Coefficient")
_MEAN, _SD = ("373098007", "SCT", "Mean"), ("386136009", "SCT", "Standard Deviation")
_LARGEST = ("56851009", "SCT", "Maximum")
_ERODED = ("eroded", "99NPS", "Mask eroded by one voxel")
_LINE = ("130490", "DCM", "Centerline")
_OUTLINE = ("closed", "99NPS", "Voxels from -190 to -30 HU within the closed outline")

_Concept = tuple[str, str, str]

MEASURES: dict[str, tuple[_Concept, tuple[str, str], dict[str, _Concept]]] = {
    "volume_ml": (_VOLUME, _ML, {}),
    "eroded_mean_hu": (_DENSITY, _HU, {"derivation": _MEAN, "method": _ERODED}),
    "eroded_sd_hu": (_DENSITY, _HU, {"derivation": _SD, "method": _ERODED}),
    "fat_fraction": (("129100", "DCM", "Fat fraction"), _SHARE, {"method": _OUTLINE}),
    "length_mm": (("410668003", "SCT", "Length"), _MM, {"method": _LINE}),
    "calibre_mm": (("81827009", "SCT", "Diameter"), _MM, {"derivation": _LARGEST}),
    "surface_cm2": (("C0JK", "IBSI", "Surface area (mesh)"), ("cm2", "square centimeter"), {}),
    "head_ml": (_VOLUME, _ML, {"site": ("64163001", "SCT", "Head of pancreas")}),
    "body_ml": (_VOLUME, _ML, {"site": ("40133006", "SCT", "Body of pancreas")}),
    "tail_ml": (_VOLUME, _ML, {"site": ("73239005", "SCT", "Tail of pancreas")}),
    "diameter_3d_mm": (("L0JK", "IBSI", "Maximum 3D diameter"), _MM, {}),
}
"""What each measure is: concept, unit (UCUM), and derivation, method or site."""


def write_report(
    mask: Array,
    like: CTVolume,
    segmentation: Path,
    path: Path,
    *,
    cuts: Cuts = CUTS,
    overwrite: bool = False,
) -> Path:
    """Write what could be measured of each label of a mask that is a DICOM-SEG already."""
    import pydicom

    if not like.has_values:
        raise PancreasSegError("A report needs the values of the CT; give the CT with its mask.")
    dicom_uids.check_uids(like)
    with quiet_libraries():
        seg = pydicom.dcmread(segmentation, stop_before_pixels=True)
        numbers = [int(segment.SegmentNumber) for segment in seg.SegmentSequence]
        one = len(numbers) == 1
        masks = [mask != 0] if one else (mask == label for label in numbers)
        parts = cuts if one else None  # one label of several may be a tumour
        report = _build(seg, like, [measure(each, like, parts) for each in masks])
        with atomic_write(path, overwrite=overwrite) as file:
            report.save_as(file, enforce_file_format=True)
    return path


def _build(
    seg: pydicom.Dataset, like: CTVolume, measured: Sequence[Mapping[str, Any]]
) -> pydicom.Dataset:
    from highdicom import sr
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    source = dicom_uids.header_of(like).datasets[0]
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(prefix=None),
        name=MANUFACTURER,
        manufacturer_name=MANUFACTURER,
        model_name=MANUFACTURER,
        serial_number=__version__,
    )
    observer = sr.ObserverContext(codes.DCM.Device, device)
    content = sr.MeasurementReport(
        sr.ObservationContext(observer_device_context=observer),
        _code(("41806-1", "LN", "CT Abdomen")),
        [
            _group(seg, segment, source, of_it)
            for segment, of_it in zip(seg.SegmentSequence, measured, strict=True)
        ],
        codes.DCM.ImagingMeasurementReport,
    )
    # highdicom's parameters refuse dates and sexes that break the standard; those of the series
    # are copied as they are written there.
    evidence = seg_write.copy_elements(
        seg,
        ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality"),
        **dict.fromkeys(seg_write.EMPTY),
    )
    report = sr.Comprehensive3DSR(
        evidence=[evidence, *dicom_uids.header_of(like).datasets],
        content=content[0],
        **seg_write.new_series(source, 1),
        is_complete=True,
        series_description="Measures of a segmentation",
    )
    scheme = seg_write.copy_elements(
        seg, (), CodingSchemeDesignator="99NPS", CodingSchemeName=MANUFACTURER
    )
    report.CodingSchemeIdentificationSequence = [scheme]
    seg_write.copy_patient_and_study(report, source)
    return report


def _group(
    seg: pydicom.Dataset,
    segment: pydicom.Dataset,
    source: pydicom.Dataset,
    measured: Mapping[str, Any],
) -> Any:
    """The measures of one segment."""
    from highdicom import sr

    kind, category = (
        sr.CodedConcept.from_dataset(segment[f"SegmentedProperty{word}CodeSequence"].value[0])
        for word in ("Type", "Category")
    )
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        sr.TrackingIdentifier(identifier=plain_text(segment.SegmentLabel)),
        referenced_segment=sr.ReferencedSegment(
            seg.SOPClassUID,
            seg.SOPInstanceUID,
            int(segment.SegmentNumber),
            source_series=sr.SourceSeriesForSegmentation(source.SeriesInstanceUID),
        ),
        finding_type=kind,
        finding_category=category,
        measurements=[
            _measurement(name, value)
            for name in MEASURES
            if (value := measured.get(name)) is not None
        ],
    )


def _measurement(name: str, value: float) -> Measurement:
    from highdicom import sr

    concept, (unit, word), more = MEASURES[name]
    derivation, method, site = (
        None if key not in more else _code(more[key]) for key in ("derivation", "method", "site")
    )
    return sr.Measurement(
        _code(concept),
        float(f"{value:.10g}"),  # a decimal string has 16 characters
        _code((unit, "UCUM", word)),
        derivation=derivation,
        method=method,
        finding_sites=None if site is None else [sr.FindingSite(site)],
    )


def _code(concept: _Concept) -> Code:
    from pydicom.sr.coding import Code

    return Code(*concept)
