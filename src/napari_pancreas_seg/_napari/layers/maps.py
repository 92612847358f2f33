"""Probability and attention of the viewer's CTs: arrays that fill, and one layer that shows one."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from napari.layers import Image, Labels, Layer
from napari.utils.colormaps import AVAILABLE_COLORMAPS, Colormap

from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.layers.bridge import map_layer_data
from napari_pancreas_seg._napari.layers.placement import GridReference, Placement, belongs_to
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg._napari.settings import Settings, preference
from napari_pancreas_seg.inference.maps import best_gate
from napari_pancreas_seg.inference.result import FoundSlices, ScalarMap, Segmentation

COLOR_MAPS = ("inferno", "magma", "viridis", "turbo", "gray")
PROBABILITY = "probability"
"""Name of the map of the network's output; the gates are ``"attention 1"`` (the finest)
and so on, the classes of a network that knows several ``"probability liver"``."""
BEST = "best"
"""Stands for the gate that tells the pancreas best from what is around it."""
OUTLINE_MM = 1.5
"""How wide the outline of a mask is while a map is shown: filled it would hide that."""


@dataclass(frozen=True)
class MapAppearance:
    """How maps are shown: one of them (`BEST`, its name, or none), its opacity, gates' colours."""

    shown: str = BEST
    opacity: float = 0.6
    colormap: str = COLOR_MAPS[0]

    @classmethod
    def remembered(cls, settings: Settings) -> MapAppearance:
        shown = settings.get("attention/map", cls.shown)
        opacity = min(max(settings.get("attention/opacity", cls.opacity), 0.0), 1.0)
        colormap = settings.get("attention/colormap", cls.colormap)
        return cls(shown, opacity, colormap if colormap in COLOR_MAPS else cls.colormap)

    def remember(self, settings: Settings) -> None:
        settings.set("attention/map", self.shown)
        settings.set("attention/opacity", self.opacity)
        settings.set("attention/colormap", self.colormap)


@dataclass(eq=False)
class _CtMaps:
    placement: Placement
    name: str
    maps: dict[str, ScalarMap]
    best: str = ""
    hidden: bool = False
    layers: weakref.WeakValueDictionary[str, Image] = field(
        default_factory=weakref.WeakValueDictionary
    )


def make_layer(
    scalar_map: ScalarMap, word: str, placement: Placement, name: str, appearance: MapAppearance
) -> Image:
    """Make the layer of a map; the first one imports much, so rather in a thread."""
    title, colormap = f"{name} {word}", _fading(word, appearance)
    layer: Image = Layer.create(
        *map_layer_data(scalar_map, placement, title, colormap=colormap, visible=True)
    )
    layer.opacity = appearance.opacity
    return layer


class MapLayers:
    def __init__(self, session: Session, settings: Settings) -> None:
        self._session = session
        self._settings = settings
        self._cts: dict[str, _CtMaps] = {}
        self._outlined: weakref.WeakSet[Layer] = weakref.WeakSet()
        self._aside: weakref.WeakSet[Layer] = weakref.WeakSet()

    @property
    def appearance(self) -> MapAppearance:
        return MapAppearance.remembered(self._settings)

    @appearance.setter
    def appearance(self, appearance: MapAppearance) -> None:
        appearance.remember(self._settings)
        for maps in self._cts.values():
            for word, layer in maps.layers.items():
                layer.opacity = appearance.opacity
                layer.colormap = _fading(word, appearance)

    def known(self, reference: GridReference) -> list[str]:
        maps = self._cts.get(reference.id)
        return [] if maps is None else list(maps.maps)

    def layers(self, reference: GridReference) -> dict[str, Image]:
        maps, shown = self._cts.get(reference.id), self._session.layers
        found = () if maps is None else maps.layers.items()
        return {word: layer for word, layer in found if layer in shown}

    def wanted(self, reference: GridReference) -> str:
        """The map of a CT that is to be shown; empty for none, and while it is not known."""
        maps, shown = self._cts.get(reference.id), self.appearance.shown
        return (maps.best if maps is not None else "") if shown == BEST else shown

    def begin(self, maps: dict[str, ScalarMap], placement: Placement, name: str) -> object:
        """Take the maps of a new run in place of a former one's; give those, for `restore`."""
        reference = placement.reference
        self.bring_back()
        former = self._cts.get(reference.id)
        before = self.layers(reference)
        # A map that the user has hidden in the layer list stays so.
        seen = any(self.is_shown(layer) for layer in before.values())
        hidden = bool(before) and not (seen or self._session.is_elsewhere(reference))
        self._remove(before)
        self._forget_removed()
        known = self._cts[reference.id] = _CtMaps(placement, name, maps, hidden=hidden)
        if not hidden and (word := self.wanted(reference)) in maps:
            self._show_only(known, word)  # the gate that tells most is not known yet: `add`
        return former

    def take(self, result: Segmentation, placement: Placement, name: str) -> None:
        """Take the maps of a result that came without a run in the window, and show one."""
        reference, by_class = placement.reference, result.probabilities.items()
        maps = {f"attention {n}": gate for n, gate in enumerate(result.attention, start=1)}
        maps |= {PROBABILITY: result.probability}
        maps |= {f"{PROBABILITY} {one}": probability for one, probability in by_class}
        self.begin(maps, placement, name)
        known = self._cts[reference.id]
        known.best = best_gate(maps, result.mask, reference.grid, result.model)
        if (word := self.wanted(reference)) in maps:
            self._show_only(known, word)

    def add(self, reference: GridReference, word: str, layer: Image) -> None:
        """Show the gate that tells most, now that it is known, unless another map is wanted."""
        maps = self._cts.get(reference.id)
        if maps is None:
            return
        maps.best = word
        new = word == self.wanted(reference) and word not in self.layers(reference)
        if new and not (maps.hidden and self._session.is_elsewhere(reference)):
            self._show_only(maps, word, layer)
            self._see(layer, self.is_shown(layer) and not maps.hidden)

    def restore(self, reference: GridReference, former: object) -> None:
        self.forget(reference)
        if isinstance(former, _CtMaps):
            self._cts[reference.id] = former
            if (word := self.wanted(reference)) in former.maps:
                self._show_only(former, word)

    def fill(self, reference: GridReference, found: FoundSlices) -> None:
        maps = self._cts.get(reference.id)
        if maps is not None:
            for word, part in found.maps.items():
                maps.maps[word].values[found.rows] = part.values

    def redraw(self, reference: GridReference) -> None:
        for layer in self.layers(reference).values():
            if layer.visible:
                layer.refresh(thumbnail=False, highlight=False, extent=False)

    def show(self, reference: GridReference | None, word: str, visible: bool = True) -> None:
        """Show a map in place of another, now or once it is there; or show none."""
        self.appearance = replace(self.appearance, shown=word if visible else "")
        self._aside.clear()
        maps = None if reference is None else self._cts.get(reference.id)
        if maps is None or reference is None:
            return
        word = self.wanted(reference)
        if visible and word in maps.maps:
            self._show_only(maps, word)
        elif not visible:
            for layer in self.layers(reference).values():
                self._see(layer, False)
            self._draw_masks(reference, outlined=False)

    def outline(self, reference: GridReference) -> None:
        """Draw a mask as an outline that came after the map that is shown."""
        if any(map(self.is_shown, self.layers(reference).values())):
            self._draw_masks(reference, outlined=True)

    def is_shown(self, layer: Image) -> bool:
        """Whether a map is visible, or will be after 3-D."""
        return layer.visible or layer in self._session.behind

    def _see(self, layer: Image, visible: bool) -> None:
        """Show or hide a map; in 3-D, where it would be rendered over the mask, after that."""
        behind = self._session.behind
        layer.visible = visible and not behind
        if visible and behind:
            behind.add(layer)
        else:
            behind.discard(layer)

    def set_aside(self, reference: GridReference) -> None:
        """Hide the map of a CT, as long as a person must see the tissue below it."""
        for layer in self.layers(reference).values():
            if layer.visible:
                self._aside.add(layer)
                layer.visible = False

    def bring_back(self) -> None:
        """Show what was set aside, unless another map was chosen meanwhile."""
        for layer in self._aside & set(self._session.layers):
            layer.visible = True
        self._aside.clear()

    def complete(self, reference: GridReference, result: Segmentation) -> Segmentation:
        """Let a result hold the very arrays that are shown, with its own values.

        They were filled while the network first looked; what it saw later is in the result alone.
        """
        known = self._cts.get(reference.id)
        if known is None or PROBABILITY not in known.maps:
            return result
        maps, found = known.maps, result.probabilities.items()
        by_class = {name: maps.get(f"{PROBABILITY} {name}", each) for name, each in found}
        np.copyto(maps[PROBABILITY].values, result.probability.values)
        for name, shown in by_class.items():
            np.copyto(shown.values, result.probabilities[name].values)
        gates = tuple(maps[word] for word in sorted(maps) if not word.startswith(PROBABILITY))
        return replace(
            result, probability=maps[PROBABILITY], attention=gates, probabilities=by_class
        )

    def forget(self, reference: GridReference) -> None:
        self._remove(self.layers(reference))
        self._cts.pop(reference.id, None)

    def _forget_removed(self) -> None:
        """Let go of the maps of CTs that are not in the viewer any more, nor any map of theirs."""
        known = filter(None, map(self._session.known_ct, self._session.layers))
        there = {reference.id for reference in known}
        for ct, maps in list(self._cts.items()):
            if ct not in there and not self.layers(maps.placement.reference):
                del self._cts[ct]

    def _remove(self, layers: Mapping[str, Layer]) -> None:
        for layer in layers.values():
            self._session.viewer.layers.remove(layer)

    def _show_only(self, maps: _CtMaps, word: str, layer: Image | None = None) -> None:
        viewer, reference = self._session.viewer, maps.placement.reference
        if viewer is None:
            return
        layers, elsewhere = self.layers(reference), self._session.is_elsewhere(reference)
        if elsewhere:
            self._remove(layers)  # or all would be shown with their CT
            layers = {}
        for known, other in layers.items():
            self._see(other, known == word)
        if word not in layers:
            if layer is None:
                appearance = self.appearance
                layer = make_layer(maps.maps[word], word, maps.placement, maps.name, appearance)
            maps.layers[word] = layer
            self._see(layer, not elsewhere)
            places = enumerate(viewer.layers)
            masks = [place for place, other in places if _is_mask_of(other, reference)]
            compat.add_unselected(viewer, layer, min(masks, default=None))
        self._draw_masks(reference, outlined=True)

    def _draw_masks(self, reference: GridReference, *, outlined: bool) -> None:
        """Draw the masks of a CT as outlines, or filled; not those whose user chose otherwise."""
        width = max(1, round(OUTLINE_MM / reference.grid.spacing[-1]))
        wished = preference("outline")  # maybe not any more, while a map is shown
        for layer in self._session.layers:
            if not _is_mask_of(layer, reference) or layer.contour not in (0, width):
                continue
            if outlined and wished:
                layer.contour = width
                self._outlined.add(layer)
            elif not outlined and (wished or layer in self._outlined):
                layer.contour = 0
                self._outlined.discard(layer)


def empty_maps(found: FoundSlices) -> dict[str, ScalarMap]:
    """Make maps of which nothing but these slices has been computed yet."""
    maps = {}
    for word, part in found.maps.items():
        values = np.full(part.grid.shape, np.nan, part.values.dtype)
        values[found.rows] = part.values
        maps[word] = ScalarMap(values, part.grid)
    return maps


def _is_mask_of(layer: Layer, reference: GridReference) -> bool:
    return isinstance(layer, Labels) and belongs_to(layer, reference)


def _fading(word: str, appearance: MapAppearance) -> Any:
    """Colour map that is transparent at 0, so that the CT shows where there is nothing."""
    name = "viridis" if word.startswith(PROBABILITY) else appearance.colormap
    colors = AVAILABLE_COLORMAPS[name].map(np.linspace(0, 1, 256, dtype=np.float32)).copy()
    colors[:, 3] = np.linspace(0, 1, 256)
    return Colormap(colors, name=f"{name} fading")
