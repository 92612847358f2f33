"""Many CTs in one run, with a network that only thresholds."""

from __future__ import annotations

import json
import os
import shutil
import sys
import weakref
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dicom_series import write_series

import napari_pancreas_seg
from napari_pancreas_seg import io
from napari_pancreas_seg.cohort import resume as cohort_resume
from napari_pancreas_seg.cohort import run as cohort
from napari_pancreas_seg.cohort import steps
from napari_pancreas_seg.cohort.cases import find_inputs, plan
from napari_pancreas_seg.cohort.resume import source_stamp
from napari_pancreas_seg.cohort.run import segment_cases
from napari_pancreas_seg.cohort.steps import CaseResult
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference import result as result_module
from napari_pancreas_seg.inference import saving
from napari_pancreas_seg.inference import segment as segmentation
from napari_pancreas_seg.inference.options import OutputOptions
from napari_pancreas_seg.inference.result import Options, Progress, ScalarMap, Segmentation
from napari_pancreas_seg.io import files, memory
from napari_pancreas_seg.volume import CTVolume

RESUME = OutputOptions(resume=True)
CARD = {"name": "fake", "version": "1", "weights_sha256": "0" * 64}


def ct_array() -> np.ndarray:
    hu = np.full((30, 26, 6), -1000.0)
    hu[4:26, 4:22] = 50
    hu += np.random.default_rng(0).normal(0, 8, hu.shape)
    hu[10:14, 10:14, 2:4] = 150
    return hu.round().astype(np.int16)


def write_ct(path: Path) -> Path:
    nib.save(nib.Nifti1Image(ct_array(), np.diag([-1.0, -1, 5, 1])), path)
    return path


def fake_segmentation(volume: CTVolume, options: Options | None = None) -> Segmentation:
    mask = (volume.hu > 120).astype(np.uint8)
    probability = ScalarMap(mask.astype(np.float16), volume.grid)
    return Segmentation(
        mask, probability, (probability,) * 2, volume.grid, 0.5, CARD, {"segmenting": 0.1},
        options or Options(),
    )  # fmt: skip


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A network that only thresholds; what was loaded and segmented is listed."""
    log: list[Any] = []

    class FakeModel:
        def __init__(self, model: str, device: str) -> None:
            log.append((model, device))

    def iter_segment(
        volume: CTVolume, model: FakeModel, options: Options
    ) -> Generator[Progress, None, Segmentation]:
        assert isinstance(model, FakeModel)
        try:
            for done in range(volume.hu.shape[0]):
                yield Progress("segmenting", done, volume.hu.shape[0])
            log.append(volume.name)
            if volume.name.startswith("crash"):
                raise RuntimeError("the network\nis ill")
            if volume.name.startswith("large"):
                raise MemoryError
            return fake_segmentation(volume, options)
        finally:
            log.append("closed")

    monkeypatch.setattr(cohort, "load_card", lambda _: CARD)
    monkeypatch.setattr(segmentation, "LoadedModel", FakeModel)
    monkeypatch.setattr(segmentation, "iter_segment", iter_segment)
    return log


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def test_inputs_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "A.NII", "._b.nii.gz", "x.txt", "b_mask.nii.gz", "b_mask.json",
                 "b_probability.nii.gz", "b_attention_1.nii.gz", "b_attention.nii"):  # fmt: skip
        (tmp_path / name).touch()
    (tmp_path / "c.nii").mkdir()
    found = find_inputs([tmp_path / "b.nii.gz", tmp_path, tmp_path / "none.nii"])
    assert [path.name for path in found] == ["b.nii.gz", "A.NII", "b_attention.nii", "none.nii"]
    with pytest.raises(PancreasSegError, match="holds no CT"):
        find_inputs([tmp_path / "c.nii"])


def test_a_cd_is_one_case_with_its_own_name(tmp_path: Path) -> None:
    for cd in ("cd1", "cd2"):
        slices = tmp_path / cd / "PT000000" / "ST000000" / "SE000000"
        slices.mkdir(parents=True)
        (slices / "CT000000").write_bytes(bytes(128) + b"DICM")
        (tmp_path / cd / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    cds = [tmp_path / "cd1", tmp_path / "cd2"]
    assert list(find_inputs(cds)) == cds
    (tmp_path / "cd1" / "DICOMDIR").unlink()
    assert list(find_inputs(cds[:1])) == [cds[0] / "PT000000"]


def test_names_for_one_and_for_many(tmp_path: Path) -> None:
    (case,) = plan(find_inputs([Path("in/ct.nii.gz")]), tmp_path / "m.nii.gz")
    written = case.mask, case.sidecar, case.probability, case.attention(1)
    assert [path.name for path in written] == [
        *("m.nii.gz", "m.json", "m_probability.nii.gz", "m_attention_1.nii.gz")
    ]
    (case,) = plan(find_inputs([Path("in/ct.nii")]), tmp_path / "out")
    written = case.mask, case.sidecar, case.probability, case.attention(2)
    assert [path.name for path in written] == [
        *("ct_mask.nii.gz", "ct_mask.json", "ct_probability.nii.gz", "ct_attention_2.nii.gz")
    ]
    assert case.mask.parent == tmp_path / "out"
    assert not (tmp_path / "out").exists()


def test_impossible_plans(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    two = [Path("a/ct.nii.gz"), Path("a/ct.nii")]
    for inputs, output, reason in [
        (two, "m.nii.gz", "one file for 2 CTs"),
        (two, "out", "would both give 'ct_mask.nii.gz'"),
        (two[:1], "m.vtk", "format that cannot be written"),
        (two[:1], "m.nii.gzz", "format that cannot be written"),
        (two[:1], "file", "Nothing can be written"),
        (two[:1], "file/m.nii.gz", "Nothing can be written"),
    ]:
        with pytest.raises(PancreasSegError, match=reason):
            plan(find_inputs(inputs), tmp_path / output)


def test_one_bad_case_does_not_stop_the_others(tmp_path: Path, network: list[Any]) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a", "crash", "large", "z"):
        write_ct(folder / f"{name}.nii.gz")
    (folder / "broken.nii").write_bytes(b"x")
    seen: list[int] = []
    results = list(
        segment_cases(
            plan(find_inputs([folder]), out),
            "fake",
            Options(device="cpu"),
            OutputOptions(attention=True),
            on_progress=lambda index, step: seen.append(index),
        )
    )
    errors = {result.case.source.name: result.error for result in results}
    assert [name for name, error in errors.items() if error is None] == ["a.nii.gz", "z.nii.gz"]
    assert "not a NIfTI" in str(errors["broken.nii"])
    assert "RuntimeError: the network is ill" in str(errors["crash.nii.gz"])
    assert "memory" in str(errors["large.nii.gz"])
    assert all("\n" not in error for error in errors.values() if error)
    assert names(out) == sorted(
        f"{name}_{kind}"
        for name in "az"
        for kind in ("mask.nii.gz", "mask.json", "attention_1.nii.gz", "attention_2.nii.gz")
    )
    assert network.count(("fake", "cpu")) == 1  # the network is loaded once
    assert set(seen) == {0, 2, 3, 4}
    assert results[0].volume_ml == pytest.approx(32 * 5 / 1000)
    assert results[0].slices == 2
    record = json.loads((out / "a_mask.json").read_text())
    assert set(record["seconds"]) == {"reading the CT", "loading the network", "segmenting"}


def test_a_folder_can_be_segmented_into_itself_twice(tmp_path: Path, network: list[Any]) -> None:
    write_ct(tmp_path / "a.nii.gz")
    for overwrite, error in ((False, None), (False, "exists already"), (True, None)):
        cases = plan(find_inputs([tmp_path]), tmp_path)
        assert [case.source.name for case in cases] == ["a.nii.gz"]
        (result,) = segment_cases(
            cases, outputs=OutputOptions(probability=True, overwrite=overwrite)
        )
        assert (result.error is None) if error is None else (error in str(result.error))
    assert names(tmp_path) == [
        *("a.nii.gz", "a_mask.json", "a_mask.nii.gz", "a_probability.nii.gz")
    ]


@pytest.mark.parametrize("kind", ["mask.nii.gz", "mask.json", "attention_3.nii.gz"])
def test_existing_files_fail_before_any_work(kind: str, tmp_path: Path, network: list[Any]) -> None:
    (tmp_path / f"a[1]_{kind}").write_text("old")
    source = write_ct(tmp_path / "a[1].nii.gz")
    (result,) = segment_cases(
        plan(find_inputs([source]), tmp_path), outputs=OutputOptions(attention=True)
    )
    assert "exists already" in str(result.error)
    assert network == []
    assert (tmp_path / f"a[1]_{kind}").read_text() == "old"


def test_the_ct_is_never_the_target(tmp_path: Path, network: list[Any]) -> None:
    source = write_ct(tmp_path / "a.nii.gz")
    before = source.read_bytes()
    (result,) = segment_cases(
        plan(find_inputs([source]), source), outputs=OutputOptions(overwrite=True)
    )
    assert "CT itself" in str(result.error)
    assert source.read_bytes() == before
    assert network == []


def test_cancelling_stops_and_closes(tmp_path: Path, network: list[Any]) -> None:
    def cancel(index: int, step: Progress) -> None:
        if step.done == 3:
            raise KeyboardInterrupt

    cases = plan(find_inputs([write_ct(tmp_path / "a.nii.gz")]), tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        list(segment_cases(cases, on_progress=cancel))
    assert network[-1] == "closed"
    assert not (tmp_path / "out").exists()


def test_an_unknown_model_is_said_once(tmp_path: Path) -> None:
    cases = plan(find_inputs([write_ct(tmp_path / "a.nii.gz")]), tmp_path / "out")
    with pytest.raises(PancreasSegError, match="no model 'no-such-model'"):
        next(segment_cases(cases, "no-such-model"))


@pytest.mark.parametrize("failing", ["save_mask", "save_map", "write_sidecar"])
def test_a_case_is_written_whole_or_not_at_all(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = io.load_ct(write_ct(tmp_path / "a.nii.gz"))
    out = tmp_path / "out"
    out.mkdir()
    (out / "m_probability.nii.gz").write_bytes(b"old")
    home = result_module.saving if failing == "write_sidecar" else result_module
    original = getattr(home, failing)
    calls: list[Path] = []

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls.append(Path())
        if failing != "save_map" or len(calls) == 3:
            raise PancreasSegError("the disk is full")
        return original(*args, **kwargs)

    monkeypatch.setattr(home, failing, fail)
    with pytest.raises(PancreasSegError, match="disk is full"):
        result_module.save_result(
            fake_segmentation(volume),
            volume,
            out / "m.nii.gz",
            OutputOptions(attention=True, probability=True, overwrite=True),
        )
    assert names(out) == ["m_probability.nii.gz"]


def test_a_result_lists_what_it_wrote(tmp_path: Path) -> None:
    volume = io.load_ct(write_ct(tmp_path / "a.nii.gz"))
    out = tmp_path / "out"
    found = replace(fake_segmentation(volume), ct=volume)
    written = found.save(out / "m.nii", attention=True)
    assert [path.name for path in written] == [
        *("m.nii", "m_attention_1.nii", "m_attention_2.nii", "m.json")
    ]
    assert names(out) == sorted(path.name for path in written)


def test_a_folder_of_series_can_be_segmented_into_itself_twice(
    tmp_path: Path, network: list[Any]
) -> None:
    for name in ("P1", "P2"):
        write_series(tmp_path / name)
    for expected in ("new new", "old old"):
        cases = plan(find_inputs([tmp_path]), tmp_path, ".dcm")
        results = list(segment_cases(cases, "fake", outputs=RESUME))
        assert [result.error for result in results] == [None] * 2
        assert what(results) == expected
    assert {"P1_mask.dcm", "P2_mask.dcm"} < set(names(tmp_path))
    for result in segment_cases(cases, "fake", outputs=replace(RESUME, report=True)):
        assert "without the report that is wanted now" in str(result.error)


@pytest.fixture
def folder(tmp_path: Path, network: list[Any]) -> Path:
    """Three CTs that differ."""
    made = tmp_path / "in"
    made.mkdir()
    for value, name in enumerate("abc"):
        hu = ct_array()
        hu[0, 0, 0] = value
        nib.save(nib.Nifti1Image(hu, np.diag([-1.0, -1, 5, 1])), made / f"{name}.nii.gz")
    return made


def run(
    folder: Path,
    out: Path,
    options: Options | None = None,
    workers: int = 2,
    force: bool = False,
    **outputs: bool,
) -> list[CaseResult]:
    cases = plan(find_inputs([folder]), out, force=force)
    asked = OutputOptions(resume=True, **outputs)
    return list(segment_cases(cases, "fake", options, asked, workers=workers))


def what(results: list[CaseResult]) -> str:
    return " ".join("old" if r.before else "failed" if r.error else "new" for r in results)


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_a_cohort_goes_on_where_it_stopped(
    workers: int, folder: Path, tmp_path: Path, network: list[Any]
) -> None:
    out = tmp_path / "out"
    first = run(folder, out, attention=True, workers=workers)
    assert what(first) == "new new new"
    for left in out.glob("b_*"):
        left.unlink()
    network.clear()
    second = run(folder, out, workers=workers, attention=True)
    assert what(second) == "old new old"
    assert network == [("fake", "auto"), "b", "closed"]
    assert [(r.volume_ml, r.slices, dict(r.measurements)["voxels"]) for r in second] == [
        (pytest.approx(r.volume_ml), r.slices, r.measurements["voxels"]) for r in first
    ]


def test_a_mask_that_was_deleted_is_made_again(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(folder, out, attention=True)
    mask = (out / "b_mask.nii.gz").read_bytes()
    (out / "b_mask.nii.gz").unlink()
    (out / "b_probability.nii.gz").write_bytes(b"by hand")
    assert what(run(folder, out, attention=True, probability=True)) == "failed failed failed"
    assert (out / "b_probability.nii.gz").read_bytes() == b"by hand"
    assert what(run(folder, out, attention=True)) == "old new old"
    assert (out / "b_mask.nii.gz").read_bytes() == mask
    (out / "b_mask.nii.gz").unlink()
    (out / "b_mask.nii.gz").symlink_to("nowhere")  # as where data are fetched when they are wanted
    assert what(run(folder, out, attention=True)) == "old failed old"


def test_a_cohort_that_is_done_reads_no_ct(
    folder: Path, tmp_path: Path, network: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder, tmp_path / "out")
    network.clear()
    monkeypatch.setattr(steps, "load_ct", None)
    monkeypatch.setattr(saving, "source_record", None)
    assert what(run(folder, tmp_path / "out")) == "old old old"
    assert network == []


def test_a_ct_with_another_time_is_hashed(folder: Path, tmp_path: Path, network: list[Any]) -> None:
    run(folder, tmp_path / "out")
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    assert what(run(folder, tmp_path / "out")) == "old old old"
    swapped = (folder / "a.nii.gz").read_bytes()
    (folder / "b.nii.gz").write_bytes(swapped)
    results = run(folder, tmp_path / "out")
    assert what(results) == "old failed old"
    assert "'b_mask.nii.gz' exists already, was made from another CT" in str(results[1].error)
    assert what(run(folder, tmp_path / "out", overwrite=True)) == "old new old"
    assert network.count("b") == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"options": Options(threshold=0.3)}, "with other options (threshold)"),
        ({"options": Options(postprocess=False)}, "with other options (postprocess)"),
        ({"attention": True}, "without the maps that are wanted now"),
        ({"probability": True}, "without the maps that are wanted now"),
        ({"card": {**CARD, "weights_sha256": "1" * 64}}, "by another model (fake 1)"),
        ({"card": {**CARD, "temperature": 2.0}}, "by another model (fake 1)"),
        ({"version": "0.0.1"}, f"by version {napari_pancreas_seg.__version__} of this program"),
    ],
)
def test_what_was_made_otherwise_is_in_the_way(
    change: dict[str, Any],
    reason: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    run(folder, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    change = dict(change)
    card, version = change.pop("card", CARD), change.pop("version", cohort_resume.__version__)
    monkeypatch.setattr(cohort, "load_card", lambda _: card)
    monkeypatch.setattr(cohort_resume, "__version__", version)
    results = run(folder, out, **change)
    assert what(results) == "failed failed failed"
    assert reason in str(results[0].error)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert what(run(folder, out, overwrite=True, **change)) == "new new new"


def test_values_that_are_taken_for_hu_as_asked_make_another_mask(
    folder: Path, tmp_path: Path, network: list[Any]
) -> None:
    hu, out = ct_array(), tmp_path / "out"
    hu[:, 0] = -1000  # and no stray value in the air
    nib.save(nib.Nifti1Image(hu + 1024, np.diag([-1.0, -1, 5, 1])), folder / "b.nii.gz")
    first = run(folder, out)
    assert what(first) == "new new new" and "1024 too high" in first[1].notes[0]
    asked = run(folder, out, force=True)
    assert what(asked) == "old failed old"  # of the others, the values are the same
    assert "'b_mask.nii.gz' exists already, was made with other options (force)" in str(
        asked[1].error
    )
    assert what(run(folder, out, force=True, overwrite=True)) == "old new old"
    network.clear()
    assert what(run(folder, out, force=True)) == "old old old" and network == []
    assert what(run(folder, out)) == "old failed old"
    assert what(run(folder, out, overwrite=True)) == "old new old"


@pytest.mark.parametrize("options", [Options("gpu:1"), Options(batch_size=3)])
def test_how_a_mask_comes_about_does_not_matter(
    options: Options, folder: Path, tmp_path: Path
) -> None:
    run(folder, tmp_path / "out")
    assert what(run(folder, tmp_path / "out", options)) == "old old old"


@pytest.mark.slow
def test_a_corrected_mask_stays_unless_told(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(folder, out)
    export(folder, out)
    results = run(folder, out)
    assert what(results) == "old old old"
    voxels = np.count_nonzero(io.load_mask(out / "a_mask.nii.gz")[0])
    assert results[0].measurements["voxels"] == voxels > 30 * 26
    assert what(run(folder, out, overwrite=True)) == "new old old"


def export(folder: Path, out: Path, card: dict[str, str] = CARD) -> bytes:
    """Write a corrected mask of case a, as the window does; return it."""
    volume = io.load_ct(folder / "a.nii.gz")
    edited = (volume.hu > 100).astype(np.uint8)
    edited[0] = 1
    made = replace(fake_segmentation(volume), model=card)
    mask = io.save_mask(edited, volume, out / "a_mask.nii.gz", overwrite=True)
    record = result_module.describe(volume, made, mask=edited)
    saving.write_sidecar(out / "a_mask.json", record, overwrite=True)
    return mask.read_bytes()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mask_that_is_exported_while_the_network_works_stays(
    workers: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    segment, exported = segmentation.iter_segment, []

    def slow(volume: CTVolume, *what: Any) -> Any:
        if volume.name == "a":
            exported.append(export(folder, out))
        return segment(volume, *what)

    monkeypatch.setattr(segmentation, "iter_segment", slow)
    results = run(folder, out, workers=workers)
    assert what(results) == "old new new"
    assert [(out / "a_mask.nii.gz").read_bytes()] == exported
    assert results[0].measurements["voxels"] > 30 * 26


def test_what_another_command_has_done_meanwhile_is_done(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment, others = segmentation.iter_segment, []

    def slow(volume: CTVolume, *what: Any) -> Any:
        if volume.name == "a" and not others:
            others.append("being made")
            others[:] = run(folder / "a.nii.gz", tmp_path / "out")
        return segment(volume, *what)

    monkeypatch.setattr(segmentation, "iter_segment", slow)
    assert what(run(folder, tmp_path / "out")) == "old new new"
    assert what(others) == "new"


def test_what_another_command_has_done_while_this_one_writes_is_done(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, others = steps.save_result, []

    def slow(*what: Any, **how: Any) -> Any:
        if not others:
            others.append("being made")
            others[:] = run(folder / "a.nii.gz", tmp_path / "out")
        return save(*what, **how)

    monkeypatch.setattr(steps, "save_result", slow)
    assert what(run(folder, tmp_path / "out", workers=0)) == "old new new"
    assert what(others) == "new"


def test_a_mask_that_is_left_as_it_was_keeps_its_measures(folder: Path, tmp_path: Path) -> None:
    first = run(folder, tmp_path / "out")
    again = run(folder, tmp_path / "out", Options(threshold=0.3))
    assert {result.status for result in again} == {"kept"}
    assert [dict(r.measurements) for r in again] == [dict(r.measurements) for r in first]
    (folder / "b.nii.gz").write_bytes(b"nonsense")
    again = run(folder, tmp_path / "out", overwrite=True)
    assert [result.status for result in again] == ["done", "kept", "done"]
    (tmp_path / "out" / "b_mask.nii.gz").unlink()
    assert run(folder / "b.nii.gz", tmp_path / "out")[0].status == "failed"


def test_a_record_that_lost_its_measures_ends_one_case(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "out")
    sidecar = tmp_path / "out" / "a_mask.json"
    record = json.loads(sidecar.read_text())
    del record["measurements"]
    sidecar.write_text(json.dumps(record))
    results = run(folder, tmp_path / "out")
    assert [result.status for result in results] == ["failed", "done", "done"]


def test_a_ct_behind_a_link_that_changes_is_another_ct(tmp_path: Path) -> None:
    series = write_series(tmp_path / "there" / "series")
    (tmp_path / "in" / "P1").mkdir(parents=True)
    (tmp_path / "in" / "P1" / "dicom").symlink_to(series.folder, target_is_directory=True)
    before = source_stamp(tmp_path / "in" / "P1")
    assert before is not None
    series.files[0].unlink()
    assert source_stamp(tmp_path / "in" / "P1") not in (None, before)


def test_a_name_that_is_too_long_for_its_mask_is_said_to_be(
    tmp_path: Path, network: list[Any]
) -> None:
    path = write_ct(tmp_path / f"{'x' * 247}.nii.gz")
    (result,) = run(path, tmp_path / "out")
    assert "the name is too long; choose a shorter one" in str(result.error)


def test_a_json_beside_the_ct_that_is_not_ours_stays(tmp_path: Path, network: list[Any]) -> None:
    path = write_ct(tmp_path / "sub-01_ct.nii.gz")
    theirs = tmp_path / "sub-01_ct.json"
    theirs.write_text('{"Manufacturer": "x"}')
    asked = OutputOptions(overwrite=True)
    for text, error in (('{"Manufacturer": "x"}', "no record of this program"), ("{", "None")):
        theirs.write_text(text)
        (result,) = segment_cases(plan({path: "a"}, tmp_path / "sub-01_ct.stl"), outputs=asked)
        assert error in str(result.error)
    assert saving.read_sidecar(theirs) is not None


def test_the_same_name_size_and_time_in_another_folder(
    tmp_path: Path, network: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for value, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        hu = ct_array()
        hu[0, 0, 0] = value
        nib.save(nib.Nifti1Image(hu, np.diag([-1.0, -1, 5, 1])), tmp_path / name / "a.nii")
        os.utime(tmp_path / name / "a.nii", ns=(0, 315532800 * 10**9))  # as zip has it
    assert what(run(tmp_path / "one", tmp_path / "out")) == "new"
    results = run(tmp_path / "two", tmp_path / "out")
    assert what(results) == "failed"
    assert "was made from another CT" in str(results[0].error)
    # What was moved is hashed once more; so is what has a stamp that was made otherwise.
    (tmp_path / "one").rename(tmp_path / "moved")
    assert what(run(tmp_path / "moved", tmp_path / "out")) == "old"
    (tmp_path / "moved").rename(tmp_path / "one")
    sidecar = tmp_path / "out" / "a_mask.json"
    record = json.loads(sidecar.read_text())
    record["resume"]["source_stamp"] = "0" * 64
    sidecar.write_text(json.dumps(record))
    assert what(run(tmp_path / "one", tmp_path / "out")) == "old"
    assert network.count("a") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_is_the_ct_it_leads_to(tmp_path: Path) -> None:
    path = write_ct(tmp_path / "a.nii.gz")
    (tmp_path / "link.nii.gz").symlink_to(path)
    assert source_stamp(tmp_path / "link.nii.gz") == source_stamp(path)
    shutil.copy2(path, tmp_path / "copy.nii.gz")
    assert source_stamp(tmp_path / "copy.nii.gz") != source_stamp(path)


def keep_time(path: Path, content: bytes) -> None:
    """Write other bytes into a file, which keeps its time."""
    time = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(time, time))


@pytest.mark.parametrize("given", ["a.hdr", "a.img"])
def test_other_voxels_beside_the_same_header_are_another_ct(
    given: str, tmp_path: Path, network: list[Any]
) -> None:
    nib.save(nib.Nifti1Pair(ct_array(), np.diag([-1.0, -1, 5, 1])), tmp_path / "a.img")
    assert what(run(tmp_path / given, tmp_path / "out")) == "new"
    assert what(run(tmp_path / given, tmp_path / "out")) == "old"
    assert json.loads((tmp_path / "out" / "a_mask.json").read_text())["source"]["files"] == 2
    voxels = (tmp_path / "a.img").read_bytes()
    keep_time(tmp_path / "a.img", voxels[:-2] + b"\x10\0")
    (result,) = run(tmp_path / given, tmp_path / "out")
    assert "was made from another CT" in str(result.error)
    for name in ("a.hdr.gz", "a.IMG.gz"):
        (tmp_path / name).touch()
        assert source_stamp(tmp_path / name) is None


@pytest.mark.parametrize("given", ["1.dcm", "DICOMDIR"])
def test_a_file_of_a_series_stands_for_all_of_them(
    given: str, tmp_path: Path, network: list[Any]
) -> None:
    write_series(tmp_path / "P1", ct_array(), names=lambda k: f"{k}.dcm")
    (tmp_path / "P1" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert what(run(tmp_path / "P1" / given, tmp_path / "out")) == "new"
    assert what(run(tmp_path / "P1" / given, tmp_path / "out")) == "old"
    other = tmp_path / "P1" / "3.dcm"
    keep_time(other, other.read_bytes()[:-2] + b"\x10\0")
    (result,) = run(tmp_path / "P1" / given, tmp_path / "out")
    assert "was made from another CT" in str(result.error)


def test_a_table_of_contents_is_not_the_one_file_of_its_ct(
    tmp_path: Path, network: list[Any]
) -> None:
    write_series(tmp_path / "P1", ct_array(), multiframe=True)
    (tmp_path / "P1" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert what(run(tmp_path / "P1" / "DICOMDIR", tmp_path / "out")) == "new"
    assert what(run(tmp_path / "P1" / "DICOMDIR", tmp_path / "out")) == "old"


def test_a_mask_whose_record_is_that_of_another_format_is_not_done(
    folder: Path, tmp_path: Path
) -> None:
    def again(suffix: str, overwrite: bool) -> list[CaseResult]:
        cases = plan(find_inputs([folder / "a.nii.gz"]), tmp_path / "out", suffix)
        return list(segment_cases(cases, outputs=replace(RESUME, overwrite=overwrite)))

    assert what(again(".nii.gz", False)) == "new"
    (result,) = again(".nrrd", False)
    assert "written as .nii.gz before" in str(result.error) and "'convert'" in str(result.error)
    assert what(again(".nrrd", True)) == "new"
    assert what(again(".nrrd", False)) == "old"
    (result,) = again(".nii.gz", False)
    assert "'a_mask.nii.gz' exists already, was made in another format" in str(result.error)
    assert what(again(".nii.gz", True)) == "new"
    sidecar = tmp_path / "out" / "a_mask.json"
    record = json.loads(sidecar.read_text())
    del record["resume"]["suffix"]  # as earlier versions wrote it
    sidecar.write_text(json.dumps(record))
    assert what(again(".nii.gz", False)) == "old"


class Killed(BaseException):
    """Nobody handles it."""


def die_when_moved(moved: int, patch: pytest.MonkeyPatch) -> None:
    """Be killed once so many files of a case have been moved to where they belong."""
    move, count = files._move, 0

    def die(source: Path, target: Path) -> None:
        nonlocal count
        if count == moved:
            raise Killed
        count += 1
        move(source, target)

    patch.setattr(files, "_move", die)
    patch.setattr(files.shutil, "rmtree", lambda folder, **_: None)


@pytest.mark.parametrize("moved", [0, 1, 2, 3])
def test_a_case_that_a_kill_has_torn_is_done_again(
    moved: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        die_when_moved(moved, patch)
        with pytest.raises(Killed):
            run(folder, out, attention=True, workers=0)
    visible = [name for name in names(out) if name[0] != "."]
    assert len(visible) == moved
    assert "a_mask.json" not in visible
    if moved == 1:  # nor is a mask that lies there while ours still waits
        (out / "a_mask.nii.gz").write_bytes(b"by hand")
        assert what(run(folder, out, attention=True)) == "failed new new"
        assert (out / "a_mask.nii.gz").read_bytes() == b"by hand"
        (out / "a_mask.nii.gz").unlink()
        assert what(run(folder, out, attention=True)) == "new old old"
    elif moved == 3:  # a mask that somebody has put there meanwhile is not ours
        mask = (out / "a_mask.nii.gz").read_bytes()
        (out / "a_mask.nii.gz").write_bytes(b"by hand")
        assert what(run(folder, out, attention=True)) == "failed new new"
        (out / "a_mask.nii.gz").write_bytes(mask)
        assert what(run(folder, out, attention=True)) == "new old old"
    else:
        assert what(run(folder, out, attention=True)) == "new new new"
    assert all(name[0] != "." for name in names(out)) or moved == 0


def test_a_dicom_folder_may_hold_its_masks(tmp_path: Path) -> None:
    folder = tmp_path / "PT0"
    folder.mkdir()
    (folder / "1.dcm").write_bytes(b"slice")
    stamp = source_stamp(folder)
    assert stamp is not None
    for name in ("PT0_mask.nii.gz", "PT0_mask.raw.gz", "PT0_mask.json", "cohort.csv", ".x.part"):
        (folder / name).write_text("ours")
    assert source_stamp(folder) == stamp
    assert source_stamp(folder, "2") != stamp
    (folder / "2.dcm").write_bytes(b"slice")
    assert source_stamp(folder) != stamp
    assert source_stamp(tmp_path / "none") is None
    (tmp_path / "x.nhdr").touch()
    assert source_stamp(tmp_path / "x.nhdr") is None


@pytest.mark.slow
def test_a_ct_is_forgotten_once_it_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes: list[weakref.ref[CTVolume]] = []

    def load(*args: Any, **kwargs: Any) -> CTVolume:
        volume = io.load_ct(*args, **kwargs)
        volumes.append(weakref.ref(volume))
        return volume

    monkeypatch.setattr(steps, "load_ct", load)
    for name in "defgh":
        shutil.copy(folder / "a.nii.gz", folder / f"{name}.nii.gz")
    cases = plan(find_inputs([folder]), tmp_path / "out")
    for _ in segment_cases(cases, workers=2):
        assert sum(volume() is not None for volume in volumes) <= 4  # and one being handed over
    assert len(volumes) == 8
    assert not any(volume() is not None for volume in volumes)


@pytest.mark.slow
def test_a_ct_that_does_not_fit_beside_others_goes_alone(
    folder: Path, tmp_path: Path, network: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = io.load_ct(folder / "a.nii.gz").grid.shape
    room = steps._bytes_needed(shape, 1)
    monkeypatch.setattr(memory, "available_bytes", lambda: room)
    assert what(run(folder, tmp_path / "out", workers=2)) == "new new new"
    monkeypatch.setattr(memory, "available_bytes", lambda: room // 2)
    results = run(folder, tmp_path / "other", workers=2)
    assert what(results) == "failed failed failed"
    assert "does not fit into memory" in str(results[0].error)


def test_a_model_that_cannot_be_loaded_is_said_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: str, device: str) -> None:
        raise PancreasSegError("There is no GPU 1.")

    monkeypatch.setattr(segmentation, "LoadedModel", fail)
    with pytest.raises(PancreasSegError, match="no GPU 1"):
        run(folder, tmp_path / "out", Options("gpu:1"))
