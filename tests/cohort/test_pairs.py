"""Follow-up: pairs of cases from the table, and changes with their limits."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

import napari_pancreas_seg
from napari_pancreas_seg import cli
from napari_pancreas_seg.cohort.cases import Case
from napari_pancreas_seg.cohort.pairs import COLUMNS, FOLLOW_UP, write_follow_up
from napari_pancreas_seg.cohort.steps import CaseResult
from napari_pancreas_seg.cohort.table import CohortTable
from napari_pancreas_seg.errors import PancreasSegError

LIMITS = json.loads(
    (Path(napari_pancreas_seg.__file__).parent / "data" / "repeatability.json").read_text()
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "cohort.csv"
    cases = [Case(Path(f"{n}.nii.gz"), Path(f"{n}_mask.nii.gz"), n) for n in ("a", "b", "bad")]
    made = CohortTable(path, cases)
    for case, ml, fat in zip(cases, (80.0, 79.0), (None, 0.1), strict=False):
        measured = {"volume_ml": ml, "fat_fraction": fat, "eroded_mean_hu": ml, "slices": 9}
        made.add(CaseResult(case, measurements=measured, labels={"duct": {"volume_ml": 1.0}}))
    made.add(CaseResult(cases[2], error="not readable"))
    made.write()
    return path


def pairs_of(folder: Path, text: str) -> Path:
    path = folder / "pairs.csv"
    path.write_text(text, encoding="utf-8")
    return path


def follow_up(table: Path, text: str) -> list[dict[str, str]]:
    path, _ = write_follow_up(table.parent, pairs_of(table.parent, text))
    assert path == table.with_name(FOLLOW_UP)
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.parametrize(
    "content",
    [
        b"pair;before;after\nP1;a;b\n",
        b"pair, before, after\nP1, a, b\n",
        "note,before,after\nfür,a,b\n".encode("cp1252"),
    ],
    ids=["semicolons", "blanks", "an older spreadsheet's letters"],
)
def test_pairs_may_come_from_any_spreadsheet(table: Path, content: bytes) -> None:
    path = table.with_name("pairs.csv")
    path.write_bytes(content)
    assert write_follow_up(table.parent, path)[1] == 0


def test_names_compare_as_they_look(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    cases = [Case(Path(f"P\u00e4{n}.nii.gz"), Path(f"P\u00e4{n}_mask.nii.gz"), "") for n in "01"]
    made = CohortTable(path, cases)
    for case in cases:
        made.add(CaseResult(case, measurements={"volume_ml": 80.0}))
    made.write()
    (row,) = follow_up(path, "before,after\nPa\u03080,Pa\u03081\n")  # as macOS spells names
    assert row["measure"] == "volume_ml"


def test_pairs_that_are_not_there_are_counted(table: Path) -> None:
    pairs = pairs_of(table.parent, "before,after\na,b\na,none\nbad,b\n,\n,\n")
    assert write_follow_up(table.parent, pairs)[1] == 2


def test_changes_stand_beside_what_would_change_anyway(table: Path, tmp_path: Path) -> None:
    read = follow_up(table, "pair,before,after\nP1,a.nii.gz,b\n")
    assert tuple(read[0]) == COLUMNS
    of = {row["measure"]: row for row in read}
    assert "fat_fraction" not in of  # one CT could not tell
    volume = of["volume_ml"]
    assert (volume["pair"], volume["value_before"], volume["value_after"]) == ("P1", "80", "79")
    assert (float(volume["change"]), volume["change_percent"]) == (-1, "-1.2")
    limit = 1.96 * math.sqrt(2) * LIMITS["volume_ml"]["sd"] * 79.5
    assert float(volume["limit"]) == pytest.approx(limit, rel=1e-3)
    assert volume["beyond_limit"] == ("yes" if limit < 1 else "no")
    limit = 1.96 * math.sqrt(2) * LIMITS["eroded_mean_hu"]["sd"]
    assert float(of["eroded_mean_hu"]["limit"]) == pytest.approx(limit, rel=1e-3)
    assert of["slices"]["limit"] == ""


def test_a_large_change_is_beyond_the_limit(table: Path, tmp_path: Path) -> None:
    table.write_text(table.read_text().replace(",79,", ",20,"))
    rows = follow_up(table, "before,after\na,b\n")
    assert rows[0]["pair"] == "1" and rows[0]["beyond_limit"] == "yes"


def test_a_case_that_is_missing_or_failed_is_named(table: Path, tmp_path: Path) -> None:
    text = "before,after\na,nobody\nbad,b\nb,a_mask\n"
    rows = follow_up(table, text)
    assert rows[0]["reason"] == "There is no case 'nobody' in the table."
    assert rows[1]["reason"] == "'bad' failed."
    assert rows[2]["measure"] == "volume_ml"


def test_files_that_are_something_else_are_refused(table: Path, tmp_path: Path) -> None:
    with pytest.raises(PancreasSegError, match="columns after and before"):
        write_follow_up(table.parent, pairs_of(tmp_path, "first,second\na,b\n"))
    with pytest.raises(PancreasSegError, match=r"There is no file '.*none\.csv'"):
        write_follow_up(tmp_path, tmp_path / "none.csv")
    with pytest.raises(PancreasSegError, match="cannot be read"):
        write_follow_up(tmp_path, tmp_path)
    other = table.with_name(FOLLOW_UP)
    other.write_text("mine\n")
    with pytest.raises(PancreasSegError, match="not a table"):
        write_follow_up(table.parent, pairs_of(tmp_path, "before,after\na,b\n"))
    assert other.read_text() == "mine\n"


@pytest.mark.parametrize("cell", ['"79,5"', "nan", "-"])
def test_a_cell_that_a_spreadsheet_spoilt_is_named(
    table: Path, tmp_path: Path, cell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table.write_text(table.read_text().replace(",79,", f",{cell},"))
    with pytest.raises(PancreasSegError, match=r"'volume_ml' .* is no number"):
        follow_up(table, "before,after\na,b\n")
    assert cli.main(["report", str(table.parent)]) == 1
    assert "is no number; write it with a point" in capsys.readouterr().err


def test_report_writes_it_from_the_command_line(table: Path, tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path, "before,after\na,b\n")
    assert cli.main(["report", str(table.parent), "--pairs", str(pairs)]) == 0
    assert (table.parent / FOLLOW_UP).exists()
    pairs.write_text("no,table\n")
    assert cli.main(["report", str(table.parent), "--pairs", str(pairs)]) == 1
