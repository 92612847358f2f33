"""Adding corrected cases and improving the model from the dock, with a child that only tells."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from napari.layers import Layer
from qtpy.QtCore import Qt

from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.layers.bridge import ct_layer_data, labels_layer_data
from napari_pancreas_seg._napari.widget import PancreasDock
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.training.data.layouts.corrected_cases import (
    labels_of,
    list_corrected_cases,
)
from napari_pancreas_seg.training.data.layouts.opening import open_dataset

FAKE = Path(__file__).with_name("fake_finetune.py")
TIMEOUT = 30_000
LEFT = Qt.MouseButton.LeftButton


@pytest.fixture
def dock(qtbot, viewer, app, volume):
    app.network.warm_up_allowed = False
    app.improvement.command = [sys.executable, str(FAKE)]
    dock = PancreasDock(viewer)
    qtbot.addWidget(dock)
    viewer.add_layer(Layer.create(*ct_layer_data(volume)))
    return dock


def choose(dock, model: str) -> None:
    panel = dock.model_panel
    panel._know(model, model, "")
    panel.use_named(model)


def correct(qtbot, dock, reviewed=(3, 4)):
    choose(dock, "box")
    qtbot.mouseClick(dock.run_panel.run_button, LEFT)
    qtbot.waitUntil(lambda: not dock.app.runs.running, timeout=TIMEOUT)
    layer = dock.app.runs.latest.labels
    layer.data_setitem((np.array([3]), np.array([0]), np.array([0])), 1)
    dock.app.review.set_reviewed(layer, reviewed)
    return layer


def add(qtbot, dock):
    qtbot.mouseClick(dock.improve_panel.add_button, LEFT)
    qtbot.waitUntil(lambda: not dock.app.improvement.working, timeout=TIMEOUT)


@pytest.fixture
def with_case(qtbot, dock):
    correct(qtbot, dock)
    add(qtbot, dock)
    improvement = dock.app.improvement
    qtbot.waitUntil(lambda: len(improvement.cases) == 1, timeout=TIMEOUT)
    return dock


def improve(qtbot, dock, model):
    choose(dock, model)
    qtbot.mouseClick(dock.improve_panel.improve_button, LEFT)
    assert dock.app.improvement.running


def test_a_case_is_added_with_its_reviewed_slices(qtbot, dock, volume):
    panel, improvement = dock.improve_panel, dock.app.improvement
    assert not panel.add_button.isEnabled() and not panel.improve_button.isEnabled()
    layer = correct(qtbot, dock, ())
    assert "Mark the slices" in panel.slices.text() and not panel.add_button.isEnabled()
    dock.app.review.set_reviewed(layer, {3, 4})
    assert "2 slices of this mask are reviewed" in panel.slices.text()
    add(qtbot, dock)
    qtbot.waitUntil(lambda: panel.cases_button.text() == "1 case", timeout=TIMEOUT)
    (case,) = open_dataset(improvement.folder).cases
    read, mask = case.load()
    assert case.slices == (3, 4)
    np.testing.assert_array_equal(read.hu, volume.hu)
    np.testing.assert_array_equal(mask, layer.data)
    assert mask[3, 0, 0] == 1
    assert panel.improve_button.isEnabled()


@pytest.mark.slow
def test_a_mask_that_nobody_changed_is_said_to_teach_nothing(qtbot, dock):
    panel, app = dock.improve_panel, dock.app
    choose(dock, "box")
    qtbot.mouseClick(dock.run_panel.run_button, LEFT)
    qtbot.waitUntil(lambda: not app.runs.running, timeout=TIMEOUT)
    qtbot.waitUntil(lambda: app.review.facts is not None, timeout=TIMEOUT)
    layer = app.runs.latest.labels
    app.review.set_reviewed(layer, (3, 4))
    assert "teaches nothing" in panel.slices.text()
    layer.data_setitem((np.array([7]), np.array([0]), np.array([0])), 1)
    qtbot.waitUntil(lambda: bool(app.review.facts.edited[7]), timeout=TIMEOUT)
    assert "teaches nothing" in panel.slices.text(), "that slice is not reviewed"
    app.review.set_reviewed(layer, (3, 7))
    assert "teaches nothing" not in panel.slices.text()


def test_a_mask_from_a_file_is_added_with_the_names_of_its_labels(qtbot, dock, viewer, volume):
    mask, labels = np.zeros(volume.grid.shape, np.uint8), {"pancreas": 1, "liver": 2}
    mask[3, 2:9, 2:5], mask[3, 2:9, 6:9] = 1, 2
    layer = Layer.create(*labels_layer_data(mask, volume, "theirs", labels=labels))
    dock.app.session.mask = viewer.add_layer(layer)
    dock.app.review.set_reviewed(layer, (3,))
    add(qtbot, dock)
    assert labels_of(dock.app.improvement.folder) == labels


def test_the_same_ct_is_replaced_when_told(qtbot, with_case):
    dock = with_case
    panel, improvement = dock.improve_panel, dock.app.improvement
    dock.app.review.set_reviewed(dock.app.session.mask, {3, 4, 5})
    add(qtbot, dock)
    assert panel.question.isVisibleTo(panel) and "2 slices" in panel.question.text()
    panel.leave_button.click()
    assert not panel.question.isVisibleTo(panel)
    assert list_corrected_cases(improvement.folder)[0].reviewed == (3, 4)
    add(qtbot, dock)
    panel.replace_button.click()
    qtbot.waitUntil(lambda: not improvement.working, timeout=TIMEOUT)
    assert not panel.question.isVisibleTo(panel)
    assert [c.reviewed for c in list_corrected_cases(improvement.folder)] == [(3, 4, 5)]


def test_with_another_ct_chosen_no_case_is_replaced(qtbot, with_case, viewer, volume):
    dock = with_case
    improvement = dock.app.improvement
    dock.app.review.set_reviewed(dock.app.session.mask, {3, 4, 5})
    add(qtbot, dock)
    assert improvement.known is not None
    viewer.add_layer(Layer.create(*ct_layer_data(replace(volume, hu=volume.hu + 1))))
    assert improvement.known is None and not dock.improve_panel.replace_button.isVisibleTo(dock)


def test_a_case_is_removed(qtbot, with_case):
    panel = with_case.improve_panel
    (sub,) = [action.menu() for action in panel.cases_button.menu().actions()]
    assert "2 slices" in sub.title()
    sub.actions()[0].trigger()
    qtbot.waitUntil(lambda: panel.cases_button.text() == "0 cases", timeout=TIMEOUT)
    assert list_corrected_cases(with_case.app.improvement.folder) == []
    assert not panel.improve_button.isEnabled()


def test_the_new_model_is_chosen_and_one_click_leads_back(qtbot, with_case):
    dock, panel = with_case, with_case.improve_panel
    improve(qtbot, dock, "better")
    assert panel.cancel_button.isVisibleTo(panel) and not panel.improve_button.isEnabled()
    qtbot.waitUntil(lambda: not dock.app.improvement.running, timeout=TIMEOUT)
    assert "0.61 before, 0.74 after" in panel.result.text()
    assert "synthetic CT: 0.90 before, 0.89 after" in panel.result.text()
    assert dock.model_panel.model == "improved-1"
    assert dock.app.settings.get("model/name", "") == "improved-1"
    assert panel.back_button.isVisibleTo(panel)
    assert "is called improved-1 and is chosen now" in panel.result.text()
    panel.back_button.click()
    assert dock.model_panel.model == "better"
    assert "is called improved-1 and is not chosen" in panel.result.text()
    assert panel.back_button.text() == "Use the new model"
    panel.back_button.click()
    assert dock.model_panel.model == "improved-1" and "is chosen now" in panel.result.text()


@pytest.mark.parametrize("keep", [False, True])
def test_a_model_that_is_no_better_is_not_chosen_nor_kept_unasked(
    qtbot, with_case, monkeypatch, keep
):
    dock, panel, removed = with_case, with_case.improve_panel, []
    monkeypatch.setattr("napari_pancreas_seg.model.library.remove_model", removed.append)
    panel.keep.value = keep
    improve(qtbot, dock, "worse")
    qtbot.waitUntil(lambda: not dock.app.improvement.running, timeout=TIMEOUT)
    assert dock.model_panel.model == "worse"
    assert "did not become better" in panel.result.text()
    qtbot.waitUntil(lambda: removed == ([] if keep else ["improved-1"]), timeout=TIMEOUT)
    assert ("was not kept" in panel.result.text()) is not keep
    assert panel.back_button.isVisibleTo(panel) is keep
    assert ("improved-1 and is not chosen" in panel.result.text()) is keep
    if keep:
        panel.back_button.click()
        assert "improved-1 and is chosen now" in panel.result.text()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("fail", "was not kept. Add cases or give it more time."),
        ("die", "ended unexpectedly (status 3)"),
    ],
)
def test_what_goes_wrong_is_one_sentence(qtbot, with_case, notifications, model, words):
    dock, panel = with_case, with_case.improve_panel
    improve(qtbot, dock, model)
    qtbot.waitUntil(lambda: not dock.app.improvement.running, timeout=TIMEOUT)
    assert words in notifications[-1].message and "Traceback" not in notifications[-1].message
    assert dock.model_panel.model == model and panel.improve_button.isEnabled()


@pytest.mark.slow
def test_progress_cancel_and_nothing_left(qtbot, with_case, tmp_path, notifications):
    dock, panel = with_case, with_case.improve_panel
    file = tmp_path / "pid"
    panel.minutes.value = 2
    improve(qtbot, dock, f"slow {file}")
    qtbot.waitUntil(lambda: panel.progress.value() == 25, timeout=TIMEOUT)
    assert not panel.progress.isHidden()
    assert panel.step.text() == "Trial: the decoder, about 10 minutes left"
    qtbot.waitUntil(lambda: file.exists() and file.read_text() != "", timeout=TIMEOUT)
    child = dock.app.improvement._child
    panel.cancel_button.click()
    qtbot.waitUntil(lambda: not dock.app.improvement.running, timeout=TIMEOUT)
    assert child.poll() is not None
    assert not notifications and panel.progress.isHidden()
    assert len(dock.app.improvement.cases) == 1


def test_a_model_that_was_being_written_is_removed_after_cancel(
    qtbot, with_case, tmp_path, monkeypatch
):
    dock, panel, removed = with_case, with_case.improve_panel, []
    monkeypatch.setattr("napari_pancreas_seg.model.library.remove_model", removed.append)
    improve(qtbot, dock, f"last {tmp_path / 'go'}")
    qtbot.waitUntil(lambda: panel.step.text().startswith("Writing"), timeout=TIMEOUT)
    panel.cancel_button.click()
    (tmp_path / "go").touch()
    qtbot.waitUntil(lambda: removed == ["improved-1"], timeout=TIMEOUT)
    assert not dock.app.improvement.running and panel.result.text() == ""
    assert dock.model_panel.model != "improved-1"


def test_closing_ends_the_child(qtbot, with_case, tmp_path):
    dock: PancreasDock = with_case
    app: App = dock.app
    improve(qtbot, dock, f"slow {tmp_path / 'pid'}")
    child = app.improvement._child
    app.close()
    assert child.wait(10) is not None
    assert len(list_corrected_cases(app.improvement.folder)) == 1


def test_the_child_ends_with_its_parent(qtbot, with_case, tmp_path):
    """A killed napari closes the pipe; nothing else tells the child."""
    file = tmp_path / "pid"
    improve(qtbot, with_case, f"slow {file}")
    qtbot.waitUntil(lambda: file.exists() and file.read_text() != "", timeout=TIMEOUT)
    child = with_case.app.improvement._child
    os.close(os.dup(child.stdin.fileno()))
    child.stdin.close()
    assert child.wait(10) == 130


def test_the_very_same_case_is_not_asked_about(qtbot, with_case, notifications):
    dock, panel = with_case, with_case.improve_panel
    add(qtbot, dock)
    assert not panel.question.isVisibleTo(panel)
    assert "Already among your cases, unchanged" in notifications[-1].message
    dock.app.review.set_reviewed(dock.app.session.mask, {3, 4, 5})
    add(qtbot, dock)
    assert "with this mask, but 2 slices reviewed" in panel.question.text()
    panel.leave_button.click()
    dock.app.session.mask.data_setitem((np.array([4]), np.array([0]), np.array([0])), 1)
    add(qtbot, dock)
    assert "with another mask, of which 2 slices reviewed" in panel.question.text()


def test_without_a_place_for_temporary_files_it_is_said(qtbot, dock, with_case, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(PancreasSegError, match=r"could not be started.*No space"):
        dock.app.improvement.start("default", 1)
    assert not dock.app.improvement.running
