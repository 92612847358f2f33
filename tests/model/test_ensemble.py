"""An ensemble answers with the mean of its members, and is a bundle like any other."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.model.attention_unet import Architecture, build, gflop_per_slice
from napari_pancreas_seg.model.bundle import Bundle, join_weights, load_bundle, save_bundle
from napari_pancreas_seg.model.weights import pack_weights

TINY = Architecture(filters=1, height=32, width=32)


@pytest.fixture(scope="module")
def members(tiny_card):
    card = {**tiny_card, "architecture": TINY.to_dict()}
    card["frame"] = {**card["frame"], "height": 32, "width": 32}
    found = []
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        found.append(Bundle({**card, "name": f"member {seed}"}, pack_weights(build(TINY))))
    return found


@pytest.fixture(scope="module")
def path(members, tmp_path_factory):
    card = {**members[0].card, "name": "both", "members": 2}
    return save_bundle(join_weights(members), card, tmp_path_factory.mktemp("both") / "bundle")


@pytest.mark.slow
def test_its_answer_is_the_mean(members, path):
    hu = np.random.default_rng(0).random((2, 32, 32, 3)).astype(np.float32)
    ensemble = load_bundle(path).network()
    alone = [member.network() for member in members]
    found, expected = ensemble(hu), [network(hu) for network in alone]
    assert found.keys() == expected[0].keys()
    for name in found:
        mean = np.mean([np.asarray(one[name]) for one in expected], axis=0)
        np.testing.assert_allclose(np.asarray(found[name]), mean, atol=1e-6)
    assert not np.allclose(*(np.asarray(one["probability"]) for one in expected))
    assert ensemble.count_params() == sum(network.count_params() for network in alone)
    assert gflop_per_slice(ensemble) == pytest.approx(2 * gflop_per_slice(alone[0]))


def test_its_weights_are_checked(path, tmp_path):
    copy = tmp_path / "bundle"
    copy.mkdir()
    (copy / "card.json").write_bytes((path / "card.json").read_bytes())
    weights = bytearray((path / "weights.h5").read_bytes())
    weights[-1] ^= 1
    (copy / "weights.h5").write_bytes(weights)
    with pytest.raises(PancreasSegError, match="SHA-256"):
        load_bundle(copy)


@pytest.mark.parametrize("count", [0, 33, 1.5, True, "2"])
def test_impossible_numbers_of_members_are_refused(path, tmp_path, count):
    card = json.loads((path / "card.json").read_text())
    card["members"] = count
    (tmp_path / "card.json").write_text(json.dumps(card))
    (tmp_path / "weights.h5").write_bytes((path / "weights.h5").read_bytes())
    with pytest.raises(PancreasSegError, match="members"):
        load_bundle(tmp_path)


@pytest.mark.slow
def test_more_members_than_weights_are_refused(path, tmp_path):
    card = json.loads((path / "card.json").read_text())
    card["members"] = 3
    with pytest.raises(PancreasSegError, match="do not fit"):
        Bundle(card, (path / "weights.h5").read_bytes()).network()


@pytest.mark.slow
def test_only_networks_of_one_kind_go_together(members, path):
    other = {**members[1].card, "windows": [[0, 100], [0, 200], [0, 255]]}
    with pytest.raises(PancreasSegError, match="another windows"):
        join_weights([members[0], Bundle(other, members[1].weights)])
    with pytest.raises(PancreasSegError, match="members of its own"):
        join_weights([members[0], load_bundle(path)])
    with pytest.raises(PancreasSegError, match="between 2"):
        join_weights(members[:1])
