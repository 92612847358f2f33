"""Offers the corrections that windows and layers have left behind, and gives them back."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Labels, Layer
from qtpy.compat import isalive
from qtpy.QtCore import QObject, Signal

from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.autosave.store import (
    AutosaveStore,
    Unsaved,
    ct_key,
    read_unsaved,
    remove_unsaved,
)
from napari_pancreas_seg._napari.background import Background
from napari_pancreas_seg._napari.correct.mend import Mending
from napari_pancreas_seg._napari.correct.review import Review
from napari_pancreas_seg._napari.layers import placement
from napari_pancreas_seg._napari.layers.bridge import FILE_KEY, PANCREAS, labels_layer_data
from napari_pancreas_seg._napari.layers.placement import GridReference, Placement
from napari_pancreas_seg._napari.run.model_mask import ModelMask
from napari_pancreas_seg._napari.run.past_result import past_result
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import Strokes

RECOVERED = " (recovered)"

Restored = tuple[Labels, ModelMask | None, Mapping[str, Any]]
"""A mask, what the model wrote into it, and the notes that were kept with them."""


class Offers(QObject):
    """Masks whose window or layer is gone, for their CT.

    ``changed``: others are offered, or the chosen CT is known; ``taken(file)``: a file is left to
    who has asked for it; ``restoring(layer, file, corrects)`` and ``restored``: around its mask's
    coming; the last is the digest of the mask, in its file, that was corrected, or "".
    """

    changed = Signal()
    taken = Signal(object)
    restoring = Signal(object, object, str)
    restored = Signal()

    def __init__(
        self,
        session: Session,
        review: Review,
        mending: Mending,
        store: AutosaveStore,
        background: Background,
    ) -> None:
        super().__init__()
        self.left: list[Unsaved] = []
        self._session = session
        self._review = review
        self._mending = mending
        self._background = background
        self._keys: dict[str, str] = {}
        session.ct_chosen.connect(self._learn_key)
        background.submit(store.left_behind, lambda found: self._offer([*self.left, *found]))

    def of(self, reference: GridReference) -> list[Unsaved]:
        """List what was left behind of a CT, as soon as its key is known."""
        key = self._keys.get(reference.id)
        return [offer for offer in self.left if offer.key == key]

    def add(self, offer: Unsaved) -> None:
        self._offer([offer, *self.left])

    def forget(self, file: Path | None) -> None:
        if len(others := [one for one in self.left if one.file != file]) < len(self.left):
            self._offer(others)

    def restore(self, offer: Unsaved, ct: Placement) -> None:
        if offer not in self.left:
            return
        self._take(offer.file)  # at once: a second click restores nothing
        self._background.submit(
            lambda: _restored(offer.file, ct),
            lambda made: self._add(made, offer.file, ct.reference),
            lambda: self.add(offer),
        )

    def discard(self, offer: Unsaved) -> None:
        self._take(offer.file)
        remove_unsaved(offer.file)

    def knows(self, reference: GridReference) -> bool:
        """Whether the key of a CT is known, also once its voxels are gone."""
        return reference.id in self._keys

    def key(self, reference: GridReference, ct: Any) -> str:
        """The key of a CT by its layer's data, for a thread; see `ct_key`."""
        if not self.knows(reference):
            grid = reference.grid
            shown = reference.view(ct) if isinstance(ct, np.ndarray) else None
            self._keys[reference.id] = ct_key(shown, grid.shape, grid.affine)
        return self._keys[reference.id]

    def _offer(self, found: list[Unsaved]) -> None:
        self.left = found
        self._learn_key()
        self.changed.emit()

    def _take(self, file: Path) -> None:
        self.taken.emit(file)
        self.forget(file)

    def _add(self, made: Restored, file: Path, on: GridReference) -> None:
        (layer, model, notes), session = made, self._session
        if session.viewer is None:
            return
        self.restoring.emit(layer, file, notes.get("corrects", ""))
        if model is not None:
            session.masks[layer] = model
        before = session.mask
        if session.is_elsewhere(on):
            layer.visible = False  # until its CT is chosen again: `ChosenCt`
            compat.add_unselected(session.viewer, layer)
        else:
            session.viewer.add_layer(layer)
            if before is not None and placement.lies_on(before, on):
                before.visible = False  # the two would be seen as one
            session.mask = layer
            if notes.get("slice") is not None:
                placement.show_slice(session.viewer, layer, on, notes["slice"])
        self._review.set_reviewed(layer, notes.get("reviewed", ()))
        self._mending.recall(layer, _strokes(notes.get("strokes", ())))
        self._mending.recorded[layer] = {
            path: _strokes(counts) for path, counts in notes.get("recorded", {}).items()
        }
        self.restored.emit()

    def _learn_key(self) -> None:
        """Find the key of the chosen CT: it may be gone when a mask of it is painted on."""
        reference = self._session.reference
        if reference is None or self.knows(reference):
            return
        ct = self._session.ct_data(reference)

        def learned(_: object) -> None:
            if isalive(self) and self.left:  # the window may be gone
                self.changed.emit()

        self._background.submit(lambda: self.key(reference, ct), learned)


def _restored(file: Path, ct: Placement) -> Restored:
    """Make a mask of what was kept, for a thread."""
    (unsaved, masks), reference = read_unsaved(file), ct.reference
    notes, mask, model = unsaved.notes, masks["mask"], masks.get("model")
    data: Array = np.zeros(reference.layer_shape, mask.dtype)
    shown = reference.view(data)
    if shown.shape != mask.shape:
        raise PancreasSegError("The autosaved mask has another shape than this CT.")
    shown[...] = mask
    cuts = notes.get("cuts")
    facts: dict[str, Any] = {
        "labels": notes.get("labels") or PANCREAS,
        "expected_dice": tuple(notes.get("expected_dice", ())),
        "cuts": None if cuts is None else tuple(cuts),
    }
    layer = Layer.create(*labels_layer_data(data, ct, f"{unsaved.mask_name}{RECOVERED}", **facts))
    own = layer.metadata[placement.METADATA_KEY]
    if notes.get("drawn"):
        layer.metadata[placement.METADATA_KEY] = replace(reference, kind=placement.DRAWN)
    elif notes.get("opened"):  # and so none that was made on this CT, or is its case's own
        layer.metadata[placement.METADATA_KEY] = replace(own, id=uuid.uuid4().hex)
    layer.metadata[FILE_KEY] = notes.get("file")
    if model is None:
        return layer, None, notes
    result = past_result(notes.get("result", {}), model, reference.grid)
    return layer, ModelMask.holding(reference, model, result), notes


def _strokes(listed: Iterable[Sequence[int]]) -> Strokes:
    return {z: (added, removed) for z, added, removed in listed}
