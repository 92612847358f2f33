"""A training, compiled as for users, learns."""

import pytest

from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.model.attention_unet import Architecture
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.judge.evaluation import evaluate
from napari_pancreas_seg.training.run import Split, train


@pytest.mark.slow
def test_a_few_hundred_steps_learn_the_toy_gland(dataset, tmp_path):
    settings = TrainSettings(
        architecture=Architecture(filters=2, dropout=0.2), frame=FrameSpec(32, 48, 6.0),
        steps=100, steps_per_epoch=100,
        averaging=0.9, learning_rate=0.01, calibration_batches=16, batch_size=4,
    )  # fmt: skip
    bundle = train(dataset, tmp_path / "run", settings, split=Split(3))
    assert evaluate(dataset, bundle)["summary"]["dice"]["mean"] > 0.5
