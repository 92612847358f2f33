"""What a second stage buys in Dice and costs in time.

    python benchmarks/cascade.py DATASET --ct CT -o benchmarks/results/cascade.json

DATASET holds scattered slices of patients (the slice layout). Two networks of one class are trained
on the same patients with the same steps and seed: one as ever, and one on finer pixels around the
gland (``train --stage fine``). Trained ones can be given with ``--single`` and ``--fine``. Both are
scored on the patients held back, at thresholds that were chosen on the other patients. The second
network's frame is laid around what the first one has found, as when it is used: for every slice by
itself, and once for all slices of a patient, as in a whole CT. Beside it stands what it would reach
were the frame laid around the manual mask.

Each ``--ct`` is segmented both ways in turn, with ``--spacing`` after it was interpolated to that;
the fastest of several runs counts.

    python benchmarks/cascade.py --table benchmarks/results/cascade.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from napari_pancreas_seg import CTVolume
    from napari_pancreas_seg.inference.frame import Frame
    from napari_pancreas_seg.inference.result import Segmentation
    from napari_pancreas_seg.inference.segment import LoadedModel

SINGLE, SLICES, PATIENT, REFERENCE = "single", "slices", "patient", "reference"
WHAT = {
    SINGLE: "one stage",
    SLICES: "two stages, each slice by itself",
    PATIENT: "two stages, one frame for a patient's slices, as in a CT",
    REFERENCE: "the same, the frame laid around the manual mask",
}


def train_model(
    dataset: Path,
    folder: Path,
    asked: argparse.Namespace,
    stage: str,
    localiser: Path | None = None,
) -> Path:
    """Train one of the two networks, or go on with it."""
    from napari_pancreas_seg.cli.training import averaging_for
    from napari_pancreas_seg.training.fit.recipe import TrainSettings
    from napari_pancreas_seg.training.run import Split, Watch, train
    from napari_pancreas_seg.training.stages import stage_named

    settings = TrainSettings(
        **stage_named(stage),
        steps=asked.steps,
        steps_per_epoch=asked.steps,
        averaging=averaging_for(asked.steps),
        policy=asked.policy,
    )
    return train(
        dataset,
        folder,
        settings,
        split=Split(asked.folds, asked.fold),
        localiser=localiser,
        negatives=asked.negatives,
        resume=True,
        watch=Watch(on_epoch=lambda line: print(stage, line, file=sys.stderr, flush=True)),
    )


class Scorer:
    """Dice of each patient for many thresholds, each way.

    Parameters
    ----------
    cascade : LoadedModel
        The second network, with the first one as its localiser.
    """

    def __init__(self, cascade: Any) -> None:
        from napari_pancreas_seg.training.judge.calibration import THRESHOLDS
        from napari_pancreas_seg.training.judge.evaluation import ThresholdScores

        self.cascade = cascade
        _remember(cascade.localiser)
        self.scores = {way: ThresholdScores(THRESHOLDS) for way in WHAT}

    def add(self, patient: str, records: Sequence[Any]) -> None:
        """Segment a patient's slices each way."""
        from napari_pancreas_seg.inference.remask import remask
        from napari_pancreas_seg.training.data.placing import middle_of_box, mm_from_middle

        slices = [record.load() for record in records]
        found, manual = [], []
        for volume, mask in slices:
            coarse = self._by_itself(SINGLE, patient, volume, mask, self.cascade.localiser)
            self._by_itself(SLICES, patient, volume, mask, self.cascade)
            found.append(mm_from_middle(remask(coarse, postprocess=True)[0], volume))
            manual.append(mm_from_middle(mask[0], volume))
        for way, places in ((PATIENT, found), (REFERENCE, manual)):
            centre_mm = middle_of_box(places)
            for volume, mask in slices:
                self._around(way, patient, volume, mask, centre_mm)

    def _by_itself(
        self, way: str, patient: str, volume: Any, mask: np.ndarray, model: Any
    ) -> Segmentation:
        """Segment a slice as a CT of its own."""
        from napari_pancreas_seg.inference.remask import places
        from napari_pancreas_seg.inference.segment import segment

        result = segment(volume, model, postprocess=False)
        self._count(way, patient, result.probability.values, places(result)[0], mask)
        return result

    def _around(
        self, way: str, patient: str, volume: Any, mask: np.ndarray, centre_mm: Any
    ) -> None:
        """Segment a slice with the second network, in a frame around a place of the body."""
        from napari_pancreas_seg.inference.frame import Canvas, contrast_shift
        from napari_pancreas_seg.training.data.placing import lay_frame

        spec = self.cascade.frame
        frame = lay_frame(volume, mask, (), spec, centre_mm)
        probability = np.zeros((1, spec.height, spec.width), np.float32)
        if centre_mm is not None:  # else the first stage found nothing in any slice
            canvas = Canvas(frame)
            hu = canvas.cut(volume.hu, np.array([0]))
            said = self.cascade.predict(hu, canvas, contrast_shift(volume.hu))
            probability = said["probability"][..., 0]
        self._count(way, patient, probability, frame, mask)

    def _count(
        self, way: str, patient: str, probability: np.ndarray, frame: Frame, mask: np.ndarray
    ) -> None:
        rows, columns = frame.out_of()
        known = np.nan_to_num(probability.astype(np.float32))
        self.scores[way].add(patient, rows @ known @ columns.T, mask)


def _remember(model: Any) -> None:
    """Have a network answer at once when it is asked the same twice in a row."""
    predict = model.predict
    last: dict[Any, Any] = {}

    def remembered(hu: np.ndarray, canvas: Any, shift: int) -> Any:
        key = hu.tobytes(), canvas.rows.tobytes(), canvas.columns.tobytes(), shift
        if key not in last:
            last.clear()
            last[key] = predict(hu, canvas, shift)
        return last[key]

    model.predict = remembered


def score(
    dataset: Path, cascade: LoadedModel, most_patients: int | None = None
) -> dict[str, dict[str, float]]:
    """Dice of the patients that neither network was trained on, each way."""
    from napari_pancreas_seg.training.comparison import at_others_threshold
    from napari_pancreas_seg.training.data.layouts.slices import read_slice_layout

    assert cascade.localiser is not None
    known = {p for m in (cascade, cascade.localiser) for p in m.card["training"]["patients"]}
    patients: dict[str, list[Any]] = {}
    for record in read_slice_layout(dataset):
        if record.patient not in known:
            patients.setdefault(record.patient, []).append(record)
    if len(patients) < 2:
        raise SystemExit("The networks have left fewer than two patients of this data set.")
    scorer = Scorer(cascade)
    for patient, records in list(patients.items())[:most_patients]:
        scorer.add(patient, records)
        print(f"patient {patient}: {len(records)} slices", file=sys.stderr, flush=True)
    del cascade.localiser.predict  # what is timed is computed
    return {way: at_others_threshold(found.dice()) for way, found in scorer.scores.items()}


def compared(dice: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """A row for each way: figures over patients, and the paired difference to one stage."""
    from napari_pancreas_seg.training.judge.scores import bootstrap_interval, summarise

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


def timed(
    path: Path, spacing: Sequence[float] | None, cascade: LoadedModel, runs: int
) -> dict[str, Any]:
    """Seconds and slices that a CT takes, each way in turn."""
    from napari_pancreas_seg import load_ct
    from speed_cts import on_spacing

    volume = load_ct(path)
    if spacing is not None:
        volume = on_spacing(volume, spacing)
    seconds: dict[str, list[float]] = {SINGLE: [], PATIENT: []}
    slices: dict[str, int] = {}
    for _ in range(runs + 1):  # the first one compiles
        for way, model in ((SINGLE, cascade.localiser), (PATIENT, cascade)):
            started = time.perf_counter()
            slices[way], volume_ml = _segmented(volume, model)
            seconds[way].append(time.perf_counter() - started)
            print(
                f"{path.name}, {way}: {seconds[way][-1]:.2f} s, {volume_ml:.1f} mL", file=sys.stderr
            )
    return {
        "shape": list(volume.grid.shape),
        "spacing_mm": [round(s, 3) for s in volume.spacing],
        "runs": runs,
        "seconds": {way: round(min(values[1:]), 3) for way, values in seconds.items()},
        "network_slices": slices,
    }


def _segmented(volume: CTVolume, model: Any) -> tuple[int, float]:
    """Slices that went through a network, in both stages, and what was found in mL."""
    from napari_pancreas_seg.inference.segment import iter_segment

    steps, done = iter_segment(volume, model, stream=False), 0
    while True:
        try:
            done = next(steps).done
        except StopIteration as stop:
            return done, stop.value.volume_ml


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
            f"| {row['what']} | {d['mean']:.3f} ({d['low']:.3f} to {d['high']:.3f}) | "
            f"{d['median']:.3f} | {d['worst']:.3f} | {gain if row['way'] != SINGLE else ''} |"
        )
    lines += [
        "",
        f"Both networks cost {data['gflop_per_slice']:.1f} GFLOP a slice. Whole CTs, loading "
        f"left out, {data['device']}, {data['threads']} threads:",
        "",
        "| CT | one stage | two stages | ratio |",
        "| --- | --- | --- | --- |",
    ]
    for ct in data["cts"]:
        s, n = ct["seconds"], ct["network_slices"]
        shape, spacing = (
            " × ".join(f"{round(v, 2):g}" for v in ct[k]) for k in ("shape", "spacing_mm")
        )
        lines.append(
            f"| {shape}, {spacing} mm | {s[SINGLE]:.1f} s, {n[SINGLE]} slices | "
            f"{s[PATIENT]:.1f} s, {n[PATIENT]} slices | {s[PATIENT] / s[SINGLE]:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing, score, time, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path, nargs="?")
    parser.add_argument("--single", type=Path, help="bundle; trained if not given")
    parser.add_argument("--fine", type=Path, help="bundle; trained if not given")
    parser.add_argument("--work", type=Path, default=Path("cascade"), help="folder for trainings")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--policy", default="auto")
    parser.add_argument("--negatives", nargs="*", default=[])
    parser.add_argument("--most-patients", type=int, help="stop after so many")
    parser.add_argument("--ct", type=Path, nargs="*", default=[])
    parser.add_argument("--spacing", type=float, nargs=3, metavar=("Z", "Y", "X"), help="mm")
    parser.add_argument("--runs", type=int, default=3, help="of each CT")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--table", type=Path, metavar="JSON", help="print what is known already")
    asked = parser.parse_args(arguments)
    if asked.table is not None:
        print(table(json.loads(asked.table.read_text(encoding="utf-8"))), end="")
        return 0
    if asked.dataset is None:
        parser.error("which data set?")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from napari_pancreas_seg.inference.segment import LoadedModel
    from napari_pancreas_seg.model.cost import gflop_per_slice

    single = asked.single or train_model(asked.dataset, asked.work / "single", asked, "single")
    fine = asked.fine or train_model(asked.dataset, asked.work / "fine", asked, "fine", single)
    cascade = LoadedModel(fine, localiser=single)
    split = cascade.card["training"]["recipe"]["split"]
    dice = score(asked.dataset, cascade, asked.most_patients)
    data = {
        "what": "Dice per patient on the native grid, out of fold, no post-processing; each "
        "patient's threshold was chosen on the other patients",
        "patients": len(dice[SINGLE]),
        "folds": split["folds"],
        "fold": split["fold"],
        "steps": cascade.card["training"]["recipe"]["steps"],
        "frame": cascade.card["frame"],
        "gflop_per_slice": round(gflop_per_slice(cascade.predictor.network), 2),
        "dice": compared(dice),
        "device": cascade.device.name,
        "threads": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "cts": [timed(path, asked.spacing, cascade, asked.runs) for path in asked.ct],
    }
    print(table(data), end="")
    if asked.output is not None:
        asked.output.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
