"""The one bridge between volumes and napari's layers: arrays, axes, scale, units, colours."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from napari.layers import Labels, Layer
from napari.utils.colormaps import DirectLabelColormap

from napari_pancreas_seg import hounsfield
from napari_pancreas_seg._napari.compat import load_units
from napari_pancreas_seg._napari.layers.placement import (
    IN_DISPLAY_ORDER,
    METADATA_KEY,
    GridReference,
    Placement,
)
from napari_pancreas_seg.arrays import Affine, Array
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import ScalarMap
from napari_pancreas_seg.mask.centreline import Cuts
from napari_pancreas_seg.tissue import evenly_spread
from napari_pancreas_seg.units import SAMPLED_SLICES, Units, read_units
from napari_pancreas_seg.volume import CTVolume, Grid, OnSourceGrid, bounding_box

LayerData = tuple[Array, dict[str, Any], str]

HU_LIMITS = (-160.0, 240.0)
"""The abdominal window in which a CT opens, in HU."""
HU_RANGE = (-1024.0, 1500.0)
"""What the contrast slider spans, in HU."""
AXIS_LABELS = ("z", "y", "x")
UNITS = ("mm", "mm", "mm")
LABEL_COLORS = (
    *("#00d2a8", "#5aa2ff", "#e4418c", "#ffb000"),
    *("#b4e04a", "#c58cff", "#ff7d4d", "#7fdbff"),
)
"""Told apart in the usual kinds of colour blindness as well as eight can be; later labels repeat
them."""
PANCREAS = {"pancreas": 1}
HU = Units(1, 0)
"""Of values that are Hounsfield units as they are."""
EMPTY = "empty"
"""Digest of a mask with nothing in it."""
CUTS_KEY = "napari-pancreas-seg cuts"
"""Of a mask's metadata, see `cuts_of`."""
FILE_KEY = "napari-pancreas-seg file"
"""Of a mask's metadata: the file that it was opened from."""


def ct_layer_data(volume: CTVolume, name: str | None = None, *, forced: bool = False) -> LayerData:
    """Show a CT: abdominal window, scale in mm, axis labels and units."""
    reference = GridReference(volume.grid, volume.source, name or volume.name, forced=forced)
    options = {
        "name": reference.name,
        "contrast_limits": HU_LIMITS,
        "colormap": "gray",
        "rgb": False,
        "multiscale": False,
        **_plain_transform(volume.grid),
        "metadata": {METADATA_KEY: reference},
    }
    return volume.hu, options, "image"


def labels_layer_data(
    mask: Array,
    on: Placement | OnSourceGrid,
    name: str = "pancreas",
    opacity: float = 0.6,
    labels: Mapping[str, int] = PANCREAS,
    expected_dice: tuple[float, ...] = (),
    cuts: Cuts | None = None,
) -> LayerData:
    """Show a mask, ready to paint: in the layer's order on a `Placement`, else (Z, Y, X).

    `labels` says what its values mean, for the status bar, `expected_dice` how sure of each slice
    the model was, if a record says so; `cuts` are as `cuts_of` gives them.
    """
    if not isinstance(on, Placement):
        on = plain_placement(on)
    metadata = {METADATA_KEY: replace(on.reference, kind="mask", expected_dice=expected_dice)}
    options = {
        "name": name,
        "opacity": opacity,
        **_named(labels),
        **on.transform,
        "metadata": metadata if cuts is None else {**metadata, CUTS_KEY: cuts},
    }
    return mask, options, "labels"


def cuts_of(layer: Layer) -> Cuts | None:
    """Where a person has cut the centreline of a mask: shares of its length; None if nowhere."""
    return layer.metadata.get(CUTS_KEY)


def name_labels(layer: Labels, labels: Mapping[str, int]) -> None:
    if labels_of(layer) != dict(labels):
        for name, value in _named(labels).items():
            setattr(layer, name, value)


def only_label(mask: Array) -> int:
    """The label of a mask that holds one alone, 255 for instance; else 1."""
    label = int(mask.max(initial=1))
    alone = label > 1 and np.count_nonzero(mask) == np.count_nonzero(mask == label)
    return label if alone else 1


def labels_of(layer: Labels) -> dict[str, int]:
    """Labels of a layer, name to value, without 0, as far as its metadata hold them."""
    features = layer.features
    if not {"index", "name"} <= set(features.columns):
        return {}
    known = features[["index", "name"]].dropna()  # people may edit the table, or leave gaps in it
    pairs = zip(known["index"], known["name"], strict=True)
    return {str(name): int(value) for value, name in pairs if int(value) != 0}


def original_of(layer: Layer) -> Layer | None:
    """Find the layer that another one is a duplicate of; None if there is none, or no more."""
    parent: Any = layer.source.parent
    return None if parent is None else parent()


def _named(labels: Mapping[str, int]) -> dict[str, Any]:
    return {
        "features": {"index": [0, *labels.values()], "name": ["background", *labels]},
        "colormap": label_colors(named=labels.values()),
    }


def map_layer_data(
    scalar_map: ScalarMap, placement: Placement, name: str, *, colormap: str, visible: bool = False
) -> LayerData:
    """Show a map of values in [0, 1], parallel to the CT, over it at its own resolution."""
    reference, grid = placement.reference, scalar_map.grid
    on_map = replace(reference, grid=grid, name=name, orientation=IN_DISPLAY_ORDER, kind="map")
    options = {
        "name": name,
        "contrast_limits": (0.0, 1.0),
        "colormap": colormap,
        # Not additive: bright organs under an open gate would saturate to white.
        "blending": "translucent",
        "opacity": 0.5,
        "interpolation2d": "linear",
        "visible": visible,
        "rgb": False,
        "multiscale": False,
        **transform_over(placement, scalar_map.grid),
        "metadata": {METADATA_KEY: on_map},
    }
    return scalar_map.values, options, "image"


def transform_over(ct: Placement, grid: Grid) -> dict[str, Any]:
    """The transform that shows a grid, parallel to a CT's, where it lies over the CT's layer."""
    # Index on the grid -> index of the CT -> index of the CT's layer -> world. Half-pixel
    # offsets and frames that stand out beyond the CT are all in the grids.
    to_ct = np.linalg.inv(ct.reference.grid.affine) @ grid.affine
    kept = {name: ct.transform[name] for name in ("units", "axis_labels")}
    return kept | scale_and_translate(ct.matrix @ ct.reference.to_layer @ to_ct)


def voxels_of(layer_data: Any, reference: GridReference) -> Array:
    """Take (Z, Y, X) out of a layer's data or a part of it, as int16 or float32, not as HU."""
    array = _in_memory(layer_data)
    if array.dtype not in (np.int16, np.float32):
        array = hounsfield.scale(array).values
    return np.ascontiguousarray(reference.view(array))


def raw_volume_of(layer_data: Any, reference: GridReference) -> CTVolume:
    """Take a volume out of a layer's data, whatever its values are."""
    return CTVolume(voxels_of(layer_data, reference), reference.grid, reference.source)


def volume_of(layer_data: Any, reference: GridReference) -> CTVolume:
    """Take a CT out of a layer's data, lazy or not; may read every voxel, so for a thread."""
    volume = raw_volume_of(layer_data, reference)
    hu, notes = hounsfield.to_hounsfield(
        volume.hu, f"The layer '{reference.name}'", force=reference.forced
    )
    return CTVolume(hu, volume.grid, volume.source, notes)


def measured_volume_of(layer_data: Any, reference: GridReference) -> CTVolume:
    """Take a CT out of a layer's data to measure in it: without values if those are no HU."""
    if reference.source.format != "array":  # HU since it was read
        return raw_volume_of(layer_data, reference)
    try:
        return volume_of(layer_data, reference)
    except hounsfield.NotHounsfieldError:
        return reference.volume()


def units_of(layer_data: Any, reference: GridReference) -> Units | None:
    """Say what makes the values of a CT's layer HU, by some slices; None if they are no HU."""
    if reference.source.format != "array":
        return HU
    axis = int(np.flatnonzero(reference.orientation[:, 0] == 0)[0])
    before = (slice(None),) * axis
    some = evenly_spread(np.arange(layer_data.shape[axis]), SAMPLED_SLICES)
    sample = np.stack([np.asarray(layer_data[(*before, int(z))]) for z in some], axis=axis)
    try:
        return read_units(voxels_of(sample, reference))
    except PancreasSegError:
        return None


def _in_memory(data: Any) -> Array:
    """Read or compute a layer's data, a slice or a chunk of slices at a time."""
    if isinstance(data, np.ndarray) or getattr(data, "ndim", 0) == 0:
        return np.asarray(data)
    chunks = getattr(data, "chunks", None)  # of dask: sizes along every axis
    sizes = chunks[0] if chunks and isinstance(chunks[0], tuple) else (1,) * data.shape[0]
    array, start = np.empty(data.shape, dtype=data.dtype), 0
    for size in sizes:
        array[start : start + size] = np.asarray(data[start : start + size])
        start += size
    return array


def mask_of(data: Any) -> Array:
    """Copy a labels layer's data to uint8; refused if a label does not fit."""
    array = np.asarray(data)
    if array.dtype in (np.uint8, np.bool_):
        return array.astype(np.uint8)
    low, high = (array.min(), array.max()) if array.size else (0, 0)
    if low < 0 or high > 255 or (array.dtype.kind == "f" and (array != np.rint(array)).any()):
        raise PancreasSegError(
            f"This layer holds values from {low} to {high}; a mask holds whole labels from 0 "
            "to 255. Select the labels layer that you want to write."
        )
    return array.astype(np.uint8)


def plain_placement(volume: OnSourceGrid) -> Placement:
    """Say how a volume lies in the viewer when it is shown by itself."""
    # Without its path: a mask that was opened may be written over, a CT never.
    reference = GridReference(volume.grid, replace(volume.source, path=None), volume.name)
    matrix = np.diag([*volume.grid.spacing, 1.0])
    return Placement(reference, _plain_transform(volume.grid), matrix)


def _plain_transform(grid: Grid) -> dict[str, Any]:
    load_units()
    return {"scale": grid.spacing, "units": UNITS, "axis_labels": AXIS_LABELS}


def label_colors(shift: int = 0, named: Iterable[int] = ()) -> DirectLabelColormap:
    """Colours of labels; those of a mask that lies over others begin with another one."""
    count = len(LABEL_COLORS)
    values = (*range(1, count + 1), *named)
    shown = {value: LABEL_COLORS[(value - 1 + shift) % count] for value in values}
    # None is required: the colour of every label that is not named.
    return DirectLabelColormap(color_dict={None: "#f2e641", 0: "transparent", **shown})


def color_of(layer: Labels) -> Array:
    return np.asarray(layer.colormap.map(1), dtype=float).reshape(-1)


def scale_and_translate(matrix: Affine) -> dict[str, Any]:
    """A transform without rotation where that is enough: napari then slices faster."""
    scale = np.diag(matrix)[:3]
    off_diagonal = matrix[:3, :3] - np.diag(scale)
    if (scale > 0).all() and np.allclose(off_diagonal, 0, atol=1e-6 * scale.min()):
        return {"scale": scale, "translate": matrix[:3, 3]}
    return {"affine": matrix}


def digest_of(mask: Any) -> str:
    """Digest of a mask: of its box and what is in it."""
    data = np.asarray(mask)
    box = bounding_box(data != 0 if data.dtype.kind not in "bu" else data)
    if box is None:
        return EMPTY
    digest = hashlib.blake2b(repr([(int(s.start), int(s.stop)) for s in box]).encode())
    digest.update(np.ascontiguousarray(data[box]).data)
    return digest.hexdigest()
