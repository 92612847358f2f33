"""The cases held back: read once, scored after every epoch on the CTs' own pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.body import look_at, place_frame
from napari_pancreas_seg.inference.frame import Frame
from napari_pancreas_seg.inference.predictor import windowed
from napari_pancreas_seg.tissue import evenly_spread
from napari_pancreas_seg.training.data.layouts import LabelledCase
from napari_pancreas_seg.training.data.layouts.cases import BadCases
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.judge.calibration import PredictedSlice

MOST_SLICES = 1500
"""Slices of all cases together; of one class and in the default frame they take a GB."""
MOST_BYTES = 2 << 30
"""Memory for them, with their masks and predictions: fewer of several classes fit into it."""
FEWEST_SLICES = 8
"""Slices of one case, however many cases there are; fewer only if the memory is full."""
WITH_ORGAN = 0.75
"""Share of a case's slices that show something, where not all slices are taken."""
BATCH = 8


@dataclass(frozen=True, eq=False)
class _HeldSlice:
    """A slice (height, width, 1) as the network sees it, and its reference (1, Y, X) on the CT."""

    patient: str
    name: str
    hu: npt.NDArray[np.float32]
    mask: npt.NDArray[np.uint8]
    frame: Frame


class HeldBack:
    """Labelled slices of the cases that validate, in memory: evenly spread, if not all of them."""

    def __init__(
        self,
        cases: Sequence[LabelledCase],
        labels: Mapping[str, int],
        settings: TrainSettings,
        *,
        most_slices: int = MOST_SLICES,
        most_bytes: int = MOST_BYTES,
        on_case: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.labels, self.settings = dict(labels), settings
        self.complete = True
        self._slices: list[_HeldSlice] = []
        n = max(1, len(cases))
        fit = most_bytes // _bytes_of_slice(settings, len(labels)) // n
        each = max(1, min(fit, max(FEWEST_SLICES, most_slices // n)))
        problems: list[str] = []
        for done, case in enumerate(cases, start=1):
            try:
                self._slices += self._read(case, each)
            except PancreasSegError as error:
                problems += BadCases.of(case.name, error).problems
            on_case(done, len(cases))
        if problems:
            raise BadCases(problems)

    def __len__(self) -> int:
        return len(self._slices)

    @property
    def shows_something(self) -> bool:
        """Whether any of the references shows any of the classes."""
        values = [*self.labels.values()]
        return any(np.isin(one.mask, values).any() for one in self._slices)

    def predict(self, network: keras.Model) -> Iterator[PredictedSlice]:
        """Run a network over all slices; yield its prediction for each."""
        for first in range(0, len(self._slices), BATCH):
            part = self._slices[first : first + BATCH]
            # Every batch alike, so that the network is compiled once.
            hu = np.stack([part[min(i, len(part) - 1)].hu for i in range(BATCH)])
            inputs = np.asarray(keras.ops.convert_to_numpy(windowed(hu, self.settings.windows)))
            found = network.predict_on_batch(inputs)["probability"]
            for one, probability in zip(part, found[: len(part)], strict=True):
                yield self._predicted(one, probability)

    def _predicted(self, one: _HeldSlice, probability: npt.NDArray[Any]) -> PredictedSlice:
        values = tuple(self.labels.values())
        return PredictedSlice.of(one.patient, one.name, probability, one.mask, one.frame, values)

    def _read(self, case: LabelledCase, most: int) -> list[_HeldSlice]:
        """Slices of a case, cut out of the CT as inference does."""
        volume, labels = case.load()
        frame = place_frame(volume.hu, volume.spacing, self.settings.frame)
        body = look_at(volume.hu, volume.spacing)
        windows = self.settings.windows
        low, high = min(w[0] for w in windows), max(w[1] for w in windows)
        rows, columns = frame.into()
        held = []
        for z in self._chosen(case, labels, most):
            seen = body.shown(volume.hu[z : z + 1])[0].astype(np.float32)
            clipped = np.clip(seen + body.shift, low, high) - low
            hu = np.asarray(rows @ clipped @ columns.T + low, np.float32)[..., None]
            name = case.name if len(labels) == 1 else f"{case.name} slice {z}"
            held.append(_HeldSlice(case.patient, name, hu, labels[z : z + 1].copy(), frame))
        return held

    def _chosen(
        self, case: LabelledCase, labels: npt.NDArray[np.uint8], most: int
    ) -> npt.NDArray[np.intp]:
        """Labelled slices to score: all, or most of them from those that show something."""
        z = np.arange(len(labels)) if case.slices is None else np.array(sorted(case.slices))
        if len(z) <= most:
            return z.astype(np.intp)
        self.complete = False
        values = list(self.labels.values())
        shown = np.array([np.isin(labels[i], values).any() for i in z], bool)
        few = min(int(np.count_nonzero(~shown)), most - round(WITH_ORGAN * most))
        taken = evenly_spread(z[shown], most - few)
        return np.sort(np.concatenate([taken, evenly_spread(z[~shown], most - len(taken))]))


def _bytes_of_slice(settings: TrainSettings, classes: int) -> int:
    """Memory of a slice and of a prediction of it; most masks have 512 × 512 pixels."""
    pixels = settings.frame.height * settings.frame.width
    # In float32 what is shown and what is said, in a byte what is true; see `PredictedSlice`.
    return 512 * 512 + pixels * (4 + 5 * classes)
