"""A threshold that moves: at once, without a run, and never over a person's strokes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from napari.layers import Labels, Layer

from napari_pancreas_seg._napari.layers.bridge import labels_layer_data, plain_placement
from napari_pancreas_seg._napari.layers.region import box_of_shapes
from napari_pancreas_seg._napari.run.model_mask import ModelMask
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import FoundSlices, Options

TIMEOUT = 30_000


@pytest.fixture
def labels(qtbot, app, ct) -> Labels:
    run = app.runs.start(ct, "graded")
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    app.session.mask = run.labels
    return run.labels


def move(qtbot, app, labels, threshold: float, postprocess: bool = True) -> None:
    with qtbot.waitSignal(app.rethreshold.done, timeout=TIMEOUT):
        assert app.rethreshold.ask(labels, threshold, postprocess)


def test_it_gives_what_a_run_would(qtbot, app, ct, labels):
    at_first = labels.data.copy()
    move(qtbot, app, labels, 0.2)
    lower = labels.data.copy()
    assert lower.sum() > at_first.sum() > 0
    fresh = app.runs.start(ct, "graded", Options(threshold=0.2))
    qtbot.waitUntil(lambda: not fresh.running, timeout=TIMEOUT)
    assert np.array_equal(fresh.labels.data, lower)
    move(qtbot, app, labels, 0.5)
    assert np.array_equal(labels.data, at_first)
    result = app.session.masks[labels].result
    assert result.threshold == 0.5 and result.options.threshold == 0.5
    assert np.array_equal(result.mask, at_first)


def test_strokes_survive_any_threshold(qtbot, app, labels):
    at_first = labels.data.copy()
    inside = tuple(np.argwhere(labels.data)[0])
    labels.data_setitem(tuple(np.array([n]) for n in inside), 0)
    corner = (np.array([5]), np.array([0]), np.array([0]))
    labels.data_setitem(corner, 1)
    for threshold in (0.1, 0.8, 0.5):
        move(qtbot, app, labels, threshold)
        assert labels.data[inside] == 0
        assert labels.data[corner] == 1
    expected = at_first.copy()
    expected[inside], expected[corner] = 0, 1
    assert np.array_equal(labels.data, expected)


def test_undo_cannot_bring_half_a_mask_back(qtbot, app, labels, notifications):
    move(qtbot, app, labels, 0.3)
    assert not notifications  # nothing was lost
    labels.data_setitem((np.array([5]), np.array([0]), np.array([0])), 1)
    move(qtbot, app, labels, 0.2)
    assert "undo ends here" in notifications[-1].message and labels.data[5, 0, 0] == 1
    now = labels.data.copy()
    labels.undo()
    assert np.array_equal(labels.data, now)
    labels.data_setitem((np.array([5]), np.array([0]), np.array([1])), 1)
    labels.undo()
    assert np.array_equal(labels.data, now)


def test_slices_that_a_threshold_alters_lose_their_mark_while_it_does(qtbot, app, labels):
    at_first = labels.data.copy()
    app.review.set_reviewed(labels, {4, 5, 9})

    def reviewed(threshold: float) -> set[int]:
        move(qtbot, app, labels, threshold)
        app.watch.notify()
        return set(app.review.reviewed_of(labels))

    assert not at_first[9].any()
    assert reviewed(0.45) == {9} and reviewed(0.4) == {9}
    assert not np.array_equal(labels.data[4:6], at_first[4:6]) and not labels.data[9].any()
    assert reviewed(0.5) == {4, 5, 9}
    # What a person paints takes no mark.
    labels.data_setitem((np.array([5]), np.array([0]), np.array([0])), 1)
    app.watch.notify()
    assert app.review.reviewed_of(labels) == {4, 5, 9}
    reviewed(0.4)
    app.review.toggle_reviewed(4)  # looked at as it is now
    app.watch.notify()
    assert app.review.reviewed_of(labels) == {4, 9}
    assert reviewed(0.5) == {5, 9}


def test_a_mask_that_was_cut_is_corrected(app, labels):
    assert labels not in app.autosave.unexported()
    labels.data = labels.data[2:6]
    assert app.session.masks[labels].touched_slices(labels).all()
    assert labels in app.autosave.unexported()


def test_only_the_last_of_many_moves_counts(qtbot, app, labels):
    for hundredths in range(60, 19, -1):
        app.rethreshold.ask(labels, hundredths / 100, True)
    qtbot.waitUntil(
        lambda: app.session.masks[labels].result.threshold == pytest.approx(0.2), timeout=TIMEOUT
    )


def test_a_mask_without_a_run_has_no_threshold(app, viewer, ct):
    drawn = viewer.add_labels(np.zeros(ct.data.shape, np.uint8))
    assert not app.rethreshold.ask(drawn, 0.5, True)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10_000))
@pytest.mark.slow
def test_the_mask_is_the_models_overridden_by_the_person(seed, volume):
    """Whatever order strokes and thresholds come in; kept against a slow and simple record."""
    rng = np.random.default_rng(seed)
    placement = plain_placement(volume)
    shape = volume.grid.shape
    layer = Layer.create(*labels_layer_data(np.zeros(shape, np.uint8), placement))
    mask = ModelMask(placement.reference)
    model = (rng.random(shape) < 0.3).astype(np.uint8)
    mask.write(layer, FoundSlices(np.arange(shape[0]), model))
    touched, left = np.zeros(shape, bool), np.zeros(shape, np.uint8)
    for _ in range(4):
        where = rng.random(shape) < 0.05
        value = rng.integers(0, 3)
        # A stroke that leaves a voxel as the model has it leaves no trace; nor need it.
        touched = np.where(where, (value != model) | (touched & (left == value)), touched)
        left[where] = value
        layer.data[where] = value
        model = (rng.random(shape) < 0.3).astype(np.uint8)
        mask.replace(layer, model, tuple(slice(0, n) for n in shape))
        assert np.array_equal(layer.data, np.where(touched, left, model))
        assert np.array_equal(mask.copy, model)


def test_a_rectangle_marks_pixels(viewer, ct, app):
    reference = app.session.placement(ct).reference
    sy, sx = reference.grid.spacing[1:]
    edges = [(5, 8), (5, 30), (20, 30), (20, 8)]
    corners = np.array([[10.0, y * sy, x * sx] for y, x in edges])
    shapes = viewer.add_shapes([corners], shape_type="rectangle", units=("mm",) * 3)
    assert box_of_shapes(shapes, ct, reference) == (5, 21, 8, 31)
    flat = viewer.add_shapes([corners[:, 1:]], shape_type="rectangle", units=("mm",) * 2)
    assert box_of_shapes(flat, ct, reference) == (5, 21, 8, 31)
    empty = viewer.add_shapes(ndim=3)
    with pytest.raises(PancreasSegError, match="Draw a rectangle"):
        box_of_shapes(empty, ct, reference)


@pytest.mark.slow
def test_keep_and_discard_after_cancel(qtbot, app, viewer, ct):
    def cancelled():
        run = app.runs.start(ct, "slow")
        qtbot.waitUntil(lambda: run.done >= 3, timeout=TIMEOUT)
        run.cancel()
        qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
        assert run.can_discard
        return run

    run = cancelled()
    run.discard()
    assert run.labels not in viewer.layers
    assert [layer.name for layer in viewer.layers] == ["CT"]
    run = cancelled()
    found = run.labels.data.copy()
    run.keep()
    assert np.array_equal(run.labels.data, found) and found.any()
    assert not run.can_discard
    run.discard()  # too late
    assert np.array_equal(run.labels.data, found)


@pytest.mark.slow
def test_discard_brings_the_former_result_back(qtbot, app, viewer, ct, labels):
    before, result = labels.data.copy(), app.session.masks[labels].result
    run = app.runs.start(ct, "slow")
    qtbot.waitUntil(lambda: run.done >= 3, timeout=TIMEOUT)
    run.cancel()
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    assert run.labels is labels and not np.array_equal(labels.data, before)
    labels.data_setitem((np.array([8]), np.array([0]), np.array([0])), 1)
    inside = tuple(np.argwhere(before[5])[0])
    labels.data_setitem((np.array([5]), *(np.array([n]) for n in inside)), 1)
    labels.data_setitem((np.array([5]), *(np.array([n]) for n in inside)), 0)
    run.discard()
    before[8, 0, 0] = 1  # the rest of that slice comes back, too
    assert np.array_equal(labels.data, before)
    assert app.session.masks[labels].result is result
    move(qtbot, app, labels, 0.3)


def test_the_devices_are_asked_for_when_it_warms_up(qtbot, app, ct):
    with qtbot.waitSignal(app.network.devices_changed, timeout=TIMEOUT):
        app.network.warm_up(ct.data, app.session.placement(ct).reference, "box")
    assert [device["id"] for device in app.network.devices] == ["cpu", "gpu:0"]


def test_a_warm_run_sends_the_ct_once(qtbot, app, ct, monkeypatch):
    from napari_pancreas_seg.inference.process import client as process

    sent = []
    send = process.messages.send

    def spy(file, message):
        sent.append((message["request"], "hu" in message))
        send(file, message)

    monkeypatch.setattr(process.messages, "send", spy)
    with qtbot.waitSignal(app.network.devices_changed, timeout=TIMEOUT):
        app.network.warm_up(ct.data, app.session.placement(ct).reference, "box")

    def finish():
        run = app.runs.start(ct, "box")
        qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
        return run.labels

    assert finish().data.any()
    ct.data[0, 0, 0] += 1  # in place: nobody is told
    finish()
    wanted = [("warm up", True), ("devices", False), ("segment", False), ("segment", True)]
    assert sent == wanted
