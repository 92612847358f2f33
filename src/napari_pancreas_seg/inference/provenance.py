"""What made this mask: the record that lies beside it as JSON, without a patient's name.

It names neither the CT's file nor its folder, and nothing from its header but geometry: the CT
is known by the SHA-256 of its bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg import __version__
from napari_pancreas_seg.inference.classes import Classes
from napari_pancreas_seg.io.files import file_sha256, write_json
from napari_pancreas_seg.mask.measures import measure

if TYPE_CHECKING:
    from napari_pancreas_seg.inference.options import Options
    from napari_pancreas_seg.io.save import OnGrid
    from napari_pancreas_seg.volume import CTVolume, Source

__all__ = ["SavedResult", "describe", "is_sidecar", "read_sidecar", "write_sidecar"]

PROGRAM = "napari-pancreas-seg"

_LIBRARIES = (
    "keras",
    "tensorflow",
    "jax",
    "torch",
    "nibabel",
    "numpy",
    "scipy",
    "SimpleITK",
    "pydicom",
    "highdicom",
)
_MODEL_KEYS = ("name", "version", "weights_sha256")


class SavedResult(Protocol):
    """What is written of a `Segmentation`; that class imports this module."""

    @property
    def mask(self) -> npt.NDArray[np.uint8]:
        """(Z, Y, X)."""

    @property
    def probability(self) -> OnGrid:
        """At the resolution of the network."""

    @property
    def attention(self) -> Sequence[OnGrid]:
        """The finest gate first."""

    @property
    def threshold(self) -> float:
        """The one that was applied."""

    @property
    def model(self) -> Mapping[str, Any]:
        """Its card."""

    @property
    def seconds(self) -> Mapping[str, float]:
        """Per stage."""

    @property
    def options(self) -> Options:
        """What was asked for."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings for the user."""


def describe(
    volume: CTVolume,
    segmentation: SavedResult,
    *,
    mask: npt.NDArray[Any] | None = None,
    seconds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Collect what made a mask and what it measures.

    Parameters
    ----------
    volume : CTVolume
        The CT.
    segmentation : Segmentation
        What the model found in it.
    mask : ndarray, shape (Z, Y, X), optional
        The mask that is written, if a person has edited the model's.
    seconds : Mapping of str to float, optional
        Further stages and how long they took, such as reading the CT.

    Returns
    -------
    dict
        Plain values for JSON. ``edits`` counts what a person has changed since. The source is
        known by its hash. ``labels`` names the values of a mask of several classes, with what
        each measures. ``attention`` and ``probability`` files hold 0 where nothing was
        computed.
    """
    written = segmentation.mask if mask is None else mask
    stages = {**(seconds or {}), **segmentation.seconds}
    return {
        "program": {"name": PROGRAM, "version": __version__},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {key: segmentation.model.get(key) for key in _MODEL_KEYS},
        **_localiser(segmentation.model),
        "options": {**asdict(segmentation.options), "applied_threshold": segmentation.threshold},
        "measurements": measure(written, volume),
        **_by_class(written, segmentation, volume),
        "edits": _edits(written, segmentation),
        "source": _source(volume.source),
        "grid": {
            "axes": "z (feet to head), y (front to back), x (right to left)",
            "shape": list(volume.grid.shape),
            "spacing_mm": list(volume.spacing),
            "affine_ras_mm": volume.grid.affine.tolist(),
        },
        "seconds": {name: round(float(value), 3) for name, value in stages.items()},
        "software": {
            "python": platform.python_version(),
            "system": platform.system(),
            **{name: _version(name) for name in _LIBRARIES if _in_use(name)},
        },
        "notes": list(dict.fromkeys((*volume.notes, *segmentation.notes))),
    }


def _localiser(card: Mapping[str, Any]) -> dict[str, Any]:
    """The model that found the gland for this one, if there was one."""
    return {"localiser": dict(card["localiser"])} if card.get("localiser") else {}


def _by_class(
    mask: npt.NDArray[Any], segmentation: SavedResult, volume: CTVolume
) -> dict[str, Any]:
    """Value and measurements of each class, where there are several."""
    classes = Classes.of(segmentation.model)
    if len(classes) == 1:
        return {}
    found = {}
    for name, value in zip(classes.names, classes.values, strict=True):
        found[name] = {"value": value, **measure(mask == value, volume)}
    return {"labels": found}


def write_sidecar(path: str | Path, record: Mapping[str, Any], *, overwrite: bool = False) -> Path:
    """Write a record as JSON; the file appears whole or not at all.

    Parameters
    ----------
    path : str or Path
        Where to write.
    record : Mapping
        What `describe` returned; values that are not finite become null.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    PancreasSegError
        If the file exists or cannot be written.
    """
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


def is_sidecar(path: str | Path, volume: CTVolume | None = None) -> bool:
    """Whether a file is a record that `write_sidecar` wrote, of any CT or of the one given.

    False if it cannot be read.
    """
    record = read_sidecar(path)
    if record is None or volume is None:
        return record is not None
    try:
        return bool(record.get("source") == _plain(_source(volume.source)))
    except OSError:
        return False


def _edits(mask: npt.NDArray[Any], segmentation: SavedResult) -> dict[str, int]:
    """Count what a person has changed in the model's mask, a slice at a time."""
    found = segmentation.mask
    added = removed = relabelled = slices = 0
    for now, before in zip(mask, found, strict=True):
        if mask is found or not (changed := now != before).any():
            continue
        slices += 1
        added += int(np.count_nonzero(changed & (before == 0)))
        removed += int(np.count_nonzero(changed & (now == 0)))
        relabelled += int(np.count_nonzero(changed & (before != 0) & (now != 0)))
    several = relabelled or len(Classes.of(segmentation.model)) > 1
    return {
        "voxels_added": added,
        "voxels_removed": removed,
        **({"voxels_relabelled": relabelled} if several else {}),
        "slices": slices,
    }


def _source(source: Source) -> dict[str, Any]:
    """Describe the CT by what its bytes are, never by its name.

    Of several files, as of a DICOM series, ``sha256`` is the hash over the sorted hashes (in
    hexadecimal, one after the other) of all of them, whatever their names and order.
    """
    record: dict[str, Any] = {"format": source.format, "shape": list(source.shape)}
    files = _files(source)
    if not files:
        return record
    hashes = sorted(map(file_sha256, files))
    whole = hashes[0] if len(files) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    return record | {
        "sha256": whole,
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
    }


def _files(source: Source) -> list[Path]:
    """List the files that a CT was read from, each once; none if they are gone."""
    # Those of the one series, not all that may lie in the folder; a detached header's data.
    files = {Path(file) for file in getattr(source.header, "files", ())}
    if files and all(file.is_file() for file in files):
        return sorted(files)
    return [source.path] if source.path is not None and source.path.is_file() else []


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
