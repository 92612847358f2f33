"""Corrections by key in a real window, and what is left when the dock is closed."""

from __future__ import annotations

import numpy as np
import pytest
from napari.layers import Labels
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest

from napari_pancreas_seg._napari.app import app_of
from napari_pancreas_seg._napari.layers.placement import slice_on_screen

pytestmark = pytest.mark.gui

TIMEOUT = 20_000
NO, CONTROL = Qt.KeyboardModifier.NoModifier, Qt.KeyboardModifier.ControlModifier


def open_dock(window):
    _, dock = window.window.add_plugin_dock_widget("napari-pancreas-seg", "Pancreas segmentation")
    return dock


@pytest.fixture
def mask(qtbot, window, ct_path) -> Labels:
    """What the fake network found: a box in every slice but the first."""
    app = app_of(window)
    open_dock(window).model_panel.use_named("box")
    app.files.open(ct_path)
    qtbot.waitUntil(lambda: len(window.layers) == 1, timeout=TIMEOUT)
    app.runs.start(window.layers[0], "box")
    qtbot.waitUntil(lambda: not app.runs.running, timeout=TIMEOUT)
    assert app.session.mask is app.runs.latest.labels
    return app.session.mask


def press(qtbot, window, key, modifier=NO) -> None:
    """Press a key where the picture has the focus, and wait for what it does."""
    QTest.keyClick(window.window._qt_viewer, key, modifier)
    app = app_of(window)
    qtbot.waitUntil(lambda: not app.editor.working, timeout=TIMEOUT)


@pytest.mark.slow
def test_an_expert_never_leaves_the_keyboard(qtbot, window, mask):
    app = app_of(window)
    whole = mask.data.copy()
    mask.data[4:6] = 0
    mask.refresh()
    cut = mask.data.copy()
    app.review.show(4)
    press(qtbot, window, Qt.Key.Key_I)
    assert app.editor.proposal is not None
    press(qtbot, window, Qt.Key.Key_Return)
    assert np.array_equal(mask.data, whole)
    press(qtbot, window, Qt.Key.Key_Z, CONTROL)
    assert np.array_equal(mask.data, cut)
    press(qtbot, window, Qt.Key.Key_R)
    assert app.editor.proposal.found.change.slices == [4]
    press(qtbot, window, Qt.Key.Key_Escape)
    assert app.editor.proposal is None and np.array_equal(mask.data, cut)
    press(qtbot, window, Qt.Key.Key_R)
    press(qtbot, window, Qt.Key.Key_Enter)
    assert mask.data[4].any() and not mask.data[5].any()
    # The polygon tool has its own Enter and Esc back.
    mask.mode = "polygon"
    press(qtbot, window, Qt.Key.Key_Escape)
    assert mask.mode == "polygon"


@pytest.mark.slow
def test_the_review_survives_the_dock(qtbot, window, mask):
    app = app_of(window)
    dock = open_dock(window)
    held = [False] + 9 * [True]
    qtbot.waitUntil(
        lambda: app.review.facts is not None and (app.review.facts.area_mm2 > 0).tolist() == held,
        timeout=TIMEOUT,
    )
    app.review.show(3)
    press(qtbot, window, Qt.Key.Key_Q)
    assert slice_on_screen(window, mask, app.session.reference) == 4
    window.window.remove_dock_widget(dock)
    press(qtbot, window, Qt.Key.Key_Q)
    again = open_dock(window)
    assert again is not dock
    assert app.review.reviewed == {3, 4}
    assert again.correct_panel.progress.text().startswith("2 of")
    assert slice_on_screen(window, mask, app.session.reference) == 5


@pytest.mark.slow
def test_the_palette_corrects_too(qtbot, window, mask):
    from napari._app_model import get_app_model

    before = np.count_nonzero(mask.data)
    app = app_of(window)
    app.settings.set("correct/grow_mm", 1.0)
    get_app_model().commands.execute_command("napari-pancreas-seg.grow").result()
    qtbot.waitUntil(lambda: np.count_nonzero(mask.data) > before, timeout=TIMEOUT)
    qtbot.waitUntil(lambda: not app.editor.working, timeout=TIMEOUT)
