"""Make the pictures of the documentation anew: drive the real program on the phantom.

Needs a display with OpenGL, such as Xvfb's::

    xvfb-run -s "-screen 0 1280x800x24" python docs/make_screenshots.py

No picture shows a patient: the phantom is made by code.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import napari
import numpy as np
from napari.settings import get_settings
from qtpy.QtTest import QTest

from napari_pancreas_seg._napari.widget import PancreasDock

PLUGIN = "napari-pancreas-seg"
SIZE = (1280, 800)
PATIENCE_SECONDS = 600


def wait_until(condition: Callable[[], bool]) -> None:
    """Let the window live until something has happened."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("The program took too long.")
        QTest.qWait(20)


def shoot(viewer: napari.Viewer, path: Path) -> None:
    """Take a picture of the whole window."""
    QTest.qWait(400)
    viewer.window.screenshot(str(path), canvas_only=False, flash=False)


def open_window(theme: str) -> tuple[napari.Viewer, PancreasDock]:
    """Open napari in a size that fits any screen, with the phantom and the dock."""
    # A fresh configuration: the user's own settings are neither used nor changed.
    get_settings()._config_path = None
    get_settings().appearance.theme = theme
    viewer = napari.Viewer()
    _, dock = viewer.window.add_plugin_dock_widget(PLUGIN, "Pancreas segmentation")
    viewer.window.resize(*SIZE)
    viewer.open_sample(PLUGIN, "phantom")
    wait_until(dock.run_panel.run_button.isEnabled)
    QTest.qWait(200)
    viewer.reset_view()
    return viewer, dock


def show_largest_slice(viewer: napari.Viewer, mask: napari.layers.Labels) -> None:
    """Go to the slice with most of the pancreas."""
    z = int(np.argmax(np.count_nonzero(mask.data, axis=(1, 2))))
    viewer.dims.set_point(0, mask.data_to_world((z, 0, 0))[0])
    viewer.reset_view()


def picture_a_run(viewer: napari.Viewer, dock: PancreasDock, folder: Path) -> None:
    """Run, and picture it on its way, its mask and its attention."""
    session = dock.session
    # The second run is the one that is pictured: the network is warm by then.
    for is_pictured in (False, True):
        dock.run_panel.run_button.click()
        if is_pictured:
            wait_until(lambda: session.run.done >= 0.3 * session.run.total > 0)
            shoot(viewer, folder / "running.png")
        wait_until(lambda: not session.running)
    mask = session.run.labels
    show_largest_slice(viewer, mask)
    shoot(viewer, folder / "mask.png")
    dock.result_panel.attention.click()
    mask.contour = 1
    shoot(viewer, folder / "attention.png")
    dock.result_panel.attention.click()
    mask.contour = 0
    mask.mode = "paint"
    shoot(viewer, folder / "correct.png")


def draw_the_demo(path: Path, model: str) -> None:
    """Run the demo and keep its overview, in a process of its own.

    TensorFlow and software OpenGL do not live together in one.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "napari_pancreas_seg", "demo", "-o", folder]
        subprocess.run([*command, "--model", model], check=True)
        shutil.copyfile(Path(folder) / "phantom_overview.png", path)


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "images")
    parser.add_argument("--model", help="path of a bundle instead of the default model")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    viewer, dock = open_window("dark")
    if arguments.model:
        dock.model_panel.use_file(arguments.model)
    shoot(viewer, arguments.output / "opened.png")
    picture_a_run(viewer, dock, arguments.output)
    viewer.close()
    viewer, _ = open_window("light")
    shoot(viewer, arguments.output / "light.png")
    viewer.close()
    draw_the_demo(arguments.output / "overview.png", arguments.model or "default")


if __name__ == "__main__":
    main()
