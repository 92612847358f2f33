"""What is measured on a mask, as numbers with units, and as a table for other programs."""

from __future__ import annotations

import csv
import io as text_io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.mask import metrics
from napari_pancreas_seg.volume import CTVolume, Grid, bounding_box

__all__ = [
    "COLUMNS",
    "SURFACE_TOLERANCE_MM",
    "compare_masks",
    "largest_diameters_mm",
    "measure_mask",
    "sub_box",
    "table_row",
    "table_text",
]

Array = npt.NDArray[Any]
Box = tuple[slice, slice, slice]

SURFACE_TOLERANCE_MM = 2.0
"""Distance in mm within which two surfaces count as one, for the surface Dice."""

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


def largest_diameters_mm(mask: Array, grid: Grid) -> tuple[float, float]:
    """Largest diameters of a mask, in space and within one slice.

    The diameter is the largest distance between two points of the surface. These points lie
    midway between a voxel of the mask and its neighbour outside: they are the vertices that
    marching cubes finds at one half, as pyradiomics has it in ``Maximum3DDiameter`` and
    ``Maximum2DDiameterSlice`` (van Griethuysen 2017, 10.1158/0008-5472.CAN-17-0339). Separate
    pieces count as one. The two points farthest apart are corners of the convex hull.

    Parameters
    ----------
    mask : ndarray, shape (Z, Y, X)
        Non-zero inside.
    grid : Grid
        The grid that the mask lies on; oblique axes are taken for what they are.

    Returns
    -------
    tuple of float
        In space, and the largest within any one axial slice (mm); zeros for an empty mask.
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


def measure_mask(mask: Array, volume: CTVolume, *, with_hu: bool = True) -> dict[str, Any]:
    """Measure a mask on its CT.

    Parameters
    ----------
    mask : ndarray, shape (Z, Y, X)
        Non-zero inside.
    volume : CTVolume
        The CT, or what lies in a box of it.
    with_hu : bool
        Whether the volume holds Hounsfield units; without them mean and SD are None.

    Returns
    -------
    dict
        What `metrics.measure` gives, and ``diameter_3d_mm`` and ``diameter_in_plane_mm``, see
        `largest_diameters_mm`.

    Raises
    ------
    PancreasSegError
        If the mask does not have the volume's shape.
    """
    found = metrics.measure(mask, volume)
    if not with_hu:
        found |= {"mean_hu": None, "sd_hu": None}
    in_space, in_plane = largest_diameters_mm(mask, volume.grid)
    return found | {"diameter_3d_mm": in_space, "diameter_in_plane_mm": in_plane}


def compare_masks(mask: Array, reference: Array, grid: Grid) -> dict[str, float | None]:
    """Say how well a mask agrees with a reference; what is looked at is the box of both.

    Parameters
    ----------
    mask, reference : ndarray, shape (Z, Y, X)
        Non-zero inside.
    grid : Grid
        The grid that both lie on.

    Returns
    -------
    dict
        ``dice``, ``hd95_mm`` and ``surface_dice_2mm``; None for a distance from or to an
        empty mask.

    Raises
    ------
    PancreasSegError
        If the shapes differ.
    """
    boxes = [box for box in (bounding_box(mask), bounding_box(reference)) if box is not None]
    if mask.shape == reference.shape and boxes:
        box = _around(boxes)
        mask, reference = mask[box], reference[box]
    found: dict[str, float | None] = {
        "dice": metrics.dice(mask, reference),
        "hd95_mm": None,
        "surface_dice_2mm": None,
    }
    if len(boxes) == 2:
        distances = metrics.surface_distances(mask != 0, reference != 0, grid.spacing)
        found["hd95_mm"] = float(distances.hd95_mm)
        found["surface_dice_2mm"] = float(distances.surface_dice(SURFACE_TOLERANCE_MM))
    return found


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
    """Make a row of the table out of what was measured.

    Parameters
    ----------
    case, mask : str
        What was measured.
    measured : mapping
        From `measure_mask`.
    reference : str
        What it was compared with, if anything.
    compared : mapping, optional
        From `compare_masks`.
    """
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
    """Write rows as text with a line of headings; tabs are what spreadsheets paste.

    Parameters
    ----------
    rows : sequence of mapping
        From `table_row`. What is not known stays empty.
    separator : str
        Stands between two columns.
    """
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


def _around(boxes: Sequence[Box]) -> Box:
    z, y, x = (
        slice(min(edge.start for edge in edges), max(edge.stop for edge in edges))
        for edges in zip(*boxes, strict=True)
    )
    return z, y, x


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
