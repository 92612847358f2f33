"""What the machine can do is found out."""

from __future__ import annotations

import numpy as np
import pytest

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.training.fit import devices as module
from napari_pancreas_seg.training.fit.devices import Devices, choose_devices, choose_policy
from napari_pancreas_seg.training.fit.recipe import TrainSettings


def test_a_batch_must_be_divisible():
    Devices(2).check(8)
    with pytest.raises(PancreasSegError, match="multiple of 3"):
        Devices(3).check(8)


@pytest.mark.parametrize("asked", [0, "0", "two", -1, "-1", "1.5", "", 1000])
def test_devices_that_there_are_not(asked):
    with pytest.raises(PancreasSegError):
        choose_devices(asked)


def test_one_device_is_the_backends_own_choice():
    assert choose_devices(1) == choose_devices("1") == Devices()
    batch = {"hu": np.zeros((2, 3))}
    assert Devices().split(batch)["hu"] is batch["hu"]


@pytest.mark.parametrize(
    ("capability", "policy"),
    [(None, "float32"), (6.1, "float32"), (7.0, "mixed_float16"), (9.0, "mixed_bfloat16")],
)
def test_precision_by_what_a_gpu_is_built_for(monkeypatch, capability, policy):
    monkeypatch.setattr(module, "_compute_capability", lambda: capability)
    assert choose_policy("auto") == policy
    assert choose_policy("mixed_float16") == "mixed_float16"


def test_small_gradients_survive_float16():
    """Scaled up, and a step that overflows is left out."""
    import keras

    from napari_pancreas_seg.training.fit.trainer import _optimizer

    optimizer = _optimizer(TrainSettings(policy="mixed_float16", steps=4), 1)
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    weight = keras.Variable([1.0])
    optimizer.build([weight])
    scale = float(optimizer.dynamic_scale)
    assert float(optimizer.scale_loss(2.0)) == 2 * scale
    optimizer.apply([keras.ops.array([np.inf])], [weight])
    assert float(optimizer.dynamic_scale) == scale / 2 and float(weight[0]) == 1.0
    for _ in range(3):
        optimizer.apply([keras.ops.array([scale])], [weight])
    assert float(weight[0]) < 1.0
    with pytest.raises(PancreasSegError, match="policy"):
        TrainSettings(policy="float8")
