"""What the network's own process keeps between requests."""

import json
import shutil

import pytest

from napari_pancreas_seg.inference.options import Options
from napari_pancreas_seg.inference.process.server import _Network


@pytest.mark.slow
def test_a_model_that_is_replaced_under_its_name_is_loaded_anew(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("NAPARI_PANCREAS_SEG_MODELS", str(tmp_path))
    mine = shutil.copytree(tiny_bundle, tmp_path / "mine") / "card.json"
    network, options = _Network(), Options("cpu")
    loaded = network.load("mine", options)
    assert network.load("mine", options) is loaded
    mine.write_text(json.dumps({**json.loads(mine.read_text()), "threshold": 0.25}))
    anew = network.load("mine", options)
    assert anew is not loaded and anew.card["threshold"] == 0.25
    assert network.load("mine", options) is anew
