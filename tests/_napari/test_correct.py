"""Corrections on labels layers: undo, proposals, other axis orders, painting within HU."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from napari.components import ViewerModel
from napari.layers import Image, Labels
from napari.utils.key_bindings import KeymapHandler
from nibabel import orientations
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from napari_pancreas_seg._napari import commands as commands_module
from napari_pancreas_seg._napari.correct import keys as correct_keys
from napari_pancreas_seg._napari.correct.apply import Target, apply_change, outline_layer
from napari_pancreas_seg._napari.correct.apply import preview_of as compare
from napari_pancreas_seg._napari.correct.keys import ACTIONS, GROUPS, perform
from napari_pancreas_seg._napari.correct.paint import limit_stroke
from napari_pancreas_seg._napari.layers.bridge import (
    ct_layer_data,
    labels_layer_data,
    name_labels,
)
from napari_pancreas_seg._napari.layers.placement import (
    find_reference,
    index_at,
    placement_of,
    reference_of,
    show_slice,
    slice_on_screen,
)
from napari_pancreas_seg._napari.widget.canvas_bar import CanvasBar
from napari_pancreas_seg._napari.widget.correct_panel import CorrectPanel
from napari_pancreas_seg._napari.widget.dialogs import TextDialog, show_keys
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.mask import editing
from napari_pancreas_seg.volume import CTVolume

TIMEOUT = 20_000


@pytest.fixture
def ct(viewer, app, volume) -> Image:
    layer = viewer.add_image(ct_layer_data(volume)[0], **ct_layer_data(volume)[1])
    app.session.ct = layer
    return layer


@pytest.fixture
def mask(viewer, app, ct) -> Labels:
    """An empty mask of the CT: 10 slices of 32 × 40."""
    data, options, _ = labels_layer_data(
        np.zeros(ct.data.shape, np.uint8), app.session.placement(ct), "pancreas"
    )
    layer = viewer.add_labels(data, **options)
    app.session.mask = layer
    layer.selected_label = 1
    return layer


@pytest.fixture
def panel(qtbot, app, mask) -> CorrectPanel:
    correct_keys.register_actions()
    panel = CorrectPanel(app)
    qtbot.addWidget(panel)
    panel.resize(270, 500)
    panel.show()
    return panel


@pytest.fixture
def bar(qtbot, app, mask) -> CanvasBar:
    """What lies over the canvas."""
    bar = CanvasBar(app, None)
    qtbot.addWidget(bar)
    return bar


def action_named(name: str) -> correct_keys.Action:
    return next(action for action in ACTIONS if action.name == name)


def press(viewer: ViewerModel, key: str) -> None:
    """Press a key with the picture focused."""
    handler = KeymapHandler()
    active = viewer.layers.selection.active
    handler.keymap_providers = [viewer] if active is None else [active, viewer]
    assert handler.press_key(key), f"{key} does nothing"


def wait(qtbot, app) -> None:
    qtbot.waitUntil(lambda: not app.editor.working, timeout=TIMEOUT)


def click(button) -> None:
    # On the left: a check box takes clicks on its box and words alone.
    QTest.mouseClick(button, Qt.MouseButton.LeftButton, pos=QPoint(8, button.height() // 2))


def draw(layer: Labels, *slices: int, box=(8, 20, 10, 24)) -> None:
    top, bottom, left, right = box
    layer.data[list(slices), top:bottom, left:right] = 1
    layer.refresh()


@pytest.mark.slow
def test_every_correction_is_one_step_of_undo(qtbot, viewer, app, mask, panel, bar):
    draw(mask, 2, 3, 5)
    mask.data[3, 12, 14] = 0  # a hole in two slices, open along z
    mask.data[8, 1:3, 1:3] = 1  # an island
    mask.data[4, 8:10, 10:12] = 3  # another label, in the way
    show_slice(viewer, mask, app.session.reference, 4)
    app.settings.set("correct/grow_mm", 3.0)
    for name in (
        "keep_largest",
        "remove_islands",
        "grow",
        "shrink",
        "fill_between",
        "smooth",
    ):
        before = mask.data.copy()
        steps = len(mask._undo_history)
        click(panel.buttons[name])
        wait(qtbot, app)
        if app.editor.proposal is not None:
            assert np.array_equal(mask.data, before)
            click(bar.accept_button)
        after = mask.data.copy()
        assert (after != before).any(), name
        assert np.array_equal(after == 3, before == 3), name
        assert len(mask._undo_history) == steps + 1, name
        mask.undo()
        assert np.array_equal(mask.data, before), name
        mask.redo()
        assert np.array_equal(mask.data, after), name
        mask.undo()


def test_holes_are_filled_with_the_selected_label(qtbot, app, mask, panel):
    draw(mask, 2, 3, 4)
    mask.data[3, 12, 14] = 0
    mask.data[3, 14, 14] = 2  # a hole that holds another label
    click(panel.buttons["fill_holes"])
    wait(qtbot, app)
    assert mask.data[3, 12, 14] == 1 and mask.data[3, 14, 14] == 2


@pytest.mark.slow
def test_filling_is_proposed_and_accepted_or_dropped(qtbot, viewer, app, mask, panel, bar):
    draw(mask, 2, 6)
    before = mask.data.copy()
    press(viewer, "I")
    wait(qtbot, app)
    proposal = app.editor.proposal
    assert proposal.outline in viewer.layers and proposal.outline.contour > 0
    assert viewer.layers.selection.active is mask
    assert proposal.outline not in app.session.mask_layers(app.session.reference)
    assert "3 slices" in bar.title.text()
    assert bar.accept_button.isEnabled()
    press(viewer, "Escape")
    assert app.editor.proposal is None and proposal.outline not in viewer.layers
    assert np.array_equal(mask.data, before)
    assert not bar.accept_button.isEnabled()

    press(viewer, "I")
    wait(qtbot, app)
    press(viewer, "Enter")
    assert np.array_equal(mask.data[2:7, 8:20, 10:24], np.ones((5, 12, 14)))
    assert np.count_nonzero(mask.data) == 5 * 12 * 14
    mask.undo()
    assert np.array_equal(mask.data, before)
    # Without a proposal the keys are napari's again.
    assert not viewer.keymap and not mask.keymap


def test_a_proposal_spares_what_is_painted_before_it_is_accepted(qtbot, app, mask, panel, bar):
    draw(mask, 2, 6)
    click(panel.buttons["fill_between"])
    wait(qtbot, app)
    mask.data_setitem((np.array([4]), np.array([10]), np.array([12])), 2)
    click(bar.accept_button)
    assert mask.data[4, 10, 12] == 2 and mask.data[4, 10, 13] == 1


def test_a_proposal_goes_with_its_layers(qtbot, viewer, app, mask, panel):
    for removed in ("outline", "mask"):
        draw(mask, 2, 6)
        click(panel.buttons["fill_between"])
        wait(qtbot, app)
        outline = app.editor.proposal.outline
        viewer.layers.remove(outline if removed == "outline" else mask)
        assert app.editor.proposal is None
        assert outline not in viewer.layers


def test_a_new_correction_drops_what_was_proposed(qtbot, viewer, app, mask, panel):
    draw(mask, 2, 6)
    click(panel.buttons["fill_between"])
    wait(qtbot, app)
    click(panel.buttons["keep_largest"])
    wait(qtbot, app)
    assert app.editor.proposal is None
    assert not mask.data[3].any()


@pytest.mark.slow
def test_enter_and_escape_work_with_the_focus_in_the_panel(qtbot, app, mask, panel):
    draw(mask, 2, 6)
    for key, filled in ((Qt.Key.Key_Escape, False), (Qt.Key.Key_Return, True)):
        click(panel.buttons["fill_between"])
        wait(qtbot, app)
        QTest.keyClick(panel, key)
        assert app.editor.proposal is None
        assert mask.data[4].any() == filled


@pytest.mark.parametrize("key", ["Enter", "Escape"])
def test_an_answer_before_the_proposal_is_there_is_not_lost(
    qtbot, viewer, app, mask, panel, bar, key
):
    draw(mask, 2, 6)
    press(viewer, "I")
    assert app.editor.proposal is None and bar.accept_button.isEnabled()
    press(viewer, key)
    assert not bar.accept_button.isEnabled()
    wait(qtbot, app)
    assert app.editor.proposal is None and len(viewer.layers) == 2
    assert mask.data[4].any() == (key == "Enter")
    assert not viewer.keymap and not mask.keymap
    # It was the answer to that one alone.
    draw(mask, 8)
    press(viewer, "I")
    wait(qtbot, app)
    assert app.editor.proposal is not None


def test_a_slice_is_cleared_and_filled_again(qtbot, app, mask, panel):
    draw(mask, 2, 3, 4)
    app.review.show(3)
    click(panel.buttons["clear_slice"])
    wait(qtbot, app)
    assert [bool(mask.data[z].any()) for z in (2, 3, 4)] == [True, False, True]
    click(panel.buttons["fill_between"])
    wait(qtbot, app)
    app.editor.accept()
    assert mask.data[3].any()
    mask.undo()
    mask.undo()
    assert mask.data[3].any()


def test_nothing_to_change_is_said(qtbot, app, mask, panel, notifications):
    draw(mask, 2)
    for name, words in (("fill_between", "clear those"), ("fill_holes", "nothing to ch")):
        click(panel.buttons[name])
        wait(qtbot, app)
        assert words in notifications[-1].message
    assert not mask._undo_history


def test_what_cannot_be_corrected_is_said(qtbot, viewer, app, mask, panel, notifications):
    mask.selected_label = 0
    click(panel.buttons["grow"])
    assert "background" in notifications[-1].message
    mask.selected_label = 1
    viewer.dims.ndisplay = 3
    click(panel.buttons["clear_slice"])
    assert "no slice" in notifications[-1].message
    app.session.mask = None
    viewer.layers.selection.active = app.session.ct
    for name, words in (
        ("grow", "no mask to correct"),
        ("next_uncertain", "no mask to review"),
        ("review_and_go_on", "no mask to review"),
        ("toggle_reviewed", "no slice"),
    ):
        perform(action_named(name), app)
        assert words in notifications[-1].message
    assert not panel.buttons["grow"].isEnabled()


def test_a_hidden_mask_is_corrected_in_3d_alone(qtbot, viewer, app, mask):
    mask.data_setitem((np.array([5]), np.array([5]), np.array([5])), 1)
    mask.visible = False
    with pytest.raises(PancreasSegError, match="'pancreas' is hidden: show it"):
        app.editor.grow()
    viewer.dims.ndisplay = 3
    app.editor.grow()
    qtbot.waitUntil(lambda: not app.editor.working, timeout=TIMEOUT)
    assert mask.data.sum() > 1


def test_the_piece_under_the_mouse_is_kept(qtbot, viewer, app, mask, panel, notifications):
    draw(mask, 2, 3)
    draw(mask, 7, box=(2, 4, 2, 4))
    viewer.cursor.position = tuple(mask.data_to_world((7, 3, 2)))
    press(viewer, "Shift-K")
    wait(qtbot, app)
    assert mask.data.sum() == 4 and mask.data[7].any()
    mask.undo()
    viewer.cursor.position = tuple(mask.data_to_world((7, 30, 30)))
    press(viewer, "Shift-K")
    wait(qtbot, app)
    assert "no piece" in notifications[-1].message
    click(panel.buttons["grow"])  # and nothing is stuck
    wait(qtbot, app)
    assert "piece under the mouse (Shift+K)" in panel.buttons["keep_largest"].toolTip()


def test_what_lies_on_another_ct_is_not_mixed_up(qtbot, viewer, app, mask, volume):
    """A CT of the same shape, of another patient: neither its HU nor its slices are taken."""
    data, options, _ = ct_layer_data(CTVolume.from_source_array(volume.hu.T.copy(), np.eye(4)))
    other = viewer.add_image(data - 500, **options)
    assert other.data.shape == mask.data.shape
    app.session.ct = other
    assert app.session.mask_layers(app.session.reference) == []
    draw(mask, 5)
    show_slice(viewer, mask, reference_of(mask), 5)
    with pytest.raises(PancreasSegError, match="does not lie on"):
        app.editor.rerun_slice("box")
    app.paint_limit.on = True
    mask.brush_size = 6
    before = np.count_nonzero(mask.data)
    mask.paint((5, 28, 35), 1)
    assert np.count_nonzero(mask.data) > before


def test_a_slice_is_run_again_and_proposed(qtbot, viewer, app, mask, panel, bar):
    draw(mask, 4, box=(20, 25, 2, 6))
    draw(mask, 5)
    before = mask.data.copy()
    show_slice(viewer, mask, app.session.reference, 4)
    app.editor.rerun_slice("box")
    assert app.network.in_use
    with pytest.raises(PancreasSegError, match="not done yet"):
        app.runs.start(app.session.ct, "box")
    wait(qtbot, app)
    assert app.editor.proposal.found.change.slices == [4]
    click(bar.accept_button)
    assert mask.data[4, 8:16, 10:20].all() and not mask.data[4, 20:25, 2:6].any()
    assert np.array_equal(np.delete(mask.data, 4, axis=0), np.delete(before, 4, axis=0))
    mask.undo()
    assert np.array_equal(mask.data, before)
    # The network's process has survived, and a run can start.
    app.editor.rerun_slice("fail")
    wait(qtbot, app)
    assert app.editor.proposal is None and not app.network.in_use


def test_of_several_classes_a_slice_s_own_is_taken(qtbot, viewer, app, mask, panel):
    mask.selected_label = 2  # in the middle of the columns
    app.review.show(4)
    app.editor.rerun_slice("organs")
    wait(qtbot, app)
    app.editor.accept()
    assert set(np.unique(mask.data)) == {0, 2}
    columns = np.flatnonzero(mask.data[4].any(axis=0))
    assert columns.min() > 12 and columns.max() < 28


def test_a_slice_s_own_class_goes_by_its_name(
    qtbot, viewer, app, mask, panel, monkeypatch, notifications
):
    card = {"labels": {"pancreas": 1, "liver": 2, "spleen": 3}}
    monkeypatch.setattr("napari_pancreas_seg._napari.correct.editor.card_of", lambda model: card)
    name_labels(mask, {"tumour": 1, "pancreas": 2})  # of another model
    mask.selected_label = 2
    app.review.show(4)
    app.editor.rerun_slice("organs")
    wait(qtbot, app)
    app.editor.accept()
    columns = np.flatnonzero((mask.data[4] == 2).any(axis=0))
    assert len(columns) and columns.max() < 13  # where the pancreas is
    mask.selected_label = 1
    app.editor.rerun_slice("organs")
    wait(qtbot, app)
    assert app.editor.proposal is None and "does not know 'tumour'" in notifications[-1].message


def test_esc_stops_the_network_at_once(qtbot, app, mask, panel, monkeypatch, notifications):
    waiting = threading.Event()

    def never(*_, cancelled):
        while not cancelled():
            waiting.wait(0.01)
        yield from ()

    monkeypatch.setattr(app.network.process, "iter_segment", never)
    draw(mask, 4)
    app.review.show(4)
    app.editor.rerun_slice("box")
    QTest.keyClick(panel, Qt.Key.Key_Escape)
    wait(qtbot, app)
    assert not app.network.in_use and app.editor.proposal is None and not notifications


def test_from_the_side_no_axial_slice_is_changed_or_reviewed(
    qtbot, viewer, app, mask, panel, notifications
):
    draw(mask, 3, 4, 5)
    before = mask.data.copy()
    app.review.show(4)
    for order in ((1, 0, 2), (2, 0, 1)):
        viewer.dims.order = order
        for name in (
            "clear_slice",
            "rerun_slice",
            "toggle_reviewed",
            "review_and_go_on",
        ):
            notifications.clear()
            perform(action_named(name), app)
            assert "choose Axial" in notifications[-1].message, name
    assert not app.editor.working and not app.network.in_use
    assert np.array_equal(mask.data, before) and not app.review.reviewed


orders = st.tuples(st.permutations([0, 1, 2]), st.tuples(*[st.sampled_from([1, -1])] * 3))


@pytest.mark.slow
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(orders, st.integers(1, 3))
def test_layers_in_any_axis_order_are_corrected_alike(qapp, order, label):
    axes, flips = order
    rng = np.random.default_rng(0)
    shown = (rng.random((5, 8, 9)) < 0.3).astype(np.uint8) * label
    orientation = np.array([[a, f] for a, f in zip(axes, flips, strict=True)], float)
    # The layer's data are those that the orientation brings to display order.
    inverse = np.empty_like(orientation)
    for axis, (target, flip) in enumerate(orientation):
        inverse[int(target)] = (axis, flip)
    data = np.ascontiguousarray(orientations.apply_orientation(shown, inverse))
    data = data.copy()  # the order may be display order itself
    layer = Labels(data.copy(), scale=[1, 1, 1])
    reference = find_reference(layer)
    reference = type(reference)(
        type(reference.grid)(shown.shape, np.diag([2.0, 1, 1, 1])),
        reference.source,
        "any",
        orientation,
    )
    target = Target(layer, reference, label)
    assert np.array_equal(target.shown, shown)
    after = editing.grow(target.mask(), (2.0, 1.0, 1.0), 1.0)
    found = compare(target.mask(), after, label)
    # The outline lies where the layer will be filled, in the viewer's world.
    outline = outline_layer(target, found, "outline")
    corner = [edge.start for edge in found.box]
    inner = np.argwhere(orientations.apply_orientation(outline.data, orientation))[0]
    to_layer = orientations.inv_ornt_aff(orientation, layer.data.shape)
    to_outline = orientations.inv_ornt_aff(orientation, outline.data.shape)
    assert np.allclose(
        layer.data_to_world((to_layer @ [*(inner + corner), 1])[:3]),
        outline.data_to_world((to_outline @ [*inner, 1])[:3]),
    )
    assert apply_change(target, found.change) == np.count_nonzero(after != (shown != 0))
    assert np.array_equal(target.shown == label, after.astype(bool))
    layer.undo()
    assert np.array_equal(layer.data, data)


@pytest.mark.parametrize("unit", ["mm", "cm", "pixel"])
@pytest.mark.parametrize("kind", ["ours", "permuted", "rotated"])
def test_a_slice_is_shown_wherever_its_layer_lies(viewer, app, ct, kind, unit):
    layer = ct
    if kind != "ours":
        options = {
            "permuted": {"affine": np.eye(4)[[2, 1, 0, 3]]},
            "rotated": {"scale": (2.5, 0.8, 0.9), "translate": (30, -20, 5)},
        }[kind]
        units = None if unit == "pixel" else (unit,) * 3
        layer = viewer.add_image(np.zeros((6, 7, 8), np.int16), units=units, **options)
        viewer.layers.remove(ct)
        if unit == "cm":  # so that the viewer's units are not the layer's
            viewer.add_image(np.zeros((5, 5, 5)), units="mm")
    reference = placement_of(layer).reference
    if kind == "permuted":
        viewer.dims.order = (0, 1, 2)
    for z in (0, 3, reference.grid.shape[0] - 1):
        show_slice(viewer, layer, reference, z)
        shown = index_at(viewer, layer, reference, viewer.dims.point)
        assert round(float(shown[0])) == z
        assert slice_on_screen(viewer, layer, reference) == z


def test_painting_is_limited_to_hu(app, ct, mask):
    z = 5
    hu = ct.data[z]
    mask.data[z, 16, 20] = 2  # something was there before
    mask.refresh()
    app.paint_limit.on = True
    app.settings.set("correct/limit_low_hu", 50.0)
    app.settings.set("correct/limit_high_hu", 70.0)
    before = mask.data.copy()
    mask.brush_size = 9
    steps = len(mask._undo_history)
    with mask.block_history():  # as napari's brush does
        for x in range(12, 30, 3):
            mask.paint((z, 16, x), 1, refresh=False)
    after = mask.data.copy()
    painted = after == 1
    assert painted.any()
    assert ((hu >= 50) & (hu <= 70))[painted[z]].all()
    assert np.array_equal(after[~painted], before[~painted])
    assert len(mask._undo_history) == steps + 1
    mask.undo()
    assert np.array_equal(mask.data, before)
    mask.redo()
    assert np.array_equal(mask.data, after)
    # Every voxel of the stroke within the range is there.
    app.paint_limit.on = False
    mask.undo()
    with mask.block_history():
        for x in range(12, 30, 3):
            mask.paint((z, 16, x), 1, refresh=False)
    free = mask.data == 1
    assert np.array_equal(free[z] & (hu >= 50) & (hu <= 70), painted[z])
    assert free.sum() > painted.sum()


def test_limits_in_the_other_order_are_the_same_range(app, ct, mask, notifications):
    app.settings.set("correct/limit_low_hu", 70.0)
    app.settings.set("correct/limit_high_hu", 50.0)
    app.paint_limit.toggle()
    assert "50 to 70 HU" in notifications[-1].message
    mask.brush_size = 9
    with mask.block_history():
        mask.paint((5, 16, 20), 1, refresh=False)
    painted = ct.data[mask.data == 1]
    assert painted.size and painted.min() >= 50 and painted.max() <= 70


def test_erasing_and_corrections_are_not_limited(qtbot, viewer, app, ct, mask, panel, bar):
    draw(mask, 4, 6)
    click(panel.limit.native)
    panel.low_hu.value = 3000
    panel.high_hu.value = 3001
    assert app.paint_limit.on
    mask.paint((4, 10, 12), 0)
    assert mask.data[4, 10, 12] == 0
    click(panel.buttons["fill_between"])
    wait(qtbot, app)
    click(bar.accept_button)
    assert mask.data[5].any()
    press(viewer, "Shift-H")
    assert not app.paint_limit.on and not panel.limit.value
    press(viewer, "Shift-H")
    count = np.count_nonzero(mask.data)
    mask.fill((5, 1, 1), 1)
    mask.paint_polygon([[5, 1, 1], [5, 1, 30], [5, 30, 30]], 1)
    qtbot.waitUntil(lambda: np.count_nonzero(mask.data) == count, timeout=TIMEOUT)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_a_limited_stroke_is_the_stroke_within_the_range(seed):
    rng = np.random.default_rng(seed)
    shape = (3, 12, 12)
    before = rng.integers(0, 3, shape).astype(np.uint8)
    hu = rng.integers(-100, 200, shape)
    layer = Labels(before.copy())
    with layer.block_history():
        for _ in range(4):
            layer.brush_size = int(rng.integers(1, 6))
            layer.paint((0, *rng.integers(0, 12, 2)), 1, refresh=False)
        step = layer._staged_history
    stroke = layer.data != before
    taken = limit_stroke(layer, step, hu, 0, 100)
    allowed = (hu >= 0) & (hu <= 100)
    assert taken == np.count_nonzero(stroke & ~allowed)
    assert np.array_equal(layer.data, np.where(stroke & allowed, 1, before))
    layer.undo()
    assert np.array_equal(layer.data, before)


def test_keys_are_listed_once_and_can_be_changed(app, panel, qtbot):
    names = [action.name for action in ACTIONS]
    keys = [action.key for action in ACTIONS]
    assert len(set(names)) == len(names) and len(set(keys)) == len(keys)
    from napari.utils.action_manager import action_manager

    show_keys(panel)
    (dialog,) = panel.findChildren(TextDialog)
    written = [line.strip() for line in dialog.text.toPlainText().splitlines()]
    dialog.close()
    listed = dict(zip(written[1:], written, strict=False))
    for title in ("Paint", "Erase", "Smaller brush", "Slice after", "Undo"):
        assert listed[title], "napari's own keys that one needs"
    assert {*GROUPS, "napari"} <= set(written), "a line for each group"
    for action in ACTIONS:
        assert listed[action.title] == correct_keys.key_of(action) != "", action.name
        assert action.id in action_manager._actions
    action = action_named("grow")
    assert "(G)" in panel.buttons["grow"].toolTip()
    before = action_manager.unbind_shortcut(action.id)
    try:
        action_manager.bind_shortcut(action.id, "Ctrl-Alt-J")
        assert "J" in panel.buttons["grow"].toolTip()
        assert "(G)" not in panel.buttons["grow"].toolTip()
    finally:
        action_manager.unbind_shortcut(action.id)
        for key in before:
            action_manager.bind_shortcut(action.id, key)


def test_a_key_that_is_taken_stays_whose_it_is(app, monkeypatch):
    from napari.utils.action_manager import action_manager

    taken = [
        correct_keys.Action("one", "P", lambda s: None),  # napari's brush
        correct_keys.Action("two", "Ctrl-Alt-O", lambda s: None),
        correct_keys.Action("three", "Ctrl-Alt-L", lambda s: None),
    ]
    monkeypatch.setattr(correct_keys, "ACTIONS", taken)
    chosen = {**correct_keys.get_settings().shortcuts.shortcuts, taken[2].id: ["Ctrl-Alt-K"]}
    correct_keys.get_settings().shortcuts.shortcuts = chosen
    try:
        correct_keys.register_actions()
        assert [correct_keys.key_of(action) != "" for action in taken] == [False, True, True]
        assert "K" in correct_keys.key_of(taken[2])
    finally:
        for action in taken:
            action_manager.unbind_shortcut(action.id)
            del action_manager._actions[action.id]


def test_the_manifest_names_every_action():
    from pathlib import Path

    from npe2 import PluginManifest

    import napari_pancreas_seg

    manifest = PluginManifest.from_file(Path(napari_pancreas_seg.__file__).with_name("napari.yaml"))
    commands = {str(command.python_name): command for command in manifest.contributions.commands}
    for action in ACTIONS:
        name = f"napari_pancreas_seg._napari.commands:{action.name}"
        assert commands[name].title.removeprefix("Pancreas: ").lower() == action.title.lower()
        assert callable(getattr(commands_module, action.name))


# -- the review strip


@pytest.fixture
def reviewed(qtbot, app, mask, panel):
    """Slices 2 to 7 hold a mask; the model was unsure of 3 and 6."""
    draw(mask, *range(2, 8))
    app.session.mask_changed.emit(mask)
    qtbot.waitUntil(
        lambda: app.review.facts is not None and app.review.facts.area_mm2[7] > 0,
        timeout=TIMEOUT,
    )
    facts = app.review.facts
    facts.doubt[2:8] = [0.05, 0.6, 0.1, 0.1, 0.5, 0.1]
    app.review.changed.emit()
    return app.review


def strip_click(strip, z: int, n: int = 10) -> None:
    x = int((z + 0.5) * strip.width() / n)
    QTest.mouseClick(strip, Qt.MouseButton.LeftButton, pos=QPointF(x, 20).toPoint())


def test_slices_that_a_correction_alters_are_reviewed_no_more(qtbot, app, mask, panel, reviewed):
    mask.data[4, 1, 1] = 1  # an island
    app.review.set_reviewed(mask, {3, 4})
    app.editor.keep_largest()
    wait(qtbot, app)
    app.watch.notify()
    assert app.review.reviewed == {3}
    for again, expected in ((mask.undo, {3, 4}), (mask.redo, {3}), (mask.undo, {3, 4})):
        again()
        app.watch.notify()
        assert app.review.reviewed == expected


def test_a_click_on_the_strip_shows_the_slice(viewer, app, mask, panel, reviewed):
    for z in (0, 4, 9):
        strip_click(panel.strip, z)
        assert slice_on_screen(viewer, mask, app.session.reference) == z
    strip_click(panel.strip, 3)
    area = 12 * 14 * np.prod(app.session.reference.grid.spacing[1:]) / 100
    assert panel.facts.text() == f"Slice 3: {area:.1f} cm², doubt 0.60"


def test_reviewing_goes_from_slice_to_slice(viewer, app, mask, panel, reviewed):
    review = app.review
    review.show(0)
    press(viewer, "W")
    assert review.slice == 2
    press(viewer, "Q")
    assert review.reviewed == {2} and review.slice == 3
    press(viewer, "Shift-Q")
    press(viewer, "Shift-Q")
    assert review.reviewed == {2}
    press(viewer, "N")
    assert review.slice == 6
    press(viewer, "N")  # beyond the last comes the first
    assert review.slice == 3
    click(panel.reviewed.native)
    assert review.reviewed == {2, 3} and panel.reviewed.value
    assert panel.progress.text() == "2 of 6"
    press(viewer, "Shift-N")
    assert review.slice == 6
    press(viewer, "Shift-W")
    assert review.slice == 5
    click(panel.buttons["next_unreviewed"])
    assert review.slice == 6
    assert not panel.reviewed.value


def test_what_was_reviewed_belongs_to_the_mask(viewer, app, mask, panel, reviewed):
    marked = []
    app.review.marked.connect(marked.append)
    app.review.set_reviewed(mask, [2, 3])
    other = viewer.add_labels(np.zeros_like(mask.data), metadata=mask.metadata)
    app.session.mask = other
    assert app.review.reviewed == frozenset()
    app.session.mask = mask
    assert app.review.reviewed == {2, 3} == app.review.reviewed_of(mask)
    assert marked == [mask]


@pytest.mark.slow
def test_what_a_person_edited_is_told(qtbot, viewer, app, ct, panel):
    app.runs.start(ct, "box")
    qtbot.waitUntil(lambda: not app.runs.running, timeout=TIMEOUT)
    labels = app.runs.latest.labels
    app.session.mask = labels
    review = app.review
    review.set_reviewed(labels, [1])
    qtbot.waitUntil(
        lambda: review.facts is not None and review.facts.area_mm2[9] > 0, timeout=TIMEOUT
    )
    assert not review.facts.edited.any()
    labels.data_setitem((np.array([4]), np.array([1]), np.array([1])), 1)
    qtbot.waitUntil(lambda: review.facts.edited.any(), timeout=TIMEOUT)
    assert np.flatnonzero(review.facts.edited).tolist() == [4]
    labels.undo()
    qtbot.waitUntil(lambda: not review.facts.edited.any(), timeout=TIMEOUT)
    # A run that replaces the mask starts the review anew.
    app.runs.start(ct, "box")
    qtbot.waitUntil(lambda: not app.runs.running, timeout=TIMEOUT)
    assert app.runs.latest.labels is labels
    assert review.reviewed_of(labels) == frozenset()


@pytest.mark.parametrize("n", [1, 7, 2000])
def test_the_strip_paints_any_number_of_slices(qtbot, app, panel, n):
    from napari_pancreas_seg._napari.correct.review import SliceFacts
    from napari_pancreas_seg._napari.widget.review_strip import EDITED

    area = np.zeros(n)
    area[n // 2] = 50.0
    edited = np.zeros(n, bool)
    edited[n // 2] = True
    app.review.facts = SliceFacts(area, np.full(n, np.nan, np.float32), edited)
    app.review.changed.emit()
    picture = panel.strip.grab().toImage()
    colors = {
        picture.pixelColor(x, y).name()
        for x in range(picture.width())
        for y in range(picture.height())
    }
    assert EDITED in colors  # one slice of 2000 is seen, too
    assert panel.strip.slice_at(-5) == 0 and panel.strip.slice_at(10_000) == n - 1


def test_the_strip_paints_at_any_height(app, panel):
    from napari_pancreas_seg._napari.correct.review import SliceFacts
    from napari_pancreas_seg._napari.widget.review_strip import AREA

    full = np.full(10, 50.0)
    app.review.facts = SliceFacts(full, np.zeros(10, np.float32), np.zeros(10, bool))
    for height in (3, 40, 90):
        app.review.changed.emit()
        panel.strip.resize(100, height)
        assert panel.strip.grab().toImage().pixelColor(50, height // 3).name() == AREA


def test_the_panel_is_no_wider_than_the_dock(qapp: QApplication, panel):
    assert panel.minimumSizeHint().width() <= 264
