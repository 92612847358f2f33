"""The state of one viewer, and its signals: which CT, which mask, what the model wrote where."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer
from qtpy.QtCore import QObject, Signal

from napari_pancreas_seg._napari.layers.bridge import original_of
from napari_pancreas_seg._napari.layers.placement import (
    OUTLINE,
    GridReference,
    Placement,
    lies_on,
    placement_of,
    reference_of,
    why_not_ct,
)
from napari_pancreas_seg._napari.run.model_mask import ModelMask
from napari_pancreas_seg.inference.result import Segmentation


class Session(QObject):
    """What the services of a viewer share.

    Signals, all in the GUI thread: ``ct_chosen`` and ``mask_chosen`` when `ct` or `mask` is
    another layer than before; ``mask_changed(layer)`` soon after the voxels of a mask have
    changed, whoever changed them; ``cuts_moved(layer)`` when a person has moved its cuts.
    """

    ct_chosen = Signal()
    mask_chosen = Signal()
    mask_changed = Signal(object)
    cuts_moved = Signal(object)

    def __init__(self, viewer: ViewerModel) -> None:
        super().__init__()
        self.masks: WeakKeyDictionary[Layer, ModelMask] = WeakKeyDictionary()
        """The model's mask of each layer that a run wrote into."""
        self.aside: weakref.WeakSet[Layer] = weakref.WeakSet()
        """Masks that a run has hidden: they stay so until somebody shows or chooses them."""
        self.away: weakref.WeakSet[Layer] = weakref.WeakSet()
        """Layers that are hidden because another CT than theirs is chosen."""
        self.behind: weakref.WeakSet[Layer] = weakref.WeakSet()  # hidden while 3-D is shown
        self._viewer = weakref.ref(viewer)
        self._ct: weakref.ref[Image] | None = None
        self._mask: weakref.ref[Labels] | None = None
        self._last_masks: WeakKeyDictionary[Image, weakref.ref[Labels]] = WeakKeyDictionary()
        self._foreign: WeakKeyDictionary[Layer, GridReference] = WeakKeyDictionary()
        self.seen_cts: set[str] = set()  # ids, of those that were removed too
        self._copied: WeakKeyDictionary[Layer, Segmentation] = WeakKeyDictionary()
        viewer.layers.events.inserted.connect(self._on_inserted)

    @property
    def viewer(self) -> Any:
        """The viewer; None once it is gone, for which only what comes late has to look."""
        return self._viewer()

    @property
    def layers(self) -> list[Layer]:
        """The viewer's layers, from the lowest to the topmost."""
        return [] if (viewer := self._viewer()) is None else list(viewer.layers)

    @property
    def cts(self) -> list[Image]:
        """The layers that can be a CT, the maps and masks of one left out."""
        own = ((layer, reference_of(layer)) for layer in self.layers)
        fitting = [layer for layer, known in own if known is None or known.kind == "ct"]
        return [layer for layer in fitting if why_not_ct(layer) is None]

    @property
    def ct(self) -> Image | None:
        return None if self._ct is None else self._ct()

    @ct.setter
    def ct(self, layer: Image | None) -> None:
        if layer is not self.ct:
            self._ct = None if layer is None else weakref.ref(layer)
            self.ct_chosen.emit()

    @property
    def mask(self) -> Labels | None:
        """The mask that is corrected, measured and exported."""
        return None if self._mask is None else self._mask()

    @mask.setter
    def mask(self, layer: Labels | None) -> None:
        if layer is not self.mask:
            self._mask = None if layer is None else weakref.ref(layer)
            if layer is not None:
                self.aside.discard(layer)
            if layer is not None and self.ct is not None:
                self._last_masks[self.ct] = weakref.ref(layer)
            self.mask_chosen.emit()

    @property
    def model_mask(self) -> ModelMask | None:
        """What the model wrote into the chosen mask."""
        return None if self.mask is None else self.masks.get(self.mask)

    @property
    def last_mask(self) -> Labels | None:
        """The mask that was chosen when the chosen CT was last worked on."""
        return None if self.ct is None else self._last_masks.get(self.ct, lambda: None)()

    @property
    def reference(self) -> GridReference | None:
        return None if self.ct is None else self.placement(self.ct).reference

    def placement(self, layer: Image) -> Placement:
        """How a CT lies in its layer; the same CT keeps the same id."""
        placement = placement_of(layer, self._foreign.get(layer))
        if reference_of(layer) is None:
            self._foreign[layer] = placement.reference
        self.seen_cts.add(placement.reference.id)
        return placement

    # -- what belongs to which CT

    def known_ct(self, layer: Layer) -> GridReference | None:
        """Grid of a layer that is a CT: one that we opened, or that was chosen as one before."""
        if (own := reference_of(layer)) is not None and own.kind == "ct":
            return own
        return self._foreign.get(layer) if isinstance(layer, Image) else None

    def ct_of(self, layer: Labels) -> GridReference | None:
        """Grid of the CT that a mask belongs to; None if no such CT is known.

        The one it was made on, even if that was removed since; for a mask that was opened or
        drawn the chosen CT if it lies on that, else the only one that it lies on.
        """
        own, chosen = reference_of(layer), self.reference
        if own is not None and own.kind == OUTLINE:
            return None
        known = [chosen, *map(reference_of, self.layers)]
        cts = {one.id: one for one in known[::-1] if one is not None and one.kind == "ct"}
        if own is not None and own.id in cts:
            return cts[own.id]
        if own is not None and (layer in self.masks or own.id in self.seen_cts):
            return own
        fitting = [one for one in cts.values() if lies_on(layer, one)]
        if chosen in fitting:
            return chosen
        return fitting[0] if len(fitting) == 1 else None

    def is_opened(self, layer: Labels) -> bool:
        """Whether a mask comes from a file, and was not made here, by a run or by hand."""
        own = reference_of(layer)
        return own is not None and layer not in self.masks and own.id not in self.seen_cts

    def is_anothers(self, layer: Labels) -> bool:
        """Whether a mask was made on another CT than the chosen one, which may have its grid."""
        on = self.ct_of(layer)
        return on is not None and self.is_elsewhere(on)

    def ct_data(self, reference: GridReference) -> Any:
        """Data of a CT in its layer's order; None if it is not in the viewer."""
        for layer in self.layers:
            if (known := self.known_ct(layer)) is not None and known.id == reference.id:
                return layer.data
        return None

    def is_elsewhere(self, reference: GridReference) -> bool:
        """Whether another CT is worked on: what is found in this one is not to be seen over it."""
        return self.reference is not None and self.reference.id != reference.id

    def mask_layers(self, reference: GridReference) -> list[Labels]:
        """The labels layers that can be a mask of a CT: those of its shape, on its grid."""
        return [
            layer
            for layer in self.layers
            if isinstance(layer, Labels) and not layer.multiscale and lies_on(layer, reference)
        ]

    def result_layer(self, reference: GridReference) -> Labels | None:
        """The newest labels layer that a run on this CT has filled."""
        for layer in reversed(self.layers):
            mask = self.masks.get(layer)
            if mask is not None and mask.reference.id == reference.id and mask.fits(layer):
                return layer
        return None

    def result_of(self, layer: Layer) -> Segmentation | None:
        """The result of the run that filled a mask, or the one that it is a duplicate of."""
        mask = self.masks.get(layer)
        if mask is None:
            return self._copied.get(layer)
        # As it is with the threshold of now: what differs from it is a person's.
        return None if mask.result is None else replace(mask.result, mask=mask.copy)

    def _on_inserted(self, event: Any) -> None:
        """Keep the result of a duplicate: its original may be filled anew."""
        original = original_of(event.value)
        if original is not None and (result := self.result_of(original)) is not None:
            self._copied.setdefault(event.value, replace(result, mask=result.mask.copy()))
