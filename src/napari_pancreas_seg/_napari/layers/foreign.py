"""Layers that someone else opened: one frame of several, and geometry that a reader left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer

from napari_pancreas_seg import orientations
from napari_pancreas_seg._napari.layers.bridge import (
    labels_layer_data,
    mask_of,
    scale_and_translate,
)
from napari_pancreas_seg._napari.layers.placement import (
    METADATA_KEY,
    GridReference,
    Placement,
    data_to_world,
    reference_of,
    transform_of,
    why_not_ct,
)
from napari_pancreas_seg._napari.layers.reader import read_layer
from napari_pancreas_seg.arrays import Array

_GEOMETRY_IN_FILE = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
Pairs = list[tuple[Labels, Labels]]
Restored = tuple[Layer, Pairs, tuple[str, ...]]
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


def read_again(path: Path, layer: Layer, others: list[Layer]) -> Restored:
    """Read a file with its geometry, in a thread; masks drawn on the layer are turned as it is.

    The new layer, pairs of masks that were drawn on it and those in their place, and notes.
    """
    data, notes = read_layer(path)
    reference: GridReference = data[1]["metadata"][METADATA_KEY]
    made = Layer.create(data[0], {**data[1], "name": layer.name}, data[2])
    masks = [
        other
        for other in others
        if isinstance(other, Labels)
        and reference_of(other) is None
        and other.source.path is None
        and tuple(other.data.shape) == tuple(layer.data.shape)
    ]
    if not masks:
        return made, [], notes
    turned = _how_turned(np.asarray(layer.data), data[0], reference.source.orientation)
    if turned is None:
        kept = "The masks on it stay as they are: how they lie in the file is not known."
        return made, [], (*notes, kept)
    # It is on the grid, which is all that a mask has to know of its CT.
    on, pairs = Placement(reference, transform_of(made), np.eye(4)), []
    for mask in masks:
        drawn = np.ascontiguousarray(orientations.apply_orientation(mask_of(mask.data), turned))
        new = labels_layer_data(drawn, on, mask.name, mask.opacity)
        pairs.append((mask, Layer.create(*new)))
    return made, pairs, notes


def replace_layer(viewer: ViewerModel, old: Layer, new: Layer, masks: Pairs) -> None:
    """Replace a layer that was read again, and the masks drawn on it."""
    layers = viewer.layers
    position = layers.index(old) if old in layers else len(layers)
    for gone in [old, *(before for before, _ in masks)]:
        if gone in layers:
            layers.remove(gone)
    layers.insert(min(position, len(layers)), new)
    layers.extend(after for _, after in masks)
    viewer.reset_view()


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
