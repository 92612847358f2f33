"""A mask on the grid of a CT, where it spans a part of the CT or its header rounds."""

from __future__ import annotations

import itertools

import numpy as np

from napari_pancreas_seg.arrays import Labels
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.dicom.seg_read import is_drawn_on, is_of_another_study
from napari_pancreas_seg.volume import CTVolume, Grid, Volume

_TOLERANCE = 0.1
"""Of a voxel: headers round. Half a voxel is a mistake, of corners taken for centres."""


def bring_onto(
    volume: CTVolume,
    mask: Labels,
    on: Volume,
    name: str,
    advice: str = "resample it onto the CT first",
) -> Labels:
    """Bring a mask that may span a part of a CT onto the CT's grid, if nothing is resampled."""
    grid = on.grid
    corners = np.array(list(itertools.product(*((0, n - 1) for n in grid.shape))))
    places = volume.grid.index(grid.world(corners))
    first, last = np.rint(places[[0, -1]])
    off = np.abs(places - corners - first).max()
    inside = (first >= 0).all() and (last < volume.grid.shape).all()
    if off > _TOLERANCE or not inside:
        if (placed := _by_frames(volume, mask, on)) is not None:
            return placed
        raise PancreasSegError(
            f"'{name}' does not lie on the grid of the CT: {_difference(volume.grid, grid)}; "
            f"{advice}."
        )
    if is_of_another_study(on.source, volume.source):
        raise PancreasSegError(
            f"'{name}' belongs to another study and frame of reference than the CT, so it may be "
            "another patient's; give the CT that it was drawn on or, if only UIDs were changed, "
            "convert it to .nii.gz first."
        )
    if grid.shape == volume.grid.shape:
        return mask
    shorter = np.count_nonzero(np.less(grid.shape, volume.grid.shape))
    own = np.allclose(on.source.affine, volume.source.affine, atol=1e-3)
    if shorter == 1 and own and on.source.format != "dicom":
        here, there = f"{_times(grid.shape)} voxels", f"{_times(volume.grid.shape)} (z, y, x)"
        if grid.shape[1:] == volume.grid.shape[1:]:
            here, there = f"{grid.shape[0]} slices", f"{volume.grid.shape[0]}"
        raise PancreasSegError(
            f"the mask has {here}, the CT {there}, but the same affine: nothing says which are "
            f"missing in '{name}', and it may lie beside the gland; give a mask of the whole CT."
        )
    whole = np.zeros(volume.grid.shape, np.uint8)
    z, y, x = map(slice, first.astype(int), last.astype(int) + 1)
    whole[z, y, x] = mask
    return whole


def _by_frames(volume: CTVolume, mask: Labels, on: Volume) -> Labels | None:
    """Put each frame of a DICOM-SEG on the slice of its CT that it lies on, if all do."""
    index = np.argwhere(mask)
    if not len(index) or not is_drawn_on(on.source, volume.source):
        return None
    places = volume.grid.index(on.grid.world(index))
    there = np.rint(places).astype(int)
    inside = (there >= 0).all() and (there < volume.grid.shape).all()
    if np.abs(places - there).max() > _TOLERANCE or not inside:
        return None
    whole = np.zeros(volume.grid.shape, np.uint8)
    whole[tuple(there.T)] = mask[tuple(index.T)]
    return whole


def _difference(ct: Grid, mask: Grid) -> str:
    """Say in which respect two grids differ."""
    if mask.shape != ct.shape:
        return f"it has {_times(mask.shape)} voxels, the CT {_times(ct.shape)} (z, y, x)"
    if not np.allclose(mask.spacing, ct.spacing, rtol=1e-2):
        return f"its spacing is {_times(mask.spacing)} mm, the CT's {_times(ct.spacing)} (z, y, x)"
    middle = (np.array(ct.shape) - 1) / 2
    apart = np.linalg.norm(mask.world(middle) - ct.world(middle))
    if apart > _TOLERANCE * min(ct.spacing):
        return f"its middle lies {apart:.3g} mm from the CT's"
    return "its axes run in other directions"


def _times(numbers: tuple[float, ...]) -> str:
    return " × ".join(f"{n:.4g}" for n in numbers)
