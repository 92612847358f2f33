"""Make the pictures of the documentation anew: drive the real program on the phantom.

Needs a display with OpenGL, such as Xvfb's::

    export PYTHONPATH=research
    xvfb-run -s "-screen 0 1280x800x24" python docs/make_screenshots.py
    xvfb-run -s "-screen 0 1920x1080x24" python docs/make_screenshots.py -o wide --size 1920x1080

No picture shows a patient: the phantoms are made by code (`research/phantom`). The user's own
settings and corrections are neither used nor changed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import napari
import numpy as np
from napari._qt.dialogs.qt_notification import NapariQtNotification
from napari.layers import Labels
from napari.settings import get_settings
from PIL import Image, ImageOps
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest

from napari_pancreas_seg import save_mask
from napari_pancreas_seg._napari.compat import canvas_widget
from napari_pancreas_seg._napari.layers.maps import BEST
from napari_pancreas_seg._napari.widget import PancreasDock
from napari_pancreas_seg.cohort.worklist import Status
from napari_pancreas_seg.data.sample import load_sample
from napari_pancreas_seg.io import save_ct
from phantom import make_phantom

PLUGIN = "napari-pancreas-seg"
OVERVIEW_WIDTH = 1080
MOST_KILOBYTES = 150
STRIP = ("opened", "running", "mask", "attention", "correct", "surface")
"""The case in six pictures."""
STRIP_HEIGHT, STRIP_GAP = 260, 6
MOVING_WIDTH, MOVING_COLORS = 480, 32
MOST_MOVING_KILOBYTES = 500
FRAME_MS, LAST_FRAME_MS = 150, 1500
PATIENCE_SECONDS = 600
SMALL = {"shape": (42, 168, 216), "spacing_mm": (6.0, 1.6667, 1.6667)}
"""The worklist's CTs: coarse, so that they are segmented soon."""


def wait_until(condition: Callable[[], bool]) -> None:
    """Let the window live until something has happened."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("The program took too long.")
        QTest.qWait(20)


def save_small(picture: Image.Image, path: Path) -> None:
    """Write a picture with as many colours as fit into the size that is allowed."""
    for colors in (256, 192, 128, 96, 64):
        # Colours that are rare, as in a legend, count as much as the many greys of a CT.
        few = picture.convert("RGB").quantize(
            colors, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE
        )
        few.save(path, optimize=True)
        if path.stat().st_size <= MOST_KILOBYTES * 1000:
            return
    raise ValueError(f"{path.name} is larger than {MOST_KILOBYTES} kB.")


class Window:
    """napari with the dock and the phantom, and a folder that pictures go to.

    Parameters
    ----------
    folder : Path
        Folder for the pictures.
    theme : str
        Theme of napari.
    size : tuple of int
        Width and height of the window.
    """

    def __init__(self, folder: Path, theme: str, size: tuple[int, int]) -> None:
        get_settings().appearance.theme = theme
        self.folder = folder
        self.cuts: dict[str, tuple[int, int, int, int]] = {}
        """Where the picture lay in each window that was pictured."""
        self.viewer = napari.Viewer()
        _, self.dock = self.viewer.window.add_plugin_dock_widget(PLUGIN, "Pancreas segmentation")
        self.dock: PancreasDock
        self.app = self.dock.app
        self.viewer.window.resize(*size)
        QTest.qWait(500)

    def open_phantom(self) -> None:
        """Open the sample as File › Open Sample does."""
        self.viewer.open_sample(PLUGIN, "phantom")
        wait_until(self.dock.run_panel.run_button.isEnabled)
        wait_until(lambda: len(self.app.views.letters.letters) == 4)
        QTest.qWait(500)
        self.viewer.reset_view()

    def use_model(self, path: str | None) -> None:
        """Use a bundle in place of the default model."""
        if path:
            self.dock.model_panel.use_file(path)

    def show_tab(self, title: str) -> None:
        """Bring a tab of the dock to the front."""
        tabs = self.dock.tabs
        titles = [tabs.tabText(place).replace("&&", "&") for place in range(tabs.count())]
        tabs.setCurrentIndex(titles.index(title))
        QTest.qWait(300)

    @property
    def canvas(self) -> tuple[int, int, int, int]:
        """Where the picture lies in the window: left, top, right, bottom."""
        canvas, window = canvas_widget(self.viewer), self.viewer.window._qt_window
        place = canvas.mapTo(window, canvas.rect().topLeft())
        return place.x(), place.y(), place.x() + canvas.width(), place.y() + canvas.height()

    def shoot(self, name: str, pause_ms: int = 800) -> None:
        """Take a picture of the whole window, once what moves has come to rest."""
        # What napari has said meanwhile would hide the picture's corner.
        for notification in self.viewer.window._qt_window.findChildren(NapariQtNotification):
            notification.close()
        QTest.qWait(pause_ms)
        self.cuts[name] = self.canvas
        pixels = self.viewer.window.screenshot(canvas_only=False, flash=False)
        save_small(Image.fromarray(pixels), self.folder / f"{name}.png")

    def press(
        self, key: Qt.Key, modifier: Qt.KeyboardModifier = Qt.KeyboardModifier.NoModifier
    ) -> None:
        """Press a key in the picture, and wait for what it does."""
        QTest.keyClick(canvas_widget(self.viewer), key, modifier)
        QTest.qWait(200)
        wait_until(lambda: not self.app.editor.working)

    def stroke(self, path: np.ndarray, seen: Callable[[], None] = lambda: None) -> None:
        """Drag along points (y, x) of the mask's slice on screen, and wait for the answer."""
        canvas, camera = canvas_widget(self.viewer), self.viewer.scene.camera
        mask = self.app.session.mask
        z = mask.world_to_data(self.viewer.dims.point)[0]
        world = np.array([mask.data_to_world((z, *point))[1:] for point in path])
        middle = np.array([canvas.height(), canvas.width()]) / 2
        places = [
            QPoint(round(x), round(y))
            for y, x in (world - camera.center[-2:]) * camera.zoom + middle
        ]
        left = Qt.MouseButton.LeftButton
        QTest.mouseMove(canvas, places[0])
        QTest.mousePress(canvas, left, pos=places[0])
        for place in places[1:]:
            QTest.mouseMove(canvas, place)
            QTest.qWait(50)
            seen()
        QTest.mouseRelease(canvas, left, pos=places[-1])
        wait_until(lambda: not self.app.network.in_use)
        QTest.qWait(100)
        seen()

    def run(self, pictured_at: float | None = None) -> Labels:
        """Run to the end; picture it once a share of the slices is done."""
        self.dock.run_panel.run_button.click()
        if pictured_at is not None:
            run = self.app.runs.latest
            wait_until(lambda: run.done >= pictured_at * run.total > 0)
            self.shoot("running", pause_ms=0)
        wait_until(lambda: not self.app.runs.running)
        wait_until(lambda: self.app.review.facts is not None)
        return self.app.session.mask

    def show_attention(self, shown: bool) -> None:
        """Show the gate that tells most, or hide it."""
        self.app.maps.show(self.app.session.reference, BEST, shown)

    def show_largest_slice(self) -> int:
        """Go to the slice with most of the pancreas."""
        z = int(np.argmax(np.count_nonzero(self.app.session.mask.data, axis=(1, 2))))
        self.app.review.show(z)
        return z


def picture_a_run(window: Window) -> None:
    """Picture a run on its way, its mask with another threshold, and its attention."""
    dock, app = window.dock, window.app
    wait_until(lambda: bool(app.network.devices))  # the network is warm
    mask = window.run(pictured_at=0.1)
    window.show_largest_slice()
    window.show_attention(False)
    dock.options_panel.threshold.value = 0.35
    known = app.session.masks[mask]
    wait_until(lambda: abs(known.result.threshold - 0.35) < 1e-6)
    window.shoot("mask")
    dock.options_panel.own.click()
    wait_until(lambda: abs(known.result.threshold - 0.35) > 1e-6)
    window.show_attention(True)
    mask.contour = 1
    window.shoot("attention")
    window.show_attention(False)
    mask.contour = 0


def picture_corrections(window: Window) -> None:
    """Correct three slices, review some, and picture what is proposed between the three."""
    app = window.app
    mask, largest = app.session.mask, window.show_largest_slice()
    edited = (largest - 3, largest, largest + 3)
    for z in range(edited[0], edited[-1] + 1):
        app.review.show(z)
        if z in edited:
            inside = np.argwhere(mask.data[z])
            y, x = inside[inside[:, 1].argmin()]
            mask.paint((z, int(y), int(x)), 1)
        else:
            window.press(Qt.Key.Key_C, Qt.KeyboardModifier.ShiftModifier)
    slices = np.flatnonzero(app.review.facts.area_mm2)
    app.review.show(int(slices[0]))
    window.show_tab("Correct")
    for _ in slices[:6]:
        window.press(Qt.Key.Key_Q)
    app.review.show(largest - 1)
    mask.mode = "paint"
    window.press(Qt.Key.Key_I)
    wait_until(lambda: app.editor.proposal is not None)
    window.shoot("correct")
    window.press(Qt.Key.Key_Return)
    mask.mode = "pan_zoom"
    app.review.show(largest)


def picture_mending(window: Window) -> None:
    """A moving picture: a slice is mended by one stroke, and its mask carried to the next two."""
    app, viewer = window.app, window.viewer
    mask, z = app.session.mask, window.show_largest_slice()
    whole = np.argwhere(mask.data[z])
    missing = whole[whole[:, 1] < np.median(whole[:, 1])]
    mask.data[z][tuple(missing.T)] = 0
    mask.data[z + 1 : z + 3] = 0
    mask.refresh()
    camera = viewer.scene.camera
    before = camera.center, camera.zoom
    camera.center = mask.data_to_world((z, *whole.mean(axis=0)))
    camera.zoom *= 2.5
    frames: list[Image.Image] = []

    def seen(times: int = 1) -> None:
        pixels = viewer.window.screenshot(canvas_only=False, flash=False)
        left, top, right, bottom = window.canvas
        cut = left, top, right, top + (bottom - top) * 3 // 4
        picture = Image.fromarray(pixels).convert("RGB").crop(cut)
        height = round(picture.height * MOVING_WIDTH / picture.width)
        frames.extend([picture.resize((MOVING_WIDTH, height), Image.Resampling.LANCZOS)] * times)

    window.press(Qt.Key.Key_M, Qt.KeyboardModifier.ShiftModifier)
    wait_until(lambda: not app.network.in_use)
    seen(4)
    columns = np.linspace(*np.quantile(missing[:, 1], (0.3, 0.9)), 8)
    rows = [missing[np.abs(missing[:, 1] - x) < 3, 0].mean() for x in columns]
    window.stroke(np.column_stack([rows, columns]), seen)
    seen(6)
    window.press(Qt.Key.Key_Escape)
    window.press(Qt.Key.Key_T)
    for key in (Qt.Key.Key_Return, Qt.Key.Key_Return, Qt.Key.Key_Escape):
        wait_until(lambda: app.editor.proposal is not None)
        seen(5)
        window.press(key)
    app.review.show(z + 2)
    seen()
    rare, plain = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
    few = [one.quantize(MOVING_COLORS, rare, kmeans=3, dither=plain) for one in frames]
    path = window.folder / "mending.gif"
    few[0].save(
        path,
        save_all=True,
        append_images=few[1:],
        duration=[FRAME_MS] * (len(few) - 1) + [LAST_FRAME_MS],
        loop=0,
    )
    if path.stat().st_size > MOST_MOVING_KILOBYTES * 1000:
        raise ValueError(f"{path.name} is larger than {MOST_MOVING_KILOBYTES} kB.")
    camera.center, camera.zoom = before


def picture_measurements(window: Window, scratch: Path) -> None:
    """Picture the measurements against a reference, here the gland that was drawn."""
    dock, app = window.dock, window.app
    phantom, mask = load_sample(), app.session.mask
    path = save_mask(phantom.mask, like=phantom.volume, path=scratch / "reference.nii.gz")
    app.files.open(path)
    wait_until(lambda: len(dock.measure_panel.reference_combo) > 1)
    reference = next(layer for layer in window.viewer.layers if layer.name.startswith("reference"))
    reference.contour = 1
    app.session.mask = mask
    window.viewer.layers.selection.active = mask
    dock.measure_panel.reference_combo.value = reference
    window.show_tab("Measure & export")
    wait_until(lambda: dock.measure_panel.values["dice"].text() != "–")
    window.shoot("measure")
    reference.visible = False


def picture_the_surface(window: Window) -> None:
    """Picture the mask in 3-D."""
    window.show_tab("Segment")
    button = window.dock.view_panel.surface_button
    button.click()
    wait_until(lambda: window.viewer.dims.ndisplay == 3)
    QTest.qWait(500)
    window.shoot("surface")
    button.click()


def picture_a_worklist(window: Window, scratch: Path) -> None:
    """Work through a folder of small CTs: one exported, one reviewed, one segmented ahead."""
    cts = scratch / "cts"
    cts.mkdir()
    for seed in range(1, 6):
        save_ct(make_phantom(seed, **SMALL).volume, cts / f"case_{seed:02d}.nii.gz")
    dock, viewer = window.dock, window.viewer
    viewer.layers.clear()
    dock.worklist_panel.open_folder(cts)
    work = dock.worklist_panel._work
    wait_until(lambda: work.case is not None and not work.busy)
    window.run()
    # The mask of a run is kept at once; the next case has its own from ahead.
    wait_until(lambda: work.case.status is Status.SEGMENTED and not work.busy)
    wait_until(lambda: work.ahead.state == "segmented")
    work.finish_case()
    wait_until(lambda: work.worklist.current == 1 and not work.busy)
    work.mark_reviewed()
    wait_until(lambda: work.case.status is Status.REVIEWED and work.ahead.state == "segmented")
    work.step(1)
    wait_until(lambda: work.worklist.current == 2 and not work.busy)
    wait_until(lambda: work.ahead.state == "segmented")
    window.shoot("worklist")


def draw_the_demo(path: Path, model: str, scratch: Path) -> None:
    """Run the demo and keep its overview, in a process of its own.

    TensorFlow and software OpenGL do not live together in one.
    """
    command = [sys.executable, "-m", "napari_pancreas_seg", "demo", "-o", str(scratch / "demo")]
    subprocess.run([*command, "--model", model], check=True)
    with Image.open(scratch / "demo" / "phantom_overview.png") as drawn:
        height = round(drawn.height * OVERVIEW_WIDTH / drawn.width)
        picture = drawn.convert("RGB").resize((OVERVIEW_WIDTH, height), Image.Resampling.LANCZOS)
    save_small(picture, path)


def draw_the_strip(folder: Path, cuts: dict[str, tuple[int, int, int, int]]) -> None:
    """Set the stages of the case side by side, each window's picture area alone."""
    left, top, right, bottom = cuts[STRIP[0]]
    size = round(STRIP_HEIGHT * (right - left) / (bottom - top)), STRIP_HEIGHT
    strip = Image.new("RGB", (len(STRIP) * (size[0] + STRIP_GAP) - STRIP_GAP, size[1]), "white")
    for number, name in enumerate(STRIP):
        with Image.open(folder / f"{name}.png") as picture:
            part = picture.convert("RGB").crop(cuts[name])
        # In 3-D it is higher, as there is no slider.
        part = ImageOps.pad(part, size, Image.Resampling.LANCZOS, part.getpixel((0, 0)))
        strip.paste(part, (number * (size[0] + STRIP_GAP), 0))
    save_small(strip, folder / "strip.png")


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "images")
    parser.add_argument("--model", help="path of a bundle instead of the default model")
    parser.add_argument("--size", default="1280x800", help="width and height of the window")
    parser.add_argument("--theme", default="dark", help="of every picture but 'light'")
    arguments = parser.parse_args()
    width, height = (int(edge) for edge in arguments.size.split("x"))
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        get_settings(None)  # none of the user's, and none is written
        for variable in ("XDG_CONFIG_HOME", "XDG_DATA_HOME"):
            os.environ[variable] = str(scratch / variable)
        window = Window(arguments.output, arguments.theme, (width, height))
        window.use_model(arguments.model)
        window.open_phantom()
        window.shoot("opened")
        picture_a_run(window)
        picture_mending(window)
        picture_corrections(window)
        picture_measurements(window, scratch)
        picture_the_surface(window)
        window.app.autosave.discard_all()
        picture_a_worklist(window, scratch)
        window.viewer.close()
        light = Window(arguments.output, "light", (width, height))
        light.use_model(arguments.model)
        light.open_phantom()
        light.run()
        light.show_largest_slice()
        light.show_tab("Correct")
        light.shoot("light")
        light.viewer.close()
        model = arguments.model or "default"
        draw_the_demo(arguments.output / "overview.png", model, scratch)
    draw_the_strip(arguments.output, window.cuts)


if __name__ == "__main__":
    main()
