"""Masks of another program: found by their names, written in place of a run, corrected."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from napari_pancreas_seg.cohort.cases import Case, find_inputs, plan
from napari_pancreas_seg.cohort.given import GivenMasks, adopt
from napari_pancreas_seg.cohort.page import adopt_cases
from napari_pancreas_seg.cohort.worklist import (
    Status,
    Worklist,
    read_marks,
    remember_inputs,
    remembered_inputs,
)
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import edited_record
from napari_pancreas_seg.inference.saving import is_sidecar
from napari_pancreas_seg.io import load_ct, load_mask

AFFINE = np.diag([-1.0, -1, 5, 1])


@pytest.fixture
def cts(tmp_path: Path) -> Path:
    folder = tmp_path / "cts"
    folder.mkdir()
    hu = np.full((60, 50, 8), -1000, np.int16)
    hu[5:55, 5:45] = 50 + np.random.default_rng(0).integers(-9, 9, (50, 40, 8))
    for name in ("a_0000", "b"):
        nib.save(nib.Nifti1Image(hu, AFFINE), folder / f"{name}.nii.gz")
    return folder


def write_mask(path: Path, *values: int) -> Path:
    labels = np.zeros((60, 50, 8), np.uint8)
    for n, value in enumerate(values):
        labels[20:30, 20 + 5 * n : 25 + 5 * n, 2:6] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, AFFINE), path)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "a.nii.gz",
        "a_0000.nii.gz",
        "A_mask.nii",
        "a/pancreas.nii.gz",
        "a/segmentations/pancreas.nii",
        "a/a_seg.nii.gz",
        "a.seg.nrrd",
        "a_Segmentation.seg.nrrd",
        "a/Segmentation.seg.nrrd",
    ],
)
def test_masks_are_found_as_other_programs_name_them(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()  # only names are looked at
    (tmp_path / "ab.nii.gz").touch()
    (tmp_path / "a.json").write_text("{}")
    assert GivenMasks(tmp_path).find("a_0000") == path
    assert GivenMasks(tmp_path).find("c") is None


def test_a_ct_is_not_its_own_mask(cts: Path) -> None:
    beside = write_mask(cts / "b_seg.nii.gz", 1)
    assert GivenMasks(cts).find("b", cts / "b.nii.gz") == beside
    assert GivenMasks(cts).find("a_0000", cts / "a_0000.nii.gz") is None


def test_a_mask_may_be_named_after_the_file_of_a_ct_in_a_patients_folder(tmp_path: Path) -> None:
    files = ("P1/scan_1.nii.gz", "P2/b.nii.gz", "P3/ct.nii.gz", "P4/ct.nii.gz", "b/x.nii.gz")
    for file in files:
        (tmp_path / "cts" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cts" / file).touch()
    cases = plan(find_inputs([tmp_path / "cts"]), tmp_path / "out")
    theirs = tmp_path / "theirs"
    masks = [write_mask(theirs / f"{n}.nii.gz", 1) for n in ("scan_1_seg", "b", "ct", "P4")]
    found = GivenMasks(theirs).find_each(cases)
    assert found == {"P1": masks[0], "b": masks[1], "P4": masks[3]}


def test_names_that_differ_by_capital_letters_are_two_cases(tmp_path: Path) -> None:
    large, small = (write_mask(tmp_path / f"{n}.nii.gz", 1) for n in ("P1", "p1_seg"))
    given = GivenMasks(tmp_path)
    assert given.find("p1") == small and given.find("P1") == large


def test_one_label_of_several_is_taken(tmp_path: Path) -> None:
    labels, _ = load_mask(write_mask(tmp_path / "m.nii", 1, 7, 7))
    assert GivenMasks(tmp_path, 7).pancreas(labels, "m").sum() == 2 * 200
    with pytest.raises(PancreasSegError, match=r"several labels \(1, 7\); say with --label"):
        GivenMasks(tmp_path).pancreas(labels, "m")
    with pytest.raises(PancreasSegError, match="no label 4, but 1, 7"):
        GivenMasks(tmp_path, 4).pancreas(labels, "m")
    assert not GivenMasks(tmp_path, 4).pancreas(np.zeros_like(labels), "m").any()
    assert GivenMasks(tmp_path, (1, 4)).pancreas(labels, "m").sum() == 200
    assert GivenMasks(tmp_path, [1, 7]).pancreas(labels, "m").sum() == 3 * 200
    with pytest.raises(PancreasSegError, match="no label 4 or 5, but 1, 7"):
        GivenMasks(tmp_path, (4, 5)).pancreas(labels, "m")


def test_an_organ_that_other_masks_show_was_not_found_in_this_ct(tmp_path: Path) -> None:
    labels, _ = load_mask(write_mask(tmp_path / "m.nii", 1, 7))
    write_mask(tmp_path / "sub" / "n.nii.gz", 4)
    (tmp_path / "broken.nii.gz").write_bytes(b"no mask")
    assert not GivenMasks(tmp_path, 4).pancreas(labels, "m").any()
    with pytest.raises(PancreasSegError, match="no label 5, but 1, 7"):
        GivenMasks(tmp_path, 5).pancreas(labels, "m")


def test_a_given_mask_stands_for_a_run_and_the_sidecar_says_whose_it_is(
    cts: Path, tmp_path: Path
) -> None:
    path = write_mask(tmp_path / "theirs" / "b.nii.gz", 1, 7)
    odd = nib.load(path)
    odd.set_qform(np.eye(4), 1)
    nib.save(odd, path)
    before = path.read_bytes()
    target = tmp_path / "out" / "b_mask.nii.gz"
    given = GivenMasks(path.parent, 7, "TotalSegmentator 2.4")
    record, *_ = adopt(cts / "b.nii.gz", target, given, path)
    mask, _ = load_mask(target)
    assert mask.sum() == 200 and set(np.unique(mask)) == {0, 1}
    assert path.read_bytes() == before
    sidecar = target.with_name("b_mask.json")
    assert is_sidecar(sidecar, load_ct(cts / "b.nii.gz"))
    assert record["mask_by"] == "TotalSegmentator 2.4"
    assert "model" not in record
    assert "sform and qform" in record["notes"][0]  # of the file of the mask
    assert record["measurements"]["voxels"] == 200
    assert "expected_dice" not in record["quality"]
    assert any("The mask has 1 mL" in sentence for sentence in record["quality"]["noticed"])
    with pytest.raises(PancreasSegError, match="exists already"):
        adopt(cts / "b.nii.gz", target, given, path)


def test_the_ct_of_a_given_mask_is_read_as_is_remembered(tmp_path: Path) -> None:
    hu = np.full((60, 50, 8), 700, np.int16)  # no CT by itself
    hu[::2] = 900
    nib.save(nib.Nifti1Image(hu, AFFINE), tmp_path / "b.nii.gz")
    path = write_mask(tmp_path / "theirs" / "b.nii.gz", 1)
    case = Case(tmp_path / "b.nii.gz", tmp_path / "out" / "b_mask.nii.gz", "b")
    (refused,) = adopt_cases([case], GivenMasks(path.parent))
    assert refused.error is not None
    (read,) = adopt_cases([replace(case, force=True)], GivenMasks(path.parent))
    assert read.error is None and read.measurements["voxels"] == 200


def test_a_corrected_mask_keeps_whose_it_was(cts: Path, tmp_path: Path) -> None:
    path = write_mask(tmp_path / "theirs" / "b.nii.gz", 1)
    volume = load_ct(cts / "b.nii.gz")
    given = GivenMasks(path.parent)
    record, *_ = adopt(cts / "b.nii.gz", tmp_path / "b_mask.nii.gz", given, path)
    new = edited_record(record, np.ones(volume.grid.shape, np.uint8), volume)
    assert new["mask_by"] == "another program"
    assert new["measurements"]["voxels"] == 60 * 50 * 8
    assert new["quality"] == {"phase": "unknown"}
    assert new["corrected"]


def test_a_worklist_starts_with_given_masks_and_remembers_them(cts: Path, tmp_path: Path) -> None:
    write_mask(tmp_path / "theirs" / "a.nii.gz", 3)
    masks = GivenMasks(tmp_path / "theirs", 3, "nnU-Net")
    work = Worklist(cts, tmp_path / "state", masks=masks)
    assert [case.status for case in work.cases] == [Status.SEGMENTED, Status.NEW]
    given = work.cases[0].given
    assert given is not None and given[1].name == "a.nii.gz"
    assert work.cases[1].given is None
    write_mask(tmp_path / "theirs" / "b.nii.gz", 3)  # made meanwhile
    work.use_output(work.output)
    assert work.cases[1].given is not None
    work.go_to(1)
    again = Worklist(cts, tmp_path / "state")
    assert again.masks == masks
    assert again.cases[0].given == given


def test_an_output_folder_is_a_worklist_where_its_cts_are_known(cts: Path, tmp_path: Path) -> None:
    out, state = tmp_path / "out", tmp_path / "state"
    write_mask(out / "a_0000_mask.nii.gz", 1)
    with pytest.raises(PancreasSegError, match="holds no CT"):
        Worklist(out, state)
    remember_inputs(out, [cts / "b.nii.gz", cts / "a_0000.nii.gz"], state)
    assert remembered_inputs(out, state) == [[cts / "b.nii.gz", cts / "a_0000.nii.gz"]]
    work = Worklist(out, state)
    assert [case.status for case in work.cases] == [Status.NEW, Status.SEGMENTED]
    work.update(1, status=Status.REVIEWED)
    assert work.case.name == str(cts / "b.nii.gz")
    remember_inputs(out, [cts], state)
    work = Worklist(out, state)
    assert [case.name for case in work.cases] == ["a_0000.nii.gz", "b.nii.gz"]
    assert [case.status for case in work.cases] == [Status.REVIEWED, Status.NEW]


def test_an_output_folder_keeps_the_cts_of_every_command(cts: Path, tmp_path: Path) -> None:
    out, state, more = tmp_path / "out", tmp_path / "state", tmp_path / "more"
    more.mkdir()
    (cts / "b.nii.gz").rename(more / "b.nii.gz")
    write_mask(out / "a_0000_mask.nii.gz", 1)
    remember_inputs(out, [cts], state)
    Worklist(out, state).update(0, status=Status.REVIEWED, reviewed=(2, 3), digest="1")
    remember_inputs(out, [more], state)
    remember_inputs(out, [cts / "a_0000.nii.gz"], state)  # one case anew
    work = Worklist(out, state)
    assert [case.mask.name for case in work.cases] == ["a_0000_mask.nii.gz", "b_mask.nii.gz"]
    assert (work.cases[0].status, work.cases[0].reviewed) == (Status.REVIEWED, (2, 3))
    work.go_to(1)
    assert remembered_inputs(out, state) == [[cts], [more]]
    assert len(Worklist(out, state, only={"a_0000_mask.nii.gz"})) == 1
    # What was moved is forgotten, and of two CTs of one name the last one counts.
    fixed = more.rename(tmp_path / "fixed") / "b.nii.gz"
    more.mkdir()
    (cts / "b.nii.gz").touch()
    remember_inputs(out, [fixed], state)
    assert remembered_inputs(out, state) == [[cts], [fixed]]
    assert [case.source for case in Worklist(out, state).cases] == [cts / "a_0000.nii.gz", fixed]


def test_cts_that_one_command_tells_apart_by_their_folders_stay_apart(tmp_path: Path) -> None:
    out, state = tmp_path / "out", tmp_path / "state"
    cts = [tmp_path / patient / "ct.nii.gz" for patient in ("P1", "P2")]
    for ct in cts:
        ct.parent.mkdir()
        ct.touch()
    remember_inputs(out, cts, state)
    remember_inputs(out, [write_mask(tmp_path / "ct.nii.gz", 1)], state)
    names = [case.mask.name for case in Worklist(out, state).cases]
    assert names == ["P1_mask.nii.gz", "P2_mask.nii.gz", "ct_mask.nii.gz"]


def test_what_an_earlier_version_remembers_is_known(cts: Path, tmp_path: Path) -> None:
    out, state = tmp_path / "out", tmp_path / "state"
    remember_inputs(out, [cts], state)
    (file,) = state.iterdir()
    file.write_text(json.dumps({"inputs": [str(cts), str(tmp_path / "gone")], "output": str(out)}))
    assert remembered_inputs(out, state) == [[cts]]


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".dcm"])
def test_masks_of_any_format_are_those_of_a_worklist(
    cts: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a_0000_mask", "b_mask"):
        (out / f"{name}{suffix}").touch()
        (out / f"{name}.json").touch()
    write_mask(out / "b_mask.nii.gz", 1)
    os.utime(out / f"b_mask{suffix}", (1, 1))  # replaced since
    work = Worklist(cts, tmp_path / "state", out)
    names = [case.mask.name for case in work.cases]
    assert names == [f"a_0000_mask{suffix}", "b_mask.nii.gz"]
    assert {case.status for case in work.cases} == {Status.SEGMENTED}


def test_marked_cases_alone_are_listed(cts: Path, tmp_path: Path) -> None:
    with pytest.raises(PancreasSegError, match=r"holds no marks\.csv"):
        read_marks(tmp_path, "good")
    text = "mask,case,mark\nb_mask.nii.gz,b.nii.gz,look-again\na_0000_mask.nii.gz,a,good\n"
    (tmp_path / "marks (1).csv").write_text(text)
    only = read_marks(tmp_path, "look-again")
    work = Worklist(cts, tmp_path / "state", only=only)
    assert [case.name for case in work.cases] == ["b.nii.gz"]
    work.go_to(0)
    assert len(Worklist(cts, tmp_path / "state")) == 2
    with pytest.raises(PancreasSegError, match="No case in"):
        read_marks(tmp_path / "marks (1).csv", "bad")
    text = "mask,case,mark\nb\u2028c_mask.nii.gz,b\u2028c.nii.gz,good\n"
    (tmp_path / "other.csv").write_text(text, encoding="utf-8")
    assert read_marks(tmp_path / "other.csv", "good") == {"b\u2028c_mask.nii.gz"}
    (tmp_path / "other.csv").write_text(text, encoding="utf-16")
    with pytest.raises(PancreasSegError, match="not a table with the columns mark and mask"):
        read_marks(tmp_path / "other.csv", "good")
    with pytest.raises(PancreasSegError, match="None of these CTs"):
        Worklist(cts, tmp_path / "state", only={"z"})
