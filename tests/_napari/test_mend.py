"""The Mend tool: strokes, what the network answers, late answers, and a mask that is carried on."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Labels, Layer
from napari.utils._proxies import ReadOnlyWrapper
from napari.utils.interactions import (
    mouse_double_click_callbacks,
    mouse_move_callbacks,
    mouse_press_callbacks,
    mouse_release_callbacks,
)
from napari.utils.key_bindings import KeymapHandler
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QWidget

from napari_pancreas_seg._napari.correct.apply import Target
from napari_pancreas_seg._napari.correct.keys import ACTIONS, perform, register_actions
from napari_pancreas_seg._napari.correct.strokes import STROKE_MM, Drag, dab
from napari_pancreas_seg._napari.layers.bridge import ct_layer_data, labels_layer_data
from napari_pancreas_seg._napari.layers.maps import PROBABILITY
from napari_pancreas_seg._napari.layers.placement import GridReference, show_slice
from napari_pancreas_seg._napari.widget.canvas_bar import CanvasBar
from napari_pancreas_seg._napari.widget.correct_panel import CorrectPanel
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import ScalarMap
from napari_pancreas_seg.volume import Grid, Source

TIMEOUT = 20_000
GLAND = (slice(8, 20), slice(10, 24))
"""Where the gland is in every slice, for the network that stands in for ours."""
LEFT, RIGHT = 1, 2


class FakeMender:
    """Answers strokes as the network would if it knew the gland; keeps what it was asked.

    Strokes that add bring the whole gland, those that take away all that lies outside of it. A
    neighbour's mask is proposed as it is, a pixel lower.
    """

    def __init__(self) -> None:
        self.asked: list[SimpleNamespace] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.error: Exception | None = None

    def __call__(self, volume, plane, z, *, add=None, remove=None, prior=None, label=1, key=""):
        if plane is None:
            return None
        self.asked.append(SimpleNamespace(plane=plane, z=z, add=add, remove=remove, prior=prior))
        self.may_answer.wait(10)
        if self.error is not None:
            raise self.error
        assert key and volume.grid.shape[1:] == plane.shape
        answer, own = plane.copy(), plane == label
        gland = np.zeros(plane.shape, bool)
        gland[GLAND] = True
        if add is None:
            own = np.roll(prior[0], 1, axis=0)
        else:
            own = own | gland if add.any() else own
            own = (own & gland if remove.any() else own) | add
            own &= ~remove
        answer[(plane == label) & ~own] = 0
        answer[own & (plane == 0)] = label
        if add is not None:
            answer[add] = label
        return answer


@pytest.fixture
def ct(viewer, app, volume):
    layer = viewer.add_image(ct_layer_data(volume)[0], **ct_layer_data(volume)[1])
    app.session.ct = layer
    return layer


@pytest.fixture
def mender(app) -> FakeMender:
    app.answers.ask = FakeMender()
    return app.answers.ask


@pytest.fixture
def mask(viewer, app, ct, mender) -> Labels:
    """An empty mask of the CT, slice 4 on screen."""
    register_actions()
    data, options, _ = labels_layer_data(
        np.zeros(ct.data.shape, np.uint8), app.session.placement(ct), "pancreas"
    )
    layer = viewer.add_labels(data, **options)
    app.session.mask = layer
    layer.selected_label = 1
    show_slice(viewer, layer, app.session.reference, 4)
    return layer


@pytest.fixture
def panel(qtbot, app, mask) -> CorrectPanel:
    panel = CorrectPanel(app)
    qtbot.addWidget(panel)
    panel.show()
    return panel


@pytest.fixture
def bar(qtbot, app, mask) -> CanvasBar:
    bar = CanvasBar(app, None)
    qtbot.addWidget(bar)
    return bar


def event_of(viewer: ViewerModel, kind: str, position, button: int, modifiers) -> ReadOnlyWrapper:
    made = SimpleNamespace(
        type=kind,
        position=position,
        pos=(0, 0),
        modifiers=modifiers,
        button=button,
        is_dragging=kind == "mouse_move",
        handled=False,
        dims_displayed=list(viewer.dims.displayed),
        dims_point=list(viewer.dims.point),
        view_direction=None,
    )
    return ReadOnlyWrapper(made, exceptions=("handled",))


def press(viewer: ViewerModel, layer: Labels, at, button: int = LEFT, modifiers=()) -> None:
    """Press the mouse on a pixel of the slice on screen, as napari's canvas does."""
    _mouse(viewer, layer, "mouse_press", mouse_press_callbacks, at, button, modifiers)


def move(viewer: ViewerModel, layer: Labels, at) -> None:
    _mouse(viewer, layer, "mouse_move", mouse_move_callbacks, at, LEFT, ())


def release(viewer: ViewerModel, layer: Labels, at) -> None:
    _mouse(viewer, layer, "mouse_release", mouse_release_callbacks, at, LEFT, ())


def _mouse(viewer, layer, kind, callbacks, at, button, modifiers) -> None:
    z = layer.world_to_data(viewer.dims.point)[0]
    position = tuple(layer.data_to_world((z, *at)))
    event = event_of(viewer, kind, position, button, list(modifiers))
    for owner in (viewer, viewer.layers.selection.active):
        callbacks(owner, event)


def drag(viewer: ViewerModel, layer: Labels, *path, button: int = LEFT, modifiers=()) -> None:
    """Draw a stroke along pixels (y, x) of the slice on screen."""
    press(viewer, layer, path[0], button, modifiers)
    for at in path[1:]:
        move(viewer, layer, at)
    release(viewer, layer, path[-1])


def press_key(viewer: ViewerModel, key: str) -> None:
    handler = KeymapHandler()
    handler.keymap_providers = [viewer.layers.selection.active, viewer]
    assert handler.press_key(key), f"{key} does nothing"


def wait(qtbot, app) -> None:
    qtbot.waitUntil(lambda: not app.network.in_use and not app.editor.working, timeout=TIMEOUT)


def whole_gland(depth: int, *slices: int) -> np.ndarray:
    held = np.zeros((depth, 32, 40), np.uint8)
    for z in slices:
        held[z][GLAND] = 1
    return held


def test_a_stroke_is_answered_in_one_step_of_undo(qtbot, viewer, app, mask, mender):
    app.mending.start()
    press(viewer, mask, (12, 14))
    move(viewer, mask, (12, 18))
    # The stroke is seen while the mouse is down, and nobody is asked yet.
    assert mask.data[4, 12, 14:19].all() and not mender.asked and not mask._undo_history
    release(viewer, mask, (12, 18))
    wait(qtbot, app)
    full = whole_gland(10, 4)
    assert np.array_equal(mask.data, full)
    (asked,) = mender.asked
    assert asked.z == 4 and not asked.plane.any() and not asked.remove.any()
    assert asked.add[12, 14:19].all() and asked.prior is None
    assert len(mask._undo_history) == 1
    mask.undo()
    assert not mask.data.any()
    mask.redo()
    assert np.array_equal(mask.data, full)
    mask.undo()
    assert not mask.data.any()


def test_everyone_hears_of_a_mended_slice(qtbot, viewer, app, mask):
    app.mending.start()
    app.watch.notify()
    heard = []
    app.session.mask_changed.connect(lambda layer: heard.append(layer.data[4].sum()))
    drag(viewer, mask, (12, 14), (12, 18))
    wait(qtbot, app)
    app.watch.notify()
    assert heard[-1] == 12 * 14


def test_strokes_take_away_with_shift_or_the_right_button(qtbot, viewer, app, mask, mender):
    app.mending.start()
    for how in ({"button": RIGHT}, {"modifiers": ["Shift"]}):
        mask.data[4] = whole_gland(10, 4)[4]
        mask.data[4, 25:30, 30:38] = 1
        drag(viewer, mask, (27, 32), (27, 36), **how)
        wait(qtbot, app)
        assert np.array_equal(mask.data, whole_gland(10, 4))
        assert mender.asked[-1].remove[27, 32:37].all() and not mender.asked[-1].add.any()
        assert mender.asked[-1].plane[27, 33]  # as it was before the stroke


def test_strokes_of_a_slice_add_up_until_one_moves_on(qtbot, viewer, app, mask, mender):
    app.mending.start()
    drag(viewer, mask, (12, 14), (12, 16))
    wait(qtbot, app)
    drag(viewer, mask, (18, 22), button=RIGHT)
    wait(qtbot, app)
    both = mender.asked[-1]
    assert both.add[12, 15] and both.remove[18, 22] and both.plane[9, 12]
    assert not mask.data[4, 18, 22] and mask.data[4, 12, 15]
    # Where strokes cross, the later one counts.
    drag(viewer, mask, (18, 22))
    wait(qtbot, app)
    assert mender.asked[-1].add[18, 22] and not mender.asked[-1].remove.any()
    app.review.show(5)
    app.review.show(4)
    drag(viewer, mask, (10, 12))
    wait(qtbot, app)
    assert not mender.asked[-1].add[12, 15]
    app.mending.stop()
    app.mending.start()
    drag(viewer, mask, (16, 20))
    wait(qtbot, app)
    assert not mender.asked[-1].add[10, 12]


def test_strokes_begin_anew_once_their_slice_was_edited(qtbot, viewer, app, mask, mender):
    app.mending.start()
    drag(viewer, mask, (12, 14))
    wait(qtbot, app)
    app.editor.clear_slice()
    wait(qtbot, app)
    drag(viewer, mask, (27, 32))
    wait(qtbot, app)
    assert not mender.asked[-1].add[12, 14] and mender.asked[-1].add[27, 32]
    mask.undo()
    mask.undo()  # the slice is as the first stroke left it; that one was for another mask
    drag(viewer, mask, (16, 20))
    wait(qtbot, app)
    drag(viewer, mask, (18, 20))
    wait(qtbot, app)
    assert mender.asked[-1].add[16, 20] and not mender.asked[-1].add[12, 14]


def test_an_undone_stroke_counts_no_more(qtbot, viewer, app, mask, mender):
    app.mending.start()
    drag(viewer, mask, (12, 14))
    wait(qtbot, app)
    drag(viewer, mask, (25, 30))
    wait(qtbot, app)
    assert app.mending.counts(mask) == {4: (2, 0)}
    mask.undo()
    assert app.mending.counts(mask) == {4: (1, 0)}
    mask.redo()
    assert app.mending.counts(mask) == {4: (2, 0)}
    mask.undo()
    drag(viewer, mask, (18, 14), button=RIGHT)
    wait(qtbot, app)
    assert not mender.asked[-1].add[25, 30] and mender.asked[-1].add[12, 14]
    assert app.mending.counts(mask) == {4: (1, 1)}


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_other_labels_give_way_to_a_stroke_and_to_nothing_else(
    qtbot, viewer, app, mask, mender, dtype
):
    mask.data = mask.data.astype(dtype)
    mask.data[4, 10:14, 12:16] = 2
    mask.selected_label = 3
    app.mending.start()
    drag(viewer, mask, (11, 13))
    wait(qtbot, app)
    stroke = mender.asked[-1].add
    assert (mask.data[4][stroke] == 3).all()
    assert mask.data[4, 13, 15] == 2 and mask.data[4, 18, 20] == 3
    assert set(np.unique(mender.asked[-1].plane)) == {0, 2}
    mask.undo()
    mask.preserve_labels = True
    drag(viewer, mask, (11, 13))
    wait(qtbot, app)
    assert (mask.data[4, 10:14, 12:16] == 2).all() and mask.data[4, 18, 20] == 3


def test_a_mask_of_another_program_is_mended(qtbot, viewer, app, ct, mender):
    foreign = viewer.add_labels(np.zeros(ct.data.shape, np.int32), scale=ct.scale, units=ct.units)
    app.session.mask = foreign
    show_slice(viewer, foreign, app.session.reference, 7)
    foreign.selected_label = 5
    app.mending.start()
    drag(viewer, foreign, (12, 14))
    wait(qtbot, app)
    assert np.array_equal(foreign.data, 5 * whole_gland(10, 7))


@pytest.mark.parametrize("order", [((0, 1), (1, 1), (2, 1)), ((2, -1), (0, -1), (1, 1))])
def test_a_stroke_lies_under_the_mouse_in_any_axis_order(order):
    shape, spacing = (5, 12, 14), (2.0, 0.5, 4.0)
    grid = Grid(shape, np.diag([*spacing, 1.0]))
    source = Source(None, "array", shape, grid.affine, np.array(order, float))
    reference = GridReference(grid, source, "any", np.array(order, float))
    viewer = ViewerModel()
    data = np.ascontiguousarray(reference.layer_view(np.zeros(shape, np.uint8)))
    layer = viewer.add_labels(data)
    target = Target(layer, reference, 1)
    drawn = Drag(target, 3, adds=True)
    corner = np.zeros(data.shape)
    for at in ((5, 6), (5, 8)):
        corner[...] = 0
        layer_of = np.zeros(shape, np.uint8)
        layer_of[(3, *at)] = 1
        (index,) = np.argwhere(reference.layer_view(layer_of))
        drawn.to(viewer, tuple(layer.data_to_world(index)))
    stroke = drawn.end()
    shown = target.shown
    assert np.flatnonzero(shown.any(axis=(1, 2))).tolist() == [3]
    assert shown[3, 5, 6:9].all() and shown[3, 1:10, 7].all()  # 4 mm are 8 rows, one column
    assert np.array_equal(np.flatnonzero(shown[3]), stroke.pixels)
    layer.undo()
    assert not layer.data.any()


def test_a_dab_is_as_wide_in_mm_whatever_the_pixels():
    for spacing in ((0.5, 0.5), (1.0, 0.7), (6.0, 6.0)):
        drawn = dab((64, 64), np.array([30.0, 20.0]), np.array([30.0, 40.0]), spacing)
        assert drawn[30, 20:41].all()
        rows = np.flatnonzero(drawn[:, 30])
        assert abs(len(rows) * spacing[0] - STROKE_MM) <= max(2 * spacing[0], 0.1)
    assert not dab((8, 8), np.array([50.0, 50.0]), np.array([60.0, 50.0]), (1.0, 1.0)).any()


def test_an_answer_that_comes_after_undo_changes_nothing(qtbot, viewer, app, mask, mender):
    app.mending.start()
    mender.may_answer.clear()
    drag(viewer, mask, (12, 14))
    assert mask.data[4].any()
    mask.undo()
    mender.may_answer.set()
    wait(qtbot, app)
    assert not mask.data.any() and not mask._undo_history


def test_an_answer_that_comes_after_one_moved_on_lands_in_its_slice(
    qtbot, viewer, app, mask, mender
):
    app.mending.start()
    mender.may_answer.clear()
    drag(viewer, mask, (12, 14))
    app.review.show(6)
    drag(viewer, mask, (12, 14))
    app.mending.stop()
    mender.may_answer.set()
    wait(qtbot, app)
    assert np.array_equal(mask.data, whole_gland(10, 4, 6))
    mask.undo()
    assert np.array_equal(mask.data, whole_gland(10, 4))
    mask.undo()
    assert not mask.data.any()
    mask.redo()
    mask.redo()
    assert np.array_equal(mask.data, whole_gland(10, 4, 6))


def test_nothing_that_was_undone_before_an_answer_comes_back_after_it(
    qtbot, viewer, app, mask, mender
):
    app.mending.start()
    mender.may_answer.clear()
    drag(viewer, mask, (12, 14))
    stroke = mask.data.copy()
    mask.brush_size = 5
    mask.paint((4, 10, 12), 1)  # within the gland: what the answer changes, too
    mask.undo()
    mender.may_answer.set()
    wait(qtbot, app)
    assert np.array_equal(mask.data, whole_gland(10, 4))
    mask.redo()
    assert np.array_equal(mask.data, whole_gland(10, 4))
    mask.undo()
    assert np.array_equal(mask.data, stroke) and app.mending.counts(mask) == {4: (1, 0)}
    mask.undo()
    assert not mask.data.any() and app.mending.counts(mask) == {}


def test_only_the_answer_to_the_last_stroke_of_a_slice_counts(qtbot, viewer, app, mask, mender):
    app.mending.start()
    mender.may_answer.clear()
    drag(viewer, mask, (12, 14))
    drag(viewer, mask, (18, 20), button=RIGHT)
    mender.may_answer.set()
    wait(qtbot, app)
    assert not mask.data[4, 18, 20] and mask.data[4].sum() > 100
    mask.undo()
    mask.undo()
    assert not mask.data.any()


def test_what_is_painted_before_the_answer_is_kept(qtbot, viewer, app, mask, mender):
    app.mending.start()
    mender.may_answer.clear()
    drag(viewer, mask, (12, 14))
    mask.brush_size = 3
    mask.paint((4, 28, 30), 1)
    painted = mask.data.copy()
    mender.may_answer.set()
    wait(qtbot, app)
    assert np.array_equal(mask.data, painted)


@pytest.mark.parametrize("what", ["mask", "ct", "data"])
def test_an_answer_for_what_is_gone_harms_nobody(qtbot, viewer, app, mask, mender, ct, what):
    app.mending.start()
    mender.may_answer.clear()
    drag(viewer, mask, (12, 14))
    if what == "data":
        mask.data = np.zeros((3, 8, 8), np.uint8)
    else:
        viewer.layers.remove(mask if what == "mask" else ct)
    mender.may_answer.set()
    wait(qtbot, app)
    assert not app.mending.active or what != "mask"
    if what == "data":
        assert not mask.data.any()


def test_a_stroke_that_gets_no_answer_is_what_the_brush_would_leave(
    qtbot, viewer, app, mask, mender, notifications
):
    app.mending.start()
    mender.error = PancreasSegError("There is no network.")
    drag(viewer, mask, (12, 14))
    wait(qtbot, app)
    assert mask.data[4, 12, 14] and 0 < mask.data.sum() < 40
    assert "no network" in notifications[-1].message
    mask.undo()
    assert not mask.data.any()


def test_a_second_button_ends_the_stroke_of_the_first(qtbot, viewer, app, mask):
    app.mending.start()
    press(viewer, mask, (12, 14))
    press(viewer, mask, (18, 20), button=RIGHT)
    release(viewer, mask, (18, 20))
    wait(qtbot, app)
    assert app.mending.counts(mask) == {4: (1, 1)}
    mask.undo()
    mask.undo()
    assert not mask.data.any()


def test_of_two_quick_dabs_both_count_and_napari_does_not_zoom(qtbot, viewer, app, mask):
    own, zoom = list(viewer.mouse_double_click_callbacks), viewer.scene.camera.zoom
    app.mending.start()
    drag(viewer, mask, (12, 14))
    wait(qtbot, app)
    _mouse(viewer, mask, "mouse_double_click", mouse_double_click_callbacks, (18, 20), RIGHT, ())
    move(viewer, mask, (18, 22))
    release(viewer, mask, (18, 22))
    wait(qtbot, app)
    assert app.mending.counts(mask) == {4: (1, 1)} and not mask.data[4, 18, 20:23].any()
    assert viewer.scene.camera.zoom == zoom
    app.mending.stop()
    assert viewer.mouse_double_click_callbacks == own != []


def test_napari_s_own_drags_draw_nothing(qtbot, viewer, app, mask, mender):
    mask.data[3] = whole_gland(10, 3)[3]
    before, keys = mask.data.copy(), KeymapHandler()
    keys.keymap_providers = [mask, viewer]
    app.mending.start()
    drag(viewer, mask, (12, 14), (14, 18), modifiers=["Alt"])  # a box to zoom to
    for proposed in (False, True):
        if proposed:
            app.review.show(3)
            app.carrying.carry(1)
            wait(qtbot, app)
        keys.press_key("Space")
        assert mask.mouse_pan and viewer.scene.camera.mouse_pan
        drag(viewer, mask, (12, 14), (14, 18))
        assert (app.editor.proposal is not None) == proposed
        keys.release_key("Space")
        assert not mask.mouse_pan and app.mending.active
    assert np.array_equal(mask.data, before) and not app.mending.counts(mask)
    # Put away with the key held, the tool leaves the mouse to the next one.
    app.editor.drop()
    keys.press_key("Space")
    mask.mode = "paint"
    keys.release_key("Space")
    assert not mask.mouse_pan and not app.mending.active


def test_while_the_network_is_busy_no_stroke_begins(
    qtbot, viewer, app, mask, mender, notifications
):
    app.mending.start()
    app.network.claim("A run is under way.")
    drag(viewer, mask, (12, 14))
    assert "run is under way" in notifications[-1].message
    assert not mask.data.any() and not mender.asked
    app.network.release()
    mender.may_answer.clear()
    drag(viewer, mask, (12, 14))
    with pytest.raises(PancreasSegError, match="mending a slice"):
        app.runs.start(app.session.ct, "box")
    mender.may_answer.set()
    wait(qtbot, app)


def test_what_can_wait_leaves_the_network_to_strokes(qtbot, viewer, app, mask):
    freed = []
    app.network.freed.connect(lambda: freed.append(app.network.reserved))
    app.mending.start()
    assert app.network.reserved and not app.network.in_use and not freed
    app.mending.stop()
    assert freed == [False]


def test_the_network_s_own_process_answers(qtbot, viewer, app, mask, mender):
    app.answers.ask = app.network.process.mend
    mask.data[4] = whole_gland(10, 4)[4]
    app.mending.start()
    drag(viewer, mask, (25, 30))
    wait(qtbot, app)
    assert app.mending.counts(mask) == {4: (1, 0)} and app.network.process.pid is not None
    app.carrying.carry(1)
    wait(qtbot, app)
    app.editor.accept()
    assert np.array_equal(mask.data[5], mask.data[4])


def test_the_tool_is_put_away_and_napari_has_its_own_back(qtbot, viewer, app, mask, ct, panel):
    callbacks = list(viewer.mouse_drag_callbacks)
    button = panel.buttons["mend"]

    def is_off() -> bool:
        off = not app.mending.active and not button.isChecked()
        return off and viewer.mouse_drag_callbacks == callbacks and not viewer.keymap

    other = viewer.add_image(np.zeros((4, 4)))
    for away in (
        lambda: press_key(viewer, "Escape"),
        lambda: press_key(viewer, "Shift-M"),
        lambda: QTest.keyClick(panel, Qt.Key.Key_Escape),
        lambda: setattr(mask, "mode", "paint"),
        lambda: setattr(viewer.layers.selection, "active", other),
        lambda: setattr(viewer.dims, "ndisplay", 3),
        lambda: setattr(app.session, "ct", None),
    ):
        viewer.dims.ndisplay, app.session.ct = 2, ct
        viewer.layers.selection.active = mask
        mask.mode = "paint"
        QTest.mouseClick(button, Qt.MouseButton.LeftButton, pos=QPoint(8, 8))
        assert app.mending.active and button.isChecked() and mask.mode == "pan_zoom"
        assert not mask.mouse_pan and mask.cursor == "circle"
        away()
        assert not app.mending.active and not button.isChecked()
        assert mask.mode == "paint" or (mask.mouse_pan and mask.cursor == "standard")
        assert is_off()
    drag(viewer, mask, (12, 14))
    assert not mask.data.any()


def test_no_map_covers_the_tissue_while_one_mends(viewer, app, ct, mask):
    placement = app.session.placement(ct)
    known = ScalarMap(np.full(ct.data.shape, 0.5, np.float16), placement.reference.grid)
    app.maps.begin({PROBABILITY: known, "attention 3": known}, placement, "ct")
    app.maps.show(placement.reference, PROBABILITY)
    outlined = mask.contour
    app.mending.start()
    shown = app.maps.layers(placement.reference)
    assert not shown[PROBABILITY].visible and mask.contour == outlined
    app.mending.stop()
    assert shown[PROBABILITY].visible

    app.mending.start()
    app.maps.show(placement.reference, "attention 3")  # somebody wants to see it all the same
    app.mending.stop()
    shown = app.maps.layers(placement.reference)
    assert shown["attention 3"].visible and not shown[PROBABILITY].visible
    app.mending.start()
    app.maps.show(placement.reference, "attention 3", visible=False)
    app.mending.stop()
    assert not any(layer.visible for layer in shown.values())


@pytest.fixture
def shown_map(app, ct):
    placement = app.session.placement(ct)
    known = ScalarMap(np.full(ct.data.shape, 0.5, np.float16), placement.reference.grid)
    app.maps.begin({PROBABILITY: known}, placement, "ct")
    app.maps.show(placement.reference, PROBABILITY)
    return app.maps.layers(placement.reference)[PROBABILITY]


def test_no_map_covers_the_tissue_while_an_opened_mask_is_mended(
    viewer, app, ct, volume, shown_map
):
    data = np.zeros(volume.grid.shape, np.uint8)
    opened = viewer.add_layer(Layer.create(*labels_layer_data(data, volume, "theirs")))
    app.session.mask = opened
    show_slice(viewer, opened, app.session.reference, 4)
    app.mending.start()
    assert app.session.is_opened(opened) and not shown_map.visible
    app.mending.stop()
    assert shown_map.visible


def test_a_map_set_aside_is_not_shown_in_3d(qtbot, viewer, app, mask, shown_map):
    mask.data[3:6, 10:14, 12:16] = 1
    app.mending.start()
    app.views.surface.start()
    qtbot.waitUntil(lambda: viewer.dims.ndisplay == 3, timeout=TIMEOUT)
    assert not app.mending.active and not shown_map.visible
    app.views.surface.stop()
    assert shown_map.visible


def test_a_run_ends_the_tool(qtbot, app, ct, mask):
    app.mending.start()
    run = app.runs.start(ct, "box")
    assert not app.mending.active
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)


def test_a_map_set_aside_comes_back_with_its_ct(viewer, app, ct, mask, volume):
    placement = app.session.placement(ct)
    known = ScalarMap(np.full(ct.data.shape, 0.5, np.float16), placement.reference.grid)
    app.maps.begin({PROBABILITY: known}, placement, "ct")
    app.maps.show(placement.reference, PROBABILITY)
    (shown,) = app.maps.layers(placement.reference).values()
    app.mending.start()
    data, options, _ = ct_layer_data(volume)
    app.session.ct = viewer.add_image(data, **options)
    assert not app.mending.active and not shown.visible
    app.session.ct = ct
    assert shown.visible


def test_what_cannot_be_mended_is_said(qtbot, viewer, app, mask, ct, mender, notifications):
    mend = next(action for action in ACTIONS if action.name == "mend")
    for spoil, words in (
        (lambda: setattr(viewer.dims, "order", (1, 0, 2)), "Axial"),
        (lambda: setattr(viewer.dims, "ndisplay", 3), "no slice"),
        (lambda: setattr(app.session, "ct", None), "Open a CT"),
    ):
        spoil()
        perform(mend, app)
        assert words in notifications[-1].message and not app.mending.active
        viewer.dims.ndisplay, viewer.dims.order, app.session.ct = 2, (0, 1, 2), ct
        app.session.mask = mask
    app.mending.start()
    mask.visible = False
    drag(viewer, mask, (12, 14))
    assert "hidden" in notifications[-1].message
    mask.visible, mask.selected_label = True, 0
    drag(viewer, mask, (12, 14))
    assert "background" in notifications[-1].message
    assert not mask.data.any() and not mender.asked


def test_the_bar_says_how_to_mend(qtbot, viewer, app, mask, bar, mender):
    assert not bar.title.text()
    app.mending.start()
    assert "drag adds" in bar.title.text() and bar.done_button.isVisibleTo(bar)
    assert not bar.accept_button.isVisibleTo(bar) and not bar.on_button.isVisibleTo(bar)
    mender.may_answer.clear()
    drag(viewer, mask, (12, 14))
    assert "at work" in bar.title.text()
    mender.may_answer.set()
    wait(qtbot, app)
    bar.done_button.click()
    assert not app.mending.active and not bar.title.text()


def test_the_bar_is_as_wide_as_what_it_says(qtbot, viewer, app, mask, mender):
    canvas = QWidget()
    qtbot.addWidget(canvas)
    canvas.resize(800, 400)
    canvas.show()
    bar = CanvasBar(app, canvas)
    app.mending.start()
    qtbot.waitExposed(canvas)
    wide = bar.width()
    assert wide >= bar.title.sizeHint().width()
    mender.may_answer.clear()
    drag(viewer, mask, (12, 14))
    assert bar.title.sizeHint().width() <= bar.width() < wide
    mender.may_answer.set()
    wait(qtbot, app)
    assert bar.width() == wide


# -- carrying on


@pytest.mark.slow
def test_a_mask_is_carried_from_slice_to_slice(qtbot, viewer, app, mask, bar, mender):
    mask.data[4] = whole_gland(10, 4)[4]
    steps = len(mask._undo_history)
    press_key(viewer, "T")
    wait(qtbot, app)
    assert app.review.slice == 5 and app.editor.proposal.found.change.slices == [5]
    assert not mask.data[5].any() and "Carry to slice 5" in bar.title.text()
    gland, away = mender.asked[-1].prior
    assert np.array_equal(gland, mask.data[4] == 1) and away == 2.5
    press_key(viewer, "Enter")
    assert np.array_equal(mask.data[5], np.roll(mask.data[4], 1, axis=0))
    wait(qtbot, app)
    assert app.review.slice == 6 and app.editor.proposal.found.change.slices == [6]
    press_key(viewer, "Escape")
    wait(qtbot, app)
    assert app.editor.proposal is None and not mask.data[6].any()
    assert len(mask._undo_history) == steps + 1 and not viewer.keymap
    app.review.show(4)
    press_key(viewer, "Shift-T")
    wait(qtbot, app)
    assert app.review.slice == 3 and app.editor.proposal.found.change.slices == [3]


@pytest.mark.slow
def test_a_stroke_mends_what_was_carried_before_one_goes_on(qtbot, viewer, app, mask, mender, bar):
    mask.data[4] = whole_gland(10, 4)[4]
    app.mending.start()
    press_key(viewer, "T")
    wait(qtbot, app)
    carried = np.roll(mask.data[4], 1, axis=0)
    drag(viewer, mask, (10, 12))
    assert app.editor.proposal is None
    wait(qtbot, app)
    asked = mender.asked[-1]
    assert asked.z == 5 and np.array_equal(asked.plane, carried) and asked.add[8, 12]
    assert np.array_equal(asked.prior[0], mask.data[4] == 1) and asked.prior[1] == 2.5
    assert np.array_equal(mask.data[5] == 1, (carried == 1) | (whole_gland(10, 5)[5] == 1))
    assert bar.on_button.isVisibleTo(bar)
    press_key(viewer, "Enter")
    wait(qtbot, app)
    assert app.review.slice == 6 and app.editor.proposal.found.change.slices == [6]
    assert np.array_equal(mender.asked[-1].prior[0], mask.data[5] == 1)
    press_key(viewer, "Escape")
    assert app.mending.active and app.editor.proposal is None and not mask.data[6].any()
    # What was dropped is not gone on with.
    press_key(viewer, "Enter")
    assert not app.editor.working
    press_key(viewer, "Escape")
    assert not app.mending.active
    mask.undo()
    mask.undo()
    assert np.array_equal(mask.data, whole_gland(10, 4))


def test_enter_waits_for_the_answer_to_a_stroke(qtbot, viewer, app, mask, mender):
    mask.data[4] = whole_gland(10, 4)[4]
    app.mending.start()
    press_key(viewer, "T")
    wait(qtbot, app)
    mender.may_answer.clear()
    drag(viewer, mask, (8, 12))
    press_key(viewer, "Enter")
    mender.may_answer.set()
    qtbot.waitUntil(lambda: app.editor.proposal is not None, timeout=TIMEOUT)
    assert app.review.slice == 6
    assert np.array_equal(mender.asked[-1].prior[0], mask.data[5] == 1)


def test_with_another_label_chosen_nothing_is_carried_on(
    qtbot, viewer, app, mask, mender, notifications
):
    mask.data[4] = whole_gland(10, 4)[4]
    mask.data[5, 25:30, 30:38] = 2
    press_key(viewer, "T")
    wait(qtbot, app)
    mask.selected_label = 2
    press_key(viewer, "Enter")
    assert (mask.data[5] == 1).any() and not app.editor.working and app.review.slice == 5
    assert "Another label" in notifications[-1].message


def test_a_stroke_on_another_label_does_not_accept_what_was_carried(
    qtbot, viewer, app, mask, mender
):
    mask.data[4] = whole_gland(10, 4)[4]
    app.mending.start()
    press_key(viewer, "T")
    wait(qtbot, app)
    mask.selected_label = 2
    drag(viewer, mask, (12, 14))
    wait(qtbot, app)
    assert app.editor.proposal is not None and not app.mending.carries
    assert set(np.unique(mask.data[5])) == {0, 2} and mender.asked[-1].prior is None


@pytest.mark.parametrize("chosen", ["mask", "ct"])
@pytest.mark.parametrize("there", [True, False])
def test_with_another_mask_or_ct_chosen_a_proposal_is_dropped(
    qtbot, viewer, app, ct, mask, mender, volume, notifications, chosen, there
):
    layer, options, _ = ct_layer_data(volume, "other")
    other_ct = viewer.add_image(layer, **options)
    other = viewer.add_labels(np.zeros_like(mask.data), metadata=mask.metadata)
    mask.data[4] = whole_gland(10, 4)[4]
    before = mask.data.copy()
    if not there:
        mender.may_answer.clear()
    app.carrying.carry(1)
    if there:
        wait(qtbot, app)
        assert app.editor.proposal is not None
    setattr(app.session, chosen, other if chosen == "mask" else other_ct)
    viewer.layers.selection.active = other
    mender.may_answer.set()
    wait(qtbot, app)
    assert len(viewer.layers) == 4 and viewer.layers.selection.active is other
    assert "another CT or mask" in notifications[-1].message and not viewer.keymap
    app.editor.accept()
    wait(qtbot, app)
    assert app.editor.proposal is None and np.array_equal(mask.data, before)


def test_a_proposal_leaves_the_layer_selected_that_was_chosen_meanwhile(
    qtbot, viewer, app, ct, mask, mender
):
    mask.data[4] = whole_gland(10, 4)[4]
    mender.may_answer.clear()
    app.carrying.carry(1)
    viewer.layers.selection.active = ct
    mender.may_answer.set()
    wait(qtbot, app)
    assert app.editor.proposal is not None and viewer.layers.selection.active is ct


def test_esc_stops_to_fill_between(qtbot, viewer, app, mask, mender, notifications):
    for z in (1, 8):
        mask.data[z, 8:20, 10:20] = 1
    mender.may_answer.clear()
    app.carrying.fill_between()
    qtbot.waitUntil(lambda: bool(mender.asked), timeout=TIMEOUT)
    press_key(viewer, "Escape")
    mender.may_answer.set()
    wait(qtbot, app)
    assert len(mender.asked) == 1 and app.editor.proposal is None and not notifications


def test_where_there_is_nothing_to_carry_it_is_said(
    qtbot, viewer, app, mask, mender, notifications
):
    up = next(action for action in ACTIONS if action.name == "carry_up")
    perform(up, app)
    assert "no label 1 in this slice" in notifications[-1].message
    app.review.show(9)
    mask.data[9] = 1
    perform(up, app)
    assert "last one" in notifications[-1].message and app.review.slice == 9
    # At the end of the volume, Enter accepts and says so.
    mask.data[9] = 0
    mask.data[8] = whole_gland(10, 8)[8]
    app.review.show(8)
    perform(up, app)
    wait(qtbot, app)
    app.editor.accept()
    assert mask.data[9].any() and "last one" in notifications[-1].message


def test_the_network_fills_between_by_both_ends(qtbot, viewer, app, mask, panel, mender):
    for z in (2, 6):
        mask.data[z, 8:20, 10 : 16 + z] = 1
    panel.fill_with_network.value = False
    panel.buttons["fill_between"].click()
    wait(qtbot, app)
    by_shape = app.editor.proposal.found
    assert not mender.asked and by_shape.change.slices == [3, 4, 5]
    app.editor.drop()
    panel.fill_with_network.value = True
    panel.buttons["fill_between"].click()
    wait(qtbot, app)
    assert [(asked.z, asked.prior[1]) for asked in mender.asked] == [(3, 2.5), (4, 5.0), (5, 2.5)]
    app.editor.accept()
    for asked in mender.asked:
        assert asked.prior[0].any(axis=0).sum() == 6 + asked.z
        assert np.array_equal(mask.data[asked.z] == 1, np.roll(asked.prior[0], 1, axis=0))


@pytest.mark.parametrize("missing", ["ct", "network"])
def test_without_ct_or_network_a_mask_is_filled_by_shape(
    qtbot, viewer, app, mask, panel, mender, missing
):
    for z in (2, 6):
        mask.data[z, 8:20, 10:20] = 1
    if missing == "ct":
        app.session.ct = None
    else:
        app.network.claim("A run is under way.")
    assert panel.fill_with_network.value
    panel.buttons["fill_between"].click()
    qtbot.waitUntil(lambda: app.editor.proposal is not None, timeout=TIMEOUT)
    assert not mender.asked and app.editor.proposal.found.change.slices == [3, 4, 5]


# -- what becomes of it


@pytest.mark.slow
def test_strokes_are_counted_in_the_record_and_nothing_else_of_them(
    qtbot, viewer, app, ct, mender, tmp_path
):
    app.runs.start(ct, "box")
    qtbot.waitUntil(lambda: not app.runs.running, timeout=TIMEOUT)
    mask = app.runs.latest.labels
    app.session.mask = mask
    show_slice(viewer, mask, app.session.reference, 4)
    for strokes in (0, 1):
        if strokes:
            app.mending.start()
            drag(viewer, mask, (25, 30))
            wait(qtbot, app)
            drag(viewer, mask, (9, 12), modifiers=["Shift"])
            wait(qtbot, app)
        written = []
        app.files.export(mask, tmp_path / f"m{strokes}.nii.gz", then=written.append)
        qtbot.waitUntil(lambda written=written: bool(written), timeout=TIMEOUT)
        edits = json.loads((tmp_path / f"m{strokes}.json").read_text())["edits"]
        if strokes:
            slices = {"4": {"add": 1, "remove": 1}}
            assert edits["strokes"] == {"add": 1, "remove": 1, "slices": slices}
        else:
            assert "strokes" not in edits
    # A slice that was mended counts as corrected: Improve learns from it as from any other.
    qtbot.waitUntil(
        lambda: app.review.facts is not None and app.review.facts.edited[4], timeout=TIMEOUT
    )
    app.review.set_reviewed(mask, [4])
    assert not app.improvement.unchanged
    assert mask in app.autosave.unexported() or app.review.facts.edited.sum() == 1
