"""The dock's panels, driven through Qt: what they remember, offer and ask."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from napari.layers import Layer
from qtpy.QtCore import QEvent, Qt

from napari_pancreas_seg._napari.layers.bridge import ct_layer_data, labels_layer_data
from napari_pancreas_seg._napari.run.past_result import kept_of, past_result
from napari_pancreas_seg._napari.settings import Settings, settings_path
from napari_pancreas_seg._napari.widget import PancreasDock
from napari_pancreas_seg._napari.widget.dialogs import card_html
from napari_pancreas_seg.volume import CTVolume, Grid

TIMEOUT = 30_000
LEFT = Qt.MouseButton.LeftButton


@pytest.fixture
def dock(qtbot, viewer, app, volume):
    app.network.warm_up_allowed = False
    dock = PancreasDock(viewer)
    qtbot.addWidget(dock)
    viewer.add_layer(Layer.create(*ct_layer_data(volume)))
    return dock


def choose(dock, model: str) -> None:
    panel = dock.model_panel
    panel._know(model, model, "")
    panel.use_named(model)


def run(qtbot, dock, model: str):
    choose(dock, model)
    qtbot.mouseClick(dock.run_panel.run_button, LEFT)
    qtbot.waitUntil(lambda: not dock.app.runs.running, timeout=TIMEOUT)
    return dock.app.runs.latest.labels


def test_the_slider_moves_the_mask_and_strokes_stay(qtbot, dock):
    labels = run(qtbot, dock, "graded")
    panel, app = dock.options_panel, dock.app
    assert app.session.mask is labels
    assert panel.threshold.value == 0.5 and panel.value.text() == "0.50"
    labels.data_setitem((np.array([5]), np.array([0]), np.array([0])), 1)
    before = int(labels.data.sum())
    with qtbot.waitSignal(app.rethreshold.done, timeout=TIMEOUT):
        panel.threshold.value = 0.2
    assert labels.data.sum() > before and labels.data[5, 0, 0] == 1
    assert panel.value.text() == "0.20"
    # Of the model's mask, not of the strokes: those are no part of what is told.
    assert dock.run_panel.status.text().startswith("Model: ")
    assert "at threshold 0.20" in dock.run_panel.status.text()
    assert panel.options.threshold == 0.2
    with qtbot.waitSignal(app.rethreshold.done, timeout=TIMEOUT):
        panel.own.click()
    assert labels.data.sum() == before
    assert panel.options.threshold is None
    with qtbot.waitSignal(app.rethreshold.done, timeout=TIMEOUT):
        panel.postprocess.native.click()
    assert app.session.masks[labels].result.options.postprocess is False
    # What is told of the last run's mask is not told of another.
    another = run(qtbot, dock, "graded")
    assert another is not labels and dock.run_panel.status.text()
    app.session.mask = labels
    assert dock.run_panel.status.text() == ""
    app.session.mask = another
    assert dock.run_panel.status.text().startswith("Model: ")


@pytest.mark.slow
def test_cancel_asks_and_discard_takes_back(qtbot, dock, viewer):
    choose(dock, "slow")
    panel = dock.run_panel
    qtbot.mouseClick(panel.run_button, LEFT)
    assert not panel.keep_button.isVisibleTo(panel)
    qtbot.waitUntil(lambda: dock.app.runs.latest.done > 2, timeout=TIMEOUT)
    assert "of 10 slices" in panel.status.text()
    qtbot.mouseClick(panel.cancel_button, LEFT)
    qtbot.waitUntil(lambda: not dock.app.runs.running, timeout=TIMEOUT)
    assert panel.keep_button.isVisibleTo(panel) and panel.discard_button.isVisibleTo(panel)
    assert panel.status.text().startswith("Cancelled after")
    longer = CTVolume.from_source_array(np.full((40, 32, 16), 30, np.int16), np.eye(4))
    viewer.add_layer(Layer.create(*ct_layer_data(longer, "other")))
    assert panel.status.text().startswith("CT: Cancelled after")  # not of the one on screen
    panel.discard_button.click()
    assert not panel.keep_button.isVisibleTo(panel)
    assert [layer.name for layer in viewer.layers] == ["CT", "other"]


@pytest.mark.slow
def test_another_run_keeps_what_a_cancelled_one_found(qtbot, dock):
    choose(dock, "slow")
    qtbot.mouseClick(dock.run_panel.run_button, LEFT)
    qtbot.waitUntil(lambda: dock.app.runs.latest.done > 2, timeout=TIMEOUT)
    dock.run_panel.cancel_button.click()
    qtbot.waitUntil(lambda: not dock.app.runs.running, timeout=TIMEOUT)
    first = dock.app.runs.latest
    first.labels.data_setitem((np.array([0]), np.array([9]), np.array([9])), 1)
    left = first.labels.data.copy()
    run(qtbot, dock, "box")
    assert not first.can_discard
    assert np.array_equal(first.labels.data, left)
    assert dock.app.runs.latest.labels is not first.labels


def test_a_region_of_slices(qtbot, dock):
    form = dock.options_panel.region
    form.first.value = 3
    form.last.value = 6
    assert form.all.isEnabled()
    assert dock.options_panel.options.slices == (3, 7)
    labels = run(qtbot, dock, "graded")
    assert np.flatnonzero(labels.data.any(axis=(1, 2))).tolist() == [3, 4, 5, 6]


def test_a_region_goes_with_its_ct(dock, viewer):
    ct, form = dock.app.session.ct, dock.options_panel.region
    corners = np.array([[0, 5, 5], [0, 5, 20], [0, 20, 20], [0, 20, 5]])
    form.box.value = viewer.add_shapes(corners, scale=ct.scale, units=ct.units)
    form.first.value = 3
    assert dock.options_panel.options.box is not None
    longer = CTVolume.from_source_array(np.full((40, 32, 16), 30, np.int16), np.eye(4))
    viewer.add_layer(Layer.create(*ct_layer_data(longer, "other")))
    assert dock.app.session.ct.name == "other"
    assert dock.options_panel.options.slices is dock.options_panel.options.box is None


def test_gpus_by_name_once_they_are_known(qtbot, dock):
    combo = dock.model_panel.device_combo
    assert combo.choices == ("auto", "cpu")
    dock.app.network.devices = [{"id": "cpu", "name": "CPU"}, {"id": "gpu:0", "name": "GPU 0: it"}]
    dock.app.network.devices_changed.emit()
    assert combo.native.itemText(2) == "GPU 0: it"
    combo.value = "gpu:0"
    assert dock.model_panel.device == "gpu:0"
    dock.app.network.devices = [{"id": "cpu", "name": "CPU"}]
    dock.app.network.why_no_gpu = "No GPU: this computer has no NVIDIA driver."
    dock.app.network.devices_changed.emit()
    assert dock.model_panel.device == "auto"
    assert "NVIDIA" in dock.model_panel.device_note.text()


def test_the_mask_that_a_run_fills_anew_is_chosen(qtbot, dock, viewer):
    first = run(qtbot, dock, "box")
    first.data_setitem((np.array([5]), np.array([0]), np.array([0])), 1)
    second = run(qtbot, dock, "box")
    dock.ct_panel.mask_combo.value = first
    second.visible = False
    assert run(qtbot, dock, "graded") is second is dock.app.session.mask is not first
    assert dock.ct_panel.mask_combo.value is second is viewer.layers.selection.active
    assert second.visible and first.data[5, 0, 0] == 1


def test_settings_are_remembered_until_reset(qtbot, dock, viewer):
    dock.attention_panel.opacity.value = 0.2
    dock.options_panel.postprocess.native.click()
    dock.app.settings.save()
    again = PancreasDock(viewer)
    qtbot.addWidget(again)
    assert again.attention_panel.opacity.value == 0.2
    assert not again.options_panel.postprocess.value
    again.app.settings.clear()
    assert again.attention_panel.opacity.value == 0.6
    assert again.options_panel.postprocess.value


def test_the_threshold_that_is_set_outlives_the_panel(qtbot, dock, viewer):
    first, app = PancreasDock(viewer), dock.app
    first.options_panel.threshold.value = 0.8
    options = first.options_panel.how
    assert app.runs.how()[1] == replace(options, device="auto") and options.threshold == 0.8
    with qtbot.waitSignal(first.destroyed, timeout=TIMEOUT):
        first.deleteLater()
    assert app.runs.how()[1].threshold == 0.8
    again = PancreasDock(viewer)
    qtbot.addWidget(again)
    assert again.options_panel.threshold.value == 0.8 and again.options_panel.how == options
    qtbot.mouseClick(again.options_panel.own, LEFT)
    assert app.runs.remembered()[1].threshold is None


def test_a_reset_leaves_the_mask_and_its_undo(qtbot, dock):
    labels = run(qtbot, dock, "graded")
    app, panel = dock.app, dock.options_panel
    with qtbot.waitSignal(app.rethreshold.done, timeout=TIMEOUT):
        panel.threshold.value = 0.8
    panel.every_slice.native.click()
    labels.data_setitem((np.array([5]), np.array([0]), np.array([0])), 1)
    before = labels.data.copy()
    app.settings.clear()
    assert not app.rethreshold.newest.busy
    assert np.array_equal(labels.data, before) and len(labels._undo_history) == 1
    assert app.session.masks[labels].result.threshold == 0.8
    assert not panel.every_slice.value and panel.options.threshold is None


@pytest.mark.slow
def test_masks_of_two_patients_are_not_mixed(qtbot, dock, viewer, volume, tmp_path, monkeypatch):
    labels = run(qtbot, dock, "box")
    app, panel = dock.app, dock.ct_panel
    first, measured = app.session.ct, dock.measure_panel.values["volume"]
    qtbot.waitUntil(lambda: "mL" in measured.text(), timeout=TIMEOUT)
    # Of the same shape: another patient, and another phase of the first one.
    wider = CTVolume(volume.hu, Grid(volume.grid.shape, np.diag([5.0, 1, 1, 1])), volume.source)
    path = replace(volume.source, path=tmp_path / "phase.nii.gz")
    for layer in (
        ct_layer_data(wider, "patient"),
        ct_layer_data(CTVolume(volume.hu, volume.grid, path), "phase"),
    ):
        viewer.add_layer(Layer.create(*layer))
    panel.combo.value = viewer.layers["patient"]
    assert app.session.ct.name == "patient" and app.session.mask is None
    assert measured.text() == "–" and not dock.export_panel.export_button.isEnabled()
    app.session.mask = labels  # by a script
    assert dock.measure_panel._job(labels) is None
    panel.combo.value = viewer.layers["phase"]
    assert app.session.mask is None
    panel.mask_combo.value = labels
    asked = []
    monkeypatch.setattr(
        "qtpy.QtWidgets.QFileDialog.getSaveFileName",
        lambda *args: asked.append(args[2]) or ("", ""),
    )
    dock.export_panel.ask_and_export()
    assert asked == [f"{app.session.placement(first).reference.name}_mask.nii.gz"]


def test_what_is_drawn_on_a_ct_is_no_mask_of_another_one_of_its_shape(qtbot, dock, viewer, volume):
    drawn = viewer.add_labels(np.zeros(volume.grid.shape, np.uint8), name="Labels")
    first, session = dock.app.session.ct, dock.app.session
    assert session.mask is drawn
    with qtbot.waitSignal(session.mask_changed, timeout=TIMEOUT):
        drawn.data_setitem((np.array([5]), np.array([6]), np.array([7])), 1)
    moved = CTVolume.from_source_array(np.zeros((40, 32, 10), np.int16), np.diag([1, 1, 5, 1]))
    assert moved.grid.shape == volume.grid.shape
    data, options, _ = ct_layer_data(moved, "another patient")
    other = viewer.add_image(data, **options)
    assert session.ct is other and session.mask is None and not drawn.visible
    assert session.ct_of(drawn).id == session.placement(first).reference.id
    dock.ct_panel.combo.value = first
    assert session.mask is drawn and drawn.visible


def test_hu_are_those_of_the_chosen_phase(qtbot, dock, viewer, volume):
    first, phase = dock.app.session.ct, replace(volume, hu=volume.hu + 50)
    second = viewer.add_layer(Layer.create(*ct_layer_data(phase, "phase")))
    mask = np.zeros(volume.grid.shape, np.uint8)
    mask[3:6, 10:20, 10:20] = 1
    opened = viewer.add_layer(Layer.create(*labels_layer_data(mask, volume, "theirs")))
    hu = dock.measure_panel.values["hu"]
    for ct in (first, second):
        dock.ct_panel.combo.value = ct
        dock.ct_panel.mask_combo.value = opened
        wanted = f"{ct.data[mask > 0].mean():.0f} ±"
        qtbot.waitUntil(lambda wanted=wanted: wanted in hu.text(), timeout=TIMEOUT)


def test_settings_survive_a_bad_file(tmp_path):
    settings = Settings()
    settings.set("a/b", 3)
    settings.save()
    assert Settings().get("a/b", 1) == 3
    assert Settings().get("a/b", "text") == "text"  # another type: a former version's, perhaps
    settings_path().write_text("{nonsense")
    assert Settings().get("a/b", 1) == 1


def test_settings_are_kept_even_when_qt_has_ended(qapp):
    settings = Settings()
    settings.set("a/b", 3)
    settings._soon.deleteLater()
    qapp.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    settings.save()
    assert Settings().get("a/b", 1) == 3


@pytest.mark.slow
def test_a_mask_that_is_selected_is_the_mask(qtbot, dock, viewer):
    first = viewer.add_labels(np.zeros((10, 32, 40), np.uint8), name="one")
    second = viewer.add_labels(np.zeros((10, 32, 40), np.uint8), name="two")
    assert dock.app.session.mask is second
    viewer.layers.selection.active = first
    assert dock.app.session.mask is first
    told = []
    dock.app.session.mask_changed.connect(told.append)
    # The second one has got another colour than the first one's: that is no change of voxels.
    with qtbot.waitSignal(dock.app.session.mask_changed, timeout=TIMEOUT):
        first.paint((1, 5, 5), 1)
    assert told == [first]
    second.contour = 2
    qtbot.wait(150)
    told.clear()
    viewer.dims.set_current_step(0, 3)
    with qtbot.waitSignal(dock.app.session.mask_changed, timeout=TIMEOUT):
        first.undo()
    assert told == [first]


@pytest.mark.slow
def test_of_a_restored_mask_the_options_of_the_next_run_stay(qtbot, dock, viewer):
    labels = run(qtbot, dock, "graded")
    panel, made = dock.options_panel, dock.app.session.masks[labels]
    made.result = past_result(kept_of(made.result, edited=True), made.copy, made.reference.grid)
    dock.app.session.mask_chosen.emit()
    panel.threshold.value = 0.2
    panel.postprocess.native.click()
    labels.visible = False  # which brings every panel up to date
    assert panel.options.threshold == 0.2 and panel.value.text() == "0.20"
    assert panel.options.postprocess is False
    viewer.add_labels(np.zeros_like(labels.data))
    dock.app.session.mask = labels  # again: what it was made with is shown
    assert panel.options.threshold is None and panel.options.postprocess is True


def test_the_threshold_of_a_mask_of_no_run_is_said_to_be_the_next_run_s(qtbot, dock, viewer):
    fields = dock.options_panel.threshold, dock.options_panel.postprocess
    assert all("no second run" in one.tooltip for one in fields)
    drawn = viewer.add_labels(np.zeros_like(dock.app.session.ct.data, np.uint8))
    assert dock.app.session.mask is drawn
    assert all("with the next run" in one.tooltip for one in fields)
    run(qtbot, dock, "graded")
    assert all("no second run" in one.tooltip for one in fields)


def test_the_card_says_what_matters(tiny_card):
    card = {
        **tiny_card,
        "licence": "BSD-3-Clause",
        "citation": "Roth 2016. doi:10.7937/K9/TCIA.2016.tNB1kqBU. arXiv:1804.03999.",
        "validation": {"mean": 0.8, "n": 10, "worst": 0.63, "what": "per <patient>"},
    }
    page = card_html(card)
    assert "Not for clinical use" in page
    assert "Dice 0.80 (n = 10; worst 0.63)" in page and "per &lt;patient&gt;" in page
    assert 'href="https://doi.org/10.7937/K9/TCIA.2016.tNB1kqBU"' in page
    assert 'href="https://arxiv.org/abs/1804.03999"' in page
    assert "BSD-3-Clause" in page


@pytest.mark.parametrize("validation", [{"mean": None}, {"mean": "0.8"}, {"n": 0}])
def test_a_card_may_hold_figures_that_are_none(tiny_card, validation):
    assert "no measurement" in card_html({**tiny_card, "validation": validation})
    page = card_html({**tiny_card, "validation": {**validation, "mean": 0.8, "sd": "small"}})
    assert "Dice 0.80 (n" in page
