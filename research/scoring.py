"""Dice of patients held out, by the program's own scoring, while `train_torch.py` is at work."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from napari_pancreas_seg.training.data.layouts.opening import open_dataset
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.judge.calibration import HeldBack, score_predictions
from torch_network import fast

EVERY_S = 780
BATCHES = 30


class Scorer:
    """Scores the averaged network now and then.

    Parameters
    ----------
    folder : Path
        The data set.
    patients : list of str
        Those held out.
    """

    def __init__(self, folder: Path, patients: list[str]) -> None:
        data = open_dataset(folder)
        cases = [case for case in data.cases if case.patient in patients]
        self.held = HeldBack(cases, data.labels, TrainSettings())
        self.last = time.monotonic()

    def __call__(self, training: Any) -> dict[str, Any]:
        """What there is to add to the log."""
        if time.monotonic() - self.last < EVERY_S:
            return {}
        adapter = Adapter(training.averaged(BATCHES), training.clock.size())
        scores = score_predictions(self.held.predict(adapter))
        threshold, dice = scores.best()
        self.last = time.monotonic()
        return {"threshold": threshold, "validation_dice": round(float(dice), 4)}


class Adapter:
    """A PyTorch network in the place of a Keras one."""

    def __init__(self, network: torch.nn.Module, size: tuple[int, int]) -> None:
        self.network, self.size = network, size

    @torch.no_grad()
    def predict_on_batch(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Probability at the frame's own size."""
        x = torch.from_numpy(np.ascontiguousarray(inputs.transpose(0, 3, 1, 2)))
        full = x.shape[-2:]
        if full != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True)
        with fast():
            logits = self.network(x.contiguous(memory_format=torch.channels_last))[0]
        logits = F.interpolate(logits.float(), full, mode="bilinear")
        return {"probability": torch.sigmoid(logits).permute(0, 2, 3, 1).numpy()}
