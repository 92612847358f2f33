"""Layers that someone else opened: one frame of several, and geometry that a reader left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer

from napari_pancreas_seg import orientations
from napari_pancreas_seg._napari.layers.bridge import (
    LayerData,
    labels_layer_data,
    scale_and_translate,
)
from napari_pancreas_seg._napari.layers.placement import (
    METADATA_KEY,
    GridReference,
    Placement,
    data_to_world,
    reference_of,
    why_not_ct,
)
from napari_pancreas_seg._napari.layers.reader import read_layer
from napari_pancreas_seg.arrays import Array

_GEOMETRY_IN_FILE = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
_SAMPLE = 1 << 18
"""Voxels that are compared to find out how a reader has turned the axes."""


def frames(layer: Layer) -> int:
    """Count the volumes in a layer of four axes that could each be a CT; 0 for any other layer."""
    single = isinstance(layer, Image) and not layer.rgb and not layer.multiscale
    return int(layer.data.shape[0]) if single and layer.data.ndim == 4 else 0


def frame_layer(layer: Image, frame: int) -> Image:
    return Image(
        layer.data[frame],
        name=f"{layer.name} [{frame}]",
        contrast_limits=layer.contrast_limits,
        colormap=layer.colormap,
        rgb=False,
        multiscale=False,
        units=layer.units[-3:],
        axis_labels=layer.axis_labels[-3:],
        **scale_and_translate(data_to_world(layer, (frame,))),
    )


def not_offered(layers: list[Layer]) -> list[str]:
    """Say of pictures in the viewer why they are not offered as a CT, a sentence each."""
    pictures = [layer for layer in layers if isinstance(layer, Image) and not frames(layer)]
    reasons = [why_not_ct(layer) for layer in pictures if METADATA_KEY not in layer.metadata]
    return [reason for reason in reasons if reason is not None]


def file_without_geometry(layer: Layer | None) -> Path | None:
    """Find the file of a layer whose reader has left out spacing and orientation."""
    if layer is None or METADATA_KEY in layer.metadata or layer.data.ndim != 3:
        return None
    if layer.source.path is None or layer.source.parent is not None:
        return None
    path = Path(layer.source.path)
    if not path.name.lower().endswith(_GEOMETRY_IN_FILE) or not path.is_file():
        return None
    return path if np.allclose(data_to_world(layer)[:3, :3], np.eye(3)) else None


class Restored(NamedTuple):
    """A layer that was read again, with its geometry, and the masks drawn on the old one."""

    data: LayerData
    masks: list[LayerData]
    notes: tuple[str, ...]


def read_again(path: Path, layer: Layer, masks: list[Labels]) -> Restored:
    """Read a file with its geometry, in a thread; masks drawn on the layer are turned as it is."""
    data, notes = read_layer(path)
    reference: GridReference = data[1]["metadata"][METADATA_KEY]
    data[1]["name"] = layer.name
    if not masks:
        return Restored(data, [], notes)
    turned = _how_turned(np.asarray(layer.data), data[0], reference.source.orientation)
    if turned is None:
        kept = "The masks on it stay as they are: how they lie in the file is not known."
        return Restored(data, [], (*notes, kept))
    # It is on the grid, which is all that a mask has to know of its CT.
    names = ("scale", "translate", "affine", "units", "axis_labels")
    transform = {name: data[1][name] for name in names if name in data[1]}
    placement = Placement(reference, transform, np.eye(4))
    new = []
    for mask in masks:
        drawn = np.ascontiguousarray(orientations.apply_orientation(np.asarray(mask.data), turned))
        named = mask.name, mask.opacity
        new.append(labels_layer_data(drawn.astype(np.uint8), placement, *named))
    return Restored(data, new, notes)


def replace_layer(
    viewer: ViewerModel,
    layer: Layer,
    masks: list[Labels],
    new: Restored,
    carry_over: Callable[[Labels, Labels], None] = lambda old, new: None,
) -> Layer:
    """Put what was read again in the place of a layer and its masks; `carry_over` gets pairs."""
    layers = viewer.layers
    position = layers.index(layer) if layer in layers else len(layers)
    made, *turned = (Layer.create(*data) for data in (new.data, *new.masks))
    replaced = list(zip(masks, turned, strict=False))
    for before, after in replaced:
        carry_over(before, after)
    for old in [layer, *(before for before, _ in replaced)]:
        if old in layers:
            layers.remove(old)
    layers.insert(min(position, len(layers)), made)
    layers.extend(turned)
    viewer.reset_view()
    return made


def drawn_on(layer: Layer, layers: list[Layer]) -> list[Labels]:
    return [
        other
        for other in layers
        if isinstance(other, Labels)
        and reference_of(other) is None
        and other.source.path is None
        and tuple(other.data.shape) == tuple(layer.data.shape)
    ]


def _how_turned(array: Array, display: Array, in_file: Array) -> Array | None:
    """Find the orientation array from a foreign reader's axis order to display order."""
    for candidate in (in_file, in_file[::-1]):
        turned = orientations.apply_orientation(array, candidate)
        if turned.shape == display.shape and _alike(turned, display):
            return candidate
    return None


def _alike(one: Array, other: Array) -> bool:
    """Whether two arrays hold the same picture, up to slope and intercept."""
    step = max(1, round((one.size / _SAMPLE) ** (1 / 3)))
    a, b = (array[::step, ::step, ::step].astype(float).ravel() for array in (one, other))
    if a.std() == 0 or b.std() == 0:
        return bool(a.std() == b.std())
    return bool(np.corrcoef(a, b)[0, 1] > 0.999)
