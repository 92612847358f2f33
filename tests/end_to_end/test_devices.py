"""A batch that several devices share trains as on one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

TRAINING = """
import json, sys, tempfile
from pathlib import Path
import keras
import numpy as np
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.model.attention_unet import Architecture
from napari_pancreas_seg.training.data.datasets import TrainingSlices
from napari_pancreas_seg.training.fit.devices import choose_devices
from napari_pancreas_seg.training.fit.loop import fit
from napari_pancreas_seg.training.fit.recipe import TrainSettings

rng = np.random.default_rng(0)
hu = rng.integers(0, 255, (6, 304, 400)).astype(np.uint8)
target = np.zeros((6, 304, 400, 1), np.uint8)
for i in range(6):
    target[i, 120 + 5 * i : 190, 150:260] = 255
    hu[i, 120 + 5 * i : 190, 150:260] //= 4
slices = TrainingSlices(
    hu, target, np.array(list("abcdef")), np.full(6, "patient"), np.ones(6, bool),
)
settings = TrainSettings(
    architecture=Architecture(filters=1), steps=2, steps_per_epoch=2, batch_size=4,
    frame=FrameSpec(32, 32, 6.0), calibration_batches=2, side_weights=(0.0, 0.0),
    averaging=0.5, learning_rate=0.01, policy=sys.argv[1],
)
found = []
for count in (1, 2):
    network, history = fit(
        slices, settings, Path(tempfile.mkdtemp()), devices=choose_devices(count),
        score=lambda network: {"validation_dice": float(np.sum(network.get_weights()[0] ** 2))},
    )
    weights = [w.ravel() for w in network.get_weights()]
    found.append([[[line["loss"], line["validation_dice"]] for line in history],
                  np.concatenate(weights).tolist()])
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_two_devices_train_like_one(backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, "float32"],
        capture_output=True, text=True, check=False, timeout=1200,
        env={
            **os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (lines, weights), (shared_lines, shared_weights) = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(shared_lines, lines, rtol=2e-3)
    np.testing.assert_allclose(shared_weights, weights, atol=2e-3)
