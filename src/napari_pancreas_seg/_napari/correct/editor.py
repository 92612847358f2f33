"""Edits a mask in a viewer: computes in a thread, then applies in one step of undo or proposes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from inspect import isgeneratorfunction
from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Labels
from napari.utils.notifications import show_info
from qtpy.QtCore import QObject, Signal

from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.background import Background
from napari_pancreas_seg._napari.correct.apply import (
    Target,
    apply_change,
    chosen_target,
    ct_under,
    outline_layer,
    preview_of,
)
from napari_pancreas_seg._napari.layers.bridge import labels_of, volume_of
from napari_pancreas_seg._napari.layers.placement import index_at
from napari_pancreas_seg._napari.run.network import Network
from napari_pancreas_seg._napari.run.worker import card_of
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg._napari.settings import Settings
from napari_pancreas_seg.arrays import Array, Spacing
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.classes import Classes
from napari_pancreas_seg.inference.maps import PROBABILITY
from napari_pancreas_seg.inference.result import Options
from napari_pancreas_seg.mask import editing
from napari_pancreas_seg.mask.postprocessing import largest_component, remove_holes

DEFAULTS: dict[str, Any] = {
    "correct/islands_mm3": 100.0,
    "correct/smooth_mm": 1.5,
    "correct/grow_mm": 1.0,
    "correct/limit_low_hu": -30.0,
    "correct/limit_high_hu": 180.0,
    "correct/fill_with_network": True,
}
"""Settings of the edits and their defaults."""
MEANWHILE = "the mask has changed meanwhile, ask again."


@dataclass(eq=False)
class Proposal:
    """An edit that is being computed, and then waits to be accepted or dropped.

    `made_on` is the model's mask that it is worked out on: with another one it would not fit.
    `then` is what follows once it is accepted.
    """

    title: str
    target: Target
    made_on: object
    then: Callable[[], None]
    network: bool
    wanted: bool  # as a proposal, not done at once
    dropped: bool = False  # before it was there
    at_once: bool = False  # accepted before it was there
    found: Any = None  # EditPreview, or None if nothing changes
    outline: Labels | None = None


class MaskEditor(QObject):
    """Edits the selected label of the chosen mask, one edit at a time.

    Some are proposed first, others done at once; each is one step of napari's own undo.
    ``changed``: `proposal` or `working` is another; ``applying(layer)``: an edit is about to be
    written.
    """

    changed = Signal()
    applying = Signal(object)

    def __init__(
        self, session: Session, settings: Settings, network: Network, background: Background
    ) -> None:
        super().__init__()
        self.proposal: Proposal | None = None
        self.session = session
        self._settings = settings
        self._network = network
        self._background = background
        self._asked: Proposal | None = None
        self._keys_before: list[tuple[weakref.ref[Any], dict[Any, Any]]] = []
        self._keys_of_tool: dict[str, Callable[..., object]] = {}
        session.viewer.layers.events.removed.connect(self._on_removed)
        session.ct_chosen.connect(self._on_chosen)
        session.mask_chosen.connect(self._on_chosen)

    @property
    def network_is_free(self) -> bool:
        return not self._network.in_use

    @property
    def working(self) -> str:
        return "" if self._asked is None else self._asked.title

    @property
    def accepts_early(self) -> bool:
        """Whether what is being worked out is to be applied without being shown first."""
        return self._asked is not None and self._asked.at_once

    @property
    def proposing(self) -> bool:
        """Whether something is proposed, or being worked out to be."""
        return self.proposal is not None or (self._asked is not None and self._asked.wanted)

    # -- what is done at once

    def keep_largest(self) -> None:
        self.correct("Keep the largest piece", lambda mask, _: largest_component(mask))

    def keep_piece_under_cursor(self) -> None:
        viewer, target = self.session.viewer, chosen_target(self.session)
        index = index_at(viewer, target.layer, target.reference, viewer.cursor.position)
        z, y, x = np.rint(index).astype(int).tolist()
        self.correct("Keep this piece", lambda mask, _: editing.keep_piece_at(mask, (z, y, x)))

    def remove_islands(self) -> None:
        title = "Remove islands below {:g} mm³"
        self._correct_by("correct/islands_mm3", title, editing.remove_islands)

    def fill_holes(self) -> None:
        self.correct("Fill holes", lambda mask, _: remove_holes(mask))

    def grow(self) -> None:
        self._correct_by("correct/grow_mm", "Grow by {:g} mm", editing.grow)

    def shrink(self) -> None:
        self._correct_by("correct/grow_mm", "Shrink by {:g} mm", editing.shrink)

    def clear_slice(self) -> None:
        z = chosen_target(self.session).axial_slice_on(self.session.viewer)
        self.correct(f"Clear slice {z}", lambda mask, _: editing.clear_slice(mask, z))

    # -- what is proposed first

    def smooth(self) -> None:
        title = "Smooth by {:g} mm"
        self._correct_by("correct/smooth_mm", title, editing.smooth, propose=True)

    def rerun_slice(self, model: str | Path = "default", options: Options | None = None) -> None:
        """Run the network on the slice on screen and propose what it finds, not post-processed."""
        target = chosen_target(self.session)
        data, reference = ct_under(target, self.session)
        z = target.axial_slice_on(self.session.viewer)
        options = replace(
            options or Options(), slices=(z, z + 1), first_slice=z, postprocess=False, box=None
        )
        process = self._network.process

        def run(mask: Array, _: Any) -> Array:
            ct = volume_of(data, reference)
            steps = process.iter_segment(ct, model, options, cancelled=lambda: not self.proposing)
            with closing(steps):
                found = next((s.slices for s in steps if s.slices and z in s.slices.z), None)
            if not self.proposing:
                return mask
            if found is None:
                raise PancreasSegError("The network was stopped before it had an answer.")
            plane, after = found.mask[found.z == z][0], mask.copy()
            several = any(word.startswith(f"{PROBABILITY} ") for word in found.maps)  # classes
            after[z] = plane == _value_in(target, card_of(model)) if several else plane != 0
            return after

        self.correct(f"Run slice {z} again", run, propose=True, network=True)

    def accept(self) -> None:
        """Apply what is proposed, in one step of undo; if it is not there yet, once it is."""
        if self._asked is not None and self._asked.wanted:
            self._asked.at_once = True
            self.changed.emit()
        elif (proposal := self.accept_here()) is not None:
            proposal.then()

    def accept_here(self) -> Proposal | None:
        """Apply what is proposed, without what would follow."""
        proposal = self._end_proposal()
        if proposal is not None:
            self._apply(proposal)
        return proposal

    def drop(self) -> None:
        if self._asked is not None and self._asked.wanted:
            self._asked.wanted, self._asked.dropped = False, True
            self._give_keys_back()
            self.changed.emit()
        self._end_proposal()

    # -- how

    def setting(self, name: str) -> Any:
        return self._settings.get(name, DEFAULTS[name])

    def correct(
        self,
        title: str,
        operate: Callable[[Array, Spacing], Array],
        *,
        propose: bool = False,
        network: bool = False,
        otherwise: str = "there is nothing to change.",
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Edit a mask (Z, Y, X) in a thread, then propose or apply; else show `otherwise`."""
        target = chosen_target(self.session)
        if self.session.viewer.dims.ndisplay == 2:  # in 3-D its surface is seen
            target.check_shown()
        if self.working:
            raise PancreasSegError(f"“{self.working}” is not done yet; wait a moment.")
        if network:
            self._network.claim(f"“{title}” is not done yet; wait a moment.")
        self._end_proposal()
        made_on = self._made_on(target.layer)
        asked = self._asked = Proposal(title, target, made_on, then, network, wanted=propose)
        if propose:
            self.session.viewer.layers.selection.active = target.layer
            self._take_answers()
        self.changed.emit()

        def work() -> None:
            before = target.mask()
            after = operate(before, target.reference.grid.spacing)
            asked.found = preview_of(before, after, target.label)
            if asked.found is not None and propose:
                # Made here, as it takes the window some time.
                name = f"{target.layer.name}: proposal"
                asked.outline = outline_layer(target, asked.found, name)

        self._background.submit(work, lambda _: self._worked_out(asked, otherwise), self._idle)

    def _correct_by(
        self, setting: str, title: str, operate: Callable[..., Array], propose: bool = False
    ) -> None:
        """Edit by a size that is one of the settings."""
        by, spacing = self.setting(setting), chosen_target(self.session).reference.grid.spacing
        voxel = " × ".join(f"{mm:.3g}" for mm in spacing[::-1])
        self.correct(
            title.format(by),
            lambda *given: operate(*given, by),
            propose=propose,
            otherwise=f"there is nothing to change (a voxel has {voxel} mm).",
        )

    def _worked_out(self, asked: Proposal, otherwise: str) -> None:
        self._idle()
        viewer, layer, title = self.session.viewer, asked.target.layer, asked.title
        if asked.dropped or viewer is None or layer not in viewer.layers:
            return
        if asked.found is None:
            show_info(f"{title}: {otherwise}")
        elif asked.made_on != self._made_on(layer):
            show_info(f"{title}: {MEANWHILE}")
        elif asked.outline is None or asked.at_once:
            self._apply(asked)
            asked.then()
        else:
            self._propose(asked, asked.outline)

    def _apply(self, proposal: Proposal) -> None:
        self.applying.emit(proposal.target.layer)
        if apply_change(proposal.target, proposal.found.change) == 0:
            show_info(f"{proposal.title}: other labels are in the way, nothing has changed.")

    def _made_on(self, layer: Labels) -> object:
        """Name the model's mask under a layer: another run or threshold makes another one."""
        mask = self.session.masks.get(layer)
        return None if mask is None else (mask, mask.result)

    def drop_stale(self, layer: object = None) -> None:
        """Drop what was proposed for a mask that a run or a threshold has replaced."""
        proposal = self.proposal
        if proposal is not None and proposal.made_on != self._made_on(proposal.target.layer):
            self.drop()
            show_info(f"{proposal.title}: {MEANWHILE}")

    def _on_chosen(self) -> None:
        """Drop what would be accepted out of sight."""
        proposal = self.proposal or self._asked
        if proposal is not None and self.proposing:
            self.drop()
            show_info(f"{proposal.title}: another CT or mask is chosen now, ask again.")

    def _idle(self) -> None:
        asked, self._asked = self._asked, None
        if asked is not None and asked.wanted:
            self._give_keys_back()
        if asked is not None and asked.network:
            self._network.release()
        self.changed.emit()

    def _propose(self, proposal: Proposal, outline: Labels) -> None:
        viewer = self.session.viewer
        viewer.dims.ndisplay = 2  # in 3-D an outline cannot be seen
        self.proposal = proposal
        compat.add_unselected(viewer, outline)
        self._take_answers()
        self.changed.emit()

    def _take_answers(self) -> None:
        self._take_keys({**self._keys_of_tool, "Enter": self.accept, "Escape": self.drop})

    def _end_proposal(self) -> Proposal | None:
        proposal, self.proposal = self.proposal, None
        if proposal is not None:
            self._give_keys_back()
            if proposal.outline in self.session.layers:
                compat.remove_quickly(self.session.viewer, proposal.outline)
            self.changed.emit()
        return proposal

    def use_keys(self, keys: dict[str, Callable[..., object]]) -> None:
        """Bind a tool's keys while no proposal is waited for; {} unbinds them."""
        self._keys_of_tool = keys
        if not self.proposing:
            self._give_keys_back()

    def _give_keys_back(self) -> None:
        self._take_keys({} if self.session.viewer is None else self._keys_of_tool)

    def _take_keys(self, keys: dict[str, Callable[..., object]]) -> None:
        """Bind keys for a while, before those of the layers: whichever layer is active."""
        for provider, before in self._keys_before:
            if (owner := provider()) is not None:
                owner.keymap = before
        self._keys_before.clear()
        for owner in (self.session.viewer, *self.session.layers) if keys else ():
            self._keys_before.append((weakref.ref(owner), dict(owner.keymap)))
            for key, do in keys.items():
                # Functions: napari asks for their names. A generator ends as the key is let go.
                bound = do if isgeneratorfunction(do) else lambda _, do=do: do()
                owner.bind_key(key, bound, overwrite=True)

    def _on_removed(self, event: Any) -> None:
        proposal = self.proposal
        if proposal is not None and event.value in (proposal.outline, proposal.target.layer):
            self._end_proposal()


def _value_in(target: Target, card: Mapping[str, Any]) -> int:
    """A label's value in a model's masks: by its name, or its own if it has none."""
    named = Classes.of(card).named if card else {}
    name = {value: name for name, value in labels_of(target.layer).items()}.get(target.label, "")
    if name and named and name not in named:
        raise PancreasSegError(f"The model does not know '{name}': select a label that it finds.")
    return named.get(name, target.label)
