"""A second look: the network that mends sees a slice again, closer, guided by the first look.

After Xie, Yu et al. 2019 (RSTN, arXiv:1709.04518): a mask found at a coarse scale is found anew
around itself. Importing this module loads no Keras.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy

from napari_pancreas_seg.arrays import Array, Floats32, Indices, Mask
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.body import Body
from napari_pancreas_seg.inference.frame import Frame, FrameSpec, frame_around, resampling_matrix
from napari_pancreas_seg.inference.mend import FADE_MM, GUIDES, TASK, Mender, log_odds
from napari_pancreas_seg.model.bundle import load_bundle
from napari_pancreas_seg.volume import CTVolume

if TYPE_CHECKING:
    from napari_pancreas_seg.inference.devices import Device

SIZE, MARGIN_MM = (96, 128), 12.0
"""Pixels of the frame, fewer than for strokes, and how far it reaches beyond the first mask."""
SURE, UNSURE = 2.5, 0.2
"""To this the surest tenth of what was found is lifted, in log-odds above the threshold; what is
below the second number, not so far."""
BATCH = 8
KNOWN = 0.99
"""A pixel of which the finer frame shows that share is taken from it."""


class SecondLook:
    """Looks again at what a model found; its card names the network and how much it counts.

    ``second_look`` in the card: ``model`` and its ``weights_sha256``; ``mm``, how far away what the
    first look found is said to lie; ``share`` of the second answer in the log-odds, the first has
    the rest; ``shift``, added to them, so that the model's threshold stays what it is.
    """

    def __init__(self, card: Mapping[str, Any], device: str | Device) -> None:
        self._told, self._threshold = card["second_look"], float(card["threshold"])
        bundle = load_bundle(self._told["model"], TASK)
        found = bundle.card["weights_sha256"]
        if self._told.get("weights_sha256", found) != found:
            raise PancreasSegError(
                f"The model looks a second time with a network {self._told['model']} of other "
                "weights than the one at hand; choose another model",
                option=", or leave the second look out (--no-second-look).",
            )
        size = dict(zip(("height", "width"), SIZE, strict=True))
        smaller = {part: {**bundle.card[part], **size} for part in ("architecture", "frame")}
        self._mender = Mender(replace(bundle, card={**bundle.card, **smaller}), device)

    def warm_up(self) -> None:
        """Compile, so that the first slices come at once."""
        self._mender.answers(np.zeros((BATCH, *self._mender.input_shape), np.float32))

    def revise(
        self,
        volume: CTVolume,
        body: Body,
        frame: Frame,
        z: Indices,
        probability: Array,
        first: Array,
    ) -> Iterator[int]:
        """Change probability (n, height, width) of slices z in place; yield each that was seen.

        `first` of the same shape is the probability of which the first mask is made, 0 where
        pieces were left out.
        """
        gland = first > self._threshold
        found = np.flatnonzero(gland.any(axis=(1, 2)))
        running: tuple[Indices, list[Frame], Future[Floats32]] | None = None
        with ThreadPoolExecutor(1, "second look") as thread:
            for start in range(0, len(found) + BATCH, BATCH):
                rows, ahead = found[start : start + BATCH], None
                if len(rows):
                    closer = [self._closer(frame, gland[row], volume, body) for row in rows]
                    # The last ones may be empty: another number would have to be compiled.
                    seen = np.zeros((BATCH, *self._mender.input_shape), np.float32)
                    for i, (row, near) in enumerate(zip(rows, closer, strict=True)):
                        guide = self._guide(probability[row], first[row])
                        seen[i] = self._shown(volume, body, int(z[row]), frame, near, guide)
                    ahead = rows, closer, thread.submit(self._mender.answers, seen)
                if running is not None:
                    for row, near, answer in zip(*running[:2], running[2].result(), strict=False):
                        probability[row] = self._joined(frame, near, probability[row], answer)
                        yield int(row)
                running = ahead

    def _closer(self, frame: Frame, gland: Mask, volume: CTVolume, body: Body) -> Frame:
        """The finer frame around the first mask of a slice."""
        spec = self._mender.spec
        edges = [np.flatnonzero(gland.any(axis=axis))[[0, -1]] for axis in (1, 0)]
        ends = np.array(edges) * np.array(frame.step)[:, None] + np.array(frame.origin)[:, None]
        wide = (ends[:, 1] - ends[:, 0]) * volume.spacing[1:] + 2 * MARGIN_MM
        scale = max(spec.mm_per_pixel, *(wide / (spec.height, spec.width)))
        return frame_around(
            tuple(ends.mean(axis=1)),
            volume.grid.shape[1:],
            volume.spacing,
            FrameSpec(spec.height, spec.width, float(scale), (0.0, 0.0)),
            body.edges,
        )

    def _guide(self, probability: Array, first: Array) -> Floats32:
        """What the first look found (height, width), from 0 to 1, as sure as it was of it."""
        left_out = (first <= 0) & (probability > self._threshold)
        found = np.where(first > 0, first, np.where(left_out, 0, probability))
        odds = log_odds(found) - scipy.special.logit(self._threshold)
        # Where it was unsure throughout, as in noise, its surest part still is the gland.
        surest = max(UNSURE, np.quantile(odds[odds > 0], 0.9))
        odds[odds > 0] *= max(1.0, SURE / surest)
        return np.asarray(scipy.special.expit(odds), np.float32)

    def _shown(
        self, volume: CTVolume, body: Body, z: int, frame: Frame, near: Frame, guide: Floats32
    ) -> Floats32:
        """What the network is shown of a slice."""
        y, x = near.support()
        rows, columns = (m[:, s] for m, s in zip(near.into(), (y, x), strict=True))
        down, across = _between(frame, near)
        there = down @ guide @ across.T
        hu = body.shown(volume.hu[z, y, x][None])[0]
        prior = np.exp(-self._told["mm"] / FADE_MM) * (2 * there - 1)
        guides = [np.zeros_like(there)] * (GUIDES - 1)
        return self._mender.seen(hu, body.shift, rows, columns, [*guides, prior])

    def _joined(self, frame: Frame, near: Frame, first: Array, second: Floats32) -> Array:
        """Both answers on the first one's pixels; where the first is 0, or alone, it stays."""
        down, across = _between(near, frame)
        known = np.outer(down.sum(axis=1), across.sum(axis=1)) > KNOWN
        known &= first > 0
        answers = (first, down @ second @ across.T)
        before, after = (log_odds(each[known]) for each in answers)
        share = self._told["share"]
        odds = (1 - share) * before + share * after + self._told["shift"]
        joined = first.copy()
        joined[known] = scipy.special.expit(odds)
        return joined


def _between(one: Frame, other: Frame) -> tuple[Floats32, Floats32]:
    """Matrices that bring maps in one frame into another of the same slices."""
    return tuple(  # type: ignore[return-value]
        resampling_matrix(n_one, n_other, (o_other - o_one) / s_one, s_other / s_one)
        for (n_one, _, o_one, s_one, _), (n_other, _, o_other, s_other, _) in zip(
            one.axes, other.axes, strict=True
        )
    )
