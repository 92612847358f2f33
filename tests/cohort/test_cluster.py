"""A cohort on a real cluster of two processes, one of which is killed while it writes."""

from __future__ import annotations

import csv
import importlib
import socket
import sys
import types
import warnings
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from napari_pancreas_seg import io
from napari_pancreas_seg.cli import main
from napari_pancreas_seg.cohort.cases import find_inputs, plan
from napari_pancreas_seg.cohort.steps import CaseResult, CaseSegmenter
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference import segment as segmentation
from napari_pancreas_seg.inference.options import OutputOptions
from napari_pancreas_seg.inference.result import (
    Options,
    Progress,
    ScalarMap,
    Segmentation,
    describe,
)
from napari_pancreas_seg.inference.saving import read_sidecar, write_sidecar
from napari_pancreas_seg.io import files
from napari_pancreas_seg.model.bundle import Bundle
from napari_pancreas_seg.volume import CTVolume

distributed = pytest.importorskip("distributed")
from napari_pancreas_seg.cohort.cluster import client as cohort_dask  # noqa: E402 - needs Dask
from napari_pancreas_seg.cohort.cluster import worker as cohort_worker  # noqa: E402
from napari_pancreas_seg.cohort.cluster.client import segment_on_cluster  # noqa: E402

CARD = {"name": "fake", "version": "1", "weights_sha256": "0" * 64}
OPTIONS = Options("cpu", threshold=0.2)


def write_ct(path: Path, seed: int = 0) -> Path:
    """A small CT of a body: fat around soft tissue, and noise."""
    i, j, _ = np.indices((64, 56, 12))
    r = np.hypot((i - 32) / 28, (j - 28) / 24)
    hu = np.where(r < 0.85, 90.0, np.where(r < 1, -100.0, -1000.0))
    hu += np.random.default_rng(seed).normal(0, 12, hu.shape)
    affine = np.diag([-5.0, -5.0, 5.0, 1.0])
    nib.save(nib.Nifti1Image(hu.round().clip(-1024).astype(np.int16), affine), path)
    return path


@pytest.fixture
def cts(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for seed, name in enumerate("abcdef"):
        write_ct(folder / f"{name}.nii.gz", seed)
    (folder / "broken.nii").write_bytes(b"x")
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ports that are taken, and the like
        with distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            memory_limit=0,
        ) as made:
            yield made


def die_between_mask_and_sidecar(marker: str) -> None:
    """Make a worker kill its process once, at the worst moment of writing case ``c``."""
    import os
    import signal
    from pathlib import Path

    from napari_pancreas_seg.io import files

    move = files._move

    def moves(source: Path, target: Path) -> None:
        if target.name == "c_mask.json" and not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        move(source, target)

    files._move = moves


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_a_killed_worker_loses_nothing_and_repeats_nothing(
    cluster: Any,
    cts: Path,
    tmp_path: Path,
    tiny_bundle: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    marker = tmp_path / "died"
    with distributed.Client(cluster.scheduler_address, set_as_default=False) as client:
        client.run(die_between_mask_and_sidecar, str(marker))
    before = {worker.pid for worker in cluster.workers.values()}
    cases = plan(find_inputs([cts]), tmp_path / "out")
    outputs = OutputOptions(attention=True, resume=True)
    arguments = (cluster.scheduler_address, cases, str(tiny_bundle), OPTIONS, outputs)
    results = {result.case.source.name: result for result in segment_on_cluster(*arguments)}
    assert marker.exists()
    assert {worker.pid for worker in cluster.workers.values()} != before
    assert len(results) == 7
    assert "not a NIfTI" in str(results.pop("broken.nii").error)
    assert [r.error for r in results.values()] == [None] * 6
    assert not any(result.before for result in results.values())
    for result in results.values():
        record = read_sidecar(result.case.sidecar)
        assert record is not None
        voxels = np.asarray(nib.load(result.files[0]).dataobj).sum()
        assert voxels == record["measurements"]["voxels"] == result.measurements["voxels"]
    visible = [item.name for item in (tmp_path / "out").iterdir() if item.name[0] != "."]
    assert len(visible) == 6 * 6  # mask, sidecar, four attention maps

    capsys.readouterr()
    line = ["segment", str(cts), "-o", str(tmp_path / "out"), "--model", str(tiny_bundle)]
    line += ["--threshold", "0.2", "--attention", "--scheduler", cluster.scheduler_address]
    assert main(line) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-2].startswith("6 done before, 1 failed, 0 new; see ")
    assert said[-1] == "1 of 7 cases failed: broken.nii."
    with open(tmp_path / "out" / "cohort.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == [*["done"] * 2, "failed", *["done"] * 4]
    assert rows[0]["slices"] == str(results["a.nii.gz"].slices)


def fake_worker(monkeypatch: pytest.MonkeyPatch, plugin: Any) -> None:
    plugin.setup(None)
    worker = types.SimpleNamespace(
        plugins={plugin.name: plugin}, state=types.SimpleNamespace(nthreads=2)
    )
    monkeypatch.setattr(cohort_worker, "get_worker", lambda: worker)


@pytest.fixture
def task(cts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> cohort_worker.ClusterTask:
    """A case as it is handed to a worker whose network only thresholds."""

    def iter_segment(
        volume: CTVolume, model: Any, options: Options
    ) -> Generator[Progress, None, Segmentation]:
        yield Progress("segmenting", 1, 12)
        mask = (volume.hu > 120).astype(np.uint8)
        values = ScalarMap(mask.astype(np.float16), volume.grid)
        return Segmentation(mask, values, (), volume.grid, 0.5, CARD, {}, options)

    monkeypatch.setattr(segmentation, "LoadedModel", lambda *what: None)
    monkeypatch.setattr(segmentation, "iter_segment", iter_segment)
    plugin = cohort_worker.ModelPlugin(Bundle(CARD, b""), "cpu")
    fake_worker(monkeypatch, plugin)
    (case,) = plan(find_inputs([cts / "a.nii.gz"]), tmp_path / "out")
    return cohort_worker.ClusterTask(case, Options(), OutputOptions(resume=True), plugin.name, True)


def test_what_an_attempt_has_completed_is_not_done_again(task: cohort_worker.ClusterTask) -> None:
    first = cohort_worker.run_case(task)
    assert first.error is None and not first.before
    written = task.case.mask.stat().st_mtime_ns
    second = cohort_worker.run_case(task)
    assert second.before and second.volume_ml == pytest.approx(first.volume_ml)
    assert task.case.mask.stat().st_mtime_ns == written


@pytest.mark.slow
def test_what_an_attempt_has_half_written_is_replaced(
    task: cohort_worker.ClusterTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    move = files._move

    def die_before_the_sidecar(source: Path, target: Path) -> None:
        if target == task.case.sidecar:
            raise Killed
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_move", die_before_the_sidecar)
        patch.setattr(files.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            cohort_worker.run_case(task)
    assert task.case.mask.exists() and not task.case.sidecar.exists()
    result = cohort_worker.run_case(task)
    assert result.error is None and not result.before
    assert {path.name for path in task.case.mask.parent.iterdir()} == {
        path.name for path in result.files
    }


def export(task: cohort_worker.ClusterTask, card: dict[str, str]) -> bytes:
    """Write a corrected mask, as the window does; return it."""
    volume = io.load_ct(task.case.source)
    mask = (volume.hu > 110).astype(np.uint8)
    values = ScalarMap(mask.astype(np.float16), volume.grid)
    found = Segmentation(mask * 0, values, (), volume.grid, 0.5, card, {}, Options())
    io.save_mask(mask, volume, task.case.mask, overwrite=True)
    record = describe(volume, found, mask=mask)
    write_sidecar(task.case.sidecar, record, overwrite=True)
    return task.case.mask.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("late", [True, False], ids=["while it runs", "before its turn"])
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("mask", None),
        ("mask of another model", "was made by another model (other 1)"),
        ("mask alone", "exists already"),
        ("nonsense", "exists already"),
    ],
)
def test_what_a_person_puts_there_during_the_run_stays(
    what: str,
    reason: str | None,
    late: bool,
    resume: bool,
    task: cohort_worker.ClusterTask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put: list[bytes] = []

    def put_there() -> None:
        task.case.mask.parent.mkdir(exist_ok=True)
        put.append(export(task, CARD if what == "mask" else {**CARD, "name": "other"}))
        if what in ("mask alone", "nonsense"):
            task.case.sidecar.unlink()
        if what == "nonsense":
            task.case.mask.write_bytes(b"nonsense")
            put[:] = [b"nonsense"]

    segment = segmentation.iter_segment

    def slow(*arguments: Any) -> Any:
        put_there()
        return segment(*arguments)

    if late:
        monkeypatch.setattr(segmentation, "iter_segment", slow)
    else:
        put_there()
    result = cohort_worker.run_case(replace(task, outputs=OutputOptions(resume=resume)))
    assert [task.case.mask.read_bytes()] == put
    if reason is None:
        assert result.error is None and result.measurements["voxels"] > 0
    else:
        assert reason in str(result.error)


@pytest.mark.slow
def test_a_mask_that_is_exported_during_the_run_goes_where_that_is_allowed(
    task: cohort_worker.ClusterTask,
) -> None:
    task.case.mask.parent.mkdir()
    exported = export(task, CARD)
    result = cohort_worker.run_case(
        replace(task, outputs=OutputOptions(overwrite=True, resume=True))
    )
    assert result.error is None and task.case.mask.read_bytes() != exported


def test_another_card_is_another_model_to_a_worker() -> None:
    def name(card: dict[str, Any]) -> str:
        return cohort_worker.ModelPlugin(Bundle(card, b""), "cpu").name

    warmer = {**CARD, "temperature": 2.0}
    assert name(CARD) != name(warmer)
    assert name(dict(reversed(CARD.items()))) == name(CARD)


def test_what_was_there_before_the_run_stays(task: cohort_worker.ClusterTask) -> None:
    task.case.mask.parent.mkdir()
    task.case.mask.write_bytes(b"old")
    here = CaseSegmenter(cohort_dask._no_network, CARD, Options(), OutputOptions(resume=True))
    handed = cohort_dask._task(here, task.case, task.plugin)
    assert isinstance(handed, CaseResult) and "exists already" in str(handed.error)
    result = cohort_worker.run_case(replace(task, fresh=False))
    assert "exists already" in str(result.error)
    assert task.case.mask.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": "0.0.1"}, "runs napari-pancreas-seg 0.0.1 and this machine"),
        ({"python": "3.9"}, "runs Python 3.9 and this machine"),
        ({"unseen": "/data/ct"}, "does not see the folder '/data/ct'"),
        ({"refused": "no permission"}, "no permission"),
    ],
)
def test_a_worker_that_does_not_fit(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch()
    found = cohort_worker.inspect_worker([str(tmp_path)], str(token), str(tmp_path), "none")
    cohort_dask._check_worker("A worker", found)
    with pytest.raises(PancreasSegError, match=reason):
        cohort_dask._check_worker("A worker", {**found, **change})


def test_a_worker_without_the_program() -> None:
    with pytest.raises(PancreasSegError, match="cannot run napari-pancreas-seg"):
        cohort_dask._check_worker("A worker", ModuleNotFoundError("napari_pancreas_seg"))


def test_a_worker_with_disks_of_its_own(tmp_path: Path) -> None:
    found = cohort_worker.inspect_worker(
        [str(tmp_path)], str(tmp_path / "token"), str(tmp_path), "none"
    )
    assert found["unseen"] == str(tmp_path)
    found = cohort_worker.inspect_worker([str(tmp_path / "none")], "", str(tmp_path), "none")
    assert found["unseen"] == str(tmp_path / "none")


@pytest.mark.slow
def test_nobody_at_the_address(cts: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        for scheduler in (address, "nonsense://x", "tcp://"):
            results = segment_on_cluster(
                scheduler,
                plan(find_inputs([cts]), tmp_path / "out"),
                str(tiny_bundle),
                timeout_s=0.5,
            )
            with pytest.raises(PancreasSegError, match="There is no Dask scheduler"):
                next(results)
    assert not (tmp_path / "out").exists()


def test_a_lost_scheduler_and_a_deadly_case(task: cohort_worker.ClusterTask) -> None:
    lost = types.SimpleNamespace(status="cancelled")
    with pytest.raises(PancreasSegError, match="scheduler was lost"):
        cohort_dask._outcome(lost, task)
    killed = distributed.KilledWorker("x", types.SimpleNamespace(address="tcp://w"), 3)
    deadly = types.SimpleNamespace(status="error", exception=lambda: killed)
    assert "4 workers died" in str(cohort_dask._outcome(deadly, task).error)


def test_workers_are_for_this_machine(cts: Path, tmp_path: Path) -> None:
    line = ["segment", str(cts), "-o", str(tmp_path / "out"), "--scheduler", "tcp://x:1"]
    assert main([*line, "--workers", "2"]) == 2


def test_without_dask_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, cohort_dask.__name__)
    with pytest.raises(PancreasSegError, match=r"needs Dask; install .*\[dask\]"):
        importlib.import_module(cohort_dask.__name__)
