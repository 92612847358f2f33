"""Runs in a viewer without a window, with a child process that has no network."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer

from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.layers.bridge import ct_layer_data, labels_layer_data, labels_of
from napari_pancreas_seg._napari.layers.maps import PROBABILITY
from napari_pancreas_seg._napari.layers.placement import show_slice, slice_on_screen
from napari_pancreas_seg._napari.run import worker
from napari_pancreas_seg._napari.run.earlier import values_in
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import Options
from napari_pancreas_seg.volume import CTVolume

FAKE = Path(__file__).with_name("fake_network.py")


def shown(maps, reference) -> str:
    return next((w for w, layer in maps.layers(reference).items() if layer.visible), "")


def box_mask(shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[1:, shape[1] // 4 : shape[1] // 2, shape[2] // 4 : shape[2] // 2] = 1
    return mask


@pytest.fixture
def ct(viewer: ViewerModel, volume: CTVolume) -> Image:
    layer = Layer.create(*ct_layer_data(volume))
    viewer.add_layer(layer)
    return layer


def finish(qtbot, app: App, ct: Image, model: str = "box") -> Labels | None:
    run = app.runs.start(ct, model)
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    return run.labels


def first_slices(qtbot, run) -> None:
    qtbot.waitUntil(lambda: run.labels is not None and run.labels.data.any(), timeout=20_000)


def test_slices_stream_and_post_processing_has_the_last_word(qtbot, app, viewer, ct):
    labels = finish(qtbot, app, ct)
    assert np.array_equal(labels.data, box_mask(ct.data.shape))
    assert labels.data.dtype == np.uint8
    assert viewer.layers.selection.active is labels
    assert viewer.layers[-1] is labels
    assert "mL in 9 slices" in app.runs.latest.message
    names = [layer.name for layer in viewer.layers]
    assert names == ["CT", "CT attention 1", "CT pancreas"]  # what is not shown is not added
    gate = viewer.layers["CT attention 1"]
    assert gate.visible and gate.contrast_limits == [0, 1] and gate.interpolation2d == "linear"
    assert labels.contour > 0  # an outline, so that the gate is to be seen


def test_a_map_that_was_chosen_is_under_an_outlined_mask(qtbot, app, viewer, ct):
    app.maps.show(None, PROBABILITY)
    labels = finish(qtbot, app, ct)
    names = [layer.name for layer in viewer.layers if layer.visible]
    assert names == ["CT", f"CT {PROBABILITY}", "CT pancreas"] and labels.contour > 0


@pytest.fixture
def second_look(network, monkeypatch) -> None:
    """The network sees twice as much of what it has streamed when it looks again."""
    segment = network.iter_segment

    def fainter(*args, **how):
        with contextlib.closing(segment(*args, **how)) as steps:
            while True:
                try:
                    step = next(steps)
                except StopIteration as end:
                    return end.value
                for part in () if step.slices is None else step.slices.maps.values():
                    part.values[...] /= 2
                yield step

    monkeypatch.setattr(network, "iter_segment", fainter)


@pytest.mark.parametrize("model", ["graded", "organs"])
def test_what_the_network_saw_later_is_shown_and_kept(qtbot, app, ct, second_look, model):
    labels, reference = finish(qtbot, app, ct, model), app.session.placement(ct).reference
    result, found = app.session.masks[labels].result, labels.data.copy()
    assert result.probability.values.max() > 0.9
    for word, kept in {
        PROBABILITY: result.probability,
        **{f"{PROBABILITY} {name}": one for name, one in result.probabilities.items()},
    }.items():
        app.maps.show(reference, word)
        assert app.maps.layers(reference)[word].data is kept.values
    for threshold in (0.3, 0.5):
        with qtbot.waitSignal(app.rethreshold.done, timeout=20_000):
            app.rethreshold.ask(labels, threshold, True)
        assert np.array_equal(labels.data, found) == (threshold == 0.5)


def test_a_map_that_is_on_screen_is_drawn_anew_at_the_end(qtbot, app, ct, tmp_path):
    run = app.runs.start(ct, f"slow {tmp_path / 'go on'}")
    qtbot.waitUntil(lambda: PROBABILITY in app.maps.known(run.reference), timeout=20_000)
    app.maps.show(run.reference, PROBABILITY)
    layer, drawn = app.maps.layers(run.reference)[PROBABILITY], []
    layer.events.set_data.connect(lambda: drawn.append(layer.data.copy()))
    (tmp_path / "go on").touch()
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    assert np.array_equal(drawn[-1], box_mask(ct.data.shape)[:, ::2, ::2])


def test_after_a_run_the_slice_with_most_of_the_gland_is_shown(qtbot, app, viewer, ct):
    reference = app.session.placement(ct).reference
    show_slice(viewer, ct, reference, 8)
    labels = finish(qtbot, app, ct, "graded")
    areas = np.count_nonzero(labels.data, axis=(1, 2))
    assert slice_on_screen(viewer, ct, reference) == areas.argmax() != 8


def test_a_user_who_has_moved_is_left_alone(qtbot, app, viewer, ct, tmp_path):
    reference = app.session.placement(ct).reference
    show_slice(viewer, ct, reference, 8)
    run = app.runs.start(ct, f"slow {tmp_path / 'go on'}")
    first_slices(qtbot, run)
    show_slice(viewer, ct, reference, 7)
    (tmp_path / "go on").touch()
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    assert slice_on_screen(viewer, ct, reference) == 7


def test_a_second_run_takes_the_same_layers(qtbot, app, viewer, ct):
    first = finish(qtbot, app, ct)
    pid = app.network.process.pid
    app.maps.show(app.session.placement(ct).reference, "attention 2")
    viewer.layers["CT attention 2"].visible = False  # by the eye in the layer list
    second = finish(qtbot, app, ct)
    assert second is first
    assert app.network.process.pid == pid
    assert shown(app.maps, app.session.placement(ct).reference) == ""
    assert np.array_equal(second.data, box_mask(ct.data.shape))
    app.maps.show(app.session.placement(ct).reference, "attention 2")
    assert shown(app.maps, app.session.placement(ct).reference) == "attention 2"
    assert np.array_equal(second.data, box_mask(ct.data.shape))


def test_a_second_run_leaves_edited_labels_alone(qtbot, app, ct):
    first = finish(qtbot, app, ct)
    first.data_setitem((np.array([2]), np.array([0]), np.array([0])), 1)
    kept = first.data.copy()
    second = finish(qtbot, app, ct)
    assert second is not first
    assert np.array_equal(first.data, kept)


@pytest.mark.parametrize("edited", [False, True])
def test_a_run_that_ends_with_nothing_leaves_the_former_mask(qtbot, app, viewer, ct, edited):
    labels = finish(qtbot, app, ct)
    labels.data_setitem((np.array([2]), np.array([0]), np.array([0])), 1)
    if not edited:
        labels.undo()
    app.session.mask = labels
    app.review.set_reviewed(labels, [2, 3])
    names, result = [layer.name for layer in viewer.layers], app.session.masks[labels].result
    kept = labels.data.copy()
    finish(qtbot, app, ct, "nothing")
    run = app.runs.latest
    assert "No pancreas found" in run.message and "the mask stays." in run.message
    assert not run.can_discard and not run.stands
    assert [layer.name for layer in viewer.layers] == names and labels.visible
    assert np.array_equal(labels.data, kept) and app.session.masks[labels].result is result
    assert app.review.reviewed_of(labels) == {2, 3}
    (labels.undo if edited else labels.redo)()
    assert labels.data[2, 0, 0] == (not edited)
    viewer.layers.remove(labels)
    fresh = finish(qtbot, app, ct, "nothing")  # there is none that could stay
    assert fresh in viewer.layers and not fresh.data.any()
    assert "stays" not in app.runs.latest.message and app.runs.latest.stands


@pytest.mark.parametrize(
    ("options", "marks"),
    [
        (Options(slices=(5, 7)), {4}),
        (Options(slices=(5, 7), box=(0, 16, 0, 40)), {4}),
        (Options(box=(0, 16, 0, 40)), set()),
    ],
)
@pytest.mark.parametrize("edited", [False, True])
def test_a_restricted_run_renews_no_more_than_that(
    qtbot, app, viewer, ct, options, marks, edited, notifications
):
    former = finish(qtbot, app, ct, "graded")
    app.session.mask = former
    app.review.set_reviewed(former, {4, 5})
    if edited:
        former.data_setitem((np.array([4]), np.array([1]), np.array([1])), 1)
    expected, region = former.data.copy(), options.region(former.data.shape)
    before = expected.copy()

    def run_with(threshold: float) -> np.ndarray:
        run = app.runs.start(ct, "graded", replace(options, threshold=threshold))
        qtbot.waitUntil(lambda: not run.running, timeout=20_000)
        return run.labels

    labels = run_with(0.2)
    lower = labels.data.copy()
    expected[region] = lower[region]
    assert lower[region].sum() > before[region].sum() > 0
    assert np.array_equal(lower, expected)
    assert "the mask is the earlier one" in notifications[-1].message
    assert "the mask is the earlier one" in app.session.masks[labels].result.notes[-1]
    assert app.review.reviewed_of(labels) == marks
    # Nothing of the former is lost.
    assert former in viewer.layers and not former.visible and "(earlier)" in former.name
    assert np.array_equal(former.data, before) and app.review.reviewed_of(former) == {4, 5}
    # Another threshold, and a stroke under it.
    labels.data_setitem((np.array([5]), np.array([0]), np.array([0])), 1)
    with qtbot.waitSignal(app.rethreshold.done, timeout=20_000):
        app.rethreshold.ask(labels, 0.5, True)
    assert labels.data[5, 0, 0] == 1 and labels.data[region].sum() < lower[region].sum()
    expected[region] = labels.data[region]
    assert np.array_equal(labels.data, expected)
    # What this model did not write may hold a person's corrections, and counts as such.
    rest = expected.copy()
    rest[region] = 0
    changed = set(np.flatnonzero(app.session.masks[labels].touched_slices(labels)).tolist())
    assert changed == {5, *np.flatnonzero(rest.any((1, 2))).tolist()}
    assert labels in app.autosave.unexported()


def test_a_restricted_run_keeps_the_rest_of_a_mask_from_a_file(qtbot, app, viewer, ct, volume):
    mask = np.zeros(volume.grid.shape, np.uint8)
    mask[:, 2:5, 2:6] = 1
    opened = viewer.add_layer(Layer.create(*labels_layer_data(mask, volume, "theirs")))
    app.session.mask = opened
    run = app.runs.start(ct, "graded", Options(slices=(4, 6)))
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    assert np.array_equal(np.delete(run.labels.data, [4, 5], 0), np.delete(mask, [4, 5], 0))
    assert not np.array_equal(run.labels.data, mask) and np.array_equal(opened.data, mask)
    assert not opened.visible and "(earlier)" in opened.name


def restricted(qtbot, app: App, ct: Image, model: str) -> Labels | None:
    run = app.runs.start(ct, model, Options(slices=(4, 6)))
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    return run.labels


@pytest.mark.parametrize(("dtype", "label"), [(np.uint8, 255), (np.int32, 1)])
def test_the_rest_of_a_mask_of_another_label_or_type_is_kept(
    qtbot, app, viewer, ct, volume, dtype, label
):
    mask = np.zeros(volume.grid.shape, dtype)
    mask[:, 2:5, 2:6] = label
    app.session.mask = viewer.add_layer(Layer.create(*labels_layer_data(mask, volume, "theirs")))
    labels = restricted(qtbot, app, ct, "graded")
    assert np.array_equal(labels.data[:4], mask[:4] != 0) and set(np.unique(labels.data)) == {0, 1}


def test_the_rest_of_a_mask_has_the_values_that_the_model_gives_its_labels(
    qtbot, app, viewer, ct, volume, notifications, monkeypatch
):
    card = {"labels": {"pancreas": 1, "liver": 2, "spleen": 3}}
    monkeypatch.setattr(worker, "card_of", lambda model: card if model == "organs" else {})
    mask = np.zeros(volume.grid.shape, np.uint8)
    mask[:, 2:5, 2:6], mask[:, 8:12, 2:6] = 1, 2
    named = {"liver": 1, "pancreas": 2}
    data = labels_layer_data(mask, volume, "theirs", labels=named)
    app.session.mask = viewer.add_layer(Layer.create(*data))
    assert restricted(qtbot, app, ct, "graded") is None
    assert "labels that this model does not know ('liver')" in notifications[-1].message
    labels = restricted(qtbot, app, ct, "organs")
    assert labels_of(labels) == card["labels"]
    assert np.array_equal(labels.data[:4], np.array([0, 2, 1], np.uint8)[mask[:4]])


def test_a_single_label_of_a_file_may_have_any_name_but_not_one_that_a_run_gave():
    mask, wanted = np.full((2, 3, 4), 9, np.uint8), {"pancreas": 1}
    for named in ({}, {"pancreas": 1}, {"pancreas": 9}, {"Segment_1": 9}):
        assert values_in(mask, named, wanted, any_name=True)[9] == 1
    assert values_in(mask, {"pancreas": 9}, wanted, any_name=False)[9] == 1
    with pytest.raises(PancreasSegError, match="does not know"):
        values_in(mask, {"liver": 9}, wanted, any_name=False)


def test_what_is_painted_until_a_restricted_run_has_begun_is_in_its_mask(qtbot, app, ct, tmp_path):
    former = finish(qtbot, app, ct)
    app.session.mask = former
    run = app.runs.start(ct, f"wait {tmp_path / 'ready'}", Options(slices=(4, 6)))
    qtbot.waitUntil(lambda: run.labels is not None, timeout=20_000)
    former.data_setitem((np.array([8]), np.array([1]), np.array([1])), 1)
    (tmp_path / "ready").touch()
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    assert run.labels is not former and run.labels.data[8, 1, 1] == 1


@pytest.mark.parametrize("begun", [False, True])
def test_a_label_that_fits_no_mask_painted_meanwhile_ends_no_run_half_way(
    qtbot, app, viewer, ct, tmp_path, notifications, begun
):
    former = viewer.add_labels(box_mask(ct.data.shape).astype(np.uint16), name="by hand")
    app.session.mask = former
    how = f"slow {tmp_path / 'go on'}" if begun else f"wait {tmp_path / 'ready'}"
    run = app.runs.start(ct, how, Options(slices=(0, 5)))
    there = (lambda: run.labels in viewer.layers) if begun else (lambda: run.labels is not None)
    qtbot.waitUntil(there, timeout=20_000)
    former.data_setitem((np.array([8]), np.array([1]), np.array([1])), 300)
    expected = former.data.copy()
    if begun:
        run.cancel()
    (tmp_path / "ready").touch()
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    run.discard()
    assert not run.can_discard and run.labels not in viewer.layers
    assert former.visible and former.name == "by hand" and np.array_equal(former.data, expected)
    assert [("to 300" in one.message) for one in notifications] == [True] * (not begun)


def test_the_earlier_mask_comes_back_under_what_was_painted(qtbot, app, viewer, ct, tmp_path):
    former = finish(qtbot, app, ct)
    expected, app.session.mask = former.data.copy(), former
    run = app.runs.start(ct, f"slow {tmp_path / 'go on'}", Options(slices=(0, 5)))
    qtbot.waitUntil(lambda: run.labels in viewer.layers, timeout=20_000)
    expected[8, 1, 1] = 1
    expected[7, 10, 12] = 0
    assert run.labels.data[7, 10, 12] == 1
    for value, where in ((1, (8, 1, 1)), (0, (7, 10, 12))):
        run.labels.data_setitem(tuple(np.array([n]) for n in where), value)
    run.cancel()
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    run.discard()
    assert run.labels in viewer.layers and np.array_equal(run.labels.data, expected)


@pytest.mark.parametrize("model", ["nothing", "graded"])
def test_a_whole_run_on_a_mask_from_a_file_leaves_it_or_puts_it_aside(
    qtbot, app, viewer, ct, volume, model
):
    mask = np.zeros(volume.grid.shape, np.uint8)
    mask[:, 2:5, 2:6] = 1
    opened = viewer.add_layer(Layer.create(*labels_layer_data(mask, volume, "theirs")))
    app.session.mask = opened
    labels = finish(qtbot, app, ct, model)
    assert np.array_equal(opened.data, mask)
    if model == "nothing":
        assert "the mask stays." in app.runs.latest.message and labels not in viewer.layers
        assert opened.visible and opened.name == "theirs"
    else:
        assert labels in viewer.layers and not labels.data[:, 2:5, 2:6].any()
        assert not opened.visible and opened.name == "theirs (earlier)"


def test_a_restricted_run_that_is_taken_back(qtbot, app, viewer, ct, tmp_path):
    former = finish(qtbot, app, ct)
    kept, names = former.data.copy(), [layer.name for layer in viewer.layers]
    run = app.runs.start(ct, f"slow {tmp_path / 'go on'}", Options(slices=(0, 5)))
    qtbot.waitUntil(lambda: run.labels in viewer.layers, timeout=20_000)
    assert run.labels is not former and np.array_equal(run.labels.data[5:], kept[5:])
    run.cancel()
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    run.discard()
    assert [layer.name for layer in viewer.layers] == names and former.visible
    assert np.array_equal(former.data, kept)
    # Without a former mask there is no rest to speak of.
    viewer.layers.remove(former)
    run = app.runs.start(ct, "box", Options(slices=(0, 5)))
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    assert "earlier" not in run.message and run.stands


def test_slices_that_a_person_edits_meanwhile_stay(qtbot, app, ct, tmp_path):
    run = app.runs.start(ct, f"slow {tmp_path / 'go on'}")
    first_slices(qtbot, run)
    stroke = (np.array([9, 9]), np.array([0, 1]), np.array([30, 30]))
    run.labels.data_setitem(stroke, 1)
    erased = (np.array([1]), np.array([9]), np.array([11]))
    qtbot.waitUntil(lambda: run.labels.data[erased] == 1, timeout=20_000)
    run.labels.data_setitem(erased, 0)
    as_left = run.labels.data[1].copy()
    (tmp_path / "go on").touch()
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    assert np.array_equal(run.labels.data[1], as_left)
    only_stroke = np.zeros_like(as_left)
    only_stroke[stroke[1:]] = 1
    assert np.array_equal(run.labels.data[9], only_stroke)
    assert np.array_equal(run.labels.data[2:9], box_mask(ct.data.shape)[2:9])
    known = app.session.masks[run.labels]
    assert np.flatnonzero(known.touched_slices(run.labels)).tolist() == [1, 9]
    assert np.array_equal(known.copy, box_mask(ct.data.shape))
    run.labels.undo()
    run.labels.undo()
    qtbot.waitUntil(lambda: np.array_equal(run.labels.data, known.copy), timeout=20_000)
    run.labels.redo()
    run.labels.undo()
    assert np.array_equal(run.labels.data, known.copy)


def test_what_was_painted_before_the_run_came_and_erased_by_hand_stays_empty(
    qtbot, app, ct, tmp_path
):
    run = app.runs.start(ct, f"slow {tmp_path / 'go on'}")
    first_slices(qtbot, run)
    stroke = (np.array([9, 9]), np.array([0, 1]), np.array([30, 30]))
    run.labels.data_setitem(stroke, 1)
    (tmp_path / "go on").touch()
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    run.labels.data_setitem(stroke, 0)
    app.watch.notify()
    run.labels.data_setitem(stroke, 1)
    run.labels.undo()
    app.watch.notify()
    assert not run.labels.data[9].any()


def test_undo_does_not_reach_behind_the_run(qtbot, app, ct):
    labels = finish(qtbot, app, ct)
    before = labels.data.copy()
    labels.undo()
    assert np.array_equal(labels.data, before)


def test_cancel_keeps_what_is_there_and_the_process(qtbot, app, ct):
    run = app.runs.start(ct, "slow")
    first_slices(qtbot, run)
    pid = app.network.process.pid
    run.cancel()
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    assert run.labels.data.any()
    assert not np.array_equal(run.labels.data, box_mask(ct.data.shape))
    assert "Cancelled" in run.message
    assert app.network.process.pid == pid
    assert np.array_equal(finish(qtbot, app, ct).data, box_mask(ct.data.shape))


def test_whatever_fails_at_a_run_s_end_the_network_is_free_again(qtbot, app, ct):
    def fail(event) -> None:  # as another plugin may
        raise ZeroDivisionError

    run = app.runs.start(ct, "slow")
    first_slices(qtbot, run)
    run.labels.events.data.connect(fail)
    with qtbot.capture_exceptions() as raised:
        qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    assert raised and not app.network.in_use


@pytest.mark.slow
def test_a_run_that_cannot_begin_leaves_the_network_free(qtbot, app, ct, monkeypatch):
    def odd(*_):
        raise ValueError("odd")

    with monkeypatch.context() as changed:
        changed.setattr("napari_pancreas_seg._napari.run.runs.SegmentationRun", odd)
        with pytest.raises(ValueError, match="odd"):
            app.runs.start(ct, "box")
    assert finish(qtbot, app, ct) is not None


def test_gaps_in_the_table_of_labels_name_none(qtbot, app, ct):
    labels = finish(qtbot, app, ct)
    named = labels_of(labels)
    labels.features = {
        "index": [0, *named.values(), np.nan, 9],
        "name": ["background", *named, "no number", None],
    }
    assert labels_of(labels) == named
    assert finish(qtbot, app, ct) is not None


def test_a_network_that_hangs_is_killed_on_cancel(qtbot, app, ct, notifications, tmp_path):
    run = app.runs.start(ct, f"hang {tmp_path / 'now'}")
    qtbot.waitUntil((tmp_path / "now").exists, timeout=20_000)
    run.cancel()
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    assert app.network.process.pid is None
    assert notifications == []


def test_a_mask_that_is_kept_comes_back_into_the_layer_list(qtbot, app, viewer, ct):
    run = app.runs.start(ct, "slow")
    first_slices(qtbot, run)
    viewer.layers.remove(run.labels)
    run.cancel()
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    assert run.labels not in viewer.layers
    run.keep()
    assert run.labels in viewer.layers and run.labels.visible
    assert "stays" in run.message


def test_the_next_run_brings_back_no_mask_that_was_removed(qtbot, app, viewer, ct):
    run = app.runs.start(ct, "slow")
    first_slices(qtbot, run)
    run.cancel()
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    viewer.layers.remove(run.labels)
    later = app.runs.start(ct, "box")
    assert run.labels not in viewer.layers
    qtbot.waitUntil(lambda: not later.running, timeout=20_000)


def test_the_earlier_mask_comes_back_if_the_new_one_was_removed(qtbot, app, viewer, ct):
    former = finish(qtbot, app, ct)
    former.data_setitem((np.array([8]), np.array([1]), np.array([1])), 1)
    name, app.session.mask = former.name, former
    run = app.runs.start(ct, "slow")
    qtbot.waitUntil(lambda: run.labels in viewer.layers, timeout=20_000)
    run.cancel()
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    assert run.labels is not former and not former.visible
    viewer.layers.remove(run.labels)
    run.discard()
    assert former.visible and former.name == name and run.labels not in viewer.layers


@pytest.mark.slow
@pytest.mark.parametrize("what", ["ct", "labels", "both"])
def test_layers_removed_while_it_runs(qtbot, app, viewer, ct, notifications, what, tmp_path):
    run = app.runs.start(ct, f"slow {tmp_path / 'go on'}")
    first_slices(qtbot, run)
    ct.name = "renamed"
    if what in ("ct", "both"):
        viewer.layers.remove(ct)
    if what in ("labels", "both"):
        viewer.layers.remove(run.labels)
    (tmp_path / "go on").touch()
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    assert run.labels in viewer.layers
    assert np.array_equal(run.labels.data, box_mask(ct.data.shape))
    assert [record.severity.value for record in notifications] == ["info"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("fail", "no such model"),
        ("bug", "RuntimeError: a bug"),
        ("die", "ended unexpectedly"),
        ("noise", "not an answer"),
    ],
)
def test_an_error_is_said_once_and_the_next_run_works(
    qtbot, app, viewer, ct, notifications, model, sentence
):
    finish(qtbot, app, ct, model)
    assert [record.severity.value for record in notifications] == ["error"]
    assert sentence in notifications[0].message
    assert not app.runs.running
    assert len(viewer.layers) == 1
    assert finish(qtbot, app, ct) is not None


def test_a_killed_process_is_explained(qtbot, app, ct, notifications):
    run = app.runs.start(ct, "slow")
    first_slices(qtbot, run)
    app.network.process._child.process.kill()
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    assert "memory" in notifications[-1].message
    assert run.labels.data.any()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["fail", "die", "hang"])
def test_a_run_that_found_nothing_brings_the_former_mask_back(
    qtbot, app, viewer, ct, model, tmp_path
):
    labels = finish(qtbot, app, ct)
    layers, result = list(viewer.layers), app.session.masks[labels].result
    app.session.mask = labels
    app.review.set_reviewed(labels, [2, 3])
    run = app.runs.start(ct, f"hang {tmp_path / 'now'}" if model == "hang" else model)
    if model == "hang":
        qtbot.waitUntil(lambda: (tmp_path / "now").exists(), timeout=20_000)
        qtbot.waitUntil(lambda: not labels.data.any(), timeout=20_000)
        run.cancel()
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    assert np.array_equal(labels.data, box_mask(ct.data.shape))
    assert not run.can_discard and not run.stands
    assert app.session.masks[labels].result is result
    assert app.review.reviewed_of(labels) == {2, 3}
    assert list(viewer.layers) == layers
    assert finish(qtbot, app, ct) is labels


@pytest.mark.slow
@pytest.mark.parametrize("keep", [True, False])
def test_what_a_run_found_before_it_failed_is_asked_about(qtbot, app, ct, keep):
    labels = finish(qtbot, app, ct)
    app.session.mask = labels
    app.review.set_reviewed(labels, [2, 3])
    run = app.runs.start(ct, "slow")
    qtbot.waitUntil(lambda: run.done >= 2, timeout=20_000)
    app.network.process._child.process.kill()
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    assert run.can_discard and not run.cancelled
    assert "failed after" in run.message and "Keep" in run.message
    found = labels.data.copy()
    assert found.any() and not np.array_equal(found, box_mask(ct.data.shape))
    assert app.review.reviewed_of(labels) == {2, 3}
    app.review.toggle_reviewed(5)  # said of what is on screen
    if keep:
        run.done = 1
        run.keep()
        assert run.message == "The run failed after 1 slice; the mask stays."
        assert np.array_equal(labels.data, found)
        assert app.review.reviewed_of(labels) == {5}
    else:
        run.discard()
        assert np.array_equal(labels.data, box_mask(ct.data.shape))
        assert app.review.reviewed_of(labels) == {2, 3}
    assert not run.can_discard and run.stands == keep
    app.review.set_reviewed(labels, [7])
    run.show_figures(app.session.masks[labels], 0.5)
    assert app.review.reviewed_of(labels) == {7}


@pytest.mark.slow
def test_cancelled_marks_come_back_with_the_mask(qtbot, app, ct):
    labels = finish(qtbot, app, ct)
    app.review.set_reviewed(labels, [2, 3, 4])
    run = app.runs.start(ct, "slow")
    qtbot.waitUntil(lambda: run.done >= 2, timeout=20_000)
    run.cancel()
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    run.discard()
    assert np.array_equal(labels.data, box_mask(ct.data.shape))
    assert app.review.reviewed_of(labels) == {2, 3, 4}


def test_one_run_at_a_time(qtbot, app, ct):
    run = app.runs.start(ct, "slow")
    with pytest.raises(PancreasSegError, match="under way"):
        app.runs.start(ct)
    run.cancel()
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)


def test_a_foreign_layer_in_another_order(qtbot, app, viewer):
    """An array whose first axis runs to the patient's left, with a scale in micrometres."""
    i, j, k = np.indices((40, 32, 10))
    body = (i - 20) ** 2 / 300 + (j - 16) ** 2 / 180
    hu = np.where(body > 1, -1000.0, np.where(body > 0.7, -100, 40 + 2 * k + i))
    order = np.zeros((4, 4))
    order[[2, 1, 0], [0, 1, 2]] = (800, 900, 2500)
    order[3, 3] = 1
    ct = Image(hu, affine=order, units=("um",) * 3, name="foreign", multiscale=False, rgb=False)
    viewer.add_layer(ct)
    labels = finish(qtbot, app, ct)
    assert labels.data.shape == hu.shape
    assert np.array_equal(labels.data.transpose(2, 1, 0), box_mask((10, 32, 40)))
    assert np.allclose(labels.data_to_world((1, 2, 3)), ct.data_to_world((1, 2, 3)))
    gate = viewer.layers["foreign attention 1"]
    assert np.allclose(gate.data_to_world((3, 0, 0)), ct.data_to_world((0.5, 0.5, 3)))


QUIT = """
import sys
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication
application = QApplication([])
from napari.components import ViewerModel
from napari_pancreas_seg._napari.app import app_of
from napari_pancreas_seg._napari.layers.reader import read_layer
from napari_pancreas_seg.inference.process.client import NetworkProcess
from napari.layers import Layer
viewer = ViewerModel()
ct = Layer.create(*read_layer(sys.argv[1], [])[0])
viewer.add_layer(ct)
app = app_of(viewer)
app.network.process = NetworkProcess([sys.executable, sys.argv[2]])
run = app.runs.start(ct, "slow")
run.changed.connect(lambda: run.done and application.quit())
application.exec()
print(run.running, run.done < run.total)
"""


@pytest.mark.slow
def test_a_program_that_ends_does_not_wait_for_a_run(ct_path, own_folders):
    done = subprocess.run(
        [sys.executable, "-c", QUIT, str(ct_path), str(FAKE)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "XDG_DATA_HOME": str(own_folders), "XDG_CONFIG_HOME": str(own_folders)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "True"]
