"""A new threshold, or other post-processing, under what a person has painted; no second run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from napari.layers import Labels
from napari.utils.notifications import show_info
from qtpy.QtCore import QObject, Signal

from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.background import Background, Newest
from napari_pancreas_seg._napari.run.model_mask import ModelMask
from napari_pancreas_seg._napari.run.past_result import PastResult
from napari_pancreas_seg._napari.run.runs import Runs
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg.inference.finishing import remask
from napari_pancreas_seg.inference.result import Segmentation
from napari_pancreas_seg.volume import box_around

UNDO_GOES = "The mask is made anew under your corrections: they stay, but undo ends here."
Made = tuple[Segmentation, Any, Any] | None
"""The result of now, its mask (Z, Y, X), and the box to write; None if it was taken back."""


class Rethreshold(QObject):
    """Makes masks anew from their probability while a slider is dragged, in a thread.

    ``applying(layer)`` and ``done(layer)``: before and after a mask is another.
    """

    applying = Signal(object)
    done = Signal(object)

    def __init__(self, session: Session, runs: Runs, background: Background) -> None:
        super().__init__()
        self._session = session
        self._runs = runs
        self.newest = Newest(background)

    @property
    def working(self) -> str:
        return "Threshold" if self.newest.busy else ""

    def ask(self, layer: Labels, threshold: float, postprocess: bool) -> bool:
        """Request a mask with these options; False if no probability is known for the layer."""
        mask, run = self._session.masks.get(layer), self._runs.latest
        if mask is None or mask.result is None or isinstance(mask.result, PastResult):
            return False
        if run is not None and run.running and run.labels is layer:
            return False  # the run has the last word
        how = threshold, postprocess
        self.newest.ask(partial(_made, mask, *how), partial(self._put, layer, mask, *how))
        return True

    def _put(
        self, layer: Labels, mask: ModelMask, threshold: float, postprocess: bool, made: Made
    ) -> None:
        if made is None:
            return
        result, new, box = made
        # A run may have begun to fill this layer, or the layer's data may be others.
        current = self._session.masks.get(layer) is mask
        if current and layer.data.shape == mask.reference.layer_shape and mask.result is result:
            if box is not None:
                self.applying.emit(layer)
                mask.replace(layer, new, box)
                # Its steps hold values of the former mask, and would bring those back in part.
                if any(compat.steps_of_undo(layer)):
                    show_info(UNDO_GOES)
                compat.forget_undo(layer)
                layer.refresh(thumbnail=False, highlight=False, extent=False)
                layer.events.data(value=layer.data)
            run = self._runs.latest
            if run is not None and run.labels is layer:
                run.show_figures(mask, threshold)
            options = replace(result.options, threshold=threshold, postprocess=postprocess)
            mask.result = replace(result, threshold=threshold, options=options)
            self.done.emit(layer)


def _made(mask: ModelMask, threshold: float, postprocess: bool) -> Made:
    result = mask.result
    if result is None:
        return None
    new = remask(result, threshold, postprocess)
    return result, new, box_around(new, mask.copy)
