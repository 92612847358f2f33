"""One picture of a result: the CT, the mask's outline on it, and where the network looked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_pancreas_seg.arrays import Array, Spacing
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import ScalarMap
from napari_pancreas_seg.io.files import atomic_write, escaped
from napari_pancreas_seg.volume import CTVolume

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
    for array in (mask, reference):
        if array is not None and array.shape != volume.grid.shape:
            raise PancreasSegError(
                f"A mask of shape {array.shape} does not lie on the grid of this CT, whose "
                f"shape is {volume.grid.shape}."
            )
    figure = _compose(volume, mask, attention, reference, title)
    with atomic_write(path, overwrite=True) as file:
        figure.savefig(file, format="png", dpi=110, facecolor="black")


def _compose(
    volume: CTVolume,
    mask: Array,
    attention: Sequence[ScalarMap],
    reference: Array | None,
    title: str | None,
) -> Figure:
    # The Agg canvas without pyplot: no window, no global state, safe in any thread.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    size_mm = [n * s for n, s in zip(volume.grid.shape, volume.spacing, strict=True)]
    columns = 2 + len(attention)
    scale = INCHES_WIDE / size_mm[2]
    rows_inches = [size_mm[1] * scale, size_mm[0] * scale]
    figure = Figure(
        figsize=(columns * INCHES_WIDE + 0.7, sum(rows_inches) + 1.0), layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, columns, squeeze=False, height_ratios=rows_inches)
    for row, axis in enumerate((0, 1)):
        index = fullest_slice(mask, reference, axis)
        for ax in axes[row]:
            _show_ct(ax, volume, axis, index)
        _outline(axes[row][1], volume, mask, axis, index, MASK_COLOUR)
        if reference is not None:
            _outline(axes[row][1], volume, reference, axis, index, REFERENCE_COLOUR)
        for ax, scalar_map in zip(axes[row][2:], attention, strict=True):
            _show_map(ax, volume, scalar_map, axis, index)
            _outline(ax, volume, mask, axis, index, MASK_COLOUR)
    if attention:
        bar = figure.colorbar(
            ScalarMappable(Normalize(0, 1), "inferno"), ax=axes[:, -1], fraction=0.05, pad=0.01
        )
        bar.set_label("attention coefficient", color="white")
        bar.ax.tick_params(colors="white")
    _label(axes, attention, reference is not None)
    if title:
        figure.suptitle(escaped(title), color="white", parse_math=False)
    return figure


def fullest_slice(mask: Array, reference: Array | None, axis: int) -> int:
    """Find the slice across ``axis`` with most of the mask, else of the reference."""
    others = tuple(a for a in range(3) if a != axis)
    for candidate in (mask, reference):
        if candidate is not None and candidate.any():
            return int(np.count_nonzero(candidate, axis=others).argmax())
    return int(mask.shape[axis]) // 2


def _extent(
    grid_shape: tuple[int, int, int],
    spacing: Spacing,
    axis: int,
    origin: Array | None = None,
    step: Array | None = None,
) -> tuple[float, float, float, float]:
    """Edges in mm (left, right, bottom, top) of a slice's picture, front or head at the top."""
    first = np.zeros(3) if origin is None else origin
    pace = np.ones(3) if step is None else step
    low = (first - 0.5 * pace) * spacing
    high = (first + (np.asarray(grid_shape) - 0.5) * pace) * spacing
    vertical = 1 if axis == 0 else 0
    edges = (low[vertical], high[vertical])
    bottom, top = edges[::-1] if axis == 0 else edges
    return float(low[2]), float(high[2]), float(bottom), float(top)


def _show_ct(ax: Axes, volume: CTVolume, axis: int, index: int) -> None:
    extent = _extent(volume.grid.shape, volume.spacing, axis)
    ax.imshow(
        np.take(volume.hu, index, axis=axis),
        cmap="gray",
        vmin=WINDOW_HU[0],
        vmax=WINDOW_HU[1],
        extent=extent,
        origin="upper" if axis == 0 else "lower",
        interpolation="bilinear",
    )
    ax.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[], aspect="equal")
    for x, letter in ((0.02, "R"), (0.98, "L")):
        ax.text(
            x, 0.5, letter, transform=ax.transAxes, color="white", ha="center", va="center",
            fontsize=8,
        )  # fmt: skip


def _outline(ax: Axes, volume: CTVolume, mask: Array, axis: int, index: int, colour: str) -> None:
    plane = np.take(mask, index, axis=axis) != 0
    if not plane.any():
        return
    vertical = 1 if axis == 0 else 0
    rows = np.arange(plane.shape[0]) * volume.spacing[vertical]
    columns = np.arange(plane.shape[1]) * volume.spacing[2]
    ax.contour(columns, rows, plane.astype(float), levels=[0.5], colors=[colour], linewidths=1.2)


def _show_map(ax: Axes, volume: CTVolume, scalar_map: ScalarMap, axis: int, index: int) -> None:
    """Lay a map over the CT where it belongs."""
    from matplotlib import colormaps

    # The axes are parallel, so a map's index becomes the CT's by a step and an offset.
    to_ct = np.linalg.inv(volume.grid.affine) @ scalar_map.grid.affine
    step, origin = np.diag(to_ct)[:3], to_ct[:3, 3]
    plane = _nearest_plane(scalar_map.values, (index - origin[axis]) / step[axis], axis)
    plane = _between_rows(plane.astype(np.float32))
    colours = colormaps["inferno"](plane)
    colours[..., 3] = MOST_OPAQUE * np.clip(plane, 0, 1)
    limits = ax.get_xlim(), ax.get_ylim()
    ax.imshow(
        colours,
        extent=_extent(scalar_map.grid.shape, volume.spacing, axis, origin, step),
        origin="upper" if axis == 0 else "lower",
        interpolation="bilinear",
    )
    ax.set(xlim=limits[0], ylim=limits[1])


def _between_rows(plane: Array) -> Array:
    """Interpolate the rows in which nothing was computed; 0 beyond the first and the last one."""
    computed = np.flatnonzero(np.isfinite(plane).all(axis=1))
    if not len(computed):
        return np.zeros_like(plane)
    wanted = np.arange(len(plane))
    columns = [np.interp(wanted, computed, column, 0, 0) for column in plane[computed].T]
    return np.stack(columns, axis=1)


def _nearest_plane(values: Array, wanted: float, axis: int) -> Array:
    """Take the plane nearest to an index among those in which something was computed."""
    others = tuple(a for a in range(3) if a != axis)
    computed = np.flatnonzero(np.isfinite(values).any(axis=others))
    if not len(computed):
        computed = np.arange(values.shape[axis])
    nearest = computed[np.abs(computed - wanted).argmin()]
    return np.asarray(np.take(values, nearest, axis=axis))


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
