"""A CT, a mask or a map in display order, its grid in the world, and the way back to its source.

Display order is (Z, Y, X): Z from feet to head, Y from front to back, X from the patient's right to
the left. Getting there only flips and permutes axes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg import orientations
from napari_pancreas_seg.arrays import Affine, Array, Box, Floats, Spacing
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.hounsfield import scale, scale_ct, to_hounsfield

DISPLAY_AXCODES = ("S", "P", "L")
"""Where the display axes point, in nibabel's letters."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of an array lie in the patient.

    Parameters
    ----------
    shape : tuple of int
        Number of voxels along (z, y, x).
    affine : ndarray, shape (4, 4)
        Maps a (z, y, x) index to world coordinates in mm, RAS+.

    Raises
    ------
    PancreasSegError
        If the affine is not finite, not affine or cannot be inverted.
    """

    shape: tuple[int, int, int]
    affine: Affine

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.allclose(affine[3], (0, 0, 0, 1), atol=1e-4):
            raise PancreasSegError("The affine of this volume is not 4×4 with 0 0 0 1 at its end.")
        if not np.isfinite(affine).all():
            raise PancreasSegError("The affine of this volume is not finite.")
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        # The volume of a voxel against that of a box of the same edges: 1 for a right
        # angle, 0 when two axes fall together, whatever the unit of length.
        if (lengths == 0).any() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
            raise PancreasSegError(
                "The affine of this volume is singular: its axes do not span space, so no "
                "mask could be placed on it. Repair the header first."
            )
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @cached_property
    def spacing(self) -> Spacing:
        """Distance between voxels along (z, y, x) in mm."""
        z, y, x = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @cached_property
    def voxel_volume_mm3(self) -> float:
        """Volume of a voxel in mm³."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def world(self, index: npt.ArrayLike) -> Floats:
        """World coordinates (mm, RAS+) of (z, y, x) indices, shape (..., 3)."""
        world = np.asarray(index, dtype=float) @ self.affine[:3, :3].T + self.affine[:3, 3]
        return np.asarray(world)

    def index(self, world: npt.ArrayLike) -> Floats:
        """Continuous (z, y, x) indices of world coordinates (mm, RAS+), shape (..., 3)."""
        inverse = np.linalg.inv(self.affine)
        index = np.asarray(world, dtype=float) @ inverse[:3, :3].T + inverse[:3, 3]
        return np.asarray(index)

    def check(self, array: Array) -> None:
        """Refuse an array that does not have this shape."""
        if array.shape != self.shape:
            raise PancreasSegError(
                f"An array of shape {array.shape} does not lie on the grid of this CT, whose shape "
                f"is {self.shape}."
            )

    def same_as(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Whether both grids have the same shape and voxels at the same places."""
        if self.shape != other.shape:
            return False
        corners = list(itertools.product(*((0, n - 1) for n in self.shape)))
        away = np.linalg.norm(self.world(corners) - other.world(corners), axis=1)
        return bool(away.max() <= tolerance_mm)

    def sub_grid(
        self, shape: tuple[int, int, int], origin: npt.ArrayLike, step: npt.ArrayLike
    ) -> Grid:
        """Grid whose voxel (i, j, k) sits at index ``origin + step * (i, j, k)`` of this one."""
        inner = np.diag([*np.asarray(step, dtype=float), 1.0])
        inner[:3, 3] = np.asarray(origin, dtype=float)
        return Grid(shape, self.affine @ inner)


@dataclass(frozen=True, eq=False)
class ScalarMap:
    """A map in [0, 1] (rows, H, W), float16, NaN if not computed; axes parallel to the CT's."""

    values: Array = field(repr=False)
    grid: Grid


@dataclass(frozen=True, eq=False)
class Source:
    """The file that a volume came from, as far as writing onto its grid needs it."""

    path: Path | None  # the file or folder; None for a volume made in memory
    format: str  # "nifti", "nrrd", "metaimage", "dicom" or "array"
    shape: tuple[int, ...]  # in the source's own axis order, trailing axes of one included
    affine: Affine  # maps an index in that order to world coordinates in mm, RAS+
    orientation: Array  # nibabel's, from that order to display order
    header: Any = None  # as the format's own library read it, for the writer of that format
    name: str = "CT"  # of the case: the file's or folder's, without the ending of its format
    stamp: tuple[tuple[int, int], ...] = ()  # sizes and times of its files when they were read


class OnSourceGrid:
    """Base of CTs, masks and maps: a grid, and the way back to their source."""

    grid: Grid
    source: Source
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        spacing = ", ".join(f"{mm:.3g}" for mm in self.spacing)
        return (
            f"{type(self).__name__}(shape={self.grid.shape}, spacing_mm=({spacing}), "
            f"format={self.source.format!r}, notes={len(self.notes)})"
        )

    @property
    def spacing(self) -> Spacing:
        """Distance between voxels along (z, y, x) in mm."""
        return self.grid.spacing

    @property
    def name(self) -> str:
        """Name of the case."""
        return self.source.name

    def _to_source(self) -> Any:
        unturned = orientations.axcodes2ornt(("R", "A", "S"))
        return orientations.ornt_transform(unturned, self.source.orientation)

    def to_source_order(self, array: Array) -> Array:
        """Bring an array (Z, Y, X) on this grid to the source's axis order and shape; a view."""
        self.grid.check(array)
        ordered: Array = orientations.apply_orientation(array, self._to_source())
        return ordered.reshape(self.source.shape)

    def grid_to_source_order(self, array: Array, grid: Grid) -> tuple[Array, Affine]:
        """Bring an array (Z, H, W) on a parallel grid to the source's order; with its affine."""
        inverse = self._to_source()
        affine = grid.affine @ orientations.inv_ornt_aff(inverse, grid.shape)
        return orientations.apply_orientation(array, inverse), affine

    @classmethod
    def from_source_array(
        cls,
        array: Array,
        affine: npt.ArrayLike,
        *,
        path: Path | None = None,
        format: str = "array",
        header: Any = None,
        name: str = "CT",
        notes: tuple[str, ...] = (),
        reuse: bool = False,
    ) -> Self:
        """Bring an array (I, J, K, 1, ...) to display order, unchecked; `reuse` overwrites it."""
        shape = _one_volume(array.shape)
        three = array.reshape(shape)
        affine = Grid(shape, np.asarray(affine, dtype=np.float64)).affine
        orientation = orientations.ornt_transform(
            orientations.io_orientation(affine), orientations.axcodes2ornt(DISPLAY_AXCODES)
        )
        view = orientations.apply_orientation(three, orientation)
        values = _flipped_in_place(view) if reuse else None
        if values is None:
            values = np.ascontiguousarray(view)
        display = affine @ orientations.inv_ornt_aff(orientation, three.shape)
        source = Source(path, format, array.shape, affine, orientation, header, name)
        make: Any = cls  # each of the classes below begins with its values
        volume: Self = make(values, Grid(values.shape, display), source, notes)
        return volume


@dataclass(frozen=True, eq=False, repr=False)
class Volume(OnSourceGrid):
    """A mask (values: uint8 labels) or a map (float32, 0 to 1) in display order; see `CTVolume`."""

    values: Array
    grid: Grid
    source: Source
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class CTVolume(OnSourceGrid):
    """A CT in Hounsfield units and display order.

    Parameters
    ----------
    hu : ndarray, shape (Z, Y, X), int16 or float32
        Hounsfield units.
    grid : Grid
        Where the voxels lie.
    source : Source
        Where the volume came from.
    notes : tuple of str
        Notes for the user: what was unusual and what was done about it.
    """

    hu: Array
    grid: Grid
    source: Source
    notes: tuple[str, ...] = ()

    @classmethod
    def of_grid(cls, grid: Grid, source: Source, notes: tuple[str, ...] = ()) -> CTVolume:
        """Make a CT without values, for what needs to know its grid alone."""
        return cls(np.broadcast_to(np.int16(0), grid.shape), grid, source, notes)

    @classmethod
    def from_array(cls, hu: npt.ArrayLike, affine: npt.ArrayLike, *, name: str = "CT") -> CTVolume:
        """Make a CT of an array as nibabel has it, ``image.get_fdata()`` with ``image.affine``.

        The values are checked as those of a file are: what cannot be Hounsfield units is refused,
        and what was done about unusual ones is in ``notes``.

        Parameters
        ----------
        hu : array_like, shape (I, J, K)
            Hounsfield units, integers or floats of any size; they are copied. The axes may run
            in any direction: the affine says which. (An array from SimpleITK has the order K, J,
            I: give the image itself to `load_ct`, or transpose the array.)
        affine : array_like, shape (4, 4)
            Maps an index (i, j, k) to the centre of its voxel in world coordinates: mm, RAS+: x
            grows to the patient's right, y to the front, z to the head (nibabel's world, not
            ITK's LPS+).
        name : str
            Name of the case.

        Returns
        -------
        CTVolume
            In display order: int16 if all values are integers that fit, else float32. Voxels
            without a value (NaN, infinite) are air.

        Raises
        ------
        PancreasSegError
            If the array is not one 3-D volume of plain numbers or cannot be a CT, or the affine
            is singular or not finite.
        """
        try:
            stored = np.asarray(hu)
        except ValueError as error:
            raise PancreasSegError("Rows of different lengths are not a 3-D volume.") from error
        _one_volume(stored.shape)
        subject = f"The array '{name}'"
        values, notes = scale_ct(stored, 1.0, 0.0, subject)
        volume = cls.from_source_array(values, affine, name=name)
        own = volume.hu.copy() if np.may_share_memory(volume.hu, stored) else volume.hu
        own, more = to_hounsfield(own, subject, reuse=True)
        return cls(own, volume.grid, volume.source, notes + more)

    def __post_init__(self) -> None:
        if self.hu.dtype not in (np.int16, np.float32):  # a later cast must not wrap around
            object.__setattr__(self, "hu", np.ascontiguousarray(scale(self.hu).values))
        self.grid.check(self.hu)

    @property
    def has_values(self) -> bool:
        """Whether there are Hounsfield units; False for what `of_grid` made."""
        return any(self.hu.strides)


def _one_volume(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the first three sizes of an array's shape if it holds one 3-D volume."""
    if len(shape) < 3 or any(n != 1 for n in shape[3:]) or 0 in shape:
        raise PancreasSegError(f"An array of shape {shape} is not one 3-D volume.")
    return shape[0], shape[1], shape[2]


def _flipped_in_place(view: Array) -> Array | None:
    """Lay an array out in memory as a view shows it; None if that needs more than flips."""
    turned = tuple(stride < 0 for stride in view.strides)
    # The view's own elements, in the order in which they lie in memory.
    straight = view[tuple(slice(None, None, -1 if turn else 1) for turn in turned)]
    if not (straight.flags.c_contiguous and straight.flags.writeable):
        return None
    if not any(turned):
        return straight
    within = tuple(slice(None, None, -1 if turn else 1) for turn in turned[1:])
    last = len(straight) - 1
    for z in range(len(straight)):
        other = last - z if turned[0] else z
        if other < z:
            break
        before = straight[z].copy()
        if other > z:
            straight[z] = straight[other][within]
        straight[other] = before[within]
    return straight


def mask_array(mask: Any) -> Array:
    """Return a mask as an array; refuses what is none, such as a path or all of `load_mask`."""
    try:
        array = np.asarray(mask)
    except ValueError:  # a pair of things of different shapes
        array = np.empty(0, object)
    if array.dtype.kind not in "biuf":
        raise PancreasSegError(
            "A mask is an array of numbers; of one in a file, the first of what load_mask gives."
        )
    return array


def stretches(flags: npt.ArrayLike) -> list[slice]:
    """Find the runs of True in flags (n,), from the first to the last."""
    edges = np.flatnonzero(np.diff(np.asarray(flags, bool), prepend=False, append=False))
    return [slice(a, b) for a, b in edges.reshape(-1, 2).tolist()]


def bounding_box(mask: Array) -> Box | None:
    """Find the smallest box around a mask (Z, Y, X), bool or unsigned; None if it is empty."""
    if mask.size == 0:
        return None
    # Maxima over contiguous rows run at the speed of memory, `any` and `nonzero` do not.
    numbers = mask.view(np.uint8) if mask.dtype == bool else mask
    (z,) = np.nonzero(numbers.reshape(len(numbers), -1).max(axis=1))
    if len(z) == 0:
        return None
    plane = numbers[z[0] : z[-1] + 1].max(axis=0)
    (y,), (x,) = np.nonzero(plane.any(axis=1)), np.nonzero(plane.any(axis=0))
    return slice(z[0], z[-1] + 1), slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1)


def box_around(*masks: Array) -> Box | None:
    """Find the smallest box around several masks (Z, Y, X); None if all of them are empty."""
    boxes = [box for mask in masks if (box := bounding_box(mask)) is not None]
    if not boxes:
        return None
    z, y, x = (
        slice(min(edge.start for edge in edges), max(edge.stop for edge in edges))
        for edges in zip(*boxes, strict=True)
    )
    return z, y, x
