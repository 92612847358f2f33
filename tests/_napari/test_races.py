"""What comes between: a run, a threshold, a correction and a person at the same time."""

from __future__ import annotations

import numpy as np
import pytest
from napari.layers import Labels, Layer

from napari_pancreas_seg._napari.layers import ct_layer_data
from napari_pancreas_seg._napari.placement import show_slice
from napari_pancreas_seg._napari.views import views_of
from napari_pancreas_seg.inference.result import Options

TIMEOUT = 30_000


@pytest.fixture
def ct(viewer, session, volume):
    layer = Layer.create(*ct_layer_data(volume))
    viewer.add_layer(layer)
    session.ct = layer
    return layer


@pytest.fixture
def labels(qtbot, session, ct) -> Labels:
    return finish(qtbot, session, ct, "graded")


def finish(qtbot, session, ct, model: str, options: Options | None = None) -> Labels:
    run = session.start(ct, model, options)
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    session.mask = run.labels
    run.labels.selected_label = 1
    return run.labels


def put(layer: Labels, z: int, y: int, x: int, value: int = 1) -> None:
    layer.data_setitem((np.array([z]), np.array([y]), np.array([x])), value)


def idle(session):
    return lambda: not session.corrector.working


def test_a_threshold_that_comes_late_does_not_write_into_a_run(qtbot, session, ct, labels):
    expected = finish(qtbot, session, ct, "box").data.copy()
    assert finish(qtbot, session, ct, "graded") is labels
    wish_of_before = session.masks[labels]
    assert session.rethreshold.ask(labels, 0.1, True)
    # The run takes the layer over while the threshold's mask is still being made.
    fresh = session.masks[labels] = wish_of_before.emptied(labels)
    qtbot.waitUntil(lambda: not session.rethreshold._busy, timeout=TIMEOUT)
    assert not labels.data.any() and not fresh.copy.any()
    session.masks[labels] = wish_of_before
    assert np.array_equal(finish(qtbot, session, ct, "box").data, expected)


def test_a_proposal_for_another_threshold_is_dropped(qtbot, viewer, session, labels):
    session.corrector.smooth()
    qtbot.waitUntil(lambda: session.corrector.proposal is not None, timeout=TIMEOUT)
    outline = session.corrector.proposal.outline
    with qtbot.waitSignal(session.rethreshold.done, timeout=TIMEOUT):
        session.rethreshold.ask(labels, 0.2, True)
    expected = labels.data.copy()
    assert session.corrector.proposal is None and outline not in viewer.layers
    session.corrector.accept()
    assert np.array_equal(labels.data, expected)


def test_a_correction_overtaken_by_a_threshold_is_not_applied(qtbot, session, labels):
    release = hold(session.corrector)
    session.corrector.grow()
    with qtbot.waitSignal(session.rethreshold.done, timeout=TIMEOUT):
        session.rethreshold.ask(labels, 0.2, True)
    expected = labels.data.copy()
    release()
    qtbot.waitUntil(idle(session), timeout=TIMEOUT)
    assert np.array_equal(labels.data, expected)


def test_corrections_go_back_to_slices(qtbot, viewer, session, ct, labels):
    surface = views_of(session).surface
    for proposed in (False, True):
        before = labels.data.copy()
        surface.start()
        qtbot.waitUntil(lambda: viewer.dims.ndisplay == 3, timeout=TIMEOUT)
        if proposed:
            session.corrector.smooth()
            qtbot.waitUntil(lambda: session.corrector.proposal is not None, timeout=TIMEOUT)
            assert viewer.dims.ndisplay == 2 and labels.visible
            surface.start()  # and to 3-D once more, with the proposal on screen
            qtbot.waitUntil(lambda: viewer.dims.ndisplay == 3, timeout=TIMEOUT)
            session.corrector.accept()
        else:
            session.corrector.grow()
            qtbot.waitUntil(idle(session), timeout=TIMEOUT)
        assert viewer.dims.ndisplay == 2 and not surface.on
        assert labels.visible and ct.visible
        assert not np.array_equal(labels.data, before)
        labels.undo()
        assert np.array_equal(labels.data, before)


def test_a_hidden_mask_is_corrected_in_3d(qtbot, viewer, session, labels):
    labels.visible = False
    before = labels.data.copy()
    viewer.dims.ndisplay = 3
    session.corrector.grow()
    qtbot.waitUntil(idle(session), timeout=TIMEOUT)
    assert labels.data.sum() > before.sum()
    labels.undo()
    assert np.array_equal(labels.data, before)


def test_a_mask_that_is_cut_under_a_run_ends_the_run(qtbot, session, ct, notifications):
    run = session.start(ct, "slow")
    qtbot.waitUntil(lambda: run.done >= 2, timeout=TIMEOUT)
    run.labels.data = run.labels.data[:4].copy()
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    assert run.cancelled and not run.can_discard
    assert any("was cut or resampled" in record.message for record in notifications)


def test_a_mask_removed_under_a_correction_is_left_alone(qtbot, viewer, session, labels):
    release = hold(session.corrector)
    session.corrector.smooth()
    viewer.layers.remove(labels)
    release()
    qtbot.waitUntil(idle(session), timeout=TIMEOUT)
    assert session.corrector.proposal is None
    assert not any("proposal" in layer.name for layer in viewer.layers)


def test_two_cts_of_one_shape_keep_their_masks_apart(qtbot, viewer, session, ct, volume):
    first = finish(qtbot, session, ct, "graded")
    put(first, 5, 0, 0)
    expected = first.data.copy()
    other = Layer.create(*ct_layer_data(volume, "other"))
    viewer.add_layer(other)
    session.ct = other
    run = session.start(other, "slow")
    qtbot.waitUntil(lambda: run.done >= 2, timeout=TIMEOUT)
    session.ct, session.mask = ct, first
    assert session.rethreshold.ask(first, 0.5, True)
    show_slice(viewer, first, session.reference, 5)
    session.review.toggle_reviewed()
    viewer.layers.remove(other)
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    assert run.labels is not first and run.labels.data.any()
    assert np.array_equal(first.data, expected)
    assert session.review.reviewed_of(first) == {5}
    assert session.review.reviewed_of(run.labels) == frozenset()


def hold(corrector):
    """Let what is submitted next wait; returns what lets it go."""
    submit, waiting = corrector._background.submit, []

    def later(*args):
        waiting.append(args)

    def release():
        corrector._background.submit = submit
        for args in waiting:
            submit(*args)

    corrector._background.submit = later
    return release
