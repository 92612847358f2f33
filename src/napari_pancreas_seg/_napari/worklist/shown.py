"""The case of a worklist that is on screen: its layers, and which of the masks is its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from napari.layers import Labels
from napari.utils.notifications import show_info
from qtpy.QtCore import QObject, Signal

from napari_pancreas_seg._napari.layers import placement
from napari_pancreas_seg._napari.layers.maps import MapLayers
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg._napari.worklist.case import LoadedCase, result_layer


class ShownCase(QObject):
    """Shows a case and takes it away; ``ct_leaves``: its CT is about to be removed."""

    ct_leaves = Signal()

    def __init__(self, session: Session, maps: MapLayers) -> None:
        super().__init__()
        self.loaded: LoadedCase | None = None
        self._session = session
        self._maps = maps
        self._drawn: list[Labels] = []  # by hand on the case that is shown, last chosen one last
        self._beside: list[Labels] = []  # of them those drawn before the case's mask was removed
        self._aside: dict[Path | None, list[Labels]] = {}  # other masks of CTs that were left
        session.mask_chosen.connect(self._on_mask_chosen)
        session.viewer.layers.events.inserted.connect(self._on_inserted)
        session.viewer.layers.events.removing.connect(self._on_removing)

    @property
    def mask(self) -> Labels | None:
        """The mask of the case: not one that was opened to compare with."""
        shown, chosen = self.loaded, self._session.mask
        if shown is None or self._session.viewer is None:
            return None
        own = None if chosen is None else placement.reference_of(chosen)
        if own is not None and own.id == shown.reference.id and own.kind != placement.DRAWN:
            return chosen
        if shown.mask is not None and shown.mask in self._session.layers:
            return shown.mask
        if found := self._session.result_layer(shown.reference):
            return found
        if shown.mask is not None:  # it was removed: what was drawn beside it is none
            return chosen if chosen in self._drawn and chosen not in self._beside else None
        return next(reversed(self._drawn), None)

    @property
    def slice(self) -> int | None:
        session, shown = self._session, self.loaded
        if shown is None or shown.ct not in session.layers:
            return None
        return placement.slice_on_screen(session.viewer, shown.ct, shown.reference)

    def show(self, loaded: LoadedCase) -> None:
        """Add the layers of a case; its mask is the chosen one."""
        session, viewer = self._session, self._session.viewer
        self._beside, self.loaded = [], loaded
        viewer.add_layer(loaded.ct)
        session.ct = loaded.ct
        for layer in self._aside.pop(loaded.reference.source.path, ()):
            if not session.is_opened(layer):  # made on this CT, whose id is another one now
                kind = layer.metadata[placement.METADATA_KEY].kind
                layer.metadata[placement.METADATA_KEY] = replace(loaded.reference, kind=kind)
            viewer.add_layer(layer)  # before the mask: the last one is chosen
        if loaded.mask is None and loaded.result is not None:
            loaded.mask, made = result_layer(loaded, loaded.result)
            session.masks[loaded.mask] = made
        if loaded.mask is not None:
            viewer.add_layer(loaded.mask)
            viewer.layers.selection.active = session.mask = loaded.mask
        if loaded.result is not None:
            self._maps.take(loaded.result, session.placement(loaded.ct), loaded.ct.name)

    def take_away(self) -> None:
        """Remove the layers of the case; other masks of it come back with it."""
        session, shown, mask = self._session, self.loaded, self.mask
        self.loaded = None
        if shown is None:
            return
        on, chosen = shown.reference, session.mask
        known = (one for one in session.layers if isinstance(one, Labels) and one is not mask)
        ours = (one for one in known if placement.METADATA_KEY in one.metadata)
        if aside := [one for one in ours if one in self._drawn or self._goes_with(one, on)]:
            self._aside[on.source.path] = aside
            names = " and ".join(f"'{layer.name}'" for layer in aside)
            show_info(f"Not written, and put aside until this case is shown again: {names}.")
        if chosen is not None and chosen not in (mask, *aside):
            show_info(f"'{chosen.name}' is not this case's mask and is not written.")
        self._maps.forget(on)
        for layer in session.layers:
            own = placement.reference_of(layer)
            same = own is not None and own.id == on.id
            goes = layer in (shown.ct, mask, *aside) or (same and not isinstance(layer, Labels))
            if goes and layer in session.layers:  # what showed the CT may have gone with it
                session.viewer.layers.remove(layer)
        if session.ct is shown.ct:  # while the panel is closed nobody else lets go of it
            session.ct = session.mask = None

    def _goes_with(self, layer: Labels, on: placement.GridReference) -> bool:
        """Whether a mask is the case's; with no other CT there, also one that lies on no grid."""
        lies = self._session.ct_of(layer)
        own = placement.reference_of(layer)
        stray = lies is None and own is not None and own.kind != placement.OUTLINE
        return lies is on or (stray and len(self._session.cts) == 1)

    def _on_inserted(self, event: Any) -> None:
        layer, on = event.value, None if self.loaded is None else self.loaded.reference
        if on is None or not isinstance(layer, Labels) or not placement.lies_on(layer, on):
            return
        own = placement.reference_of(layer)
        if own is None and self._session.reference is on:  # its shape may fit the next CT, too
            own = layer.metadata[placement.METADATA_KEY] = replace(on, kind=placement.DRAWN)
        if own is not None and (own.id, own.kind) == (on.id, placement.DRAWN):
            self._drawn.insert(0, layer)

    def _on_mask_chosen(self) -> None:
        self._drawn.sort(key=lambda layer: layer is self._session.mask)

    def _on_removing(self, event: Any) -> None:
        layer, shown = self._session.layers[event.index], self.loaded
        if shown is not None and layer is shown.ct:
            self.ct_leaves.emit()
        if shown is not None and layer is shown.mask:
            self._beside = list(self._drawn)
        self._drawn = [one for one in self._drawn if one is not layer]
