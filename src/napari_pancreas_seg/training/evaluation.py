"""How good a model is: Dice per patient on the native grid, by the way of inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.predictor import FramePredictor
from napari_pancreas_seg.inference.preprocessing import FrameSpec, place_frame
from napari_pancreas_seg.inference.segmentation import LoadedModel, segment
from napari_pancreas_seg.training.datasets import SliceRecord, read_slice_layout

__all__ = ["Evaluation", "ThresholdScores", "evaluate", "score_thresholds"]

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


def score_thresholds(
    predictor: FramePredictor,
    frame_spec: FrameSpec,
    records: Sequence[SliceRecord],
    *,
    on_slice: Callable[[], None] = lambda: None,
) -> ThresholdScores:
    """Score every slice on its own, as a volume of one slice, without post-processing."""
    scores = ThresholdScores()
    for record in records:
        volume, mask = record.load()
        frame = place_frame(volume.hu, volume.spacing, frame_spec)
        outputs = predictor.predict_batch(volume.hu, *frame.into())
        rows, columns = frame.out_of()
        scores.add(record.patient, rows @ outputs["probability"][0] @ columns.T, mask[0])
        on_slice()
    return scores


@dataclass(frozen=True)
class Evaluation:
    """Dice per patient of a model on a data set.

    Parameters
    ----------
    model : str
        Name and version of the model, and the hash of its weights.
    threshold : float
        The threshold that was applied.
    dice : dict of str to float
        Dice of each patient, pooled over all of the patient's voxels.
    slices : dict of str to int
        Slices of each patient.
    """

    model: str
    threshold: float
    dice: dict[str, float]
    slices: dict[str, int]

    def summary(self) -> dict[str, float]:
        """Mean, standard deviation, median and worst over patients, with n."""
        values = np.array(list(self.dice.values()))
        return {
            "n": len(values),
            "mean": round(float(values.mean()), 4),
            "sd": round(float(values.std(ddof=1)), 4) if len(values) > 1 else 0.0,
            "median": round(float(np.median(values)), 4),
            "worst": round(float(values.min()), 4),
            "below_0.5": int((values < 0.5).sum()),
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "model": self.model,
            "threshold": self.threshold,
            "metric": "Dice per patient on the native grid, no post-processing",
            "patients": {
                p: {"dice": round(d, 4), "slices": self.slices[p]} for p, d in self.dice.items()
            },
            "summary": self.summary(),
        }


def evaluate(
    dataset: Path,
    model: str | Path | LoadedModel = "default",
    *,
    every_patient: bool = False,
    threshold: float | None = None,
    on_slice: Callable[[int, int], None] = lambda done, total: None,
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
    on_slice : callable
        Called with slices done and in all.

    Raises
    ------
    PancreasSegError
        If data or model cannot be read, or no patient is left.
    """
    loaded = model if isinstance(model, LoadedModel) else LoadedModel(model)
    records = read_slice_layout(Path(dataset))
    if not every_patient:
        known = set(loaded.card.get("training", {}).get("patients", ()))
        records = [record for record in records if record.patient not in known]
    if not records:
        raise PancreasSegError(
            f"The model was trained on every patient of {dataset}; a score on them says nothing "
            "about others (--every-patient gives it all the same)."
        )
    used = threshold or float(loaded.card["threshold"])
    scores = ThresholdScores((used,))
    slices: dict[str, int] = {}
    for i, record in enumerate(records, start=1):
        volume, mask = record.load()
        found = segment(volume, loaded, threshold=used, postprocess=False)
        scores.add(record.patient, found.mask * 1.0, mask)
        slices[record.patient] = slices.get(record.patient, 0) + 1
        on_slice(i, len(records))
    card = loaded.card
    return Evaluation(
        f"{card['name']} {card['version']} ({card['weights_sha256'][:12]})",
        used,
        {p: float(d[0]) for p, d in scores.dice().items()},
        slices,
    )
