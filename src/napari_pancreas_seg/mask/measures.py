"""Numbers of one mask: volume, HU, extent and diameters, also as a table."""

from __future__ import annotations

import csv
import io as text_io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.volume import CTVolume, Grid, bounding_box

Array = npt.NDArray[Any]
Box = tuple[slice, slice, slice]

COLUMNS = (
    "case",
    "mask",
    "volume_ml",
    "mean_hu",
    "sd_hu",
    "extent_z_mm",
    "extent_y_mm",
    "extent_x_mm",
    "diameter_3d_mm",
    "diameter_in_plane_mm",
    "slices",
    "reference",
    "dice",
    "hd95_mm",
    "surface_dice_2mm",
)
"""Columns of the table; the unit is in the name."""


def volume_ml(mask: Array, grid: Grid) -> float:
    """Volume of a mask (Z, Y, X), non-zero inside, in mL."""
    return float(np.count_nonzero(mask)) * grid.voxel_volume_mm3 / 1000.0


def measure(mask: Array, volume: CTVolume) -> dict[str, Any]:
    """Measure a mask on its CT.

    Parameters
    ----------
    mask : ndarray, shape (Z, Y, X)
        Non-zero inside, on the CT's grid.
    volume : CTVolume
        The CT.

    Returns
    -------
    dict
        ``volume_ml``; ``voxels``; ``slices`` with any of the mask; ``mean_hu`` and ``sd_hu`` (of
        the population; None for an empty mask, or a CT without values); ``extent_mm``, edges of
        the bounding box along (z, y, x).

    Raises
    ------
    PancreasSegError
        If the mask does not have the CT's shape.
    """
    if mask.shape != volume.grid.shape:
        raise PancreasSegError(
            f"A mask of shape {mask.shape} does not lie on the grid of this CT, whose shape is "
            f"{volume.grid.shape}."
        )
    box = bounding_box(mask)
    if box is None:
        return {
            "volume_ml": 0.0,
            "voxels": 0,
            "slices": 0,
            "mean_hu": None,
            "sd_hu": None,
            "extent_mm": [0.0, 0.0, 0.0],
        }
    inside = mask[box] != 0
    hu = volume.hu[box][inside].astype(np.float64)
    return {
        "volume_ml": volume_ml(inside, volume.grid),
        "voxels": len(hu),
        "slices": int(np.count_nonzero(inside.any(axis=(1, 2)))),
        "mean_hu": float(hu.mean()) if volume.has_values else None,
        "sd_hu": float(hu.std()) if volume.has_values else None,
        "extent_mm": [
            # Without the last digits of a spacing: 81 mm and not 81.00000000000001.
            round((edge.stop - edge.start) * step, 9)
            for edge, step in zip(box, volume.spacing, strict=True)
        ],
    }


def largest_diameters_mm(mask: Array, grid: Grid) -> tuple[float, float]:
    """Largest diameters of a mask (Z, Y, X) in mm: in space, and within one axial slice.

    The diameter is the largest distance between two points of the surface. These points lie
    midway between a voxel of the mask and its neighbour outside: they are the vertices that
    marching cubes finds at one half, as pyradiomics has it in ``Maximum3DDiameter`` and
    ``Maximum2DDiameterSlice`` (van Griethuysen 2017, 10.1158/0008-5472.CAN-17-0339). Separate
    pieces count as one. The two points farthest apart are corners of the convex hull. Oblique
    axes are taken for what they are; an empty mask gives zeros.
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
            in_plane = max(in_plane, _farthest_apart(_in_plane(points, axes)))
    return _farthest_apart(_outermost_points(inside) @ axes), in_plane


def measure_mask(mask: Array, volume: CTVolume) -> dict[str, Any]:
    """What `measure` gives, with ``diameter_3d_mm`` and ``diameter_in_plane_mm``."""
    found = measure(mask, volume)
    in_space, in_plane = largest_diameters_mm(mask, volume.grid)
    return found | {"diameter_3d_mm": in_space, "diameter_in_plane_mm": in_plane}


def sub_box(grid: Grid, box: Box) -> Grid:
    """Grid of the voxels in a box of a grid."""
    shape = tuple(edge.stop - edge.start for edge in box)
    return grid.sub_grid((shape[0], shape[1], shape[2]), [edge.start for edge in box], (1, 1, 1))


def table_row(
    case: str,
    mask: str,
    measured: Mapping[str, Any],
    reference: str = "",
    compared: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A row of the table, of what `measure_mask` and `metrics.compare_masks` gave."""
    z, y, x = measured["extent_mm"]
    row = {
        "case": case,
        "mask": mask,
        "extent_z_mm": z,
        "extent_y_mm": y,
        "extent_x_mm": x,
        "reference": reference,
        **measured,
        **(compared or {}),
    }
    return {column: row.get(column) for column in COLUMNS}


def table_text(rows: Sequence[Mapping[str, Any]], separator: str = "\t") -> str:
    """Write rows as text with a line of headings; tabs are what spreadsheets paste."""
    file = text_io.StringIO(newline="")
    writer = csv.writer(file, delimiter=separator, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_cell(row.get(column)) for column in COLUMNS] for row in rows)
    return file.getvalue()


def _outermost_points(inside: Array) -> npt.NDArray[np.float64]:
    """Points of the surface, in voxels, that can be a corner of the convex hull.

    Along every row of voxels these are the first and the last face, whatever lies between.
    """
    points = []
    for axis in range(inside.ndim):
        rows = np.moveaxis(inside, axis, -1)
        others = np.argwhere(rows.any(axis=-1))
        held = rows[tuple(others.T)]
        first = held.argmax(axis=-1) - 0.5
        last = held.shape[-1] - 0.5 - held[:, ::-1].argmax(axis=-1)
        points += [np.insert(others.astype(float), axis, end, axis=1) for end in (first, last)]
    return np.concatenate(points)


def _in_plane(points: Array, axes: Array) -> npt.NDArray[np.float64]:
    """Coordinates (n, 2) in mm of points (n, 3) in the plane that two axes span."""
    basis, _ = np.linalg.qr(axes[1:].T)
    return np.asarray(points @ basis)


def _farthest_apart(points: Array) -> float:
    """Largest distance between two of some points that do not all lie in one plane or line."""
    from scipy.spatial import ConvexHull
    from scipy.spatial.distance import pdist

    return float(pdist(points[ConvexHull(points).vertices]).max())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
