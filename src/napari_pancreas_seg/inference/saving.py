"""Names of a segmentation's files, checks before they are written, and their hashes."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io import check_can_save, stem, suffix_of
from napari_pancreas_seg.io.dicom.uids import mint_uids as complete_uids
from napari_pancreas_seg.io.files import check_target, file_sha256, same_file
from napari_pancreas_seg.io.save import VOLUME_SUFFIXES, report_path
from napari_pancreas_seg.volume import CTVolume

_DATA = {".nhdr": ".raw.gz", ".mhd": ".zraw"}
"""Endings of the data files of masks with a detached header. A header that names another file has
another hash itself, so nothing needs to be read from it."""


def sidecar_path(mask: Path) -> Path:
    """Where the provenance and measurements of a mask lie."""
    return mask.with_name(f"{stem(mask)}.json")


def probability_path(mask: Path, maps: str) -> Path:
    """Where the probability lies; `maps` is the start of the maps' names."""
    return mask.with_name(f"{maps}_probability{_map_suffix(mask)}")


def attention_path(mask: Path, maps: str, number: int) -> Path:
    """Where the coefficients of a gate lie, 1 for the finest."""
    return mask.with_name(f"{maps}_attention_{number}{_map_suffix(mask)}")


def _map_suffix(mask: Path) -> str:
    suffix = suffix_of(mask)
    return suffix if suffix.lower() in VOLUME_SUFFIXES else ".nii.gz"


def check_targets(
    mask: Path,
    maps: str,
    source: Path | None,
    *,
    attention: bool,
    probability: bool,
    overwrite: bool,
    report: bool = False,
) -> None:
    """Refuse, with one sentence, files that exist already or are the CT itself."""
    targets = [mask, sidecar_path(mask), *([report_path(mask)] if report else [])]
    if probability:
        targets.append(probability_path(mask, maps))
    if attention:
        # How many gates there are is known when the model is loaded; any file of an earlier
        # run is in the way.
        targets += sorted(mask.parent.glob(f"{glob.escape(maps)}_attention_*"))
    for path in targets:
        if source is not None and same_file(path, source):
            raise PancreasSegError(
                f"'{path.name}' is the CT itself and is never overwritten; choose another output."
            )
        check_target(path, overwrite=overwrite)


def prepare(volume: CTVolume, mask: Path, *, mint_uids: bool) -> CTVolume:
    """Refuse what could not be written; give a series the UIDs that a DICOM-SEG refers to."""
    if mint_uids and mask.suffix.lower() == ".dcm":
        volume = complete_uids(volume)
    check_can_save(mask, volume)
    return volume


def card_sha256(card: Mapping[str, Any]) -> str:
    """SHA-256, hexadecimal, of all that a card says, the hash of the weights included."""
    text = json.dumps(card, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def mask_sha256(mask: Path, waiting: Path | None = None) -> str | None:
    """SHA-256 of a mask's file, or of a header and its data together; None if unreadable.

    The data may still be in the folder `waiting`, from which the header has been moved already.
    """
    suffix = suffix_of(mask)
    try:
        whole = file_sha256(mask)
        if suffix.lower() not in _DATA:
            return whole
        data = mask.with_name(f"{stem(mask)}{_DATA[suffix.lower()]}")
        if waiting is not None and not data.exists():
            data = waiting / data.name
        return hashlib.sha256(f"{whole}{file_sha256(data)}".encode()).hexdigest()
    except OSError:
        return None
