"""Worklists without a window: what is listed, and what is remembered."""

from __future__ import annotations

import json
import os
import sys

import pytest

from napari_pancreas_seg.cohort.given import GivenMasks
from napari_pancreas_seg.cohort.worklist import Status, Worklist
from napari_pancreas_seg.errors import PancreasSegError


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "cts"
    folder.mkdir()
    for name in ("b.nii.gz", "a.nii.gz", "c.nii"):
        (folder / name).write_bytes(b"")
    return folder


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


def write(path):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")


def test_cases_are_listed_by_name_and_nothing_is_created(folder, state):
    work = Worklist(folder, state)
    assert [case.name for case in work.cases] == ["a.nii.gz", "b.nii.gz", "c.nii"]
    assert {case.status for case in work.cases} == {Status.NEW}
    assert work.case.mask == folder.parent / "cts_masks" / "a_mask.nii.gz"
    assert work.next_case.name == "b.nii.gz"
    assert not state.exists()
    assert not work.output.exists()


def test_one_ct_is_a_worklist_named_like_it(folder, state):
    work = Worklist(folder / "b.nii.gz", state)
    assert [case.name for case in work.cases] == ["b.nii.gz"]
    assert work.case.mask == folder / "b_masks" / "b_mask.nii.gz"


def test_it_is_resumed_where_it_stopped(folder, state):
    work = Worklist(folder, state)
    write(work.cases[1].mask)
    work.go_to(1)
    work.update(1, status=Status.CORRECTED, slice=17)
    again = Worklist(folder, state)
    assert again.current == 1
    assert again.case == work.case
    assert (again.case.status, again.case.slice) == (Status.CORRECTED, 17)


def test_masks_that_are_there_count_as_segmented_and_lost_ones_as_new(folder, state):
    work = Worklist(folder, state)
    write(work.cases[0].mask)
    write(work.cases[2].mask)
    work.update(1, status=Status.EXPORTED)
    found = [case.status for case in Worklist(folder, state).cases]
    assert found == [Status.SEGMENTED, Status.NEW, Status.SEGMENTED]


def test_another_output_folder_is_remembered(folder, state, tmp_path):
    work = Worklist(folder, state)
    write(work.cases[0].mask)
    work.use_output(tmp_path / "elsewhere")
    again = Worklist(folder, state)
    assert again.output == tmp_path / "elsewhere"
    assert again.cases[0].mask.parent == again.output
    assert again.cases[0].status is Status.NEW
    (tmp_path / "file").write_text("")
    with pytest.raises(PancreasSegError):
        again.use_output(tmp_path / "file")
    assert again.output == tmp_path / "elsewhere"


def test_each_output_folder_has_its_own_statuses(folder, state, tmp_path):
    def statuses(work):
        return [str(case.status) for case in work.cases]

    work, other = Worklist(folder, state), tmp_path / "other"
    for case in work.cases:
        write(case.mask)
        write(other / case.mask.name)
    first = work.output
    work.update(0, status=Status.EXPORTED, reviewed=(3,), digest="of mine")
    work.use_output(other)
    assert statuses(work) == ["segmented"] * 3 and work.cases[0].reviewed == ()
    work.update(1, status=Status.REVIEWED)
    assert statuses(Worklist(folder, state)) == ["segmented", "reviewed", "segmented"]
    again = Worklist(folder, state, first)  # as the command opens it
    assert statuses(again) == ["exported", "segmented", "segmented"]
    assert again.cases[0].reviewed == (3,)
    again.use_output(tmp_path / "none there")
    again.use_output(other)
    assert statuses(again) == ["segmented", "reviewed", "segmented"]
    again.use_output(first)
    assert statuses(Worklist(folder, state)) == ["exported", "segmented", "segmented"]


def test_masks_of_others_are_found_again_by_all_their_labels(tmp_path, state):
    for path in ("cts/P1/scan_1.nii.gz", "cts/P2/ct.nii.gz", "theirs/scan_1.nii.gz"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    given = GivenMasks(tmp_path / "theirs", [1, 2], "somebody")
    Worklist(tmp_path / "cts", state, masks=given).go_to(1)
    again = Worklist(tmp_path / "cts", state)
    assert [case.given and case.given[1].name for case in again.cases] == ["scan_1.nii.gz", None]
    assert again.masks.value == [1, 2]
    file = next(state.glob("*.json"))
    memory = json.loads(file.read_text())
    memory["masks"]["value"] = ["one"]
    file.write_text(json.dumps(memory))
    assert Worklist(tmp_path / "cts", state).masks.value is None


def test_a_case_that_is_gone_is_remembered_until_it_comes_back(folder, state):
    work = Worklist(folder, state)
    for case in work.cases:
        write(case.mask)
    work.update(2, status=Status.REVIEWED, slice=3)
    (folder / "c.nii").rename(folder.parent / "c.nii")
    shorter = Worklist(folder, state)
    assert len(shorter) == 2
    shorter.update(0, status=Status.EXPORTED)
    (folder.parent / "c.nii").rename(folder / "c.nii")
    again = Worklist(folder, state)
    assert again.cases[2].status is Status.REVIEWED
    assert again.cases[0].status is Status.EXPORTED


def test_there_is_nothing_before_the_first_and_after_the_last(folder, state):
    work = Worklist(folder, state)
    with pytest.raises(PancreasSegError, match="first"):
        work.go_to(-1)
    work.go_to(2)
    assert work.next_case is None
    with pytest.raises(PancreasSegError, match="last"):
        work.go_to(3)
    assert work.current == 2


def test_the_next_unfinished_case_goes_around(folder, state):
    work = Worklist(folder, state)
    work.update(1, status=Status.EXPORTED)
    assert work.next_unfinished() == 2
    work.go_to(2)
    assert work.next_unfinished() == 0
    for index in range(3):
        work.update(index, status=Status.EXPORTED)
    assert work.next_unfinished() is None
    assert work.counts()[Status.EXPORTED] == 3


@pytest.mark.parametrize("text", ["", "[]", '{"cases": 3}', '{"cases": {"a.nii.gz": []}}', "\x00"])
def test_a_damaged_memory_is_no_obstacle(folder, state, text):
    work = Worklist(folder, state)
    work.go_to(1)
    (file,) = state.iterdir()
    file.write_text(text)
    again = Worklist(folder, state)
    assert len(again) == 3
    again.go_to(2)
    assert json.loads(file.read_text())["current"] == "c.nii"


def test_a_folder_without_a_ct_is_refused(tmp_path, state):
    with pytest.raises(PancreasSegError, match="no CT"):
        Worklist(tmp_path, state)


@pytest.mark.skipif(sys.platform != "linux", reason="names are not any bytes there")
def test_any_bytes_are_a_name_of_a_folder_and_a_case(tmp_path, state):
    folder = tmp_path / os.fsdecode(b"Pr\xe4fix")
    write(folder / "a.nii.gz")
    write(folder / os.fsdecode(b"M\xfcller.nii.gz"))
    work = Worklist(folder, state)
    assert len(work) == 2
    work.go_to(1)
    write(work.case.mask)
    work.update(1, status=Status.REVIEWED, slice=3)
    again = Worklist(folder, state)
    assert (again.current, again.case.status, again.case.slice) == (1, Status.REVIEWED, 3)
