"""What it costs not to show the network every slice: Dice, slice by slice and on whole CTs.

    python benchmarks/schedule_dice.py DATASET --model benchmarks/models/fold0 \\
        --ct CT ... -o benchmarks/results/schedule_dice.json

Several models are the folds of one split (as `research/compare.py` makes them): each is
asked about the patients that it has not seen. CTs go through the first one.

DATASET holds scattered slices of patients (the slice layout, with a column ``slice_index``). Three
slices of a patient that follow one another there are a triple: the middle one's probability is
interpolated between its neighbours', as it is in a slice that the network does not see, and the
Dice of that against the manual mask is compared with the Dice of the network's own probability.
The gap is that of the outer two, in slices of the CT. Only patients that the model was not
trained on count, unless ``--every-patient`` is given.

Manual masks of neighbours, interpolated alike, are scored beside it: what the manual masks differ
from one slice to the next is no fault of the interpolation.

Each ``--ct`` is segmented both ways, every slice and as by default: volumes, and Dice between them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

import napari_pancreas_seg as nps
from napari_pancreas_seg.inference.body import find_body
from napari_pancreas_seg.inference.finishing import Finishing, native_mask
from napari_pancreas_seg.inference.frame import Frame, frame_around
from napari_pancreas_seg.inference.maps import foreground
from napari_pancreas_seg.inference.schedule import SliceGrid
from napari_pancreas_seg.inference.segment import LoadedModel
from napari_pancreas_seg.mask.metrics import dice
from napari_pancreas_seg.training.data.layouts.slices import SliceRecord, read_slice_layout

MOST_GAP = 12


@dataclass(frozen=True)
class Seen:
    """A slice that went through the network."""

    index: int
    probability: np.ndarray  # (height, width), in the patient's frame
    frame: Frame
    mask: np.ndarray  # (Y, X)
    threshold: float

    def manual(self) -> Seen:
        """The manual mask in the network's place: shares of the frame's pixels."""
        rows, columns = self.frame.into()
        return replace(self, probability=rows @ self.mask.astype(np.float32) @ columns.T)


@dataclass(frozen=True)
class Triple:
    """Scores of a slice whose neighbours are known."""

    patient: str
    index: int
    gap: int
    direct: float
    interpolated: float
    manual: float

    @property
    def difference(self) -> float:
        return self.interpolated - self.direct


def between(below: Seen, above: Seen, onto: Seen, threshold: float) -> np.ndarray:
    """The mask of a slice that was not seen, (Y, X), by the program's own interpolation."""
    gap = above.index - below.index
    seen = np.stack([below.probability, above.probability])
    ct = SliceGrid(gap + 1, gap)  # a CT whose first and last slice were seen
    whole = Finishing(onto.frame, ct, (1.0, 1.0, 1.0)).mask(seen, threshold)
    return whole[onto.index - below.index]


def slice_indices(dataset: Path) -> dict[str, int]:
    """Place of every slice in its CT, by name; it grows along the body."""
    with (dataset / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return {row["name"]: int(row["slice_index"]) for row in csv.DictReader(file)}


def see_patient(
    records: Sequence[SliceRecord], indices: dict[str, int], loaded: LoadedModel
) -> list[Seen]:
    """Predict a patient's slices in one frame in mm, as in one CT.

    Slices may be cropped differently, always by the same margin on all sides: so the middle of
    every picture is the same place.
    """
    slices = [(record, *record.load()) for record in records]
    offsets = []
    for _, volume, _ in slices:
        centre, middle = find_body(volume.hu, volume.spacing).centre, _middle(volume)
        offsets.append((np.subtract(centre, middle)) * volume.spacing[1:])
    offset_mm = np.median(offsets, axis=0)
    threshold = float(loaded.card["threshold"])
    seen = []
    for record, volume, mask in slices:
        y, x = _middle(volume) + offset_mm / volume.spacing[1:]
        frame = frame_around((y, x), volume.grid.shape[1:], volume.spacing, loaded.frame)
        found = loaded.predictor.predict_batch(volume.hu, *frame.into())
        probability = foreground(found["probability"])[0].astype(np.float32)
        seen.append(Seen(indices[record.name], probability, frame, mask[0], threshold))
    return seen


def _middle(volume: nps.CTVolume) -> np.ndarray:
    return (np.array(volume.grid.shape[1:]) - 1) / 2


def triples(patient: str, seen: Sequence[Seen], most_gap: int = MOST_GAP) -> Iterator[Triple]:
    """Score every slice that has neighbours close enough."""
    ordered = sorted(seen, key=lambda s: s.index)
    for below, middle, above in zip(ordered, ordered[1:], ordered[2:], strict=False):
        gap = above.index - below.index
        if not below.index < middle.index < above.index or gap > most_gap:
            continue
        direct = native_mask(middle.probability[None], middle.frame, middle.threshold)[0]
        interpolated = between(below, above, middle, middle.threshold)
        manual = between(below.manual(), above.manual(), middle, 0.5)
        scores = (dice(mask, middle.mask) for mask in (direct, interpolated, manual))
        yield Triple(patient, middle.index, gap, *scores)


def summary(found: Iterable[Triple]) -> list[dict[str, Any]]:
    """Means for each gap, and for all gaps up to it; the standard error is over triples."""
    found = sorted(found, key=lambda t: t.gap)
    rows = []
    for gap, group in groupby(found, key=lambda t: t.gap):
        up_to = [t for t in found if t.gap <= gap]
        rows.append({"gap": gap, **_means(list(group)), "up_to": _means(up_to)})
    return rows


def _means(found: Sequence[Triple]) -> dict[str, Any]:
    differences = [t.difference for t in found]
    error = statistics.stdev(differences) / len(found) ** 0.5 if len(found) > 1 else None
    return {
        "n": len(found),
        "patients": len({t.patient for t in found}),
        "direct": statistics.mean(t.direct for t in found),
        "interpolated": statistics.mean(t.interpolated for t in found),
        "difference": statistics.mean(differences),
        "standard_error": error,
        "manual": statistics.mean(t.manual for t in found),
    }


def both_ways(path: Path, loaded: LoadedModel) -> dict[str, Any]:
    """Segment a CT with every slice and as by default."""
    volume = nps.load_ct(path)
    full = nps.segment(volume, loaded, every_slice=True)
    quick = nps.segment(volume, loaded)
    return {
        "ct": path.name,
        "slices": volume.grid.shape[0],
        "seen": quick.slices_seen,
        "every_slice_ml": full.volume_ml,
        "scheduled_ml": quick.volume_ml,
        "dice_between": dice(full.mask, quick.mask),
    }


def main(arguments: list[str] | None = None) -> int:
    """Score triples and CTs, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--model", nargs="+", default=["default"], help="the folds of one split")
    parser.add_argument("--what", help="what to call the models in the figures")
    parser.add_argument("--every-patient", action="store_true")
    parser.add_argument("--most-gap", type=int, default=MOST_GAP, help="slices")
    parser.add_argument("--most-patients", type=int, help="stop after so many")
    parser.add_argument("--ct", type=Path, nargs="*", default=[])
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    models = [LoadedModel(model) for model in asked.model]
    found: list[Triple] = []
    for loaded in models:
        known = set() if asked.every_patient else set(loaded.card["training"]["patients"])
        records = [r for r in read_slice_layout(asked.dataset) if r.patient not in known]
        if not records:
            parser.error("a model was trained on every patient of this data set (--every-patient)")
        indices = slice_indices(asked.dataset)
        for patient in sorted({r.patient for r in records})[: asked.most_patients]:
            seen = see_patient([r for r in records if r.patient == patient], indices, loaded)
            found += triples(patient, seen, asked.most_gap)
            print(f"patient {patient}: {len(found)} triples so far", file=sys.stderr)
    rows = summary(found)
    print(" gap    n  direct  interp.  difference  up to this gap (n)")
    for row in rows:
        print(
            f"{row['gap']:4d} {row['n']:4d}  {row['direct']:.4f}   {row['interpolated']:.4f}"
            f"     {row['difference']:+.4f}  {row['up_to']['difference']:+.4f}"
            f" ({row['up_to']['n']}); manual masks {row['manual']:.4f}"
        )
    cts = [both_ways(path, models[0]) for path in asked.ct]
    for ct in cts:
        print(
            f"{ct['ct']}: {ct['every_slice_ml']:.2f} mL with every slice, "
            f"{ct['scheduled_ml']:.2f} mL with {ct['seen']} of {ct['slices']}, "
            f"Dice between them {ct['dice_between']:.4f}"
        )
    if asked.output:
        figures = {
            "model": asked.what
            or ", ".join(
                f"{one.card['name']} {one.card['version']} ({one.card['weights_sha256'][:12]})"
                for one in models
            ),
            "every_patient": asked.every_patient,
            "by_gap": rows,
            "cts": cts,
            "triples": [asdict(t) for t in found],
        }
        asked.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
