"""Does averaging over shifted and mirrored frames at test time pay for its cost?

usage: python research/averaging_at_test_time.py DATASET [--model NAME] [-o JSON]

Prints mean Dice over the patients that the model's training never saw: as it is, averaged over
five positions of the frame, and averaged with the mirror image. One run costs one pass, the
others five and two. The JSON is a table of levers, as `research/model_card.py
--comparison` takes it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from compare import lever_entry
from napari_pancreas_seg.inference.body import place_frame
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.inference.segment import LoadedModel
from napari_pancreas_seg.io.files import write_json
from napari_pancreas_seg.training.data.layouts.slices import SliceRecord, read_slice_layout
from napari_pancreas_seg.training.judge.calibration import THRESHOLDS, ThresholdScores
from napari_pancreas_seg.training.judge.scores import at_others_threshold

SHIFT_MM = 3.6
ONE = "one pass"
WHAT = {
    "five positions": f"mean of five frames {SHIFT_MM} mm apart, five times the cost",
    "mirror image": "mean with the mirror image, left and right exchanged, twice the cost",
}


def probability(
    loaded: LoadedModel, record: SliceRecord, specs: list[FrameSpec], mirrored: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Probability on the slice's own grid, averaged over frames, and the reference."""
    volume, mask = record.load()
    total = np.zeros(mask.shape[1:], np.float32)
    for spec in specs:
        frame = place_frame(volume.hu, volume.spacing, spec)
        into, out_of = frame.into(), frame.out_of()
        found = loaded.predictor.predict_batch(volume.hu, *into)["probability"][0, ..., 0]
        if mirrored:
            flipped = loaded.predictor.predict_batch(volume.hu, into[0], into[1][::-1].copy())
            found = (found + flipped["probability"][0, :, ::-1, 0]) / 2
        total += out_of[0] @ found @ out_of[1].T
    return (total / len(specs))[None], mask


def main() -> None:
    """Score three ways of prediction on the same slices."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    loaded = LoadedModel(asked.model)
    spec = loaded.frame
    y, x = spec.offset_mm
    around = [(0, 0), (SHIFT_MM, 0), (-SHIFT_MM, 0), (0, SHIFT_MM), (0, -SHIFT_MM)]
    shifted = [replace(spec, offset_mm=(y + dy, x + dx)) for dy, dx in around]
    known = set(loaded.card["training"]["patients"])
    records = [r for r in read_slice_layout(asked.dataset) if r.patient not in known]
    if not records:
        parser.error("the model was trained on every patient of this data set")
    found = {}
    for name, specs, mirrored in (
        (ONE, [spec], False),
        ("five positions", shifted, False),
        ("mirror image", [spec], True),
    ):
        scores = ThresholdScores(THRESHOLDS)
        for record in records:
            scores.add(record.patient, *probability(loaded, record, specs, mirrored))
        found[name] = at_others_threshold(scores.dice())
        dice = np.mean([*found[name].values()])
        print(f"{name:>15}: Dice {dice:.4f}, {len(found[name])} patients")
    if asked.output:
        which = f"{loaded.card['name']} {loaded.card['version']}"
        levers = [
            lever_entry(f"at test time: {name}", WHAT[name], found[ONE], found[name], which)
            for name in WHAT
        ]
        write_json(asked.output, {"levers": levers}, overwrite=True)


if __name__ == "__main__":
    main()
