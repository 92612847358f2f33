"""Probability and attention of the viewer's CTs: arrays that fill, and layers that show them."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer
from napari.utils.colormaps import AVAILABLE_COLORMAPS, Colormap

from napari_pancreas_seg._napari.layers.bridge import map_layer_data
from napari_pancreas_seg._napari.layers.placement import METADATA_KEY, GridReference, Placement
from napari_pancreas_seg._napari.settings import Settings
from napari_pancreas_seg.inference.result import FoundSlices, ScalarMap, Segmentation

__all__ = [
    "COLOR_MAPS",
    "GATES_AT_FIRST",
    "PROBABILITY",
    "MapAppearance",
    "MapLayers",
    "MapsFound",
    "empty_maps",
    "make_layer",
]

COLOR_MAPS = ("inferno", "magma", "viridis", "turbo", "gray")
GATES_AT_FIRST = 2
"""Gates that become layers with every run: the finest ones are the readable ones."""
PROBABILITY = "probability"
"""What the map of the network's output is called; the gates are ``"attention 1"`` and so on, the
classes of a network that knows several ``"probability liver"``."""


@dataclass(frozen=True)
class MapAppearance:
    """How maps are shown.

    Parameters
    ----------
    shown : tuple of str
        Maps that are visible once they are there: ``"attention 1"`` is the finest gate.
    opacity : float
        From 0 to 1.
    colormap : str
        Of the gates; the probability has one of its own.
    """

    shown: tuple[str, ...] = ("attention 1",)
    opacity: float = 0.6
    colormap: str = COLOR_MAPS[0]

    @classmethod
    def remembered(cls, settings: Settings) -> MapAppearance:
        """Read what was chosen last."""
        plain = cls()
        colormap = settings.get("attention/colormap", plain.colormap)
        return cls(
            tuple(str(word) for word in settings.get("attention/shown", list(plain.shown))),
            min(max(settings.get("attention/opacity", plain.opacity), 0.0), 1.0),
            colormap if colormap in COLOR_MAPS else plain.colormap,
        )

    def remember(self, settings: Settings) -> None:
        """Keep for the next time."""
        settings.set("attention/shown", list(self.shown))
        settings.set("attention/opacity", self.opacity)
        settings.set("attention/colormap", self.colormap)


@dataclass(frozen=True, eq=False)
class MapsFound:
    """Maps of a CT that begin to fill, or more layers of them: a step of a run.

    Parameters
    ----------
    maps : dict of str to ScalarMap
        All of them, by what they show; NaN where nothing has been computed yet. Empty if they
        have been told before.
    layers : dict of str to Image
        Layers of some.
    """

    maps: dict[str, ScalarMap]
    layers: dict[str, Image]


@dataclass(eq=False)
class _CtMaps:
    """Maps of one CT, with what it takes to make layers of them."""

    placement: Placement
    name: str
    maps: dict[str, ScalarMap] = field(default_factory=dict)
    shown: set[str] = field(default_factory=set)
    visible_before: set[str] = field(default_factory=set)
    layers: weakref.WeakValueDictionary[str, Image] = field(
        default_factory=weakref.WeakValueDictionary
    )


def make_layer(
    scalar_map: ScalarMap, word: str, placement: Placement, name: str, looks: MapAppearance
) -> Image:
    """Make the layer of a map; the first one imports much, so rather in a thread.

    Parameters
    ----------
    scalar_map : ScalarMap
        The map.
    word : str
        What it shows.
    placement : Placement
        How its CT lies in the viewer.
    name : str
        Name of the case.
    looks : MapAppearance
        How to show it.
    """
    data, options, kind = map_layer_data(
        scalar_map,
        placement,
        f"{name} {word}",
        colormap=_fading(word, looks),
        visible=word in looks.shown,
    )
    return Layer.create(data, {**options, "opacity": looks.opacity}, kind)


class MapLayers:
    """The maps of a viewer's CTs.

    Parameters
    ----------
    viewer : ViewerModel
        The viewer; only a weak reference is kept.
    settings : Settings
        Where the looks are remembered.
    """

    def __init__(self, viewer: ViewerModel, settings: Settings) -> None:
        self._viewer = weakref.ref(viewer)
        self._settings = settings
        self._cts: dict[str, _CtMaps] = {}

    @property
    def looks(self) -> MapAppearance:
        """How maps are shown."""
        return MapAppearance.remembered(self._settings)

    @looks.setter
    def looks(self, looks: MapAppearance) -> None:
        looks.remember(self._settings)
        for maps in self._cts.values():
            for word, layer in maps.layers.items():
                layer.opacity = looks.opacity
                layer.colormap = _fading(word, looks)

    def known(self, reference: GridReference) -> list[str]:
        """List what maps of a CT there are, shown or not."""
        maps = self._cts.get(reference.id)
        return [] if maps is None else list(maps.maps)

    def layers(self, reference: GridReference) -> dict[str, Image]:
        """Find the layers of a CT's maps that are in the viewer."""
        maps, viewer = self._cts.get(reference.id), self._viewer()
        if maps is None or viewer is None:
            return {}
        return {word: layer for word, layer in maps.layers.items() if layer in viewer.layers}

    def begin(self, found: MapsFound, placement: Placement, name: str) -> object:
        """Take the maps of a new run, in place of a former one's and as visible as those.

        Returns
        -------
        object
            The former maps, for `restore`.
        """
        viewer, reference = self._viewer(), placement.reference
        former = self._cts.get(reference.id)
        if viewer is None:
            return former
        before = self.layers(reference)
        maps = _CtMaps(placement, name, found.maps)
        self._cts[reference.id] = maps
        maps.visible_before |= {word for word, layer in before.items() if layer.visible}
        for word in found.layers.keys() & before.keys():
            found.layers[word].visible = before[word].visible
        for old in before.values():
            viewer.layers.remove(old)
        for word, layer in found.layers.items():
            self._add(viewer, maps, word, layer)
        return former

    def add(self, reference: GridReference, layers: dict[str, Image]) -> None:
        """Add more layers of a CT's maps, unless they have been asked for meanwhile."""
        maps, viewer = self._cts.get(reference.id), self._viewer()
        if maps is not None and viewer is not None:
            for word, layer in layers.items():
                if word not in self.layers(reference):
                    layer.visible = word in maps.visible_before
                    self._add(viewer, maps, word, layer)

    def restore(self, reference: GridReference, former: object) -> None:
        """Put former maps back in the place of those of a run that was discarded."""
        viewer = self._viewer()
        self.forget(reference)
        if isinstance(former, _CtMaps) and viewer is not None:
            looks = self.looks
            layers = {
                word: make_layer(former.maps[word], word, former.placement, former.name, looks)
                for word in sorted(former.shown, reverse=True)
            }
            self.begin(MapsFound(former.maps, layers), former.placement, former.name)

    def fill(self, reference: GridReference, found: FoundSlices) -> None:
        """Write slices that have just been found into the maps, in place."""
        maps = self._cts.get(reference.id)
        if maps is not None:
            for word, part in found.maps.items():
                maps.maps[word].values[found.map_rows] = part.values

    def redraw(self, reference: GridReference) -> None:
        """Draw what has been filled."""
        for layer in self.layers(reference).values():
            if layer.visible:
                layer.refresh(thumbnail=False, highlight=False, extent=False)

    def show(self, reference: GridReference | None, word: str, visible: bool) -> None:
        """Show or hide a map, now or once it is there; its layer is made if there is none."""
        shown = [one for one in self.looks.shown if one != word] + [word] * visible
        self.looks = replace(self.looks, shown=tuple(sorted(shown)))
        viewer = self._viewer()
        maps = None if reference is None else self._cts.get(reference.id)
        if maps is None or viewer is None or reference is None or word not in maps.maps:
            return
        layer = self.layers(reference).get(word)
        if layer is not None:
            layer.visible = visible
        elif visible:
            layer = make_layer(maps.maps[word], word, maps.placement, maps.name, self.looks)
            self._add(viewer, maps, word, layer)

    def complete(self, reference: GridReference, result: Segmentation) -> Segmentation:
        """Let a result hold the very arrays that are shown, instead of equal ones."""
        maps = self._cts.get(reference.id)
        if maps is None or PROBABILITY not in maps.maps:
            return result
        gates = [maps.maps[word] for word in sorted(maps.maps) if word.startswith("attention")]
        by_class = {
            name: maps.maps.get(f"{PROBABILITY} {name}", each)
            for name, each in result.probabilities.items()
        }
        return replace(
            result,
            probability=maps.maps[PROBABILITY],
            attention=tuple(gates),
            probabilities=by_class,
        )

    def forget(self, reference: GridReference) -> None:
        """Drop the maps of a CT, and their layers."""
        viewer = self._viewer()
        if viewer is not None:
            for layer in self.layers(reference).values():
                viewer.layers.remove(layer)
        self._cts.pop(reference.id, None)

    def _add(self, viewer: ViewerModel, maps: _CtMaps, word: str, layer: Image) -> None:
        """Add a layer under the masks and under finer gates."""
        active = viewer.layers.selection.active
        maps.layers[word] = layer
        maps.shown.add(word)
        viewer.add_layer(layer)
        own = maps.placement.reference.id
        finer = [
            other
            for known, other in maps.layers.items()
            if word.startswith(PROBABILITY) or (not known.startswith(PROBABILITY) and known < word)
        ]
        above = [
            index
            for index, other in enumerate(viewer.layers)
            if other is not layer
            and (
                other in finer
                or (
                    isinstance(other, Labels)
                    and getattr(other.metadata.get(METADATA_KEY), "id", "") == own
                )
            )
        ]
        if above:
            viewer.layers.move(viewer.layers.index(layer), min(above))
        if active is not None:
            viewer.layers.selection.active = active


def empty_maps(found: FoundSlices) -> dict[str, ScalarMap]:
    """Make maps of which nothing but these slices has been computed yet."""
    maps = {}
    for word, part in found.maps.items():
        values = np.full(part.grid.shape, np.nan, part.values.dtype)
        values[found.map_rows] = part.values
        maps[word] = ScalarMap(values, part.grid)
    return maps


def _fading(word: str, looks: MapAppearance) -> Any:
    """Colour map that is transparent at 0, so that the CT shows where there is nothing."""
    name = "viridis" if word.startswith(PROBABILITY) else looks.colormap
    colors = AVAILABLE_COLORMAPS[name].map(np.linspace(0, 1, 256, dtype=np.float32)).copy()
    colors[:, 3] = np.linspace(0, 1, 256)
    return Colormap(colors, name=f"{name} fading")
