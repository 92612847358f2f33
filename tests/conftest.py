"""What the tests share: a tiny model, a small phantom, and where real data may lie."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import pytest

if TYPE_CHECKING:
    from napari_pancreas_seg.data.sample import Sample
    from napari_pancreas_seg.inference.loaded import LoadedModel
    from phantom import Phantom

# Before anything imports TensorFlow: its notes on start-up are not the tests' business.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def user_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what the program remembers out of the user's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("user")))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_power_cut() -> Iterator[None]:
    """Wait for no disk: that helps when the power fails, not when a process is killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # which refuses a file that is closed as well
        yield


def pytest_collection_finish() -> None:
    """Search no more for garbage in what was imported: napari's fixture does so at every end."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def nothing_frozen() -> Iterator[None]:
    """A process in which all garbage is searched for, as it is unless somebody says otherwise."""
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The optional folder of real CT data beside the checkout."""
    if not (SHARED / "ct").is_dir():
        pytest.skip("no real CT data in ../shared")
    return SHARED


@pytest.fixture(scope="session")
def tiny_card() -> dict:
    """Card of an untrained network with 4 filters."""
    from napari_pancreas_seg.inference.frame import FrameSpec

    return {
        "name": "tiny",
        "version": "0",
        "licence": "BSD-3-Clause",
        "architecture": {"filters": 4, "height": 32, "width": 48},
        "frame": FrameSpec(32, 48, 6.0).to_dict(),
        "windows": [[0, 255], [40, 150], [80, 140]],
        "labels": {"pancreas": 1},
        "threshold": 0.5,
        "weights_sha256": "",
    }


@pytest.fixture(scope="session")
def tiny_bundle(tiny_card: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a bundle with an untrained network: fast, and right in everything but skill."""
    import keras

    from napari_pancreas_seg.model.attention_unet import Architecture, build
    from napari_pancreas_seg.model.bundle import save_bundle

    keras.utils.set_random_seed(0)
    network = build(Architecture(**tiny_card["architecture"]))
    return save_bundle(network, tiny_card, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_model(tiny_bundle: Path) -> LoadedModel:
    """The same, loaded: what it has compiled serves all tests. Nobody may change it."""
    from napari_pancreas_seg.inference.loaded import LoadedModel

    return LoadedModel(tiny_bundle, "cpu")


@pytest.fixture(scope="session")
def default_model() -> LoadedModel:
    """The model that comes with the program, loaded. Nobody may change it."""
    from napari_pancreas_seg.inference.loaded import LoadedModel

    return LoadedModel("default", "cpu")


@pytest.fixture(scope="session")
def phantom() -> Sample:
    """The synthetic CT of the demo, in full resolution."""
    from napari_pancreas_seg.data.sample import load_sample

    return load_sample()


@pytest.fixture(scope="session")
def drawn() -> Callable[..., Phantom]:
    """Synthetic CTs by seed, coarse unless asked otherwise; each is drawn once, nobody changes it.

    To draw one takes half a second, whatever its size.
    """
    from phantom import make_phantom

    @functools.cache
    def draw(
        seed: int,
        spacing_mm: tuple[float, float, float] = (7.0, 4.5, 4.5),
        shape: tuple[int, int, int] = (35, 62, 80),
    ) -> Phantom:
        made = make_phantom(seed, spacing_mm=spacing_mm, shape=shape)
        for values in (made.volume.hu, made.mask, made.organs):
            values.setflags(write=False)
        return made

    return draw


@pytest.fixture(scope="module")
def uncompiled() -> Iterator[None]:
    """Run trainings as they are written: a few steps take less time than to compile them.

    `tests/end_to_end` trains compiled. Inference is compiled everywhere.
    """
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def _without_fit(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let trainings give an untrained network after half an hour, at once; their folders' names.

    What is bright is said to be the gland, without asking a network.
    """
    from napari_pancreas_seg.model.attention_unet import build
    from napari_pancreas_seg.training import run
    from napari_pancreas_seg.training.fit.batches import sampling_chances, training_batch
    from napari_pancreas_seg.training.fit.loop import CHECKPOINT
    from napari_pancreas_seg.training.judge.calibration import HeldBack

    folders = []

    def fit(slices: Any, settings: Any, folder: Path, *, report: Any, **_: Any) -> Any:
        folders.append(folder.name)
        training_batch(slices, sampling_chances(slices, settings), settings, 0)
        (folder / CHECKPOINT).touch()
        history = [
            {"step": settings.steps, "loss": 0.5, "seconds": 1800.0, "images_per_second": 2.0}
        ]
        report(history)
        return build(settings.resolved_architecture()), history

    def predict(self: Any, network: Any) -> Any:
        for hu, one in self._slices:
            yield replace(one, probability=hu.transpose(2, 0, 1) / 255)

    monkeypatch.setattr(run, "fit", fit)
    monkeypatch.setattr(run, "curves", MagicMock())
    monkeypatch.setattr(HeldBack, "predict", predict)
    return folders


@pytest.fixture
def no_fit(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No training in this test; see `_without_fit`."""
    return _without_fit(monkeypatch)


@pytest.fixture(scope="session")
def without_fit() -> Callable[[pytest.MonkeyPatch], list[str]]:
    """The same for fixtures of a module."""
    return _without_fit


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slices of six patients, two each: a grey body with a brighter gland."""
    import csv

    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("slices")
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:512, :512]
    rows = []
    for patient in range(6):
        for k in range(2):
            name = f"P{patient}_slice{k}"
            cy, cx = rng.uniform(210, 240), rng.uniform(250, 290)
            gland = ((y - cy) / 20) ** 2 + ((x - cx) / 50) ** 2 < 1
            body = ((y - 256) / 150) ** 2 + ((x - 256) / 220) ** 2 < 1
            grey = np.where(gland, 130, np.where(body, 50, 0)).astype(np.uint8)
            Image.fromarray(grey).save(folder / "images" / f"{name}.jpg")
            Image.fromarray(gland).save(folder / "masks" / f"{name}.png")
            rows.append({"name": name, "patient": f"P{patient}", "crop_margin_px": "40"})
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder
