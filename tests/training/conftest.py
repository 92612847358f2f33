"""Trainings without training."""

from unittest.mock import MagicMock

import pytest

from napari_pancreas_seg.training.fit.checkpoint import CHECKPOINT


@pytest.fixture
def no_fit(monkeypatch):
    """Trainings give an untrained network after half an hour, at once; their folders' names.

    What is bright is said to be the gland, without asking a network.
    """
    from napari_pancreas_seg.model.attention_unet import build
    from napari_pancreas_seg.training import run
    from napari_pancreas_seg.training.judge.validation import HeldBack

    folders = []

    def fit(slices, settings, folder, **_):
        folders.append(folder.name)
        (folder / CHECKPOINT).touch()
        line = {"step": settings.steps, "loss": 0.5, "seconds": 1800.0}
        return build(settings.resolved_architecture()), [line]

    def predict(self, network):
        return (self._predicted(one, one.hu / 255) for one in self._slices)

    monkeypatch.setattr(run, "fit", fit)
    monkeypatch.setattr(run, "Curves", MagicMock())
    monkeypatch.setattr(HeldBack, "predict", predict)
    return folders
