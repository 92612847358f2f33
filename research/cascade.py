"""What a second look on finer pixels around the gland buys in Dice.

    python research/cascade.py DATASET -o FOLDER [--steps 500] [--folds 3] [--fold 0]
    python research/cascade.py --table benchmarks/results/cascade.json

DATASET holds scattered slices of patients (the slice layout). Two networks are trained on the same
patients with the same steps and seed: one as `train` does it, and one on finer pixels around the
gland. Both are scored on the patients held back, at thresholds that were chosen on the other
patients. The second network's frame is laid around what the first one found: for every slice by
itself, and once for all slices of a patient, as in a whole CT; and, for comparison, around the
manual mask. FOLDER/cascade.json holds the figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from scipy import ndimage

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.body import place_frame
from napari_pancreas_seg.inference.frame import Frame, FrameSpec, frame_around
from napari_pancreas_seg.inference.predictor import windowed
from napari_pancreas_seg.io.files import write_json
from napari_pancreas_seg.model.attention_unet import gflop_per_slice
from napari_pancreas_seg.model.bundle import load_bundle
from napari_pancreas_seg.training.data.datasets import TrainingSlices, cut_out, working_frame
from napari_pancreas_seg.training.data.layouts.slices import SliceRecord, read_slice_layout
from napari_pancreas_seg.training.fit.augmentation import AugmentationSettings
from napari_pancreas_seg.training.fit.loop import fit
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.judge.calibration import THRESHOLDS, ThresholdScores
from napari_pancreas_seg.training.judge.scores import (
    at_others_threshold,
    bootstrap_interval,
    summarise,
)
from napari_pancreas_seg.training.judge.tables import interval
from napari_pancreas_seg.training.run import Split, train
from napari_pancreas_seg.volume import CTVolume
from options import settings_of, training_parser

FINE_FRAME = FrameSpec(160, 224, 0.8, (0.0, 0.0))
"""128 x 179 mm. The glands of 50 patients of NIH Pancreas-CT measure 61 x 110 mm (median) and at
most 101 x 147 mm; all of each lies in this frame around its centre, but for at most 0.02 %."""
FINE_SHIFT_MM = 20.0
"""The first stage places the frame to within a few mm; a single slice's gland lies farther off."""

SINGLE, SLICES, PATIENT, REFERENCE = "single", "slices", "patient", "reference"
WHAT = {
    SINGLE: "one stage",
    SLICES: "two stages, each slice by itself",
    PATIENT: "two stages, one frame for a patient's slices, as in a CT",
    REFERENCE: "the same, the frame laid around the manual mask",
}
Place = tuple[float, float]


def mm_from_middle(gland: np.ndarray, volume: CTVolume) -> np.ndarray:
    """Where a slice's pixels (Y, X) are not 0, in mm from the slice's middle, shape (n, 2)."""
    middle = (np.array(gland.shape) - 1) / 2
    return (np.argwhere(gland) - middle) * volume.spacing[1:]


def middle_of_box(parts: Sequence[np.ndarray]) -> Place | None:
    """Middle in mm of the box around places, but for a hundredth on each side; None without any."""
    places = np.concatenate(parts)
    if not len(places):
        return None
    low, high = np.percentile(places, [1, 99], axis=0)
    y, x = np.round((low + high) / 2, 2).tolist()
    return y, x


def frame_at(place_mm: Place, volume: CTVolume, spec: FrameSpec) -> Frame:
    """A frame centred so many mm from the middle of a slice."""
    shape, spacing = volume.grid.shape[1:], volume.spacing
    centre = [(n - 1) / 2 + mm / s for n, mm, s in zip(shape, place_mm, spacing[1:], strict=True)]
    return frame_around((centre[0], centre[1]), shape, spacing, spec)


def by_patient(records: Sequence[SliceRecord]) -> dict[str, list[SliceRecord]]:
    """Slices of each patient."""
    found: dict[str, list[SliceRecord]] = {}
    for record in records:
        found.setdefault(record.patient, []).append(record)
    return found


def slices_around_glands(records: Sequence[SliceRecord], spec: FrameSpec) -> TrainingSlices:
    """Training slices of a frame that lies around each patient's gland."""
    parts = []
    for patient, mine in by_patient(records).items():
        loaded = [record.load() for record in mine]
        place = middle_of_box([mm_from_middle(mask[0], volume) for volume, mask in loaded])
        for volume, mask in loaded:
            frame = frame_at(place or (0.0, 0.0), volume, working_frame(spec))
            hu, target = cut_out(volume, mask, np.array([0]), [1], frame)
            parts.append(TrainingSlices.of(hu, target, patient, "patient"))
    return TrainingSlices.join(parts)


class Scorer:
    """Dice of each patient for many thresholds, each way."""

    def __init__(
        self, single: keras.Model, fine: keras.Model, settings: TrainSettings, fine_frame: FrameSpec
    ) -> None:
        self.single, self.fine, self.fine_frame = single, fine, fine_frame
        self.settings = settings
        self.scores = {way: ThresholdScores(THRESHOLDS) for way in WHAT}

    def add(self, patient: str, records: Sequence[SliceRecord]) -> None:
        """Segment a patient's slices each way."""
        loaded = [record.load() for record in records]
        found, manual = [], []
        for volume, mask in loaded:
            frame = place_frame(volume.hu, volume.spacing, self.settings.frame)
            said = self._count(SINGLE, patient, self.single, volume, mask, frame)
            gland = _largest(said > 0.5)
            found.append(mm_from_middle(gland, volume))
            manual.append(mm_from_middle(mask[0], volume))
            self._around(SLICES, patient, volume, mask, middle_of_box(found[-1:]))
        for way, places in ((PATIENT, found), (REFERENCE, manual)):
            place = middle_of_box(places)
            for volume, mask in loaded:
                self._around(way, patient, volume, mask, place)

    def _around(
        self, way: str, patient: str, volume: CTVolume, mask: np.ndarray, place: Place | None
    ) -> None:
        if place is None:  # the first stage found nothing
            self.scores[way].add(patient, np.zeros(mask.shape[1:], np.float32), mask[0])
        else:
            frame = frame_at(place, volume, self.fine_frame)
            self._count(way, patient, self.fine, volume, mask, frame)

    def _count(
        self,
        way: str,
        patient: str,
        network: keras.Model,
        volume: CTVolume,
        mask: np.ndarray,
        frame: Frame,
    ) -> np.ndarray:
        """Score a network on a slice; return the probability on the slice's own pixels."""
        hu, _ = cut_out(volume, mask, np.array([0]), [1], frame)
        inputs = windowed(hu[..., None].astype(np.float32), self.settings.windows)
        said = network.predict_on_batch(np.asarray(keras.ops.convert_to_numpy(inputs)))
        rows, columns = frame.out_of()
        probability = rows @ said["probability"][0, ..., 0] @ columns.T
        self.scores[way].add(patient, probability, mask[0])
        return probability


def _largest(mask: np.ndarray) -> np.ndarray:
    pieces, n = ndimage.label(mask)
    return pieces == 1 + np.bincount(pieces.ravel())[1:].argmax() if n else mask


def measured(asked: argparse.Namespace, settings: TrainSettings, fine: TrainSettings) -> dict:
    """Train what is missing, and score it."""
    records = read_slice_layout(asked.dataset)
    split = Split(asked.folds, asked.fold, asked.seed)
    training, held = split.divide(records)
    single = train(
        asked.dataset,
        asked.output / "single",
        settings,
        split=split,
        negatives=asked.negatives,
        resume=True,
        once=True,
        log=lambda text: print("single", text, file=sys.stderr, flush=True),
    )
    (asked.output / "fine").mkdir(parents=True, exist_ok=True)
    slices = slices_around_glands(training, fine.frame)
    network, _ = fit(slices, fine, asked.output / "fine", resume=True)
    scorer = Scorer(load_bundle(single).network(), network, settings, fine.frame)
    for patient, mine in by_patient(held).items():
        scorer.add(patient, mine)
        print(f"patient {patient}: {len(mine)} slices", file=sys.stderr, flush=True)
    dice = {way: at_others_threshold(found.dice()) for way, found in scorer.scores.items()}
    return {
        "what": "Dice per patient on the native grid, out of fold, no post-processing; each "
        "patient's threshold was chosen on the other patients",
        "patients": len(dice[SINGLE]),
        "folds": asked.folds,
        "fold": asked.fold,
        "steps": asked.steps,
        "frame": fine.frame.to_dict(),
        "gflop_per_slice": round(gflop_per_slice(network), 2),
        "dice": compared(dice),
        "cts": [],
    }


def compared(dice: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """A row for each way: figures over patients, and the paired difference to one stage."""
    rows = []
    for way, found in dice.items():
        gaps = [found[patient] - single for patient, single in dice[SINGLE].items()]
        low, high = bootstrap_interval(gaps)
        gain = {"mean": float(np.mean(gaps)), "low": low, "high": high}
        rows.append(
            {
                "way": way,
                "what": WHAT[way],
                "dice": summarise(found.values()),
                "gain": {name: round(value, 4) for name, value in gain.items()},
                "patients": {patient: round(value, 4) for patient, value in found.items()},
            }
        )
    return rows


def table(data: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        f"{data['patients']} patients held back (fold {data['fold'] + 1} of {data['folds']}), "
        f"networks trained for {data['steps']} steps; 95 % bootstrap intervals over patients.",
        "",
        "| | Dice, mean (95 %) | median | worst | gain over one stage (95 %) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in data["dice"]:
        d, g = row["dice"], row["gain"]
        gain = f"{g['mean']:+.3f} ({g['low']:+.3f} to {g['high']:+.3f})"
        lines.append(
            f"| {row['what']} | {d['mean']:.3f}{interval(d)} | "
            f"{d['median']:.3f} | {d['worst']:.3f} | {gain if row['way'] != SINGLE else ''} |"
        )
    lines += ["", f"Both networks cost {data['gflop_per_slice']:.1f} GFLOP a slice."]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Print the table, measured now or before."""
    if arguments is None:
        arguments = sys.argv[1:]
    if arguments[:1] == ["--table"]:
        print(table(json.loads(Path(arguments[1]).read_text(encoding="utf-8"))), end="")
        return 0
    parser = training_parser(__doc__, steps=500)
    parser.set_defaults(folds=3)
    parser.add_argument("--fold", type=int, default=0)
    asked = parser.parse_args(arguments)
    settings = settings_of(asked, steps_per_epoch=asked.steps)
    fine = replace(
        settings,
        frame=FINE_FRAME,
        augmentation=AugmentationSettings(shift_mm=FINE_SHIFT_MM),
    )
    try:
        data = measured(asked, settings, fine)
    except PancreasSegError as error:
        print(error, file=sys.stderr)
        return 1
    print(table(data), end="")
    write_json(asked.output / "cascade.json", data, overwrite=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
