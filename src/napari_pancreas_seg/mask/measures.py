"""Numbers of one mask: volume, HU, fat, extent, diameters, and along its centreline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from napari_pancreas_seg.arrays import Array, Box, Floats, Indices, Labels, Spacing
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.mask.centreline import CUTS, TOO_SMALL, Cuts, follow, on_cubes, surface_cm2
from napari_pancreas_seg.volume import CTVolume, Grid, bounding_box, mask_array

MEASURES = (
    *("volume_ml", "mean_hu", "sd_hu", "extent_z_mm", "extent_y_mm", "extent_x_mm"),
    *("diameter_3d_mm", "diameter_in_plane_mm", "slices", "eroded_mean_hu", "eroded_sd_hu"),
    *("fat_fraction", "length_mm", "calibre_mm", "surface_cm2", "head_ml", "body_ml", "tail_ml"),
)
"""Columns of every table of measures; the unit is in the name, definitions in docs/measures.md."""


FAT_HU = (-190, -30)
CLOSING_MM = 5.0
"""Gaps and notches of an outline that are narrower than this belong to the closed outline."""
_CUT_OFF, _FEWEST_CUT = 0.01, 5
"""From this share and number of voxels on, those at an end of the scale count as cut off."""
_DRAWN = 20
"""Fewer different values are those of a drawing without noise, which was not cut off."""


def volume_ml(mask: Array, grid: Grid) -> float:
    """Volume of a mask (Z, Y, X), non-zero inside, in mL."""
    return float(np.count_nonzero(mask)) * grid.voxel_volume_mm3 / 1000.0


def voxels_by_label(labels: Labels) -> Indices:
    """Count the voxels of each label (256,), a slice at a time: `bincount` counts on in int64."""
    return sum((np.bincount(z.ravel(), minlength=256) for z in labels), np.zeros(256, np.intp))


def measure(mask: Array, volume: CTVolume, cuts: Cuts | None = CUTS) -> dict[str, Any]:
    """Measure a mask on its CT.

    Parameters
    ----------
    mask : ndarray, shape (Z, Y, X)
        Non-zero inside, on the CT's grid.
    volume : CTVolume
        The CT.
    cuts : tuple of float, optional
        Where head, body and tail meet: shares of the centreline's length, from the head. None for
        what has no centreline, such as a tumour.

    Returns
    -------
    dict
        ``volume_ml``; ``voxels``; ``slices`` with any of the mask; ``mean_hu`` and ``sd_hu`` (of
        the population); ``extent_mm``, edges of the bounding box along (z, y, x);
        ``diameter_3d_mm`` and ``diameter_in_plane_mm``; ``eroded_mean_hu`` and ``eroded_sd_hu``
        without the outermost voxels; ``fat_fraction``, share of voxels from -190 to -30 HU within
        the closed outline; ``length_mm`` of the centreline; ``calibre_mm``, diameter of the largest
        ball within the gland; ``surface_cm2``; ``head_ml``, ``body_ml``, ``tail_ml``; ``cuts``, and
        ``cut_slices`` on which they lie; ``not_measured``, for each measure that is None a sentence
        that says why.

    Raises
    ------
    PancreasSegError
        If the mask does not have the CT's shape, or the cuts are no shares.
    """
    if not isinstance(volume, CTVolume):
        raise PancreasSegError("A mask is measured in its CT; give what load_ct returned.")
    if cuts is not None and (np.shape(cuts) != (2,) or not all(0 <= cut <= 1 for cut in cuts)):
        raise PancreasSegError("Cuts are two shares of the gland's length, from 0 to 1.")
    mask = mask_array(mask)
    volume.grid.check(mask)
    if mask.dtype.kind not in "bu":
        mask = np.nan_to_num(mask) != 0
    box = bounding_box(mask)
    if box is None:
        nothing = dict.fromkeys((*OF_HU, *_OF_SHAPE))
        return {
            "volume_ml": 0.0,
            "voxels": 0,
            "slices": 0,
            "extent_mm": [0.0, 0.0, 0.0],
            "diameter_3d_mm": 0.0,
            "diameter_in_plane_mm": 0.0,
            **nothing,
            "not_measured": dict.fromkeys(nothing, "The mask is empty."),
        }
    inside = mask[box] != 0
    part = sub_box(volume.grid, box)
    in_space, in_plane = largest_diameters_mm(inside, part)
    values: dict[str, Any] = {
        "volume_ml": volume_ml(inside, part),
        "voxels": int(np.count_nonzero(inside)),
        "slices": int(np.count_nonzero(inside.any(axis=(1, 2)))),
        "extent_mm": [
            # Without the last digits of a spacing: 81 mm and not 81.00000000000001.
            round(float(edge.stop - edge.start) * step, 9)
            for edge, step in zip(box, volume.spacing, strict=True)
        ],
        "diameter_3d_mm": in_space,
        "diameter_in_plane_mm": in_plane,
    }
    reasons: dict[str, str] = {}
    if volume.has_values:
        values |= _of_hu(inside, volume.hu[box], volume.spacing, reasons)
    else:
        values |= dict.fromkeys(OF_HU)
        reasons |= dict.fromkeys(OF_HU, "There is no CT with this mask.")
    if cuts is not None:
        values |= _of_shape(inside, part, cuts, values["volume_ml"], reasons)
        if values["cut_slices"] is not None:
            values["cut_slices"] = [int(box[0].start) + z for z in values["cut_slices"]]
    return values | {"not_measured": reasons}


OF_HU = ("mean_hu", "sd_hu", "eroded_mean_hu", "eroded_sd_hu", "fat_fraction")
_OF_CENTRELINE = ("length_mm", "calibre_mm", "head_ml", "body_ml", "tail_ml")
_OF_SHAPE = (*_OF_CENTRELINE, "surface_cm2", "cuts", "cut_slices")


def _of_hu(inside: Array, hu: Array, spacing: Spacing, reasons: dict[str, str]) -> dict[str, Any]:
    """Measure the HU (Z, Y, X) in a mask; `reasons` gets why a measure is missing."""
    from scipy import ndimage

    low, high = _limits(hu)
    whole = hu[inside].astype(np.float64)
    found: dict[str, Any] = {"mean_hu": float(whole.mean()), "sd_hu": float(whole.std())}
    core = hu[ndimage.binary_erosion(inside)].astype(np.float64)
    found |= dict.fromkeys(("eroded_mean_hu", "eroded_sd_hu", "fat_fraction"))
    if not core.size:
        why = "The mask is nowhere three voxels thick."
        reasons |= {"eroded_mean_hu": why, "eroded_sd_hu": why}
    elif np.mean((core <= low) | (core >= high)) >= 0.01:
        why = f"HU were cut off {_beyond(low, high)}, within the gland too."
        reasons |= {"eroded_mean_hu": why, "eroded_sd_hu": why}
    else:
        found |= {"eroded_mean_hu": float(core.mean()), "eroded_sd_hu": float(core.std())}
    if low > FAT_HU[1]:
        reasons["fat_fraction"] = f"HU were cut off {_beyond(low, np.inf)}: fat cannot be seen."
    else:
        found["fat_fraction"] = _fat_fraction(inside, hu, spacing)
    return found


def _limits(hu: Array) -> tuple[float, float]:
    """Between which values HU were kept: those at which many voxels lie; ±inf if none."""
    sample = hu.ravel()[:: max(1, hu.size // 50_000)]
    if len(np.unique(sample)) < _DRAWN:
        return -np.inf, np.inf
    low, high = float(hu.min()), float(hu.max())
    least = max(_FEWEST_CUT, _CUT_OFF * hu.size)
    cut_low = low > -900 and np.count_nonzero(hu == low) >= least
    return low if cut_low else -np.inf, high if np.count_nonzero(hu == high) >= least else np.inf


def _fat_fraction(mask: Array, hu: Array, spacing: Spacing) -> float:
    """Share of voxels of fat within the closed outline of a mask (Z, Y, X) that is not empty."""
    fat = voxels = 0
    for inside, values in zip(mask, hu, strict=True):
        if inside.any():
            found = values[_closed(inside, spacing[1:])]
            voxels += found.size
            fat += int(np.count_nonzero((found >= FAT_HU[0]) & (found <= FAT_HU[1])))
    return fat / voxels


def _closed(plane: Array, spacing: tuple[float, float]) -> Array:
    """A slice of a mask (Y, X) with the notches and holes of its outline filled."""
    from scipy import ndimage

    window = [2 * int(CLOSING_MM / 2 / mm) + 1 for mm in spacing]
    padded = np.pad(plane != 0, [(n, n) for n in window]).view(np.uint8)
    outside, _ = ndimage.label(ndimage.grey_closing(padded, window) == 0)
    around = outside == outside[0, 0]
    return np.asarray(~around[window[0] : -window[0], window[1] : -window[1]])


def _beyond(low: float, high: float) -> str:
    ends = [f"below {low:g}"] if np.isfinite(low) else []
    return " and ".join([*ends, *([f"above {high:g}"] if np.isfinite(high) else [])])


def _of_shape(
    inside: Array, grid: Grid, cuts: Cuts, ml: float, reasons: dict[str, str]
) -> dict[str, Any]:
    cubes, to_index = on_cubes(inside, grid)
    found: dict[str, Any] = {**dict.fromkeys(_OF_SHAPE), "surface_cm2": surface_cm2(cubes)}
    if found["surface_cm2"] is None:
        reasons["surface_cm2"] = TOO_SMALL
    line = follow(cubes, to_index, cuts)
    if isinstance(line, str):
        reasons |= dict.fromkeys(_OF_CENTRELINE, line)
        return found
    head, body, tail = (share * ml for share in line.shares)
    return found | {
        "length_mm": line.length_mm,
        "calibre_mm": line.calibre_mm,
        "head_ml": head,
        "body_ml": body,
        "tail_ml": tail,
        "cuts": sorted(cuts),
        "cut_slices": [round(float(z)) for z in line.line[list(line.cuts), 0]],
    }


def measure_cells(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The columns in `MEASURES` of what `measure` gave, None for what is missing."""
    extent = measured.get("extent_mm") or (None, None, None)
    flat = dict(zip(("extent_z_mm", "extent_y_mm", "extent_x_mm"), extent, strict=True))
    return {name: flat.get(name, measured.get(name)) for name in MEASURES}


def largest_diameters_mm(mask: Array, grid: Grid) -> tuple[float, float]:
    """Largest diameters of a mask (Z, Y, X) in mm: in space, and within one axial slice.

    Between points of the surface midway between a voxel and its neighbour outside, as in
    pyradiomics' ``Maximum3DDiameter`` and ``Maximum2DDiameterSlice`` (van Griethuysen 2017,
    10.1158/0008-5472.CAN-17-0339); the two farthest apart are corners of the convex hull.
    """
    box = bounding_box(mask)
    if box is None:
        return 0.0, 0.0
    inside = mask[box] != 0
    axes = grid.affine[:3, :3].T
    in_plane = 0.0
    for plane in inside:
        points = _outermost_points(plane) @ axes[1:]
        # A slice whose box has no longer diagonal than what was found needs no hull.
        if len(points) and np.linalg.norm(np.ptp(points, axis=0)) > in_plane:
            in_plane = max(in_plane, _farthest_apart(points @ np.linalg.qr(axes[1:].T)[0]))
    return _farthest_apart(_outermost_points(inside) @ axes), in_plane


def sub_box(grid: Grid, box: Box) -> Grid:
    """Grid of the voxels in a box of a grid."""
    shape = tuple(edge.stop - edge.start for edge in box)
    return grid.sub_grid((shape[0], shape[1], shape[2]), [edge.start for edge in box], (1, 1, 1))


def _outermost_points(inside: Array) -> Floats:
    """First and last face of every row of voxels: all that can be corners of the convex hull."""
    points = []
    for axis in range(inside.ndim):
        rows = np.moveaxis(inside, axis, -1)
        others = np.argwhere(rows.any(axis=-1))
        held = rows[tuple(others.T)]
        first = held.argmax(axis=-1) - 0.5
        last = held.shape[-1] - 0.5 - held[:, ::-1].argmax(axis=-1)
        points += [np.insert(others.astype(float), axis, end, axis=1) for end in (first, last)]
    return np.concatenate(points)


def _farthest_apart(points: Array) -> float:
    """Largest distance between two of some points that do not all lie in one plane or line."""
    from scipy.spatial import ConvexHull
    from scipy.spatial.distance import pdist

    return float(pdist(points[ConvexHull(points).vertices]).max())
