"""The dock stands still: the wheel only scrolls, Run never moves, every tab fits a small screen."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from napari.layers import Layer
from qtpy.QtCore import QEvent, QPoint, QPointF, QRect, Qt
from qtpy.QtGui import QFocusEvent, QWheelEvent
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractSlider,
    QAbstractSpinBox,
    QApplication,
    QComboBox,
    QLabel,
    QScrollBar,
    QSlider,
    QWidget,
)

from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.layers.bridge import ct_layer_data, labels_layer_data
from napari_pancreas_seg._napari.layers.placement import show_slice, slice_on_screen
from napari_pancreas_seg._napari.run.model_mask import ModelMask
from napari_pancreas_seg._napari.widget import PancreasDock
from napari_pancreas_seg._napari.widget.dock import TABS
from napari_pancreas_seg._napari.widget.ui import OneLine, choice, offer
from napari_pancreas_seg.io import save_mask
from napari_pancreas_seg.volume import CTVolume

TIMEOUT = 30_000
LEFT = Qt.MouseButton.LeftButton
SMALL = (330, 700)
"""What a window of 1280×800, with the title that a desktop gives it, leaves for the dock."""


@pytest.fixture
def dock(qtbot, viewer, app):
    app.network.warm_up_allowed = False
    dock = PancreasDock(viewer)
    qtbot.addWidget(dock)
    dock.resize(*SMALL)
    dock.show()
    qtbot.waitUntil(lambda: not dock._steps, timeout=TIMEOUT)
    return dock


@pytest.fixture
def segmented(qtbot, dock, viewer, volume):
    """The dock with a CT, its mask and another one to compare it with."""
    viewer.add_layer(Layer.create(*ct_layer_data(volume)))
    run(qtbot, dock, "box")
    placement = dock.app.session.placement(dock.app.session.ct)
    reference = np.ones(volume.hu.shape, np.uint8)
    mask = dock.app.session.mask
    viewer.add_layer(Layer.create(*labels_layer_data(reference, placement, "by hand")))
    viewer.layers.selection.active = mask
    dock.measure_panel.reference_combo.value = viewer.layers["by hand"]
    names = dock.measure_panel.values
    qtbot.waitUntil(lambda: names["dice"].text() != "–", timeout=TIMEOUT)
    return dock


def run(qtbot, dock, model: str) -> None:
    dock.model_panel.use_named(model)
    qtbot.mouseClick(dock.run_panel.run_button, LEFT)
    qtbot.waitUntil(lambda: not dock.app.runs.running, timeout=TIMEOUT)


def turn(widget: QWidget, notches: int = 3) -> None:
    """Turn the wheel over the middle of a widget; what is not taken goes on, as Qt has it."""
    for _ in range(notches):
        place: QWidget | None = widget
        while place is not None and not _is_taken(place):
            place = place.parentWidget()


def _is_taken(widget: QWidget) -> bool:
    """Send a notch to a widget; Qt hands on only what came from the system."""
    if widget.isEnabled():
        middle = widget.rect().center()
        event = QWheelEvent(
            QPointF(middle),
            QPointF(widget.mapToGlobal(middle)),
            QPoint(),
            QPoint(0, -120),
            Qt.MouseButton.NoButton,
            Qt.KeyboardModifier.NoModifier,
            Qt.ScrollPhase.NoScrollPhase,
            False,
        )
        QApplication.sendEvent(widget, event)
        return event.isAccepted()
    return False


def state(dock) -> list[object]:
    """Everything in the dock that has a value, but the places of its scroll bars."""
    values: list[object] = [dock.tabs.currentIndex()]
    for widget in dock.findChildren(QWidget):
        if isinstance(widget, QAbstractSlider) and not isinstance(widget, QScrollBar):
            values.append(widget.value())
        elif isinstance(widget, QAbstractSpinBox):
            values.append(widget.text())
        elif isinstance(widget, QComboBox):
            values.append(widget.currentIndex())
        elif isinstance(widget, QAbstractButton):
            values.append(widget.isChecked())
    return values


@pytest.mark.slow
def test_three_notches_anywhere_change_nothing_but_the_scroll(qtbot, segmented):
    dock = segmented
    scrolled = []
    dock.resize(SMALL[0], 300)  # so low that every tab scrolls
    for number in range(dock.tabs.count()):
        dock.tabs.setCurrentIndex(number)
        page = dock.tabs.currentWidget()
        before, settings = state(dock), dict(dock.app.settings._values)
        turned = [dock.tabs.tabBar(), *dock.findChildren(QWidget)]
        for widget in turned:
            if widget.isVisible() and not isinstance(widget, QScrollBar):
                page.verticalScrollBar().setValue(0)
                turn(widget)
                assert state(dock) == before, (dock.tabs.tabText(number), widget, widget.toolTip())
                if isinstance(widget, QComboBox | QAbstractSpinBox | QAbstractSlider):
                    inside = page.isAncestorOf(widget)
                    scrolled += [inside] if page.verticalScrollBar().value() > 0 else []
        assert dock.app.settings._values == settings
    assert len(scrolled) > 5 and all(scrolled)


@pytest.mark.parametrize("reason", [Qt.FocusReason.MouseFocusReason, Qt.FocusReason.TabFocusReason])
def test_a_click_gives_the_wheel_to_a_number_and_tab_does_not(segmented, reason):
    dock = segmented
    dock.tabs.setCurrentIndex(1)
    field = dock.correct_panel.smooth_mm
    before = field.value
    QApplication.sendEvent(field.native, QFocusEvent(QEvent.Type.FocusIn, reason))
    turn(field.native, 1)
    assert (field.value != before) is (reason == Qt.FocusReason.MouseFocusReason)
    now = field.value
    QApplication.sendEvent(field.native, QFocusEvent(QEvent.Type.FocusOut, reason))
    turn(field.native, 1)
    assert field.value == now


def test_a_click_gives_a_choice_neither_wheel_nor_keys(segmented):
    for number in range(segmented.tabs.count()):
        segmented.tabs.setCurrentIndex(number)
    boxes = segmented.findChildren(QComboBox)
    assert len(boxes) > 5
    assert {box.focusPolicy() for box in boxes} == {Qt.FocusPolicy.TabFocus}


@pytest.mark.slow
def test_run_never_moves_by_a_pixel(qtbot, dock, viewer, app, volume, tmp_path):
    button, places = dock.run_panel.run_button, set()

    def note() -> None:
        QApplication.processEvents()
        place = button.mapToGlobal(QPoint())
        places.add((place.x(), place.y(), button.width(), button.height()))

    note()
    viewer.add_layer(Layer.create(*ct_layer_data(volume, "a CT whose name is long " * 8)))
    note()
    app.network.why_no_gpu = "No GPU: this computer has no NVIDIA driver. " * 5
    app.network.devices_changed.emit()
    viewer.add_image(np.zeros((10, 32, 3)), name="photo", rgb=True)  # which is not offered
    note()
    dock.model_panel.use_named("slow")
    qtbot.mouseClick(button, LEFT)
    note()
    qtbot.waitUntil(lambda: app.runs.latest.done > 2, timeout=TIMEOUT)
    note()
    dock.run_panel.cancel_button.click()
    qtbot.waitUntil(lambda: not app.runs.running, timeout=TIMEOUT)
    assert dock.run_panel.keep_button.isVisible() and not dock.run_panel.cancel_button.isVisible()
    note()
    dock.run_panel.keep_button.click()
    note()
    run(qtbot, dock, "box")
    note()
    for number in range(dock.tabs.count()):
        dock.tabs.setCurrentIndex(number)
        note()
    dock.correct_panel.buttons["smooth"].click()
    qtbot.waitUntil(lambda: not app.editor.working, timeout=TIMEOUT)
    note()
    assert len(places) == 1, places


@pytest.mark.slow
@pytest.mark.parametrize("with_mask", [False, True])
def test_every_tab_is_complete_on_a_small_screen(request, with_mask):
    dock = request.getfixturevalue("segmented" if with_mask else "dock")
    for number in range(dock.tabs.count()):
        dock.tabs.setCurrentIndex(number)
        QApplication.processEvents()
        page = dock.tabs.currentWidget()
        assert page.verticalScrollBar().maximum() == 0, dock.tabs.tabText(number)
        assert page.widget().minimumSizeHint().width() <= page.viewport().width()
    assert [dock.tabs.tabText(i).replace("&&", "&") for i in range(5)] == [
        "Segment",
        "Correct",
        "Measure & export",
        "Worklist",
        "Improve",
    ]
    bar = dock.tabs.tabBar()
    assert bar.tabRect(4).right() <= bar.width(), "the last tab is seen"


def test_a_long_text_ends_in_dots_and_is_whole_in_its_tooltip(qtbot):
    line = OneLine()
    qtbot.addWidget(line)
    line.resize(120, 20)
    line.show()
    height = line.height()
    line.setText("A status that is much longer than the line\nand has two of them")
    assert QLabel.text(line).endswith("…")
    assert line.toolTip() == "A status that is much longer than the line\nand has two of them"
    assert line.height() == height


def test_a_long_choice_ends_in_dots_too(qtbot):
    field = choice("Which one.", empty="None of them yet")
    qtbot.addWidget(field.native)
    field.native.setFixedWidth(200)
    field.native.show()
    long = "a mask with a name that is much longer than there is room"
    offer(field, [(f"{long} 1", 1), (f"{long} 2", 2), ("short", 3)])
    pictures = []
    for value in (1, 2, 3):
        offer(field, [(f"{long} 1", 1), (f"{long} 2", 2), ("short", 3)], value)
        pictures.append(field.native.grab().toImage())
    assert pictures[0] == pictures[1] != pictures[2]
    offer(field, [(f"{long} 1", 1)], 1)
    assert field.native.toolTip() == f"{long} 1\nWhich one."
    offer(field, [])
    assert field.native.grab().toImage() not in pictures


def test_the_window_and_the_plane_on_screen_are_marked(segmented, viewer):
    panel, ct = segmented.view_panel, segmented.app.session.ct
    marked = lambda buttons: [name for name, part in buttons.items() if part.isChecked()]  # noqa: E731
    assert marked(panel.presets) == ["Abdomen"] and marked(panel.planes) == ["axial"]
    panel.presets["Bone"].click()
    panel.planes["coronal"].click()
    assert marked(panel.presets) == ["Bone"] and marked(panel.planes) == ["coronal"]
    panel.planes["coronal"].click()
    assert marked(panel.planes) == ["coronal"], "a second click unmarks nothing"
    ct.contrast_limits = (0, 80)
    assert marked(panel.presets) == []
    segmented.app.maps.show(segmented.app.session.reference, "", False)  # napari warns of outlines
    segmented.app.session.mask.contour = 0  # napari warns of outlines in 3-D
    viewer.dims.ndisplay = 3
    assert marked(panel.planes) == []


def test_measure_and_export_name_their_mask(segmented, viewer):
    dock = segmented
    assert dock.measure_panel.mask_name.text() == f"Mask: {dock.app.session.mask.name}"
    viewer.layers.selection.active = viewer.layers["by hand"]
    assert dock.measure_panel.mask_name.text() == "Mask: by hand"
    assert dock.export_panel.mask_name.text() == "Mask: by hand"


def test_the_brush_is_sized_in_mm(segmented, app):
    field, mask = segmented.correct_panel.brush_mm, app.session.mask
    _, dy, dx = app.session.reference.grid.spacing
    pixel = (dy * dx) ** 0.5
    assert field.value == 6.0
    assert mask.brush_size == round(6.0 / pixel)
    field.value = 9.0
    assert mask.brush_size == round(9.0 / pixel)
    mask.brush_size = 4  # by napari's own slider, or [ and ]
    assert field.value == pytest.approx(4 * pixel, abs=0.05)
    assert app.settings.get("correct/brush_mm", 6.0) == field.value


def test_a_brush_beyond_what_the_panel_offers_is_its_largest_or_smallest(segmented, app):
    field, mask = segmented.correct_panel.brush_mm, app.session.mask
    mask.brush_size = 400  # by a long drag with Alt
    assert field.value == app.brush.mm == 200
    app.settings.set("correct/brush_mm", 0.0)  # of tiny pixels, rounded
    app.brush.changed.emit()
    assert field.value == app.brush.mm == 0.1


def test_dicom_seg_has_one_ending_and_a_box_for_lost_uids(segmented, monkeypatch, tmp_path: Path):
    panel, asked = segmented.export_panel, []
    monkeypatch.setattr(
        segmented.app.files, "export", lambda layer, path, **how: asked.append((path, how))
    )
    for typed, chosen, expected in (
        ("x.nii.dcm", "DICOM-SEG (*.dcm)", "x.dcm"),
        ("x", "DICOM-SEG (*.dcm)", "x.dcm"),
        ("x.nii.gz", "NIfTI (*.nii.gz *.nii)", "x.nii.gz"),
        ("x.nii.mha", "MetaImage (*.mha)", "x.mha"),
        ("x.mhd", "MetaImage (*.mha)", "x.mhd"),  # which is refused in a sentence
        ("a.b.stl", "Surface (*.stl *.ply *.obj)", "a.b.stl"),
    ):
        monkeypatch.setattr(
            "qtpy.QtWidgets.QFileDialog.getSaveFileName",
            lambda *_, typed=typed, chosen=chosen: (str(tmp_path / typed), chosen),
        )
        panel.ask_and_export()
        assert asked[-1][0] == str(tmp_path / expected)
        panel._idle()
    assert asked[-1][1]["mint_uids"] is False
    panel.mint_uids.value = True
    panel.ask_and_export()
    assert asked[-1][1]["mint_uids"] is True


def test_a_mask_that_is_opened_is_not_chosen_over_another(segmented, viewer, app, volume):
    chosen = app.session.mask
    opened = np.zeros(volume.grid.shape, np.uint8)
    layer = Layer.create(*labels_layer_data(opened, volume, "theirs"))
    compat.add_unselected(viewer, layer)  # as `LayerFiles.open` does
    segmented.refresh()
    assert app.session.mask is chosen
    assert "theirs" in [layer.name for layer in segmented.ct_panel.mask_combo.choices]


def test_a_mask_that_napari_opens_and_selects_is_not_chosen_over_another(
    qtbot, segmented, viewer, app, volume
):
    chosen = app.session.mask
    opened = np.zeros(volume.grid.shape, np.uint8)
    layer = viewer.add_layer(Layer.create(*labels_layer_data(opened, volume, "theirs")))
    assert app.session.mask is chosen
    qtbot.waitUntil(lambda: viewer.layers.selection.active is chosen, timeout=TIMEOUT)
    viewer.layers.selection.active = layer  # a click in the layer list
    assert app.session.mask is layer


def test_a_mask_of_another_phase_is_offered_and_chosen_by_a_person_alone(
    segmented, viewer, app, volume
):
    panel, ct, found = segmented.ct_panel, app.session.ct, app.session.mask
    first = app.session.placement(ct)
    phase = ct_layer_data(replace(volume, hu=volume.hu + 1), "phase")
    second = viewer.add_layer(Layer.create(*phase))
    assert app.session.ct is second and app.session.mask is None and not found.visible
    later = Layer.create(*labels_layer_data(np.zeros_like(found.data), first, "found later"))
    app.session.masks[later] = ModelMask(first.reference)
    compat.add_unselected(viewer, later)
    assert app.session.mask is None and {found, later} < set(panel.mask_combo.choices)
    panel.mask_combo.value = found
    segmented.refresh()
    assert app.session.mask is found and found.visible
    panel.combo.value = ct
    assert app.session.mask is later, "it is new, and of this one"
    panel.combo.value = second
    assert app.session.mask is None


def test_a_mask_of_a_file_belongs_to_the_ct_that_it_was_opened_with(segmented, viewer, app, volume):
    panel, ct, found = segmented.ct_panel, app.session.ct, app.session.mask
    data = np.zeros(volume.grid.shape, np.uint8)
    theirs = Layer.create(*labels_layer_data(data, volume, "theirs"))
    compat.add_unselected(viewer, theirs)
    assert app.session.mask is found and app.session.is_opened(theirs)
    phase = ct_layer_data(replace(volume, hu=volume.hu + 1), "phase")
    second = viewer.add_layer(Layer.create(*phase))
    assert app.session.ct is second and app.session.mask is None
    panel.mask_combo.value = theirs
    panel.combo.value = ct
    assert app.session.mask is viewer.layers.selection.active is found
    panel.combo.value = second
    assert app.session.mask is viewer.layers.selection.active is theirs, "it was chosen here"


def test_an_opened_mask_is_shown_where_there_is_most_of_it(qtbot, dock, viewer, volume, tmp_path):
    app = dock.app
    ct = viewer.add_layer(Layer.create(*ct_layer_data(volume)))
    mask = np.zeros(volume.grid.shape, np.uint8)
    mask[7, 4:9, 4:9] = mask[8, 4:6, 4:6] = 1
    reference = app.session.placement(ct).reference
    show_slice(viewer, ct, reference, 2)
    app.files.open(save_mask(mask, volume, tmp_path / "m.nii.gz"))
    qtbot.waitUntil(lambda: app.session.mask is not None, timeout=20_000)
    assert slice_on_screen(viewer, ct, reference) == 7
    viewer.layers.remove(app.session.mask)
    show_slice(viewer, ct, reference, 8)
    app.files.open(tmp_path / "m.nii.gz")
    qtbot.waitUntil(lambda: app.session.mask is not None, timeout=20_000)
    assert slice_on_screen(viewer, ct, reference) == 8, "some of it is seen"


def test_the_mask_that_is_chosen_is_the_one_that_tools_act_on(segmented, viewer, app):
    other = viewer.layers["by hand"]
    other.visible = False
    segmented.ct_panel.mask_combo.value = other
    assert app.session.mask is viewer.layers.selection.active is other and other.visible


def test_a_picture_of_another_plugin_does_not_take_the_ct_s_place(segmented, viewer, app):
    ct, mask = app.session.ct, app.session.mask
    viewer.add_image(np.zeros(ct.data.shape), name="filtered", rgb=False)
    segmented.refresh()
    assert (app.session.ct, app.session.mask) == (ct, mask) and ct.visible and mask.visible
    assert "filtered" in [layer.name for layer in segmented.ct_panel.combo.choices]
    viewer.layers.remove(ct)
    segmented.refresh()
    assert app.session.ct is viewer.layers["filtered"], "it is the only one now"


def test_the_mask_that_the_dialog_named_is_written(segmented, viewer, app, monkeypatch, tmp_path):
    panel, first, written = segmented.export_panel, app.session.mask, []
    monkeypatch.setattr(panel._files, "export", lambda layer, *_, **how: written.append(layer))

    def ask(parent, title, *_):
        assert first.name in title
        app.session.mask = viewer.layers["by hand"]  # a run ends meanwhile
        return str(tmp_path / "m.nii.gz"), ""

    ask_from = "napari_pancreas_seg._napari.widget.export_panel.QFileDialog.getSaveFileName"
    monkeypatch.setattr(ask_from, ask)
    panel.ask_and_export()
    assert written == [first]


def test_a_mask_that_is_exported_is_not_chosen_by_it(segmented, viewer, app, monkeypatch):
    asked, chosen = [], app.session.mask
    ask = "napari_pancreas_seg._napari.widget.export_panel.QFileDialog.getSaveFileName"
    monkeypatch.setattr(ask, lambda _, title, *__: asked.append(title) or ("", ""))
    segmented.export_panel.ask_and_export(viewer.layers["by hand"])
    assert asked == ["Export 'by hand'"] and app.session.mask is chosen


def test_what_a_run_is_writing_is_not_exported(
    segmented, app, monkeypatch, tmp_path, notifications
):
    panel, written = segmented.export_panel, []
    monkeypatch.setattr(panel._files, "export", lambda layer, *_, **how: written.append(layer))
    run = app.runs.latest
    monkeypatch.setattr(run, "running", True)
    panel.export_to(tmp_path / "m.nii.gz", layer=run.labels)
    assert not written and "is being segmented" in notifications[-1].message
    panel.export_to(tmp_path / "m.nii.gz", layer=segmented.app.session.layers[0])
    assert len(written) == 1, "another one is"


def test_a_stroke_during_the_writing_is_not_said_to_be_written(qtbot, segmented, app, tmp_path):
    panel, mask = segmented.export_panel, app.session.mask
    panel.export_to(tmp_path / "m.nii.gz")
    mask.data_setitem((np.array([0]), np.array([0]), np.array([0])), 1)
    app.watch.notify()
    qtbot.waitUntil(panel.export_button.isEnabled, timeout=TIMEOUT)
    assert panel.status.text() == "Changed since it was written."
    panel.export_to(tmp_path / "n.nii.gz")
    qtbot.waitUntil(panel.export_button.isEnabled, timeout=TIMEOUT)
    assert panel.status.text() == "Written to n.nii.gz."


def test_each_ct_has_its_chosen_mask_again(segmented, viewer, app):
    ct, chosen = app.session.ct, app.session.mask
    assert len(segmented.ct_panel.mask_combo.choices) == 2
    longer = np.full((40, 32, 16), 30, np.int16)
    longer = CTVolume.from_source_array(longer, np.diag([1, 1, 3, 1]))
    other = viewer.add_layer(Layer.create(*ct_layer_data(longer, "other")))
    assert app.session.ct is other and app.session.mask is None
    segmented.ct_panel.combo.value = ct
    assert app.session.mask is chosen


def places(dock: PancreasDock) -> dict[str, QRect]:
    """Where everything of the header lies, in the dock."""
    header = (dock._ct_panel, dock._run_panel)
    parts = [part for panel in header for part in (panel, *panel.findChildren(QWidget))]
    found = [part for part in parts if part.isVisible()]
    return {f"{n} {type(part).__name__}": at(part, dock) for n, part in enumerate(found)}


def at(part: QWidget, dock: PancreasDock) -> QRect:
    return QRect(part.mapTo(dock, QPoint(0, 0)), part.size())


def test_the_dock_opens_in_turns_and_nothing_of_the_header_moves(qtbot, viewer, app):
    app.network.warm_up_allowed = False
    dock = PancreasDock(viewer)
    qtbot.addWidget(dock)
    dock.resize(*SMALL)
    dock.show()
    QApplication.sendPostedEvents()  # it is laid out, and no timer has fired yet
    assert dock._app is None and not dock._panels
    before, turns = places(dock), len(dock._steps)
    assert turns > 5 and "Run" in {b.text() for b in dock.findChildren(QAbstractButton)}
    seen = []
    while dock._steps:
        QApplication.processEvents()
        assert len(dock._steps) >= turns - len(seen) - 1, "one step in a turn"
        seen.append(places(dock))
    assert dock._app is app and set(dock._panels) >= {"ct", "run", "model", "attention"}
    assert all(now == before for now in seen)


def test_a_click_before_the_dock_is_complete_works(qtbot, viewer, app, volume, monkeypatch):
    app.network.warm_up_allowed = False
    viewer.add_layer(Layer.create(*ct_layer_data(volume)))
    dock = PancreasDock(viewer)
    qtbot.addWidget(dock)
    assert dock._app is None
    qtbot.mouseClick(dock._run_panel.run_button, LEFT)
    assert app.runs.running and app.runs.latest.name == volume.name
    app.runs.latest.cancel()
    qtbot.waitUntil(lambda: not app.runs.running, timeout=TIMEOUT)
    asked = []
    answer = lambda *_: asked.append(True) or ([], "")  # noqa: E731
    monkeypatch.setattr("qtpy.QtWidgets.QFileDialog.getOpenFileNames", answer)
    later = PancreasDock(viewer)
    qtbot.addWidget(later)
    qtbot.mouseClick(later._ct_panel.open_button, LEFT)
    assert asked


def test_a_command_waits_until_the_dock_is_complete(qtbot, viewer, app, monkeypatch):
    done = []
    monkeypatch.setattr(type(app.views), "next_preset", lambda _: done.append(list(dock._steps)))
    app.network.warm_up_allowed = False
    dock = PancreasDock(viewer)
    qtbot.addWidget(dock)
    dock.perform("next_window")
    assert not done
    qtbot.waitUntil(lambda: done == [[]], timeout=TIMEOUT)
    dock.perform("next_window")
    assert len(done) == 2


def test_a_step_that_fails_keeps_no_command_from_its_turn(qtbot, viewer, app, monkeypatch):
    done = []
    monkeypatch.setattr(type(app.views), "next_preset", lambda _: done.append(True))

    def fail(self):
        raise RuntimeError("a fault")

    monkeypatch.setattr(PancreasDock, "_register_keys", fail)
    with qtbot.capture_exceptions() as raised:
        app.network.warm_up_allowed = False
        dock = PancreasDock(viewer)
        qtbot.addWidget(dock)
        dock.perform("next_window")
        qtbot.waitUntil(lambda: done == [True], timeout=TIMEOUT)
    assert [str(error) for _, error, _ in raised] == ["a fault"] and not dock._steps


def test_a_dock_without_images_does_not_offer_to_run(qtbot, viewer, app):
    app.network.warm_up_allowed = False
    dock = PancreasDock(viewer)
    qtbot.addWidget(dock)
    assert not dock._run_panel.run_button.isEnabled()


def test_a_tab_is_filled_when_it_is_first_shown(qtbot, viewer, app, monkeypatch):
    made = []
    for names in TABS.values():
        for name in names:
            kind = kind_of(name)
            monkeypatch.setattr(kind, "__init__", noted(kind.__init__, made))
    app.network.warm_up_allowed = False
    dock = PancreasDock(viewer)
    qtbot.addWidget(dock)
    qtbot.waitUntil(lambda: len(made) == 4, timeout=TIMEOUT)
    assert made == ["ModelPanel", "OptionsPanel", "ViewPanel", "AttentionPanel"]
    dock.tabs.setCurrentIndex(1)
    assert made[4:] == ["CorrectPanel"]
    assert dock.export_panel.isEnabled() and made[5:] == ["MeasurePanel", "ExportPanel"]
    dock.tabs.setCurrentIndex(2)
    assert len(made) == 7


def kind_of(name: str) -> type[QWidget]:
    module = import_module(f"napari_pancreas_seg._napari.widget.{name}_panel")
    return getattr(module, f"{name.capitalize()}Panel")


def noted(init, made):
    def wrapped(self, *args):
        made.append(type(self).__name__)
        init(self, *args)

    return wrapped


def test_the_brush_has_its_size_before_its_tab_was_shown(qtbot, viewer, app, volume):
    app.network.warm_up_allowed = False
    dock = PancreasDock(viewer)
    qtbot.addWidget(dock)
    session = dock.app.session
    viewer.add_layer(Layer.create(*ct_layer_data(volume)))
    mask = viewer.add_labels(np.zeros(volume.grid.shape, np.uint8))
    _, dy, dx = session.reference.grid.spacing
    assert mask.brush_size == round(6 / (dy * dx) ** 0.5)
    mask.brush_size = 20
    assert dock.correct_panel.brush_mm.value == pytest.approx(20 * (dy * dx) ** 0.5, abs=0.06)


@pytest.mark.slow
def test_a_click_beside_a_slider_s_handle_moves_it(qtbot, segmented):
    dock = segmented
    for field in (dock.options_panel.threshold, dock.attention_panel.opacity):
        bar, before = field.native.findChild(QSlider), field.value
        qtbot.mouseClick(bar, LEFT, pos=QPoint(bar.width() - 4, bar.height() // 2))
        assert field.value == pytest.approx(before + 0.05, abs=1e-6)
