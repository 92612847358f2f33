"""The frame: the part of every slice that the network sees, at one physical scale.

A frame has a fixed number of pixels and of millimetres per pixel, and is centred on the
body, or for the second stage of a cascade on the gland. There is one for a whole volume, so
that mask, probability and attention share an affine. Getting in and out of it is two small
matrices per volume, one for rows and one for columns: exact in millimetres, smoothed where
pixels grow (no aliasing), zero outside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.schedule import SliceGrid
from napari_pancreas_seg.volume import Grid

__all__ = [
    "Canvas",
    "Frame",
    "FrameSpec",
    "body_centre",
    "coarse_means",
    "contrast_shift",
    "evenly_spread",
    "frame_around",
    "gland_centre",
    "place_frame",
    "resampling_matrix",
]

Array = npt.NDArray[Any]

SOFT_TISSUE_HU = (0, 255)
"""Bodies are found on HU clipped so: what the training slices hold (fat and air are 0)."""
COARSE_MM = 6.4
"""Pixel size at which bodies are found: table, tubes and skin folds blur away."""
BODY_MEAN_HU = 25
"""Mean of the clipped HU from which a coarse pixel is soft tissue."""
PORTAL_VENOUS_HU = 80
"""HU of soft tissue in portal-venous CT, between muscle (60) and liver (105)."""
DARK_MODE_HU = 40
"""Below this commonest HU, a CT is not portal-venous."""


CENTRES = ("body", "gland")


@dataclass(frozen=True)
class FrameSpec:
    """Size of a frame and where it lies.

    Parameters
    ----------
    height, width : int
        Pixels.
    mm_per_pixel : float
        Size of a pixel in mm.
    offset_mm : tuple of float
        From the centre of the body's box, or of the gland's, to the centre of the frame in mm,
        (towards the back, towards the patient's left). The gland lies in front of the body's.
    centre : str
        What it is laid around: ``"body"``; or ``"gland"``, where another network has found it.

    Raises
    ------
    PancreasSegError
        If it is to be centred on anything else.
    """

    height: int = 160
    width: int = 224
    mm_per_pixel: float = 1.2
    offset_mm: tuple[float, float] = (-28.0, 14.0)
    centre: str = "body"

    def __post_init__(self) -> None:
        if self.centre not in CENTRES:
            raise PancreasSegError(
                f"A frame is centred on the body or the gland, not {self.centre!r}."
            )

    def to_dict(self) -> dict[str, Any]:
        """The specification as plain data, for a card."""
        data = {**asdict(self), "offset_mm": list(self.offset_mm)}
        if self.centre == "body":  # what cards said before there was a choice
            del data["centre"]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FrameSpec:
        """Read what `to_dict` wrote."""
        return cls(**{**data, "offset_mm": tuple(data["offset_mm"])})


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame laid on the slices of one volume.

    Parameters
    ----------
    spec : FrameSpec
        Its size.
    shape : tuple of int
        (Y, X) of the volume's slices.
    origin : tuple of float
        (y, x) index in the slice of the centre of the frame's pixel (0, 0).
    step : tuple of float
        Slice pixels per frame pixel along (y, x).
    """

    spec: FrameSpec
    shape: tuple[int, int]
    origin: tuple[float, float]
    step: tuple[float, float]

    def into(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Matrices (height, Y) and (width, X) that bring a slice into the frame."""
        return (
            resampling_matrix(self.shape[0], self.spec.height, self.origin[0], self.step[0]),
            resampling_matrix(self.shape[1], self.spec.width, self.origin[1], self.step[1]),
        )

    def out_of(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Matrices (Y, height) and (X, width) that bring a frame back onto the slice."""
        return tuple(  # type: ignore[return-value]
            resampling_matrix(n_frame, n_slice, -origin / step, 1 / step)
            for n_frame, n_slice, origin, step in zip(
                (self.spec.height, self.spec.width), self.shape, self.origin, self.step, strict=True
            )
        )

    def resized(self, spec: FrameSpec) -> Frame:
        """A frame of another size with the same centre."""
        step = tuple(spec.mm_per_pixel / self.spec.mm_per_pixel * s for s in self.step)
        origin = tuple(
            o + s * (n - 1) / 2 - t * (m - 1) / 2
            for o, s, n, t, m in zip(
                self.origin,
                self.step,
                (self.spec.height, self.spec.width),
                step,
                (spec.height, spec.width),
                strict=True,
            )
        )
        return Frame(spec, self.shape, origin, step)  # type: ignore[arg-type]

    def within(self, values: Array, box: tuple[slice, ...]) -> Array:
        """Clear maps (n, height, width) outside of a box (y, x) of the slice.

        A rim of a pixel stays, for what is interpolated between pixels.
        """
        keep = []
        for origin, step, n, part in zip(
            self.origin, self.step, values.shape[1:], box, strict=True
        ):
            place, rim = origin + step * np.arange(n), max(1.0, step)
            keep.append((place > part.start - rim) & (place < part.stop - 1 + rim))
        if all(axis.all() for axis in keep):
            return values
        return np.where(keep[0][:, None] & keep[1], values, values.dtype.type(0))

    def grid(
        self,
        volume: Grid,
        shape: tuple[int, int] | None = None,
        coarser: int = 1,
        pad: tuple[int, int] = (0, 0),
        lattice: SliceGrid | None = None,
    ) -> Grid:
        """Grid of the frame, or of a map of it that is coarser by a whole factor.

        Parameters
        ----------
        volume : Grid
            Grid of the CT.
        shape : tuple of int, optional
            Rows and columns of the map; the frame's own if None.
        coarser : int
            Frame pixels per map pixel. A coarse pixel's centre is the centre of the frame
            pixels that it covers, hence an offset of (coarser - 1) / 2.
        pad : tuple of int
            Pixels that the network added before the frame's first row and column.
        lattice : SliceGrid, optional
            Slices that the map has; all if None.
        """
        shape = shape or (self.spec.height, self.spec.width)
        half = (coarser - 1) / 2
        origin = [o + s * (half - p) for o, s, p in zip(self.origin, self.step, pad, strict=True)]
        lattice = lattice or SliceGrid(volume.shape[0])
        return volume.sub_grid(
            (len(lattice), *shape),
            (float(lattice.offset), *origin),
            (float(lattice.stride), self.step[0] * coarser, self.step[1] * coarser),
        )

    def support(self) -> tuple[slice, slice]:
        """Rows and columns of the slice that the frame sees."""
        spans = []
        for origin, step, n_frame, n_slice in zip(
            self.origin, self.step, (self.spec.height, self.spec.width), self.shape, strict=True
        ):
            reach = max(1.0, step) + 1
            start = min(max(0, math.floor(origin - reach)), n_slice - 1)
            stop = math.ceil(origin + step * (n_frame - 1) + reach) + 1
            spans.append(slice(start, min(max(stop, start + 1), n_slice)))
        return spans[0], spans[1]


CANVAS_STEP = 64
"""Canvases are multiples of so many pixels: CTs of about one pixel size share a shape, for
which the network has been compiled."""


class Canvas:
    """The part of the slices that a frame sees, in a shape that CTs of a kind have in common.

    Parameters
    ----------
    frame : Frame
        Where the frame lies.

    Attributes
    ----------
    shape : tuple of int
        Rows and columns of the canvas.
    rows, columns : ndarray, shapes (height, shape[0]) and (width, shape[1]), float32
        The matrices of `Frame.into` for the canvas.
    """

    def __init__(self, frame: Frame) -> None:
        self._support = frame.support()
        rows, columns = (-(-(s.stop - s.start) // CANVAS_STEP) for s in self._support)
        self.shape = (rows * CANVAS_STEP, columns * CANVAS_STEP)
        self.rows, self.columns = (
            np.pad(matrix[:, s], ((0, 0), (0, n - (s.stop - s.start))))
            for matrix, s, n in zip(frame.into(), self._support, self.shape, strict=True)
        )

    def cut(self, hu: Array, z: npt.NDArray[np.intp], n: int | None = None) -> Array:
        """Cut slices out of a volume.

        Parameters
        ----------
        hu : ndarray, shape (Z, Y, X)
            Hounsfield units.
        z : ndarray, shape (m,)
            Which slices.
        n : int, optional
            Slices that are returned: those after the m-th are empty, so that every batch has
            the shape for which the network was compiled.

        Returns
        -------
        ndarray, shape (n, rows, columns), int16
            Hounsfield units; beyond the slice there is 0, which no pixel of the frame sees.
        """
        cut = np.zeros((n or len(z), *self.shape), np.int16)
        y, x = self._support
        for i, plane in enumerate(z):
            part = hu[plane, y, x]
            if part.dtype.kind == "f":
                part = np.clip(np.rint(part), -32768, 32767)
            cut[i, : part.shape[0], : part.shape[1]] = part
        return cut


def resampling_matrix(n_in: int, n_out: int, start: float, step: float) -> npt.NDArray[np.float32]:
    """Linear resampling along one axis as a matrix.

    Parameters
    ----------
    n_in, n_out : int
        Samples before and after.
    start, step : float
        Output sample i lies at input index ``start + step * i``.

    Returns
    -------
    ndarray, shape (n_out, n_in), float32
        Rows of triangle weights; the triangle is widened to ``step`` where samples move
        apart, so that nothing is aliased. What would come from outside the input is zero.
    """
    if not (np.isfinite(step) and step > 0):
        raise PancreasSegError("The spacing of this volume is not a positive number.")
    centres = start + step * np.arange(n_out)
    width = max(1.0, step)
    reach = int(np.ceil(width)) + 1
    first = np.floor(centres).astype(int) - reach
    index = first[:, None] + np.arange(2 * reach + 2)
    weights = np.maximum(0.0, 1.0 - np.abs(index - centres[:, None]) / width)
    weights /= weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((n_out, n_in), dtype=np.float32)
    rows = np.broadcast_to(np.arange(n_out)[:, None], index.shape)
    inside = (index >= 0) & (index < n_in)
    matrix[rows[inside], index[inside]] = weights[inside]
    return matrix


def place_frame(
    hu: Array, spacing: tuple[float, float, float], spec: FrameSpec, gland: Array | None = None
) -> Frame:
    """Lay a frame on a volume, centred on the body or the gland.

    Parameters
    ----------
    hu : ndarray, shape (Z, Y, X)
        Hounsfield units in display order.
    spacing : tuple of float
        Distance between voxels along (z, y, x) in mm.
    spec : FrameSpec
        The frame that the network wants.
    gland : ndarray, shape (Z, Y, X), optional
        Where the gland is; for a frame that is centred on it. If it is nowhere, the frame lies
        where most bodies have it.

    Raises
    ------
    PancreasSegError
        If no slice holds any soft tissue.
    """
    centre = None
    if spec.centre == "gland":
        centre = None if gland is None else gland_centre(gland)
        if centre is None:
            spec = replace(spec, offset_mm=FrameSpec.offset_mm)
    return frame_around(centre or body_centre(hu, spacing), hu.shape[1:], spacing, spec)


def frame_around(
    centre: tuple[float, float],
    shape: tuple[int, ...],
    spacing: tuple[float, float, float],
    spec: FrameSpec,
) -> Frame:
    """Lay a frame on slices whose body, or gland, is centred at a (y, x) index; see `place_frame`.

    A frame around the body is moved so that no more of it lies beyond the slice than must: where
    the slice shows less than a body, its middle tells little of where the gland is.

    Parameters
    ----------
    centre : tuple of float
        From `body_centre` or `gland_centre`.
    shape : tuple of int
        (Y, X) of the slices.
    spacing : tuple of float
        Distance between voxels along (z, y, x) in mm.
    spec : FrameSpec
        The frame that the network wants.
    """
    step = tuple(spec.mm_per_pixel / s for s in spacing[1:])
    origin = tuple(
        c + offset / s - st * (n - 1) / 2
        for c, offset, s, st, n in zip(
            centre, spec.offset_mm, spacing[1:], step, (spec.height, spec.width), strict=True
        )
    )
    if spec.centre == "body":
        origin = tuple(
            _onto(o - st / 2, st * n, n_slice) + st / 2
            for o, st, n, n_slice in zip(
                origin, step, (spec.height, spec.width), shape, strict=True
            )
        )
    return Frame(spec, shape, origin, step)  # type: ignore[arg-type]


def _onto(start: float, length: float, n: int) -> float:
    """Where a stretch begins that lies within pixels 0 to n - 1, or holds all of them."""
    ends = sorted((-0.5, n - 0.5 - length))
    return min(max(start, ends[0]), ends[1])


def contrast_shift(hu: Array, most_slices: int = 64) -> int:
    """How much brighter the soft tissue must become to look as in portal-venous CT.

    Without contrast agent, or with a fatty gland, much of the pancreas lies at or below
    0 HU, where a network that learnt from clipped portal-venous CT sees nothing.

    Parameters
    ----------
    hu : ndarray, shape (Z, Y, X)
        Hounsfield units.
    most_slices : int
        At most so many slices, evenly spread, are looked at.

    Returns
    -------
    int
        HU to add before clipping; 0 for CTs that are bright enough, or were clipped.
    """
    sample = hu[evenly_spread(np.arange(hu.shape[0]), most_slices), ::2, ::2]
    if sample.size == 0 or sample.min() > -200:
        return 0  # clipped before: there is nothing to bring back
    counts, edges = np.histogram(sample, bins=48, range=(-20, 220))
    smooth = np.convolve(counts, np.ones(3) / 3, mode="same")
    mode = edges[smooth.argmax()] + (edges[1] - edges[0]) / 2
    return round(PORTAL_VENOUS_HU - mode) if mode < DARK_MODE_HU else 0


def body_centre(
    hu: Array, spacing: tuple[float, float, float], most_slices: int = 64
) -> tuple[float, float]:
    """Find the centre of the body's box, the same for all slices.

    Parameters
    ----------
    hu : ndarray, shape (Z, Y, X)
        Hounsfield units in display order.
    spacing : tuple of float
        Distance between voxels along (z, y, x) in mm.
    most_slices : int
        At most so many slices, evenly spread, are looked at.

    Returns
    -------
    tuple of float
        (y, x) index: the median over the slices that show a good part of the body.

    Raises
    ------
    PancreasSegError
        If no slice holds any soft tissue.
    """
    chosen = evenly_spread(np.arange(hu.shape[0]), most_slices)
    found = [box for z in chosen if (box := _body_box(hu[z], spacing[1:])) is not None]
    if not found:
        raise PancreasSegError(
            "No soft tissue was found in this CT; is it in Hounsfield units, and of the abdomen?"
        )
    boxes = np.array(found)
    large = boxes[:, 2] >= 0.3 * boxes[:, 2].max()
    y, x = np.median(boxes[large, :2], axis=0)
    return float(y), float(x)


def gland_centre(mask: Array) -> tuple[float, float] | None:
    """Centre of the box that holds a mask but for a hundredth of it on each side.

    Parameters
    ----------
    mask : ndarray, shape (Z, Y, X)
        Other than 0 in the gland.

    Returns
    -------
    tuple of float or None
        (y, x) index, the same for all slices; None for an empty mask.
    """
    area: npt.NDArray[np.intp] = np.count_nonzero(mask, axis=0)
    if not area.any():
        return None
    y, x = (_middle_of_box(area.sum(axis=other)) for other in (1, 0))
    return y, x


def _middle_of_box(profile: npt.NDArray[np.intp]) -> float:
    """Middle of the stretch that holds a profile but for its outermost hundredths."""
    share = np.cumsum(profile) / profile.sum()
    first, last = np.searchsorted(share, [0.01, 0.99])
    return float(first + last) / 2


def evenly_spread(items: npt.NDArray[Any], most: int) -> npt.NDArray[Any]:
    """Choose at most so many of some items, evenly, the first and the last among them."""
    chosen: npt.NDArray[Any] = items[
        np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(np.intp)
    ]
    return chosen


def coarse_means(
    values: Array, spacing: tuple[float, ...], pixel_mm: float
) -> tuple[npt.NDArray[np.float32], list[int]]:
    """Means of a slice over blocks of about so many mm.

    Parameters
    ----------
    values : ndarray, shape (Y, X)
        The slice; rows and columns that fill no block are left out.
    spacing : tuple of float
        Distance between pixels along (y, x) in mm.
    pixel_mm : float
        Edge of a block.

    Returns
    -------
    means : ndarray, shape (rows, columns), float32
        The means.
    factors : list of int
        Pixels per block along (y, x).
    """
    factors = [
        max(1, min(n, round(pixel_mm / s))) for n, s in zip(values.shape, spacing, strict=True)
    ]
    rows, columns = (n // f for n, f in zip(values.shape, factors, strict=True))
    cut = values[: rows * factors[0], : columns * factors[1]].astype(np.float32)
    return cut.reshape(rows, factors[0], columns, factors[1]).mean(axis=(1, 3)), factors


def _body_box(slice_hu: Array, spacing: tuple[float, float]) -> tuple[float, float, int] | None:
    """Centre of the body's box in one slice, (y, x) index, and its area in coarse pixels."""
    coarse, factors = coarse_means(np.clip(slice_hu, *SOFT_TISSUE_HU), spacing, COARSE_MM)
    # Opening removes the table's shells; small pieces are tubes, arms' edges and noise.
    dense = np.pad(coarse > BODY_MEAN_HU, 1)
    tissue = scipy.ndimage.binary_opening(dense, np.ones((3, 3)))[1:-1, 1:-1]
    pieces, n = scipy.ndimage.label(tissue, np.ones((3, 3)))
    if n == 0:
        return None
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    kept = (sizes >= 0.03 * sizes.sum())[pieces]
    area = int(kept.sum())
    centre = [
        (np.percentile(where, [1, 99]).mean() + 0.5) * factor - 0.5
        for where, factor in zip(np.nonzero(kept), factors, strict=True)
    ]
    return centre[0], centre[1], area
