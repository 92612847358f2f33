"""UIDs of a DICOM series: what a reference to it needs, and how what is missing is made.

Anonymisers often leave the UIDs of a series empty. Nothing can refer to such a series; on request
UIDs are made from its content, so that they are the same whenever and wherever that is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.dicom.slices import DicomHeader
from napari_pancreas_seg.volume import CTVolume, OnSourceGrid

if TYPE_CHECKING:
    import pydicom

MINTED = (
    "This series had no UIDs, so some were made from its content (--mint-uids); its own files "
    "still have none."
)
"""Note of a volume whose UIDs were made here."""

_CT = "1.2.840.10008.5.1.4.1.1.2"
_ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"

_SHARED = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_OF_EACH = ("SOPClassUID", "SOPInstanceUID")

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "napari-pancreas-seg")


def header_of(volume: OnSourceGrid) -> DicomHeader:
    """Return the headers of the DICOM series that a CT came from."""
    header = volume.source.header
    if volume.source.format != "dicom" or not isinstance(header, DicomHeader):
        raise PancreasSegError(
            "A DICOM-SEG refers to the DICOM series of its CT, and this CT was not read from one; "
            "give the series as input, or write .nii.gz."
        )
    return header


def check_uids(volume: OnSourceGrid) -> None:
    """Refuse a CT that nothing could refer to."""
    header = header_of(volume)
    first = header.datasets[0]
    missing = [name for name in _SHARED if not _valid(first, name)]
    missing += [n for n in _OF_EACH if not all(_valid(each, n) for each in header.datasets)]
    if missing:
        raise PancreasSegError(
            "This series has no UIDs that a DICOM-SEG could refer to (an anonymiser may have "
            "removed them); write .nii.gz, or have some made from its content",
            option=" (--mint-uids).",
            in_window=" (the box above Export).",
        )
    if len({each.SeriesInstanceUID for each in header.datasets}) > 1:
        raise PancreasSegError(
            "The slices of this CT have different series UIDs, so a DICOM-SEG could not refer to "
            "them as one series; write .nii.gz."
        )
    if len({each.SOPInstanceUID for each in header.datasets}) < len(header.datasets):
        raise PancreasSegError(
            "Several slices of this series have the same UID, so a DICOM-SEG could not refer to "
            "them; write .nii.gz, or have new ones made from its content",
            option=" (--mint-uids).",
            in_window=" (the box above Export).",
        )


def mint_uids(volume: CTVolume) -> CTVolume:
    """Give a series the UIDs that it lacks, made from its values and places; others stay."""
    header = header_of(volume)
    with contextlib.suppress(PancreasSegError):
        check_uids(volume)
        return volume
    if not volume.has_values:
        raise PancreasSegError(
            "UIDs are made from the values of the CT, which are not at hand here; load the CT "
            "again, or write .nii.gz."
        )
    digests = list(_slice_digests(volume))
    whole = "".join(digests)
    if header.multiframe:
        digests = [whole]
    shared = {name: _uid(name, whole) for name in _SHARED}
    names = [each.get("SOPInstanceUID") for each in header.datasets]
    keep = len(set(names)) == len(names) and all(names)
    shared["SOPClassUID"] = _ENHANCED_CT if header.multiframe else _CT
    datasets = tuple(
        _completed(each, shared | {"SOPInstanceUID": _uid("SOPInstanceUID", digest)}, keep)
        for each, digest in zip(header.datasets, digests, strict=True)
    )
    source = dataclasses.replace(
        volume.source, header=dataclasses.replace(header, datasets=datasets)
    )
    return dataclasses.replace(volume, source=source, notes=(*volume.notes, MINTED))


def _valid(dataset: pydicom.Dataset, name: str) -> bool:
    from pydicom.uid import UID

    value = dataset.get(name)
    return isinstance(value, str) and bool(value) and UID(value).is_valid


def _slice_digests(volume: CTVolume) -> Iterator[str]:
    """Hash every slice's values and place, in the order of the source."""
    count = volume.source.shape[2]
    array = volume.to_source_order(volume.hu).reshape(volume.source.shape[:3])
    kind = "<i2" if array.dtype.kind == "i" else "<f4"
    affine = volume.source.affine
    for k in range(count):
        place = np.column_stack([affine[:3, :3], affine[:3, 3] + k * affine[:3, 2]])
        # Micrometres: other programs may write the same place with other digits.
        numbers = np.rint(place * 1000).astype("<i8")
        slice_ = np.ascontiguousarray(array[:, :, k].T, dtype=kind)
        digest = hashlib.sha256(repr((kind, slice_.shape)).encode())
        digest.update(numbers.tobytes())
        digest.update(slice_.data)
        yield digest.hexdigest()


def _uid(what: str, content: str) -> str:
    """Make a UID from content: a name-based UUID, as the standard's part 5 (B.2) allows."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, f'{what}:{content}').int}"


def _completed(
    dataset: pydicom.Dataset, uids: dict[str, str], keep_instance: bool
) -> pydicom.Dataset:
    """Copy a header, with what it lacks filled in; the original stays as it is."""
    import pydicom

    complete = pydicom.Dataset()
    complete.update(dataset)
    for name, uid in uids.items():
        if not _valid(dataset, name) or (name == "SOPInstanceUID" and not keep_instance):
            # A new element: the copy shares the others with the original.
            complete.add_new(name, "UI", uid)
    return complete
