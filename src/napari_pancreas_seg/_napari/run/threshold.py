"""A new threshold, or other post-processing, under what a person has painted; no second run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from napari.layers import Labels
from qtpy.QtCore import QObject, Signal

from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.background import Background, Newest
from napari_pancreas_seg._napari.run.model_mask import ModelMask
from napari_pancreas_seg._napari.run.runs import Runs
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg.inference.finishing import remask
from napari_pancreas_seg.inference.result import Segmentation
from napari_pancreas_seg.volume import box_around


class _Wish(NamedTuple):
    """A mask that is to be made again, and its new settings."""

    layer: Labels
    mask: ModelMask
    threshold: float
    postprocess: bool


class Rethreshold(QObject):
    """Makes masks anew from their probability while a slider is dragged, in a thread."""

    done = Signal(object)

    def __init__(self, session: Session, runs: Runs, background: Background) -> None:
        super().__init__()
        self._session = session
        self._runs = runs
        self.newest = Newest(background)

    def ask(self, layer: Labels, threshold: float, postprocess: bool) -> bool:
        """Ask for a mask with these options; False if no probability is known for the layer."""
        mask, run = self._session.masks.get(layer), self._runs.latest
        if mask is None or mask.result is None:
            return False
        if run is not None and run.running and run.labels is layer:
            return False  # the run has the last word
        wish = _Wish(layer, mask, threshold, postprocess)
        self.newest.ask(partial(_made, wish), partial(self._put, wish))
        return True

    def _put(self, wish: _Wish, made: tuple[Segmentation, Any, Any] | None) -> None:
        if made is None:
            return
        result, mask, box = made
        # A run may have begun to fill this layer, or the layer's data may be others.
        current = self._session.masks.get(wish.layer) is wish.mask
        fits = wish.layer.data.shape == wish.mask.reference.layer_shape
        if current and fits and wish.mask.result is result:
            options = replace(
                result.options, threshold=wish.threshold, postprocess=wish.postprocess
            )
            if box is not None:
                wish.mask.replace(wish.layer, mask, box)
                # Its steps hold values of the former mask, and would bring those back in part.
                compat.forget_undo(wish.layer)
                wish.layer.refresh(thumbnail=False, highlight=False, extent=False)
                wish.layer.events.data(value=wish.layer.data)
            run = self._runs.latest
            if run is not None and run.labels is wish.layer:
                run.show_figures(wish.mask, wish.threshold)
            wish.mask.result = replace(result, threshold=wish.threshold, options=options)
            self.done.emit(wish.layer)


def _made(wish: _Wish) -> tuple[Segmentation, Any, Any] | None:
    """The result of now, its mask (Z, Y, X), and the box to write; None if it was taken back."""
    result = wish.mask.result
    if result is None:
        return None
    mask = remask(result, wish.threshold, wish.postprocess)
    return result, mask, box_around(mask, wish.mask.copy)
