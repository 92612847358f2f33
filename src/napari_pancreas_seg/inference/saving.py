"""The files of a segmentation: their names, and the record of what made the mask, a JSON beside it.

The record names neither the CT's file nor its folder, and nothing from its header but geometry: the
CT is known by the SHA-256 of its bytes. No patient's name is in it.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.classes import Classes
from napari_pancreas_seg.inference.options import OutputOptions
from napari_pancreas_seg.io import check_can_save, stem, suffix_of
from napari_pancreas_seg.io.dicom.uids import mint_uids as complete_uids
from napari_pancreas_seg.io.files import check_target, file_sha256, same_file, write_json
from napari_pancreas_seg.io.load import files_read, stamp_of
from napari_pancreas_seg.io.save import VOLUME_SUFFIXES, report_path
from napari_pancreas_seg.io.suffixes import CSV, SURFACE
from napari_pancreas_seg.volume import CTVolume, Source

PROGRAM = "napari-pancreas-seg"

_LIBRARIES = (
    *("keras", "tensorflow", "jax", "torch"),
    *("nibabel", "numpy", "scipy", "SimpleITK", "pydicom", "highdicom"),
)


def sidecar_path(mask: Path) -> Path:
    """Path of a mask's sidecar, which holds provenance and measurements."""
    return mask.with_name(f"{stem(mask)}.json")


def probability_path(mask: Path, maps: str) -> Path:
    """Path of the probability map; `maps` is the start of the maps' names."""
    return mask.with_name(f"{maps}_probability{_map_suffix(mask)}")


def attention_path(mask: Path, maps: str, number: int) -> Path:
    """Path of an attention map; gate 1 is the finest."""
    return mask.with_name(f"{maps}_attention_{number}{_map_suffix(mask)}")


def _map_suffix(mask: Path) -> str:
    suffix = suffix_of(mask)
    return suffix if suffix.lower() in VOLUME_SUFFIXES else ".nii.gz"


def written_part(mask: Array, path: Path, card: Mapping[str, Any]) -> Array:
    """What a file holds of a mask: of several organs, a table or a surface the pancreas alone."""
    return Classes.of(card).gland(mask) if suffix_of(path).lower() in (*CSV, *SURFACE) else mask


def more_targets(mask: Path, maps: str, outputs: OutputOptions) -> list[Path]:
    """List the files to be written beside a mask and its sidecar."""
    targets = [report_path(mask)] if outputs.report else []
    targets += [probability_path(mask, maps)] if outputs.probability else []
    if outputs.attention:
        # How many gates there are is known when the model is loaded; any file of an earlier
        # run is in the way.
        targets += sorted(mask.parent.glob(f"{glob.escape(maps)}_attention_*"))
    return targets


def maps_beside(mask: Path, maps: str, left: Mapping[str, Any]) -> list[Path]:
    """List the maps that were written with the mask that is there, as `left_by_run` says."""
    if left.get("suffix") != suffix_of(mask).lower():  # those of a mask that stays
        return []
    gates = range(1, 1 + max(0, left.get("attention", 0)))
    found = [attention_path(mask, maps, number) for number in gates]
    return [probability_path(mask, maps), *found] if left.get("probability") else found


def check_targets(mask: Path, maps: str, source: Path | None, outputs: OutputOptions) -> None:
    """Refuse, with one sentence, files that exist already or are the CT itself."""
    beside = sidecar_path(mask)
    record = read_sidecar(beside)
    made = left_by_run(record).get("suffix")
    if isinstance(made, str) and made != suffix_of(mask).lower() and not outputs.overwrite:
        raise PancreasSegError(
            f"The mask was written as {made} before, and its record belongs to that: 'convert' "
            "writes it in another format, too; or choose another name or folder",
            option=" or allow overwriting (--overwrite).",
        )
    for path in (mask, beside, *more_targets(mask, maps, outputs)):
        if source is not None and same_file(path, source):
            raise PancreasSegError(
                f"'{path.name}' is the CT itself and is never overwritten; choose another output."
            )
        check_target(path, overwrite=outputs.overwrite)
    if record is None and _is_object(beside):
        raise PancreasSegError(
            f"'{beside.name}' is no record of this program and was left as it is; rename it, or "
            "choose another name for the mask."
        )


def _is_object(path: Path) -> bool:
    """Whether a file is a JSON object, as what scanners and BIDS say of a CT; no torn record is."""
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError, RecursionError):
        return False


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


def mask_sha256(mask: Path) -> str | None:
    """SHA-256 of a mask's file; None if unreadable."""
    try:
        return file_sha256(mask)
    except OSError:
        return None


def same_mask(mask: Path, left: Mapping[str, Any]) -> bool:
    """Whether a mask is the one that was written, as its hash in a record, or its part, tells."""
    written = recorded_sha256(left)
    return written is not None and written == mask_sha256(mask)


def recorded_sha256(record: Mapping[str, Any]) -> str | None:
    """SHA-256 of the mask that a record measures: as a run wrote it, or as it was corrected."""
    return record.get("mask_sha256") or left_by_run(record).get("mask_sha256")


def left_by_run(record: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The part of a record by which a later run knows the case; empty where there is none."""
    left = record.get("resume") if record else None
    return left if isinstance(left, Mapping) else {}


def write_sidecar(path: str | Path, record: Mapping[str, Any], *, overwrite: bool = False) -> Path:
    """Write a record as JSON, whole or not at all; what is not finite becomes null."""
    path = Path(path)
    write_json(path, _plain(record), overwrite=overwrite)
    return path


def read_sidecar(path: str | Path) -> dict[str, Any] | None:
    """Read a record that `write_sidecar` wrote; None if it is none of ours or cannot be read."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        ours = record["program"]["name"] == PROGRAM
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return record if ours else None


def measured(record: Mapping[str, Any]) -> list[Any]:
    """Return the measures by which two records are compared; JSON keeps them unchanged."""
    whole, parts = record["measurements"], record.get("labels", {}).values()
    values = (whole.get(name) for name in ("voxels", "mean_hu", "extent_mm", "cuts"))
    return [*values, *(part["voxels"] for part in parts)]


def is_sidecar(path: str | Path, volume: CTVolume | None = None) -> bool:
    """Whether a file is a record of ours, of any CT or of the one given; False if unreadable."""
    record = read_sidecar(path)
    if record is None or volume is None:
        return record is not None
    try:
        return bool(record.get("source") == _plain(source_record(volume.source)))
    except OSError:
        return False


def source_record(source: Source) -> dict[str, Any]:
    """Describe the CT by the hash of its bytes (over the sorted hashes of several files).

    Without a hash if its files are gone, or others than those that were read.
    """
    record: dict[str, Any] = {"format": source.format, "shape": list(source.shape)}
    files = files_read(source)
    if not files or (source.stamp and source.stamp != stamp_of(files)):
        return record
    hashes = sorted(map(file_sha256, files))
    whole = hashes[0] if len(files) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    return record | {
        "sha256": whole,
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
    }


def software_record() -> dict[str, str | None]:
    """Versions of Python, the system and the libraries that took part."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        **{name: _version(name) for name in _LIBRARIES if _in_use(name)},
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        # Not installed under that name, as with tensorflow-cpu.
        version = getattr(sys.modules.get(distribution), "__version__", None)
        return None if version is None else str(version)


def _in_use(name: str) -> bool:
    """Whether a library took part; Keras and TensorFlow may do so in another process."""
    return name in sys.modules or (name in ("keras", "tensorflow") and _version(name) is not None)


def _plain(value: Any) -> Any:
    """Turn NumPy's numbers, tuples and paths into what JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)
