"""The mask that there was before a run: what the run leaves of it, and how it comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from napari.layers import Labels, Layer

from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.layers.bridge import labels_of, mask_of
from napari_pancreas_seg._napari.layers.placement import GridReference, lies_on
from napari_pancreas_seg._napari.run.model_mask import ModelMask
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg.arrays import Array, Bytes
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import Options
from napari_pancreas_seg.volume import bounding_box


class EarlierMask:
    """The mask of a CT when a run begins; `layer` is None if there is none.

    `former`: of the last result for this CT the layer's data, in their own order, and what the
    model wrote into them (Z, Y, X); `labels`: its labels, name to value, which say what they are if
    it was `made` by a run.
    """

    def __init__(self, session: Session, reference: GridReference, options: Options) -> None:
        self.layer = session.result_layer(reference)
        self.former: tuple[Array, Array] | None = None
        self._values: Bytes | None = None  # of a restricted run, those that the model gives them
        self._session, self._reference, self._options = session, reference, options
        self._name, self._was_visible = "", True  # before it was put aside
        self._model: ModelMask | None = None  # what the model had written where the run writes now
        self._undo: tuple[Any, Any] | None = None
        if self.layer is not None:
            self.former = self.layer.data, session.masks[self.layer].copy
        chosen = session.mask if session.mask in session.layers else None
        here = not session.is_elsewhere(reference)
        if chosen is not None and here and lies_on(chosen, reference):
            if is_restricted(options):
                # What is kept elsewhere is the mask that is worked on, also one from a file.
                self.layer, self.former = chosen, (chosen.data, chosen.data)
            elif self.layer is None and not session.is_anothers(chosen):
                self.layer = chosen  # from a file: it stays if nothing is found, else is earlier
        self.labels = {} if self.layer is None else labels_of(self.layer)
        self.made = self.layer is not None and self.layer in session.masks

    def empty(self) -> None:
        """Take back what the model wrote, for this run to write there; `restore` knows it."""
        self._model = self._session.masks[self.layer]
        self._session.masks[self.layer] = self._model.emptied(self.layer)
        # Steps of undo hold values from before: they would bring them back in part.
        self._undo = compat.forget_undo(self.layer)

    def rest(self, wanted: Mapping[str, int]) -> Bytes | None:
        """What a restricted run leaves of it (Z, Y, X), with `wanted` values; for a thread."""
        if self.former is not None:
            mask = self._reference.view(mask_of(self.former[0]))
            self._values = values_in(mask, self.labels, wanted, any_name=not self.made)
        return self._rest_now()

    def renew_rest(self, labels: Labels) -> None:
        """Take over what was painted in it since the run was started."""
        if (rest := self._rest_now()) is not None:
            mask = self._session.masks[labels]
            mask.rest = rest
            mask.shown(labels)[...] = rest

    def restore(self, labels: Labels) -> bool:
        """Take back what the run wrote into a layer; True if something else is left there."""
        mask = self._session.masks[labels]
        try:
            earlier = self._now()
        except PancreasSegError:  # a label that fits no mask was painted there meanwhile
            earlier = mask.rest
        if self._model is None:
            mask.clear(labels, earlier)
        else:
            mask.restore(labels, self._model)
        compat.forget_undo(labels)
        if self._undo is not None:
            compat.recall_undo(labels, self._undo)
        before = 0 if earlier is None else earlier
        return self._model is not None or bool((mask.shown(labels) != before).any())

    @property
    def is_filled_anew(self) -> bool:
        """Whether the run writes where an earlier one did, and not into a layer of its own."""
        return self._model is not None

    def forget(self) -> None:
        """Let what the run has found stand."""
        self._model = self._undo = None

    def put_aside(self, labels: Labels | None) -> None:
        """Hide it for the run's mask, unless it is the same layer, and name it as earlier."""
        earlier = self.layer
        if earlier is not None and earlier is not labels:
            self._name, self._was_visible = earlier.name, is_shown(earlier, self._session)
            earlier.name, earlier.visible = f"{earlier.name} (earlier)", False
            self._session.aside.add(earlier)

    def put_back(self) -> None:
        if self._name and self.layer is not None:
            self.layer.name, self._name = self._name, ""
            show_again(self.layer, self._session, self._reference, self._was_visible)

    def _rest_now(self) -> Bytes | None:
        if (rest := self._now()) is not None:
            rest[self._options.region(rest.shape)] = 0
        return rest

    def _now(self) -> Bytes | None:
        """What a restricted run began with (Z, Y, X), as it is now, with the model's values."""
        if self.former is None or self._values is None:
            return None
        return relabelled(self._reference.view(mask_of(self.former[0])), self._values)


class ChosenBefore:
    """The mask that is chosen until a run fills another one: it is chosen again if that goes."""

    def __init__(self, session: Session, reference: GridReference) -> None:
        self._session, self._reference = session, reference
        self._layer: Any = None
        self._seen: dict[Labels, bool] = {}  # which masks were shown before
        self.note()

    def note(self) -> None:
        """Look which mask is chosen; while another CT is worked on, that is none of this one."""
        mask = self._session.mask
        if mask in self._session.layers and not self._session.is_elsewhere(self._reference):
            self._layer = mask

    def give_way(self, labels: Labels) -> None:
        """Choose the mask that a run fills, and hide this one: they would be seen as one."""
        session, viewer, before = self._session, self._session.viewer, self._layer
        elsewhere = session.is_elsewhere(self._reference)
        if before in (None, labels) or labels not in viewer.layers or elsewhere:
            return
        self._seen[labels] = is_shown(labels, session)
        if before not in session.aside:  # as the earlier mask is by now
            self._seen[before] = is_shown(before, session)
            before.visible = False
            session.aside.add(before)
        labels.visible = True
        session.mask = viewer.layers.selection.active = labels

    def come_back(self, *, choose: bool) -> None:
        for layer, seen in self._seen.items():
            show_again(layer, self._session, self._reference, seen)
        session, before = self._session, self._layer
        if choose and before in session.layers and not session.is_elsewhere(self._reference):
            session.mask = session.viewer.layers.selection.active = before

    def forget(self) -> None:
        self._layer, self._seen = None, {}


def is_shown(layer: Layer, session: Session) -> bool:
    """Whether a mask is visible, or will be once its CT is chosen again, or 3-D ends."""
    return layer.visible or layer in session.away or layer in session.behind


def show_again(layer: Layer, session: Session, reference: GridReference, visible: bool) -> None:
    """Show a mask as it was before a run, over its own CT alone."""
    session.aside.discard(layer)
    elsewhere = session.is_elsewhere(reference)
    layer.visible = visible and not elsewhere and layer not in session.behind
    if visible and elsewhere:
        session.away.add(layer)  # it is shown with its CT: `ChosenCt`
    else:
        session.away.discard(layer)


def is_restricted(options: Options) -> bool:
    return options.slices is not None or options.box is not None


def values_in(
    mask: Array, named: Mapping[str, int], wanted: Mapping[str, int], *, any_name: bool
) -> Bytes:
    """The model's value of each label of a mask, by its name; refused where the model has none.

    A single label may have `any_name`, such as "Segment_1", and any value.
    """
    values, box = np.arange(256, dtype=np.uint8), bounding_box(mask)
    labels = [] if box is None else [int(value) for value in np.unique(mask[box]) if value]
    names, unknown = {value: name for name, value in named.items()}, []
    alone = any_name and len(labels) == 1 and len(named) < 2
    for value in labels:
        name = names.get(value) or (next(iter(named), "") if alone else "")
        if name in wanted:
            values[value] = wanted[name]
        elif alone and len(wanted) == 1:
            values[value] = next(iter(wanted.values()))
        elif name or value not in wanted.values():
            unknown.append(f"'{name}'" if name else str(value))
    if unknown:
        raise PancreasSegError(
            f"The mask holds labels that this model does not know ({', '.join(unknown)}), and a "
            "run of a part would mix them with its own: run on the whole CT, or choose another "
            "mask."
        )
    return values


def relabelled(mask: Bytes, values: Bytes) -> Bytes:
    """A mask with other values in place of its labels; itself if they are the same."""
    return mask if np.array_equal(values, np.arange(len(values))) else values[mask]
