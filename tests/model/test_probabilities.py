"""Temperature: of one class it divides the log-odds, of several the logits."""

import numpy as np
import pytest

from napari_pancreas_seg.model.probabilities import tempered, with_background


def test_one_class():
    p = np.linspace(0.001, 0.999, 50, dtype=np.float32).reshape(5, 10, 1)
    odds = np.log(p / (1 - p))
    np.testing.assert_allclose(
        np.asarray(tempered(p, 2.5)), 1 / (1 + np.exp(-odds / 2.5)), atol=1e-5
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_several_classes(temperature):
    logits = np.random.default_rng(0).normal(0, 2, (4, 4, 3))

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    found = np.asarray(tempered(softmax(logits)[..., 1:].astype(np.float32), temperature))
    np.testing.assert_allclose(found, softmax(logits / temperature)[..., 1:], atol=1e-5)
    whole = np.asarray(with_background(found))
    np.testing.assert_allclose(whole.sum(-1), 1, atol=1e-5)
