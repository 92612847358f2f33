"""The network is the article's, gate by gate."""

from dataclasses import replace

import keras
import numpy as np
import pytest

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.model.attention_unet import (
    ARCHITECTURES,
    Architecture,
    AttentionGate,
    Normalization,
    build,
    count_parameters,
)

TINY = Architecture(filters=4, height=32, width=48)


@pytest.mark.slow
def test_the_article_network_has_the_article_size():
    network = build(ARCHITECTURES["article"])
    assert network.count_params() == 7_951_369
    assert network.input_shape == (None, 224, 224, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"attention": False, "channels": 1}, {"classes": 3, "head_batch_norm": True}],
    ids=str,
)
def test_parameters_are_counted_without_building(changes):
    architecture = Architecture(filters=2, height=32, width=32, dropout=0.1)
    architecture = replace(architecture, **changes)
    assert count_parameters(architecture) == build(architecture).count_params()
    assert count_parameters(ARCHITECTURES["article"]) == 7_951_369


@pytest.mark.slow
def test_one_pass_gives_mask_and_every_gate():
    network = build(TINY)
    out = network(np.random.default_rng(0).random((2, 32, 48, 3), np.float32))
    shapes = {name: tuple(value.shape) for name, value in out.items()}
    assert shapes == {
        "probability": (2, 32, 48, 1),
        "attention_1": (2, 16, 24, 1),
        "attention_2": (2, 8, 12, 1),
        "attention_3": (2, 4, 6, 1),
        "attention_4": (2, 2, 3, 1),
    }
    for value in out.values():
        array = np.asarray(value)
        assert (array >= 0).all() and (array <= 1).all()


@pytest.mark.slow
def test_the_plain_unet_differs_in_the_gates_alone():
    plain = build(Architecture(filters=4, height=32, width=48, attention=False))
    gated = build(TINY)
    assert set(plain.output) == {"probability"}
    names = {w.path: tuple(w.shape) for w in gated.weights if not w.path.startswith("gate_")}
    assert {w.path: tuple(w.shape) for w in plain.weights} == names


@pytest.mark.slow
@pytest.mark.parametrize("size", [(30, 48), (33, 17), (16, 16), (1, 1)])
def test_any_size_is_padded(size):
    network = build(Architecture(filters=2, height=size[0], width=size[1]))
    out = network(np.zeros((1, *size, 3), np.float32))
    assert tuple(out["probability"].shape) == (1, *size, 1)


def test_a_gate_does_what_the_paper_says():
    keras.utils.set_random_seed(1)
    gate = AttentionGate(5)
    rng = np.random.default_rng(1)
    skip = rng.normal(size=(1, 4, 6, 3)).astype(np.float32)
    gating = rng.normal(size=(1, 2, 3, 7)).astype(np.float32)
    weighed, alpha = (np.asarray(v) for v in gate((skip, gating)))

    def dense(layer, x):
        kernel, bias = (np.asarray(w) for w in layer.weights)
        return x @ kernel[0, 0] + bias

    added = dense(gate.project_gating, gating) + dense(gate.project_skip, skip[:, ::2, ::2])
    logits = dense(gate.coefficients, np.maximum(added, 0))
    np.testing.assert_allclose(alpha, 1 / (1 + np.exp(-logits)), atol=1e-5)
    enlarged = np.asarray(keras.ops.image.resize(alpha, (4, 6), interpolation="bilinear"))
    np.testing.assert_allclose(weighed, skip * enlarged, atol=1e-5)


@pytest.mark.slow
def test_several_classes_end_in_a_softmax_without_its_background():
    network = build(Architecture(filters=2, height=16, width=16, classes=3, head_bias=-3.0))
    out = np.asarray(network(np.zeros((1, 16, 16, 3), np.float32))["probability"])
    assert out.shape == (1, 16, 16, 3)
    # Nothing is to be seen, so that the biases speak: each class against the background.
    np.testing.assert_allclose(out, np.exp(-3) / (1 + 3 * np.exp(-3)), atol=1e-5)


@pytest.mark.slow
def test_deep_supervision_shares_every_other_weight():
    side = build(TINY, deep_supervision=True)
    assert {"side_2", "side_3"} <= set(side.output)
    names = {w.path for w in side.weights if not w.path.startswith("side_")}
    assert names == {w.path for w in build(TINY).weights}


@pytest.mark.slow
def test_the_policy_is_given_back():
    before = keras.config.dtype_policy().name
    network = build(TINY, policy="mixed_bfloat16")
    assert keras.config.dtype_policy().name == before
    assert network.get_layer("encoder_1_conv_1").compute_dtype == "bfloat16"
    assert network.output["probability"].dtype == "float32"


def test_impossible_architectures_are_refused():
    with pytest.raises(PancreasSegError):
        Architecture(filters=0)
    with pytest.raises(PancreasSegError):
        Architecture(dropout=1.0)


def test_normalisation_is_that_of_keras():
    x = np.random.default_rng(0).normal(2, 3, (2, 5, 4, 3)).astype(np.float32)
    ours, theirs = Normalization(), keras.layers.BatchNormalization()
    statistics = [np.array(w, np.float32) for w in ([1, -2, 3], [0, 1, 2], [2, 1, 0], [4, 1, 9])]
    for layer in (ours, theirs):
        layer.build(x.shape)
        layer.set_weights(statistics)
    for training in (False, True):
        found, expected = ours(x, training=training), theirs(x, training=training)
        np.testing.assert_allclose(found, expected, atol=1e-5)
