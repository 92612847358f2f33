"""Masks that the network carries from slice to slice, or from both ends into a gap."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from napari.utils.notifications import show_info

from napari_pancreas_seg._napari.correct.answers import CT, Answers, Prior
from napari_pancreas_seg._napari.correct.apply import Target, chosen_target, ct_under
from napari_pancreas_seg._napari.correct.editor import MaskEditor
from napari_pancreas_seg._napari.layers.placement import show_slice
from napari_pancreas_seg.arrays import Array, Spacing
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.mask import editing

FILL_TITLE = "Fill between slices"
NOTHING_TO_FILL = "no slice between others is empty; clear those that are to be filled."


@dataclass(frozen=True, eq=False)
class Carried:
    """A mask that was carried to slice `z`: `step` is 1 towards the head, -1 towards the feet."""

    z: int
    step: int
    go_on: Callable[[], None]

    def prior(self, target: Target) -> Prior:
        """The mask that it was carried from, as it is now."""
        return target.shown[self.z - self.step] == target.label, target.reference.grid.spacing[0]


class Carrying:
    """Proposes masks by those of other slices; a proposal that is accepted is carried on."""

    def __init__(self, editor: MaskEditor, answers: Answers) -> None:
        self._editor = editor
        self._answers = answers
        self._carried: Carried | None = None

    def carry(self, step: int) -> None:
        """Propose the mask of this slice for the next one, towards the head (1) or feet (-1)."""
        target = chosen_target(self._editor.session)
        self._carry(target, target.axial_slice_on(self._editor.session.viewer), step)

    def accepted_in(self, target: Target, z: int) -> Carried | None:
        """Accept what was carried to a slice of a label, without going on; None if nothing was."""
        proposal, carried = self._editor.proposal, self._carried
        if proposal is None or carried is None or carried.z != z:
            return None
        if proposal.then is not carried.go_on or not target.is_label_of(proposal.target):
            return None
        self._editor.accept_here()
        return carried

    def _carry(self, target: Target, z: int, step: int) -> None:
        editor, to = self._editor, z + step
        if not 0 <= to < len(target.shown):
            raise PancreasSegError("There is no slice to carry the mask to: this is the last one.")
        if not (target.shown[z] == target.label).any():
            raise PancreasSegError(f"There is no label {target.label} in this slice to carry on.")
        ct = ct_under(target, editor.session)

        def propose(mask: Array, spacing: Spacing) -> Array:
            after = mask.copy()
            after[to] = self._answers.mask_in(
                ct, to, target.shown[to], target.label, prior=(mask[z], spacing[0])
            )
            return after

        go_on = partial(self._carry_on, target, to, step)
        editor.correct(
            f"Carry to slice {to}",
            propose,
            propose=True,
            network=True,
            otherwise="the network would leave it as it is.",
            then=go_on,
        )
        self._carried = Carried(to, step, go_on)
        show_slice(editor.session.viewer, target.layer, target.reference, to)

    def _carry_on(self, carried: Target, z: int, step: int) -> None:
        try:
            target = chosen_target(self._editor.session)
            if not target.is_label_of(carried):
                raise PancreasSegError("Another label is chosen now: nothing is carried on.")
            self._carry(target, z, step)
        except PancreasSegError as error:
            show_info(error.in_window)

    def fill_between(self) -> None:
        """Propose to fill empty slices by the shapes of their ends.

        With the network, if that is set, the CT is open and no run has it: the shape guides it.
        """
        editor = self._editor
        target = chosen_target(editor.session)
        ct: CT | None = None
        if editor.setting("correct/fill_with_network") and editor.network_is_free:
            with suppress(PancreasSegError):  # without its CT, shapes are what there is
                ct = ct_under(target, editor.session)

        def fill(mask: Array, spacing: Spacing) -> Array:
            filled = editing.fill_between_slices(mask, spacing)
            if ct is None:
                return filled
            for lower, upper in pairwise(np.flatnonzero(mask.any(axis=(1, 2))).tolist()):
                for z in range(lower + 1, upper):
                    if not editor.proposing:  # dropped
                        return mask
                    prior = filled[z] != 0, min(z - lower, upper - z) * spacing[0]
                    own = target.shown[z]
                    filled[z] = self._answers.mask_in(ct, z, own, target.label, prior=prior)
            return filled

        editor.correct(
            FILL_TITLE, fill, propose=True, network=ct is not None, otherwise=NOTHING_TO_FILL
        )
