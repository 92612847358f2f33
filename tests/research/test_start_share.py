"""A share of the first weights stays in the new ones."""

import numpy as np
import pytest

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.model.attention_unet import Architecture
from napari_pancreas_seg.model.bundle import load_bundle
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.run import Experiment, Split, train
from train import keeping

SETTINGS = TrainSettings(
    architecture=Architecture(filters=2, dropout=0.2), steps=2, steps_per_epoch=2, batch_size=2,
    frame=FrameSpec(32, 48, 6.0), calibration_batches=4, learning_rate=0.05, averaging=0.0,
)  # fmt: skip


@pytest.mark.slow
def test_a_share_of_the_start_stays(dataset, tmp_path):
    first = train(dataset, tmp_path / "first", SETTINGS, split=Split(3))
    mixed = {}
    for share in (0.0, 0.4):
        experiment = keeping(load_bundle(first), share) if share else Experiment()
        bundle = train(
            dataset, tmp_path / f"{share}", SETTINGS, split=Split(3), start=first,
            experiment=experiment,
        )  # fmt: skip
        mixed[share] = load_bundle(bundle).network().trainable_variables
    assert load_bundle(bundle).card["training"]["recipe"]["experiment"] == {"start_share": 0.4}
    before = load_bundle(first).network().trainable_variables
    moved = 0.0
    for old, new, part in zip(before, mixed[0.0], mixed[0.4], strict=True):
        old, new = np.asarray(old), np.asarray(new)
        np.testing.assert_allclose(np.asarray(part), 0.4 * old + 0.6 * new, atol=4e-3)
        moved = max(moved, float(np.abs(new - old).max()))
    assert moved > 0.02
    with pytest.raises(PancreasSegError, match="begin with"):
        keeping(load_bundle(first), 1.0)
