"""Fits the alarm: the expected Dice of a case from what the program knows of it.

usage: python research/fit_alarm.py ../shared/pancreas-ct [--model benchmarks/models/fold0]
           [-o src/napari_pancreas_seg/data/alarm.json] [--results benchmarks/results/alarm.json]
           [--docs docs/quality.md]

Takes the patients whom the model never saw. The full frames of each, stacked 5 mm apart, are
segmented as they are and spoiled in ways that are fixed (`SPOILINGS`), so that there are bad masks
to learn from. The weights of a ridge regression on the log-odds of Dice are fitted on all of them;
the figures are of weights fitted without the patient that is predicted. Intervals are of a
bootstrap over patients. ``--results`` holds the figures and every case, ``--docs`` their table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage, stats

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.loaded import LoadedModel
from napari_pancreas_seg.inference.quality import FEATURES, LOW_DICE, features, predict
from napari_pancreas_seg.inference.segment import segment
from napari_pancreas_seg.io.files import write_json, write_text
from napari_pancreas_seg.training.data.layouts.slices import SliceRecord, read_slice_layout
from napari_pancreas_seg.training.judge.seen import patients_seen
from napari_pancreas_seg.volume import CTVolume

STEP_MM = 5.0
PENALTY = 1.0
BOOTSTRAPS = 2000
FEWEST_SLICES = 3
BINS = "expected: cases, mean expected, mean true"

Array = np.ndarray
Spoiled = tuple[Array, Array, float]
"""HU and mask (Z, Y, X), and the size of a pixel in mm."""


def field(mm: float) -> Callable[[Array, Array, float, np.random.Generator], Spoiled]:
    """A square field around the gland's middle; what lies outside does not count."""

    def cut(hu: Array, mask: Array, mm_px: float, _: np.random.Generator) -> Spoiled:
        y, x = (int(c) for c in np.argwhere(mask.any(axis=0)).mean(axis=0))
        half = round(mm / 2 / mm_px)
        part = np.s_[:, max(0, y - half) : y + half, max(0, x - half) : x + half]
        return hu[part], mask[part], mm_px

    return cut


def without_agent(hu: Array) -> Array:
    """45 to 200 HU squeezed to 45 to 70, and what is brighter lowered as much."""
    low = np.minimum(hu, 45) + np.clip(hu - 45, 0, 155) * (25 / 155)
    return low + np.maximum(hu - 200, 0)


def noise(sd: float) -> Callable[[Array, np.random.Generator], Array]:
    """Noise as it is in the values, smooth over a pixel or two, clipped as the slices are."""

    def add(hu: Array, rng: np.random.Generator) -> Array:
        grain = ndimage.gaussian_filter(rng.normal(size=hu.shape), (0, 0.8, 0.8))
        return np.clip(hu + grain * sd / grain.std(), 0, 255)

    return add


def streaks(hu: Array, rng: np.random.Generator) -> Array:
    """Bright and dark rays from a point, as metal leaves them."""
    y, x = np.mgrid[: hu.shape[1], : hu.shape[2]]
    angle = np.arctan2(y - hu.shape[1] * 0.45, x - hu.shape[2] * 0.55)
    rays = np.sin(angle * 23 + rng.uniform(0, 6)) * np.sin(angle * 7)
    return np.clip(hu + 120 * rays, 0, 255)


def values(change: Callable[..., Array]) -> Callable[..., Spoiled]:
    """A change of HU alone."""
    return lambda hu, mask, mm, rng: (change(hu, rng), mask, mm)


SPOILINGS: dict[str, Callable[..., Spoiled]] = {
    "as it is": lambda hu, mask, mm, rng: (hu, mask, mm),
    "field of 180 mm": field(180),
    "field of 130 mm": field(130),
    "no contrast agent": values(lambda hu, rng: without_agent(hu)),
    "noise of 25 HU": values(noise(25)),
    "noise of 50 HU": values(noise(50)),
    "noise of 90 HU": values(noise(90)),
    "blurred by 2 mm": values(lambda hu, rng: ndimage.gaussian_filter(hu, (0, 2.4, 2.4))),
    "blurred by 4 mm": values(lambda hu, rng: ndimage.gaussian_filter(hu, (0, 4.8, 4.8))),
    "streaks": values(streaks),
    "40 HU too low": values(lambda hu, rng: np.clip(hu - 40, 0, 255)),
    "cut off above 120 HU": values(lambda hu, rng: np.minimum(hu, 120)),
    "right and left exchanged": lambda hu, mask, mm, rng: (hu[:, :, ::-1], mask[:, :, ::-1], mm),
    "pixels given as 0.75 of their size": lambda hu, mask, mm, rng: (hu, mask, 0.75 * mm),
    "pixels given as 1.3 of their size": lambda hu, mask, mm, rng: (hu, mask, 1.3 * mm),
}


def stacks(dataset: Path, model: LoadedModel) -> Iterator[tuple[str, Array, Array, float]]:
    """Patients never seen: HU and mask (Z, Y, X) from feet to head, and the size of a pixel."""
    known = patients_seen([model.card])
    of: dict[str, list[SliceRecord]] = defaultdict(list)
    for record in read_slice_layout(dataset):
        if record.patient not in known and record.margin_px == 0:
            of[record.patient].append(record)
    for patient, records in sorted(of.items()):
        if len(records) >= FEWEST_SLICES:
            records.sort(key=lambda one: -int(one.name.rsplit("slice", 1)[1]))
            loaded = [one.load() for one in records]
            hu = np.concatenate([volume.hu for volume, _ in loaded]).astype(np.float32)
            mask = np.concatenate([mask for _, mask in loaded]) > 0
            yield patient, hu, mask, records[0].spacing_mm


def volume_of(hu: Array, mm: float) -> CTVolume:
    """A CT of a stack (Z, Y, X) of such pixels."""
    source = np.rint(hu).astype(np.int16).transpose(2, 1, 0)
    return CTVolume.from_source_array(source, np.diag([-mm, -mm, STEP_MM, 1.0]))


def look(hu: Array, mask: Array, mm: float, model: LoadedModel) -> dict[str, Any] | None:
    """Features and Dice of what the program finds; None where it finds nothing or refuses."""
    try:
        found = segment(volume_of(hu, mm), model)
    except PancreasSegError:
        return None
    seen = features(
        found.mask, found.grid, found.probability, found.threshold, found.expected_dice, found.scan
    )
    if seen is None:
        return None
    inside = found.mask > 0
    dice = 2 * (inside & mask).sum() / max(1, inside.sum() + mask.sum())
    return {**{name: round(seen[name], 4) for name in FEATURES}, "dice": round(float(dice), 4)}


def fit(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Ridge regression of the log-odds of Dice on standardised features."""
    x = np.array([[case[name] for name in FEATURES] for case in cases])
    y = np.clip([case["dice"] for case in cases], 0.03, 0.97)
    mean, sd = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-2)
    z = np.c_[np.ones(len(x)), (x - mean) / sd]
    ridge = np.diag([0.0, *[PENALTY] * len(FEATURES)])
    # Near 0 and 1 a step of the log-odds is a small one of Dice: weighted by Dice (1 - Dice).
    w = (y * (1 - y))[:, None]
    weights = np.linalg.solve(z.T @ (w * z) + ridge, z.T @ (w[:, 0] * np.log(y / (1 - y))))
    named = (dict(zip(FEATURES, map(float, each), strict=True)) for each in (weights[1:], mean, sd))
    return {
        "intercept": float(weights[0]),
        **dict(zip(("weights", "mean", "sd"), named, strict=True)),
    }


def figures(cases: list[dict[str, Any]]) -> dict[str, float]:
    """Agreement of expected with true Dice."""
    true = np.array([case["dice"] for case in cases])
    expected = np.array([case["expected"] for case in cases])
    bad = true < LOW_DICE
    auc = np.nan
    if bad.any() and not bad.all():
        ranks = stats.rankdata(-expected)
        auc = (ranks[bad].sum() - bad.sum() * (bad.sum() + 1) / 2) / (bad.sum() * (~bad).sum())
    slope = np.polyfit(expected, true, 1)[0] if np.ptp(expected) > 0 else np.nan
    return {
        "rank correlation": float(stats.spearmanr(expected, true)[0]),
        "AUC of Dice < 0.7": float(auc),
        "mean error": float((expected - true).mean()),
        "mean absolute error": float(np.abs(expected - true).mean()),
        "slope": float(slope),
    }


def with_intervals(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures, with 95 % of a bootstrap over patients."""
    of: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for case in cases:
        of[case["patient"]].append(case)
    rng, names = np.random.default_rng(0), sorted(of)
    drawn: dict[str, list[float]] = defaultdict(list)
    for _ in range(BOOTSTRAPS):
        sample = [case for name in rng.choice(names, len(names)) for case in of[name]]
        for what, value in figures(sample).items():
            drawn[what].append(value)
    found: dict[str, Any] = {"patients": len(of), "cases": len(cases)}
    found["cases of Dice < 0.7"] = sum(case["dice"] < LOW_DICE for case in cases)
    for what, value in figures(cases).items():
        ends = np.nanpercentile(drawn[what], [2.5, 97.5])
        found[what] = [None if np.isnan(n) else round(float(n), 3) for n in (value, *ends)]
    return found


def table(published: dict[str, Any]) -> str:
    """The figures in Markdown."""
    name, version = published["model"].values()
    parts = published["as they are"], published["all"]

    def cell(value: Any) -> str:
        if not isinstance(value, list):
            return str(value)
        middle, low, high = ("–" if each is None else f"{each:.2f}" for each in value)
        return f"{middle} ({low} to {high})"

    lines = [f"Model {name} {version}:", "", "| | slices as they are | with spoiled ones |"]
    lines += ["| --- | ---: | ---: |"]
    lines += [f"| {what} | {' | '.join(cell(part[what]) for part in parts)} |" for what in parts[0]]
    lines += ["", "| expected Dice | cases | mean expected | mean true |"]
    lines += ["| --- | ---: | ---: | ---: |"]
    lines += [
        f"| {ends} | {n} | {expected:.2f} | {true:.2f} |"
        for ends, (n, expected, true) in published[BINS].items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Fit and publish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--model", default="benchmarks/models/fold0")
    parser.add_argument("-o", "--output", default="src/napari_pancreas_seg/data/alarm.json")
    parser.add_argument("--results", default="benchmarks/results/alarm.json")
    parser.add_argument("--docs", type=Path, default=Path("docs/quality.md"))
    asked = parser.parse_args()
    model, rng, cases, nothing = LoadedModel(asked.model), np.random.default_rng(0), [], 0
    for patient, *whole in stacks(asked.dataset, model):
        for name, spoil in SPOILINGS.items():
            seen = look(*spoil(*whole, rng), model)
            nothing += seen is None
            if seen is not None:
                cases.append({"patient": patient, "spoiling": name, **seen})
        print(patient, [case["dice"] for case in cases if case["patient"] == patient], flush=True)
    for case in cases:
        others = [other for other in cases if other["patient"] != case["patient"]]
        case["expected"] = round(predict(case, fit(others)), 4)
    usual = [case for case in cases if case["spoiling"] == "as it is"]
    ends = (0, 0.5, 0.6, 0.7, 0.8, 1)
    bins = {
        f"{low} to {high}": [len(inside), *np.round(np.mean(inside, axis=0), 3).tolist()]
        for low, high in itertools.pairwise(ends)
        if (inside := [(c["expected"], c["dice"]) for c in cases if low <= c["expected"] < high])
    }
    published = {
        "model": {key: model.card[key] for key in ("name", "version")},
        "all": with_intervals(cases),
        "as they are": with_intervals(usual),
        BINS: bins,
        "nothing found": nothing,
    }
    print(json.dumps(published, indent=1))
    source = f"{len(cases)} cases of {published['all']['patients']} patients; research/fit_alarm.py"
    write_json(asked.output, {"source": source, **fit(cases)}, overwrite=True)
    write_json(asked.results, {**published, "cases": cases}, overwrite=True)
    page = asked.docs.read_text(encoding="utf-8")
    marks = "<!-- alarm:begin -->", "<!-- alarm:end -->"
    new = f"{marks[0]}\n{table(published)}\n{marks[1]}"
    page = re.sub(f"(?s){marks[0]}.*{marks[1]}", lambda _: new, page)
    write_text(asked.docs, page, overwrite=True)


if __name__ == "__main__":
    main()
