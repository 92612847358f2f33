"""The dock widget, driven through Qt in a real viewer."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from napari.layers import Labels, Layer
from napari.settings import get_plugin_settings
from qtpy.compat import isalive
from qtpy.QtCore import QEvent, QMimeData, QPointF, QRect, Qt, QUrl
from qtpy.QtGui import QDragEnterEvent, QDropEvent, QKeyEvent, QShowEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QWidget

from napari_pancreas_seg._napari.app import app_of
from napari_pancreas_seg._napari.commands import open_dock
from napari_pancreas_seg._napari.compat import canvas_widget
from napari_pancreas_seg._napari.layers.bridge import ct_layer_data
from napari_pancreas_seg._napari.widget import PancreasDock
from napari_pancreas_seg._napari.widget.canvas_bar import MARGIN, CanvasBar
from napari_pancreas_seg._napari.widget.dock import TABS
from napari_pancreas_seg.volume import CTVolume

pytestmark = [pytest.mark.gui, pytest.mark.usefixtures("manifest")]

TIMEOUT = 20_000
CONTROL = Qt.KeyboardModifier.ControlModifier


@pytest.fixture
def dock(window):
    _, dock = window.window.add_plugin_dock_widget("napari-pancreas-seg", "Pancreas segmentation")
    choose(dock, "box")
    return dock


def choose(dock, model: str) -> None:
    """Choose what the fake network is to do."""
    panel = dock.model_panel
    panel._know(model, model, "")
    panel.use_named(model)


def drop(widget, *paths: Path) -> None:
    """Send what Qt sends when files are dragged in and let go."""
    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    where, copy, left = QPointF(20, 20), Qt.DropAction.CopyAction, Qt.MouseButton.LeftButton
    none = Qt.KeyboardModifier.NoModifier
    enter = QDragEnterEvent(where.toPoint(), copy, mime, left, none)
    QApplication.sendEvent(widget, enter)
    assert enter.isAccepted()
    QApplication.sendEvent(widget, QDropEvent(where, copy, mime, left, none))


def open_ct(qtbot, dock, path: Path):
    viewer = dock.app.session.viewer
    before = len(viewer.layers)
    drop(dock, path)
    qtbot.waitUntil(lambda: len(viewer.layers) > before, timeout=TIMEOUT)
    return viewer.layers[-1]


def run(qtbot, dock) -> Labels:
    qtbot.mouseClick(dock.run_panel.run_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: not dock.app.runs.running, timeout=TIMEOUT)
    return dock.app.runs.latest.labels


@pytest.mark.slow
def test_from_a_dropped_file_to_an_exported_stroke(qtbot, window, dock, ct_path, tmp_path):
    assert not dock.run_panel.run_button.isEnabled()
    assert not dock.export_panel.export_button.isEnabled()
    ct = open_ct(qtbot, dock, ct_path)
    assert dock.ct_panel.layer is ct
    assert ct.contrast_limits == [-160, 240]
    labels = run(qtbot, dock)
    assert dock.app.session.mask is labels
    assert "mL in 9 slices" in dock.run_panel.status.text()
    voxel_ml = dock.app.session.placement(ct).reference.grid.voxel_volume_mm3 / 1000
    volume = dock.measure_panel.values["volume"]
    before = np.count_nonzero(labels.data) * voxel_ml
    qtbot.waitUntil(lambda: f"{before:.1f} mL" in volume.text(), timeout=TIMEOUT)
    labels.brush_size = 12
    labels.paint((0, 16, 30), 1)
    after = np.count_nonzero(labels.data) * voxel_ml
    assert f"{after:.1f}" != f"{before:.1f}"
    qtbot.waitUntil(lambda: f"{after:.1f} mL" in volume.text(), timeout=TIMEOUT)
    labels.undo()
    qtbot.waitUntil(lambda: f"{before:.1f} mL" in volume.text(), timeout=TIMEOUT)
    labels.redo()
    target = tmp_path / "m.nii.gz"
    dock.export_panel.export_to(target)
    qtbot.waitUntil(dock.export_panel.export_button.isEnabled, timeout=TIMEOUT)
    written = nib.load(target)
    assert np.array_equal(written.affine, nib.load(ct_path).affine)
    assert np.count_nonzero(written.dataobj) == np.count_nonzero(labels.data)


def test_the_panel_cuts_off_neither_the_window_nor_the_ct(qtbot, window, volume):
    ct = window.add_layer(Layer.create(*ct_layer_data(volume)))
    window.reset_view()
    _, dock = window.window.add_plugin_dock_widget("napari-pancreas-seg", "Pancreas segmentation")
    height, width = window.canvas.size
    window.canvas.size = (height, width // 4)  # what the dock leaves
    seen = np.ptp(ct.extent.world[:, list(window.dims.displayed)], axis=0)
    assert (seen * window.scene.camera.zoom <= window.canvas.size).all()
    moved = window.scene.camera.center = (0, *ct.extent.world[0, 1:])
    window.canvas.size = (height, width // 5)  # of a part that was chosen nothing is undone
    assert window.scene.camera.center == pytest.approx(moved)
    qt, room = window.window._qt_window, dock.screen().availableGeometry().size()
    qt.resize(room * 2)
    QApplication.sendEvent(dock, QShowEvent())
    qtbot.waitUntil(lambda: qt.height() <= room.height(), timeout=TIMEOUT)
    assert qt.width() <= max(room.width(), qt.minimumSizeHint().width())


@pytest.mark.parametrize("title", ["Correct", "Worklist"])
def test_a_click_in_the_panel_leaves_the_keys_to_the_picture(window, dock, title):
    dock.tabs.setCurrentIndex(list(TABS).index(title))
    window.show()
    canvas_widget(window).setFocus()
    rows = dock.worklist_panel.list
    rows.setEnabled(True)
    clicked = rows.viewport() if title == "Worklist" else dock.correct_panel.strip
    QTest.mouseClick(clicked, Qt.MouseButton.LeftButton)
    assert not dock.isAncestorOf(window.window._qt_window.focusWidget())


def test_another_ct_leaves_the_keys_to_the_picture(window, dock, volume):
    window.show()
    dock.options_panel.show()
    for n in (6, 16, 4):  # slices
        canvas_widget(window).setFocus()
        ct = CTVolume.from_source_array(np.full((20, 20, n), 30, np.int16), np.eye(4))
        window.add_layer(Layer.create(*ct_layer_data(ct)))
        dock.options_panel.region.here.click()
        assert dock.options_panel.region.last.value == n - 1
        assert window.window._qt_window.focusWidget() is canvas_widget(window)


@pytest.mark.slow
def test_cancel_with_the_button(qtbot, dock, ct_path):
    open_ct(qtbot, dock, ct_path)
    choose(dock, "slow")
    panel = dock.run_panel
    qtbot.mouseClick(panel.run_button, Qt.MouseButton.LeftButton)
    assert not panel.run_button.isEnabled()
    qtbot.waitUntil(lambda: dock.app.runs.latest.done > 2, timeout=TIMEOUT)
    assert panel.progress.isVisibleTo(panel)
    qtbot.mouseClick(panel.cancel_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: not dock.app.runs.running, timeout=TIMEOUT)
    assert panel.run_button.isEnabled()
    assert not panel.cancel_button.isEnabled()
    assert not panel.progress.isVisibleTo(panel)
    assert "Cancelled" in panel.status.text()


@pytest.mark.slow
def test_an_error_resets_the_panel(qtbot, dock, ct_path, notifications):
    open_ct(qtbot, dock, ct_path)
    choose(dock, "die")
    # What the program notes of the CT is told when it is opened, not once more by the run.
    told = [record.severity.value for record in notifications]
    run(qtbot, dock)
    assert [record.severity.value for record in notifications] == [*told, "error"]
    assert told.count("info") <= 1
    assert dock.run_panel.run_button.isEnabled()
    assert not dock.run_panel.progress.isVisibleTo(dock.run_panel)


def test_a_bad_file_is_explained(qtbot, dock, tmp_path, notifications):
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"nothing")
    drop(dock, bad)
    qtbot.waitUntil(lambda: bool(notifications), timeout=TIMEOUT)
    assert "bad.nii.gz" in notifications[0].message
    assert notifications[0].severity.value == "error"


@pytest.mark.slow
def test_the_combo_follows_the_layers(qtbot, window, dock, ct_path):
    first = open_ct(qtbot, dock, ct_path)
    second = open_ct(qtbot, dock, ct_path)
    combo = dock.ct_panel.combo
    assert dock.ct_panel.layer is second
    first.name = "renamed"
    assert combo.choices == (first, second)
    assert combo.native.itemText(0) == "renamed"
    assert dock.ct_panel.layer is second
    window.add_image(np.zeros((5, 5)), name="flat")
    window.add_labels(np.zeros((5, 5, 5), np.uint8))
    assert len(combo.choices) == 2
    window.layers.remove(second)
    assert dock.ct_panel.layer is first
    window.layers.clear()
    assert dock.ct_panel.layer is None
    assert not dock.run_panel.run_button.isEnabled()


@pytest.mark.slow
def test_a_closed_dock_loses_nothing(qtbot, window, dock, ct_path):
    open_ct(qtbot, dock, ct_path)
    choose(dock, "slow")
    qtbot.mouseClick(dock.run_panel.run_button, Qt.MouseButton.LeftButton)
    app = dock.app
    qtbot.waitUntil(lambda: app.runs.latest.done > 1, timeout=TIMEOUT)
    window.window.remove_dock_widget(dock.parent())
    _, again = window.window.add_plugin_dock_widget("napari-pancreas-seg", "Pancreas segmentation")
    assert again is not dock
    assert again.app is app
    assert again.run_panel.cancel_button.isEnabled()
    qtbot.waitUntil(lambda: not app.runs.running, timeout=TIMEOUT)
    assert "mL" in again.run_panel.status.text()
    assert again.app.session.mask is app.runs.latest.labels


@pytest.mark.slow
def test_a_dock_that_is_opened_again_goes_on_with_the_chosen_ct(qtbot, window, dock, volume):
    app = dock.app
    first, second = (Layer.create(*ct_layer_data(volume, name)) for name in ("first", "second"))
    for layer in (first, second):
        window.add_layer(layer)
    dock.ct_panel.combo.value = first
    masks = [window.add_labels(np.zeros(first.data.shape, np.uint8)) for _ in range(2)]
    app.session.mask = masks[0]
    dock.parent().destroyOnClose()  # the dock's ×
    qtbot.waitUntil(lambda: not isalive(dock), timeout=TIMEOUT)
    _, again = window.window.add_plugin_dock_widget("napari-pancreas-seg", "Pancreas segmentation")
    assert app.session.ct is again.ct_panel.layer is first
    assert app.session.mask is again.ct_panel.mask_combo.value is masks[0]
    again.ct_panel.combo.value = second
    first.name = "renamed"
    assert app.session.ct is second
    # On the way from one dock to another it stays what it is.
    window.window.remove_dock_widget(again)
    window.window.add_dock_widget(again)
    qtbot.wait(50)
    assert isalive(again)


@pytest.mark.slow
def test_models_are_listed_in_the_background(qtbot, window, monkeypatch, tiny_card):
    from napari_pancreas_seg.model import bundle

    entries = [
        bundle.ModelEntry("other", "cached", {**tiny_card, "description": ["none that one reads"]}),
        bundle.ModelEntry("default", "bundled", {**tiny_card, "description": "Finds it."}),
    ]
    monkeypatch.setattr(bundle, "list_models", lambda: entries)
    dock = PancreasDock(window)
    panel = dock.model_panel
    qtbot.waitUntil(lambda: len(panel.combo) == 2, timeout=TIMEOUT)
    assert panel.combo.choices == ("default", "other")
    assert panel.model == "default"
    assert "Finds it." in panel.combo.native.itemData(0, Qt.ItemDataRole.ToolTipRole)


@pytest.mark.slow
def test_a_model_from_a_file(dock, tiny_card, tmp_path, monkeypatch):
    from napari_pancreas_seg.errors import PancreasSegError

    folder, panel = tmp_path / "bundle", dock.model_panel
    folder.mkdir()
    (folder / "card.json").write_text(json.dumps(tiny_card))
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr("card.json", json.dumps({**tiny_card, "name": "packed"}))
    packed = tmp_path / "packed.zip"
    for picked, model, name in (
        (folder / "card.json", folder, "tiny"),
        (packed, packed, "packed"),
    ):
        monkeypatch.setattr(
            "qtpy.QtWidgets.QFileDialog.getOpenFileName", lambda *_, path=picked: (str(path), "")
        )
        panel.file_button.click()
        assert panel.model == str(model) and panel.combo.current_choice == name
    with pytest.raises(PancreasSegError):
        panel.use_file(tmp_path)


@pytest.mark.slow
def test_one_attention_gate_at_a_time(qtbot, window, dock, ct_path):
    open_ct(qtbot, dock, ct_path)
    panel = dock.attention_panel
    run(qtbot, dock)
    assert window.layers["case 7 attention 1"].visible
    assert "case 7 attention 2" not in window.layers
    assert panel.boxes["attention 1"].value
    assert not panel.boxes["attention 3"].enabled  # the fake has two gates
    panel.boxes["attention 2"].native.click()
    assert not panel.boxes["attention 1"].value
    assert not window.layers["case 7 attention 1"].visible
    assert window.layers["case 7 attention 2"].visible
    window.layers["case 7 attention 2"].visible = False
    assert not panel.boxes["attention 2"].value
    panel.opacity.value = 0.3
    panel.colors.value = "turbo"
    for word in ("attention 1", "attention 2"):
        assert window.layers[f"case 7 {word}"].opacity == pytest.approx(0.3)
        assert "turbo" in window.layers[f"case 7 {word}"].colormap.name
        assert window.layers[f"case 7 {word}"].contrast_limits == [0, 1]


@pytest.mark.slow
def test_it_becomes_the_preferred_reader_once_asked(qtbot, dock):
    from napari.plugins.utils import get_preferred_reader

    action = dock.ct_panel.reader_action
    assert action.isVisible() and action in dock.ct_panel.menu.actions()
    action.trigger()
    assert get_preferred_reader("x.nii.gz") == "napari-pancreas-seg"
    assert not action.isVisible()


@pytest.mark.slow
def test_the_palette_presses_the_buttons(qtbot, window, dock, ct_path):
    from napari._app_model import get_app_model

    open_ct(qtbot, dock, ct_path)
    get_app_model().commands.execute_command("napari-pancreas-seg.run").result()
    runs = dock.app.runs
    qtbot.waitUntil(lambda: runs.latest is not None and not runs.running, timeout=TIMEOUT)
    assert runs.latest.labels in window.layers


@pytest.mark.slow
def test_run_and_export_have_keys(qtbot, window, dock, ct_path, tmp_path, monkeypatch):
    shift, canvas = Qt.KeyboardModifier.ShiftModifier, window.window._qt_viewer
    monkeypatch.setattr(
        "qtpy.QtWidgets.QFileDialog.getSaveFileName",
        lambda *_: (str(tmp_path / "by key.nii.gz"), "NIfTI (*.nii.gz *.nii)"),
    )
    open_ct(qtbot, dock, ct_path)
    qtbot.keyClick(canvas, Qt.Key.Key_R, shift)
    assert dock.app.runs.running
    qtbot.waitUntil(lambda: not dock.app.runs.running, timeout=TIMEOUT)
    qtbot.keyClick(canvas, Qt.Key.Key_E, shift)
    qtbot.waitUntil((tmp_path / "by key.nii.gz").exists, timeout=TIMEOUT)


@pytest.mark.slow
def test_ctrl_s_ends_in_our_export_if_the_mask_is_selected(
    qtbot, window, dock, ct_path, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(
        "qtpy.QtWidgets.QFileDialog.getSaveFileName",
        lambda *args: asked.append(args[1]) or (str(tmp_path / "s.nii.gz"), ""),
    )
    ct = open_ct(qtbot, dock, ct_path)
    labels = run(qtbot, dock)
    canvas = canvas_widget(window)
    for layer, seen in ((ct, []), (labels, [f"Export '{labels.name}'"])):
        window.layers.selection.active = layer
        override = QKeyEvent(QEvent.Type.ShortcutOverride, Qt.Key.Key_S, CONTROL)
        override.ignore()
        QApplication.sendEvent(canvas, override)
        assert override.isAccepted() == bool(seen)
        if seen:  # else it is napari's own
            QApplication.sendEvent(canvas, QKeyEvent(QEvent.Type.KeyPress, Qt.Key.Key_S, CONTROL))
        assert asked == seen
    qtbot.waitUntil((tmp_path / "s.nii.gz").exists, timeout=TIMEOUT)


def test_the_menu_names_the_dock_once(window):
    from napari._app_model import get_app_model

    titles = [
        str(getattr(item, "command", item).title)
        for item in get_app_model().menus.get_menu("napari/plugins")
    ]
    (own,) = [title for title in titles if title.startswith("Pancreas segmentation")]
    assert own.count("Pancreas segmentation") == 1


@pytest.mark.slow
def test_the_process_ends_with_the_window(qtbot, make_napari_viewer, network, volume):
    viewer = make_napari_viewer()
    app = app_of(viewer)
    app.network.process = network
    network.warm_up("box")
    assert network.pid is not None
    viewer.close()
    qtbot.waitUntil(lambda: network.pid is None, timeout=TIMEOUT)


@pytest.mark.slow
def test_a_ct_warms_the_network_up(qtbot, window, network, ct_path, monkeypatch):
    asked = []

    def preference(name):
        # napari reads every plugin's manifest for the first answer: not in the GUI thread.
        asked.append(threading.current_thread() is threading.main_thread())
        return True

    monkeypatch.setattr("napari_pancreas_seg._napari.run.network.preference", preference)
    app_of(window).network.warm_up_allowed = True
    dock = PancreasDock(window)
    window.window.add_dock_widget(dock)
    assert network.pid is None
    open_ct(qtbot, dock, ct_path)
    qtbot.waitUntil(lambda: network.pid is not None, timeout=TIMEOUT)
    assert asked and not any(asked)


@pytest.mark.slow
def test_the_network_starts_once_that_is_wished(qtbot, viewer, app, network, volume):
    viewer.add_layer(Layer.create(*ct_layer_data(volume)))
    page = get_plugin_settings("napari-pancreas-seg").panel
    page.warm_up = False
    try:
        dock = PancreasDock(viewer)
        qtbot.addWidget(dock)
        choose(dock, "box")
        warm, soon = app.network._newest, dock._soon
        qtbot.waitUntil(lambda: not (dock._steps or soon.isActive() or warm.busy), timeout=TIMEOUT)
        assert network.pid is None
        page.update({"warm_up": True})  # as napari's Preferences do
        qtbot.waitUntil(lambda: network.pid is not None, timeout=TIMEOUT)
    finally:
        page.warm_up = True


@pytest.mark.slow
def test_the_first_ct_waits_for_no_library(ct_path):
    """They are loaded soon after the panel is there; a fresh process shows it."""
    script = f"""
import sys
from qtpy.QtWidgets import QApplication
qapp = QApplication([])
from napari.layers import Layer
from napari_pancreas_seg._napari.layers.reader import get_ready, read_layer
get_ready()
before = set(sys.modules)
Layer.create(*read_layer({str(ct_path)!r})[0])
print(sorted(name for name in set(sys.modules) - before if name.split(".")[0] in
    ("scipy", "pandas", "skimage", "nibabel")))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr


@pytest.mark.slow
def test_an_idle_widget_imports_no_framework(ct_path, tmp_path):
    script = f"""
import sys
import napari
from qtpy.QtTest import QTest
from napari_pancreas_seg._napari.app import app_of
from napari_pancreas_seg._napari.layers.reader import get_reader
from napari_pancreas_seg._napari.widget import PancreasDock
viewer = napari.Viewer(show=False)
app_of(viewer).network.warm_up_allowed = False
dock = PancreasDock(viewer)
viewer.window.add_dock_widget(dock)
layers = get_reader({str(ct_path)!r})({str(ct_path)!r})
QTest.qWait(800)
assert len(layers) == 1
print(sorted({{"keras", "tensorflow", "jax", "torch"}} & set(sys.modules)))
viewer.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr


@pytest.mark.parametrize("width", [604, 1600])
def test_the_bar_covers_no_letter(app, qtbot, width):
    canvas = QWidget()
    qtbot.addWidget(canvas)
    bar = CanvasBar(app, canvas)
    app.views._on_drag("Case 1 of 2: case_0001_portal_venous, segmented")
    canvas.resize(width, 729)
    canvas.show()
    letter = QRect(width // 2 - 12, 12, 24, 26)
    assert bar.isVisible() and not bar.geometry().intersects(letter)
    assert (bar.y() == MARGIN) is (width == 1600)  # out of the way where there is room


def test_there_is_one_dock_however_it_is_opened(window, qtbot):
    first = open_dock(window)
    assert open_dock(window) is first
    second = PancreasDock(window)  # as napari's menu does, under another name
    window.window.add_dock_widget(second, name="Another name")
    docks = [w for w in window.window.dock_widgets.values() if isinstance(w, PancreasDock)]
    assert docks == [second]
    assert open_dock(window) is second
    window.window.remove_dock_widget(second)
    third = open_dock(window)
    assert third is not second and third.app is second.app
