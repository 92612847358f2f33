"""The sample CT is the synthetic CT of seed 0, but for errors far below its noise."""

import numpy as np
import pytest
from scipy import ndimage

from napari_pancreas_seg.data.sample import load_sample
from phantom import make_phantom


@pytest.mark.slow
def test_it_is_what_the_generator_draws(phantom):
    drawn = make_phantom(0)
    np.testing.assert_array_equal(phantom.mask, drawn.mask)
    np.testing.assert_array_equal(phantom.volume.source.affine, drawn.volume.source.affine)
    np.testing.assert_array_equal(phantom.volume.grid.affine, drawn.volume.grid.affine)
    difference = phantom.volume.hu.astype(int) - drawn.volume.hu
    assert phantom.volume.hu.dtype == np.int16
    assert abs(difference).max() <= 6 and difference.std() < 3.5 and abs(difference.mean()) < 0.2


@pytest.mark.slow
def test_it_is_the_same_every_time(phantom):
    np.testing.assert_array_equal(load_sample().volume.hu, phantom.volume.hu)
    assert ndimage.label(phantom.mask)[1] == 1
