"""What `check` says of a mask, and of a CT that a run refuses."""

import nibabel as nib
import numpy as np
import pytest

from napari_pancreas_seg.cohort.inspection import inspect
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.scan_context import ScanContext
from napari_pancreas_seg.io import load_ct
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


def test_a_ct_that_a_run_refuses_is_unusable(tmp_path):
    hu = np.full((60, 50, 8), -1000, np.int16)
    hu[5:55, 5:45] = np.random.default_rng(0).normal(50, 15, (50, 40, 8))
    hu[20:30, 20:30] = -100
    usable = {}
    for name, mm in (("body", 5.0), ("micrometres", 0.005)):
        path = tmp_path / f"{name}.nii"
        nib.save(nib.Nifti1Image(hu, np.diag([-mm, -mm, mm, 1])), path)
        found = inspect(path)
        usable[name] = found["usable"]
    assert usable == {"body": True, "micrometres": False}
    with pytest.raises(PancreasSegError) as refusal:
        ScanContext.of(load_ct(path))
    assert found["problem"] == str(refusal.value)


@pytest.mark.filterwarnings("error")
def test_infinite_voxels_are_checked_without_a_warning_of_numpy(tmp_path):
    hu = np.random.default_rng(0).normal(50, 15, (60, 50, 8)).astype(np.float32)
    hu[:10] = np.inf
    nib.save(nib.Nifti1Image(hu, np.diag([-5.0, -5, 5, 1])), tmp_path / "ct.nii")
    assert "no usable value" in " ".join(inspect(tmp_path / "ct.nii")["suspicious"])
