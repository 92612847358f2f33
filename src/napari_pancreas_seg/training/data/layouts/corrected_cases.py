"""The user's own corrected cases, kept for improving a model, and how they are laid out.

A folder with ``corrections.json`` (what the masks' values mean) and a folder a case: the CT
(``ct.nii.gz``), its corrected mask (``mask.nii.gz``), and which slices a person has reviewed
(``case.json``): only these count. A case is known by its CT's voxels, so that the same CT is never
there twice. Nothing of a CT's header is kept but its geometry: no name, no number, no path.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io import save_ct, save_mask
from napari_pancreas_seg.io.files import (
    all_or_none,
    explain_os_error,
    read_json,
    user_folder,
    write_json,
)
from napari_pancreas_seg.training.data.layouts.cases import MaskFile, VolumeCase
from napari_pancreas_seg.training.data.layouts.listing import (
    DataSetLayout,
    Listing,
    folders_in,
    left_out,
)
from napari_pancreas_seg.volume import CTVolume

logger = logging.getLogger(__name__)

FORMAT = 1
INDEX, CASE, CT, MASK = "corrections.json", "case.json", "ct.nii.gz", "mask.nii.gz"
CASE_NAME = "case-"
"""How the names of cases begin that are named after their voxels."""
PANCREAS: Mapping[str, int] = {"pancreas": 1}
"""Meaning of a mask's values by default."""


@dataclass(frozen=True)
class CorrectedCase:
    """A case of the user's data: its folder, a pseudonym, and the SHA-256 of the CT's voxels.

    `reviewed` are the slices that count, counted from the feet and from 0; None for all of them.
    """

    name: str
    patient: str
    reviewed: tuple[int, ...] | None
    added: str
    ct: str
    folder: Path


def corrected_cases_folder() -> Path:
    """Folder of the user's cases; ``NAPARI_PANCREAS_SEG_CORRECTIONS`` may name another one."""
    return user_folder("corrections", "NAPARI_PANCREAS_SEG_CORRECTIONS")


def add_corrected_case(
    folder: Path,
    volume: CTVolume,
    mask: Array,
    reviewed: Iterable[int] | None = None,
    patient: str | None = None,
    *,
    labels: Mapping[str, int] = PANCREAS,
    replace: bool = False,
) -> CorrectedCase:
    """Keep a CT and its corrected mask (Z, Y, X); the case is there whole or not at all.

    `reviewed` are the slices whose mask is right, counted from the feet and from 0; None for all.
    `patient` is a pseudonym, if several CTs show one patient. `labels` say what the mask's values
    mean, the same for all cases of a store; if it is one label, a mask of one value is that.
    """
    values = {int(v) for plane in mask for v in np.unique(plane)} - {0}
    if len(values) == len(labels) == 1:
        values = {*labels.values()}
        mask = (mask > 0) * np.uint8(*values)
    slices = _checked(volume, mask, reviewed)
    if unknown := values - {*labels.values()}:
        raise PancreasSegError(
            f"The mask holds the label {min(unknown)}, but only {', '.join(labels)} can be "
            "learned; erase it or give it the right label."
        )
    digest = voxel_hash(volume)
    known = _find(folder, digest)
    if known is not None and not replace:
        raise PancreasSegError(
            "This CT is already among your cases; choose to replace its mask",
            option=" (--overwrite).",
        )
    name = f"{CASE_NAME}{digest[:12]}" if known is None else known.name  # its folder may be renamed
    pseudonym = patient or (known.patient if known is not None else name)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    about = {"reviewed": slices, "patient": pseudonym, "ct": digest, "added": now}
    _claim(folder, labels)
    case = folder / name
    for left in case.glob(".*.part"):  # of an addition that was killed
        shutil.rmtree(left, ignore_errors=True)
    # The description comes last: a folder without one is no case.
    with all_or_none(case, last=CASE, overwrite=True) as waiting:
        save_ct(volume, waiting / CT)  # even if known: its geometry may be another
        save_mask(mask, volume, waiting / MASK)
        write_json(waiting / CASE, about)
    counts = None if slices is None else tuple(slices)
    return CorrectedCase(name, pseudonym, counts, now, digest, case)


def list_corrected_cases(folder: Path) -> list[CorrectedCase]:
    """List the cases of a store, by name; what is not whole is left out."""
    found = []
    for path in sorted(folder.glob(f"*/{CASE}")):
        try:
            case = read_corrected_case(path.parent)
        except PancreasSegError:
            logger.warning("%s is no description of a corrected case", path)
        else:
            found += [case] if case else []
    return found


def find_corrected_case(folder: Path, volume: CTVolume) -> CorrectedCase | None:
    """Find the case of a CT in a store, None if it is not there; looks at every voxel."""
    return _find(folder, voxel_hash(volume))


def remove_corrected_case(folder: Path, name: str) -> None:
    """Remove a case from a store."""
    case = folder / name
    if Path(name).name != name or not (case / CASE).is_file():
        raise PancreasSegError(f"There is no case '{name}' among the corrections.")
    try:
        (case / CASE).unlink()  # from here on it is no case any more, whatever happens
        shutil.rmtree(case)
    except OSError as error:
        raise PancreasSegError(
            f"The case '{name}' was not removed completely: {explain_os_error(error)}."
        ) from error


def case_name(volume: CTVolume) -> str:
    """Name that a CT has among corrected cases, and on the card of a model that learnt from it."""
    return f"{CASE_NAME}{voxel_hash(volume)[:12]}"


def voxel_hash(volume: CTVolume) -> str:
    """SHA-256 of a CT's voxels and shape, by which it is known wherever it has gone."""
    digest = hashlib.sha256(repr((volume.hu.dtype.str, volume.hu.shape)).encode())
    for plane in volume.hu:
        digest.update(np.ascontiguousarray(plane).data)
    return digest.hexdigest()


def _checked(volume: CTVolume, mask: Array, reviewed: Iterable[int] | None) -> list[int] | None:
    """Return the slices that count, sorted; PancreasSegError if CT, mask and slices do not fit."""
    if not volume.has_values:
        raise PancreasSegError("The CT of this mask is not open; open it first.")
    if mask.shape != volume.grid.shape:
        raise PancreasSegError(
            f"The mask has the shape {mask.shape}, the CT {volume.grid.shape}; choose the mask "
            "that belongs to this CT."
        )
    slices = None if reviewed is None else sorted({int(z) for z in reviewed})
    if slices is not None and not slices:
        raise PancreasSegError(
            "No slice of this mask is marked as reviewed; mark those that are right first."
        )
    if slices is not None and not 0 <= slices[0] <= slices[-1] < len(mask):
        raise PancreasSegError(f"A reviewed slice is none of the CT's {len(mask)} slices.")
    return slices


def labels_of(folder: Path) -> dict[str, int]:
    """Read the values of the masks' labels in a store, by name."""
    index = read_json(folder / INDEX)
    if index.get("format") != FORMAT:
        raise PancreasSegError(
            f"{INDEX} is of format {index.get('format')!r}, of a newer version of this program; "
            "update it."
        )
    labels = index.get("labels")
    if not isinstance(labels, dict) or not all(
        isinstance(value, int) and 0 < value < 256 for value in labels.values()
    ):
        raise PancreasSegError(f"{INDEX} does not say what the masks' values mean; repair it.")
    return labels


def _claim(folder: Path, labels: Mapping[str, int]) -> None:
    """Make the store, or check that its labels are these."""
    index = folder / INDEX
    if not index.exists():
        write_json(index, {"format": FORMAT, "labels": dict(labels)}, overwrite=True)
    elif (known := labels_of(folder)) != dict(labels):
        raise PancreasSegError(
            f"The cases in '{folder}' have other labels ({known}) than this one; keep it in "
            "another folder."
        )


def _find(folder: Path, digest: str) -> CorrectedCase | None:
    return next((case for case in list_corrected_cases(folder) if case.ct == digest), None)


def read_corrected_case(case: Path) -> CorrectedCase | None:
    """Read the case in a folder; None if a file of it is missing."""
    if not all((case / name).is_file() for name in (CT, MASK, CASE)):
        return None
    about = read_json(case / CASE)
    reviewed = about.get("reviewed")
    if reviewed is not None and not (
        isinstance(reviewed, list) and all(isinstance(z, int) and z >= 0 for z in reviewed)
    ):
        raise PancreasSegError(f"{case.name}/{CASE}: 'reviewed' must be a list of slices, or null.")
    return CorrectedCase(
        case.name,
        str(about.get("patient") or case.name),
        None if reviewed is None else tuple(sorted(set(reviewed))),
        str(about.get("added", "")),
        str(about.get("ct", "")),
        case,
    )


def _read(folder: Path) -> Listing:
    names = {value: name for name, value in labels_of(folder).items()}
    cases, incomplete, unreviewed = [], [], []
    for item in folders_in(folder):
        case = read_corrected_case(item)
        if case is None:
            incomplete.append(item.name)
        elif case.reviewed == ():
            unreviewed.append(item.name)
        else:
            mask = MaskFile(item / MASK, names)
            cases.append(
                VolumeCase(case.name, case.patient, item / CT, (mask,), slices=case.reviewed)
            )
    notes = left_out(f"Folders without {CT}, {MASK} or {CASE}", incomplete)
    notes += left_out("Cases without a reviewed slice", unreviewed)
    return Listing(tuple(names[value] for value in sorted(names)), tuple(cases), notes)


LAYOUT = DataSetLayout(
    "corrections",
    f"{INDEX} and folders with {CT}, {MASK} and {CASE} (corrections of this program)",
    lambda folder: (folder / INDEX).is_file(),
    _read,
)
