"""How soon after Run the first slice of the mask is on screen, with a warm model.

    xvfb-run -a -s "-screen 0 1280x800x24" python benchmarks/first_mask.py CT

Opens the CT in a real window, waits until the network is warm, goes to a slice in the upper part,
and presses Run three times. With ``--dropped-after 5`` the CT is opened five seconds after the
panel and Run is pressed as soon as it is there: what counts is the time from then to a mask.

Processor time says what a calm machine would take: the two processes work side by side.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("QT_QPA_PLATFORM", "xcb")

import napari
import psutil
from napari.settings import get_settings
from qtpy.QtTest import QTest

RUNS = 3
PATIENCE_SECONDS = 300


def wait_until(condition: Callable[[], bool]) -> None:
    """Let the window live until something has happened."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("The program took too long.")
        QTest.qWait(5)


def spent(dock: object) -> tuple[float, float]:
    """Seconds of processor time of the window's process, and of the network's."""
    pid = dock.app.network.process.pid
    child = psutil.Process(pid).cpu_times() if pid is not None else None
    return time.process_time(), 0.0 if child is None else child.user + child.system


def timed_run(dock: object, what: str, started: float, before: tuple[float, float]) -> None:
    """Press Run, and print how long it has been since then."""
    dock.run_panel.run_button.click()
    wait_until(lambda: dock.app.runs.latest is not None and dock.app.runs.latest.done > 0)
    first = time.perf_counter() - started
    window, network = (now - then for now, then in zip(spent(dock), before, strict=True))
    wait_until(lambda: not dock.app.runs.running)
    print(
        f"{what}: first slice after {first:.2f} s (processor time: window {window:.2f} s, "
        f"network {network:.2f} s), all after {time.perf_counter() - started:.2f} s"
    )


def main() -> None:
    """Press Run and look at the clock."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ct")
    parser.add_argument("--warm-up-seconds", type=int, default=20)
    parser.add_argument("--dropped-after", type=float, help="seconds after the panel's opening")
    asked = parser.parse_args()
    get_settings(None)  # none of the user's
    with tempfile.TemporaryDirectory() as scratch:
        for variable in ("XDG_CONFIG_HOME", "XDG_DATA_HOME"):
            os.environ[variable] = scratch
        viewer = napari.Viewer()
        _, dock = viewer.window.add_plugin_dock_widget("napari-pancreas-seg")
        if asked.dropped_after is not None:
            QTest.qWait(round(1000 * asked.dropped_after))
            window, network = spent(dock)
            print(f"processor time before the drop: window {window:.2f}, network {network:.2f} s")
        started, before = time.perf_counter(), spent(dock)
        dock.app.files.open(asked.ct)
        wait_until(lambda: dock.ct_panel.layer is not None)
        layer = dock.ct_panel.layer
        middle = [0.8 * n if axis == 0 else 0 for axis, n in enumerate(layer.data.shape)]
        viewer.dims.set_point(0, float(layer.data_to_world(middle)[0]))
        if asked.dropped_after is not None:
            timed_run(dock, "from the drop", started, before)
        else:
            QTest.qWait(1000 * asked.warm_up_seconds)
        for number in range(1, RUNS + 1):
            timed_run(dock, f"run {number}", time.perf_counter(), spent(dock))
        viewer.close()


if __name__ == "__main__":
    main()
