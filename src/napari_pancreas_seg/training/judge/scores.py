"""Scores of a patient, and their summary over patients."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.arrays import Array, Floats, Mask
from napari_pancreas_seg.inference.result import ScalarMap, Segmentation
from napari_pancreas_seg.mask.metrics import (
    SurfaceAgreement,
    in_plane_surface_distances,
    surface_distances,
)
from napari_pancreas_seg.volume import CTVolume

TOLERANCE_MM = 2.0
"""Tolerance of the surface Dice."""
FAILURE_DICE = 0.5
"""A patient with a Dice below this counts as a failure."""
GOOD_DICE = 0.85
"""From here on masks agree about as well as those of two radiologists."""
EMPTY_DICE = "Dice is 1 if nothing was found there, else 0"
"""What counts for a patient whose reference shows nothing."""
TISSUE_HU = 10.0
"""Above this a pixel is tissue other than fat: what attention in the gland is compared with."""
RESAMPLES = 10_000


def bootstrap_interval(values: Sequence[float] | Array, *, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean over patients, by the percentile bootstrap (Efron 1979)."""
    array = np.asarray(values, float)
    if not array.size:
        return float("nan"), float("nan")
    chosen = np.random.default_rng(seed).integers(0, array.size, (RESAMPLES, array.size))
    low, high = np.percentile(array[chosen].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def paired_difference(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float | int]:
    """Mean of a - b over the patients that both have, with its 95 % interval and n."""
    found = summarise(a[patient] - b[patient] for patient in sorted(a.keys() & b.keys()))
    return {name: found[name] for name in ("n", "mean", "low", "high") if name in found}


def at_others_threshold(patients: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Dice of each patient, at the threshold that is best for all other patients."""
    names = sorted(patients)
    curves = np.array([patients[name] for name in names])
    if len(names) < 2:
        return {name: float(max(patients[name])) for name in names}
    others = (curves.sum(axis=0) - curves) / (len(names) - 1)
    best = others.argmax(axis=1)
    return {name: float(curves[i, best[i]]) for i, name in enumerate(names)}


def summarise(
    values: Iterable[float | None], *, higher_is_better: bool = True
) -> dict[str, float | int]:
    """``n``, ``mean``, ``sd`` (of the sample), ``median``, ``worst``, ``low`` and ``high`` (95 %).

    One value for each patient; None, where a figure is not defined, is left out. One patient has
    no ``sd``, ``low`` and ``high``.
    """
    array = np.array([value for value in values if value is not None], float)
    if not array.size:
        return {"n": 0}
    found = {
        "mean": array.mean(),
        "median": np.median(array),
        "worst": array.min() if higher_is_better else array.max(),
    }
    if array.size > 1:
        low, high = bootstrap_interval(array)
        found |= {"sd": array.std(ddof=1), "low": low, "high": high}
    return {"n": int(array.size), **{name: round(float(v), 4) for name, v in found.items()}}


def summarise_patients(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Summary over patients, from the figures of each; see `PatientCounts.figures`.

    ``summary``, for every figure what `summarise` gives; ``failures``, patients with a Dice below
    `FAILURE_DICE`, worst first; ``good``, how many reach `GOOD_DICE`; ``nothing_found``, in how
    many the mask is empty and the reference is not; ``attention``, a row a gate.
    """
    figures = dict.fromkeys(n for row in rows.values() for n in row if n not in _NO_FIGURES)
    failed = sorted((row["dice"], p) for p, row in rows.items() if row["dice"] < FAILURE_DICE)
    good = sum(row["dice"] >= GOOD_DICE for row in rows.values())
    return {
        "summary": {
            name: summarise(
                [row.get(name) for row in rows.values()],
                higher_is_better=name not in _LOWER_IS_BETTER,
            )
            for name in figures
        },
        "failures": {"below": FAILURE_DICE, "patients": [patient for _, patient in failed]},
        "good": {"from": GOOD_DICE, "n": good, "share": round(good / max(1, len(rows)), 4)},
        "nothing_found": sum(
            row.get("recall") is not None and row.get("precision") is None for row in rows.values()
        ),
        "attention": _summarise_attention([row.get("attention", ()) for row in rows.values()]),
    }


_NO_FIGURES = ("slices", "missed_slices", "attention")
_LOWER_IS_BETTER = ("hd95_mm", "mean_distance_mm")


def _summarise_attention(patients: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Attention over patients, a row a gate, finest first."""
    rows = []
    for number, found in enumerate(zip_longest(*patients), start=1):
        gates = [gate for gate in found if gate]
        if not gates:
            continue
        means = {name: round(statistics.fmean(g[name] for g in gates), 4) for name in gates[0]}
        ratios = {
            f"ratio_to_{name}": summarise(g["inside"] / max(g[name], 1e-6) for g in gates)
            for name in ("tissue", "frame")
        }
        rows.append({"gate": number, **means, **ratios})
    return rows


@dataclass
class _GateSums:
    """Sums of coefficients and pixels: gland, other tissue (above `TISSUE_HU`), the rest."""

    sums: Floats = field(default_factory=lambda: np.zeros(3))
    pixels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))
    squares: float = 0.0

    def add(self, alpha: Array, gland: Array, tissue: Array) -> None:
        for i, where in enumerate((gland, tissue, ~gland)):
            self.sums[i] += alpha[where].sum()
            self.pixels[i] += np.count_nonzero(where)
        self.squares += float((alpha**2).sum())

    def means(self) -> dict[str, float]:
        """Mean coefficient of each, and the SD over the frame; empty where one has no pixel."""
        if not self.pixels.all():
            return {}
        inside, tissue, frame = (float(m) for m in self.sums / self.pixels)
        n = self.pixels[0] + self.pixels[2]
        variance = self.squares / n - ((self.sums[0] + self.sums[2]) / n) ** 2
        sd = float(np.sqrt(max(0.0, variance)))
        return {"inside": inside, "tissue": tissue, "frame": frame, "sd": sd}


@dataclass
class PatientCounts:
    """Counts of one patient, CT by CT; `figures` makes figures of them."""

    both: int = 0
    predicted: int = 0
    reference: int = 0
    predicted_mm3: float = 0.0
    reference_mm3: float = 0.0
    slices: int = 0
    missed: int = 0
    surfaces: list[SurfaceAgreement] = field(default_factory=list)
    gates: list[_GateSums] = field(default_factory=list)

    def add(
        self,
        found: Segmentation,
        volume: CTVolume,
        reference: Array,
        slices: Sequence[int] | None = None,
    ) -> None:
        """Count a CT with its reference (Z, Y, X): outlines of a single slice, else surfaces.

        Of a CT that is labelled in some `slices` only, count these, and their outlines.
        """
        truth, mask = reference > 0, found.mask > 0
        part = len(truth) == 1 or slices is not None
        if slices is not None:
            labelled = np.isin(np.arange(len(truth)), slices)[:, None, None]
            truth, mask = truth & labelled, mask & labelled
        measure = in_plane_surface_distances if part else surface_distances
        self.surfaces.append(
            measure(truth, mask, volume.grid.affine[:3, :3])
        )  # first, as it may fail
        counts = [int(np.count_nonzero(x)) for x in (truth & mask, mask, truth)]
        self.both += counts[0]
        self.predicted += counts[1]
        self.reference += counts[2]
        self.predicted_mm3 += counts[1] * volume.grid.voxel_volume_mm3
        self.reference_mm3 += counts[2] * volume.grid.voxel_volume_mm3
        shown = [x.any(axis=(1, 2)) for x in (truth, mask)]
        self.slices += int(np.count_nonzero(shown[0] | shown[1]))
        self.missed += int(np.count_nonzero(shown[0] ^ shown[1]))
        if not self.gates:
            self.gates = [_GateSums() for _ in found.attention]
        for gate, sums in zip(found.attention, self.gates, strict=True):
            _count_attention(gate, volume, truth, sums)

    def figures(self) -> dict[str, Any]:
        """How well mask and reference agree, all slices pooled, as plain data.

        Recall, precision and the ratio of volumes are None where the divisor is nothing. ``slices``
        show the reference or the mask, ``missed_slices`` the one but not the other. ``attention``
        has a row a gate, the finest first, empty where nothing could be measured.
        """
        surface = SurfaceAgreement.pooled(self.surfaces)
        total = self.predicted + self.reference
        return {
            "dice": 2 * self.both / total if total else 1.0,
            "hd95_mm": surface.hd95_mm,
            f"surface_dice_{TOLERANCE_MM:g}mm": surface.surface_dice(TOLERANCE_MM),
            "mean_distance_mm": surface.mean_mm,
            "recall": self.both / self.reference if self.reference else None,
            "precision": self.both / self.predicted if self.predicted else None,
            "volume_ratio": self.predicted_mm3 / self.reference_mm3 if self.reference else None,
            "slices": self.slices,
            "missed_slices": self.missed,
            "attention": [sums.means() for sums in self.gates],
        }


def rounded(figures: Any) -> Any:
    """Figures, as deep as they lie, with four digits."""
    if isinstance(figures, Mapping):
        return {name: rounded(value) for name, value in figures.items()}
    if isinstance(figures, list):
        return [rounded(value) for value in figures]
    return round(figures, 4) if isinstance(figures, float) else figures


def _count_attention(gate: ScalarMap, volume: CTVolume, truth: Mask, sums: _GateSums) -> None:
    """Add the coefficients of the slices that show the gland, each CT pixel at its nearest one."""
    to_map = np.linalg.inv(gate.grid.affine) @ volume.grid.affine  # diagonal: axes are parallel
    index, inside = [], []
    for axis, (n_ct, n_map) in enumerate(zip(truth.shape, gate.values.shape, strict=True)):
        nearest = np.rint(to_map[axis, axis] * np.arange(n_ct) + to_map[axis, 3]).astype(int)
        inside.append(np.flatnonzero((nearest >= 0) & (nearest < n_map)))
        index.append(nearest[inside[-1]])
    for z_ct, z_map in zip(inside[0], index[0], strict=True):
        if not truth[z_ct].any():
            continue
        here = np.ix_(inside[1], inside[2])
        alpha = gate.values[z_map][np.ix_(index[1], index[2])].astype(np.float64)
        known = np.isfinite(alpha)
        gland, tissue = truth[z_ct][here], volume.hu[z_ct][here] > TISSUE_HU
        sums.add(alpha[known], gland[known], (tissue & ~gland)[known])
