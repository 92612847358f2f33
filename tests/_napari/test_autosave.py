"""Corrections outlive a crash; a window asks before it leaves them; a script is never asked."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import nibabel as nib
import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Labels, Layer
from napari.layers._layer_actions import _duplicate_layer
from qtpy.QtCore import QEvent
from qtpy.QtWidgets import QMessageBox

from napari_pancreas_seg._napari.app import app_of
from napari_pancreas_seg._napari.autosave import autosave
from napari_pancreas_seg._napari.autosave.store import (
    AutosaveStore,
    Unsaved,
    autosave_folder,
    ct_key,
    read_header,
)
from napari_pancreas_seg._napari.commands import open_dock
from napari_pancreas_seg._napari.layers.bridge import (
    CUTS_KEY,
    FILE_KEY,
    ct_layer_data,
    cuts_of,
    labels_layer_data,
    labels_of,
)
from napari_pancreas_seg._napari.layers.placement import (
    DRAWN,
    METADATA_KEY,
    placement_of,
    reference_of,
    show_slice,
    slice_on_screen,
)
from napari_pancreas_seg._napari.widget import PancreasDock
from napari_pancreas_seg._napari.widget.header import CtPanel
from napari_pancreas_seg._napari.widget.measure_panel import MeasurePanel
from napari_pancreas_seg._napari.widget.options_panel import NEXT_RUN, OptionsPanel
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import describe
from napari_pancreas_seg.inference.saving import read_sidecar, write_sidecar

TIMEOUT = 30_000


def finish(qtbot, app, ct, model="box"):
    run = app.runs.start(ct, model)
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    return run.labels


def paint(layer, *where: int, value: int = 1) -> None:
    layer.data_setitem(tuple(np.array([n]) for n in where), value)


def kept_files() -> list[Path]:
    return sorted(autosave_folder().glob("*.npz"))


def restored_later(qtbot, volume):
    """Open the CT in another window and restore what was left: its viewer, app, and the offer."""
    after = ViewerModel()
    later = app_of(after)
    qtbot.waitUntil(lambda: bool(later.offers.left), timeout=TIMEOUT)
    again = after.add_layer(Layer.create(*ct_layer_data(volume)))
    later.session.ct = again
    qtbot.waitUntil(lambda: bool(later.offers.of(later.session.reference)), timeout=TIMEOUT)
    (offer,) = later.offers.of(later.session.reference)
    later.offers.restore(offer, later.session.placement(again))
    qtbot.waitUntil(lambda: len(after.layers) == 2, timeout=TIMEOUT)
    return after, later, offer


@pytest.mark.slow
def test_a_run_alone_is_not_kept(qtbot, app, ct):
    labels = finish(qtbot, app, ct)
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        app.session.mask_changed.emit(labels)
    assert kept_files() == []
    assert app.autosave.unexported() == []


@pytest.mark.slow
def test_cuts_alone_are_kept_and_come_back(qtbot, app, ct, volume):
    labels, panel = finish(qtbot, app, ct), MeasurePanel(app)
    qtbot.addWidget(panel)
    app.session.mask = labels
    for share in (45, 20):
        with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
            panel.cuts[0].value = share
        assert len(kept_files()) == 1
    assert app.autosave.unexported() == []
    app.close()
    after, later, _ = restored_later(qtbot, volume)
    assert cuts_of(after.layers[-1])[0] == 0.2
    later.close()


@pytest.mark.slow
def test_strokes_are_kept_and_come_back(qtbot, app, ct, volume):
    labels = finish(qtbot, app, ct)
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        paint(labels, 4, 1, 30)
    assert len(kept_files()) == 1
    assert app.autosave.unexported() == [labels]
    app.mending.recall(labels, {4: (2, 1)})
    labels.metadata[CUTS_KEY] = (0.2, 0.7)
    app.review.set_reviewed(labels, [4, 5])
    show_slice(app.session.viewer, labels, app.session.placement(ct).reference, 7)
    app.close()

    after, later, offer = restored_later(qtbot, volume)
    restored = after.layers[-1]
    assert np.array_equal(restored.data, labels.data)
    assert np.flatnonzero(later.session.masks[restored].touched_slices(restored)).tolist() == [4]
    assert later.review.reviewed_of(restored) == {4, 5}
    assert slice_on_screen(after, restored, later.session.reference) == 7
    assert later.mending.counts(restored) == {4: (2, 1)} and cuts_of(restored) == (0.2, 0.7)
    # It is kept under its new window, and the former file is gone.
    qtbot.waitUntil(lambda: kept_files() not in ([], [offer.file]), timeout=TIMEOUT)
    qtbot.waitUntil(lambda: len(kept_files()) == 1, timeout=TIMEOUT)
    later.close()


@pytest.mark.slow
@pytest.mark.parametrize("edited", [True, False])
def test_a_restored_mask_knows_what_made_it(qtbot, app, ct, volume, tmp_path, edited):
    labels = finish(qtbot, app, ct, "organs")
    made = app.session.masks[labels]
    dice = np.linspace(0.4, 0.9, len(volume.hu), dtype=np.float32)
    dice[0] = np.nan
    made.result = replace(made.result, expected_dice=dice, scan={"phase": "portal venous"})
    assert app.rethreshold.ask(labels, 0.6, True)
    qtbot.waitUntil(lambda: made.result.threshold == 0.6, timeout=TIMEOUT)
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        app.review.set_reviewed(labels, [4])
        if edited:
            paint(labels, 4, 1, 30)
    before = describe(volume, app.session.result_of(labels), mask=labels.data)
    write_sidecar(tmp_path / "before.json", before)
    app.close()

    after, later, _ = restored_later(qtbot, volume)
    later.session.mask = restored = after.layers[-1]
    assert labels_of(restored) == {"pancreas": 1, "liver": 2, "spleen": 3}
    qtbot.waitUntil(lambda: later.review.facts is not None, timeout=TIMEOUT)
    assert np.array_equal(later.review.facts.doubt, 1 - dice, equal_nan=True)
    done = []
    later.files.export(restored, tmp_path / "after.nii.gz", then=done.append)
    qtbot.waitUntil(lambda: bool(done), timeout=TIMEOUT)
    was, now = (read_sidecar(tmp_path / f"{name}.json") for name in ("before", "after"))
    assert now == {**was, **{name: now[name] for name in ("created", "mask_sha256")}}
    # The probability is gone: another threshold needs another run, and that is said.
    panel = OptionsPanel(later)
    qtbot.addWidget(panel)
    assert panel.threshold.value == pytest.approx(0.6) and panel.threshold.tooltip == NEXT_RUN
    assert not later.rethreshold.ask(restored, 0.7, True)
    later.close()


@pytest.mark.slow
def test_a_restored_mask_from_a_file_is_that_mask_and_no_other(qtbot, app, ct, volume, viewer):
    data = labels_layer_data(np.zeros(volume.grid.shape, np.uint8), volume, "theirs")
    data[1]["metadata"][FILE_KEY] = "theirs.nii.gz"
    mask = viewer.add_layer(Layer.create(*data))
    app.session.mask = mask
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        paint(mask, 4, 1, 30)
    app.close()
    after, later, _ = restored_later(qtbot, volume)
    restored = after.layers[-1]
    assert restored.name == "theirs (recovered)" and later.session.mask is restored
    assert later.session.is_opened(restored) and restored.metadata[FILE_KEY] == "theirs.nii.gz"
    later.close()


@pytest.mark.slow
@pytest.mark.parametrize("notes", [{}, {"result": {"threshold": 0.5}}])
def test_what_another_version_has_kept_comes_back(qtbot, viewer, app, volume, notes):
    grid, store = volume.grid, AutosaveStore()
    mask = np.zeros(grid.shape, np.uint8)
    mask[4, 1, 30] = 1
    key = ct_key(volume.hu, grid.shape, grid.affine)
    unsaved = Unsaved(key, "CT", None, store.new_file(), notes)
    store.write(unsaved, mask, np.zeros_like(mask))
    store.close()
    after, later, _ = restored_later(qtbot, volume)
    restored = after.layers[-1]
    assert np.array_equal(restored.data, mask) and labels_of(restored) == {"pancreas": 1}
    assert later.session.masks[restored].result is None
    later.close()


@pytest.mark.slow
def test_an_opened_mask_keeps_its_names_and_expected_dice(qtbot, app, viewer, ct, volume):
    dice = (0.25, *[float("nan")] * (len(volume.hu) - 1))
    facts = {"labels": {"liver": 2}, "expected_dice": dice}
    data = labels_layer_data(np.zeros(ct.data.shape, np.uint8), volume, "theirs", **facts)
    mask = viewer.add_layer(Layer.create(*data))
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        paint(mask, 4, 1, 30, value=2)
    app.close()
    after, later, _ = restored_later(qtbot, volume)
    assert labels_of(after.layers[-1]) == {"liver": 2}
    assert np.array_equal(reference_of(after.layers[-1]).expected_dice, dice, equal_nan=True)
    later.close()


@pytest.mark.slow
def test_a_look_at_another_phase_does_not_take_a_mask_along(qtbot, app, viewer, ct, volume):
    other = type(volume)(volume.hu + np.int16(60), volume.grid, volume.source)
    venous = viewer.add_layer(Layer.create(*ct_layer_data(other, "venous")))
    app.session.ct = venous
    mask = viewer.add_labels(np.zeros(ct.data.shape, np.uint8), name="opened")
    for column, chosen in enumerate((venous, ct)):
        app.session.ct = chosen
        with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
            paint(mask, 4, 1, column)
        (kept,) = kept_files()
        assert read_header(kept)["name"] == "venous"
    app.autosave.exported(mask, app.autosave._kept[mask].digest)
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        paint(mask, 4, 1, 2)
    (kept,) = kept_files()
    assert read_header(kept)["name"] == "CT"


@pytest.mark.slow
def test_a_mask_that_was_deleted_is_offered_in_this_window(qtbot, app, viewer, ct):
    labels = finish(qtbot, app, ct)
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        paint(labels, 4, 1, 30)
    viewer.layers.remove(labels)
    (offer,) = app.offers.of(app.session.reference)
    viewer.add_layer(labels)
    assert app.offers.left == []
    paint(labels, 4, 1, 31)
    viewer.layers.remove(labels)  # before the last stroke is kept
    qtbot.waitUntil(lambda: bool(app.offers.left), timeout=TIMEOUT)
    (offer,) = app.offers.of(app.session.reference)
    app.offers.restore(offer, app.session.placement(ct))
    qtbot.waitUntil(lambda: viewer.layers[-1].name.endswith("(recovered)"), timeout=TIMEOUT)
    restored = viewer.layers[-1]
    assert np.array_equal(restored.data, labels.data)
    assert app.offers.left == [] and app.autosave.unexported() == [restored]
    qtbot.waitUntil(lambda: kept_files() not in ([], [offer.file]), timeout=TIMEOUT)
    qtbot.waitUntil(lambda: len(kept_files()) == 1, timeout=TIMEOUT)
    viewer.layers.remove(restored)
    app.offers.discard(app.offers.left[0])
    assert kept_files() == [] and app.autosave.unexported() == app.offers.left == []


def test_a_key_that_is_found_when_the_window_is_gone_is_no_fault(app, ct, qapp, monkeypatch):
    waiting = []
    monkeypatch.setattr(app.background, "submit", lambda work, then: waiting.append(then))
    app.offers._keys.clear()
    app.offers._learn_key()
    app.offers.deleteLater()
    qapp.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    (then,) = waiting
    then(None)


@pytest.mark.slow
def test_what_was_drawn_beside_a_cases_mask_comes_back_as_that(qtbot, app, viewer, ct, volume):
    placement = app.session.placement(ct)
    data = np.zeros(ct.data.shape, np.uint8)
    drawn = viewer.add_layer(Layer.create(*labels_layer_data(data, placement, "vessels")))
    drawn.metadata[METADATA_KEY] = replace(placement.reference, kind=DRAWN)
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        paint(drawn, 4, 1, 30)
    app.close()

    after, later, _ = restored_later(qtbot, volume)
    assert reference_of(after.layers[-1]).kind == DRAWN
    later.close()


@pytest.mark.slow
def test_another_ct_is_offered_by_name_only(qtbot, app, ct, volume):
    labels = finish(qtbot, app, ct)
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        paint(labels, 4, 1, 30)
    app.close()
    after = ViewerModel()
    later = app_of(after)
    qtbot.waitUntil(lambda: bool(later.offers.left), timeout=TIMEOUT)
    other = volume.hu.copy()
    other[0, 0, 0] += 1
    layer = Layer.create(*ct_layer_data(type(volume)(other, volume.grid, volume.source)))
    after.add_layer(layer)
    with qtbot.waitSignal(later.offers.changed, timeout=TIMEOUT):
        later.session.ct = layer
    assert later.offers.of(later.session.reference) == []
    later.offers.discard(later.offers.left[0])
    assert kept_files() == [] and later.offers.left == []
    later.close()


@pytest.mark.slow
def test_export_ends_the_keeping_until_the_next_stroke(qtbot, app, ct, tmp_path):
    labels = finish(qtbot, app, ct)
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        paint(labels, 4, 1, 30)
    done = []
    app.files.export(labels, tmp_path / "m.nii.gz", then=done.append)
    qtbot.waitUntil(lambda: bool(done), timeout=TIMEOUT)
    assert app.autosave.unexported() == []
    assert kept_files() == []
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        paint(labels, 4, 1, 31)
    assert app.autosave.unexported() == [labels]
    assert len(kept_files()) == 1


@pytest.mark.slow
def test_slices_reviewed_after_an_export_are_kept(qtbot, app, ct, tmp_path):
    labels = finish(qtbot, app, ct)
    app.review.set_reviewed(labels, [3])
    paint(labels, 4, 1, 30)
    for marked in ([3], [3, 4]):
        app.review.set_reviewed(labels, marked)
        done = []
        app.files.export(labels, tmp_path / "m.nii.gz", then=done.append, overwrite=True)
        qtbot.waitUntil(lambda done=done: bool(done), timeout=TIMEOUT)
        qtbot.waitUntil(lambda: kept_files() == [], timeout=TIMEOUT)
        with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
            app.review.set_reviewed(labels, [*marked, 5])
        (kept,) = kept_files()
        assert read_header(kept)["notes"]["reviewed"] == [*marked, 5]
    assert app.autosave.unexported() == []


@pytest.mark.slow
def test_a_stroke_that_comes_before_its_mask_is_written_is_kept(qtbot, app, ct, monkeypatch):
    labels = finish(qtbot, app, ct)
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        paint(labels, 4, 1, 30)
    exported = app.autosave._kept[labels].digest
    looking, go = holds_up(monkeypatch, autosave, "_digest_and_edited")
    paint(labels, 4, 1, 31)
    qtbot.waitUntil(looking.is_set, timeout=TIMEOUT)
    app.autosave.exported(labels, exported)
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        go.set()
    app.autosave.keep_all()
    assert app.autosave.unexported() == [labels] and len(kept_files()) == 1
    kept_files()[0].unlink()  # as another window may, where a disk has no locks
    app.autosave.keep_all()
    assert len(kept_files()) == 1


@pytest.mark.slow
def test_what_is_being_written_when_all_is_discarded_goes_too(qtbot, app, ct, monkeypatch):
    labels = finish(qtbot, app, ct)
    writing, go = holds_up(monkeypatch, app.autosave._store, "write")
    paint(labels, 4, 1, 30)
    qtbot.waitUntil(writing.is_set, timeout=TIMEOUT)
    app.autosave.discard_all()
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        go.set()
    assert kept_files() == [] and app.autosave.unexported() == []


def holds_up(monkeypatch, owner, name):
    """Hold up the thread that calls a function: say when it does, and what lets it go on."""
    called, go, does = threading.Event(), threading.Event(), getattr(owner, name)

    def wait(*given):
        called.set()
        assert go.wait(30)
        return does(*given)

    monkeypatch.setattr(owner, name, wait)
    return called, go


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m.csv", "m.STL"])
def test_a_file_without_the_voxels_is_no_export(qtbot, app, ct, tmp_path, name):
    labels = finish(qtbot, app, ct)
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        paint(labels, 4, 1, 30)
    done = []
    app.files.export(labels, tmp_path / name, then=done.append)
    qtbot.waitUntil(lambda: bool(done), timeout=TIMEOUT)
    assert done[0].exists() and len(kept_files()) == 1
    assert app.autosave.unexported() == [labels]


@pytest.mark.slow
def test_napari_s_own_way_to_save_is_an_export(qtbot, app, viewer, ct, tmp_path, volume, manifest):
    labels = finish(qtbot, app, ct)
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        paint(labels, 4, 1, 30)
    with patch("napari_pancreas_seg._napari.layers.writer.current_viewer", lambda: viewer):
        labels.save(str(tmp_path / "m.stl"))
        assert app.autosave.unexported() == [labels]
        labels.save(str(tmp_path / "m.nii.gz"))
    assert app.autosave.unexported() == [] and kept_files() == []


@pytest.mark.slow
def test_an_opened_mask_comes_back_on_its_ct(qtbot, app, viewer, ct_path, volume, tmp_path):
    """A mask from a file lies on a grid of its own; it is the CT by which it is known again."""
    mask = np.zeros(volume.source.shape, np.uint8)
    mask[10:20, 8:16, 3:6] = 1
    nib.save(nib.Nifti1Image(mask, nib.load(ct_path).affine), tmp_path / "theirs_mask.nii.gz")
    panel = CtPanel(app.session)
    qtbot.addWidget(panel)
    viewer.layers.events.inserted.connect(lambda event: panel.offer_layers())
    # The mask first: before its CT is there nothing can be kept.
    app.files.open(tmp_path / "theirs_mask.nii.gz")
    qtbot.waitUntil(lambda: len(viewer.layers) == 1, timeout=TIMEOUT)
    labels = viewer.layers[0]
    paint(labels, 5, 20, 20)
    with pytest.raises(PancreasSegError, match=r"theirs_mask.*No CT"):
        app.autosave.keep_all()
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        app.files.open(ct_path)
    assert app.session.mask is labels
    app.autosave.keep_all()
    app.close()

    after = ViewerModel()
    later = app_of(after)
    again = CtPanel(later.session)
    qtbot.addWidget(again)
    after.layers.events.inserted.connect(lambda event: again.offer_layers())
    qtbot.waitUntil(lambda: bool(later.offers.left), timeout=TIMEOUT)
    assert later.offers.left[0].path == str(ct_path)
    later.files.open(ct_path)
    qtbot.waitUntil(lambda: later.session.reference is not None, timeout=TIMEOUT)
    qtbot.waitUntil(lambda: bool(later.offers.of(later.session.reference)), timeout=TIMEOUT)
    (offer,) = later.offers.of(later.session.reference)
    later.offers.restore(offer, later.session.placement(later.session.ct))
    qtbot.waitUntil(lambda: later.session.mask is not None, timeout=TIMEOUT)
    assert np.array_equal(later.session.mask.data, labels.data)
    later.close()


def test_a_restored_mask_knows_which_strokes_its_record_counts(qtbot, app, ct, volume, tmp_path):
    labels, path = finish(qtbot, app, ct), tmp_path / "m.nii.gz"
    app.mending.recall(labels, {2: (1, 0)})
    with qtbot.waitSignal(app.session.mask_changed, timeout=TIMEOUT):
        paint(labels, 2, 1, 1)
    written = []
    app.files.export(labels, path, then=written.append)
    qtbot.waitUntil(lambda: bool(written), timeout=TIMEOUT)
    app.mending.recall(labels, {2: (1, 0), 4: (0, 1)})
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        paint(labels, 4, 1, 1)
    app.close()
    after, later, _ = restored_later(qtbot, volume)
    assert later.mending.counts(after.layers[1]) == {2: (1, 0), 4: (0, 1)}
    record = str(path.with_name("m.json"))
    assert later.mending.recorded[after.layers[1]] == {record: {2: (1, 0)}}
    later.close()


def test_a_restored_mask_is_seen_without_the_one_that_was_chosen(qtbot, app, viewer, ct):
    labels = finish(qtbot, app, ct)
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        paint(labels, 4, 1, 30)
    viewer.layers.remove(labels)
    qtbot.waitUntil(lambda: bool(app.offers.left), timeout=TIMEOUT)
    app.session.mask = chosen = finish(qtbot, app, ct, "graded")
    app.offers.restore(app.offers.left[0], app.session.placement(ct))
    qtbot.waitUntil(lambda: app.session.mask is not chosen, timeout=TIMEOUT)
    assert app.session.mask.visible and not chosen.visible
    qtbot.waitUntil(lambda: not app.autosave._busy, timeout=TIMEOUT)


def test_a_mask_that_comes_back_when_another_ct_is_chosen_stays_with_its_own(
    qtbot, app, viewer, ct, volume
):
    labels = finish(qtbot, app, ct)
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        paint(labels, 4, 1, 30)
    viewer.layers.remove(labels)
    qtbot.waitUntil(lambda: bool(app.offers.left), timeout=TIMEOUT)
    phase = viewer.add_layer(Layer.create(*ct_layer_data(replace(volume, hu=volume.hu + 1))))
    chosen = finish(qtbot, app, phase)
    app.offers.restore(app.offers.left[0], app.session.placement(ct))
    app.session.ct, app.session.mask = phase, chosen  # before it is there
    chosen.visible = True
    qtbot.waitUntil(lambda: "recovered" in "".join(map(str, viewer.layers)), timeout=TIMEOUT)
    (restored,) = (one for one in viewer.layers if "recovered" in one.name)
    assert app.session.mask is chosen and chosen.visible and not restored.visible
    app.session.ct = ct
    assert restored.visible and app.autosave.unexported() == [restored]


def test_a_duplicate_of_a_corrected_mask_is_corrected_too(qtbot, app, viewer, ct):
    labels = finish(qtbot, app, ct)
    viewer.layers.selection = {labels}
    _duplicate_layer(viewer.layers)
    assert app.autosave.unexported() == []
    paint(labels, 4, 1, 30)
    viewer.layers.selection = {labels}
    _duplicate_layer(viewer.layers)
    copy = viewer.layers[viewer.layers.index(labels) + 1]
    assert isinstance(copy, Labels) and app.autosave.unexported() == [labels, copy]
    viewer.layers.remove(labels)
    app.autosave.keep_all()
    assert len(kept_files()) == 2


@pytest.mark.slow
def test_a_mask_drawn_by_hand_is_kept(qtbot, app, viewer, ct):
    drawn = viewer.add_labels(np.zeros(ct.data.shape, np.uint8), name="by hand")
    app.session.mask = drawn
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        paint(drawn, 1, 2, 3)
    assert app.autosave.unexported() == [drawn]
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        drawn.undo()
    assert app.autosave.unexported() == []
    assert kept_files() == []


def test_what_is_painted_once_the_ct_is_gone_is_offered_on_it(qtbot, app, viewer, ct):
    mask = Layer.create(
        *labels_layer_data(np.zeros(ct.data.shape, np.uint8), placement_of(ct), "m")
    )
    viewer.add_layer(mask)
    reference = app.session.reference
    qtbot.waitUntil(lambda: reference.id in app.offers._keys, timeout=TIMEOUT)
    viewer.layers.remove(ct)
    app.session.ct = None
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        paint(mask, 1, 2, 3)
    (kept,) = kept_files()
    grid = reference.grid
    assert read_header(kept)["key"] == ct_key(ct.data, grid.shape, grid.affine)


def test_what_could_not_be_offered_is_kept_once_its_ct_is_back(qtbot, app, viewer, ct):
    mask = Layer.create(
        *labels_layer_data(np.zeros(ct.data.shape, np.uint8), placement_of(ct), "m")
    )
    viewer.add_layer(mask)
    qtbot.waitUntil(lambda: app.session.reference.id in app.offers._keys, timeout=TIMEOUT)
    app.offers._keys.clear()  # as if the CT had gone before it was looked at
    viewer.layers.remove(ct)
    app.session.ct = None
    paint(mask, 1, 2, 3)
    with pytest.raises(PancreasSegError, match="No CT that they lie on"):
        app.autosave.keep_all()
    viewer.add_layer(ct)
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        app.session.ct = ct
    app.autosave.keep_all()
    assert len(kept_files()) == 1


KILLED = """
import os, signal, sys
import numpy as np
import platformdirs
folder = sys.argv[1]
platformdirs.user_data_dir = platformdirs.user_config_dir = lambda *_, **__: folder
from napari.components import ViewerModel
from napari.layers import Layer
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication
qapp = QApplication([])
from napari_pancreas_seg._napari.layers.reader import read_layer
from napari_pancreas_seg._napari.app import app_of
from napari_pancreas_seg.inference.process.client import NetworkProcess
viewer = ViewerModel()
app = app_of(viewer)
app.network.process = NetworkProcess([sys.executable, sys.argv[2]])
data, _ = read_layer(sys.argv[3], [])
ct = Layer.create(*data)
viewer.add_layer(ct)
app.session.ct = ct
run = app.runs.start(ct, "slow")
while run.labels is None or not run.labels.data.any():
    QTest.qWait(10)
kept = []
app.autosave.saved.connect(kept.append)
labels = run.labels
labels.data_setitem((np.array([9]), np.array([1]), np.array([30])), 1)
while not kept:
    QTest.qWait(10)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no signal 9")
def test_killed_in_the_middle_of_a_run(qtbot, qapp, ct_path, own_folders):
    from napari_pancreas_seg._napari.layers.reader import read_layer

    fake = Path(__file__).with_name("fake_network.py")
    folder = str(own_folders / "data")
    command = [sys.executable, "-c", KILLED, folder, str(fake), str(ct_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == -9, done.stderr
    viewer = ViewerModel()
    app = app_of(viewer)
    qtbot.waitUntil(lambda: bool(app.offers.left), timeout=TIMEOUT)
    data, _ = read_layer(ct_path, [])
    ct = Layer.create(*data)
    viewer.add_layer(ct)
    app.session.ct = ct
    qtbot.waitUntil(lambda: bool(app.offers.of(app.session.reference)), timeout=TIMEOUT)
    (offer,) = app.offers.of(app.session.reference)
    assert offer.path == str(ct_path)
    app.offers.restore(offer, app.session.placement(ct))
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=TIMEOUT)
    assert viewer.layers[-1].data[9, 1, 30] == 1
    app.close()


@pytest.mark.slow
def test_the_dock_offers_what_was_left_behind(qtbot, app, ct, volume):
    labels = finish(qtbot, app, ct)
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        paint(labels, 4, 1, 30)
    app.close()

    after = ViewerModel()
    later = app_of(after)
    later.warm_up_allowed = False
    dock = PancreasDock(after)
    qtbot.addWidget(dock)
    panel = dock.recovery_panel
    qtbot.waitUntil(lambda: panel.isVisibleTo(dock), timeout=TIMEOUT)
    assert panel.list_button.isVisibleTo(panel) and panel.offer is None
    after.add_layer(Layer.create(*ct_layer_data(volume)))
    # The panel says so a turn of the event loop after the offer is known.
    qtbot.waitUntil(lambda: panel.text.isVisibleTo(panel), timeout=TIMEOUT)
    assert "not exported" in panel.text.text()
    panel.restore_button.click()
    qtbot.waitUntil(lambda: later.session.mask is not None, timeout=TIMEOUT)
    assert np.array_equal(later.session.mask.data, labels.data)
    assert not panel.isVisibleTo(dock)
    later.close()


def test_what_is_offered_of_others_is_counted_in_cts(qtbot, app, viewer, monkeypatch):
    dock = PancreasDock(viewer)
    qtbot.addWidget(dock)
    left = [Unsaved(key, "case", None, Path(key)) for key in ("a", "a", "b", "b")]
    app.offers.left = left
    app.offers.changed.emit()
    panel = dock.recovery_panel
    assert panel.list_button.text() == "Of 2 CTs"
    assert len(panel.list_button.menu().actions()) == 4
    app.offers.left = left[:2]
    app.offers.changed.emit()
    assert panel.list_button.text() == "Of 1 CT"


# -- closing the window


@pytest.fixture
def corrected(qtbot, window, volume):
    """A window with a mask that was corrected."""
    app = app_of(window)
    app.closing.install()
    ct = Layer.create(*ct_layer_data(volume))
    window.add_layer(ct)
    app.session.ct = ct
    labels = window.add_labels(np.zeros(ct.data.shape, np.uint8))
    app.session.mask = labels
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        paint(labels, 4, 1, 30)
    yield window
    app.autosave.discard_all()


@pytest.mark.gui
def test_the_window_asks(qtbot, corrected):
    app, window = app_of(corrected), corrected.window._qt_window
    assert not window.close()  # as Ctrl+W does
    box = app.closing.box
    assert isinstance(box, QMessageBox) and "corrected" in box.text()
    box.reject()
    assert app.closing.box is None
    assert not window._qt_viewer.isHidden()
    app.autosave.discard_all()
    assert not app.closing.eventFilter(window, QEvent(QEvent.Type.Close))


@pytest.mark.gui
def test_the_window_asks_although_a_look_at_its_masks_fails(corrected, notifications):
    app, window = app_of(corrected), corrected.window._qt_window
    with patch.object(app.autosave, "unexported", side_effect=IndexError("odd")):
        assert not window.close()
    assert "Perhaps a mask was corrected" in app.closing.box.text()
    assert "odd" in notifications[-1].message
    app.closing.box.reject()


@pytest.mark.slow
@pytest.mark.gui
def test_the_question_offers_to_export(qtbot, corrected, monkeypatch, tmp_path):
    app, window = app_of(corrected), corrected.window._qt_window
    dock = open_dock(corrected)
    assert dock.app is app
    target = tmp_path / "saved.nii.gz"
    monkeypatch.setattr(
        "qtpy.QtWidgets.QFileDialog.getSaveFileName", lambda *_: (str(target), "NIfTI (*.nii.gz)")
    )
    assert not window.close()
    (export,) = [b for b in app.closing.box.buttons() if "Export" in b.text()]
    export.click()
    qtbot.waitUntil(lambda: target.exists() and not app.autosave.unexported(), timeout=TIMEOUT)
    assert dock.export_panel.status.text() == "Written to saved.nii.gz."
    assert app.closing.box is None and not window._qt_viewer.isHidden()


@pytest.mark.slow
@pytest.mark.gui
def test_every_corrected_mask_is_named_and_exported(qtbot, corrected, monkeypatch, tmp_path):
    app, window, ct = app_of(corrected), corrected.window._qt_window, corrected.layers[0]
    second = corrected.add_labels(np.zeros(ct.data.shape, np.uint8), name="second")
    paint(second, 5, 1, 30)
    assert open_dock(corrected).app is app
    proposed = []

    def choose(parent, title, path, filters):
        proposed.append((title, Path(path).name))
        return str(tmp_path / Path(path).name), "NIfTI (*.nii.gz)"

    monkeypatch.setattr("qtpy.QtWidgets.QFileDialog.getSaveFileName", choose)
    assert not window.close()
    box = app.closing.box
    assert box.text() == "'Labels' and 'second' were corrected and not exported since."
    next(button for button in box.buttons() if "Export" in button.text()).click()
    qtbot.waitUntil(lambda: not app.autosave.unexported(), timeout=TIMEOUT)
    # The second one is not to replace the first.
    assert proposed == [
        ("Export 'Labels'", "CT_mask.nii.gz"),
        ("Export 'second'", "CT_2_mask.nii.gz"),
    ]
    assert {path.name for path in tmp_path.glob("*.gz")} == {name for _, name in proposed}


@pytest.mark.gui
def test_what_cannot_be_kept_keeps_the_window_open(qtbot, window, notifications):
    app = app_of(window)
    app.closing.install()
    drawn = window.add_labels(np.zeros((10, 32, 40), np.uint8), name="on no CT")
    paint(drawn, 4, 1, 30)
    assert not window.window._qt_window.close()
    (keep,) = [b for b in app.closing.box.buttons() if "Keep" in b.text()]
    keep.click()
    assert "'on no CT' cannot be kept" in notifications[-1].message
    assert app.closing.box is None and not app.closing._answered
    app.autosave.discard_all()


@pytest.mark.slow
@pytest.mark.gui
def test_a_script_is_not_asked_and_loses_nothing(qtbot, corrected):
    app = app_of(corrected)
    paint(app.session.mask, 5, 1, 30)
    corrected.close()
    assert app.closing.box is None
    app.autosave.close()
    assert len(AutosaveStore().left_behind()) == 1


@pytest.mark.slow
@pytest.mark.gui
def test_discarding_leaves_no_file(qtbot, corrected):
    app, window = app_of(corrected), corrected.window._qt_window
    assert not window.close()
    (discard,) = [b for b in app.closing.box.buttons() if "Discard" in b.text()]
    closed = []
    original, type(window).close = type(window).close, lambda self, **k: closed.append(k)
    try:
        discard.click()
        qtbot.waitUntil(lambda: bool(closed), timeout=TIMEOUT)
    finally:
        type(window).close = original
    assert kept_files() == []
    assert app.autosave.unexported() == []
