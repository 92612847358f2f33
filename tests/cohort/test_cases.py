"""Which CTs a folder stands for, where masks of them lie in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_series import write_series

from napari_pancreas_seg import io
from napari_pancreas_seg.cohort.cases import find_inputs, is_ours
from napari_pancreas_seg.errors import PancreasSegError

CARD = {"name": "fake", "version": "1", "labels": {"pancreas": 1}, "weights_sha256": "0" * 64}


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder with the folders of two patients."""
    folder = tmp_path / "scans"
    for name in ("P1", "P2"):
        write_series(folder / name)
    return folder


def write_segmentation(path: Path, series: Path) -> Path:
    volume = io.load_ct(series)
    mask = np.zeros(volume.grid.shape, np.uint8)
    mask[2:4, 5:9, 5:9] = 1
    return io.save_mask(mask, volume, path, card=CARD)


@pytest.mark.parametrize(
    "name",
    ["P1_mask.dcm", "P1_seg.dcm", "aaa", "masks/P1_mask.dcm", "masks/P1.dcm", "masks/deep/P1"],
)
def test_segmentations_beside_the_folders_of_series(name: str, scans: Path) -> None:
    write_segmentation(scans / "made.dcm", scans / "P1")
    (scans / name).parent.mkdir(parents=True, exist_ok=True)
    (scans / "made.dcm").rename(scans / name)
    assert find_inputs([scans]) == [scans / "P1", scans / "P2"]


def test_what_is_ours_by_its_name_is_not_read(scans: Path) -> None:
    (scans / "P1_mask.dcm").write_bytes(bytes(128) + b"DICM, and broken")
    assert find_inputs([scans]) == [scans / "P1", scans / "P2"]
    (scans / "P1.dcm").write_bytes(bytes(128) + b"DICM, and broken")  # it may be a slice
    assert find_inputs([scans]) == [scans]


def test_segmentations_among_slices(scans: Path) -> None:
    for name in ("0.dcm", "P1_mask.dcm", "zzz.dcm"):
        write_segmentation(scans / "P1" / name, scans / "P2")
    assert find_inputs([scans / "P1"]) == [scans / "P1"]
    assert find_inputs([scans]) == [scans / "P1", scans / "P2"]


def test_a_folder_of_nothing_but_segmentations(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    write_segmentation(tmp_path / "masks" / "P1.dcm", scans / "P1")
    with pytest.raises(PancreasSegError, match="holds no CT"):
        find_inputs([tmp_path / "masks"])


def test_names_that_we_give() -> None:
    for name in (
        *("a_mask.nii.gz", "a_mask.dcm", "a_mask.json", "a_mask.stl", "a_mask.nhdr", "a_mask.mhd"),
        *("a_mask.raw.gz", "a_mask.zraw", "a_attention_3.NII", "a_probability.nrrd", "cohort.csv"),
    ):
        assert is_ours(Path("in", name)), name
    for name in ("mask.nii.gz", "a_mask_2.nii", "a_mask.b.nii", "1.2.840.10008", "a.csv"):
        assert not is_ours(Path("in", name)), name
