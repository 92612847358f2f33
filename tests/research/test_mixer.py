"""Slices for the training in PyTorch: whose gland is covered, and by what."""

import numpy as np
import pytest

from mixing import Mixer


@pytest.fixture
def mixer(tmp_path):
    """Two patients with glands at different places, and a chest."""
    hu = np.full((3, 120, 160), 60, np.uint8)
    hu[1], hu[2] = 90, 120
    target = np.zeros_like(hu)
    target[0, 40:60, 50:80] = target[1, 80:95, 90:110] = 255
    np.savez(
        tmp_path / "slices.npz",
        hu=hu,
        target=target,
        patient=np.array(["0001", "0002", "chest"]),
        kind=np.array(["patient", "patient", "negative"]),
        crop_patient=np.array(["0001"]),
        crop_shape=np.array([[8, 9]]),
        crop_hu=np.full(72, 80, np.uint8),
        crop_target=np.full(72, 255, np.uint8),
    )
    return Mixer(tmp_path / "slices.npz", [])


def test_a_covered_gland_is_gone_and_what_covers_it_holds_none(mixer):
    for seed in range(20):
        part = mixer._covered(mixer._whole(0), np.random.default_rng(seed))
        assert part.target.max() == 0
        assert (part.hu[45:55, 55:75] != 60).all()  # another's tissue
        assert (part.hu[:15] == 60).all()


def test_a_slice_without_gland_stays_as_it_is(mixer):
    part = mixer._covered(mixer._whole(2), np.random.default_rng(0))
    assert (part.hu == 120).all() and (part.weight == 1).all()


def test_nothing_is_taken_of_those_held_out(tmp_path, mixer):
    held = Mixer(tmp_path / "slices.npz", ["0001"])
    assert held.patients() == {"slices": ["0002"], "crops": []}
