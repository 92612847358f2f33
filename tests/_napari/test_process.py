"""The network's process: what it says, how it is stopped, that it leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import psutil
import pytest

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.process import client as process
from napari_pancreas_seg.inference.process.client import NetworkProcess
from napari_pancreas_seg.inference.result import Options, Segmentation, exhaust
from napari_pancreas_seg.volume import CTVolume, Grid

FAKE = Path(__file__).with_name("fake_network.py")


@pytest.fixture
def network() -> Iterator[NetworkProcess]:
    """One whose child ends with it, as for users."""
    process = NetworkProcess([sys.executable, str(FAKE)], patience_seconds=1.0)
    yield process
    process.close()


def run(
    network: NetworkProcess, volume, model: str = "box", cancelled=lambda: False, **options
) -> Segmentation | None:
    return exhaust(network.iter_segment(volume, model, Options(**options), cancelled=cancelled))


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.mark.slow
def test_everything_comes_back_as_it_was_sent(network, volume):
    result = run(network, volume, threshold=0.25, batch_size=3)
    assert result.grid.same_as(volume.grid)
    assert np.array_equal(result.grid.affine, volume.grid.affine)
    assert result.options == Options(threshold=0.25, batch_size=3)
    assert result.mask.dtype == np.uint8
    assert len(result.attention) == 2
    assert result.attention[0].values.dtype == np.float16
    expected = volume.grid.sub_grid((10, 16, 20), (0, 0.5, 0.5), (1, 2, 2))
    assert result.attention[0].grid.same_as(expected)
    assert result.model == {"name": "box"}
    assert result.notes == ("A note.",)


@pytest.mark.slow
def test_it_stays_warm(network, volume):
    network.warm_up("box")
    pid = network.pid
    run(network, volume)
    run(network, volume)
    assert network.pid == pid


@pytest.mark.slow
def test_what_a_library_prints_does_no_harm(network, volume):
    # The fake prints to its standard output before every run.
    assert run(network, volume).mask.any()


@pytest.mark.slow
def test_closing_the_generator_stops_the_run_but_not_the_process(network, volume):
    steps = network.iter_segment(volume, "slow")
    for _ in range(3):
        next(steps)
    pid = network.pid
    steps.close()
    assert network.pid == pid
    assert run(network, volume).mask.any()


@pytest.mark.slow
def test_a_run_that_is_cancelled_from_outside_returns_none(network, volume, tmp_path):
    hanging = tmp_path / "now"
    assert (
        exhaust(network.iter_segment(volume, f"hang {hanging}", cancelled=hanging.exists)) is None
    )
    assert network.pid is None  # it hung: killed after its second of patience


@pytest.mark.slow
def test_a_cold_network_that_another_run_waits_for_is_not_killed(network, volume, tmp_path):
    cold, gone = tmp_path / "loaded", Event()
    network = NetworkProcess(network._command, patience_seconds=0.1)
    with ThreadPoolExecutor() as threads:
        try:
            network.warm_up(f"wait {cold}")
            pid = network.pid
            ahead = threads.submit(run, network, volume, "box", gone.is_set)
            wanted = threads.submit(run, network, volume)
            assert within(20, lambda: len(network._child._replies) == 2)
            gone.set()
            assert ahead.result(timeout=20) is None
            assert network.pid == pid
            cold.touch()
            assert wanted.result(timeout=20).mask.any()
            # Nobody waits any more: one that does not answer is killed as ever.
            hung = tmp_path / "hung"
            assert run(network, volume, f"hang {hung}", hung.exists) is None
            assert network.pid is None
        finally:
            cold.touch()
            network.close()


def test_nothing_starts_after_it_was_closed(network, volume):
    network.warm_up("box")
    network.close()
    network.warm_up("box")
    assert network.pid is None
    assert run(network, volume) is None
    assert network.pid is None


def test_a_program_that_cannot_be_started(volume):
    with pytest.raises(PancreasSegError, match="could not be started"):
        run(NetworkProcess(["/nowhere/python"]), volume)


def test_a_module_that_is_missing_says_so(volume):
    broken = NetworkProcess([sys.executable, "-c", "import no_such_module"])
    with pytest.raises(PancreasSegError, match="No module named 'no_such_module'"):
        run(broken, volume)


@pytest.mark.slow
def test_closing_while_the_ct_is_on_its_way_ends_the_run_as_if_cancelled(volume):
    hu = np.zeros((40, 512, 512), np.int16)  # more than a pipe holds
    large = replace(volume, hu=hu, grid=Grid(hu.shape, volume.grid.affine))
    deaf = NetworkProcess([sys.executable, "-c", "import time; time.sleep(30)"])
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(run, deaf, large)
        time.sleep(1)
        deaf.close()
        assert answer.result(timeout=20) is None


def test_a_pipe_is_not_closed_while_somebody_writes_to_it():
    child = process._Child([sys.executable, "-c", "import time; time.sleep(30)"])
    with ThreadPoolExecutor(1) as pool:
        with child._writing:
            killed = pool.submit(child.kill)
            assert within(10, lambda: not child.alive)
            time.sleep(0.1)
            assert not child.process.stdin.closed
        killed.result(timeout=10)
    assert child.process.stdin.closed


@pytest.mark.slow
def test_close_and_forgetting_end_the_child(network, volume):
    run(network, volume)
    child = psutil.Process(network.pid)
    network.close()
    assert not child.is_running()
    other = NetworkProcess(network._command)
    other.warm_up("box")
    child = psutil.Process(other.pid)
    del other
    assert within(5, lambda: not child.is_running())


@pytest.mark.slow
def test_the_child_does_not_outlive_a_parent_that_is_killed(network):
    script = (
        "import sys, time\n"
        "from napari_pancreas_seg.inference.process.client import NetworkProcess\n"
        f"network = NetworkProcess({network._command!r})\n"
        "network.warm_up('box')\n"
        "print(network.pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    assert within(10, lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_the_working_folder_is_not_imported_from(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["/somewhere"])
    assert process.child_environment()["PYTHONSAFEPATH"] == "1"
    monkeypatch.setattr(sys, "path", ["", "/somewhere"])
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    assert "PYTHONSAFEPATH" not in process.child_environment()


@pytest.mark.slow
def test_the_real_network_gives_what_it_gives_in_this_process(hu, tiny_bundle):
    from napari_pancreas_seg.inference.segment import segment

    volume = CTVolume.from_source_array(hu, np.diag([-8, 9, 9, 1]))  # as large as a body
    network = NetworkProcess()
    try:
        there = run(network, volume, str(tiny_bundle), device="cpu")
        here = segment(volume, tiny_bundle, device="cpu")
    finally:
        network.close()
    assert np.array_equal(there.mask, here.mask)
    assert np.allclose(there.probability.values, here.probability.values, atol=1e-3)
    assert [gate.values.shape for gate in there.attention] == [
        gate.values.shape for gate in here.attention
    ]
