"""Learning from what other networks say of the training slices, besides the masks.

A mask is one person's opinion, and its outline is where readers differ. What networks that
never saw a patient say of its slices (the folds of a cross-validation, for instance) is another
one, and a softer one; a target between the two hands on what they know together to one network
that costs no more than each of them (Hinton et al. 2015, arXiv:1503.02531).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.frame import Frame, FrameSpec, frame_around
from napari_pancreas_seg.inference.predictor import windowed
from napari_pancreas_seg.model.bundle import Bundle
from napari_pancreas_seg.training.cards import model_entry
from napari_pancreas_seg.training.data.cache import Rows, classes_shown
from napari_pancreas_seg.training.data.datasets import TrainingSlices, working_frame
from napari_pancreas_seg.training.fit.recipe import TrainSettings, check_windows
from napari_pancreas_seg.training.judge.calibration import tempered
from napari_pancreas_seg.training.judge.seen import names_of, patients_seen
from napari_pancreas_seg.training.run import Experiment

Bytes = npt.NDArray[np.uint8]

TEACHER_SHARE = 0.5
"""Weight of the teachers in the target."""
BATCH = 8


class TaughtRows:
    """Targets that lie between masks and what teachers say, mixed as they are read.

    Parameters
    ----------
    target : Rows, shape (N, H, W, C)
        The masks' share of each pixel, 255 for all of it.
    said : ndarray, shape (N, height, width, C), uint8
        The teachers' mean probability in their frame, 255 for 1.
    known : ndarray, shape (N,), bool
        Slices of which they said something; the others' targets stay as they are.
    frame : Frame
        Where the teachers' frame lies on the (H, W) pixels; outside it, masks stay.
    share : float
        Weight of the teachers, from 0 to 1.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        target: Rows,
        said: Bytes,
        known: npt.NDArray[np.bool_],
        frame: Frame,
        share: float,
    ) -> None:
        self._target, self._said, self._known, self._share = target, said, known, share
        self.shape = target.shape
        self._rows, self._columns = frame.out_of()
        self._cover = np.outer(self._rows.sum(axis=1), self._columns.sum(axis=1))[..., None]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def shown(self) -> npt.NDArray[np.bool_]:
        """Which classes each slice's mask shows, whatever the teachers say of it."""
        return classes_shown(self._target)

    def __getitem__(self, index: Any) -> Bytes:
        """Read rows; any index that NumPy knows for the first axis."""
        mixed = np.array(self._target[index])
        rows = np.arange(len(self))[index]
        for place, row in np.ndenumerate(rows):
            if self._known[row]:
                mixed[place] = self._mixed(mixed[place], self._said[row])
        return mixed

    def _mixed(self, target: Bytes, said: Bytes) -> Bytes:
        by_class = np.moveaxis(said.astype(np.float32), -1, 0)
        there = np.moveaxis(self._rows @ by_class @ self._columns.T, 0, -1)
        both = target * (1.0 - self._share * self._cover) + self._share * there
        return np.rint(np.clip(both, 0, 255)).astype(np.uint8)


def teaching(
    teachers: Sequence[Bundle], settings: TrainSettings, classes: Sequence[str], share: float
) -> Experiment:
    """A training whose targets lie between masks and what teachers say of them."""
    check_teachers(teachers, settings, classes, share)
    return Experiment(
        {"teachers": [model_entry(teacher) for teacher in teachers], "teacher_share": share},
        teachers,
        lambda slices, recipe: taught(slices, recipe, teachers, share),
    )


def check_teachers(
    teachers: Sequence[Bundle], settings: TrainSettings, classes: Sequence[str], share: float
) -> None:
    """Refuse teachers that look at something else than what is to be trained.

    Raises
    ------
    PancreasSegError
        With a sentence that says what does not fit.
    """
    if not 0 < share <= 1:
        raise PancreasSegError("The share of the teachers in the target must be in (0, 1].")
    for teacher in teachers:
        card, frame = teacher.card, FrameSpec.from_dict(teacher.card["frame"])
        name = f"The teacher {card['name']}"
        if list(card["labels"]) != list(classes):
            raise PancreasSegError(
                f"{name} knows {', '.join(card['labels'])}, "
                f"and {', '.join(classes)} is to be learnt."
            )
        try:
            check_windows(card["windows"])
        except PancreasSegError as error:
            raise PancreasSegError(f"{name} cannot teach: {error}") from error
        if frame != FrameSpec.from_dict(teachers[0].card["frame"]):
            raise PancreasSegError("The teachers do not look at frames of one size and place.")


def teachers_of(patient: str, teachers: Sequence[Bundle]) -> list[int]:
    """Which teachers teach a patient's slices: those who never saw them, if there are any.

    What a network says of what it learnt is what it learnt. Where all of them saw the patient,
    all of them teach: that averages networks, and does not correct a mask.
    """
    strangers = [
        i
        for i, teacher in enumerate(teachers)
        if not any(names_of(patient) & names_of(known) for known in patients_seen([teacher.card]))
    ]
    return strangers or list(range(len(teachers)))


def taught(
    slices: TrainingSlices, settings: TrainSettings, teachers: Sequence[Bundle], share: float
) -> TrainingSlices:
    """Slices whose targets lie between masks and what teachers say of them.

    Parameters
    ----------
    slices : TrainingSlices
        What is learnt from. Negatives keep their targets: those are certain.
    settings : TrainSettings
        The recipe; its frame tells where the slices lie.
    teachers : sequence of Bundle
        See `check_teachers` and `teachers_of`. Their probabilities are calibrated, then averaged.
    share : float
        Weight of the teachers in the target, from 0 to 1.

    Returns
    -------
    TrainingSlices
        The same slices. A teacher's word takes a byte a pixel of its frame in memory.
    """
    spec = FrameSpec.from_dict(teachers[0].card["frame"])
    frame = _on_working_slices(spec, settings.frame)
    known = slices.usable & (slices.kind == "patient")
    said = np.zeros((len(slices), spec.height, spec.width, slices.target.shape[-1]), np.uint8)
    taught_by = {p: teachers_of(str(p), teachers) for p in np.unique(slices.patient[known])}
    networks = [teacher.network() for teacher in teachers]
    rows, columns = frame.into()
    for first in range(0, int(known.sum()), BATCH):
        chosen = np.flatnonzero(known)[first : first + BATCH]
        inputs = rows @ slices.inputs(chosen).astype(np.float32) @ columns.T
        # Every batch alike, so that a network is compiled once.
        padded = np.zeros((BATCH, *inputs.shape[1:]), np.float32)
        padded[: len(chosen)] = inputs
        found = {
            i: _said_by(teachers[i], networks[i], padded)
            for i in sorted({i for row in chosen for i in taught_by[slices.patient[row]]})
        }
        for place, row in enumerate(chosen):
            who = taught_by[slices.patient[row]]
            said[row] = np.rint(255 * np.mean([found[i][place] for i in who], axis=0))
    return replace(slices, target=cast(Rows, TaughtRows(slices.target, said, known, frame, share)))


def _said_by(teacher: Bundle, network: Any, hu: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Calibrated probability (B, height, width, C) of slices (B, S, height, width)."""
    import keras

    stack = np.moveaxis(hu, 1, -1)
    inputs = keras.ops.convert_to_numpy(windowed(stack, teacher.card["windows"]))
    probability = network.predict_on_batch(np.asarray(inputs))["probability"]
    calibrated = tempered(np.moveaxis(probability, -1, 0), teacher.card.get("temperature", 1.0))
    return np.moveaxis(calibrated, 0, -1)


def _on_working_slices(spec: FrameSpec, trained: FrameSpec) -> Frame:
    """A teacher's frame on the slices that are kept to train a network with another frame."""
    kept = working_frame(trained)
    mm = kept.mm_per_pixel
    middle = (
        (kept.height - 1) / 2 - kept.offset_mm[0] / mm,
        (kept.width - 1) / 2 - kept.offset_mm[1] / mm,
    )
    return frame_around(middle, (kept.height, kept.width), (1.0, mm, mm), spec)
