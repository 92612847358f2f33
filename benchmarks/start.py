"""How long everything takes to start: the import, the command line, the panel beyond napari.

    python benchmarks/start.py --repeats 5 -o benchmarks/results/start.json

Every figure is a process of its own, without a screen, in turns so that a machine that slows down
slows all of them; the median and the fastest are given, of the clock and of the processor's time
(what a process waits for others is not in that). The files are read once beforehand, so the disk
does not count. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

VIEWER = """
import os, time
start, cpu = time.perf_counter(), time.process_time()
import napari
from napari.settings import get_settings
from qtpy.QtWidgets import QApplication
get_settings(None)
viewer = napari.Viewer(show=False)
QApplication.processEvents()
napari_s = time.perf_counter() - start
{panel}
print(napari_s, time.perf_counter() - start - napari_s, flush=True)
os._exit(0)
"""
PANEL = """
_, dock = viewer.window.add_plugin_dock_widget("napari-pancreas-seg")
while dock._steps:  # it opens in turns
    QApplication.processEvents()
"""
COMMAND = ("-m", "napari_pancreas_seg")
PROCESSES = {
    "Python alone": ("-c", "pass"),
    "import numpy": ("-c", "import numpy"),
    "import napari_pancreas_seg": ("-c", "import napari_pancreas_seg"),
    "napari-pancreas-seg --version": (*COMMAND, "--version"),
    "napari-pancreas-seg --help": (*COMMAND, "--help"),
    "napari-pancreas-seg segment --help": (*COMMAND, "segment", "--help"),
    "napari's viewer": ("-c", VIEWER.format(panel="")),
    "napari's viewer and the panel": ("-c", VIEWER.format(panel=PANEL)),
}
WITH_PANEL = "napari's viewer and the panel"


def take(arguments: tuple[str, ...], scratch: str) -> dict[str, float]:
    """Run a process to its end; what it took, and what it says of itself."""
    surroundings = os.environ | {
        "QT_QPA_PLATFORM": "offscreen",
        "QT_QPA_OFFSCREEN_NO_GLX": "1",
        **dict.fromkeys(("XDG_CONFIG_HOME", "XDG_DATA_HOME", "NAPARI_CONFIG"), scratch),
    }
    surroundings["NAPARI_CONFIG"] = os.path.join(scratch, "napari.yaml")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], env=surroundings, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{arguments[:2]} failed:\n{done.stderr}")
    figures = {
        "seconds": seconds,
        "cpu_seconds": (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime),
    }
    if "-c" in arguments and len(said := done.stdout.split()[-2:]) == 2:
        figures |= {"viewer_seconds": float(said[0]), "panel_seconds": float(said[1])}
    return figures


def summary(runs: list[dict[str, float]]) -> dict[str, float]:
    """Median and least of everything that was measured."""
    return {
        f"{name}_{kind}": round(how(run[name] for run in runs), 3)
        for name in runs[0]
        for kind, how in (("median", statistics.median), ("least", min))
    }


def main() -> None:
    """Measure, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in PROCESSES}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(asked.repeats + 1):  # the first reads the files
            for name, arguments in PROCESSES.items():
                figures = take(arguments, scratch)
                if turn:
                    runs[name].append(figures)
    table = {name: summary(measured) for name, measured in runs.items()}
    alone, panel = table["napari's viewer"], table[WITH_PANEL]
    beyond = {
        "seconds_median": round(panel["seconds_median"] - alone["seconds_median"], 3),
        "cpu_seconds_least": round(panel["cpu_seconds_least"] - alone["cpu_seconds_least"], 3),
        "seconds_within_median": panel["panel_seconds_median"],
        "seconds_within_least": panel["panel_seconds_least"],
    }
    print(f"{'process':<40}{'median':>9}{'least':>9}{'CPU, least':>12}  s")
    for name, row in table.items():
        times = row["seconds_median"], row["seconds_least"], row["cpu_seconds_least"]
        print(f"{name:<40}{times[0]:>9.2f}{times[1]:>9.2f}{times[2]:>12.2f}")
    print(
        f"The panel beyond napari's own: {beyond['seconds_median']:.2f} s by the difference of "
        f"processes, {beyond['seconds_within_median']:.2f} s (least "
        f"{beyond['seconds_within_least']:.2f}) by the clock inside."
    )
    if asked.output:
        record = {
            "date": date.today().isoformat(),
            "system": platform.platform(),
            "processors": os.cpu_count(),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("napari", "napari-pancreas-seg")},
            "repeats": asked.repeats,
            "processes": table,
            "panel_beyond_napari": beyond,
        }
        asked.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
