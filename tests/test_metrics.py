from __future__ import annotations

import numpy as np
import pytest

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.metrics import dice, measure, volume_ml
from napari_pancreas_seg.volume import CTVolume


@pytest.fixture
def volume() -> CTVolume:
    hu = np.arange(6 * 8 * 10, dtype=np.int16).reshape(6, 8, 10)
    return CTVolume.from_source_array(hu, np.diag([-2.0, -2.5, 4.0, 1]))


def test_dice() -> None:
    a, b = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), bool)
    assert dice(a, b) == 1.0
    a[0, 0] = 2
    assert dice(a, b) == 0.0
    b[0, 0, :2] = True
    assert dice(a, b) == pytest.approx(2 * 2 / 6)
    assert dice(b, a) == dice(a, b)
    assert dice(a, a) == 1.0
    with pytest.raises(PancreasSegError, match="same grid"):
        dice(a, b[:2])


def test_measure(volume: CTVolume) -> None:
    mask = np.zeros(volume.hu.shape, np.uint8)
    mask[2:5, 1, 3:5] = 1
    mask[3] = 0
    found = measure(mask, volume)
    inside = volume.hu[mask > 0]
    assert found["voxels"] == 4
    assert found["volume_ml"] == pytest.approx(4 * 20 / 1000)
    assert volume_ml(mask, volume.grid) == found["volume_ml"]
    assert found["slices"] == 2
    assert found["mean_hu"] == pytest.approx(inside.mean())
    assert found["sd_hu"] == pytest.approx(inside.std())
    assert found["extent_mm"] == pytest.approx([12, 2.5, 4])


def test_measure_of_nothing(volume: CTVolume) -> None:
    found = measure(np.zeros(volume.hu.shape, np.uint8), volume)
    assert found["volume_ml"] == found["slices"] == 0
    assert found["mean_hu"] is None
    assert found.keys() == measure(np.ones(volume.hu.shape, np.uint8), volume).keys()
    with pytest.raises(PancreasSegError, match="does not lie"):
        measure(np.zeros((2, 2, 2)), volume)
