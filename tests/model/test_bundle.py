"""A bundle comes back as it went, and nothing hostile in it is run or believed."""

import hashlib
import json
import zipfile

import keras
import numpy as np
import pytest

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.model.attention_unet import Architecture, build
from napari_pancreas_seg.model.bundle import (
    Bundle,
    list_models,
    load_bundle,
    load_card,
    save_bundle,
)


@pytest.fixture
def slices():
    return np.random.default_rng(0).random((2, 32, 48, 3), np.float32)


def outputs(network, x):
    return {name: np.asarray(value) for name, value in network(x).items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["folder", "packed.zip"])
def test_round_trip(tiny_card, tmp_path, slices, name):
    network = build(Architecture(**tiny_card["architecture"]))
    path = save_bundle(network, tiny_card, tmp_path / name)
    loaded = load_bundle(path)
    assert {**loaded.card, "weights_sha256": ""} == tiny_card
    assert hashlib.sha256(loaded.weights).hexdigest() == loaded.card["weights_sha256"]
    before, after = outputs(network, slices), outputs(loaded.network(), slices)
    for key in before:
        np.testing.assert_allclose(after[key], before[key], atol=5e-3)
    # What was read is what is written again, to the bit.
    again = load_bundle(save_bundle(loaded.network(), tiny_card, tmp_path / f"again_{name}"))
    for one, other in zip(
        loaded.network().get_weights(), again.network().get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_weights_are_float32_whatever_the_policy(tiny_bundle):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = load_bundle(tiny_bundle).network()
    finally:
        keras.config.set_dtype_policy("float32")
    assert {layer.compute_dtype for layer in network.layers} == {"float32"}


@pytest.mark.slow
def test_an_existing_bundle_is_kept_unless_told(tiny_card, tiny_bundle, tmp_path):
    network = load_bundle(tiny_bundle).network()
    path = save_bundle(network, tiny_card, tmp_path / "model")
    with pytest.raises(PancreasSegError, match="already exists"):
        save_bundle(network, tiny_card, path)
    save_bundle(network, {**tiny_card, "version": "1"}, path, overwrite=True)
    assert load_card(path)["version"] == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_changed_weights_are_noticed(tiny_bundle, tmp_path):
    bundle = load_bundle(tiny_bundle)
    (tmp_path / "card.json").write_text(json.dumps(dict(bundle.card)))
    changed = bytearray(bundle.weights)
    changed[-1] ^= 1
    (tmp_path / "weights.h5").write_bytes(changed)
    with pytest.raises(PancreasSegError, match="SHA-256"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 2}, "threshold"),
        ({"windows": None}, "windows"),
        ({"architecture": {"filters": 4, "layers": "x"}}, "does not know"),
        ({"architecture": {"filters": 8, "height": 32, "width": 48}}, "do not fit"),
    ],
)
def test_a_wrong_card_is_refused(tiny_bundle, tmp_path, change, message):
    bundle = load_bundle(tiny_bundle)
    (tmp_path / "card.json").write_text(json.dumps({**bundle.card, **change}))
    (tmp_path / "weights.h5").write_bytes(bundle.weights)
    with pytest.raises(PancreasSegError, match=message):
        load_bundle(tmp_path).network()


def test_what_is_no_bundle_is_refused(tmp_path):
    for name, content in [("a.zip", b"no zip"), ("b.zip", b"")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PancreasSegError, match="not a model bundle"):
            load_bundle(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("../card.json", "{}")
    with pytest.raises(PancreasSegError, match="not a model bundle"):
        load_bundle(tmp_path / "c.zip")
    with pytest.raises(PancreasSegError, match="no model"):
        load_bundle("nobody-has-this")
    for nothing in (None, ""):
        with pytest.raises(PancreasSegError, match="by its name or path"):
            load_card(nothing)
    (tmp_path / "card.json").write_text("[]")
    with pytest.raises(PancreasSegError, match="not a JSON object"):
        load_card(tmp_path)


@pytest.mark.slow
def test_what_no_longer_runs_is_refused_in_one_sentence(tiny_bundle, tiny_card, tmp_path):
    network = load_bundle(tiny_bundle).network()
    frame = {**tiny_card["frame"], "centre": "gland"}
    for card in ({**tiny_card, "frame": frame}, {**tiny_card, "neighbours_mm": 5.0}):
        with pytest.raises(PancreasSegError, match=r"second stage .* runs neither\.$"):
            save_bundle(network, card, tmp_path / "old.zip")
    frame["centre"] = "body"
    save_bundle(network, {**tiny_card, "frame": frame, "neighbours_mm": None}, tmp_path / "m.zip")


@pytest.mark.slow
def test_cached_models_are_listed(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("NAPARI_PANCREAS_SEG_CACHE", str(tmp_path))
    save_bundle(
        load_bundle(tiny_bundle).network(), load_card(tiny_bundle), tmp_path / "models/mine"
    )
    (tmp_path / "models" / "rubbish").mkdir()
    found = {entry.name: entry.origin for entry in list_models()}
    assert found["mine"] == "cached"
    assert "rubbish" not in found
    assert load_card("mine")["name"] == "tiny"


@pytest.mark.slow
def test_the_bundled_default_is_small_and_whole():
    entries = {entry.name: entry for entry in list_models()}
    assert entries["default"].origin == "bundled"
    bundle = load_bundle("default")
    assert isinstance(bundle, Bundle)
    assert len(bundle.weights) <= 20e6
    bundle.network()


def test_a_card_may_name_patients_whose_names_are_no_utf8(tiny_card, tiny_bundle, tmp_path):
    card = {**tiny_card, "training": {"patients": ["M\udcfcller"]}}
    for name in ("model", "model.zip"):
        save_bundle(load_bundle(tiny_bundle).weights, card, tmp_path / name)
        again = load_bundle(tmp_path / name)
        assert again.card["training"]["patients"] == ["M\udcfcller"]
