"""Synthetic DICOM series for the tests: any geometry, transfer syntax and fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)
from pydicom.valuerep import DSfloat

Array = npt.NDArray[Any]
Change = Callable[[int, Dataset], None]

PATIENT = "DOE^SYNTHETIC"
"""In every header, so that a test can look for it where it must not be."""

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.57"
JPEG_LOSSLESS_SV1 = "1.2.840.10008.1.2.4.70"
JPEG_LS = "1.2.840.10008.1.2.4.80"
JPEG_LS_NEAR = "1.2.840.10008.1.2.4.81"
JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.90"
JPEG_2000 = "1.2.840.10008.1.2.4.91"
DEFLATED = "1.2.840.10008.1.2.1.99"

LOSSLESS = (
    "1.2.840.10008.1.2",
    str(ExplicitVRLittleEndian),
    str(ExplicitVRBigEndian),
    DEFLATED,
    JPEG_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    JPEG_LS,
    JPEG_2000_LOSSLESS,
    str(RLELossless),
)
"""Transfer syntaxes that give the stored numbers back exactly."""

AXIAL = np.array([[-0.8, 0, 0, 100.0], [0, -0.8, 0, 120.0], [0, 0, 2.5, -300.0], [0, 0, 0, 1.0]])
"""An axial stack from feet to head, 0.8×0.8×2.5 mm."""


@dataclass(frozen=True)
class Series:
    """What was written.

    Parameters
    ----------
    hu : ndarray, shape (I, J, K)
        Hounsfield units: column, row, slice.
    affine : ndarray, shape (4, 4)
        Maps (i, j, k) to world coordinates in mm, RAS+.
    folder : Path
        Where the files lie.
    files : tuple of Path
        One for each slice, in the order of the third axis; one only for a multi-frame object.
    """

    hu: Array
    affine: npt.NDArray[np.float64]
    folder: Path
    files: tuple[Path, ...]


def body(shape: tuple[int, int, int], seed: int = 0) -> npt.NDArray[np.int16]:
    """Air, a rim of fat, soft tissue and noise that tells every voxel from its mirror images."""
    inner = [np.abs(np.linspace(-1, 1, n)) for n in shape[:2]]
    distance = np.maximum(inner[0][:, None], inner[1][None, :])[..., None]
    hu = np.where(distance < 0.7, 50.0, np.where(distance < 0.8, -100.0, -1000.0))
    noise = np.random.default_rng(seed).normal(0, 10, shape)
    return np.maximum(np.broadcast_to(hu, shape) + noise, -1024).round().astype(np.int16)


def write_series(
    folder: Path,
    hu: Array | None = None,
    affine: npt.ArrayLike = AXIAL,
    *,
    transfer_syntax: str = ExplicitVRLittleEndian,
    slope: float | Sequence[float] = 1.0,
    intercept: float | Sequence[float] = -1024.0,
    signed: bool = False,
    bits_stored: int = 16,
    multiframe: bool = False,
    uids: bool = True,
    series_number: int | None = 3,
    study_uid: str | None = None,
    frame_of_reference: str | None = None,
    modality: str = "CT",
    names: Callable[[int], str] | None = None,
    change: Change | None = None,
) -> Series:
    """Write a CT series, or one multi-frame object.

    Parameters
    ----------
    folder : Path
        Where to write; created if needed. Several series may share it.
    hu : ndarray, shape (I, J, K), optional
        Hounsfield units: column, row, slice; `body` of 24×20×6 by default.
    affine : array_like, shape (4, 4)
        Maps (i, j, k) to world coordinates in mm, RAS+; the first two axes at right angles.
    transfer_syntax : str
        UID of how the pixels are stored.
    slope, intercept : float or sequence of float
        Rescaling, the same for all slices or one for each.
    signed : bool
        Whether stored numbers have a sign.
    bits_stored : int
        How many bits of 16 (or 8 of 8) are used.
    multiframe : bool
        Write one enhanced CT object instead of a file for each slice.
    uids : bool
        False leaves the UIDs of class, instance, study and series empty, as some anonymisers do.
    series_number, study_uid, frame_of_reference, modality
        What the headers say.
    names : callable, optional
        Name of the file of a slice; by default in an order that is not that of the slices.
    change : callable, optional
        Called with the number of each slice and its dataset before it is written.
    """
    voxels = body((24, 20, 6)) if hu is None else hu
    affine = np.asarray(affine, dtype=np.float64)
    folder.mkdir(parents=True, exist_ok=True)
    count = voxels.shape[2]
    slopes = np.broadcast_to(np.asarray(slope, float), count)
    intercepts = np.broadcast_to(np.asarray(intercept, float), count)
    dtype = np.dtype(f"{'i' if signed else 'u'}{1 if bits_stored <= 8 else 2}")
    stored = [
        np.rint((voxels[:, :, k].T - intercepts[k]) / slopes[k]).astype(dtype, order="C")
        for k in range(count)
    ]
    common = _common(
        affine, voxels.shape, transfer_syntax, signed, bits_stored, multiframe=multiframe
    )
    common.StudyInstanceUID = study_uid or generate_uid()
    common.SeriesInstanceUID = generate_uid()
    common.FrameOfReferenceUID = frame_of_reference or generate_uid()
    common.SeriesNumber = series_number
    common.Modality = modality
    if multiframe:
        path = folder / (names(0) if names else "multiframe.dcm")
        _write_multiframe(path, common, stored, affine, slopes, intercepts, change)
        return Series(voxels, affine, folder, (path,))

    order = np.random.default_rng(7).permutation(count)
    name = names or (lambda k: f"IM{order[k]:04d}")
    files = []
    for k in range(count):
        dataset = _copy(common)
        dataset.SOPInstanceUID = generate_uid()
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.InstanceNumber = int(order[k]) + 1
        dataset.AcquisitionNumber = 1
        dataset.ImagePositionPatient = _ds(_position(affine, k))
        dataset.ImageOrientationPatient = _ds(_orientation(affine))
        dataset.PixelSpacing = _ds(_spacing(affine))
        dataset.RescaleSlope, dataset.RescaleIntercept = _ds([slopes[k], intercepts[k]])
        dataset.RescaleType = "HU"
        _set_pixels(dataset, [stored[k]])
        if not uids:
            for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"):
                setattr(dataset, keyword, "")
            dataset.SeriesInstanceUID = ""
            dataset.SeriesNumber = None
        if change is not None:
            change(k, dataset)
        files.append(folder / name(k))
        save(dataset, files[-1])
    return Series(voxels, affine, folder, tuple(files))


def save(dataset: Dataset, path: Path) -> None:
    """Write a dataset in its own transfer syntax."""
    dataset.save_as(path, enforce_file_format=bool(dataset.get("SOPInstanceUID")))


def encode(frame: Array, transfer_syntax: str, bits: int) -> bytes:
    """Compress one frame, shape (rows, columns)."""
    plain = frame.view(f"u{frame.dtype.itemsize}")
    if transfer_syntax == JPEG_BASELINE:
        return bytes(imagecodecs.jpeg8_encode(plain, level=98))
    if transfer_syntax == JPEG_EXTENDED:
        return bytes(imagecodecs.jpeg8_encode(plain, level=98, bitspersample=min(bits, 12)))
    if transfer_syntax in (JPEG_LOSSLESS, JPEG_LOSSLESS_SV1):
        predictor = 1 if transfer_syntax == JPEG_LOSSLESS_SV1 else 6
        return bytes(
            imagecodecs.jpeg8_encode(
                plain, lossless=True, predictor=predictor, bitspersample=8 * plain.itemsize
            )
        )
    if transfer_syntax in (JPEG_LS, JPEG_LS_NEAR):
        return bytes(imagecodecs.jpegls_encode(plain, 2 if transfer_syntax == JPEG_LS_NEAR else 0))
    if transfer_syntax in (JPEG_2000, JPEG_2000_LOSSLESS):
        return bytes(
            imagecodecs.jpeg2k_encode(
                frame,
                0 if transfer_syntax == JPEG_2000_LOSSLESS else 80,
                codecformat="j2k",
                reversible=transfer_syntax == JPEG_2000_LOSSLESS,
            )
        )
    if transfer_syntax == RLELossless:
        return _rle(plain)
    raise ValueError(transfer_syntax)


def _rle(frame: Array) -> bytes:
    """Byte planes of literal runs, most significant first (PS3.5 annex G)."""
    big = frame.astype(frame.dtype.newbyteorder(">"))
    planes = big.view(np.uint8).reshape(-1, frame.itemsize).T
    segments = []
    for plane in planes:
        data = plane.tobytes()
        runs = [data[start : start + 128] for start in range(0, len(data), 128)]
        segment = b"".join(bytes([len(run) - 1]) + run for run in runs)
        segments.append(segment + b"\0" * (len(segment) % 2))
    offsets, at = [], 64
    for segment in segments:
        offsets.append(at)
        at += len(segment)
    header = np.zeros(16, "<u4")
    header[0] = len(segments)
    header[1 : 1 + len(offsets)] = offsets
    return header.tobytes() + b"".join(segments)


def _common(
    affine: Array,
    shape: tuple[int, ...],
    transfer_syntax: str,
    signed: bool,
    bits_stored: int,
    *,
    multiframe: bool,
) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = transfer_syntax
    dataset.SOPClassUID = EnhancedCTImageStorage if multiframe else CTImageStorage
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME" if multiframe else "AXIAL"]
    if multiframe:
        dataset.ImageType = [*dataset.ImageType, "NONE"]
    dataset.StudyDate, dataset.StudyTime = "20200102", "030405"
    dataset.ContentDate, dataset.ContentTime = "20200102", "030405"
    dataset.AcquisitionDate, dataset.AcquisitionTime = "20200102", "030405"
    dataset.AccessionNumber = "A1"
    dataset.Manufacturer = "synthetic"
    dataset.ReferringPhysicianName = ""
    dataset.StudyDescription = "test"
    dataset.PatientName, dataset.PatientID = PATIENT, "ID-SYNTHETIC"
    dataset.PatientBirthDate, dataset.PatientSex = "19500101", "O"
    dataset.StudyID = "1"
    dataset.PositionReferenceIndicator = ""
    dataset.PatientPosition = "HFS"
    dataset.KVP = 120
    dataset.SliceThickness = _ds([float(np.linalg.norm(affine[:3, 2]))])[0]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Columns, dataset.Rows = shape[0], shape[1]
    dataset.BitsAllocated = 8 if bits_stored <= 8 else 16
    dataset.BitsStored, dataset.HighBit = bits_stored, bits_stored - 1
    dataset.PixelRepresentation = int(signed)
    return dataset


def _write_multiframe(
    path: Path,
    dataset: Dataset,
    stored: list[Array],
    affine: Array,
    slopes: Array,
    intercepts: Array,
    change: Change | None,
) -> None:
    dataset.SOPInstanceUID = generate_uid()
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.InstanceNumber = 1
    dataset.AcquisitionContextSequence = []
    order = np.random.default_rng(7).permutation(len(stored))
    dataset.NumberOfFrames = len(stored)
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = _ds(_orientation(affine))
    measures.PixelSpacing = _ds(_spacing(affine))
    measures.SliceThickness = dataset.SliceThickness
    del dataset.SliceThickness
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelMeasuresSequence = [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k in order:
        frame, content, plane, rescale = Dataset(), Dataset(), Dataset(), Dataset()
        content.StackID, content.InStackPositionNumber = "1", int(k) + 1
        plane.ImagePositionPatient = _ds(_position(affine, int(k)))
        rescale.RescaleSlope, rescale.RescaleIntercept = _ds([slopes[k], intercepts[k]])
        rescale.RescaleType = "HU"
        frame.FrameContentSequence = [content]
        frame.PlanePositionSequence = [plane]
        frame.PixelValueTransformationSequence = [rescale]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    _set_pixels(dataset, [stored[k] for k in order])
    if change is not None:
        change(0, dataset)
    save(dataset, path)


def _set_pixels(dataset: Dataset, frames: list[Array]) -> None:
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not syntax.is_deflated:
        encoded = [encode(frame, syntax, dataset.BitsStored) for frame in frames]
        dataset.PixelData = encapsulate(encoded)
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    else:
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        data = b"".join(f.astype(f.dtype.newbyteorder(order)).tobytes() for f in frames)
        dataset.PixelData = data + b"\0" * (len(data) % 2)
        dataset["PixelData"].VR = "OB" if dataset.BitsAllocated == 8 else "OW"


def _copy(dataset: Dataset) -> Dataset:
    copied = Dataset(dataset)
    copied.file_meta = FileMetaDataset()
    copied.file_meta.update(dataset.file_meta)
    return copied


def _ds(values: npt.ArrayLike) -> list[DSfloat]:
    return [DSfloat(float(value), auto_format=True) for value in np.atleast_1d(values)]


def _lps(affine: Array) -> Array:
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _position(affine: Array, k: int) -> Array:
    return np.asarray((_lps(affine) @ [0, 0, k, 1])[:3])


def _orientation(affine: Array) -> Array:
    axes = _lps(affine)[:3, :2]
    return np.asarray((axes / np.linalg.norm(axes, axis=0)).T.ravel())


def _spacing(affine: Array) -> Array:
    """Distance between rows, then between columns."""
    return np.asarray(np.linalg.norm(affine[:3, :2], axis=0)[::-1])
