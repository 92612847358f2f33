"""Slices with masks, brought to one physical scale for training."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.data.phantom import make_phantom
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.frame import (
    SOFT_TISSUE_HU,
    FrameSpec,
    contrast_shift,
    evenly_spread,
)
from napari_pancreas_seg.inference.neighbours import neighbouring_slices
from napari_pancreas_seg.io import load_ct
from napari_pancreas_seg.training.data.cache import (
    CachedRows,
    Rows,
    cached_rows,
    case_key,
    classes_shown,
    joined_rows,
)
from napari_pancreas_seg.training.data.crops import Crop
from napari_pancreas_seg.training.data.layouts.cases import LabelledCase
from napari_pancreas_seg.training.data.layouts.slices import SliceRecord
from napari_pancreas_seg.training.data.placing import gland_of_slices, lay_frame
from napari_pancreas_seg.volume import CTVolume

__all__ = [
    "TrainingSlices",
    "fold_of_patients",
    "load_cases",
    "load_negatives",
    "load_phantoms",
    "working_frame",
]

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

DEFAULT_FRAME = FrameSpec()
WORKING_FRAME = FrameSpec(height=304, width=400, mm_per_pixel=1.0)
"""What is kept of a slice for training: room around the network's frame to turn and shift.
Less is never kept around a body."""
ROOM_MM = (112.0, 131.0)
"""How much higher and wider it is than the default frame: half of it on either side."""
SLICE_STEP_MM = 2.5
"""Thinner slices than this teach next to nothing new; twice this is the neighbours' distance."""
NEAR_MM = 30.0
"""Slices this near to those that show something are the hard ones: all of them are kept."""
FAR_SLICES = 24
"""So many of a volume's other slices are kept, evenly spread."""


@dataclass(frozen=True, eq=False)
class TrainingSlices:
    """Slices at the working scale, ready to be augmented.

    Parameters
    ----------
    hu : Rows, shape (N, H, W), uint8
        HU clipped to [0, 255], every slice once; in memory or on disk.
    target : Rows, shape (N, H, W, C), uint8
        Share of each pixel that belongs to each of the C classes, 255 for all of it:
        area-averaged, so that what resampling blurs is not lost.
    patient : ndarray, shape (N,), str
        Whose slice it is.
    kind : ndarray, shape (N,), str
        ``"patient"``, ``"negative"`` (a CT without pancreas) or ``"phantom"``.
    neighbours : ndarray, shape (N, S), intp
        Rows of `hu` that are a slice's input: itself alone (S = 1), or the slice below,
        itself and the one above, at a fixed distance in mm (S = 3).
    usable : ndarray, shape (N,), bool
        Whether a slice may be learnt from; the others only serve as neighbours.
    crops : sequence of Crop
        Glands without surroundings, to be mixed into slices.
    """

    hu: Rows
    target: Rows
    patient: npt.NDArray[np.str_]
    kind: npt.NDArray[np.str_]
    neighbours: npt.NDArray[np.intp]
    usable: npt.NDArray[np.bool_]
    crops: tuple[Crop, ...] = ()

    def __len__(self) -> int:
        return len(self.patient)

    @cached_property
    def present(self) -> npt.NDArray[np.bool_]:
        """Which classes a slice shows, shape (N, C)."""
        return classes_shown(self.target)

    @classmethod
    def join(cls, parts: Iterable[TrainingSlices]) -> TrainingSlices:
        """All slices of several sets."""
        parts = list(parts)
        first_row = np.cumsum([0, *(len(p) for p in parts)])
        return cls(
            joined_rows([p.hu for p in parts]),
            joined_rows([p.target for p in parts]),
            np.concatenate([p.patient for p in parts]),
            np.concatenate([p.kind for p in parts]),
            np.concatenate([p.neighbours + n for p, n in zip(parts, first_row, strict=False)]),
            np.concatenate([p.usable for p in parts]),
            tuple(crop for p in parts for crop in p.crops),
        )

    def inputs(self, chosen: npt.NDArray[np.intp]) -> npt.NDArray[np.uint8]:
        """The chosen slices with their neighbours, shape (B, S, H, W)."""
        return self.hu[self.neighbours[chosen]]


def working_frame(frame: FrameSpec) -> FrameSpec:
    """What is kept of a slice to train a network with such a frame; both share their centre."""
    body = frame.centre == "body"
    mm = WORKING_FRAME.mm_per_pixel if body else min(WORKING_FRAME.mm_per_pixel, frame.mm_per_pixel)
    height, width = (
        8 * math.ceil((size * frame.mm_per_pixel + room) / mm / 8)
        for size, room in zip((frame.height, frame.width), ROOM_MM, strict=True)
    )
    if body:
        height = _kept(height, WORKING_FRAME.height, ROOM_MM[0])
        width = _kept(width, WORKING_FRAME.width, ROOM_MM[1])
    return replace(frame, height=height, width=width, mm_per_pixel=mm)


def _kept(wanted: int, usual: int, room: float) -> int:
    """The usual size, unless more than a quarter of the room would be missing."""
    return usual if wanted - room / 4 <= usual else wanted


def fold_of_patients(patients: Sequence[str], folds: int, fold: int, seed: int) -> list[str]:
    """Patients of one fold, a pure function of the patients' names and the seed.

    Raises
    ------
    PancreasSegError
        If there are fewer patients than folds, or no fold of that number.
    """
    unique = sorted(set(patients))
    if not 0 <= fold < folds or not 2 <= folds <= len(unique):
        raise PancreasSegError(
            f"Fold {fold} of {folds} is not possible with {len(unique)} patients."
        )
    order = np.random.default_rng(seed).permutation(len(unique))
    return sorted(unique[i] for i in order[fold::folds])


@dataclass(frozen=True)
class _Choice:
    """Which slices of a volume are kept, and what goes with them; see `load_cases`."""

    labels: Mapping[str, int]
    neighbours_mm: float | None
    slice_step_mm: float
    network_frame: FrameSpec = DEFAULT_FRAME
    near_mm: float = NEAR_MM
    far_slices: int = FAR_SLICES
    gland_mm: tuple[float, float] | None = None

    @property
    def frame(self) -> FrameSpec:
        """What is kept of a slice."""
        return working_frame(self.network_frame)


def load_cases(
    cases: Sequence[LabelledCase],
    labels: Mapping[str, int],
    *,
    neighbours_mm: float | None = None,
    cache: Path | None = None,
    slice_step_mm: float = SLICE_STEP_MM,
    frame: FrameSpec = DEFAULT_FRAME,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> TrainingSlices:
    """Bring the labelled slices of cases, single or whole volumes, to the working scale.

    Of a volume, every labelled slice that shows something is kept, the others up to 30 mm from
    those, and a few farther off; slices closer together than `slice_step_mm` are thinned.

    Parameters
    ----------
    cases : sequence of LabelledCase
        What to load; one is in memory at a time.
    labels : Mapping of str to int
        Value of each class in the cases' label maps; the targets' classes, in this order.
    neighbours_mm : float, optional
        Give each slice the ones at this distance below and above it as further input.
    cache : Path, optional
        Folder to keep the slices in, where they stay to be read row by row, so that a data set
        may be larger than the memory; without it they are held in memory. What is in it of the
        same files and settings is not made again.
    slice_step_mm : float
        Smallest distance of two slices that are both learnt from, about.
    frame : FrameSpec
        The network's frame; see `working_frame`.
    on_case : callable
        Called after every case with the number of those that are done and of all.

    Raises
    ------
    PancreasSegError
        If a case cannot be read, shows no soft tissue, has a single slice where neighbours are
        asked for, or the cache cannot be written.
    """
    if not cases:
        raise PancreasSegError("There are no cases to train on.")
    settled = _Choice(dict(labels), neighbours_mm, slice_step_mm, frame)
    glands = gland_of_slices(cases, [*labels.values()], frame)
    parts = []
    for done, case in enumerate(cases, start=1):
        single = isinstance(case, SliceRecord)
        choice = replace(settled, gland_mm=glands.get(case.patient) if single else None)
        if cache is None:
            rows: CachedRows = _rows_of(case, choice)
        else:
            key = case_key(case, vars(choice))
            rows = cached_rows(cache, key, lambda c=case, h=choice: _rows_of(c, h))  # type: ignore[misc]
        parts.append(_slices(rows.hu, rows.target, case.patient, "patient", **rows.about))
        on_case(done, len(cases))
    return TrainingSlices.join(parts)


def _rows_of(case: LabelledCase, choice: _Choice) -> CachedRows:
    """Slices and targets of a case, and which of them are for what."""
    volume, mask = case.load()
    n_slices, spacing_z = volume.grid.shape[0], volume.spacing[0]
    if choice.neighbours_mm is not None and n_slices == 1:
        raise PancreasSegError(
            f"Case {case.name} is a single slice: neighbouring slices as input need whole "
            "volumes; train without them, or on data sets of volumes."
        )
    values = [*choice.labels.values()]
    labelled = range(n_slices) if case.slices is None else sorted({*case.slices})
    shown = np.array([np.isin(mask[z], values).any() for z in labelled], bool)
    chosen = _chosen(np.array(labelled, np.intp), shown, spacing_z, choice)
    stored, neighbours = _with_neighbours(chosen, n_slices, spacing_z, choice)
    try:
        hu, target = _working(volume, mask, stored, values, choice)
    except PancreasSegError as error:
        raise PancreasSegError(f"Case {case.name}: {error}") from error
    usable = np.isin(stored, chosen)
    target[~usable] = 0
    about = {"neighbours": neighbours.tolist(), "usable": usable.tolist()}
    return CachedRows(hu, target, about)


def _chosen(
    labelled: npt.NDArray[np.intp],
    shown: npt.NDArray[np.bool_],
    spacing_z_mm: float,
    choice: _Choice,
) -> npt.NDArray[np.intp]:
    """The labelled slices to learn from: not too close together, and not too many without."""
    kept: list[int] = []
    for i, z in enumerate(labelled):
        # Half a slice of tolerance, so that the mean distance is the one asked for.
        if not kept or (z - labelled[kept[-1]] + 0.5) * spacing_z_mm >= choice.slice_step_mm:
            kept.append(i)
    labelled, shown = labelled[kept], shown[kept]
    gland = labelled[shown]
    away = np.full(len(labelled), np.inf)
    if gland.size:
        away = np.abs(labelled[:, None] - gland).min(axis=1) * spacing_z_mm
    far = evenly_spread(labelled[away > choice.near_mm], choice.far_slices)
    return np.sort(np.concatenate([labelled[away <= choice.near_mm], far]))


def _with_neighbours(
    chosen: npt.NDArray[np.intp], n_slices: int, spacing_z_mm: float, choice: _Choice
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Slices to store, and the rows among them that are the input of each.

    A neighbour is taken from the chosen slices where one of them lies close enough.
    """
    wanted = neighbouring_slices(n_slices, spacing_z_mm, choice.neighbours_mm)[chosen]
    if wanted.shape[1] == 1 or not chosen.size:
        return chosen, np.tile(np.arange(len(chosen))[:, None], (1, wanted.shape[1]))
    nearest = chosen[np.abs(wanted[..., None] - chosen).argmin(axis=-1)]
    # A chosen slice never stands in for its own neighbour.
    close = 2 * np.abs(nearest - wanted) * spacing_z_mm <= min(
        choice.slice_step_mm, choice.neighbours_mm or 0
    )
    taken = np.where(close & (nearest != chosen[:, None]), nearest, wanted)
    taken[:, 1] = chosen
    stored = np.unique(taken)
    neighbours = np.tile(np.arange(len(stored))[:, None], (1, 3))
    neighbours[np.searchsorted(stored, chosen)] = np.searchsorted(stored, taken)
    return stored, neighbours


def load_negatives(
    paths: Sequence[str],
    *,
    neighbours_mm: float | None = None,
    classes: int = 1,
    frame: FrameSpec = DEFAULT_FRAME,
) -> TrainingSlices:
    """Slices of CTs that show no pancreas, at the working scale.

    Parameters
    ----------
    paths : sequence of str
        Files; ``FILE:40`` leaves out the lowest 40 slices, ``FILE:40:90`` keeps slices 40
        to 89, counted from the feet.
    neighbours_mm, classes, frame
        As of the slices they go with; see `load_cases`. None of the classes is shown.

    Raises
    ------
    PancreasSegError
        If a file cannot be read or no slice is left of it.
    """
    parts = []
    for text in paths:
        found = re.fullmatch(r"(.+?)(?::(\d+))?(?::(\d+))?", text)
        assert found is not None
        volume = load_ct(Path(found[1]))
        last = min(int(found[3] or volume.grid.shape[0]), volume.grid.shape[0])
        chosen = np.arange(int(found[2] or 0), last)
        if not chosen.size:
            raise PancreasSegError(f"{text}: no slice is left of {volume.grid.shape[0]}.")
        none = np.zeros(volume.grid.shape, np.uint8)
        choice = _Choice({}, neighbours_mm, 0.0, frame)
        parts.append(_whole(volume, none, chosen, [1] * classes, volume.name, "negative", choice))
    return TrainingSlices.join(parts)


def load_phantoms(
    seeds: Iterable[int], *, neighbours_mm: float | None = None, frame: FrameSpec = DEFAULT_FRAME
) -> TrainingSlices:
    """Every second slice of synthetic phantoms, at the working scale; the class is the pancreas."""
    choice = _Choice({}, neighbours_mm, 0.0, frame)
    parts = []
    for seed in seeds:
        phantom = make_phantom(seed)
        chosen = np.arange(seed % 2, phantom.mask.shape[0], 2)
        parts.append(
            _whole(
                phantom.volume, phantom.mask, chosen, [1], f"phantom {seed}", "phantom", choice,
            )
        )  # fmt: skip
    return TrainingSlices.join(parts)


def _whole(
    volume: CTVolume,
    mask: Bytes,
    chosen: npt.NDArray[np.intp],
    values: Sequence[int],
    patient: str,
    kind: str,
    choice: _Choice,
) -> TrainingSlices:
    """Slices of a volume that are all learnt from, and their neighbours, in memory."""
    stored, neighbours = _with_neighbours(chosen, volume.grid.shape[0], volume.spacing[0], choice)
    hu, target = _working(volume, mask, stored, values, choice)
    return _slices(hu, target, patient, kind, neighbours, np.isin(stored, chosen))


def _slices(
    hu: Rows, target: Rows, patient: str, kind: str, neighbours: Any, usable: Any
) -> TrainingSlices:
    n = len(hu)
    return TrainingSlices(
        hu,
        target,
        np.full(n, patient),
        np.full(n, kind),
        np.array(neighbours, np.intp).reshape(n, -1),
        np.array(usable, bool),
    )


def _working(
    volume: CTVolume,
    mask: Bytes,
    chosen: npt.NDArray[np.intp],
    values: Sequence[int],
    choice: _Choice,
) -> tuple[Bytes, Bytes]:
    """Cut the working frame out of the chosen slices, shown as inference shows them.

    Returns slices (n, H, W) and the share of each pixel that has each value, (n, H, W, C).
    """
    # Where the network's frame lies, which the edge of the slice may have moved.
    laid = lay_frame(volume, mask, values, choice.network_frame, choice.gland_mm)
    rows, columns = laid.resized(choice.frame).into()
    shift = contrast_shift(volume.hu)
    hu = np.empty((len(chosen), len(rows), len(columns)), np.uint8)
    target = np.zeros((*hu.shape, len(values)), np.uint8)
    for i, z in enumerate(chosen):
        clipped = np.clip(volume.hu[z].astype(np.float32) + shift, *SOFT_TISSUE_HU)
        hu[i] = np.rint(rows @ clipped @ columns.T)
        if not np.isin(mask[z], values).any():
            continue
        share = np.stack([rows @ (mask[z] == v).astype(np.float32) @ columns.T for v in values], -1)
        # What is rounded is the sum up to each class, so that all together never exceed 255.
        target[i] = np.diff(np.rint(255.0 * np.cumsum(share, axis=-1)), axis=-1, prepend=0)
    return hu, target
