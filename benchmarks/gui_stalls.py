"""How long the window stands still: the longest gap between two turns of Qt's event loop.

A timer asks for a turn every 5 ms; what comes later than that, something has held up. The
phases are those of a person's work on a CT of 512×512×400, the phantom enlarged, in a real
window; napari's own File › Open, which works on the GUI thread, is measured beside them.

Run it with a screen, or under a virtual one:

    PYTHONPATH=research xvfb-run -a -s "-screen 0 1280x800x24" python benchmarks/gui_stalls.py

What counts is what the GUI thread computed between two turns, in processor time: on a busy
machine the window waits longer, for the interpreter or for a processor that others have, as the
column of the longest stall shows. Whose it is, is found by sampling the GUI thread: the processor
time since the last sample goes to whoever's the innermost frame is, this plugin's or napari's and
vispy's; the rest is Qt's and Python's. The last column is the most of ours in any turn.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

os.environ.setdefault("QT_QPA_PLATFORM", "xcb")

import napari
import nibabel as nib
import numpy as np
from napari.settings import get_settings
from qtpy.QtCore import QObject, QPoint, Qt, QTimer
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QWidget

from phantom import make_phantom

TARGET_MS = 100.0
TICK_MS = 5.0
SAMPLE_MS = 2.0
THEIRS = "napari and vispy"
SHAPE = (400, 512, 512)
PLUGIN = "napari-pancreas-seg"


class Gap(NamedTuple):
    """A gap between two turns of the event loop: its length, and what was computed in it, in ms."""

    length: float
    computed: float
    shares: dict[str, float]

    def of(self, who: str) -> float:
        return self.computed * self.shares.get(who, 0.0) / (sum(self.shares.values()) or 1.0)

    @property
    def whose(self) -> str:
        return ", ".join(f"{who} {self.of(who):.0f}" for who in ("ours", THEIRS))


@dataclass
class Phase:
    """The gaps of one phase."""

    name: str
    gaps: list[Gap] = field(default_factory=list)

    @property
    def worst(self) -> Gap:
        return max(self.gaps, key=lambda gap: gap.computed, default=Gap(0.0, 0.0, {}))

    @property
    def row(self) -> str:
        longest = max((gap.length for gap in self.gaps), default=0.0)
        over = sum(gap.computed > TARGET_MS for gap in self.gaps)
        ours = max((gap.of("ours") for gap in self.gaps), default=0.0)
        worst = self.worst
        return (
            f"| {self.name} | {worst.computed:.0f} | {worst.whose} | {over} | {longest:.0f} "
            f"| {ours:.0f} |"
        )


class Sampler(threading.Thread):
    """Notes in whose code the thread that made it computes, every few ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._watched = threading.get_ident()
        self._clock = time.pthread_getcpuclockid(self._watched)
        self._seen: deque[tuple[str, float]] = deque()
        self.start()

    def run(self) -> None:
        last = time.clock_gettime(self._clock)
        while True:
            time.sleep(SAMPLE_MS / 1e3)
            now = time.clock_gettime(self._clock)
            self._seen.append((whose(sys._current_frames().get(self._watched)), now - last))
            last = now

    def taken(self) -> dict[str, float]:
        """What was noted since the last call: seconds of processor time by whose they were."""
        shares: dict[str, float] = {}
        for who, spent in [self._seen.popleft() for _ in range(len(self._seen))]:
            shares[who] = shares.get(who, 0.0) + spent
        return shares


def whose(frame: FrameType | None) -> str:
    """Whose the innermost frame is that is this plugin's, or napari's or vispy's."""
    while frame is not None:
        package = str(frame.f_globals.get("__name__", "")).split(".")[0]
        if package == "napari_pancreas_seg":
            return "ours"
        if package in ("napari", "vispy"):
            return THEIRS
        frame = frame.f_back
    return "other"


class Stopwatch(QObject):
    """Notes every gap, by phase."""

    def __init__(self) -> None:
        super().__init__()
        self.phases: list[Phase] = []
        self._last: tuple[float, float] | None = None
        self._sampler = Sampler()
        self._timer = QTimer(self)
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.setInterval(int(TICK_MS))
        self._timer.timeout.connect(self._tick)
        self._timer.start()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        QTest.qWait(200)  # what the last phase has left behind is not this one's
        self.phases.append(Phase(name))
        self._last = None
        QTest.qWait(20)
        yield
        QTest.qWait(300)
        self._last = None

    def _tick(self) -> None:
        now, samples = (time.perf_counter(), time.thread_time()), self._sampler.taken()
        if self._last is not None and self.phases:
            gap, own = ((b - a) * 1e3 for a, b in zip(self._last, now, strict=True))
            self.phases[-1].gaps.append(Gap(max(0.0, gap - TICK_MS), own, samples))
        self._last = now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default", help="name or path of a model")
    parser.add_argument("--network", help="a script that stands in for the network's process")
    parser.add_argument("--shape", type=int, nargs=3, default=SHAPE, metavar=("Z", "Y", "X"))
    parser.add_argument("--patience", type=float, default=1800.0, help="seconds for the run")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NAPARI_CONFIG"] = str(Path(folder, "settings.yaml"))
        ct = write_ct(Path(folder, "ct.nii.gz"), tuple(chosen.shape))
        phases = measure(ct, Path(folder), chosen)
    print(f"\nCT of {'×'.join(map(str, chosen.shape))}; target {TARGET_MS:.0f} ms.\n")
    print("| phase | computed (ms) | whose (ms) | over 100 ms | longest stall (ms) | ours (ms) |")
    print("| --- | ---: | --- | ---: | ---: | ---: |")
    for phase in phases:
        print(phase.row)


def write_ct(path: Path, shape: tuple[int, int, int]) -> Path:
    """Write the phantom, every voxel several times over."""
    small = make_phantom(shape=(100, 256, 256), spacing_mm=(4.0, 1.5, 1.5)).volume
    array = small.to_source_order(small.hu)
    for axis, (target, have) in enumerate(zip(shape[::-1], array.shape, strict=True)):
        array = np.take(array, np.arange(target) * have // target, axis=axis)
    scale = np.diag([*np.array(small.hu.shape[::-1]) / shape[::-1], 1.0])
    image = nib.Nifti1Image(array, small.source.affine @ scale)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def measure(ct: Path, folder: Path, chosen: argparse.Namespace) -> list[Phase]:
    """Go through the phases in a real window."""
    get_settings().application.confirm_close_window = False
    viewer = napari.Viewer(show=True)
    viewer.window._qt_window.showMaximized()
    watch = Stopwatch()
    with watch.phase("nothing"):
        QTest.qWait(500)
    with watch.phase("open the panel"):
        _, dock = viewer.window.add_plugin_dock_widget(PLUGIN, "Pancreas segmentation")
        wait(lambda: not dock._steps)  # it opens in turns
    app = dock.app
    app.network.warm_up_allowed = False
    if chosen.network:
        from napari_pancreas_seg.inference.process.client import NetworkProcess

        app.network.process.close()
        app.network.process = NetworkProcess([sys.executable, chosen.network])
    dock.model_panel.use_named(chosen.model)
    with watch.phase("load the CT"):
        app.files.open(ct)
        wait(lambda: app.session.ct is not None)
    with watch.phase("start the network"):
        app.network.warm_up_allowed = True
        app.network.warm_up(app.session.ct.data, app.session.reference, chosen.model)
        wait(lambda: bool(app.network.devices) or bool(chosen.network), 300)
    with watch.phase("scroll through slices"):
        for step in range(0, chosen.shape[0], 20):
            viewer.dims.set_current_step(0, step)
            QTest.qWait(10)
    with watch.phase("run"):
        QTest.mouseClick(dock.run_panel.run_button, Qt.MouseButton.LeftButton)
        wait(lambda: app.runs.latest is not None and not app.runs.running, chosen.patience)
    mask = app.session.mask
    work_on(viewer, dock, mask, watch)
    with watch.phase("export"):
        target = folder / "mask.nii.gz"
        dock.export_panel.export_to(target)
        wait(lambda: target.exists() and dock.export_panel.export_button.isEnabled(), 300)
    viewer.layers.clear()
    with watch.phase("napari's own File › Open"):
        viewer.open(str(ct), plugin=PLUGIN)
    viewer.close()
    app.close()
    return watch.phases


def work_on(viewer: napari.Viewer, dock: Any, mask: Any, watch: Stopwatch) -> None:
    """What a person does with a mask."""
    app = dock.app
    with watch.phase("drag the threshold"):
        for value in np.linspace(0.15, 0.85, 15):
            dock.options_panel.threshold.value = round(float(value), 2)
            QTest.qWait(40)
        QTest.qWait(1500)
    with watch.phase("paint"):
        viewer.layers.selection.active = mask
        mask.mode, mask.brush_size = "paint", 20
        canvas = viewer.window._qt_viewer.canvas.native
        middle = canvas.rect().center()
        drag(canvas, [QPoint(middle.x() + 3 * n, middle.y() + n) for n in range(30)])
        mask.mode = "pan_zoom"
    with watch.phase("mend a slice by strokes"):
        app.mending.start()
        wait(lambda: not app.network.in_use, 60)
        QTest.qWait(2000)
        answered = []
        for row in (0, 40, 80):
            drag(canvas, [QPoint(middle.x() + 3 * n, middle.y() + row) for n in range(12)])
            began = time.perf_counter()
            wait(lambda: not app.network.in_use, 60)
            answered.append((time.perf_counter() - began) * 1e3)
        app.mending.stop()
    print("strokes answered after", ", ".join(f"{ms:.0f}" for ms in answered), "ms", flush=True)
    with watch.phase("carry to the next slices"):
        app.carrying.carry(1)
        for answer in (app.editor.accept, app.editor.accept, app.editor.drop):
            wait(lambda: app.editor.proposal is not None, 30)
            QTest.qWait(100)
            answer()
    with watch.phase("measure"):
        text = dock.measure_panel.values["volume"]
        before = text.text()
        mask.undo()
        wait(lambda: text.text() != before, 60)
    with watch.phase("show in 3-D and back"):
        dock.view_panel.surface_button.click()
        wait(lambda: viewer.dims.ndisplay == 3, 60)
        QTest.qWait(500)
        dock.view_panel.surface_button.click()


def drag(canvas: QWidget, points: list[QPoint]) -> None:
    """Drag over the picture."""
    QTest.mouseMove(canvas, points[0])
    QTest.mousePress(canvas, Qt.MouseButton.LeftButton, pos=points[0])
    for point in points[1:]:
        QTest.mouseMove(canvas, point)
        QTest.qWait(10)
    QTest.mouseRelease(canvas, Qt.MouseButton.LeftButton, pos=points[-1])


def wait(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Let the window live until something is so; goes on without it after a while."""
    end = time.perf_counter() + seconds
    while not condition() and time.perf_counter() < end:
        QTest.qWait(5)
    if not condition():
        print("a phase did not end in time", file=sys.stderr)


if __name__ == "__main__":
    main()
