"""What made this mask: the record that lies beside it as JSON, without a patient's name.

It names neither the CT's file nor its folder, and nothing from its header but geometry: the CT
is known by the SHA-256 of its bytes.
"""

from __future__ import annotations

import hashlib
import math
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg import __version__
from napari_pancreas_seg.io.files import write_json
from napari_pancreas_seg.metrics import measure

if TYPE_CHECKING:
    from napari_pancreas_seg.inference.result import Segmentation
    from napari_pancreas_seg.volume import CTVolume, Source

__all__ = ["describe", "write_sidecar"]

PROGRAM = "napari-pancreas-seg"

_LIBRARIES = ("keras", "tensorflow", "jax", "torch", "nibabel", "numpy", "scipy")
_MODEL_KEYS = ("name", "version", "weights_sha256")


def describe(
    volume: CTVolume,
    segmentation: Segmentation,
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
        Plain values for JSON. ``attention`` and ``probability`` files hold 0 where nothing was
        computed.
    """
    written = segmentation.mask if mask is None else mask
    edited = 0 if mask is None else int(np.count_nonzero((mask > 0) != (segmentation.mask > 0)))
    stages = {**(seconds or {}), **segmentation.seconds}
    return {
        "program": {"name": PROGRAM, "version": __version__},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {key: segmentation.model.get(key) for key in _MODEL_KEYS},
        "options": {**asdict(segmentation.options), "applied_threshold": segmentation.threshold},
        "measurements": measure(written, volume),
        "edited_voxels": edited,
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


def _source(source: Source) -> dict[str, Any]:
    record: dict[str, Any] = {"format": source.format, "shape": list(source.shape)}
    path = source.path
    if path is not None and path.is_file():
        with open(path, "rb") as file:
            record["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        record["bytes"] = path.stat().st_size
    return record


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
