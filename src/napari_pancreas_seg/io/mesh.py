"""From a mask to a closed, smoothed surface in world millimetres: STL, PLY and OBJ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.files import atomic_write
from napari_pancreas_seg.io.raw import LPS_TO_RAS
from napari_pancreas_seg.volume import Grid, bounding_box

if TYPE_CHECKING:
    from trimesh import Trimesh

_TITLE = "napari-pancreas-seg, mm, SPACE=LPS"
"""3D Slicer looks for the last word; without it, it takes LPS too."""

_PASS_BAND = {"lamb": 0.5, "nu": 0.53, "iterations": 40}
"""Taubin's shrinking and growing step: ``1 / lamb - 1 / nu`` of 0.1 keeps the shape (Taubin 1995,
10.1145/218380.218473); twenty pairs of them take the voxels' steps away."""

_FARTHEST = 0.45
"""Voxels along each axis that smoothing may move a point: half of one is what the mask leaves
open, and a piece of a single voxel does not collapse."""


def surface(mask: Array, grid: Grid) -> Trimesh:
    """Find the closed surface in mm of a mask: marching cubes, Taubin smoothing, its volume."""
    import trimesh
    from skimage.measure import marching_cubes

    box = bounding_box(mask)
    if box is None:
        raise PancreasSegError(
            "The mask is empty, so it has no surface; write it as .nii.gz, or segment first."
        )
    inside = np.pad(mask[box] != 0, 1)  # a rim of nothing closes what touches the CT's edge
    indices, faces, _, _ = marching_cubes(inside.astype(np.float32), 0.5)
    # From the index in the box to the world.
    affine = LPS_TO_RAS @ grid.affine
    corner = affine[:3, :3] @ [edge.start - 1 for edge in box] + affine[:3, 3]
    mesh = trimesh.Trimesh(indices @ affine[:3, :3].T, _without_folds(faces), process=False)
    mesh.remove_unreferenced_vertices()
    if mesh.volume < 0:  # an affine of the other hand turns the surface inside out
        mesh.invert()
    before = mesh.vertices.copy()
    trimesh.smoothing.filter_taubin(mesh, **_PASS_BAND)
    moved = (mesh.vertices - before) @ np.linalg.inv(affine[:3, :3]).T
    mesh.vertices = before + np.clip(moved, -_FARTHEST, _FARTHEST) @ affine[:3, :3].T
    _restore_volume(mesh, np.count_nonzero(inside) * grid.voxel_volume_mm3, min(grid.spacing))
    mesh.vertices += corner
    return mesh


def _restore_volume(mesh: Trimesh, volume_mm3: float, step_mm: float) -> None:
    """Move the surface along its normals until it holds what the voxels held."""
    for _ in range(30):
        missing = volume_mm3 - mesh.volume
        if abs(missing) < 1e-3 * volume_mm3:
            break
        offset = float(np.clip(missing / mesh.area, -step_mm / 8, step_mm / 8))
        mesh.vertices += mesh.vertex_normals * offset


def _without_folds(faces: Array) -> Array:
    """Leave out triangles that lie back to back, as where voxels touch at an edge only."""
    _, which, count = np.unique(
        np.sort(faces, axis=1), axis=0, return_inverse=True, return_counts=True
    )
    once: Array = faces[count[which.ravel()] == 1]
    return once


def write(mask: Array, grid: Grid, path: Path, *, overwrite: bool = False) -> None:
    """Write the surface of a mask."""
    from trimesh.exchange import obj, ply, stl

    mesh = surface(mask, grid)
    suffix = path.suffix.lower()
    if suffix == ".stl":
        data = _TITLE.encode().ljust(80) + stl.export_stl(mesh)[80:]
    elif suffix == ".ply":
        data = ply.export_ply(mesh).replace(
            b"\nelement", b"\ncomment " + _TITLE.encode() + b"\nelement", 1
        )
    else:
        data = obj.export_obj(mesh, include_normals=True, header=_TITLE).encode()
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(data)
