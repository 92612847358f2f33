"""The same slices with the grey values that portal-venous CT usually has.

A model that learns from a scanner with other grey values forgets those it knew. Their own
training slices are not at hand where a model is fine-tuned. But a user's slices, with their grey
values mapped onto the usual ones, stand in for them: real bodies, with the user's own masks.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.training.data.datasets import TrainingSlices
from napari_pancreas_seg.training.finetune.score import rows_to_score

__all__ = ["usual_grey", "with_usual_grey"]

SOFT_TISSUE_FROM = 9
"""Grey value (HU) from which a pixel counts: below lies what was clipped, fat and air."""
USUAL_GREY = (
    *(9.0, 16.0, 26.0, 35.5, 43.5, 50.5, 57.5, 62.0, 68.0, 75.5, 83.0),
    *(90.0, 96.5, 103.0, 111.0, 119.5, 131.5, 150.5, 176.0, 241.0, 255.0),
)
"""HU at every twentieth of the pixels with soft tissue or bone in an abdominal slice: medians over
40 patients of NIH Pancreas-CT (Roth et al. 2016, doi:10.7937/K9/TCIA.2016.tNB1kqBU)."""


def usual_grey(hu: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Grey value that takes the place of each one in slices, so that their shares are the usual.

    Parameters
    ----------
    hu : ndarray, uint8
        Slices of one patient, HU in [0, 255].

    Returns
    -------
    ndarray, shape (256,), uint8
        A table that never falls; 0 stays 0.
    """
    counts = np.bincount(hu.reshape(-1), minlength=256)
    counts[:SOFT_TISSUE_FROM] = 0
    if not counts.any():
        return np.arange(256, dtype=np.uint8)
    below = np.cumsum(counts) / counts.sum()
    shares = np.linspace(0.0, 1.0, len(USUAL_GREY))
    # The middle of the pixels of a grey value: what is saturated is one value for many shares.
    table = np.interp(below - 0.5 * counts / counts.sum(), shares, USUAL_GREY)
    low = np.arange(SOFT_TISSUE_FROM)
    table[:SOFT_TISSUE_FROM] = low * table[SOFT_TISSUE_FROM] / SOFT_TISSUE_FROM
    return np.rint(table).astype(np.uint8)


def with_usual_grey(
    slices: TrainingSlices, patients: Iterable[str], kind: str, most: int
) -> TrainingSlices:
    """Copies of patients' slices with the usual grey values.

    Parameters
    ----------
    slices : TrainingSlices
        Where they lie.
    patients : iterable of str
        Whose.
    kind : str
        Kind of the copies.
    most : int
        Copies of one patient.
    """
    return TrainingSlices.join(_copies(slices, name, kind, most) for name in patients)


def _copies(slices: TrainingSlices, name: str, kind: str, most: int) -> TrainingSlices:
    rows = rows_to_score(slices, slices.patient == name, most)
    hu = slices.hu[rows]
    return TrainingSlices.of(usual_grey(hu)[hu], slices.target[rows], name, kind)
