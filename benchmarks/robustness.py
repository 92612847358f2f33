"""What becomes of a mask when a CT does not look like those learnt from.

usage: python benchmarks/robustness.py slices DATASET [--model benchmarks/models/fold0]
       python benchmarks/robustness.py stacks DATASET [--model benchmarks/models/fold0]
       python benchmarks/robustness.py cts FOLDER [--model default]

The first takes every slice of the patients whom the model never saw, changes it in a way that is
fixed, and gives the mean over patients of Dice, all of a patient's slices pooled, beside that of
the slices as they are:

- cut to 180 × 180 mm around a point of the gland; what the rest holds of the gland does not count;
- fat at -100 HU, and the outside of the body at -1000 or at 0;
- without contrast agent: 45 to 200 HU squeezed to 45 to 70, and what is brighter lowered as much,
  so that bone stays brighter than the rest.

The second stacks the same patients' slices, which are not contiguous, at their mean distance: mean
Dice with post-processing, and without.

The third looks at whole CTs: volume and
Dice beside references, and what is found where there can be no pancreas.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from napari_pancreas_seg.inference.loaded import LoadedModel
from napari_pancreas_seg.inference.segment import segment
from napari_pancreas_seg.io import load_ct, load_mask
from napari_pancreas_seg.io.alignment import bring_onto
from napari_pancreas_seg.training.data.layouts.slices import SliceRecord, read_slice_layout
from napari_pancreas_seg.training.judge.seen import patients_seen
from napari_pancreas_seg.volume import CTVolume

FIELD_MM = 180.0
POINTS = 2
"""Points of each gland around which a slice is cut."""
AIR_HU, FAT_HU = -1000, -100
"""What is 0 in a clipped slice: around the body, and within it."""

Array = np.ndarray


def volume_of(plane: Array, record: SliceRecord) -> CTVolume:
    """A CT of one slice (Y, X), or of several (Z, Y, X)."""
    affine = np.diag([-record.spacing_mm, -record.spacing_mm, record.thickness_mm, 1.0])
    source = np.atleast_3d(plane.astype(np.int16).T)
    return CTVolume.from_source_array(source, affine, path=record.image, name=record.name)


def outside_body(hu: Array) -> Array:
    """Where a clipped slice shows what surrounds the body; arms and table are left in."""
    body = ndimage.binary_closing(np.pad(hu > 10, 20), iterations=8)[20:-20, 20:-20]
    pieces, _ = ndimage.label(~ndimage.binary_fill_holes(body))
    edge = np.unique(np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]]))
    return np.asarray(np.isin(pieces, edge[edge > 0]))


def without_agent(hu: Array) -> Array:
    """The fixed curve."""
    low = np.minimum(hu, 45) + np.clip(hu - 45, 0, 155) * (25 / 155)
    return np.rint(low + np.maximum(hu - 200, 0)).astype(np.int16)


def fields(mask: Array, spacing_mm: float, rng: np.random.Generator) -> list[tuple[slice, ...]]:
    """Parts of a slice around points of the gland."""
    places = np.argwhere(mask)
    half = FIELD_MM / 2 / spacing_mm
    chosen = places[rng.integers(len(places), size=POINTS)]
    return [
        tuple(
            slice(max(0, round(c - half)), min(n, round(c + half)))
            for c, n in zip(point, mask.shape, strict=True)
        )
        for point in chosen
    ]


class Tally:
    """Dice of each patient under each change, voxels pooled."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.counts: dict[str, dict[str, Array]] = {}

    def add(self, what: str, record: SliceRecord, hu: Array, mask: Array) -> Array:
        """Segment a slice, count it, and give what was found."""
        found = segment(volume_of(hu, record), self.loaded, postprocess=False).mask[0] > 0
        self.count(what, record.patient, found, mask)
        return found

    def count(self, what: str, patient: str, found: Array, mask: Array) -> None:
        """Count a mask (Y, X)."""
        new = np.array([2 * (found & mask).sum(), found.sum() + mask.sum()], float)
        of = self.counts.setdefault(what, {})
        of[patient] = of.get(patient, 0) + new

    def means(self) -> dict[str, float]:
        """Mean over patients."""
        return {
            what: round(float(np.mean([b / t for b, t in of.values()])), 4)
            for what, of in self.counts.items()
        }


def unseen(dataset: Path, loaded: LoadedModel) -> list[SliceRecord]:
    """Slices of the patients whom the model never saw."""
    known = patients_seen([loaded.card])
    records = [r for r in read_slice_layout(dataset) if r.patient not in known]
    if not records:
        sys.exit("the model was trained on every patient of this data set")
    return records


def score_slices(dataset: Path, model: str) -> dict[str, Any]:
    """Mean Dice of patients never seen, as they are and changed."""
    loaded = LoadedModel(model)
    records = unseen(dataset, loaded)
    tally, rng = Tally(loaded), np.random.default_rng(0)
    for record in records:
        volume, mask = record.load()
        hu, true = volume.hu[0], mask[0] > 0
        usual = tally.add("as it is", record, hu, true)
        for part in fields(true, record.spacing_mm, rng):
            tally.count("whole slice, within the field", record.patient, usual[part], true[part])
            tally.add("180 mm field", record, hu[part], true[part])
        outside, unclipped = outside_body(hu), np.where(hu == 0, FAT_HU, hu)
        tally.add("outside -1000", record, np.where(outside, AIR_HU, unclipped), true)
        tally.add("outside 0", record, np.where(outside, 0, unclipped), true)
        tally.add("no contrast agent", record, without_agent(hu), true)
    return {"patients": len({r.patient for r in records}), "slices": len(records), **tally.means()}


def score_stacks(dataset: Path, model: str) -> dict[str, Any]:
    """Mean Dice of patients never seen, their slices as one CT."""
    loaded = LoadedModel(model)
    tally = Tally(loaded)
    slices: dict[str, list[SliceRecord]] = {}
    for record in unseen(dataset, loaded):
        slices.setdefault(record.patient, []).append(record)
    for records in slices.values():
        records.sort(key=_index)
        mm = records[0].thickness_mm * (_index(records[-1]) - _index(records[0]))
        step = mm / (len(records) - 1)
        read = [record.load() for record in records]
        hu = np.concatenate([volume.hu for volume, _ in read])
        true = np.concatenate([mask for _, mask in read]) > 0
        stack = volume_of(hu, dataclasses.replace(records[0], thickness_mm=step))
        for what, postprocess in (("with post-processing", True), ("without", False)):
            found = segment(stack, loaded, postprocess=postprocess).mask > 0
            tally.count(what, records[0].patient, found, true)
    return {"patients": len(slices), **tally.means()}


def _index(record: SliceRecord) -> int:
    """Which slice of its CT it is."""
    return int(record.name.rpartition("slice")[2])


def _found(path: Path, loaded: LoadedModel) -> tuple[CTVolume, Array, float]:
    volume = load_ct(path)
    result = segment(volume, loaded)
    return volume, result.mask > 0, round(result.volume_ml, 1)


def _against(volume: CTVolume, found: Array, reference: Path) -> dict[str, Any]:
    """Dice, and how far what is found reaches beyond the reference along z."""
    mask, on = load_mask(reference)
    true = bring_onto(volume, mask, on, reference.name) > 0
    slices = [np.flatnonzero(m.any(axis=(1, 2))) for m in (found, true)]
    beyond = 0.0
    if all(len(s) for s in slices):
        steps = max(slices[1][0] - slices[0][0], slices[0][-1] - slices[1][-1], 0)
        beyond = float(steps * volume.spacing[0])
    dice = 2 * (found & true).sum() / max(1, found.sum() + true.sum())
    return {"dice": round(float(dice), 4), "mm beyond": beyond}


def score_cts(folder: Path, model: str) -> dict[str, Any]:
    """Figures of whole CTs."""
    loaded = LoadedModel(model)
    volume, found, ml = _found(folder / "example" / "ct.nii.gz", loaded)
    reference = folder / "example" / "pancreas_v1.nii.gz"
    result: dict[str, Any] = {"example": {"mL": ml, **_against(volume, found, reference)}}
    volume, found, ml = _found(folder / "dicom", loaded)
    result["dicom"] = {
        "mL": ml,
        **_against(volume, found, folder / "dicom_pancreas.nii.gz"),
        "voxels in slices 8 to 19": int(found[8:20].sum()),
    }
    for name in ("chest_1", "chest_2"):
        _, _, ml = _found(folder / "negatives" / f"{name}.nii.gz", loaded)
        result[name] = {"mL": ml}
    return result


def main() -> None:
    """Write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["slices", "stacks", "cts"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default=None)
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    scores: dict[str, tuple[Callable[[Path, str], dict[str, Any]], str]] = {
        "slices": (score_slices, "benchmarks/models/fold0"),
        "stacks": (score_stacks, "benchmarks/models/fold0"),
        "cts": (score_cts, "default"),
    }
    score, usual = scores[asked.what]
    text = json.dumps(score(asked.folder, asked.model or usual), indent=1) + "\n"
    if asked.output:
        asked.output.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
