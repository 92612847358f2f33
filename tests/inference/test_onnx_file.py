"""What the ONNX file computes is what the network computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.onnx_file import TOLERANCE, export_onnx
from napari_pancreas_seg.inference.predictor import windowed
from napari_pancreas_seg.model.attention_unet import Architecture, build
from napari_pancreas_seg.model.bundle import Bundle, load_bundle
from napari_pancreas_seg.model.probabilities import tempered
from napari_pancreas_seg.model.weights import pack_weights

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("tf2onnx", reason="the extra onnx is not installed")
pytestmark = pytest.mark.slow


def untrained(card: dict[str, Any], *, sure: float = 1.0, **architecture: Any) -> Bundle:
    """A network whose statistics and biases are not those that hide faults: 0 and 1."""
    keras.utils.set_random_seed(0)
    shape = {**card["architecture"], **architecture}
    network = build(Architecture(**shape))
    rng = np.random.default_rng(0)
    for variable in network.weights:
        if len(variable.shape) == 1:
            variable.assign(rng.uniform(0.1, 0.9, variable.shape))
        elif "head_conv" in variable.path:
            variable.assign(sure * variable)
    frame = {**card["frame"], "height": shape["height"], "width": shape["width"]}
    names = ("pancreas", "tumour", "liver")[: shape.get("classes", 1)]
    labels = {name: value for value, name in enumerate(names, start=1)}
    return Bundle(
        {**card, "architecture": shape, "frame": frame, "labels": labels}, pack_weights(network)
    )


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ({"classes": 3, "head_batch_norm": True}, {"temperature": 0.7}),
        ({"attention": False, "dropout": 0.3, "height": 30, "width": 41}, {"temperature": 2.5}),
        ({"sure": 10.0}, {"temperature": 8.0}),
    ],
    ids=["classes", "plain, of odd size", "too sure, and tempered a lot"],
)
def test_it_computes_what_the_network_computes(
    architecture: dict[str, Any], fields: dict[str, Any], tiny_card: dict, tmp_path: Path
) -> None:
    bundle = untrained(tiny_card, **architecture)
    card = {**bundle.card, **fields}
    path = tmp_path / "m.onnx"
    difference = export_onnx(Bundle(card, bundle.weights), path)
    assert difference is not None and difference < TOLERANCE

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    shape = (5, card["frame"]["height"], card["frame"]["width"], 1)
    hu = np.random.default_rng(1).uniform(-200, 400, shape).astype(np.float32)
    (found,) = session.run(["probability"], {"hu": hu})
    network = bundle.network()
    raw = network(windowed(hu, card["windows"]), training=False)["probability"]
    expected = np.asarray(tempered(raw, card.get("temperature", 1.0)))
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    # The file says how to use it.
    said = {item.key: item.value for item in onnx.load(path).metadata_props}
    assert json.loads(said["card"]) == card
    assert json.loads(said["windows"]) == card["windows"]
    assert json.loads(said["frame"])["mm_per_pixel"] == 6.0
    assert float(said["threshold"]) == 0.5


def test_the_bundled_model_too(tmp_path: Path) -> None:
    path = tmp_path / "default.onnx"
    difference = export_onnx(load_bundle("default"), path)
    assert difference is not None and difference < TOLERANCE
    with pytest.raises(PancreasSegError, match="exists already"):
        export_onnx(load_bundle("default"), path)
    assert [item.name for item in tmp_path.iterdir()] == ["default.onnx"]


def test_a_wrong_name_is_refused(tiny_card: dict, tmp_path: Path) -> None:
    with pytest.raises(PancreasSegError, match=r"end in \.onnx"):
        export_onnx(untrained(tiny_card), tmp_path / "m.pb")


def test_without_the_package_it_says_what_to_install(
    tiny_card: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(PancreasSegError, match=r"napari-pancreas-seg\[onnx\]"):
        export_onnx(untrained(tiny_card), tmp_path / "m.onnx")
