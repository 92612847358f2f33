"""Expected Dice per slice, and where a pancreas can lie."""

import numpy as np
import pytest

from napari_pancreas_seg.inference.body import find_body
from napari_pancreas_seg.inference.maps import expected_dice


def test_expected_dice_by_hand():
    probability = np.zeros((4, 4, 4), np.float16)
    probability[0, 0, :2] = 1.0  # sure
    probability[1, 0, :2] = [0.75, 0.25]
    probability[2, 0, 0] = 0.05  # sure that there is none
    probability[3] = np.nan  # not computed
    got = expected_dice(probability, 0.5)
    np.testing.assert_allclose(got[:2], [1.0, 2 * 0.75 / (1 + 1.0)], rtol=1e-3)
    assert np.isnan(got[2:]).all()
    line = {"confidence": {"slope": 0.5, "intercept": 0.1}}
    np.testing.assert_allclose(expected_dice(probability, 0.5, line)[:2], 0.5 * got[:2] + 0.1)
    assert expected_dice(probability, 0.9)[1] == 0.0  # doubt without a mask


def trunk(n_slices, chest_from, spacing_z=5.0):
    """A cylinder of soft tissue with two lungs in its upper part."""
    y, x = np.mgrid[:128, :128] - 63.5
    body = (x / 55) ** 2 + (y / 40) ** 2 < 1
    lungs = ((np.abs(x) - 25) / 18) ** 2 + (y / 25) ** 2 < 1
    hu = np.where(body, 40, -1000)[None].repeat(n_slices, axis=0)
    hu[chest_from:][:, lungs] = -820
    return hu.astype(np.int16), (spacing_z, 3.0, 3.0)


@pytest.mark.slow
def test_a_pancreas_lies_around_the_lower_end_of_the_lungs():
    plausible = find_body(*trunk(160, 100)).plausible
    z = np.flatnonzero(plausible)
    # 64 of the 160 slices are looked at.
    assert z[0] == pytest.approx(100 - 210 / 5, abs=2)
    assert z[-1] == pytest.approx(100 + 90 / 5, abs=2)
    assert plausible[z[0] : z[-1]].all()


@pytest.mark.slow
@pytest.mark.parametrize("chest_from", [158, 160])
def test_a_short_end_of_the_lungs_is_enough_and_without_lungs_everything_is_plausible(chest_from):
    plausible = find_body(*trunk(160, chest_from)).plausible
    assert plausible.all() == (chest_from == 160)
    assert plausible[-40:].all()


@pytest.mark.slow
def test_gas_in_the_bowel_is_no_chest():
    hu, spacing = trunk(100, 100)
    hu[30:36, 55:70, 40:90] = -820
    assert find_body(hu, spacing).plausible.all()


def test_clipped_ct_hides_its_lungs():
    hu, spacing = trunk(160, 100)
    assert find_body(np.clip(hu, 0, 255), spacing).plausible.all()


@pytest.mark.slow
def test_the_phantom_keeps_its_gland(phantom):
    plausible = find_body(phantom.volume.hu, phantom.volume.spacing).plausible
    assert plausible[phantom.mask.any(axis=(1, 2))].all()
