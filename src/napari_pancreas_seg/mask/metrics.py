"""Agreement of two masks: Dice, distances between surfaces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from napari_pancreas_seg.arrays import Array, Floats
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.volume import Grid, bounding_box, box_around, mask_array

SURFACE_TOLERANCE_MM = 2.0
"""Distance in mm within which two surfaces count as one, for the surface Dice."""


def dice(a: Array, b: Array) -> float:
    """Overlap of two masks: ``2 |A ∩ B| / (|A| + |B|)`` (Dice 1945, Sørensen 1948).

    Parameters
    ----------
    a, b : ndarray, same shape
        Masks; a voxel counts if it is greater than 0.

    Returns
    -------
    float
        1 for equal masks, two empty ones included; 0 for disjoint ones.

    Raises
    ------
    PancreasSegError
        If the shapes differ, or these are no arrays of numbers.
    """
    a, b = mask_array(a), mask_array(b)
    _check_shapes(a, b)
    inside_a, inside_b = a > 0, b > 0
    total = np.count_nonzero(inside_a) + np.count_nonzero(inside_b)
    if total == 0:
        return 1.0
    return float(2.0 * np.count_nonzero(inside_a & inside_b) / total)


def _check_shapes(a: Array, b: Array) -> None:
    if a.shape != b.shape:
        raise PancreasSegError(
            f"Masks of shapes {a.shape} and {b.shape} do not lie on the same grid and cannot be "
            "compared."
        )


@dataclass(frozen=True, eq=False)
class SurfaceAgreement:
    """Distances of surface elements to the other surface in mm, ascending, and their sizes."""

    a_to_b: Floats
    b_to_a: Floats
    a_size: Floats
    b_size: Floats

    @classmethod
    def pooled(cls, parts: Iterable[SurfaceAgreement]) -> SurfaceAgreement:
        """Pool the surface elements of several pairs: slices of one patient."""
        parts = list(parts)
        a = _sorted([p.a_to_b for p in parts], [p.a_size for p in parts])
        b = _sorted([p.b_to_a for p in parts], [p.b_size for p in parts])
        return cls(a[0], b[0], a[1], b[1])

    @property
    def hd95_mm(self) -> float:
        """95 % Hausdorff distance in mm; 0 for two empty masks, the diagonal if one is empty."""
        from surface_distance import compute_robust_hausdorff

        if not len(self.a_to_b) or not len(self.b_to_a):
            return float(max([0.0, *self.a_to_b[-1:], *self.b_to_a[-1:]]))
        return float(compute_robust_hausdorff(self._named(), 95))

    @property
    def mean_mm(self) -> float:
        """Mean distance over the elements of both surfaces in mm (average symmetric distance)."""
        size = self.a_size.sum() + self.b_size.sum()
        if not size:
            return 0.0
        return float((self.a_to_b @ self.a_size + self.b_to_a @ self.b_size) / size)

    def surface_dice(self, tolerance_mm: float = 2.0) -> float:
        """Share of both surfaces near the other one (Nikolov 2021, doi:10.2196/26151)."""
        from surface_distance import compute_surface_dice_at_tolerance

        if not len(self.a_to_b) and not len(self.b_to_a):
            return 1.0
        return float(compute_surface_dice_at_tolerance(self._named(), tolerance_mm))

    def _named(self) -> dict[str, Floats]:
        """The argument of the functions of `surface_distance`."""
        return {
            "distances_gt_to_pred": self.a_to_b,
            "distances_pred_to_gt": self.b_to_a,
            "surfel_areas_gt": self.a_size,
            "surfel_areas_pred": self.b_size,
        }


Steps = Sequence[float] | Floats
"""Spacing of an array's axes in mm, or for axes that are not at right angles (a tilted gantry) the
step along each as a column in mm."""


def surface_distances(a: Array, b: Array, steps: Steps) -> SurfaceAgreement:
    """Measure the distances between the surfaces of two masks, (Z, Y, X) or (Y, X).

    As DeepMind's ``surface-distance`` does, but by a k-d tree: stray voxels cost no time, and a
    mask may be empty. Then every distance is the diagonal of the image.
    """
    from scipy.spatial import KDTree

    _check_shapes(a, b)
    steps = np.asarray(steps, float)
    steps = steps if steps.ndim == 2 else np.diag(steps)
    points_a, size_a = _surface(a, steps)
    points_b, size_b = _surface(b, steps)
    if len(points_a) and len(points_b):
        a_to_b, b_to_a = KDTree(points_b).query(points_a)[0], KDTree(points_a).query(points_b)[0]
    else:
        diagonal = float(np.linalg.norm(a.shape * np.linalg.norm(steps, axis=0)))
        a_to_b, b_to_a = (np.full(len(points), diagonal) for points in (points_a, points_b))
    return SurfaceAgreement.pooled([SurfaceAgreement(a_to_b, b_to_a, size_a, size_b)])


def in_plane_surface_distances(a: Array, b: Array, steps: Steps) -> SurfaceAgreement:
    """The same of the outlines in the slices (Z, Y, X), pooled: they may not be neighbours."""
    _check_shapes(a, b)
    in_plane = np.asarray(steps, float)[..., -2:]
    return SurfaceAgreement.pooled(surface_distances(a[z], b[z], in_plane) for z in range(len(a)))


def _surface(mask: Array, steps: Floats) -> tuple[Floats, Floats]:
    """Places in mm (n, axes) and sizes of the elements of a mask's surface, by marching cubes."""
    from scipy import ndimage
    from surface_distance import lookup_tables

    inside = mask > 0
    box = bounding_box(inside if inside.ndim == 3 else inside[None])
    if box is None:
        return np.zeros((0, len(steps))), np.zeros(0)
    box = box[-mask.ndim :]  # type: ignore[assignment]
    spacing_mm = np.linalg.norm(steps, axis=0).tolist()
    if mask.ndim == 3:
        kernel = lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
        sizes = lookup_tables.create_table_neighbour_code_to_surface_area(spacing_mm)
    else:
        kernel = lookup_tables.ENCODE_NEIGHBOURHOOD_2D_KERNEL
        sizes = lookup_tables.create_table_neighbour_code_to_contour_length(spacing_mm)
    # A voxel of room at the far side of each axis: an element is shifted by half a voxel.
    cropped = np.pad(inside[box].astype(np.uint8), [(0, 1)] * mask.ndim)
    codes = ndimage.correlate(cropped, kernel, mode="constant")
    places = np.nonzero((codes != 0) & (codes != kernel.sum()))
    first = [edge.start for edge in box]
    return (np.transpose(places) + first) @ steps.T, sizes[codes[places]]


def _sorted(distances: list[Floats], sizes: list[Floats]) -> tuple[Floats, Floats]:
    distance = np.concatenate([np.zeros(0), *distances])
    order = distance.argsort(kind="stable")
    return distance[order], np.concatenate([np.zeros(0), *sizes])[order]


def compare_masks(mask: Array, reference: Array, grid: Grid) -> dict[str, float | None]:
    """``dice``, ``hd95_mm`` and ``surface_dice_2mm``; None for a distance to an empty mask."""
    if mask.shape == reference.shape and (box := box_around(mask, reference)):
        mask, reference = mask[box], reference[box]
    found: dict[str, float | None] = {
        "dice": dice(mask, reference),
        "hd95_mm": None,
        "surface_dice_2mm": None,
    }
    if mask.any() and reference.any():
        distances = surface_distances(mask != 0, reference != 0, grid.affine[:3, :3])
        found["hd95_mm"] = float(distances.hd95_mm)
        found["surface_dice_2mm"] = float(distances.surface_dice(SURFACE_TOLERANCE_MM))
    return found
