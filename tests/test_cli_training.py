"""What the command line asks about a training, and what it says while one runs."""

import pytest

from napari_pancreas_seg.cli import main
from napari_pancreas_seg.cli.training import parse_windows


def test_the_options_stand_under_headings(capsys):
    assert main(["train", "--help"]) == 0
    said = capsys.readouterr().out
    headings = ["What to learn from:", "Recipe:", "How long:", "Patients held back:", "Machine:"]
    places = [said.index(heading) for heading in headings]
    assert places == sorted(places)
    assert said.index("--patience") > said.index("How long:")
    assert said.index("--all-folds") > said.index("Patients held back:")


def test_a_window_is_two_numbers():
    assert parse_windows(["40:150.5"]) == ((40.0, 150.5),)


@pytest.mark.parametrize(
    "wrong",
    [
        ["--all-folds", "--calibrated-by", "x"], ["--patience", "0"], ["--classes", "a=+"],
        ["--all-folds", "--fold", "0"], ["--calibrated-by", "x", "--fold", "1"],
        ["--window", "40"], ["--window", "a:b"], ["--phantoms", "3"],
    ],
)  # fmt: skip
def test_wrong_usage_exits_with_2(tmp_path, wrong, capsys):
    assert main(["train", str(tmp_path), "-o", str(tmp_path / "out"), *wrong]) == 2
    capsys.readouterr()
    assert not (tmp_path / "out").exists()


def test_a_command_that_asked_for_no_synthetic_cts_still_runs(tmp_path, capsys):
    assert main(["train", str(tmp_path), "-o", str(tmp_path / "out"), "--phantoms", "0"]) == 1
    assert main(["train", "--help"]) == 0
    said = capsys.readouterr()
    assert "No such option" not in said.err and "phantoms" not in said.out


@pytest.mark.parametrize("wrong", [["--classes", "pancreas"], ["--layout", "pairs"]])
def test_references_take_nothing_of_a_data_set(tmp_path, wrong, capsys):
    assert main(["evaluate", str(tmp_path), "--references", str(tmp_path), *wrong]) == 2
    assert "--references" in capsys.readouterr().err


def test_the_folder_of_corrections_holds_wherever_it_is_said(tmp_path, monkeypatch, capsys):
    asked = []
    where = "napari_pancreas_seg.training.data.layouts.corrected_cases"
    monkeypatch.setattr(f"{where}.remove_corrected_case", lambda folder, name: asked.append(folder))
    monkeypatch.setattr(f"{where}.corrected_cases_folder", lambda: tmp_path / "own")
    before, after = ["--folder", str(tmp_path / "a")], ["--folder", str(tmp_path / "b")]
    assert main(["corrections", *before, "remove", "x"]) == 0
    assert main(["corrections", *before, "remove", "x", *after]) == 0
    assert main(["corrections", "remove", "x"]) == 0
    assert [folder.name for folder in asked] == ["a", "b", "own"]
    capsys.readouterr()
