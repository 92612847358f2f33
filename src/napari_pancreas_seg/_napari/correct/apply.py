"""Apply an edit to a labels layer as one step of undo, or show its outline as a proposal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Labels
from napari.utils.colormaps import DirectLabelColormap

from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.layers.placement import (
    METADATA_KEY,
    OUTLINE,
    GridReference,
    find_reference,
    reference_of,
    slice_on_screen,
    transform_of,
)
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg.arrays import Array, Box, Mask
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.mask.editing import Change, change_of
from napari_pancreas_seg.volume import bounding_box

OUTLINE_COLOR = "#fff200"
OUTLINE_PIXELS = 1


@dataclass(frozen=True, eq=False)
class Target:
    """The label of a mask that is edited, and the grid on which it lies."""

    layer: Labels
    reference: GridReference
    label: int

    @property
    def shown(self) -> Array:
        """The label map in display order (Z, Y, X), a view of the layer's data."""
        return self.reference.view(self.layer.data)

    def mask(self) -> Mask:
        """Copy the label's mask (Z, Y, X); looks at every voxel, so for a thread."""
        shown = self.shown
        mask = np.empty(shown.shape, dtype=bool)
        # A slice at a time: quick for the cache, and the interpreter is free in between.
        for plane, labels in zip(mask, shown, strict=True):
            np.equal(labels, self.label, out=plane)
        return mask

    def check_shown(self) -> None:
        if not self.layer.visible:
            raise PancreasSegError(f"'{self.layer.name}' is hidden: show it, then mend it.")

    def axial_slice_on(self, viewer: ViewerModel) -> int:
        z = slice_on_screen(viewer, self.layer, self.reference)
        if z is None:
            raise PancreasSegError("There is no slice of this mask on screen.")
        if viewer.dims.ndim - 3 + self.slice_axis in viewer.dims.displayed:
            raise PancreasSegError("This works in axial slices: choose Axial in the View panel.")
        return z

    @property
    def slice_axis(self) -> int:
        return int(np.flatnonzero(self.reference.orientation[:, 0] == 0)[0])

    def is_label_of(self, other: Target) -> bool:
        """Whether both are one label of one layer."""
        return (self.layer, self.label) == (other.layer, other.label)

    def is_in(self, viewer: ViewerModel | None) -> bool:
        """Whether the layer is in the viewer still, with the shape that it had."""
        layer, shape = self.layer, self.reference.layer_shape
        return viewer is not None and layer in viewer.layers and layer.data.shape == shape


def chosen_target(session: Session) -> Target:
    """Find what to correct: the mask that is chosen, else the labels layer that is active."""
    layers, layer = session.viewer.layers, session.mask
    if layer is None or layer not in layers:
        layer = layers.selection.active
    if not isinstance(layer, Labels) or layer.multiscale or layer.data.ndim != 3:
        raise PancreasSegError("There is no mask to correct yet: run first, or paint one.")
    reference = reference_of(layer) or session.ct_of(layer) or find_reference(layer, layers)
    if not isinstance(layer.data, np.ndarray):
        raise PancreasSegError(
            f"'{layer.name}' is not held in memory and cannot be corrected. Duplicate it as an "
            "array first."
        )
    if layer.selected_label == 0:
        raise PancreasSegError(
            "Label 0 is the background: select the label to correct in the layer's controls."
        )
    return Target(layer, reference, int(layer.selected_label))


def ct_under(target: Target, session: Session) -> tuple[Any, GridReference]:
    """Data and grid of the chosen CT, which the network needs to see under a mask."""
    ct = session.ct
    if ct is None:
        raise PancreasSegError("Open a CT first: there is none to run the network on.")
    reference = session.placement(ct).reference
    if not reference.grid.same_as(target.reference.grid):
        raise PancreasSegError(f"'{target.layer.name}' does not lie on the CT '{ct.name}'.")
    return ct.data, reference


@dataclass(frozen=True, eq=False)
class EditPreview:
    """An edit and its result: `mask` within `box`, 0 in slices that do not change."""

    change: Change
    box: Box
    mask: Array


def preview_of(before: Array, after: Array, label: int) -> EditPreview | None:
    """Compare a label's masks (Z, Y, X) before and after; None if nothing changes."""
    change = change_of(before, after, label)
    if change is None:
        return None
    z = change.box[0]
    found = bounding_box(after[z])
    # The whole shape, not only what changes of it, and an edge for its outline.
    planes = change.box[1:] if found is None else found[1:]
    y, x = (
        slice(max(0, min(a.start, b.start) - 2), min(n, max(a.stop, b.stop) + 2))
        for a, b, n in zip(planes, change.box[1:], after.shape[1:], strict=True)
    )
    mask = (after[z, y, x] != 0).astype(np.uint8)
    mask[np.setdiff1d(np.arange(len(mask)), np.array(change.slices) - z.start)] = 0
    return EditPreview(change, (z, y, x), mask)


def apply_change(target: Target, change: Change) -> int:
    """Write a change into a layer as one step of its undo; return how many voxels changed."""
    indices, values = change.voxels(target.shown)
    if len(values) == 0:
        return 0
    layer, where = target.layer, target.reference.layer_indices(indices)
    step = where, layer.data[where], values
    layer.data[where] = values
    compat.add_undo_step(layer, step)
    layer.refresh(thumbnail=False, highlight=False, extent=False)
    return len(values)


def outline_layer(target: Target, found: EditPreview, name: str) -> Labels:
    """Draw the outline of the mask as an edit would leave it, exactly over the mask."""
    layer, reference = target.layer, target.reference
    corner = [edge.start for edge in reference.layer_box(found.box)]
    # Layer to world is affine(rotate, shear, scale, translate): solve for the translation.
    world = np.array([*layer.data_to_world(corner), 1.0])
    translate = (np.linalg.inv(layer.affine.affine_matrix) @ world)[:3]
    outline = Labels(
        np.ascontiguousarray(reference.layer_view(found.mask)),
        name=name,
        metadata={METADATA_KEY: replace(reference, kind=OUTLINE)},
        **{**transform_of(layer), "translate": translate},
        colormap=DirectLabelColormap(
            color_dict={None: OUTLINE_COLOR, 0: "transparent", 1: OUTLINE_COLOR}
        ),
        opacity=1.0,
        blending="translucent_no_depth",
    )
    outline.contour = OUTLINE_PIXELS
    outline.editable = False
    compat.hide_tool_overlays(outline)
    return outline
