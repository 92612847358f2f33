"""The chosen CT on screen, with what belongs to it, and nothing of the other CTs."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
from napari.components.dims import RangeTuple
from napari.layers import Image, Labels, Layer
from napari.utils.notifications import show_info
from qtpy.compat import isalive
from qtpy.QtCore import QObject, QTimer

from napari_pancreas_seg._napari.layers.bridge import HU_RANGE, color_of, label_colors, only_label
from napari_pancreas_seg._napari.layers.foreign import bind_drawn
from napari_pancreas_seg._napari.layers.placement import (
    METADATA_KEY,
    OUTLINE,
    GridReference,
    is_map,
    lies_on,
    reference_of,
    show_slice,
    slice_on_screen,
    with_all_axes,
)
from napari_pancreas_seg._napari.session import Session


class ChosenCt(QObject):
    """Shows the CT that is chosen; keeps masks above their CT, each in a colour of its own."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._before: weakref.ref[Image] | None = None
        self._slices: weakref.WeakKeyDictionary[Image, int] = weakref.WeakKeyDictionary()
        self._hidden = session.away
        session.ct_chosen.connect(self._on_ct)
        session.mask_changed.connect(self._on_mask_changed)
        session.viewer.dims.events.range.connect(self._fit_sliders)
        session.viewer.layers.events.inserted.connect(self._on_inserted)
        for ct in filter(session.known_ct, session.layers):
            ct.contrast_limits_range = HU_RANGE

    def _on_ct(self) -> None:
        session, viewer, ct = self._session, self._session.viewer, self._session.ct
        before = None if self._before is None else self._before()
        self._before = None if ct is None else weakref.ref(ct)
        reference = session.reference
        if ct is None or reference is None:
            return
        if before is not None and before in viewer.layers:
            seen = slice_on_screen(viewer, before, session.placement(before).reference)
            if seen is not None:
                self._slices[before] = seen
        others = [layer for layer in viewer.layers if self._is_anothers(layer, reference)]
        if not others and before is None:
            return  # there is nothing else: how it is shown is the user's
        for layer in others:  # first: a mask keeps its colour where no other of that is seen
            if layer.visible:
                self._hidden.add(layer)
                layer.visible = False
        for layer in viewer.layers:
            if layer not in others and layer in self._hidden:
                self._hidden.discard(layer)
                layer.visible = layer not in session.aside
        ct.visible = True
        self._fit_sliders()
        viewer.reset_view(layers=with_all_axes(viewer, [ct]))
        middle = reference.grid.shape[0] // 2
        show_slice(viewer, ct, reference, self._slices.get(ct, middle))

    def _fit_sliders(self, event: Any = None) -> None:
        """Let a slider make one step a row of the CT: napari counts finer, hidden layers' rows."""
        viewer, ct = self._session.viewer, self._session.ct
        if not isalive(self) or viewer is None or ct is None or ct not in viewer.layers:
            return
        seen = [one for one in viewer.layers if one.visible and not is_map(one)]
        own, extent = (viewer.layers.get_extent(layers) for layers in ([ct], [ct, *seen]))
        if not own.units == extent.units == viewer.dims.units:
            return
        ends = (*extent.world[:, -3:], own.step[-3:])
        wanted = (*viewer.dims.range[:-3], *map(RangeTuple, *ends))
        if not np.allclose(wanted, viewer.dims.range):
            viewer.dims.range = wanted

    def _is_anothers(self, layer: Layer, chosen: GridReference) -> bool:
        session = self._session
        if (ct := session.known_ct(layer)) is not None:
            return ct.id != chosen.id
        on_chosen = isinstance(layer, Labels) and lies_on(layer, chosen)
        if isinstance(layer, Labels) and not on_chosen:
            lies = session.ct_of(layer)
            return lies is not None and lies.id != chosen.id
        own = reference_of(layer) if on_chosen else layer.metadata.get(METADATA_KEY)
        known = {one.id for one in map(session.known_ct, session.layers) if one is not None}
        if is_map(layer):
            known |= session.seen_cts  # it stays behind a CT that is removed
        return isinstance(own, GridReference) and own.id in known - {chosen.id}

    # -- masks

    def _on_inserted(self, event: Any) -> None:
        layer = event.value
        layer.events.visible.connect(self._fit_sliders)
        layer.events.visible.connect(self._on_visible)
        reference, chosen = reference_of(layer), self._session.reference
        if chosen is not None and self._is_anothers(layer, chosen):
            if layer.visible and isinstance(layer, Labels) and self._session.is_opened(layer):
                layer.visible = False
                on = self._session.ct_of(layer)
                if on is not None:
                    show_info(f"'{layer.name}' lies on '{on.name}': choose that CT to see it.")
            if not layer.visible:
                self._hidden.add(layer)  # it is to be shown with its CT
        if isinstance(layer, Labels) and (reference is None or reference.kind != OUTLINE):
            self._give_colour(layer)
            if layer.selected_label == 1 and isinstance(layer.data, np.ndarray):
                layer.selected_label = only_label(layer.data)
        elif isinstance(layer, Image) and reference is not None and reference.kind == "ct":
            # A reader can set the window but not what its slider spans.
            layer.contrast_limits_range = HU_RANGE
            # Not while napari is still at it.
            QTimer.singleShot(0, lambda: self._lower(layer, reference))

    def _on_mask_changed(self, layer: Labels) -> None:
        """Let a mask that is drawn on the chosen CT be of that one, not of any of its shape."""
        reference = self._session.reference
        if layer is self._session.mask and reference is not None:
            bind_drawn([layer], reference)

    def _on_visible(self, event: Any) -> None:
        layer = event.source
        if layer.visible:
            self._session.aside.discard(layer)
            if isinstance(layer, Labels):
                self._give_colour(layer)

    def _lower(self, ct: Image, reference: GridReference) -> None:
        viewer = self._session.viewer
        if not isalive(self) or viewer is None or ct not in viewer.layers:
            return
        places = enumerate(viewer.layers)
        masks = [n for n, one in places if isinstance(one, Labels) and lies_on(one, reference)]
        if masks and min(masks) < viewer.layers.index(ct):
            viewer.layers.move(viewer.layers.index(ct), min(masks))

    def _give_colour(self, layer: Labels) -> None:
        """Give a mask that is seen a colour that no other one has that is seen."""
        others = [one for one in self._session.layers if isinstance(one, Labels) and one.visible]
        same = [one for one in others if one is not layer and one.data.shape == layer.data.shape]
        taken = {_first_colour(other) for other in same if layer.visible}
        shift = 0
        while _first_colour(layer) in taken and (shift := shift + 1) <= len(taken):
            layer.colormap = label_colors(shift)


def _first_colour(layer: Labels) -> tuple[float, ...]:
    return tuple(np.round(color_of(layer), 3).tolist())
