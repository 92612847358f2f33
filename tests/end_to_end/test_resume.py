"""Killed by the system in the middle of an epoch, a training goes on to the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TRAINING = """
import json, os, signal, sys
from pathlib import Path
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.model.attention_unet import Architecture
from napari_pancreas_seg.model.bundle import load_bundle
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.run import Split, train

dataset, folder, kill_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
settings = TrainSettings(
    architecture=Architecture(filters=1, dropout=0.2), steps=6, steps_per_epoch=2, batch_size=2,
    frame=FrameSpec(32, 32, 8.0), calibration_batches=2, side_weights=(0.0, 0.0), patience=2,
    averaging=0.9, learning_rate=0.01,
)

def kill(stage, done, total):
    if stage != "reading" and done == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

def go(name):
    bundle = train(
        dataset, folder / name, settings, split=Split(3), resume=True,
        deterministic=True, show=kill,
    )
    history = json.loads((folder / name / "history.json").read_text())
    for line in history:
        del line["seconds"], line["images_per_second"]  # the only figures that may differ
    return history, load_bundle(bundle).card["weights_sha256"]

print(json.dumps([go(name) for name in sys.argv[4:]]))
"""


def run(dataset: Path, folder: Path, kill_at: int, *names: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", TRAINING, str(dataset), str(folder), str(kill_at), *names],
        capture_output=True, text=True, check=False, timeout=1200,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal")
def test_killed_in_the_middle_of_an_epoch(dataset: Path, tmp_path: Path) -> None:
    killed = run(dataset, tmp_path, 3, "broken")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "broken" / "checkpoint.npz").exists()
    assert not (tmp_path / "broken" / "bundle").exists()
    done = run(dataset, tmp_path, -1, "broken", "whole")
    assert done.returncode == 0, done.stderr
    broken, whole = json.loads(done.stdout.splitlines()[-1])
    assert [line["step"] for line in whole[0]][:2] == [2, 4]
    assert broken == whole  # losses, validation Dice and the hash of the weights: every bit
    for name in ("history.csv", "curves.png", "recipe.json"):
        assert (tmp_path / "broken" / name).stat().st_size > 0
