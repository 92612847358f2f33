"""The CTs that `speed` measures on: one brought to a usual grid, shorter and longer ones of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

import speed_task
from napari_pancreas_seg import CTVolume, Grid, load_ct
from napari_pancreas_seg.data.sample import load_sample
from napari_pancreas_seg.io import save_ct

AIR_HU = -1000


def on_spacing(volume: CTVolume, spacing_mm: Sequence[float]) -> CTVolume:
    """A CT interpolated linearly to another spacing (z, y, x); it covers the same box."""
    shape = tuple(
        max(1, round(n * old / new))
        for n, old, new in zip(volume.grid.shape, volume.spacing, spacing_mm, strict=True)
    )
    zoom = np.divide(shape, volume.grid.shape)
    hu = ndimage.zoom(volume.hu.astype(np.float32), zoom, order=1, mode="nearest", grid_mode=True)
    # Edges of boxes fall together, so centres move by half of what a voxel shrinks.
    grid = volume.grid.sub_grid(shape, (1 / zoom - 1) / 2, 1 / zoom)
    return on_grid(hu.round().astype(np.int16), grid)


def on_grid(hu: np.ndarray, grid: Grid) -> CTVolume:
    """A CT made in memory; hu (Z, Y, X) in display order, its files as usual: x fastest."""
    return CTVolume.from_source_array(hu.T, grid.affine[:, [2, 1, 0, 3]])


def cut(volume: CTVolume, start: int, stop: int) -> CTVolume:
    """Slices start to stop - 1 of a CT."""
    shape = (stop - start, *volume.grid.shape[1:])
    grid = volume.grid.sub_grid(shape, (start, 0, 0), (1, 1, 1))
    return on_grid(np.ascontiguousarray(volume.hu[start:stop]), grid)


def around(gland: Sequence[int], n_slices: int, wanted: int) -> tuple[int, int]:
    """(start, stop) of so many slices of a CT, the gland (start, stop) in their middle."""
    start = (gland[0] + gland[1] - wanted) // 2
    start = max(0, min(start, n_slices - wanted))
    return start, min(n_slices, start + wanted)


def back_and_forth(slices: np.ndarray, wanted: int) -> np.ndarray:
    """Repeat slices up and down until there are so many: neighbours stay neighbours."""
    cycle = np.concatenate([np.arange(len(slices)), np.arange(len(slices))[::-1]])
    return slices[np.resize(cycle, wanted)]


def longer(
    hu: np.ndarray, gland: Sequence[int], chest: np.ndarray | None, below: int, above: int
) -> np.ndarray:
    """Add slices below and above a CT, none of which shows the gland.

    Parameters
    ----------
    hu : ndarray, shape (Z, Y, X)
        The CT.
    gland : sequence of int
        (start, stop): the slices that show the gland.
    chest : ndarray, shape (n, Y, X), optional
        Slices of a chest on the same grid; by default those above the gland, mirrored.
    below, above : int
        Slices to add. Those below are the CT's own below the gland, mirrored.
    """
    if chest is None:
        chest = (hu[gland[1] :] if gland[1] < len(hu) else hu[-1:])[::-1]
    feet = hu[: gland[0]] if gland[0] > 0 else hu[:1]
    whole = np.empty((below + len(hu) + above, *hu.shape[1:]), hu.dtype)
    whole[:below] = back_and_forth(feet, below)[::-1]
    whole[below : below + len(hu)] = hu
    whole[below + len(hu) :] = back_and_forth(chest, above)
    return whole


def chest_slices(files: Sequence[str], like: CTVolume) -> np.ndarray | None:
    """Slices of chest CTs on another CT's grid, cut or filled with air around their middle.

    ``FILE:40`` leaves out the lowest 40 slices of a file.
    """
    parts = []
    for text in files:
        found = re.fullmatch(r"(.+?)(?::(\d+))?", text)
        assert found is not None
        volume = load_ct(found[1])
        volume = cut(volume, int(found[2] or 0), volume.grid.shape[0])
        fine = on_spacing(volume, like.spacing).hu
        part = np.full((len(fine), *like.grid.shape[1:]), AIR_HU, np.int16)
        source, target = [], []
        for n, wanted in zip(fine.shape[1:], part.shape[1:], strict=True):
            size = min(n, wanted)
            source.append(slice((n - size) // 2, (n - size) // 2 + size))
            target.append(slice((wanted - size) // 2, (wanted - size) // 2 + size))
        part[:, *target] = fine[:, *source]
        parts.append(part)
    return np.concatenate(parts) if parts else None


def extended(bench: CTVolume, gland: Sequence[int], chest: np.ndarray | None, n: int) -> CTVolume:
    """The CT with n slices: cut around the gland, or longer at both ends by the same amount."""
    have = bench.grid.shape[0]
    if n <= have:
        return cut(bench, *around(gland, have, n))
    below = (n - have) // 2
    return _longer_ct(bench, gland, chest, below, n - have - below)


def _longer_ct(
    bench: CTVolume, gland: Sequence[int], chest: np.ndarray | None, below: int, above: int
) -> CTVolume:
    hu = longer(bench.hu, gland, chest, below, above)
    return on_grid(hu, bench.grid.sub_grid(hu.shape, (-below, 0, 0), (1, 1, 1)))


def bench(request: speed_task.Request) -> dict[str, Any]:
    """Make the CT of the benchmark and write it as .nii and .nii.gz."""
    path = request.get("ct")
    volume = load_ct(path) if path else load_sample().volume
    made = on_spacing(volume, request["spacing_mm"])
    for name in ("bench.nii", "bench.nii.gz"):
        save_ct(made, Path(request["folder"], name), overwrite=True)
    return {
        "source": Path(path).name if path else "phantom",
        "shape": made.grid.shape,
        "spacing_mm": [round(s, 4) for s in made.spacing],
    }


def grow(request: speed_task.Request) -> dict[str, Any]:
    """Write the CT with another number of slices, or with the chest above the gland doubled."""
    made, gland, wanted = load_ct(request["bench"]), request["gland"], request["slices"]
    have = made.grid.shape[0]
    shorter = wanted is not None and wanted <= have
    chest = None if shorter else chest_slices(request["chest"], made)
    if wanted is None:
        result = _longer_ct(made, gland, chest, 0, have - gland[1])
    else:
        result = extended(made, gland, chest, wanted)
    save_ct(result, request["to"], overwrite=True)
    return {"slices": result.grid.shape[0], "spacing_mm": list(result.spacing)}


if __name__ == "__main__":
    speed_task.main({"bench": bench, "grow": grow})
