"""The command line, with a network that only thresholds; bad input is tested in tests/io."""

from __future__ import annotations

import csv
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Generator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dicom_series import write_series

import napari_pancreas_seg
from napari_pancreas_seg.__main__ import script
from napari_pancreas_seg.cli import demo as demo_command
from napari_pancreas_seg.cli import main, terminal
from napari_pancreas_seg.cli import open as open_command
from napari_pancreas_seg.cohort import run as cohort
from napari_pancreas_seg.cohort.table import CohortTable
from napari_pancreas_seg.cohort.worklist import Worklist, state_folder
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference import segment as segmentation
from napari_pancreas_seg.inference.result import Options, Progress, ScalarMap, Segmentation
from napari_pancreas_seg.io import load_ct, save_mask
from napari_pancreas_seg.volume import CTVolume

CARD = {"name": "fake", "version": "1", "weights_sha256": "0" * 64}


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    hu = np.full((30, 26, 6), -1000.0)
    hu[4:26, 4:22] = 50
    hu[10:14, 10:14, 2:4] = 150
    hu += np.random.default_rng(0).normal(0, 8, hu.shape)
    folder = tmp_path / "in"
    folder.mkdir()
    nib.save(
        nib.Nifti1Image(hu.round().astype(np.int16), np.diag([-1.0, -1, 5, 1])), folder / "a.nii.gz"
    )
    return folder / "a.nii.gz"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Model and options that the fake network was asked for."""
    log: list[Any] = []

    def iter_segment(
        volume: CTVolume, model: Any, options: Options
    ) -> Generator[Progress, None, Segmentation]:
        log.append(options)
        yield Progress("segmenting", 1, 6)
        mask = (volume.hu > 120).astype(np.uint8)
        values = ScalarMap(mask.astype(np.float16), volume.grid)
        return Segmentation(
            mask, values, (values,), volume.grid, 0.5, CARD, {}, options, ("mind this",)
        )

    monkeypatch.setattr(cohort, "load_card", lambda model: log.append(model) or CARD)
    monkeypatch.setattr(segmentation, "LoadedModel", lambda *what: None)
    monkeypatch.setattr(segmentation, "iter_segment", iter_segment)
    return log


def test_one_file(
    ct: Path, tmp_path: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new" / "m.nii.gz"
    assert main(["segment", str(ct), "-o", str(target), "--attention", "--probability"]) == 0
    said = capsys.readouterr()
    assert re.fullmatch(
        r"a\.nii\.gz: 0\.2 mL in 2 slices, expected Dice 0\.\d\d, contrast phase unknown, [\d.]+ s "
        rf"-> {re.escape(str(target))}\n",
        said.out,
    )
    assert said.err == "a.nii.gz: mind this\n"
    assert sorted(item.name for item in target.parent.iterdir()) == [
        *("m.json", "m.nii.gz", "m_attention_1.nii.gz", "m_probability.nii.gz")
    ]
    assert json.loads((target.parent / "m.json").read_text())["model"]["name"] == "fake"
    mask = nib.load(target)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(nib.load(ct).dataobj) > 120)
    assert asked == ["default", Options()]


def test_every_option_arrives(ct: Path, tmp_path: Path, asked: list[Any]) -> None:
    arguments = "--model tiny --no-postprocess --device gpu:1 --batch-size 3 --threshold 0.3"
    arguments += " --slices 2:4 --no-second-look"
    assert main(["segment", str(ct), "-o", str(tmp_path / "out"), *arguments.split()]) == 0
    assert asked == ["tiny", Options("gpu:1", 3, 0.3, False, slices=(2, 4), second_look=False)]
    assert (tmp_path / "out" / "a_mask.nii.gz").exists()
    assert (tmp_path / "out" / "a_mask.json").exists()


@pytest.mark.parametrize("slices", ["4", "a:b", "5:2", "3:3", ":"])
def test_slices_that_are_none(slices: str, ct: Path, tmp_path: Path, asked: list[Any]) -> None:
    assert main(["segment", str(ct), "-o", str(tmp_path / "out"), "--slices", slices]) == 2
    assert asked == []


@pytest.mark.parametrize("threshold", ["0", "1", "nan"])
def test_the_parser_refuses_a_threshold_out_of_its_range(
    threshold: str, ct: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", str(ct), "-o", "out", "--threshold", threshold]) == 2
    assert "is not in the range 0<x<1" in capsys.readouterr().err
    assert main(["segment", "--help"]) == 0
    assert "[0<x<1]" in capsys.readouterr().out
    assert asked == []


def test_bad_cases_are_named_and_the_others_done(
    ct: Path, tmp_path: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (ct.parent / "b.nii.gz").write_bytes(b"nonsense")
    out = tmp_path / "out"
    assert main(["segment", str(ct.parent), str(tmp_path / "none.nii"), "-o", str(out)]) == 1
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["a.nii.gz", "b.nii.gz", "none.nii"]
    assert "not a NIfTI" in lines[1]
    assert said.err.splitlines()[-1] == "2 of 3 cases failed: b.nii.gz, none.nii."
    assert sorted(item.name for item in out.iterdir()) == [
        *("a_mask.json", "a_mask.nii.gz", "cohort.csv", "index.html", "pictures")
    ]


@pytest.mark.parametrize("back", [True, False])
def test_a_table_that_cannot_be_written_stops_no_case(
    back: bool,
    ct: Path,
    tmp_path: Path,
    asked: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As while a spreadsheet holds it on Windows."""
    for name in "bc":
        shutil.copy(ct, ct.with_name(f"{name}.nii.gz"))
    out, write, calls = tmp_path / "out", CohortTable._replace, []

    def refuse(table: CohortTable, *, anyway: bool) -> None:
        calls.append(1)
        if not back or len(calls) in (1, 2):
            raise PancreasSegError("'cohort.csv' was not written: you have no permission.")
        write(table, anyway=anyway)

    monkeypatch.setattr(CohortTable, "_replace", refuse)
    assert main(["segment", str(ct.parent), "-o", str(out)]) == (0 if back else 1)
    said = capsys.readouterr().err.splitlines()
    assert len(list(out.glob("*_mask.nii.gz"))) == 3
    assert sum("The run goes on" in line for line in said) == 1
    if back:
        assert table_of(out) == [(f"{name}.nii.gz", "done") for name in "abc"]
    else:
        assert "Masks that were written stay" in said[-1]


def test_masks_that_are_left_as_they_were_are_counted_as_that(
    ct: Path, tmp_path: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ct, ct.with_name("b.nii.gz"))
    line = ["segment", str(ct.parent), "-o", str(tmp_path / "out")]
    assert main(line) == 0
    capsys.readouterr()
    assert main([*line, "--threshold", "0.4"]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("a.nii.gz: kept: 'a_mask.nii.gz' exists already")
    assert "2 kept, 0 new" in said.err
    assert said.err.splitlines()[-1] == "2 of 2 masks were left as they were: a.nii.gz, b.nii.gz."
    assert table_of(tmp_path / "out") == [("a.nii.gz", "kept"), ("b.nii.gz", "kept")]


def table_of(folder: Path) -> list[tuple[str, str]]:
    with open(folder / "cohort.csv", encoding="utf-8", newline="") as file:
        return [(row["case"], row["status"]) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_a_folder_goes_on_where_it_stopped(
    ct: Path,
    tmp_path: Path,
    asked: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cohort, "load_card", lambda model: CARD)
    (ct.parent / "b.nii.gz").write_bytes(b"nonsense")
    out = tmp_path / "out"
    line = ["segment", str(ct.parent), "-o", str(out), "--workers", "1"]
    assert main(line) == 1
    assert f"1 failed, 1 new; see {out / 'cohort.csv'}." in capsys.readouterr().err.splitlines()
    assert table_of(out) == [("a.nii.gz", "done"), ("b.nii.gz", "failed")]
    shutil.copy(ct, ct.parent / "b.nii.gz")
    shutil.copy(ct, ct.parent / "c.nii.gz")
    assert main(line) == 0
    said = capsys.readouterr()
    assert [row.split(":")[0] for row in said.out.splitlines()] == ["b.nii.gz", "c.nii.gz"]
    assert said.err.splitlines()[-1] == f"1 done before, 2 new; see {out / 'cohort.csv'}."
    assert table_of(out) == [(f"{name}.nii.gz", "done") for name in "abc"]
    assert main([*line[:1], str(ct), *line[2:]]) == 0
    assert "done before -> " in capsys.readouterr().out
    assert len(asked) == 3


def test_many_failures_are_counted_not_all_named(
    ct: Path, tmp_path: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(25):
        (ct.parent / f"x{number:02}.nii").write_bytes(b"x")
    assert main(["segment", str(ct.parent), "-o", str(tmp_path / "out")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("25 of 26 cases failed: x00.nii, x01.nii")
    assert last.endswith("x19.nii and 5 more.")


@pytest.mark.slow
def test_interrupting_a_cohort_keeps_what_is_done(
    ct: Path, tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "bcdef":
        shutil.copy(ct, ct.parent / f"{name}.nii.gz")
    segment = segmentation.iter_segment

    def interrupted(volume: CTVolume, model: Any, options: Options) -> Any:
        if volume.name == "d":
            raise KeyboardInterrupt
        return segment(volume, model, options)

    monkeypatch.setattr(segmentation, "iter_segment", interrupted)
    out = tmp_path / "out"
    assert main(["segment", str(ct.parent), "-o", str(out)]) == 130
    masks = sorted(item.name for item in out.iterdir() if item.name.endswith(".gz"))
    assert masks == ["a_mask.nii.gz", "b_mask.nii.gz", "c_mask.nii.gz"]
    assert all(item.name[0] != "." for item in out.iterdir())
    assert set(table_of(out)) <= {(f"{name}.nii.gz", "done") for name in "abc"}


def test_a_table_that_is_none_of_ours_stops_before_any_work(
    ct: Path, tmp_path: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cohort.csv").write_text("patient,age\n")
    assert main(["segment", str(ct), "-o", str(tmp_path)]) == 1
    assert "not the table of a cohort" in capsys.readouterr().err
    assert asked == []


def test_existing_target(
    ct: Path, tmp_path: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "m.nii.gz"
    target.write_bytes(b"old")
    assert main(["segment", str(ct), "-o", str(target)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert target.read_bytes() == b"old"
    assert main(["segment", str(ct), "-o", str(target), "--overwrite"]) == 0
    assert nib.load(target).shape == (30, 26, 6)
    assert main(["segment", str(ct), "-o", str(ct), "--overwrite"]) == 1
    assert "CT itself" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["file", "file/m.nii.gz", "/proc/m.nii.gz"])
def test_where_nothing_can_be_written(
    output: str, ct: Path, tmp_path: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["segment", str(ct), "-o", str(tmp_path / output)]) == 1
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1
    assert "Nothing can be written" in said.err
    assert asked == []


@pytest.mark.parametrize(
    "arguments",
    [
        "segment",
        "segment a.nii.gz",
        "segment -o m.nii.gz",
        "segment a.nii.gz -o m.nii.gz --device cuda",
        "segment a.nii.gz -o m.nii.gz --batch-size 0",
        "segment a.nii.gz -o m.nii.gz --threshold 1.5",
        "segment a.nii.gz -o m.nii.gz --fast",
        "segmentate",
    ],
)
def test_wrong_usage(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments.split()) == 2
    assert "Usage" in capsys.readouterr().err


def test_an_empty_path_is_not_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["check", ""], ["segment", "a.nii.gz", "-o", ""]):
        assert main(arguments) == 2
        assert "is empty" in capsys.readouterr().err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    version = napari_pancreas_seg.__version__
    assert capsys.readouterr().out == f"napari-pancreas-seg {version}\n"
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("segment", "demo", "train", "evaluate", "models"))
    listed = said.partition("Commands:")[2]
    assert "..." not in listed  # the first line of each fits
    assert main(["convert", "--help"]) == 0
    assert "--label N " in capsys.readouterr().out


def test_help_says_what_kind_of_value_an_option_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--help"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    kinds = {words[0]: words[1] for words in lines if len(words) > 1}
    assert kinds["--label"] == "N" and kinds["--ct"] == "PATH" and kinds["OUT"] != "PATH"


@pytest.mark.usefixtures("nothing_frozen")
def test_only_the_process_of_the_script_gives_up_its_garbage(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["napari-pancreas-seg", "--version"])
    assert main() == 0 and gc.get_freeze_count() == 0
    assert script() == 0 and gc.get_freeze_count() > 0
    assert capsys.readouterr().out.count(napari_pancreas_seg.__version__) == 2


@pytest.mark.slow
def test_completion_knows_the_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "napari_pancreas_seg"],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "_NAPARI_PANCREAS_SEG_COMPLETE": "complete_bash",
            "COMP_WORDS": "napari-pancreas-seg segm",
            "COMP_CWORD": "1",
        },
    )
    assert done.stdout.split() == ["segment"]


def test_inputs_as_options(ct: Path, tmp_path: Path, asked: list[Any]) -> None:
    (tmp_path / "b").mkdir()
    shutil.copy(ct, tmp_path / "b" / "b.nii.gz")
    out = tmp_path / "out"
    line = ["segment", "-i", str(ct), "-i", str(tmp_path / "b"), "-o", str(out)]
    assert main(line) == 0
    assert table_of(out) == [("a.nii.gz", "done"), ("b.nii.gz", "done")]
    assert main(["segment", str(ct), "-i", str(tmp_path / "b"), "-o", str(out)]) == 0


def test_models_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "default" in [entry["name"] for entry in found]
    assert all("licence" in entry["card"] for entry in found if entry["origin"] == "bundled")


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "cancelled"),
        (MemoryError(), 1, "not enough memory"),
        (PancreasSegError("A sentence\nin two lines."), 1, "A sentence in two lines."),
        (ZeroDivisionError("by\nzero"), 1, "ZeroDivisionError: by zero"),
    ],
)
def test_nothing_ends_in_a_traceback(
    error: BaseException,
    status: int,
    words: str,
    ct: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("napari_pancreas_seg.cohort.cases.plan", fail)
    assert main(["segment", str(ct), "-o", str(tmp_path / "m.nii.gz")]) == status
    said = capsys.readouterr()
    assert words in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


@pytest.mark.slow
def test_debug_shows_the_traceback(ct: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "napari_pancreas_seg", "--debug", "segment", str(ct),
         "-o", str(tmp_path / "m.nii.gz"), "--model", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "There is no model" in done.stderr.splitlines()[-1]


def test_native_chatter_is_kept_away_and_our_words_are_not() -> None:
    code = (
        "import os, sys\n"
        "from napari_pancreas_seg.cli.terminal import quiet\n"
        "with quiet():\n"
        "    os.write(2, b'chatter')\n"
        "    print('note', file=sys.stderr)\n"
        "os.write(2, b'end')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stderr.split() == [b"note", b"end"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_interrupting_leaves_nothing(ct: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        # A shell starts its background jobs with the signal ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from napari_pancreas_seg.cohort import run as cohort, steps\n"
        "from napari_pancreas_seg.cli import main\n"
        "cohort.load_card = lambda model: {}\n"
        "steps.load_ct = lambda path, **_: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["segment", str(ct), "-o", str(tmp_path / "out" / "m.nii.gz")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "cancelled\n")
    assert not (tmp_path / "out").exists()


def test_models(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    entry = types.SimpleNamespace(
        name="tiny", origin="bundled", card={"version": "1", "licence": "CC0", "frame": {"a": 1}}
    )
    monkeypatch.setattr("napari_pancreas_seg.model.bundle.list_models", lambda: [entry])
    assert main(["models"]) == 0
    assert (
        capsys.readouterr().out
        == 'tiny (bundled)\n  version: 1\n  licence: CC0\n  frame: {"a": 1}\n'
    )


def test_a_card_cannot_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = {"licence": "\x1b]0;mine\x07", "windows": ["\x9b31m"]}
    entry = types.SimpleNamespace(name="a\x1b[2J", origin="own", card=card)
    monkeypatch.setattr("napari_pancreas_seg.model.bundle.list_models", lambda: [entry])
    assert main(["models"]) == 0
    said = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in said)
    assert r"a\x1b[2J (own)" in said and r"licence: \x1b]0;mine\x07" in said


def test_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = types.SimpleNamespace(
        dice=0.8765, volume_ml=70.04, reference_volume_ml=71.0, seconds=3.21,
        files=(tmp_path / "ct.nii.gz", tmp_path / "overview.png"),
    )  # fmt: skip
    asked: list[Any] = []

    def run_demo(folder: Path, *, model: str, device: str, progress: Any) -> Any:
        asked.append((folder, model, device))
        progress(Progress("segmenting", 1, 2))
        return result

    monkeypatch.setattr("napari_pancreas_seg.cohort.demo.run_demo", run_demo)
    assert main(["demo", "-o", str(tmp_path), "--device", "cpu"]) == 0
    assert asked == [(tmp_path, "default", "cpu")]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "synthetic CT: Dice 0.876, 70.0 mL (true: 71.0 mL), 3.2 s"
    assert [line.strip() for line in lines[1:]] == [str(path) for path in result.files]


def test_view_opens_napari_with_the_widget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], check: bool) -> Any:
        commands.append(command)
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(open_command.subprocess, "run", run)
    demo_command._view([tmp_path / "ct.nii.gz"])
    assert commands[0][:4] == [sys.executable, "-m", "napari", str(tmp_path / "ct.nii.gz")]
    assert commands[0][-3:] == ["-w", "napari-pancreas-seg", "Pancreas segmentation"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="screens are told from variables")
def test_view_without_a_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(open_command.importlib.util, "find_spec", lambda name: object())
    assert main(["demo", "-o", str(tmp_path / "demo"), "--view"]) == 1
    assert "needs a screen" in capsys.readouterr().err
    monkeypatch.setattr(open_command.importlib.util, "find_spec", lambda name: None)
    assert main(["demo", "-o", str(tmp_path / "demo"), "--view"]) == 1
    assert "Qt binding" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_progress_bar_only_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> str:
        with terminal.Bar(2) as bar:
            bar.show(1, Progress("segmenting", 3, 9))
            with bar.paused():
                print("a line")
        said = capsys.readouterr()
        assert "a line" in said.out
        return said.err

    assert run() == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    assert "case 2 of 2, segmenting" in run()


def test_report_writes_the_page_of_a_run_again(
    ct: Path, tmp_path: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["segment", str(ct), "-o", str(out)]) == 0
    assert "Quality page: " in capsys.readouterr().err
    for path in (out / "index.html", out / "pictures" / "a_mask.jpg"):
        path.unlink()
    assert main(["report", str(out)]) == 0
    assert "a_mask.jpg" in (out / "index.html").read_text(encoding="utf-8")
    assert (out / "pictures" / "a_mask.jpg").is_file()  # the CT's place is remembered
    assert main(["report", str(tmp_path)]) == 1
    assert "holds no cohort.csv" in capsys.readouterr().err


def test_report_does_without_cts_and_without_a_place_to_remember_them(
    ct: Path,
    tmp_path: Path,
    asked: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, pairs = tmp_path / "out", tmp_path / "pairs.csv"
    pairs.write_text("before,after\na,a\n")
    assert main(["segment", str(ct.parent), "-o", str(out)]) == 0
    ct.rename(tmp_path / "b.nii.gz")
    (ct.parent / "README").touch()
    (out / "index.html").unlink()
    assert main(["report", str(out)]) == 0
    assert "holds no CT" in capsys.readouterr().err
    assert (out / "index.html").exists()
    assert main(["report", str(out), "--ct", str(ct.parent)]) == 1
    monkeypatch.setenv("XDG_DATA_HOME", str(pairs))
    ct = (tmp_path / "b.nii.gz").rename(ct)
    assert main(["report", str(out), "--ct", str(ct), "--pairs", str(pairs)]) == 0
    assert "cannot be created" in capsys.readouterr().err
    assert (out / "followup.csv").exists()
    pairs.write_text("before,after\na,a\na,z\n")
    assert main(["report", str(out), "--pairs", str(pairs)]) == 1
    assert capsys.readouterr().err.startswith("1 pair could not be compared; the column 'reason'")


def test_report_finds_masks_of_any_format_and_says_what_it_could_not_measure(
    ct: Path, tmp_path: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["segment", str(ct.parent), "-o", str(out), "--format", "nrrd"]) == 0
    before = json.loads((out / "a_mask.json").read_text())["measurements"]["voxels"]
    volume = load_ct(ct)
    save_mask(volume.hu > 0, volume, out / "a_mask.nrrd", overwrite=True)
    later = (out / "pictures" / "a_mask.jpg").stat().st_mtime + 10
    os.utime(out / "a_mask.nrrd", (later, later))
    whole = ct.read_bytes()
    ct.write_bytes(b"nothing")
    (out / "b_mask.nrrd").symlink_to("nowhere")  # as where data are fetched when they are wanted
    capsys.readouterr()
    assert main(["report", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("a.nii.gz: not drawn or measured again: 'a.nii.gz' is not a NIfTI")
    ct.write_bytes(whole)
    assert main(["report", str(out)]) == 0
    assert "not drawn" not in capsys.readouterr().out
    assert json.loads((out / "a_mask.json").read_text())["measurements"]["voxels"] > before


def test_report_and_open_read_a_ct_as_the_run_did(
    ct: Path, tmp_path: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    two, scaled, out = tmp_path / "two", tmp_path / "scaled.nii.gz", tmp_path / "out"
    hu = np.asanyarray(nib.load(ct).dataobj)
    for number in (3, 4):
        write_series(two, hu, series_number=number, names=lambda k, n=number: f"{n}_{k}.dcm")
    nib.save(nib.Nifti1Image((hu + 1000).clip(0) / 1300, np.diag([-1.0, -1, 5, 1])), scaled)
    assert main(["segment", str(two), "-o", str(out), "--series", "4"]) == 0
    assert main(["segment", str(scaled), "-o", str(out), "--force"]) == 0
    assert main(["segment", str(two), "-o", str(out)]) == 1  # which one? The mask stays as it is
    for name in ("two", "scaled"):
        path = out / f"{name}_mask.nii.gz"
        mask = nib.load(path)
        nib.save(nib.Nifti1Image(np.ones(mask.shape, np.uint8), mask.affine, mask.header), path)
    capsys.readouterr()
    assert main(["report", str(out)]) == 0
    assert capsys.readouterr().out == f"-> {out / 'index.html'}\n"
    for name in ("two", "scaled"):
        record = json.loads((out / f"{name}_mask.json").read_text())
        assert record["measurements"]["voxels"] == hu.size
    for _ in range(2):
        work = Worklist(out, state_folder())
        read = {case.source.name: (case.series, case.force) for case in work.cases}
        assert read == {"two": ("4", False), "scaled.nii.gz": (None, True)}
        work.go_to(1)


@pytest.mark.slow
def test_open_hands_a_worklist_to_napari(
    ct: Path,
    tmp_path: Path,
    asked: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(open_command, "check_screen", lambda what: None)
    monkeypatch.setattr(open_command, "run_napari", started.append)
    out = tmp_path / "out"
    assert main(["segment", str(ct), "-o", str(out)]) == 0
    assert main(["open", str(out), "--only", "look-again"]) == 1  # nothing was marked yet
    (out / "marks.csv").write_text("mask,case,mark\na_mask.nii.gz,a.nii.gz,look-again\n")
    assert main(["open", str(out), "--only", "look-again"]) == 0
    assert main(["open", str(out), "--marks", str(out / "marks.csv")]) == 2  # of which mark?
    (arguments,) = started
    assert arguments[:2] == ["-m", "napari_pancreas_seg._napari"]
    assert json.loads(arguments[2]) == {
        "folder": str(out),
        "output": None,
        "masks": None,
        "only": ["a_mask.nii.gz"],
    }
    moved = out.rename(tmp_path / "moved")
    assert main(["open", str(moved)]) == 1
    assert "where the CTs of 'moved' lie" in capsys.readouterr().err
    assert main(["open", str(ct.parent), "-o", str(moved)]) == 0
    out = moved.rename(out)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    line = ["open", str(ct.parent), "--masks", str(theirs), "--label", "7"]
    assert main(line) == 1  # none of them is named after the CT
    (theirs / "a.nii.gz").write_bytes((out / "a_mask.nii.gz").read_bytes())
    assert main(line) == 0
    assert json.loads(started[-1][2])["masks"] == [str(theirs), 7, "another program"]
    assert main([*line, "--label", "1"]) == 0
    assert json.loads(started[-1][2])["masks"] == [str(theirs), [7, 1], "another program"]
    assert main(["open", str(ct.parent), "--label", "7"]) == 2
    capsys.readouterr()
    for line in (
        *(["open", str(tmp_path / "typo")], ["report", str(out), "--ct", "typo"]),
        ["segment", str(tmp_path / "typo"), "-o", str(tmp_path / "new")],
    ):
        count = len(started)
        assert main(line) == 1
        assert "typo' does not exist" in capsys.readouterr().err
        assert len(started) == count
    assert not (tmp_path / "new").exists()


def test_masks_of_another_program_get_a_table_and_a_page(
    ct: Path, tmp_path: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, out = tmp_path / "theirs", tmp_path / "out"
    shutil.copy(ct, ct.with_name("b.nii.gz"))
    theirs.mkdir()
    labels = np.zeros(nib.load(ct).shape, np.uint8)
    labels[5:9, 5:9, 2:4] = 7
    labels[12, 12, 2] = 1
    nib.save(nib.Nifti1Image(labels, nib.load(ct).affine), theirs / "a.nii.gz")
    line = ["report", str(out), "--masks", str(theirs), "--label", "7", "--by", "nnU-Net"]
    assert main(line) == 2  # whose CTs?
    assert main([*line, "--ct", str(ct.parent)]) == 1
    said = capsys.readouterr()
    assert "b.nii.gz: failed: 'theirs' has no mask of 'b.nii.gz'." in said.out
    assert "1 case has no mask: b.nii.gz." in said.err
    assert table_of(out) == [("a.nii.gz", "done"), ("b.nii.gz", "failed")]
    record = json.loads((out / "a_mask.json").read_text())
    assert (record["mask_by"], record["measurements"]["voxels"]) == ("nnU-Net", 32)
    assert (out / "pictures" / "a_mask.jpg").is_file()
    # A run does not replace it.
    assert main(["segment", str(ct), "-o", str(out)]) == 1
    assert "was made by nnU-Net" in capsys.readouterr().err


def test_a_line_that_begins_with_a_bar_is_no_row(capsys):
    lines = ["|p1/ct.nii.gz: unusable", "|p2 | q: unusable", "", "| a | b |", "| --- | --- |"]
    terminal.echo_page([*lines, "| long | p\\|1 |"])
    assert capsys.readouterr().out.split("\n")[:5] == [*lines[:3], "a     b", "long  p|1"]
