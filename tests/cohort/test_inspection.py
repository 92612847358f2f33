"""What `check` says of a mask."""

import numpy as np
import pytest

from napari_pancreas_seg.cohort.inspection import inspect
from napari_pancreas_seg.io.save import save_mask
from napari_pancreas_seg.volume import CTVolume


@pytest.mark.parametrize("first", [0, 1])
def test_a_mask_at_the_edge_of_its_volume_is_named(first, tmp_path):
    hu = np.random.default_rng(0).normal(60, 10, (9, 8, 7)).astype(np.int16)
    volume = CTVolume.from_source_array(hu, np.diag([2.0, 2.0, 3.0, 1.0]))
    mask = np.zeros((7, 8, 9), np.uint8)
    mask[first:4, 3:5, 3:6] = 1
    save_mask(mask, volume, tmp_path / "mask.nii.gz")
    said = " ".join(inspect(tmp_path / "mask.nii.gz")["suspicious"])
    assert ("touches the edge" in said) == (first == 0)
