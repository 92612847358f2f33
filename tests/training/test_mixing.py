"""Parts of other patients in a slice: what is blended, and what is learnt."""

import numpy as np

from napari_pancreas_seg.training.data.datasets import TrainingSlices
from napari_pancreas_seg.training.fit.mixing import mix


def slices():
    """Three patients with a gland of 50, 60, 70 HU in a body of 20, 30, 40, and a chest."""
    hu = np.zeros((4, 120, 160), np.uint8)
    target = np.zeros((4, 120, 160, 1), np.uint8)
    for i in range(4):
        hu[i] = 20 + 10 * i
        if i < 3:
            hu[i, 50:70, 60:100] = 50 + 10 * i
            target[i, 50:70, 60:100] = 255
    return TrainingSlices(
        hu, target, np.array(["A", "B", "C", "D"]), np.array(["patient"] * 3 + ["negative"]),
        np.ones(4, bool),
    )  # fmt: skip


def mixed(share, rows=range(4), n=6):
    data = slices()
    chances = np.full(len(data), 1 / len(data))
    chosen = np.array([row for row in rows for _ in range(n)])
    return mix(np.random.default_rng(0), data, chances, chosen, share), chosen


def test_nothing_mixed_is_the_slices_themselves():
    batch, chosen = mixed(0.0)
    data = slices()
    np.testing.assert_array_equal(batch["hu"], data.inputs(chosen))
    np.testing.assert_array_equal(batch["target"], data.target[chosen])
    assert (batch["weight"] == 255).all()


def test_a_piece_brings_its_mask_along_and_its_edge_counts_less():
    batch, _ = mixed(1.0, rows=[0], n=30)
    bright = batch["hu"][:, 0] >= 59.5
    assert bright.any(axis=(1, 2)).sum() > 5  # another's gland
    assert (batch["target"][..., 0][bright] > 100).all()
    assert (batch["weight"].min(axis=(1, 2, 3)) < 120).all()
    assert (batch["weight"].mean(axis=(1, 2, 3)) > 200).all()


def test_negatives_stay_as_they_are():
    batch, chosen = mixed(1.0, rows=[3])
    np.testing.assert_array_equal(batch["hu"], slices().inputs(chosen))
