"""What is private in napari and touched all the same: does this napari still have it?"""

from __future__ import annotations

import gc
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pint
import pytest
from napari.components import ViewerModel
from napari.layers import Labels, Layer
from napari.utils.key_bindings import coerce_keybinding
from pint.registry import LazyRegistry

import napari_pancreas_seg._napari as room
from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.layers.bridge import ct_layer_data


@pytest.fixture
def layer() -> Labels:
    return Labels(np.zeros((4, 8, 8), np.uint8))


def paint(layer: Labels) -> None:
    layer.brush_size = 3
    layer.paint((1, 4, 4), 1)


def test_only_this_file_touches_what_is_private():
    private = re.compile(
        r"_qt_window|_qt_viewer|_quit_app|_undo_history|_redo_history|_reset_history|_save_history"
        r"|_activate_on_insert|\._overlays|action_manager\._|class_keymap|slice_key|__wrapped__"
        r"|_VIEWER_MANAGERS|_get_manager|_brush_circle"
    )
    files = [f for f in Path(room.__file__).parent.rglob("*.py") if f.name != "compat.py"]
    assert [f.name for f in files if private.search(f.read_text(encoding="utf-8"))] == []


def test_a_proxy_is_unwrapped():
    viewer = ViewerModel()

    class Proxy:
        __wrapped__ = viewer

    assert compat.unwrapped(Proxy()) is viewer and compat.unwrapped(viewer) is viewer


@pytest.mark.gui
def test_the_window_of_a_viewer(window):
    assert compat.qt_window(window).isWindow() and compat.qt_window(ViewerModel()) is None
    assert not compat.is_closed_by_script(compat.qt_window(window))
    compat.qt_window(window)._qt_viewer.hide()  # what `viewer.close()` does first
    assert compat.is_closed_by_script(compat.qt_window(window))
    closed = []
    compat.close_window(
        SimpleNamespace(
            _quit_app=compat.qt_window(window)._quit_app, close=lambda **how: closed.append(how)
        )
    )
    assert len(closed) == 1 and "quit_app" in closed[0]


@pytest.mark.usefixtures("nothing_frozen")
def test_a_layer_is_added_unselected_and_removed_without_a_collection(layer):
    viewer = ViewerModel()
    chosen = viewer.add_labels(np.zeros((4, 8, 8), np.uint8))
    compat.add_unselected(viewer, layer)
    assert layer in viewer.layers and viewer.layers.selection.active is chosen
    viewer.add_labels(np.zeros((4, 8, 8), np.uint8), name="after")
    assert viewer.layers.selection.active.name == "after"
    frozen = []
    viewer.layers.events.removed.connect(lambda: frozen.append(gc.get_freeze_count() > 0))
    compat.remove_quickly(viewer, layer)
    assert layer not in viewer.layers and frozen == [True] and gc.get_freeze_count() == 0


@pytest.mark.usefixtures("nothing_frozen")
def test_what_the_caller_has_frozen_stays_frozen(layer):
    viewer = ViewerModel()
    compat.add_unselected(viewer, layer)
    gc.freeze()
    compat.remove_quickly(viewer, layer)
    assert layer not in viewer.layers and gc.get_freeze_count() > 0


def test_there_is_no_box_behind_the_brush(app, viewer):
    assert not viewer.canvas.overlays._brush_circle.box
    assert ViewerModel().canvas.overlays._brush_circle.box


def test_threads_that_need_units_first_do_not_get_half_of_them(volume):
    units = pint.get_application_registry()
    kept = units.get()
    units.set(LazyRegistry())
    try:
        with ThreadPoolExecutor(4) as threads:
            made = list(threads.map(lambda _: Layer.create(*ct_layer_data(volume)), range(4)))
    finally:
        units.set(kept)
    assert {tuple(map(str, layer.units)) for layer in made} == {("millimeter",) * 3}


def test_tool_overlays_are_hidden(layer):
    compat.hide_tool_overlays(layer)
    overlays = list(layer._overlays.values())
    assert overlays and not any(overlay.visible for overlay in overlays)


def test_the_history_of_labels(layer):
    steps = []
    layer.events.paint.connect(lambda event: steps.append(event.value))
    paint(layer)
    assert compat.steps_of_undo(layer) == (1, 0)
    assert compat.is_last_undo_step(layer, steps[-1])
    layer.undo()
    assert compat.steps_of_undo(layer) == (0, 1)
    assert not compat.is_last_undo_step(layer, steps[-1])
    where = (np.array([2]), np.array([3]), np.array([3]))
    layer.data[where] = 1
    compat.add_undo_step(layer, (where, np.array([0], np.uint8), np.array([1], np.uint8)))
    assert compat.steps_of_undo(layer)[0] == 1
    layer.undo()
    assert not layer.data.any()
    history = compat.forget_undo(layer)
    assert compat.steps_of_undo(layer) == (0, 0)
    compat.recall_undo(layer, history)
    layer.redo()
    assert layer.data.sum() == 1
    layer.undo()
    assert compat.steps_of_undo(layer) == (0, 1)
    compat.forget_redo(layer)
    assert compat.steps_of_undo(layer) == (0, 0)


def test_steps_by_hand_and_by_a_program_have_one_form(layer):
    steps = []
    layer.events.paint.connect(lambda event: steps.append(event.value))
    paint(layer)
    layer.data_setitem((np.array([0]), np.array([1]), np.array([2])), 5)
    assert [compat.is_by_hand(step) for step in steps] == [True, False]
    for step, value in zip(steps, (1, 5), strict=True):
        for indices, before, written in compat.edits(step):
            assert (layer.data[indices] == value).all() and not before.any()
            assert np.all(np.asarray(written) == value)


def test_actions_and_their_keys(app):
    from napari_pancreas_seg._napari.correct.keys import ACTIONS, register_actions

    register_actions()
    names = {action.id for action in ACTIONS}
    assert names <= set(compat.actions())
    assert any(compat.keys_of(name) for name in names) and compat.keys_of("nobody's") == []
    assert compat.takes_key(coerce_keybinding("Control-Z"))
    assert not compat.takes_key(coerce_keybinding("Control-F12"))


def test_orthogonal_views_are_found_when_open():
    assert compat.orthogonal_models(ViewerModel()) == []


def test_an_edit_is_found_in_the_history_until_it_is_undone(layer):
    paint(layer)
    edit = ((np.array([1]), np.array([0]), np.array([0])), np.array([0]), np.array([0]))
    compat.add_undo_step(layer, edit)
    for _ in range(2):
        assert compat.undo_step_of(layer, edit) is layer._undo_history[-1]
        assert [id(edit) in ids for ids in compat.edits_in_history(layer)] == [True, False]
        layer.undo()
        assert compat.undo_step_of(layer, edit) is None
        assert [id(edit) in ids for ids in compat.edits_in_history(layer)] == [False, True]
        layer.redo()
    layer.undo()
    layer.paint((2, 4, 4), 1)
    assert [id(edit) in ids for ids in compat.edits_in_history(layer)] == [False, False]
