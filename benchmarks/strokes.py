"""How far a few strokes bring a mask: a robot that draws as a person does.

    python benchmarks/strokes.py ../shared -o FILE.json [--model BUNDLE] [--walker]

Slices of the ten patients that `benchmarks/models/fold0` never saw begin with its masks. Each
stroke goes into the largest wrong piece: for `nps.mend`, for plain paint and erase, and with
``--walker`` for scikit-image's random walker. Then masks of true neighbours (`gland-volumes`) are
carried to those slices that have some, 1 to 6 mm away.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

LONGEST_MM, WIDTH_MM, SHAKE_MM, SPILT_MM = 15.0, 5.0, 0.7, 0.7
REPORTED = (0, 1, 2, 3, 5)
GOOD = 0.9
PATIENTS = "0002,0006,0010,0012,0022,0036,0046,0049,0056,0061"
FARTHEST_MM = 6.0
SURE, BETA, WALKED_MM = (0.1, 0.95), 130, 60.0
"""Of the random walker: probabilities that are seeds, its weight of edges, how far it looks."""


def draw_stroke(
    present: Mask, truth: Mask, pixel_mm: tuple[float, float], rng: np.random.Generator
) -> tuple[Mask, bool]:
    """A stroke (Y, X) into the largest wrong piece, and whether it adds; empty if none is wrong.

    It begins somewhere in the thick part of the piece and runs along it for at most 15 mm, as long
    as it stays within. The brush is 5 mm wide, a hand shakes, and hardly leaves the piece.
    """
    drawn = np.zeros(present.shape, bool)
    size, number, adds = 0, 0, False
    for what, wrong in ((True, truth & ~present), (False, present & ~truth)):
        labels, n = ndimage.label(wrong)
        sizes = np.bincount(labels.ravel())[1:]
        if n and sizes.max() > size:
            size, number, adds, pieces = sizes.max(), int(sizes.argmax()) + 1, what, labels
    if not size:
        return drawn, False
    pixel, rim = np.array(pixel_mm), [int(np.ceil(10 / s)) for s in pixel_mm]
    box = tuple(
        slice(max(0, s.start - r), s.stop + r)
        for s, r in zip(ndimage.find_objects(pieces)[number - 1], rim, strict=True)
    )
    piece = pieces[box] == number
    depth = ndimage.distance_transform_edt(piece, sampling=pixel)
    thick = np.argwhere(depth >= 0.6 * depth.max())
    start = thick[rng.integers(len(thick))] * pixel
    path = _path(depth, pixel, start, LONGEST_MM - WIDTH_MM, rng) + rng.normal(0, SHAKE_MM, 2)
    points = np.rint(path / pixel).astype(int)
    points = points[((points >= 0) & (points < piece.shape)).all(axis=1)]
    line = np.ones(piece.shape, bool)
    line[tuple(points.T)] = False
    if not line.all():
        brush = ndimage.distance_transform_edt(line, sampling=pixel) <= WIDTH_MM / 2
        spilt = ndimage.distance_transform_edt(~piece, sampling=pixel)
        drawn[box] = brush & (spilt <= SPILT_MM)
    return drawn, adds


def _path(
    depth: Array, pixel: Array, start: Array, longest: float, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Points (n, 2) in mm, half a mm apart, both ways from a start along the piece, within it."""
    places = np.argwhere(depth > 0) * pixel
    near = places[np.linalg.norm(places - start, axis=1) < LONGEST_MM]
    _, vectors = np.linalg.eigh(np.cov(near.T) if len(near) > 2 else np.eye(2))
    angle = np.arctan2(*vectors[:, -1]) + rng.normal(0, np.deg2rad(15))
    turns = np.deg2rad([0, -12, 12, -24, 24])
    ends = []
    for heading in (angle, angle + np.pi):
        at, end = start, []
        while len(end) < longest:  # half of the length, in steps of half a mm
            headings = heading + turns
            steps = at + np.stack([np.sin(headings), np.cos(headings)], -1) / 2
            index = np.rint(steps / pixel).astype(int)
            inside = ((index >= 0) & (index < depth.shape)).all(axis=1)
            room = np.where(inside, depth[tuple(np.where(inside[:, None], index, 0).T)], 0.0)
            best = int(np.argmax(np.minimum(room, WIDTH_MM / 2) - 0.05 * np.abs(turns)))
            if room[best] <= 0:
                break
            at, heading = steps[best], headings[best]
            end.append(at)
        ends.append(end)
    return np.array([*ends[0][::-1], start, *ends[1]])


@dataclass(frozen=True, eq=False)
class Case:
    """A slice with its true mask, and what a network that never saw the patient makes of it."""

    name: str
    patient: str
    volume: Any
    truth: Mask
    start: Mask
    probability: npt.NDArray[np.float32]

    @property
    def pixel(self) -> tuple[float, float]:
        """Its size in mm."""
        return self.volume.spacing[1:]


def read_cases(folder: Path, model: Path, patients: list[str], kept: Path | None) -> list[Case]:
    """The slices of these patients; the network's answers are kept in a file if one is named."""
    import napari_pancreas_seg as nps
    from napari_pancreas_seg.inference.body import place_frame
    from napari_pancreas_seg.training.data.layouts.slices import read_slice_layout

    records = [r for r in read_slice_layout(folder) if r.patient in patients]
    loaded = None if kept and kept.exists() else nps.LoadedModel(model)
    answers = {}
    if loaded is None:
        with np.load(kept) as file:
            answers = dict(file)
    cases = []
    for record in records:
        volume, truth = record.load()
        if loaded is not None:
            found = nps.segment(volume, loaded, postprocess=False, every_slice=True)
            rows, columns = place_frame(volume.hu, volume.spacing, loaded.frame).out_of()
            native = rows @ found.probability.values[0].astype(np.float32) @ columns.T
            answers[record.name] = np.stack([found.mask[0], native]).astype(np.float16)
        start, probability = answers[record.name]
        name = record.name
        cases.append(
            Case(name, record.patient, volume, truth[0] > 0, start > 0.5, np.float32(probability))
        )
    if loaded is not None and kept:
        np.savez_compressed(kept, **answers)
    return cases


def dice(a: Mask, b: Mask) -> float:
    """Dice of two masks of which at least one is not empty."""
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


Mend = Callable[[Case, Mask, Mask, Mask], Mask]


def draw(case: Case, mend: Mend, number: int) -> tuple[list[float], list[float]]:
    """Dice after 0, 1, 2, ... strokes, and seconds of each answer."""
    rng = np.random.default_rng([7, number])
    mask, scores, seconds = case.start, [dice(case.start, case.truth)], []
    strokes = [np.zeros(mask.shape, bool), np.zeros(mask.shape, bool)]
    for _ in range(max(REPORTED)):
        stroke, adds = draw_stroke(mask, case.truth, case.pixel, rng)
        strokes[0 if adds else 1] |= stroke
        strokes[1 if adds else 0] &= ~stroke
        begun = time.perf_counter()
        mask = mend(case, mask, *strokes)
        seconds.append(time.perf_counter() - begun)
        scores.append(dice(mask, case.truth))
    return scores, seconds


def paint(case: Case, mask: Mask, add: Mask, remove: Mask) -> Mask:
    """Plain brush and eraser."""
    return (mask | add) & ~remove


def walk(case: Case, mask: Mask, add: Mask, remove: Mask) -> Mask:
    """scikit-image's random walker: strokes and sure probabilities are seeds."""
    from skimage.segmentation import random_walker

    rows, columns = np.nonzero(add | remove | case.start)
    rim = [int(WALKED_MM / s) for s in case.pixel]
    box = (
        slice(max(0, rows.min() - rim[0]), rows.max() + rim[0]),
        slice(max(0, columns.min() - rim[1]), columns.max() + rim[1]),
    )
    seeds = np.zeros(mask.shape, int)
    seeds[case.probability < SURE[0]] = 2
    seeds[case.probability > SURE[1]] = 1
    seeds[add], seeds[remove] = 1, 2
    found = paint(case, mask, add, remove)
    labels = set(np.unique(seeds[box])) - {0}
    if labels == {1, 2}:
        hu = np.clip(case.volume.hu[0][box], 0, 255).astype(float) / 255
        found[box] = random_walker(hu, seeds[box], beta=BETA, mode="cg_j") == 1
    return found


def summary(scores: Array, patients: list[str]) -> dict[str, Any]:
    """What is reported of Dice by slice and number of strokes."""
    report = {}
    for n in REPORTED:
        column = np.sort(scores[:, n])
        means = [scores[np.array(patients) == p, n].mean() for p in sorted(set(patients))]
        report[str(n)] = {
            "mean": round(float(column.mean()), 4),
            "worst_quarter": round(float(column[: len(column) // 4].mean()), 4),
            "share_090": round(float((column >= GOOD).mean()), 3),
            "patient_mean": round(float(np.mean(means)), 4),
        }
    return report


def neighbours(shared: Path, cases: list[Case]) -> Iterator[tuple[Case, float, Mask, Mask]]:
    """Slices with a true neighbour: mm, its mask, and shape interpolation from both sides."""
    import nibabel as nib

    from napari_pancreas_seg.inference.frame import resampling_matrix
    from napari_pancreas_seg.mask.editing import fill_between_slices

    def rows_of(path: Path) -> list[dict[str, str]]:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    of = {row["name"]: row for row in rows_of(shared / "pancreas-ct" / "manifest.csv")}
    listed = rows_of(shared / "gland-volumes" / "manifest.csv")
    glands = {r["patient"]: r for r in listed if r["name"].startswith("NIH")}
    for patient in sorted({case.patient for case in cases} & glands.keys()):
        row = glands[patient]
        whole = np.asarray(nib.load(shared / "gland-volumes" / row["name"]).dataobj) > 0
        mm = float(row["spacing_mm"].split("x")[2])
        for case in (case for case in cases if case.patient == patient):
            k, margin = int(of[case.name]["slice_index"]), int(of[case.name]["crop_margin_px"])
            step = (512 - 2 * margin) / 512
            cut = resampling_matrix(512, 512, margin + (step - 1) / 2, step)

            def plane(z: int, cut: Array = cut, whole: Array = whole) -> Mask:
                return cut @ np.rot90(whole[:, :, z]).astype(np.float32) @ cut.T > 0.5

            if dice(plane(k), case.truth) < 0.9:
                continue
            for n in range(1, int(FARTHEST_MM / mm) + 1):
                ends = [plane(z) if 0 <= z < whole.shape[2] else None for z in (k - n, k + n)]
                if any(end is None or not end.any() for end in ends):
                    continue
                stack = np.stack([ends[0], np.zeros_like(ends[0]), ends[1]]).astype(np.uint8)
                between = fill_between_slices(stack, (n * mm, *case.pixel))[1] > 0
                for end in ends:
                    yield case, n * mm, end, between


def carried(shared: Path, cases: list[Case], mender: Any) -> dict[str, Any]:
    """Dice of what is carried from true neighbours, beside what there is without the network."""
    found: dict[str, dict[str, list[float]]] = {}
    for case, mm, end, between in neighbours(shared, cases):
        if mm < 1 - 1e-6:
            continue
        masks = {"automatic": case.start, "copy": end, "interpolation": between}
        for name, prior in (("carried", end), ("carried between", between)):
            plane = mender.mend_plane(
                case.volume, case.start.astype(np.uint8), 0, prior=(prior, mm)
            )
            masks[name] = plane > 0
        group = found.setdefault("1 to 3 mm" if mm < 3.5 else "4 to 6 mm", {})
        exact = found.setdefault(f"{mm:g} mm", {})
        for name, mask in masks.items():
            for where in (group, exact):
                where.setdefault(name, []).append(dice(mask, case.truth))
    return {
        where: {"n": len(scores["copy"])}
        | {name: round(float(np.mean(values)), 4) for name, values in scores.items()}
        for where, scores in sorted(found.items())
    }


def main() -> None:
    """Let the robot draw, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shared", type=Path, help="folder with pancreas-ct and gland-volumes")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="mend", help="the network that mends")
    here = Path(__file__).parent
    parser.add_argument("--start", type=Path, default=here / "models" / "fold0")
    parser.add_argument("--keep", type=Path, help="file in which the first masks are kept")
    parser.add_argument("--walker", action="store_true", help="let the random walker run, too")
    parser.add_argument("--patients", default=PATIENTS)
    parser.add_argument("--every", type=int, default=1, help="take every so many slices only")
    asked = parser.parse_args()
    from napari_pancreas_seg import Mender

    patients = asked.patients.split(",")
    cases = read_cases(asked.shared / "pancreas-ct", asked.start, patients, asked.keep)
    cases = cases[:: asked.every]
    mender = Mender(asked.model)
    mender.warm_up(cases[0].volume)

    def mend(case: Case, mask: Mask, add: Mask, remove: Mask) -> Mask:
        plane = mender.mend_plane(case.volume, mask.astype(np.uint8), 0, add=add, remove=remove)
        return plane > 0

    ways: dict[str, Mend] = {"mend": mend, "paint": paint}
    if asked.walker:
        ways["random walker"] = walk
    report: dict[str, Any] = {"slices": len(cases), "cores": len(os.sched_getaffinity(0))}
    for name, way in ways.items():
        runs = [draw(case, way, number) for number, case in enumerate(cases)]
        scores = np.array([scores for scores, _ in runs])
        seconds = np.concatenate([seconds[1:] for _, seconds in runs])
        report[name] = summary(scores, [case.patient for case in cases])
        if name != "paint":
            report[name]["ms"] = {
                "median": round(1000 * float(np.median(seconds)), 1),
                "p95": round(1000 * float(np.quantile(seconds, 0.95)), 1),
            }
    report["carried"] = carried(asked.shared, cases, mender)
    report["weights_sha256"] = mender.card["weights_sha256"]
    asked.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
