"""What a file is, and what in it may spoil a segmentation, in plain words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg import io, orientations
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.frame import (
    body_centre,
    contrast_shift,
    evenly_spread,
)
from napari_pancreas_seg.volume import CTVolume, OnSourceGrid

__all__ = ["inspect", "suspicions"]

Array = npt.NDArray[Any]
Findings = dict[str, Any]

_NAMES = {"nifti": "NIfTI", "nrrd": "NRRD", "metaimage": "MetaImage", "dicom": "DICOM"}

_THICK_MM = 6.0
_ANISOTROPIC = 10.0
_FEW_SLICES = 10
_SHORT_MM = 60.0
_NARROW_MM = 200.0

_COARSE_MM = 4.0
"""Resolution at which lungs are looked for."""

_IMPOSSIBLE_HU = -4096
"""No scanner and no padding goes below; above, metal reaches 30,000 HU in extended scales."""

_LUNG_HU = (-930, -500)
_LUNG_SHARE = 0.15
"""Of a slice's tissue; gas in the bowel, the table and cushions stay below."""


def inspect(path: str | Path, *, series: str | int | None = None) -> Findings:
    """Say what a file is and what is suspicious about it.

    Parameters
    ----------
    path : str or Path
        A CT, a mask or a map of any format that can be read, or the folder of a DICOM series.
    series : str or int, optional
        Which series of several in one DICOM folder.

    Returns
    -------
    dict
        Plain values: ``file`` (its name), ``usable``, ``problem`` (a sentence, None if usable),
        ``suspicious`` (sentences), and as far as it could be read ``format``, ``kind`` (``"CT"``,
        ``"mask"``, ``"map"``), ``data_type``, ``shape`` (in the file's own axis order),
        ``spacing_mm``, ``orientation`` (letters of the directions the axes run in), ``extent_cm``,
        ``values`` (minimum, maximum and percentiles), ``suggests`` (sentences), and for a mask
        ``labels``.
    """
    path = Path(path)
    name = path.name or path.resolve().name or str(path)  # "." and "/" have none
    found: Findings = {"file": name, "usable": False, "problem": None, "suspicious": []}
    try:
        kind, volume, type_name = io.sniff(path, series=series)
        found |= {"kind": kind, **_place(volume)}
        if not isinstance(volume, CTVolume):
            values = volume.values
            found |= {"values": _values(values)} if kind == "map" else _labels(values, volume)
        else:
            found["data_type"] = type_name
            found["values"] = _values(volume.hu)
            found["suspicious"] = _geometry(volume)
            volume = io.check_ct(volume)
            found["values"] = _values(volume.hu)
            found["suggests"] = _suggestions(volume)
            found["suspicious"] += _content(volume)
    except PancreasSegError as error:
        found["problem"] = str(error)
        return found
    found["suspicious"] = list(dict.fromkeys((*volume.notes, *found["suspicious"])))
    found["usable"] = True
    return found


def suspicions(volume: CTVolume) -> list[str]:
    """Say what in a CT may spoil a segmentation or a training, a sentence each.

    Parameters
    ----------
    volume : CTVolume
        From `napari_pancreas_seg.io.load_ct`.
    """
    return [*_geometry(volume), *_content(volume)]


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
    counts = np.bincount(mask.ravel(), minlength=256)
    voxel_ml = volume.grid.voxel_volume_mm3 / 1000
    labels = {
        str(label): {"voxels": int(counts[label]), "volume_ml": round(counts[label] * voxel_ml, 3)}
        for label in np.flatnonzero(counts)
        if label
    }
    found: Findings = {"labels": labels, "values": _values(mask)}
    if not labels:
        found["suspicious"] = ["The mask is empty."]
        return found
    faces = [mask.take(end, axis=axis).any() for axis in range(3) for end in (0, -1)]
    if any(faces):
        found["suspicious"] = ["The mask touches the edge of its volume: something may be cut off."]
    return found


def _geometry(volume: CTVolume) -> list[str]:
    """Say what is unusual about the grid of a CT."""
    said = []
    z, y, x = volume.spacing
    n_slices, rows, columns = volume.grid.shape
    axes = volume.grid.affine[:3, :3] / volume.spacing
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3:
        said.append(
            "The axes are not at right angles (a tilted gantry?): masks can be written as NIfTI "
            "and as surfaces, not as NRRD or MetaImage."
        )
    elif np.abs(np.abs(axes) - np.abs(axes).round()).max() > 0.02:
        said.append("The axes run obliquely through the patient; masks keep that exactly.")
    if z > _THICK_MM:
        said.append(f"The slices are {z:.3g} mm apart: small parts of the gland fall between them.")
    elif max(volume.spacing) / min(volume.spacing) > _ANISOTROPIC:
        said.append(
            f"The voxels are {max(volume.spacing) / min(volume.spacing):.0f} times as long as "
            "wide: check the spacing."
        )
    if min(y, x) < 0.3 or max(y, x) > 3.5:
        said.append(
            f"Pixels of {y:.3g} × {x:.3g} mm are unusual in a CT of the body; check the unit of "
            "length and the spacing."
        )
    if n_slices < _FEW_SLICES:
        there = "is only 1 slice" if n_slices == 1 else f"are only {n_slices} slices"
        said.append(f"There {there}.")
    elif n_slices * z < _SHORT_MM:
        said.append(
            f"The slices cover {n_slices * z / 10:.1f} cm only; the pancreas spans about 10 cm."
        )
    if max(rows * y, columns * x) < _NARROW_MM:
        said.append(
            f"The slices show {columns * x / 10:.0f} × {rows * y / 10:.0f} cm, less than a body: "
            "a cropped CT may give a worse mask."
        )
    return said


def _suggestions(volume: CTVolume) -> list[str]:
    """Say what the values of a CT tell of it."""
    shift = contrast_shift(volume.hu)
    said = []
    if volume.hu.min() > -200:
        said.append("air and fat are cut off")
    elif shift:
        said.append("soft tissue is dark: no contrast agent, or a fatty gland")
    else:
        said.append("soft tissue as with contrast agent in the portal-venous phase")
    return said


def _content(volume: CTVolume) -> list[str]:
    """Say what is unusual about what a CT shows."""
    said = []
    hu = volume.hu
    low, high = float(hu.min()), float(hu.max())
    sample = hu[:: max(1, hu.shape[0] // 32), ::2, ::2]
    if low < _IMPOSSIBLE_HU:
        said.append(
            f"Values down to {low:g} HU are impossible, air is -1000: the data may be damaged."
        )
    if -900 < low < 0 and np.mean(sample == low) > 0.02:
        said.append(f"Everything below {low:g} HU is cut off.")
    if low < 0 and high < 1000 and np.mean(sample == high) > 0.0005:
        said.append(f"Everything above {high:g} HU is cut off.")
    if hu.dtype != np.int16:
        said.append("The values are not whole numbers: this CT has been resampled or filtered.")
    try:
        body_centre(hu, volume.spacing)
    except PancreasSegError:
        said.append("No body was found: no soft tissue that holds together.")
        return said
    with_lungs = float(np.mean(_lung_shares(volume) > _LUNG_SHARE))
    if with_lungs > 0.75:
        said.append(
            f"Lungs are in {with_lungs:.0%} of the slices: this is a CT of the chest, and most or "
            "all of the pancreas lies below it."
        )
    return said


def _lung_shares(volume: CTVolume) -> npt.NDArray[np.float64]:
    """Share of the body that is lung, roughly, in at most 32 slices from the feet to the head."""
    from scipy import ndimage

    hu = volume.hu
    y, x = (max(1, round(_COARSE_MM / step)) for step in volume.spacing[1:])
    shares = []
    for z in evenly_spread(np.arange(len(hu)), 32):
        plane = hu[z, ::y, ::x]
        tissue = int(np.count_nonzero(ndimage.binary_opening(plane > -300)))
        # Thin layers of these values are edges between body and air.
        lung = ndimage.binary_opening(
            (plane > _LUNG_HU[0]) & (plane < _LUNG_HU[1]), np.ones((3, 3))
        )
        air = int(np.count_nonzero(lung))
        shares.append(air / max(1, tissue + air))
    return np.array(shares)
