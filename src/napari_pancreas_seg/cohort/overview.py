"""One picture of a result: the CT, the mask's outline on it, and where the network looked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.inference.result import ScalarMap
from napari_pancreas_seg.io.files import atomic_write, escaped
from napari_pancreas_seg.volume import CTVolume

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WINDOW_HU = (-160.0, 240.0)
MASK_COLOUR = "#ff9f1c"
REFERENCE_COLOUR = "#2ec4ff"
MOST_OPAQUE = 0.85
"""How opaque a map is where it is 1; where it is 0 the CT shows."""
INCHES_WIDE = 4.0
"""Width of a panel."""


def draw_overview(
    volume: CTVolume,
    mask: Array,
    attention: Sequence[ScalarMap],
    path: Path,
    reference: Array | None = None,
    title: str | None = None,
) -> None:
    """Draw a CT, a mask's outline and maps side by side, axial and coronal, as a PNG."""
    # Without pyplot: no window, no global state, safe in any thread.
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    for array in (mask, reference):
        if array is not None:
            volume.grid.check(array)
    size_mm = np.multiply(volume.grid.shape, volume.spacing)
    columns = 2 + len(attention)
    z, y, _ = size_mm * INCHES_WIDE / size_mm[2]
    figure = Figure(figsize=(columns * INCHES_WIDE + 0.7, z + y + 1.0), layout="constrained")
    axes = figure.subplots(2, columns, squeeze=False, height_ratios=[y, z])
    for axis, row in enumerate(axes):
        index = fullest_slice(mask, reference, axis)
        ct = np.take(volume.hu, index, axis)
        for ax in row:
            _show(ax, ct, axis, volume, cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1])
            for x, letter in ((0.02, "R"), (0.98, "L")):
                where = {"transform": ax.transAxes, "ha": "center", "va": "center"}
                ax.text(x, 0.5, letter, color="white", fontsize=8, **where)
        for ax, scalar_map in zip(row[2:], attention, strict=True):
            values = _in_slice(scalar_map, volume, axis, index)
            _show(
                ax, values, axis, volume, cmap="inferno", vmin=0, vmax=1, alpha=MOST_OPAQUE * values
            )
        for ax in row[1:]:
            _outline(ax, mask, axis, index, volume, MASK_COLOUR)
        if reference is not None:
            _outline(row[1], reference, axis, index, volume, REFERENCE_COLOUR)
    if attention:
        bar = figure.colorbar(
            ScalarMappable(Normalize(0, 1), "inferno"), ax=axes[:, -1], fraction=0.05, pad=0.01
        )
        bar.set_label("attention coefficient", color="white")
        bar.ax.tick_params(colors="white")
    _label(axes, attention, reference is not None)
    if title:
        figure.suptitle(escaped(title), color="white", parse_math=False)
    with atomic_write(path, overwrite=True) as file:
        figure.savefig(file, format="png", dpi=110, facecolor="black")


def fullest_slice(mask: Array, reference: Array | None, axis: int) -> int:
    """Find the slice across ``axis`` with most of the mask, else of the reference."""
    others = tuple(a for a in range(3) if a != axis)
    for candidate in (mask, reference):
        if candidate is not None and candidate.any():
            return int(np.count_nonzero(candidate, axis=others).argmax())
    return int(mask.shape[axis]) // 2


def _show(ax: Axes, plane: Array, axis: int, volume: CTVolume, **how: Any) -> None:
    """Lay a slice across an axis into a panel, in mm, with the front or the head at the top."""
    (height, width), (rows, columns) = plane.shape, (volume.spacing[1 - axis], volume.spacing[2])
    ends = (-rows / 2, (height - 0.5) * rows)
    extent = (-columns / 2, (width - 0.5) * columns, *(ends if axis else ends[::-1]))
    up = axis == 1
    ax.imshow(
        plane, extent=extent, origin="lower" if up else "upper", interpolation="bilinear", **how
    )
    ax.set(xticks=[], yticks=[], aspect="equal")


def _outline(ax: Axes, mask: Array, axis: int, index: int, volume: CTVolume, colour: str) -> None:
    plane = np.take(mask, index, axis) != 0
    if plane.any():
        steps = volume.spacing[1 - axis], volume.spacing[2]
        y, x = (np.arange(n) * mm for n, mm in zip(plane.shape, steps, strict=True))
        ax.contour(x, y, plane.astype(float), levels=[0.5], colors=[colour], linewidths=1.2)


def _in_slice(scalar_map: ScalarMap, volume: CTVolume, axis: int, index: int) -> Array:
    """A map on the pixels of a slice, interpolated; 0 beyond the rows that were computed."""
    from scipy import ndimage

    rows = np.flatnonzero(np.isfinite(scalar_map.values).all(axis=(1, 2)))
    if not len(rows):
        return np.zeros(np.delete(volume.grid.shape, axis))
    # The axes are parallel, so a map's index becomes the CT's by a step and an offset.
    to_map = np.linalg.inv(scalar_map.grid.affine) @ volume.grid.affine
    places = [to_map[a, 3] + to_map[a, a] * np.arange(n) for a, n in enumerate(volume.grid.shape)]
    places[axis] = places[axis][[index]]
    if axis == 0:  # the nearest one that was computed
        places[0] = rows[[np.abs(rows - places[0]).argmin()]]
    beyond = len(rows) + 1.0
    places[0] = np.interp(places[0], rows, np.arange(len(rows)), beyond, beyond)
    found = ndimage.map_coordinates(
        scalar_map.values[rows].astype(np.float32), np.meshgrid(*places, indexing="ij"), order=1
    )
    return np.asarray(found.squeeze(axis))


def _label(axes: Array, attention: Sequence[ScalarMap], compared: bool) -> None:
    from matplotlib.lines import Line2D

    titles = ["CT", "mask"]
    for scalar_map in attention:
        height, width = scalar_map.values.shape[1:]
        titles.append(f"attention gate, {height} × {width}")
    for ax, text in zip(axes[0], titles, strict=True):
        ax.set_title(text, color="white", fontsize=10)
    if compared:
        ax = axes[0][1]
        lines = [Line2D([], [], color=c) for c in (MASK_COLOUR, REFERENCE_COLOUR)]
        ax.legend(
            lines, ["found", "reference"], loc="lower right", fontsize=8, facecolor="black",
            labelcolor="white", framealpha=0.5,
        )  # fmt: skip
