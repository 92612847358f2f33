"""Slices with masks, brought to one physical scale for training."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.arrays import Bytes, Indices, Labels, Mask
from napari_pancreas_seg.data.sample import load_sample
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.blocks import SOFT_TISSUE_HU
from napari_pancreas_seg.inference.body import find_body, place_frame
from napari_pancreas_seg.inference.frame import Frame, FrameSpec
from napari_pancreas_seg.io import load_ct
from napari_pancreas_seg.tissue import evenly_spread
from napari_pancreas_seg.training.data.cache import (
    CachedRows,
    Rows,
    cached_rows,
    case_key,
    classes_shown,
    joined_rows,
)
from napari_pancreas_seg.training.data.layouts.cases import BadCases, LabelledCase
from napari_pancreas_seg.volume import CTVolume

DEFAULT_FRAME = FrameSpec()
WORKING_FRAME = FrameSpec(height=304, width=400, mm_per_pixel=1.0)
"""The part of a slice that is kept for training: room around the network's frame to turn and shift.
Less is never kept around a body."""
ROOM_MM = (112.0, 131.0)
"""Height and width beyond those of the default frame, half of it on either side."""
SLICE_STEP_MM = 2.5
"""Thinner slices than this teach next to nothing new."""
NEAR_MM = 30.0
"""Slices this near to those that show something are the hard ones: all of them are kept."""
FAR_SLICES = 24
"""So many of a volume's other slices are kept, evenly spread."""


@dataclass(frozen=True, eq=False)
class TrainingSlices:
    """Slices at the working scale, ready to be augmented."""

    hu: Rows  # (N, H, W), uint8: HU clipped to [0, 255], in memory or on disk
    target: Rows  # (N, H, W, C), uint8: area-averaged share of each class, 255 for all
    patient: npt.NDArray[np.str_]  # whose slice it is
    kind: npt.NDArray[np.str_]  # "patient", or "negative": a CT without pancreas
    usable: Mask  # whether it is drawn for batches

    def __len__(self) -> int:
        return len(self.patient)

    @classmethod
    def of(cls, hu: Rows, target: Rows, patient: str, kind: str) -> TrainingSlices:
        """Slices of one patient, all of them usable."""
        n = len(hu)
        return cls(hu, target, np.full(n, patient), np.full(n, kind), np.ones(n, bool))

    @cached_property
    def present(self) -> Mask:
        """Which classes a slice shows, shape (N, C)."""
        return classes_shown(self.target)

    @classmethod
    def join(cls, parts: Iterable[TrainingSlices]) -> TrainingSlices:
        """All slices of several sets."""
        parts = list(parts)
        return cls(
            joined_rows([p.hu for p in parts]),
            joined_rows([p.target for p in parts]),
            np.concatenate([p.patient for p in parts]),
            np.concatenate([p.kind for p in parts]),
            np.concatenate([p.usable for p in parts]),
        )

    def inputs(self, chosen: Indices) -> Bytes:
        """The chosen slices as the network's input, shape (B, 1, H, W)."""
        return self.hu[chosen][:, None]


def working_frame(frame: FrameSpec) -> FrameSpec:
    """Return the frame of the slices kept to train with `frame`; both have the same centre."""
    mm = min(WORKING_FRAME.mm_per_pixel, frame.mm_per_pixel)
    sides = ((frame.height, WORKING_FRAME.height), (frame.width, WORKING_FRAME.width))
    kept = []
    for (size, usual), room in zip(sides, ROOM_MM, strict=True):
        wanted = 8 * math.ceil((size * frame.mm_per_pixel + room) / mm / 8)
        # The usual size, unless more than a quarter of the room would be missing.
        kept.append(usual if wanted - room / 4 <= usual else wanted)
    return replace(frame, height=kept[0], width=kept[1], mm_per_pixel=mm)


def fold_of_patients(patients: Sequence[str], folds: int, fold: int, seed: int) -> list[str]:
    """Patients of one fold, a pure function of the patients' names and the seed."""
    unique = sorted(set(patients))
    if len(unique) < 2:
        raise PancreasSegError(
            "All cases are of one patient, so none can be held back to measure the model on. Add "
            "CTs of other patients, or improve a model that exists with 'finetune'."
        )
    if not 2 <= folds <= len(unique):
        raise PancreasSegError(
            f"{len(unique)} patients cannot be split into {folds} folds; choose --folds from 2 to "
            f"{len(unique)}."
        )
    if not 0 <= fold < folds:
        raise PancreasSegError(
            f"There is no fold {fold} of {folds}; folds are counted from 0 to {folds - 1}."
        )
    order = np.random.default_rng(seed).permutation(len(unique))
    return sorted(unique[i] for i in order[fold::folds])


def load_cases(
    cases: Sequence[LabelledCase],
    labels: Mapping[str, int],
    *,
    cache: Path | None = None,
    frame: FrameSpec = DEFAULT_FRAME,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> TrainingSlices:
    """Bring the labelled slices of cases, single or whole volumes, to the working scale.

    Of a volume, every labelled slice that shows something is kept, the others up to 30 mm from
    those, and a few farther off; slices closer together than 2.5 mm are thinned. `labels`
    are the values of the targets' classes in the label maps, in this order. With a `cache` folder
    slices are read from there row by row. BadCases names all cases that cannot be used.
    """
    if not cases:
        raise PancreasSegError("There are no cases to train on.")
    how = {"labels": dict(labels), "step_mm": SLICE_STEP_MM, "frame": working_frame(frame)}
    values = [*labels.values()]
    parts: list[TrainingSlices] = []
    problems: list[str] = []
    for done, case in enumerate(cases, start=1):
        make = partial(_rows_of, case, values, working_frame(frame))
        try:
            rows = make() if cache is None else cached_rows(cache, case_key(case, how), make)
        except BadCases as error:
            problems += error.problems
        else:
            parts.append(TrainingSlices.of(rows.hu, rows.target, case.patient, "patient"))
        on_case(done, len(cases))
    if problems:
        raise BadCases(problems)
    return TrainingSlices.join(parts)


def _rows_of(case: LabelledCase, values: Sequence[int], frame: FrameSpec) -> CachedRows:
    """Slices and targets of a case."""
    try:
        volume, mask = case.load()
        labelled = np.array(
            range(len(mask)) if case.slices is None else sorted({*case.slices}), np.intp
        )
        shown = np.array([np.isin(mask[z], values).any() for z in labelled], bool)
        chosen = choose_slices(labelled, shown, volume.spacing[0], SLICE_STEP_MM)
        placed = place_frame(volume.hu, volume.spacing, frame)
    except PancreasSegError as error:
        raise BadCases.of(case.name, error) from error
    return CachedRows(*cut_out(volume, mask, chosen, values, placed))


def choose_slices(labelled: Indices, shown: Mask, spacing_z_mm: float, step_mm: float) -> Indices:
    """The labelled slices to learn from: not too close together, and not too many without."""
    kept: list[int] = []
    for i, z in enumerate(labelled):
        # Half a slice of tolerance, so that the mean distance is the one asked for.
        if not kept or (z - labelled[kept[-1]] + 0.5) * spacing_z_mm >= step_mm:
            kept.append(i)
    labelled, shown = labelled[kept], shown[kept]
    gland = labelled[shown]
    away = np.full(len(labelled), np.inf)
    if gland.size:
        away = np.abs(labelled[:, None] - gland).min(axis=1) * spacing_z_mm
    far = evenly_spread(labelled[away > NEAR_MM], FAR_SLICES)
    return np.sort(np.concatenate([labelled[away <= NEAR_MM], far]))


def load_negatives(
    paths: Sequence[str], *, classes: int = 1, frame: FrameSpec = DEFAULT_FRAME
) -> TrainingSlices:
    """Slices of CTs that show no pancreas, at the working scale, with empty targets.

    ``FILE:40`` leaves out the lowest 40 slices, ``FILE:40:90`` keeps slices 40 to 89.
    """
    parts = []
    for text in paths:
        found = re.fullmatch(r"(.+?)(?::(\d+))?(?::(\d+))?", text)
        assert found is not None
        volume = load_ct(Path(found[1]))
        stop = min(int(found[3] or volume.grid.shape[0]), volume.grid.shape[0])
        chosen = np.arange(int(found[2] or 0), stop)
        if not chosen.size:
            raise PancreasSegError(f"{text}: no slice is left of {volume.grid.shape[0]}.")
        none = np.zeros(volume.grid.shape, np.uint8)
        placed = place_frame(volume.hu, volume.spacing, working_frame(frame))
        hu, target = cut_out(volume, none, chosen, [1] * classes, placed)
        parts.append(TrainingSlices.of(hu, target, volume.name, "negative"))
    return TrainingSlices.join(parts)


def sample_slices(frame: FrameSpec = DEFAULT_FRAME) -> TrainingSlices:
    """Every second slice of the synthetic sample CT, at the working scale; it has one class."""
    sample = load_sample()
    placed = place_frame(sample.volume.hu, sample.volume.spacing, working_frame(frame))
    chosen = np.arange(0, len(sample.mask), 2)
    hu, target = cut_out(sample.volume, sample.mask, chosen, [1], placed)
    return TrainingSlices.of(hu, target, "sample", "sample")


def cut_out(
    volume: CTVolume, mask: Labels, chosen: Indices, values: Sequence[int], frame: Frame
) -> tuple[Bytes, Bytes]:
    """Slices (n, H, W) as inference shows them, and each value's share of a pixel (n, H, W, C)."""
    rows, columns = frame.into()
    body = find_body(volume.hu, volume.spacing)
    hu = np.empty((len(chosen), frame.spec.height, frame.spec.width), np.uint8)
    target = np.zeros((*hu.shape, len(values)), np.uint8)
    for i, z in enumerate(chosen):
        seen = body.shown(volume.hu[z : z + 1])[0].astype(np.float32)
        clipped = np.clip(seen + body.shift, *SOFT_TISSUE_HU)
        hu[i] = np.rint(rows @ clipped @ columns.T)
        if not np.isin(mask[z], values).any():
            continue
        share = np.stack([rows @ (mask[z] == v).astype(np.float32) @ columns.T for v in values], -1)
        # What is rounded is the sum up to each class, so that all together never exceed 255.
        target[i] = np.diff(np.rint(255.0 * np.cumsum(share, axis=-1)), axis=-1, prepend=0)
    return hu, target
