"""A small CT, a viewer's app with a fake network, and the manifest."""

from __future__ import annotations

import itertools
import os
import queue
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import nibabel as nib
import numpy as np
import pytest

# Without a screen even where there is one: Mesa's software OpenGL and TensorFlow, which other
# tests import, crash in one process (both bring LLVM). Qt's offscreen platform uses OpenGL as
# soon as it sees a display. For real windows: QT_QPA_PLATFORM=xcb pytest -m gui
if "QT_QPA_PLATFORM" not in os.environ:
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    os.environ["QT_QPA_OFFSCREEN_NO_GLX"] = "1"

# napari's settings, shortcuts among them, are the user's.
os.environ["NAPARI_CONFIG"] = str(Path(tempfile.mkdtemp()) / "settings.yaml")

from napari import Viewer
from napari.components import ViewerModel
from napari.layers import Layer
from qtpy.QtWidgets import QApplication

from napari_pancreas_seg._napari.app import App, app_of
from napari_pancreas_seg._napari.layers.bridge import ct_layer_data
from napari_pancreas_seg.inference.process.client import NetworkProcess
from napari_pancreas_seg.volume import CTVolume

FAKE = Path(__file__).with_name("fake_network.py")
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.1, -0.05, 0.08) @ np.diag([-0.9, 0.8, 2.5]), [11.0, -7.0, 3.0]
)
"""An affine whose axes run to the left, to the front and up, a little oblique, in mm."""


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings and autosaves go to a folder of the test's."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setattr("platformdirs.user_config_dir", lambda *_, **__: str(folder / "config"))
    monkeypatch.setattr("platformdirs.user_data_dir", lambda *_, **__: str(folder / "data"))
    return folder


@pytest.fixture
def hu() -> np.ndarray:
    """Array (I, J, K) in a file's own order: air, fat, soft tissue, smooth enough for a CT."""
    i, j, k = np.indices((40, 32, 10))
    body = (i - 20) ** 2 / 300 + (j - 16) ** 2 / 180
    fat = -100 + (7 * i + 5 * j + 3 * k) % 11 - 5  # not flat, as what is clipped would be
    return np.where(body > 1, -1000, np.where(body > 0.7, fat, 40 + 2 * k + i)).astype(np.int16)


@pytest.fixture
def ct_path(hu: np.ndarray, tmp_path: Path) -> Path:
    """A CT as a file with an oblique affine."""
    path = tmp_path / "case 7.nii.gz"
    nib.save(nib.Nifti1Image(hu, OBLIQUE), path)
    return path


@pytest.fixture
def volume(hu: np.ndarray) -> CTVolume:
    """The same CT in memory."""
    return CTVolume.from_source_array(hu, OBLIQUE)


class FakeProcess(NetworkProcess):
    """A network's process without a network, whose child serves the next test if it is idle."""

    idle: ClassVar[list[Any]] = []
    all: ClassVar[list[NetworkProcess]] = []  # or the garbage collector would end their children
    numbers: ClassVar[Iterator[int]] = itertools.count(1)

    def __init__(self) -> None:
        super().__init__([sys.executable, str(FAKE)], patience_seconds=1.0)
        self._numbers = self.numbers
        self.all.append(self)

    def _running_child(self) -> Any:
        if self._child is None and self.idle and not self._closed.is_set():
            self._child = self.idle.pop()
        return super()._running_child()

    def close(self) -> None:
        self._closed.set()
        with self._starting:
            child, self._child = self._child, None
        if child is None:
            return
        number = next(self._numbers)
        replies = child.listen(number)
        try:
            child.request("devices", number)
            answer = None if child.awaited(number) else replies.get(timeout=0.5)
        except (OSError, queue.Empty):
            answer = None
        child.forget(number)
        if answer is None:
            child.kill()
        else:
            self.idle.append(child)


@pytest.fixture
def network() -> Iterator[NetworkProcess]:
    """A network's process without a network; see ``fake_network.py``."""
    process = FakeProcess()
    yield process
    process.close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits until nobody has done anything for a second or so waits a moment."""
    ours = "napari_pancreas_seg._napari"
    monkeypatch.setattr(f"{ours}.autosave.autosave.PAUSE_MS", 300)  # longer than between slices
    for name in ("worklist.session.PAUSE_MS", "views.surface.PAUSE_MS", "settings.PAUSE_MS"):
        monkeypatch.setattr(f"{ours}.{name}", 60)
    monkeypatch.setattr(f"{ours}.widget.dock.WARM_UP_DELAY_MS", 60)


@pytest.fixture
def viewer(qapp: object) -> ViewerModel:
    """A viewer without a window."""
    return ViewerModel()


@pytest.fixture
def app(viewer: ViewerModel, network: NetworkProcess) -> Iterator[App]:
    """The viewer's app with the fake network."""
    app = app_of(viewer)
    app.network.process = network
    yield app
    app.close()


@pytest.fixture
def notifications() -> Iterator[list]:
    """What napari has been asked to show during the test."""
    from napari.utils.notifications import notification_manager

    notification_manager.records.clear()
    yield notification_manager.records
    notification_manager.records.clear()


@pytest.fixture(scope="session")
def manifest() -> Iterator[None]:
    """Make sure that npe2 knows the plugin, installed or not."""
    from npe2 import PluginManager, PluginManifest

    import napari_pancreas_seg

    path = Path(napari_pancreas_seg.__file__).with_name("napari.yaml")
    plugins = PluginManager.instance()
    plugins.discover()
    added = "napari-pancreas-seg" not in plugins._manifests
    if added:
        plugins.register(PluginManifest.from_file(path))
    yield
    if added:
        plugins.unregister("napari-pancreas-seg")


@pytest.fixture
def window(make_napari_viewer, network, manifest, monkeypatch) -> Iterator[Viewer]:
    """A viewer with its window, and the fake network in its session."""
    if QApplication.platformName() == "offscreen":
        # There is no OpenGL to be asked there, and napari does not expect that.
        monkeypatch.setattr("napari._vispy.layers.image.get_gl_extensions", lambda: "")
        for module in ("layers.image", "layers.base", "layers.labels", "canvas"):
            name = f"napari._vispy.{module}.get_max_texture_sizes"
            monkeypatch.setattr(name, lambda: (2048, 2048))
    viewer = make_napari_viewer()
    app = app_of(viewer)
    app.network.process = network
    app.network.warm_up_allowed = False
    yield viewer
    app.close()


@pytest.fixture
def ct(viewer: ViewerModel, app: App, volume: CTVolume) -> Layer:
    """The CT as the chosen layer."""
    layer = Layer.create(*ct_layer_data(volume))
    viewer.add_layer(layer)
    app.session.ct = layer
    return layer
