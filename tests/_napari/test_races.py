"""What comes between: a run, a threshold, a correction and a person at the same time."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from napari.layers import Labels, Layer

from napari_pancreas_seg._napari.app import app_of
from napari_pancreas_seg._napari.layers.bridge import ct_layer_data
from napari_pancreas_seg._napari.layers.placement import show_slice, slice_on_screen
from napari_pancreas_seg._napari.layers.region import box_of_shapes
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import Options

TIMEOUT = 30_000


@pytest.fixture
def labels(qtbot, app, ct) -> Labels:
    return finish(qtbot, app, ct, "graded")


def finish(qtbot, app, ct, model: str, options: Options | None = None) -> Labels:
    run = app.runs.start(ct, model, options)
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    app.session.mask = run.labels
    run.labels.selected_label = 1
    return run.labels


def put(layer: Labels, z: int, y: int, x: int, value: int = 1) -> None:
    layer.data_setitem((np.array([z]), np.array([y]), np.array([x])), value)


def idle(app):
    return lambda: not app.editor.working


@pytest.mark.slow
def test_a_threshold_that_comes_late_does_not_write_into_a_run(qtbot, app, ct, labels):
    expected = finish(qtbot, app, ct, "box").data.copy()
    assert finish(qtbot, app, ct, "graded") is labels
    wish_of_before = app.session.masks[labels]
    assert app.rethreshold.ask(labels, 0.1, True)
    # The run takes the layer over while the threshold's mask is still being made.
    fresh = app.session.masks[labels] = wish_of_before.emptied(labels)
    qtbot.waitUntil(lambda: not app.rethreshold.newest.busy, timeout=TIMEOUT)
    assert not labels.data.any() and not fresh.copy.any()
    app.session.masks[labels] = wish_of_before
    assert np.array_equal(finish(qtbot, app, ct, "box").data, expected)


def test_a_proposal_for_another_threshold_is_dropped(qtbot, viewer, app, labels):
    app.editor.smooth()
    qtbot.waitUntil(lambda: app.editor.proposal is not None, timeout=TIMEOUT)
    outline = app.editor.proposal.outline
    with qtbot.waitSignal(app.rethreshold.done, timeout=TIMEOUT):
        app.rethreshold.ask(labels, 0.2, True)
    expected = labels.data.copy()
    assert app.editor.proposal is None and outline not in viewer.layers
    app.editor.accept()
    assert np.array_equal(labels.data, expected)


def test_a_correction_overtaken_by_a_threshold_is_not_applied(qtbot, app, labels):
    release = hold(app.editor)
    app.editor.grow()
    with qtbot.waitSignal(app.rethreshold.done, timeout=TIMEOUT):
        app.rethreshold.ask(labels, 0.2, True)
    expected = labels.data.copy()
    release()
    qtbot.waitUntil(idle(app), timeout=TIMEOUT)
    assert np.array_equal(labels.data, expected)


def test_the_surface_follows_corrections(qtbot, viewer, app, ct, labels):
    surface, before = app.views.surface, labels.data.copy()
    surface.start()
    qtbot.waitUntil(lambda: viewer.dims.ndisplay == 3, timeout=TIMEOUT)
    points = len(surface._surface.data[0])
    app.editor.grow()
    qtbot.waitUntil(lambda: len(surface._surface.data[0]) != points, timeout=TIMEOUT)
    assert surface.on and labels.data.sum() > before.sum() and not labels.visible
    pauses = app.watch._soon, surface._soon
    qtbot.waitUntil(lambda: not any(each.isActive() for each in pauses), timeout=TIMEOUT)
    labels.undo()
    assert np.array_equal(labels.data, before)
    qtbot.waitUntil(lambda: len(surface._surface.data[0]) == points, timeout=TIMEOUT)


def test_a_proposal_is_shown_in_slices(qtbot, viewer, app, ct, labels):
    surface, before = app.views.surface, labels.data.copy()
    surface.start()
    qtbot.waitUntil(lambda: viewer.dims.ndisplay == 3, timeout=TIMEOUT)
    app.editor.smooth()
    qtbot.waitUntil(lambda: app.editor.proposal is not None, timeout=TIMEOUT)
    assert viewer.dims.ndisplay == 2 and not surface.on and labels.visible and ct.visible
    surface.start()  # and to 3-D once more, with the proposal on screen
    qtbot.waitUntil(lambda: viewer.dims.ndisplay == 3, timeout=TIMEOUT)
    app.editor.accept()
    assert not np.array_equal(labels.data, before)
    labels.undo()
    assert np.array_equal(labels.data, before)


def test_a_hidden_mask_is_corrected_in_3d(qtbot, viewer, app, labels):
    labels.visible = False
    before = labels.data.copy()
    viewer.dims.ndisplay = 3
    app.editor.grow()
    qtbot.waitUntil(idle(app), timeout=TIMEOUT)
    assert labels.data.sum() > before.sum()
    labels.undo()
    assert np.array_equal(labels.data, before)


@pytest.mark.slow
def test_a_mask_that_is_cut_under_a_run_ends_the_run(qtbot, app, ct, notifications):
    run = app.runs.start(ct, "slow")
    qtbot.waitUntil(lambda: run.done >= 2, timeout=TIMEOUT)
    run.labels.data = run.labels.data[:4].copy()
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    assert run.cancelled and not run.can_discard
    assert any("was cut or resampled" in record.message for record in notifications)


def test_a_mask_removed_under_a_correction_is_left_alone(qtbot, viewer, app, labels):
    release = hold(app.editor)
    app.editor.smooth()
    viewer.layers.remove(labels)
    release()
    qtbot.waitUntil(idle(app), timeout=TIMEOUT)
    assert app.editor.proposal is None
    assert not any("proposal" in layer.name for layer in viewer.layers)


@pytest.mark.slow
def test_two_cts_of_one_shape_keep_their_masks_apart(qtbot, viewer, app, ct, volume):
    first = finish(qtbot, app, ct, "graded")
    put(first, 5, 0, 0)
    expected = first.data.copy()
    other = Layer.create(*ct_layer_data(volume, "other"))
    viewer.add_layer(other)
    app.session.ct = other
    run = app.runs.start(other, "slow")
    qtbot.waitUntil(lambda: run.done >= 2, timeout=TIMEOUT)
    app.session.ct, app.session.mask = ct, first
    assert app.rethreshold.ask(first, 0.5, True)
    show_slice(viewer, first, app.session.reference, 5)
    app.review.toggle_reviewed()
    viewer.layers.remove(other)
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    assert run.labels is not first and run.labels.data.any()
    assert np.array_equal(first.data, expected)
    assert app.review.reviewed_of(first) == {5}
    assert app.review.reviewed_of(run.labels) == frozenset()


def test_cold_networks_keep_no_ct_from_being_opened(qtbot, viewer, app, volume, ct_path):
    loaded = ct_path.with_name("loaded")
    asked = [Layer.create(*ct_layer_data(volume, name)) for name in "ABC"]
    for layer in asked:
        app.network.warm_up(layer.data, app.session.placement(layer).reference, f"wait {loaded}")
    app.files.open(ct_path)
    qtbot.waitUntil(lambda: len(viewer.layers) == 1, timeout=TIMEOUT)
    assert not app.network.devices
    with qtbot.waitSignals([app.network.devices_changed] * 2, timeout=TIMEOUT):
        loaded.touch()  # for the first and the last: B was overtaken
    assert app.network._warm[2:] == (
        app.session.placement(asked[2]).reference.id,
        app.network.process.pid,
    )


def hold(editor):
    """Let what is submitted next wait; returns what lets it go."""
    background, waiting = editor._background, []

    def later(*args):
        waiting.append(args)

    def release():
        editor._background = background
        for args in waiting:
            background.submit(*args)

    editor._background = SimpleNamespace(submit=later)
    return release


ORDERS = {
    "as opened": np.diag([2.5, 0.8, 0.9, 1.0]),
    "permuted": np.array([[0, 0, 2.5, 0], [0, -0.8, 0, 40], [0.9, 0, 0, 0], [0, 0, 0, 1]]),
    "flipped": np.array([[-2.5, 0, 0, 9], [0, 0, -0.8, 3], [0, 0.9, 0, 0], [0, 0, 0, 1]]),
}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_every_correction_in_any_axis_order(qtbot, viewer, app, hu, order):
    """A foreign CT, whichever way its axes run: the patient's slices are corrected."""
    steps = ORDERS[order]
    axes = np.abs(steps[:3, :3]).argmax(axis=1)  # world axis -> axis of the data
    data = np.zeros_like(hu.transpose(2, 1, 0))
    data[...] = hu.transpose(2, 1, 0)
    data = np.ascontiguousarray(np.transpose(data, np.argsort(axes)))
    for axis in range(3):
        if steps[:3, axis].sum() < 0:
            data = np.flip(data, axis)
    ct = viewer.add_image(data.copy(), affine=steps, units=("mm",) * 3, name="foreign")
    app.session.ct = ct
    mask = viewer.add_labels(
        np.zeros(data.shape, np.uint8), affine=steps, units=("mm",) * 3, name="mask"
    )
    app.session.mask, reference = mask, app.session.reference
    mask.selected_label = 1
    shown = reference.view(mask.data)
    assert np.array_equal(reference.view(ct.data), hu.transpose(2, 1, 0))
    shown[2, 10:20, 12:24] = shown[5, 10:20, 12:24] = shown[6, 10:20, 12:24] = 1
    shown[5:7, 14, 14] = 0
    shown[8, 1:3, 1:3] = 1
    mask.refresh()
    app.settings.set("correct/grow_mm", 3.0)
    editor, before = app.editor, mask.data.copy()
    for title, correct in (
        ("fill", app.carrying.fill_between),
        ("smooth", editor.smooth),
        ("islands", editor.remove_islands),
        ("largest", editor.keep_largest),
        ("grow", editor.grow),
        ("shrink", editor.shrink),
        ("again", lambda: editor.rerun_slice("box")),
    ):
        show_slice(viewer, mask, reference, 3)
        assert slice_on_screen(viewer, mask, reference) == 3
        if title == "again" and order == "permuted":
            # napari shows an axis of the data by its number, here another plane.
            with pytest.raises(PancreasSegError, match="Axial"):
                correct()
            continue
        correct()
        qtbot.waitUntil(idle(app), timeout=TIMEOUT)
        editor.accept()
        assert not np.array_equal(mask.data, before), title
        if title == "again":
            only = np.flatnonzero((shown != reference.view(before)).any((1, 2)))
            assert only.tolist() == [3], title
        if title == "fill":
            assert shown[3, 10:20, 12:24].all() and shown[4].any()
        if title in ("islands", "largest"):
            assert not shown[8].any()
        mask.undo()
        assert np.array_equal(mask.data, before), title


@pytest.mark.parametrize("angle", [0, 30, 90])
def test_a_box_on_a_turned_ct_encloses_what_was_drawn(viewer, app, hu, angle):
    data = hu.transpose(2, 1, 0).copy()
    ct = viewer.add_image(
        data, scale=(2.5, 0.8, 0.9), rotate=(0, 0, angle), translate=(3, -5, 7), units=("mm",) * 3
    )
    app.session.ct = ct
    reference = app.session.placement(ct).reference
    # What was drawn, in the CT's own pixels; napari's rectangle has them in the world.
    corners = [(3, 6, 9), (3, 6, 20), (3, 15, 20), (3, 15, 9)]
    drawn = np.array([ct.data_to_world(corner) for corner in corners])
    shapes = viewer.add_shapes([drawn], shape_type="polygon", units=("mm",) * 3)
    top, bottom, left, right = box_of_shapes(shapes, ct, reference)
    region = reference.view(np.indices(data.shape)[1])
    rows = region[0, top:bottom, left:right]
    columns = reference.view(np.indices(data.shape)[2])
    columns = columns[0, top:bottom, left:right]
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 15, 9, 20)
    beyond = viewer.add_shapes([drawn - [0, 500, 500]], shape_type="polygon", units=("mm",) * 3)
    with pytest.raises(PancreasSegError, match="holds nothing"):
        Options(box=box_of_shapes(beyond, ct, reference)).region(reference.grid.shape)


@pytest.mark.slow
@pytest.mark.gui
def test_the_dock_is_closed_and_opened_again_in_between(qtbot, window, volume, manifest):
    app = app_of(window)
    window.add_layer(Layer.create(*ct_layer_data(volume)))
    _, dock = open_dock(window)
    labels = finish(qtbot, app, dock.ct_panel.layer, "graded")
    # A proposal outlives the dock, and can be accepted in the next one.
    before = labels.data.copy()
    app.editor.grow()  # what is worked out while the dock goes is applied
    window.window.remove_dock_widget(dock.parent())
    qtbot.waitUntil(idle(app), timeout=TIMEOUT)
    assert labels.data.sum() > before.sum()
    app.settings.set("correct/smooth_mm", 6.0)  # less changes nothing in so round a mask
    app.editor.smooth()
    qtbot.waitUntil(lambda: app.editor.proposal is not None, timeout=TIMEOUT)
    proposed = labels.data.copy()
    _, dock = open_dock(window)
    assert app.session.mask is labels and dock.bar.accept_button.isEnabled()
    dock.bar.accept_button.click()
    assert app.editor.proposal is None and not np.array_equal(labels.data, proposed)
    # So does a threshold that is on its way.
    app.rethreshold.ask(labels, 0.2, True)
    window.window.remove_dock_widget(dock.parent())
    qtbot.waitUntil(lambda: not app.rethreshold.newest.busy, timeout=TIMEOUT)
    assert app.session.masks[labels].result.threshold == 0.2
    _, dock = open_dock(window)
    assert dock.options_panel.threshold.value == 0.2


def open_dock(window):
    return window.window.add_plugin_dock_widget("napari-pancreas-seg", "Pancreas segmentation")
