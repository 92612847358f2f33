"""2.5-D: do the slices below and above help, in place of three HU windows of one slice?

    python research/neighbours.py DATASET -o FOLDER [--distance-mm 5] [--steps 3000] [--fold 0]

DATASET holds whole CTs. Two networks of the same cost are trained on the same patients with the
same steps and seed: one sees a slice through three windows, as `train` does it, the other a slice
and the two at the distance below and above, through the first window. Both are scored on the
patients held back, at thresholds that were chosen on the other patients.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import keras
import numpy as np

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.body import place_frame
from napari_pancreas_seg.inference.predictor import windowed
from napari_pancreas_seg.io.files import write_json
from napari_pancreas_seg.model.attention_unet import Architecture
from napari_pancreas_seg.training.data.datasets import (
    SLICE_STEP_MM,
    TrainingSlices,
    choose_slices,
    cut_out,
    working_frame,
)
from napari_pancreas_seg.training.data.layouts.cases import LabelledCase
from napari_pancreas_seg.training.data.layouts.opening import open_dataset
from napari_pancreas_seg.training.fit.loop import fit
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.judge.calibration import PredictedSlice, score_predictions
from napari_pancreas_seg.training.judge.scores import (
    at_others_threshold,
    bootstrap_interval,
    summarise,
)
from napari_pancreas_seg.training.run import Split
from options import settings_of, training_parser

BATCH = 8


@dataclass(frozen=True, eq=False)
class SlicesWithNeighbours(TrainingSlices):
    """Slices whose input is three rows of `hu`: below, itself, above."""

    neighbours: np.ndarray | None = None

    def inputs(self, chosen: np.ndarray) -> np.ndarray:
        """The chosen slices with their neighbours, shape (B, 3, H, W)."""
        return self.hu[self.neighbours[chosen]]


@dataclass(frozen=True)
class NeighbourSettings(TrainSettings):
    """A recipe whose one window is seen on three slices."""

    def resolved_architecture(self) -> Architecture:
        """Three channels, whatever the number of windows."""
        return replace(super().resolved_architecture(), channels=3)


def neighbouring_slices(n_slices: int, spacing_z_mm: float, distance_mm: float) -> np.ndarray:
    """The slice nearest to the place below, the slice itself, the nearest above: (n_slices, 3)."""
    # Half-way between two slices, the farther one: it says something that the slice does not.
    step = math.floor(distance_mm / spacing_z_mm + 0.5)
    z = np.arange(n_slices)[:, None]
    return np.clip(z + step * np.array([-1, 0, 1]), 0, n_slices - 1)


def load(
    cases: Sequence[LabelledCase], labels: dict[str, int], settings: TrainSettings, distance: float
) -> SlicesWithNeighbours:
    """Labelled slices at the working scale, with the rows of their neighbours."""
    parts, rows, before = [], [], 0
    values = tuple(labels.values())
    for case in cases:
        volume, mask = case.load()
        if len(mask) == 1:
            raise PancreasSegError(f"Case {case.name} is a single slice; whole CTs are needed.")
        labelled = np.array(range(len(mask)) if case.slices is None else sorted(case.slices))
        shown = np.array([np.isin(mask[z], values).any() for z in labelled])
        chosen = choose_slices(labelled, shown, volume.spacing[0], SLICE_STEP_MM)
        wanted = neighbouring_slices(len(mask), volume.spacing[0], distance)
        stored = np.unique(wanted[chosen])
        frame = place_frame(volume.hu, volume.spacing, working_frame(settings.frame))
        hu, target = cut_out(volume, mask, stored, values, frame)
        part = TrainingSlices.of(hu, target, case.patient, "patient")
        usable = np.isin(stored, chosen)
        parts.append(replace(part, usable=usable))
        near = np.searchsorted(stored, np.where(usable[:, None], wanted[stored], 0))
        rows.append(before + np.minimum(near, len(stored) - 1))
        before += len(stored)
    joined = TrainingSlices.join(parts)
    plain = {f.name: getattr(joined, f.name) for f in fields(TrainingSlices)}
    return SlicesWithNeighbours(**plain, neighbours=np.concatenate(rows))


def predictions(
    network: keras.Model,
    cases: Sequence[LabelledCase],
    labels: dict[str, int],
    settings: TrainSettings,
    distance: float | None,
) -> Iterator[PredictedSlice]:
    """What a network says of every labelled slice; without a distance, of single slices."""
    values = tuple(labels.values())
    for case in cases:
        volume, mask = case.load()
        frame = place_frame(volume.hu, volume.spacing, settings.frame)
        chosen = range(len(mask)) if case.slices is None else sorted(case.slices)
        wanted = np.arange(len(mask))[:, None]
        if distance is not None:
            wanted = neighbouring_slices(len(mask), volume.spacing[0], distance)
        for z in chosen:
            hu, _ = cut_out(volume, mask, wanted[z], values, frame)
            inputs = windowed(np.moveaxis(hu, 0, -1)[None].astype(np.float32), settings.windows)
            said = network.predict_on_batch(np.asarray(keras.ops.convert_to_numpy(inputs)))
            yield PredictedSlice(
                case.patient, f"{case.name} {z}", np.moveaxis(said["probability"][0], -1, 0),
                mask[z : z + 1], frame, values,
            )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Train both, score both, print and write the difference."""
    parser = training_parser(__doc__, steps=3000)
    parser.add_argument("--distance-mm", type=float, default=5.0)
    parser.add_argument("--fold", type=int, default=0)
    asked = parser.parse_args(arguments)
    single = settings_of(asked)
    common = {f.name: getattr(single, f.name) for f in fields(single)}
    several = NeighbourSettings(**common | {"windows": single.windows[:1]})
    dice = {}
    try:
        data = open_dataset(asked.dataset)
        labels = dict(data.labels)
        training, held = Split(asked.folds, asked.fold, asked.seed).divide(data.cases)
        slices = load(training, labels, single, asked.distance_mm)
        plain = TrainingSlices(*(getattr(slices, f.name) for f in fields(TrainingSlices)))
        for name, recipe, learnt, distance in (
            ("single slices", single, plain, None),
            ("neighbouring slices", several, slices, asked.distance_mm),
        ):
            folder = asked.output / name.replace(" ", "-")
            folder.mkdir(parents=True, exist_ok=True)
            network, _ = fit(learnt, recipe, folder, resume=True)
            said = predictions(network, held, labels, recipe, distance)
            dice[name] = at_others_threshold(score_predictions(said).dice())
            print(f"{name}: {summarise(dice[name].values())}", flush=True)
    except PancreasSegError as error:
        print(error, file=sys.stderr)
        return 1
    one, other = dice.values()
    gaps = [other[patient] - one[patient] for patient in one]
    low, high = bootstrap_interval(gaps)
    print(f"difference {np.mean(gaps):+.4f} (95 % {low:+.4f} to {high:+.4f}), n {len(gaps)}")
    write_json(asked.output / "neighbours.json", {"patients": dice}, overwrite=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
