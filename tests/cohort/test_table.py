from __future__ import annotations

import csv
import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from napari_pancreas_seg.cohort import table as cohort_table
from napari_pancreas_seg.cohort.cases import Case
from napari_pancreas_seg.cohort.steps import CaseResult
from napari_pancreas_seg.cohort.table import COLUMNS, CohortTable
from napari_pancreas_seg.errors import PancreasSegError

MEASURED = {"volume_ml": 85.25, "mean_hu": None, "sd_hu": None, "slices": 40,
            "extent_mm": [100.0, 60.5, 120.0], "voxels": 9}  # fmt: skip


def case(name: str) -> Case:
    return Case(Path(f"{name}.nii.gz"), Path(f"{name}_mask.nii.gz"), name)


def done(name: str) -> CaseResult:
    return CaseResult(case(name), (Path("x"),), 85.25, 40, 1.0, measurements=MEASURED)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_in_the_order_of_the_cases_as_they_finish(tmp_path: Path) -> None:
    path = tmp_path / "out" / "cohort.csv"
    table = CohortTable(path, [case(name) for name in "abc"])
    assert not path.exists()
    table.add(CaseResult(case("b"), error='no CT, "really"\nnone'))
    (row,) = rows(path)
    assert row["case"] == "b.nii.gz"
    assert (row["status"], row["reason"]) == ("failed", 'no CT, "really" none')
    table.add(done("c"))
    table.add(done("a"))
    table.write()
    assert [row["case"] for row in rows(path)] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    first = rows(path)[0]
    assert tuple(first) == COLUMNS
    assert first["status"] == "done"
    assert (first["volume_ml"], first["extent_y_mm"], first["mean_hu"]) == ("85.25", "60.5", "")


def test_the_next_run_keeps_the_rows_of_others_and_renews_its_own(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    table = CohortTable(path, [case("a"), case("z")])
    table.add(done("z"))
    table.add(CaseResult(case("a"), error="not mounted"))
    table.write()
    table = CohortTable(path, [case("a"), case("b")])
    table.add(done("a"))
    table.write()
    assert [(row["case"], row["status"]) for row in rows(path)] == [
        ("z.nii.gz", "done"),
        ("a.nii.gz", "done"),
    ]


def test_a_mask_in_another_format_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    table = CohortTable(path, [case("a"), case("b")])
    for name in "ab":
        table.add(done(name))
    table.write()
    other = replace(case("a"), mask=Path("a_mask.nrrd"))
    table = CohortTable(path, [other])
    table.add(replace(done("a"), case=other))
    assert [row["mask"] for row in rows(path)] == ["b_mask.nii.gz", "a_mask.nrrd"]


def test_a_failure_in_another_format_leaves_the_row_of_the_mask_that_is_there(
    tmp_path: Path,
) -> None:
    path = tmp_path / "cohort.csv"
    CohortTable(path, [case("a")]).add(done("a"))
    other = replace(case("a"), mask=Path("a_mask.dcm"))
    CohortTable(path, [other]).add(CaseResult(other, error="no UIDs"))
    assert [(row["mask"], row["status"]) for row in rows(path)] == [("a_mask.nii.gz", "done")]
    CohortTable(path, [case("a")]).add(CaseResult(case("a"), error="unreadable"))
    assert [(row["mask"], row["status"]) for row in rows(path)] == [("a_mask.nii.gz", "failed")]


def test_a_row_for_each_class(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    labels = {"pancreas": MEASURED | {"volume_ml": 80.25}, "tumour": MEASURED | {"volume_ml": 5.0}}
    for _ in range(2):  # and none twice when it is read again
        table = CohortTable(path, [case("a"), case("b")])
        table.add(replace(done("a"), labels=labels))
        table.add(done("b"))
        table.write()
        assert [(row["case"], row["label"], row["volume_ml"]) for row in rows(path)] == [
            ("a.nii.gz", "", "85.25"),
            ("a.nii.gz", "pancreas", "80.25"),
            ("a.nii.gz", "tumour", "5"),
            ("b.nii.gz", "", "85.25"),
        ]


def test_a_table_of_somebody_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    for content in (b"patient,age\n1,70\n", b"\xff\xfe", b""):
        path.write_bytes(content)
        with pytest.raises(PancreasSegError, match="not the table of a cohort"):
            CohortTable(path, [])
        assert path.read_bytes() == content


def test_a_long_table_is_not_written_after_each_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000))
    monkeypatch.setattr(cohort_table.time, "monotonic", lambda: next(clock))  # writing takes 1 s
    path = tmp_path / "cohort.csv"
    table = CohortTable(path, [case(str(n)) for n in range(18)])
    seen = []
    for n in range(18):
        table.add(done(str(n)))
        seen.append(len(rows(path)))
    assert seen == [1] * 18  # the next one is due after 20 s
    table.write()
    assert len(rows(path)) == 18


def states(path: Path) -> dict[str, str]:
    return {row["case"].partition(".")[0]: row["status"] for row in rows(path)}


def test_a_run_that_is_stopped_takes_no_row_away(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    table = CohortTable(path, [case(name) for name in "abc"])
    for name in "abc":
        table.add(done(name))
    table.write()
    again = CohortTable(path, [case(name) for name in "abc"])
    again.add(CaseResult(case("b"), error="the disk is gone"))
    again.write()
    assert states(path) == {"a": "done", "b": "failed", "c": "done"}
    assert [row["case"] for row in rows(path)] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]


def test_two_commands_keep_each_others_rows(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    one = CohortTable(path, [case("a"), case("b")])
    other = CohortTable(path, [case("c"), case("d")])
    for table, name in ((one, "a"), (other, "c"), (one, "b"), (other, "d")):
        table.add(done(name))
    other.write()
    one.write()
    assert states(path) == dict.fromkeys("abcd", "done")


def test_a_command_that_writes_at_the_same_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cohort.csv"
    one = CohortTable(path, [case("a")])
    other = CohortTable(path, [case("b")])
    flush = os.fsync
    writes = [lambda: other.add(done("b"))]

    def meanwhile(file: int) -> None:
        flush(file)
        if writes:
            writes.pop()()

    monkeypatch.setattr(os, "fsync", meanwhile)
    one.add(done("a"))
    assert states(path) == {"a": "done", "b": "done"}
    assert [item.name for item in tmp_path.iterdir()] == ["cohort.csv"]


def test_a_command_that_writes_all_the_time_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cohort.csv"
    CohortTable(path, [case("z")]).add(done("z"))
    flush, writes = os.fsync, 0

    def meanwhile(file: int) -> None:
        nonlocal writes
        flush(file)
        writes += 1
        with open(path, "a", encoding="utf-8") as table:
            table.write(f"x{writes},x{writes}_mask.nii.gz,,failed,,,,,,,,\n")

    monkeypatch.setattr(os, "fsync", meanwhile)
    CohortTable(path, [case("a")]).add(done("a"))
    assert cohort_table._TRIES <= writes <= cohort_table._TRIES + 1
    assert {"a", "z", "x1"} <= states(path).keys()


def test_a_table_that_becomes_somebody_elses_stays(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    table = CohortTable(path, [case("a")])
    path.write_text("patient,age\n1,70\n")
    with pytest.raises(PancreasSegError, match="not the table of a cohort"):
        table.add(done("a"))
    assert path.read_text() == "patient,age\n1,70\n"


NAMES = (
    b"M\xfcller",
    "Müller".encode(),
    b"back\\slash",
    b"back\\xfc",
    b"two\nlines\r",
    b"\xff\xfe\\",
)


@pytest.mark.skipif(sys.platform != "linux", reason="names are not any bytes there")
def test_any_bytes_are_a_name_that_the_table_leads_back_to(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    for run in range(2):
        table = CohortTable(path, [case(os.fsdecode(name)) for name in NAMES])
        for name in NAMES[run:]:
            table.add(done(os.fsdecode(name)))
        table.add(CaseResult(case(os.fsdecode(NAMES[0])), error=f"no {os.fsdecode(NAMES[0])}"))
        table.write()
    said = [row["case"].removesuffix(".nii.gz") for row in rows(path)]
    assert said[:2] == ["M\\xfcller", "Müller"]
    back = [
        re.sub(rb"\\x(..)", lambda found: bytes.fromhex(found[1].decode()), text.encode())
        for text in said
    ]
    assert tuple(back) == NAMES


def test_an_earlier_mask_that_was_kept_keeps_its_measures(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    table = CohortTable(path, [case("a")])
    table.add(replace(done("a"), error="made with other options"))
    (row,) = rows(path)
    assert (row["status"], row["reason"]) == ("kept", "made with other options")
    assert row["volume_ml"] == "85.25"


def test_a_table_that_cannot_be_written_is_not_tried_with_every_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def refuse(*_: object, **__: object) -> None:
        tries.append(1)
        time.sleep(0.01)
        raise PancreasSegError("no")

    monkeypatch.setattr(CohortTable, "_replace", refuse)
    table = CohortTable(tmp_path / "cohort.csv", [])
    with pytest.raises(PancreasSegError):
        table.add(done("a"))
    for name in "bcdef":
        table.add(done(name))
    assert table.behind and len(tries) == 1


def test_a_row_that_another_command_has_renewed_stays(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    one, other = (CohortTable(path, [case(name) for name in "ab"]) for _ in range(2))
    one.add(done("a"))
    other.add(replace(done("a"), measurements=MEASURED | {"volume_ml": 3.0}))
    one.add(done("b"))
    one.write()
    assert [row["volume_ml"] for row in rows(path)] == ["3", "85.25"]
    path.unlink()  # what got lost comes back
    one.add(done("b"))
    one.write()
    assert [row["case"] for row in rows(path)] == ["a.nii.gz", "b.nii.gz"]


def test_a_table_that_no_csv_reader_takes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    path.write_text(f"case,mask,status\na,{'x' * 200_000},done\n", encoding="utf-8")
    with pytest.raises(PancreasSegError, match=r"'cohort\.csv' cannot be read as CSV"):
        CohortTable(path, [case("a")])
