"""Reports what a file is and what in it may spoil a segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from napari_pancreas_seg import io, orientations
from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.acquisition import acquisition_and_warnings
from napari_pancreas_seg.inference.body import find_body
from napari_pancreas_seg.inference.scan_context import THICK_MM, body_in, ct_warnings
from napari_pancreas_seg.mask.measures import voxels_by_label
from napari_pancreas_seg.volume import CTVolume, OnSourceGrid

Findings = dict[str, Any]

_NAMES = {"nifti": "NIfTI", "nrrd": "NRRD", "metaimage": "MetaImage", "dicom": "DICOM"}

_ANISOTROPIC = 10.0

_IMPOSSIBLE_HU = -4096
"""No scanner and no padding goes below; above, metal reaches 30,000 HU in extended scales."""


def inspect(path: str | Path, *, series: str | int | None = None, force: bool = False) -> Findings:
    """Say what a file or DICOM series is, whether it is usable, and what is suspicious."""
    path = Path(path)
    name = path.name or path.resolve().name or str(path)  # "." and "/" have none
    found: Findings = {"file": name, "usable": False, "problem": None, "suspicious": []}
    try:
        kind, volume, type_name = io.sniff(path, series=series)
        found |= {"kind": kind, **_place(volume)}
        if not isinstance(volume, CTVolume):
            found["values"] = _values(volume.values)
            if kind == "mask":
                found |= _labels(volume.values, volume)
        else:
            found["data_type"] = type_name
            found["values"] = _values(volume.hu)
            found["suspicious"] = _remarks_on_grid(volume)
            volume = io.check_ct(volume, force=force)
            found["values"] = _values(volume.hu)
            scan, warnings = acquisition_and_warnings(volume)
            if not scan:  # the refusal of a run
                find_body(volume.hu, volume.spacing)
            found["suspicious"] += [*warnings, *_remarks_on_values(volume.hu)]
            found |= {"scan": scan} if scan else {}
    except PancreasSegError as error:
        found["problem"] = str(error)
        return found
    found["suspicious"] = list(dict.fromkeys((*volume.notes, *found["suspicious"])))
    found["usable"] = True
    return found


def suspicions(volume: CTVolume) -> list[str]:
    """Return a sentence for each thing in a CT that may spoil a segmentation or a training."""
    return [
        *_remarks_on_grid(volume),
        *ct_warnings(volume, body_in(volume)),
        *_remarks_on_values(volume.hu),
    ]


def _place(volume: OnSourceGrid) -> Findings:
    """Describe the grid in the order in which the file has its axes."""
    shape, affine = volume.source.shape[:3], volume.source.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return {
        "format": _NAMES.get(volume.source.format, volume.source.format),
        "shape": list(shape),
        "spacing_mm": [round(float(step), 4) for step in spacing],
        "orientation": "".join(orientations.aff2axcodes(affine)),
        "extent_cm": [
            round(float(n * step) / 10, 1) for n, step in zip(shape, spacing, strict=True)
        ],
    }


def _values(values: Array) -> dict[str, float]:
    sample = values[:: max(1, values.shape[0] // 64), ::2, ::2]
    low, middle, high = np.percentile(sample, (1, 50, 99))
    return {
        "minimum": float(values.min()),
        "percentile_1": round(float(low), 3),
        "median": round(float(middle), 3),
        "percentile_99": round(float(high), 3),
        "maximum": float(values.max()),
    }


def _labels(mask: Array, volume: OnSourceGrid) -> Findings:
    counts = voxels_by_label(mask)
    voxel_ml = volume.grid.voxel_volume_mm3 / 1000
    labels = {
        str(label): {"voxels": int(counts[label]), "volume_ml": round(counts[label] * voxel_ml, 3)}
        for label in np.flatnonzero(counts)
        if label
    }
    warnings = [] if labels else ["The mask is empty."]
    if any(mask.take(end, axis=axis).any() for axis in range(3) for end in (0, -1)):
        warnings.append("The mask touches the edge of its volume: something may be cut off.")
    return {"labels": labels, "suspicious": warnings}


def _remarks_on_grid(volume: CTVolume) -> list[str]:
    """Say what is unusual about the axes and voxels of a CT, but hardly matters for its mask."""
    warnings = []
    axes = volume.grid.affine[:3, :3] / volume.spacing
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3:
        warnings.append(
            "The axes are not at right angles (a tilted gantry?): masks can be written as NIfTI "
            "and as surfaces, not as NRRD or MetaImage."
        )
    elif np.abs(np.abs(axes) - np.abs(axes).round()).max() > 0.02:
        warnings.append("The axes run obliquely through the patient; masks keep that exactly.")
    z, y, x = volume.spacing
    if z <= THICK_MM and max(z, y, x) / min(z, y, x) > _ANISOTROPIC:
        warnings.append(
            f"The voxels are {max(z, y, x) / min(z, y, x):.0f} times as long as wide: check the "
            "spacing."
        )
    if min(y, x) < 0.3 or max(y, x) > 3.5:
        warnings.append(
            f"Pixels of {y:.3g} × {x:.3g} mm are unusual in a CT of the body; check the unit of "
            "length and the spacing."
        )
    return warnings


def _remarks_on_values(hu: Array) -> list[str]:
    warnings = []
    low = float(hu.min())
    if low < _IMPOSSIBLE_HU:
        warnings.append(
            f"Values down to {low:g} HU are impossible, air is -1000: the data may be damaged."
        )
    if hu.dtype != np.int16:
        warnings.append("The values are not whole numbers: this CT has been resampled or filtered.")
    return warnings
