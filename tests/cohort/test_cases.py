"""Which CTs a folder stands for, where masks of them lie in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dicom_series import body, write_series
from pydicom.dataset import Dataset

from napari_pancreas_seg import io
from napari_pancreas_seg.cohort.cases import _with_distinct_names, find_inputs, is_ours, plan
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io import stem

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


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["P1_mask.dcm", "P1_seg.dcm", "aaa", "masks/P1_mask.dcm", "masks/P1.dcm", "masks/deep/P1"],
)
def test_segmentations_beside_the_folders_of_series(name: str, scans: Path) -> None:
    write_segmentation(scans / "made.dcm", scans / "P1")
    (scans / name).parent.mkdir(parents=True, exist_ok=True)
    (scans / "made.dcm").rename(scans / name)
    assert list(find_inputs([scans])) == [scans / "P1", scans / "P2"]


def test_what_is_ours_by_its_name_is_not_read(scans: Path) -> None:
    (scans / "P1_mask.dcm").write_bytes(bytes(128) + b"DICM, and broken")
    assert list(find_inputs([scans])) == [scans / "P1", scans / "P2"]
    (scans / "P1.dcm").write_bytes(bytes(128) + b"DICM, and broken")  # it may be a slice
    assert list(find_inputs([scans])) == [scans]


@pytest.mark.slow
def test_segmentations_among_slices(scans: Path) -> None:
    for name in ("0.dcm", "P1_mask.dcm", "zzz.dcm"):
        write_segmentation(scans / "P1" / name, scans / "P2")
    assert list(find_inputs([scans / "P1"])) == [scans / "P1"]
    assert list(find_inputs([scans])) == [scans / "P1", scans / "P2"]


def test_a_folder_of_nothing_but_segmentations(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    write_segmentation(tmp_path / "masks" / "P1.dcm", scans / "P1")
    with pytest.raises(PancreasSegError, match="holds no CT"):
        find_inputs([tmp_path / "masks"])


@pytest.mark.parametrize("number", ["481.3", "88.33", "11.1", "104.1"])
def test_a_contour_or_a_report_beside_volumes_hides_none(number: str, tmp_path: Path) -> None:
    def change(_: int, dataset: Dataset) -> None:
        dataset.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.{number}"

    touch(tmp_path / "flat", "a.nii.gz", "b.nii.gz")
    touch(tmp_path / "patients", "P1/ct.nii.gz", "P2/ct.nii.gz")
    for folder in (tmp_path / "flat", tmp_path / "patients/P1"):
        write_series(folder, body((24, 20, 1)), change=change)
    assert list(named(tmp_path / "flat", root=tmp_path).values()) == ["a", "b"]
    assert list(named(tmp_path / "patients", root=tmp_path).values()) == ["P1", "P2"]


def test_names_that_we_give() -> None:
    for name in (
        *("a_mask.nii.gz", "a_mask.dcm", "a_mask.json", "a_mask.stl", "a_mask.nhdr", "a_mask.mhd"),
        *("a_mask.raw.gz", "a_mask.zraw", "a_attention_3.NII", "a_probability.nrrd", "cohort.csv"),
    ):
        assert is_ours(Path("in", name)), name
    for name in ("mask.nii.gz", "a_mask_2.nii", "a_mask.b.nii", "1.2.840.10008", "a.csv"):
        assert not is_ours(Path("in", name)), name


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def named(*paths: Path, root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): name for path, name in find_inputs(paths).items()}


def test_a_folder_for_each_patient_names_its_case(tmp_path: Path) -> None:
    masks = [f"s0001/segmentations/{organ}.nii.gz" for organ in ("liver", "pancreas")]
    touch(tmp_path / "total", "s0001/ct.nii.gz", *masks, "s0002/ct.nii.gz", "s0002/a_mask.nii")
    assert named(tmp_path / "total", root=tmp_path / "total") == {
        "s0001/ct.nii.gz": "s0001",
        "s0002/ct.nii.gz": "s0002",
    }
    names = ("sub-01/ses-1/ct/sub-01_ct.nii.gz", "sub-02/a.nrrd", "sub-02/a_pancreas.nrrd")
    bids = touch(tmp_path / "bids", *names, "derivatives/sub-01/x.nii", "sub-03/notes.txt")
    assert named(bids, root=bids) == {names[0]: "sub-01", "sub-02/a.nrrd": "sub-02"}
    phases = ("P1/arterial.nii.gz", "P1/venous.nii.gz", "P2/imaging.nii.gz", "P2/other.nii.gz")
    several = touch(tmp_path / "phases", *phases)
    assert named(several, root=several) == {
        phases[0]: "P1_arterial",
        phases[1]: "P1_venous",
        phases[2]: "P2",
    }
    (several / "._x.nii").touch()
    touch(several, "whole.nii.gz")  # beside volumes, only what is called a CT
    assert named(several, root=several) == {"whole.nii.gz": "whole", phases[2]: "P2"}


def test_masks_beside_their_cts_are_no_cases(tmp_path: Path) -> None:
    masks = ("a_pancreas.nii.gz", "a-label.nrrd", "b_seg.nii.gz", "b_ct_mask_2.nii.gz")
    touch(tmp_path, *masks, "a.nii.gz", "b_ct.nii.gz", "c_seg.nii.gz", "d_gt.nii.gz")
    found = ["a.nii.gz", "b_ct.nii.gz", "b_ct_mask_2.nii.gz", "c_seg.nii.gz", "d_gt.nii.gz"]
    assert list(named(tmp_path, root=tmp_path)) == found  # what is called after no CT may be one


def test_patients_folders_of_different_depths(tmp_path: Path) -> None:
    deep = ("p1/ct.nii.gz", "p2/scan1/ct.nii.gz", "site/p3/day1/ct.nii.gz")
    touch(tmp_path, *deep, "masks/p1/ct.nii.gz")
    expected = dict(zip(deep, ("p1", "p2", "site"), strict=True))
    assert named(tmp_path, root=tmp_path) == expected
    touch(tmp_path, "p4.nii.gz", "out/p1_mask.nii.gz")
    assert named(tmp_path, root=tmp_path) == expected | {"p4.nii.gz": "p4"}


def test_another_volume_hides_no_ct_in_a_folder_below_it(tmp_path: Path) -> None:
    cts = ("P1/follow/ct.nii.gz", "P2/a.nii.gz", "P3/ct.nii.gz")
    touch(tmp_path, *cts, "P1/topogram.nii.gz", "P2/more/b.nii.gz", "P3/old/ct.nii.gz")
    expected = dict(zip(cts, ("P1", "P2", "P3"), strict=True))
    assert named(tmp_path, root=tmp_path) == expected
    told: list[str] = []
    find_inputs([tmp_path], told.append)
    assert told[-1].endswith("are left out (2): P2/more/b.nii.gz, P3/old/ct.nii.gz")
    find_inputs([touch(tmp_path, "P4.nii.gz")], told.append)
    assert told[-1].endswith("are left out (3): P2/more/b.nii.gz, P2/a.nii.gz, P3/old/ct.nii.gz")


def test_volumes_beside_slices_are_named(scans: Path) -> None:
    told: list[str] = []
    touch(scans, "P1/converted.nii.gz", "P1/own_mask.nii.gz")
    for folder in (scans / "P1", scans):
        assert scans / "P1" in find_inputs([folder], told.append)
        name = (scans / "P1/converted.nii.gz").relative_to(folder)
        assert told.pop().endswith(f"are left out (1): {name.as_posix()}")


def test_a_patients_folder_that_cannot_be_listed_fails_as_a_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "P1/ct.nii.gz", "P2/ct.nii.gz", "P2/P1/notes.txt")
    scandir = os.scandir

    def listed(folder: str | Path) -> Iterator[os.DirEntry[str]]:
        if Path(folder).name == "P1":
            raise PermissionError(13, "no")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", listed)
    assert named(tmp_path, root=tmp_path) == {"P1": "P1", "P2/ct.nii.gz": "P2"}


def test_patients_of_files_and_of_series_in_one_folder(scans: Path) -> None:
    touch(scans, "P0/ct.nii.gz")
    assert named(scans, root=scans) == {"P0/ct.nii.gz": "P0", "P1": "P1", "P2": "P2"}


def test_equal_names_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{a}/{b}/ct.nii.gz" for a in "xy" for b in "ab"))
    a, b, other = (tmp_path / name / "ct.nii.gz" for name in ("x/a", "x/b", "y/a"))
    assert list(find_inputs([a, b]).values()) == ["a", "b"]
    assert list(find_inputs([a, b, other]).values()) == ["x_a", "x_b", "y_a"]
    assert list(find_inputs([tmp_path / "x" / "a", tmp_path / "x" / "b"]).values()) == ["a", "b"]
    assert list(find_inputs([a]).values()) == ["ct"]
    one, two = plan(find_inputs([a, b]), tmp_path / "out")
    assert (one.mask.name, two.probability.name) == ("a_mask.nii.gz", "b_probability.nii.gz")
    assert (one.name, two.name) == ("a", "b")


def test_two_visits_keep_whose_they_are(scans: Path, tmp_path: Path) -> None:
    days = [touch(tmp_path / day, "P1_ct.nii.gz", "P2_ct.nii.gz") for day in ("day1", "day2")]
    expected = ["day1_P1_ct", "day1_P2_ct", "day2_P1_ct", "day2_P2_ct"]
    assert list(find_inputs(days).values()) == expected
    one = touch(tmp_path / "one", "a.nii.gz", "b.nii.gz"), touch(tmp_path / "two", "a.nii.gz")
    assert list(find_inputs(one).values()) == ["one_a", "one_b", "two_a"]
    phases = [touch(tmp_path / x, "P1/late.nii", "P1/early.nii") for x in ("x", "y")]
    names = ["x_P1_early", "x_P1_late", "y_P1_early", "y_P1_late"]
    assert list(find_inputs(phases).values()) == names
    series = [scans / name for name in ("Q1/base", "Q1/follow", "Q2/base")]
    for folder in series:
        write_series(folder)
    assert list(find_inputs(series).values()) == ["Q1_base", "Q1_follow", "Q2_base"]
    assert list(find_inputs([scans / "Q1", scans / "Q2"]).values()) == [
        *("Q1_base", "Q1_follow", "Q2_base"),
    ]


def test_a_name_in_the_root_of_a_disk() -> None:
    inputs = {Path("/ct.nii"): "ct", Path("/a/ct.nii"): "ct"}
    assert list(_with_distinct_names(inputs).values()) == ["ct", "a"]
    inputs = {Path("/x.nii"): "x", Path("/a/x.nii"): "x"}
    assert list(_with_distinct_names(inputs).values()) == ["x", "a_x"]


def test_patients_without_a_ct_are_named(tmp_path: Path) -> None:
    told: list[str] = []
    names = ("P1/ct.nii.gz", "P2/P2_pancreas.nii.gz", "P3/ct.tif", "masks/P1.nii.gz")
    touch(tmp_path, *names, "out/cohort.csv")
    assert list(find_inputs([tmp_path], told.append).values()) == ["P1"]
    (line,) = told
    assert line.endswith("are left out (2): P2, P3")
    find_inputs([touch(tmp_path / "whole", "P1/ct.nii.gz")], told.append)
    assert len(told) == 1


def test_files_of_one_series_are_one_case(scans: Path, tmp_path: Path) -> None:
    files = sorted((scans / "P1").iterdir())
    others = sorted((scans / "P2").iterdir())
    assert find_inputs([*files, *others]) == {files[0]: "P1", others[0]: "P2"}
    assert find_inputs([scans / "P1", files[1]]) == {scans / "P1": "P1"}
    bare = write_series(tmp_path / "P3", uids=False).files
    assert find_inputs(bare) == {bare[0]: "P3"}
    more = write_series(scans / "P1", series_number=9, names=lambda k: f"more_{k}.dcm").files
    names = [stem(files[0]), stem(more[0])]
    assert list(find_inputs([files[0], more[0]]).values()) == names


def test_a_patients_folder_may_hold_a_link_to_its_series(scans: Path, tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    (cohort / "A").mkdir(parents=True)
    (cohort / "A" / "dicom").symlink_to(scans / "P1", target_is_directory=True)
    (cohort / "A" / "back").symlink_to(cohort, target_is_directory=True)
    assert list(find_inputs([cohort])) == [cohort / "A"]
