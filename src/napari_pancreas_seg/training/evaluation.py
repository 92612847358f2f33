"""How good a model is: figures per patient on the native grid, by the way of inference."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.segmentation import LoadedModel, segment
from napari_pancreas_seg.io import SUFFIXES, load_ct, load_mask, stem
from napari_pancreas_seg.model.cost import gflop_per_slice
from napari_pancreas_seg.training.datasets import read_slice_layout
from napari_pancreas_seg.training.scores import (
    TOLERANCE_MM,
    PatientScore,
    PatientTally,
    summarise,
    summarise_patients,
)
from napari_pancreas_seg.volume import CTVolume

__all__ = [
    "Evaluation",
    "ThresholdScores",
    "evaluate",
    "evaluate_volumes",
    "match_references",
]

THRESHOLDS = tuple(float(t) for t in np.round(np.arange(0.2, 0.85, 0.05), 2))


@dataclass
class ThresholdScores:
    """Overlap per patient for several thresholds, pooled over each patient's slices.

    Parameters
    ----------
    thresholds : tuple of float
        Thresholds tried.
    both, total : dict of str to ndarray, shape (len(thresholds),)
        Voxels in both masks, and in either counted twice, for each patient.
    """

    thresholds: tuple[float, ...] = THRESHOLDS
    both: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    total: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)

    def add(self, patient: str, probability: npt.NDArray[Any], mask: npt.NDArray[Any]) -> None:
        """Count a slice."""
        truth = mask > 0
        found = [probability > t for t in self.thresholds]
        both = np.array([np.count_nonzero(f & truth) for f in found])
        total = np.array([np.count_nonzero(f) for f in found]) + np.count_nonzero(truth)
        self.both[patient] = self.both.get(patient, 0) + both
        self.total[patient] = self.total.get(patient, 0) + total

    def dice(self) -> dict[str, npt.NDArray[np.float64]]:
        """Dice of each patient for each threshold."""
        return {
            p: np.where(self.total[p] > 0, 2 * self.both[p] / np.maximum(self.total[p], 1), 1.0)
            for p in sorted(self.both)
        }

    def best(self) -> tuple[float, float]:
        """The threshold with the best mean Dice over patients, and that Dice."""
        mean = np.mean(list(self.dice().values()), axis=0)
        return self.thresholds[int(mean.argmax())], float(mean.max())


@dataclass(frozen=True)
class Evaluation:
    """Figures per patient of a model on a data set.

    Parameters
    ----------
    card : Mapping
        The model's card.
    threshold : float
        The threshold that was applied.
    patients : dict of str to PatientScore
        The figures of each patient.
    how : dict of str to str
        What was done, in words: ``data``, ``surfaces``, ``spacing``, ``postprocessing`` ….
    cost : dict
        ``parameters``, ``weights_mb``, ``gflop_per_slice``, ``seconds_per_slice``, ``device``.
    """

    card: Mapping[str, Any]
    threshold: float
    patients: dict[str, PatientScore]
    how: dict[str, str]
    cost: dict[str, Any]

    @property
    def model(self) -> str:
        """Name and version of the model, and the hash of its weights."""
        return f"{self.card['name']} {self.card['version']} ({self.card['weights_sha256'][:12]})"

    @property
    def dice(self) -> dict[str, float]:
        """Dice of each patient, pooled over all of the patient's voxels."""
        return {patient: score.dice for patient, score in self.patients.items()}

    def summary(self) -> dict[str, float]:
        """Dice over patients; see `summarise`."""
        return summarise(self.dice.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        rows = {patient: score.to_dict() for patient, score in self.patients.items()}
        return {
            "model": self.model,
            "weights_sha256": self.card["weights_sha256"],
            "threshold": self.threshold,
            "how": self.how,
            "patients": rows,
            **summarise_patients(rows),
            "cost": self.cost,
        }


@dataclass(frozen=True)
class _Case:
    """A CT with its reference, read when its turn comes."""

    patient: str
    load: Callable[[], tuple[CTVolume, npt.NDArray[np.uint8]]]


def evaluate(
    dataset: Path,
    model: str | Path | LoadedModel = "default",
    *,
    every_patient: bool = False,
    threshold: float | None = None,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score a model on a data set the way it is used: through `segment`, slice by slice.

    Parameters
    ----------
    dataset : Path
        Folder in the slice layout.
    model : str, Path or LoadedModel
        The model.
    every_patient : bool
        Score the patients the model was trained on too; by default they are left out,
        because their figures say nothing about new patients.
    threshold : float, optional
        Another threshold than the model's.
    on_case : callable
        Called with slices done and in all.

    Raises
    ------
    PancreasSegError
        If data or model cannot be read, or no patient is left.
    """
    cases = [_Case(r.patient, r.load) for r in read_slice_layout(Path(dataset))]
    how = {
        "data": f"slices of {Path(dataset).name}, each a CT of its own",
        "surfaces": "outlines in the plane, slice by slice, pooled over a patient's slices; where "
        "a slice shows the reference or the mask but not both, the distance is its diagonal",
        "spacing": "nominal: the pixel size of these slices is not stored, so that distances in "
        "mm are approximate",
    }
    return _evaluate(cases, model, how, every_patient, threshold, False, on_case)


def evaluate_volumes(
    cts: Path,
    references: Path,
    model: str | Path | LoadedModel = "default",
    *,
    every_patient: bool = False,
    threshold: float | None = None,
    postprocess: bool = True,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score a model on CTs with reference masks, through `segment`.

    Parameters
    ----------
    cts, references : Path
        Two folders; see `match_references`.
    model, every_patient, threshold, on_case
        See `evaluate`; `on_case` is called with CTs.
    postprocess : bool
        Smooth along z and drop small pieces, as is done by default.

    Raises
    ------
    PancreasSegError
        If a file or the model cannot be read, a reference has no CT, two of a pair do not lie
        on the same grid, or no patient is left.
    """
    pairs = match_references(Path(cts), Path(references))
    cases = [_Case(_patient(mask), lambda ct=ct, m=mask: _load(ct, m)) for mask, ct in pairs]  # type: ignore[misc]
    how = {
        "data": f"CTs of {Path(cts).name}, with references of {Path(references).name}",
        "surfaces": "in 3-D; in the plane and pooled for CTs of a single slice",
        "spacing": "as the files say",
    }
    return _evaluate(cases, model, how, every_patient, threshold, postprocess, on_case)


def match_references(cts: Path, references: Path) -> list[tuple[Path, Path]]:
    """Find the CT of every reference mask by name.

    ``NAME.nii.gz``, ``NAME_pancreas.nii.gz`` and ``NAME_mask.nii.gz`` belong to the CT
    ``NAME.nii.gz``, or else to the one CT whose name begins with ``NAME_``.

    Parameters
    ----------
    cts, references : Path
        Two folders.

    Returns
    -------
    list of (Path, Path)
        Reference and CT, by name.

    Raises
    ------
    PancreasSegError
        If a folder cannot be read, or a reference has no CT or several.
    """
    images = _images(cts)
    pairs = []
    for name, mask in _images(references).items():
        base = re.sub(r"_(pancreas|mask)$", "", name)
        others = {n: p for n, p in images.items() if p.resolve() != mask.resolve()}
        exact = [others[n] for n in (name, base) if n in others]
        found = exact[:1] or [p for n, p in others.items() if n.startswith(f"{base}_")]
        if len(found) != 1:
            names = f": {', '.join(p.name for p in found)}" if found else ""
            raise PancreasSegError(
                f"{len(found) or 'No'} CTs in {cts} belong to the reference {mask.name}{names}; "
                "give each the name of its CT."
            )
        pairs.append((mask, found[0]))
    return pairs


def _images(folder: Path) -> dict[str, Path]:
    try:
        paths = sorted(p for p in folder.iterdir() if p.name.lower().endswith(SUFFIXES))
    except OSError as error:
        raise PancreasSegError(f"{folder} is not a folder that can be read: {error}.") from error
    if not paths:
        raise PancreasSegError(f"There are no files of a known format in {folder}.")
    return {stem(path): path for path in paths}


def _patient(reference: Path) -> str:
    """Slices of one patient of the NIH set share ``PANCREAS_NNNN``; else a file is a patient."""
    found = re.match(r"PANCREAS_\d+", reference.name)
    return found[0] if found else stem(reference)


def _load(ct: Path, reference: Path) -> tuple[CTVolume, npt.NDArray[np.uint8]]:
    volume = load_ct(ct)
    mask, on = load_mask(reference)
    if not volume.grid.same_as(on.grid):
        raise PancreasSegError(
            f"The reference {reference.name} does not lie on the grid of {ct.name}; resample it "
            "onto the CT first."
        )
    return volume, mask


def _evaluate(
    cases: Sequence[_Case],
    model: str | Path | LoadedModel,
    how: dict[str, str],
    every_patient: bool,
    threshold: float | None,
    postprocess: bool,
    report: Callable[[int, int], None],
) -> Evaluation:
    loaded = model if isinstance(model, LoadedModel) else LoadedModel(model)
    known = set(loaded.card.get("training", {}).get("patients", ()))
    if not every_patient:
        cases = [c for c in cases if not known & {c.patient, c.patient.removeprefix("PANCREAS_")}]
    if not cases:
        raise PancreasSegError(
            "The model was trained on every patient of this data; a score on them says nothing "
            "about others (--every-patient gives it all the same)."
        )
    used = threshold or float(loaded.card["threshold"])
    tallies: dict[str, PatientTally] = {}
    seconds = []
    for done, case in enumerate(cases, start=1):
        volume, mask = case.load()
        found = segment(volume, loaded, threshold=used, postprocess=postprocess)
        tallies.setdefault(case.patient, PatientTally()).add(found, volume, mask)
        seconds.append(found.seconds.get("segmenting", 0.0) / len(mask))
        report(done, len(cases))
    trained_on = sorted(p for p in tallies if known & {p, p.removeprefix("PANCREAS_")})
    how = {
        "metric": "all voxels of a patient pooled, on the CT's own grid",
        **how,
        "surface_dice_tolerance": f"{TOLERANCE_MM:g} mm",
        "interval": "95 %, percentile bootstrap over patients, 10,000 resamples",
        "postprocessing": "as by default" if postprocess else "none",
        "seen_in_training": ", ".join(trained_on) or "none of these patients",
    }
    scores = {patient: tallies[patient].score() for patient in sorted(tallies)}
    return Evaluation(loaded.card, used, scores, how, _cost(loaded, seconds))


def _cost(loaded: LoadedModel, seconds: Sequence[float]) -> dict[str, Any]:
    network = loaded.predictor.network
    return {
        "parameters": int(network.count_params()),
        "weights_mb": round(len(loaded.bundle.weights) / 1e6, 2),
        "gflop_per_slice": round(gflop_per_slice(network), 3),
        "seconds_per_slice": round(statistics.median(seconds), 4),
        "device": loaded.device.name,
    }
