"""Where a layer's voxels lie: its reference to a grid, and the transform that shows it.

A viewer shows index times spacing, in mm and in display order, which is what a person
wants to look at. The true affine, oblique as it may be, stays in the `GridReference`
that every layer of ours carries in its metadata, so that a mask finds the way back to
its CT's grid whatever has been done to the layer. A layer that someone else made is
taken for what the viewer shows of it.
"""

from __future__ import annotations

import contextlib
import itertools
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Layer

from napari_pancreas_seg import orientations
from napari_pancreas_seg.arrays import Affine, Array, Labels
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.alignment import bring_onto
from napari_pancreas_seg.volume import DISPLAY_AXCODES, CTVolume, Grid, Source, Volume

METADATA_KEY = "napari_pancreas_seg"
OUTLINE = "outline"
"""The kind of a layer that shows what a correction would leave; no mask."""
DRAWN = "drawn"
"""The kind of a labels layer that was drawn by hand on a case, or is a duplicate of one."""
IN_DISPLAY_ORDER = np.array([[0, 1], [1, 1], [2, 1]], dtype=float)
"""nibabel's orientation array of layers that we open."""
# napari's (z, y, x) to RAS+ for a layer of which nobody knows more than how it is shown.
SHOWN_TO_RAS = np.array([[0, 0, -1, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=float)


@dataclass(frozen=True, eq=False)
class GridReference:
    """What a layer carries in its metadata to find its grid again; small and immutable."""

    grid: Grid
    source: Source
    name: str
    # nibabel's (3, 2), from the layer's axes to display order, in which ours are already.
    orientation: Array = field(default_factory=lambda: IN_DISPLAY_ORDER)
    kind: str = "ct"  # or "mask", "map", "picture", OUTLINE, DRAWN
    id: str = field(default_factory=lambda: uuid.uuid4().hex)  # of a CT and all found in it
    forced: bool = False  # a person said that these are HU although they do not look like it
    expected_dice: tuple[float, ...] = ()  # of an opened mask's slices, by the record beside it

    @property
    def layer_shape(self) -> tuple[int, ...]:
        return tuple(self.grid.shape[int(target)] for target, _ in self.orientation)

    @property
    def to_layer(self) -> Affine:
        """Affine (4, 4) from an index in display order to one in a layer's own order."""
        return np.asarray(orientations.inv_ornt_aff(self.orientation, self.layer_shape))

    @property
    def pixel_mm(self) -> float:
        """Edge of a square as large as a pixel of an axial slice."""
        _, dy, dx = self.grid.spacing
        return float((dy * dx) ** 0.5)

    @property
    def is_reordered(self) -> bool:
        """Whether a layer on this grid has other axes than display order."""
        return not np.array_equal(self.orientation, IN_DISPLAY_ORDER)

    def volume(self) -> CTVolume:
        """Make a CT without content, for functions that want one to know its grid."""
        return CTVolume.of_grid(self.grid, self.source)

    def view(self, array: Array) -> Array:
        """View a layer's array in display order (Z, Y, X); writing to it writes to the array."""
        return orientations.apply_orientation(array, self.orientation)

    def layer_view(self, array: Array) -> Array:
        """View an array in display order (Z, Y, X) in a layer's own order."""
        back = orientations.ornt_transform(IN_DISPLAY_ORDER, self.orientation)
        return orientations.apply_orientation(array, back)

    def layer_box(self, box: Sequence[slice]) -> tuple[slice, ...]:
        """Say where a box in display order lies in a layer's own order."""
        found = []
        for target, flip in self.orientation:
            edge, length = box[int(target)], self.grid.shape[int(target)]
            flipped = slice(length - edge.stop, length - edge.start)
            found.append(edge if flip > 0 else flipped)
        return tuple(found)

    def layer_indices(self, indices: Sequence[Array]) -> tuple[Array, ...]:
        """Say where voxels given in display order lie in a layer's own order."""
        last = np.array(self.grid.shape) - 1
        return tuple(
            indices[int(t)] if flip > 0 else last[int(t)] - indices[int(t)]
            for t, flip in self.orientation
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> GridReference:
        # Nothing in it ever changes, and headers of some formats are slow to copy.
        return self


@dataclass(frozen=True, eq=False)
class Placement:
    reference: GridReference
    transform: dict[str, Any]  # of the layer, as `transform_of` gives it
    matrix: Affine  # from an index of its data to the world


def reference_of(layer: Layer) -> GridReference | None:
    """Find the grid that a layer lies on, or None if it is not ours or was reshaped."""
    reference = layer.metadata.get(METADATA_KEY)
    if isinstance(reference, GridReference) and reference.layer_shape == _shape(layer):
        return reference
    return None


def _shape(layer: Layer) -> tuple[int, ...]:
    """The shape of a layer's array; shapes and surfaces have none."""
    return tuple(getattr(layer.data, "shape", ()))


def lies_on(layer: Layer, reference: GridReference) -> bool:
    """Whether a layer's voxels are a CT's; one that is not ours is drawn on any of its shape."""
    own = layer.metadata.get(METADATA_KEY)
    if not isinstance(own, GridReference):
        return _shape(layer) == reference.layer_shape
    is_mask_or_ct = own is reference_of(layer) and own.kind != OUTLINE
    same_axes = np.array_equal(own.orientation, reference.orientation)
    return is_mask_or_ct and same_axes and own.grid.same_as(reference.grid)


def belongs_to(layer: Layer, reference: GridReference) -> bool:
    """Whether a layer is a CT or was made on it, even if it has been cut or resampled since."""
    return getattr(layer.metadata.get(METADATA_KEY), "id", "") == reference.id


def is_map(layer: Layer) -> bool:
    reference = reference_of(layer)
    return reference is not None and reference.kind == "map"


def find_reference(layer: Layer, others: Sequence[Layer] = ()) -> GridReference:
    """Find the grid to write a layer onto: its own, of the only CT of its shape, or as shown."""
    if (own := reference_of(layer)) is not None:
        return own
    shape = tuple(layer.data.shape)
    stale = layer.metadata.get(METADATA_KEY)
    if isinstance(stale, GridReference):
        raise PancreasSegError(
            f"'{layer.name}' has the shape {shape} but its CT {stale.layer_shape}: it was cut or "
            "resampled and cannot be written onto the CT's grid. Write the original layer."
        )
    candidates = [ref for ref in map(reference_of, others) if ref and ref.kind != "map"]
    found = {ref.id: ref for ref in candidates if ref.layer_shape == shape}
    if len(found) > 1:
        names = " and ".join(sorted(f"'{ref.name}'" for ref in found.values()))
        raise PancreasSegError(
            f"'{layer.name}' fits several CTs ({names}). Remove all but the one it belongs to."
        )
    if found:
        return next(iter(found.values()))
    if len(shape) != 3:
        raise PancreasSegError(
            f"'{layer.name}' has {len(shape)} dimensions; only volumes with three can be written."
        )
    return _on_shown_ct(layer, placements(others)) or _foreign_reference(layer)


def onto_ct(
    mask: Array, reference: GridReference, layers: Iterable[Layer]
) -> tuple[Array, GridReference]:
    """Put a mask (Z, Y, X) that was drawn on a part of one CT onto the whole, if it was."""
    cts = {ref.id: ref for ref in map(reference_of, layers) if ref and ref.kind == "ct"}
    part = Volume(mask, reference.grid, reference.source)
    found = [] if reference.id in cts else list(onto_cts(part, cts.values()))
    return found[0] if len(found) == 1 else (mask, reference)


def onto_cts(mask: Volume, cts: Iterable[GridReference]) -> Iterator[tuple[Labels, GridReference]]:
    """Put a mask that lies on all or a part of CTs onto each, and name the CT."""
    for ct in cts:
        with contextlib.suppress(PancreasSegError):
            yield bring_onto(ct.volume(), mask.values, mask, mask.name), ct


def why_not_ct(layer: Layer) -> str | None:
    """Say in a sentence why a layer cannot be taken for a CT; None if it can."""
    if not isinstance(layer, Image):
        return f"'{layer.name}' is not an image layer."
    if layer.rgb:
        return f"'{layer.name}' is a colour picture, not a CT."
    if layer.multiscale:
        return f"'{layer.name}' has several resolutions; open the CT at its full one."
    if layer.data.ndim != 3:
        return (
            f"'{layer.name}' has {layer.data.ndim} dimensions; a CT has three: slices, rows "
            "and columns."
        )
    return None


def placement_of(layer: Image, known: GridReference | None = None) -> Placement:
    """Read from a layer how its CT lies; `known` was made for it before, if it is not ours."""
    if refusal := why_not_ct(layer):
        raise PancreasSegError(refusal)
    own = reference_of(layer)
    if own is None:
        own = _foreign_reference(layer)
        if known is not None and known.grid.same_as(own.grid):
            own = replace(known, name=layer.name)
    return Placement(own, transform_of(layer), data_to_world(layer))


def transform_of(layer: Layer) -> dict[str, Any]:
    names = ("scale", "translate", "rotate", "shear", "units", "axis_labels")
    return {name: getattr(layer, name) for name in names} | {"affine": layer.affine.affine_matrix}


def placements(layers: Iterable[Layer]) -> list[Placement]:
    """Say how the CTs that we opened lie in the viewer."""
    own = [(layer, reference_of(layer)) for layer in layers]
    return [placement_of(layer) for layer, ref in own if ref is not None and ref.kind == "ct"]


def is_parallel(grid: Grid, other: Grid) -> bool:
    """Whether the axes of two grids run in the same directions, to a thousandth."""
    steps = np.linalg.inv(other.affine)[:3, :3] @ grid.affine[:3, :3]
    scale = np.diag(steps)
    return bool((scale > 0).all() and np.allclose(steps, np.diag(scale), atol=1e-3 * scale.min()))


def slice_on_screen(viewer: ViewerModel, layer: Layer, reference: GridReference) -> int | None:
    """Index of the CT's slice on screen, if any: a slider's steps and units are of all layers."""
    if viewer.dims.ndisplay != 2 or viewer.dims.ndim < 3:
        return None
    z = round(float(index_at(viewer, layer, reference, viewer.dims.point)[0]))
    return z if 0 <= z < reference.grid.shape[0] else None


def show_slice(viewer: ViewerModel, layer: Layer, reference: GridReference, z: int) -> None:
    """Bring a slice of a CT on screen; sliders along which it runs, seen from the side, stay."""
    index, shape = index_at(viewer, layer, reference, viewer.dims.point), reference.grid.shape
    # A slider that points beside the CT, because another one was shown, comes to its middle.
    beside = (index < -0.5) | (index > np.array(shape) - 0.5)
    index[beside] = (np.array(shape) // 2)[beside]
    index[0] = z
    world = layer.data_to_world(reference.to_layer[:3] @ [*index, 1.0])
    point = list(viewer.dims.point)
    point[-3:] = world * _ratios(layer.units, _shown_units(viewer, layer))
    moved = [axis for axis in range(viewer.dims.ndim) if axis not in viewer.dims.displayed]
    viewer.dims.set_point(moved, [point[axis] for axis in moved])


def with_all_axes(viewer: ViewerModel, layers: Sequence[Layer]) -> Sequence[Layer]:
    """Some layers to look at whole; all where another one has more axes: napari fails there."""
    same = any(layer.ndim == viewer.dims.ndim for layer in layers)
    return layers if same else list(viewer.layers)


def index_at(
    viewer: ViewerModel, layer: Layer, reference: GridReference, position: Sequence[float]
) -> Array:
    """Index (z, y, x) in a CT of a position in the world: of the sliders, or of the mouse."""
    return index_in(layer, reference, position[-3:], _shown_units(viewer, layer))


def index_in(
    layer: Layer, reference: GridReference, position: Sequence[float], units: Sequence[Any]
) -> Array:
    """Index (z, y, x) in a CT of a position (z, y, x) that is in some units."""
    in_layer = np.array([*layer.world_to_data(position * _ratios(units, layer.units)), 1.0])
    return np.asarray((np.linalg.inv(reference.to_layer) @ in_layer)[:3])


def _on_shown_ct(layer: Layer, cts: Iterable[Placement]) -> GridReference | None:
    """Find where a layer of another shape, of a crop, lies on the CT it is shown on, if on any."""
    corners = np.array(list(itertools.product(*((0, n - 1) for n in layer.data.shape))))
    found: dict[str, Affine] = {}
    for ct in cts:
        scale = np.diag([*_ratios(layer.units, ct.transform["units"]), 1.0])
        to_index = np.linalg.inv(ct.matrix @ ct.reference.to_layer) @ scale @ data_to_world(layer)
        indices = corners @ to_index[:3, :3].T + to_index[:3, 3]
        first, last = indices.min(axis=0), indices.max(axis=0)
        if (last > -0.5).all() and (first < np.array(ct.reference.grid.shape) - 0.5).all():
            found[ct.reference.id] = ct.reference.grid.affine @ to_index
    if len(found) > 1:
        raise PancreasSegError(
            f"'{layer.name}' is shown on several CTs. Remove all but the one it belongs to."
        )
    return _foreign_reference(layer, *found.values()) if found else None


def _foreign_reference(layer: Layer, affine: Affine | None = None) -> GridReference:
    """Grid of a layer that is not ours: as the viewer shows it, or as an affine places it."""
    if affine is None:
        to_mm = np.diag([*_ratios(layer.units, ["mm"] * layer.ndim), 1.0])
        affine = SHOWN_TO_RAS @ to_mm @ data_to_world(layer)
    empty = np.broadcast_to(np.int16(0), tuple(int(n) for n in layer.data.shape))
    axes = orientations.io_orientation(affine)
    orientation = orientations.ornt_transform(axes, orientations.axcodes2ornt(DISPLAY_AXCODES))
    shape = orientations.apply_orientation(empty, orientation).shape
    grid = Grid(shape, affine @ orientations.inv_ornt_aff(orientation, empty.shape))
    source = Source(None, "array", empty.shape, affine, orientation)
    return GridReference(grid, source, layer.name, orientation)


def data_to_world(layer: Layer, frame: Sequence[int] = ()) -> Affine:
    """Affine (4, 4) from a layer's index, its last three axes, to the world in its own units."""
    corners = [[*frame, *index] for index in ((0, 0, 0), *np.eye(3))]
    corner, *units = (np.asarray(layer.data_to_world(index))[-3:] for index in corners)
    matrix = np.eye(4)
    matrix[:3] = np.stack([*(unit - corner for unit in units), corner], axis=1)
    return matrix


def _shown_units(viewer: ViewerModel, layer: Layer) -> Sequence[Any]:
    """Units of the sliders, those of the layer where layers disagree: napari then converts none."""
    units: Sequence[Any] | None = viewer.dims.units
    return layer.units if units is None else units[-3:]


def _ratios(units: Sequence[Any], others: Sequence[Any]) -> Array:
    """How many of other units make up these; 1 where one is a pixel: nobody gave a unit."""
    pairs = zip(units, others, strict=True)
    alike = ((a, b) if a.is_compatible_with(b) else (a, a) for a, b in pairs)
    return np.array([float((1 * a).to(b).magnitude) for a, b in alike])
