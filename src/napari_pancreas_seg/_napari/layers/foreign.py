"""Layers that someone else opened: one frame of several, and geometry that a reader left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer

from napari_pancreas_seg._napari.layers.bridge import LayerData, labels_layer_data
from napari_pancreas_seg._napari.layers.placement import (
    METADATA_KEY,
    GridReference,
    Placement,
    display_view,
    reference_of,
    why_not_ct,
)
from napari_pancreas_seg._napari.layers.reader import read_layer

Array = npt.NDArray[Any]

_GEOMETRY_IN_FILE = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
_SAMPLE = 1 << 18
"""Voxels that are compared to find out how a reader has turned the axes."""


def frames(layer: Layer) -> int:
    """Count the volumes in a layer of four axes that could each be a CT; 0 for any other layer."""
    single = isinstance(layer, Image) and not layer.rgb and not layer.multiscale
    return int(layer.data.shape[0]) if single and layer.data.ndim == 4 else 0


def frame_layer(layer: Image, frame: int) -> Image:
    """Make a layer of one frame, where the frame lies; its data are those of the layer."""
    # The last three axes of the transform, whatever is done to the first.
    matrix = np.eye(4)
    matrix[:3, 3] = np.asarray(layer.data_to_world((frame, 0, 0, 0)))[-3:]
    for axis in range(3):
        step = np.zeros(4)
        step[0], step[1 + axis] = frame, 1
        matrix[:3, axis] = np.asarray(layer.data_to_world(step))[-3:] - matrix[:3, 3]
    scale = np.diag(matrix)[:3]
    plain = np.allclose(matrix[:3, :3], np.diag(scale)) and (scale > 0).all()
    place = {"scale": scale, "translate": matrix[:3, 3]} if plain else {"affine": matrix}
    return Image(
        layer.data[frame],
        name=f"{layer.name} [{frame}]",
        contrast_limits=layer.contrast_limits,
        colormap=layer.colormap,
        rgb=False,
        multiscale=False,
        units=layer.units[-3:],
        axis_labels=layer.axis_labels[-3:],
        **place,
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
    steps = [
        np.subtract(layer.data_to_world(unit), layer.data_to_world((0, 0, 0))) for unit in np.eye(3)
    ]
    return path if np.allclose(steps, np.eye(3)) else None


class Restored(NamedTuple):
    """A layer that was read again, with its geometry, and the masks drawn on the old one."""

    data: LayerData
    masks: list[LayerData]
    notes: tuple[str, ...]


def read_again(path: Path, layer: Layer, masks: list[Labels]) -> Restored:
    """Read a file with its geometry; for a thread, as it looks at voxels.

    `masks` of the same shape were drawn on the layer, and are turned as that is.
    """
    data, notes = read_layer(path)
    reference: GridReference = data[1]["metadata"][METADATA_KEY]
    data[1]["name"] = layer.name
    if not masks:
        return Restored(data, [], notes)
    turned = _how_turned(layer.data, data[0], reference)
    if turned is None:
        kept = "The masks on it stay as they are: how they lie in the file is not known."
        return Restored(data, [], (*notes, kept))
    # It is on the grid, which is all that a mask has to know of its CT.
    placement = Placement(reference, _transform(data[1]), np.eye(4))
    new = [
        labels_layer_data(
            np.ascontiguousarray(display_view(np.asarray(mask.data), turned)).astype(np.uint8),
            placement,
            mask.name,
            mask.opacity,
        )
        for mask in masks
    ]
    return Restored(data, new, notes)


def replace_layer(
    viewer: ViewerModel,
    layer: Layer,
    masks: list[Labels],
    new: Restored,
    carry_over: Callable[[Labels, Labels], None] = lambda old, new: None,
) -> Layer:
    """Put what was read again in the place of a layer and the masks on it.

    `carry_over` gets a mask and the one in its place, while neither has left or come.
    """
    layers = viewer.layers
    position = layers.index(layer) if layer in layers else len(layers)
    made = Layer.create(*new.data)
    turned: list[Labels] = [Layer.create(*data) for data in new.masks]
    for before, after in zip(masks, turned, strict=False):
        carry_over(before, after)
    for old in [layer, *(masks if new.masks else [])]:
        if old in layers:
            layers.remove(old)
    layers.insert(min(position, len(layers)), made)
    for mask in turned:
        viewer.add_layer(mask)
    viewer.reset_view()
    return made


def drawn_on(layer: Layer, layers: list[Layer]) -> list[Labels]:
    """Find the labels that were drawn on a layer without geometry: those of its shape."""
    return [
        other
        for other in layers
        if isinstance(other, Labels)
        and reference_of(other) is None
        and other.source.path is None
        and tuple(other.data.shape) == tuple(layer.data.shape)
    ]


def _how_turned(array: Any, display: Array, reference: GridReference) -> Array | None:
    """Find the orientation array from a foreign reader's axis order to display order."""
    in_file = reference.source.orientation
    for candidate in (in_file, in_file[::-1]):
        shape = [0, 0, 0]
        for axis, (target, _) in enumerate(candidate):
            shape[axis] = display.shape[int(target)]
        if tuple(shape) == tuple(array.shape) and _alike(
            display_view(np.asarray(array), candidate), display
        ):
            return candidate
    return None


def _alike(one: Array, other: Array) -> bool:
    """Whether two arrays hold the same picture, up to slope and intercept."""
    step = max(1, round((one.size / _SAMPLE) ** (1 / 3)))
    a, b = (array[::step, ::step, ::step].astype(float).ravel() for array in (one, other))
    if a.std() == 0 or b.std() == 0:
        return bool(a.std() == b.std())
    return bool(np.corrcoef(a, b)[0, 1] > 0.999)


def _transform(options: dict[str, Any]) -> dict[str, Any]:
    names = ("scale", "translate", "affine", "units", "axis_labels")
    return {name: options[name] for name in names if name in options}
