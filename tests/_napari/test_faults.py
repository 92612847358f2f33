"""Disks that are full, files that are damaged, windows that close at the wrong moment."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from napari.layers import Labels, Layer

from napari_pancreas_seg._napari.app import app_of
from napari_pancreas_seg._napari.autosave import store as shelf
from napari_pancreas_seg._napari.autosave.closing import Closing
from napari_pancreas_seg._napari.autosave.offers import Offers
from napari_pancreas_seg._napari.autosave.store import AutosaveStore, Unsaved, autosave_folder
from napari_pancreas_seg._napari.layers.bridge import ct_layer_data
from napari_pancreas_seg._napari.settings import Settings, settings_path
from napari_pancreas_seg._napari.widget import PancreasDock
from napari_pancreas_seg._napari.widget.header import CtPanel
from napari_pancreas_seg._napari.widget.worklist_panel import _is_one_series
from napari_pancreas_seg.cohort.worklist import Worklist, state_folder
from napari_pancreas_seg.errors import PancreasSegError

TIMEOUT = 30_000


@pytest.fixture
def labels(viewer, app, ct) -> Labels:
    layer = viewer.add_labels(np.zeros(ct.data.shape, np.uint8), name="mask", scale=ct.scale)
    app.session.mask = layer
    return layer


def put(layer: Labels, z: int = 5, y: int = 6, x: int = 7, value: int = 1) -> None:
    layer.data_setitem((np.array([z]), np.array([y]), np.array([x])), value)


def no_folder() -> None:
    """A file where the folder of autosaved masks would be: nothing can be written there."""
    autosave_folder().parent.mkdir(parents=True, exist_ok=True)
    autosave_folder().write_text("in the way")


def kept_files() -> list:
    return sorted(autosave_folder().glob("*.npz")) if autosave_folder().is_dir() else []


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_told_once(qtbot, app, labels, notifications):
    no_folder()
    for x in range(3):
        with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
            put(labels, x=x)
            app.autosave.save()
    told = [r for r in notifications if "cannot be kept against a crash" in r.message]
    assert len(told) == 1 and len(notifications) == 1
    assert app.autosave.unexported() == [labels]
    autosave_folder().unlink()  # there is room again
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        app.autosave.save()
    assert len(kept_files()) == 1


def test_keep_and_close_does_not_close_what_cannot_be_kept(app, labels, notifications, qtbot):
    class Window:
        closed = False
        _quit_app = False

        def close(self, quit_app):
            self.closed = True

    window = Window()
    closing = Closing.__new__(Closing)
    closing._window, closing._autosave = (lambda: window), app.autosave
    closing._answered = False
    put(labels)
    no_folder()
    closing._close(discard=False)
    assert not closing._answered
    assert "cannot be kept, so the window stays open" in notifications[-1].message
    autosave_folder().unlink()
    closing._close(discard=False)
    assert closing._answered and len(kept_files()) == 1
    qtbot.waitUntil(lambda: window.closed, timeout=TIMEOUT)


def test_a_stroke_that_is_being_kept_is_asked_about(app, labels, monkeypatch):
    put(labels)
    started = []
    app.session.mask_changed.emit(labels)
    monkeypatch.setattr(app.autosave._background, "submit", lambda *job: started.append(job))
    app.autosave.save()  # in a thread that has not begun
    assert started and app.autosave.unexported() == [labels]


@pytest.mark.slow
def test_a_stroke_during_an_export_is_not_taken_for_exported(
    qtbot, app, labels, tmp_path, monkeypatch
):
    put(labels)
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        app.session.mask_changed.emit(labels)
    done = []
    app.files.export(labels, tmp_path / "m.nii.gz", then=done.append)
    put(labels, z=6)
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        app.autosave._on_change(labels)
    qtbot.waitUntil(lambda: bool(done), timeout=TIMEOUT)
    written = nib.load(tmp_path / "m.nii.gz").get_fdata().sum()
    assert (app.autosave.unexported() == [labels]) == (written != labels.data.sum())
    assert kept_files() or written == labels.data.sum()


@pytest.mark.slow
def test_what_is_kept_last_is_what_is_left(qtbot, app, labels, monkeypatch):
    """A thread that is slow to write an older state does not put it in a newer one's place."""
    begun, newer, done, write = threading.Event(), threading.Event(), [], shelf.atomic_write

    @contextlib.contextmanager
    def slow(path, **how):
        first = not begun.is_set()
        begun.set()
        with write(path, **how) as stream:
            yield stream
            if first:
                newer.wait(0.5)
        done.append(path)
        newer.set()

    monkeypatch.setattr(shelf, "atomic_write", slow)
    put(labels)
    qtbot.waitUntil(begun.is_set, timeout=TIMEOUT)
    put(labels, z=6)
    app.autosave.keep_all()
    qtbot.waitUntil(lambda: len(done) == 2, timeout=TIMEOUT)
    assert shelf.read_unsaved(kept_files()[0])[1]["mask"].sum() == 2


def test_a_mask_that_goes_while_others_are_looked_for_is_offered(qtbot, viewer):
    store, look = AutosaveStore(), threading.Event()
    store.left_behind = lambda: look.wait(TIMEOUT / 1000) and []
    app = app_of(viewer)
    offers = Offers(app.session, app.review, app.mending, store, app.background)
    offers.add(mine := Unsaved("key", "CT", None, store.new_file()))
    with qtbot.waitSignal(offers.changed, timeout=TIMEOUT):
        look.set()
    assert offers.left == [mine]
    app.close()


def test_a_mask_that_is_removed_is_kept_first(qtbot, viewer, app, labels):
    put(labels)
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        viewer.layers.remove(labels)
    assert shelf.read_unsaved(kept_files()[0])[1]["mask"].sum() == 1


@pytest.mark.parametrize("busy", [False, True])
def test_an_opened_mask_is_kept_before_its_ct_is_removed(
    qtbot, viewer, app, ct, ct_path, tmp_path, busy
):
    theirs = nib.Nifti1Image(np.zeros(nib.load(ct_path).shape, np.uint8), nib.load(ct_path).affine)
    nib.save(theirs, tmp_path / "theirs_mask.nii.gz")
    app.files.open(tmp_path / "theirs_mask.nii.gz")
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=TIMEOUT)
    mask = viewer.layers[-1]
    panel = CtPanel(app.session)
    qtbot.addWidget(panel)
    viewer.layers.events.removed.connect(lambda event: panel.offer_layers())
    put(mask)
    if busy:
        app.autosave.save()
        put(mask, z=6)
    viewer.layers.remove(ct)
    assert app.session.ct is None
    viewer.layers.remove(mask)
    qtbot.waitUntil(lambda: not app.autosave._busy, timeout=TIMEOUT)
    assert shelf.read_unsaved(kept_files()[0])[1]["mask"].sum() == (2 if busy else 1)


def test_two_clicks_restore_once(qtbot, viewer, app, ct, volume):
    mask = np.ones(ct.data.shape, np.uint8)
    leave(autosave_folder(), key_of(app, ct), mask)
    app.offers._offer(AutosaveStore().left_behind())
    offer = app.offers.left[0]
    for _ in range(2):
        app.offers.restore(offer, app.session.placement(ct))
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=TIMEOUT)
    qtbot.waitUntil(lambda: not app.autosave._busy, timeout=TIMEOUT)
    assert len(viewer.layers) == 2 and app.offers.left == []


def leave(folder: Path, key: str, *masks: np.ndarray) -> None:
    """Write as a window does that is gone by now."""
    other = AutosaveStore(folder)
    other.write(Unsaved(key, "CT", None, folder / "gone-1.npz"), *masks)
    other.close()


def key_of(app, ct) -> str:
    return app.offers.key(app.session.reference, ct.data)


def test_damaged_autosaves_are_a_sentence_or_nothing(tmp_path):
    folder, rng = tmp_path / "kept", np.random.default_rng(1)
    mask = (rng.random((6, 7, 8)) > 0.5).astype(np.uint8)
    leave(folder, "key", mask, mask)
    whole = (folder / "gone-1.npz").read_bytes()
    for trial in range(150):
        damaged = bytearray(whole[: rng.integers(len(whole))] if trial % 3 == 0 else whole)
        for place in rng.integers(max(1, len(damaged)), size=3):
            if place < len(damaged):
                damaged[place] = rng.integers(256)
        (folder / "gone-1.npz").write_bytes(bytes(damaged))
        for offer in AutosaveStore(folder).left_behind():
            with contextlib.suppress(PancreasSegError):
                shelf.read_unsaved(offer.file)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[1, 2]",
        '{"correct/islands_mm3": NaN, "attention/opacity": -Infinity}',
        '{"model/name": "%s"}' % ("x" * 5000),
        '{"model/name": "\\u0000", "attention/shown": 7, "attention/colormap": {}}',
        '{"run/postprocess": "no", "Run/open": 3, "worklist/ahead": null}',
        "[" * 100_000,
    ],
)
def test_damaged_settings_are_defaults(text):
    settings_path().parent.mkdir(parents=True, exist_ok=True)
    settings_path().write_text(text)
    settings = Settings()
    assert settings.get("correct/islands_mm3", 100.0) == 100.0
    settings.set("run/postprocess", False)
    settings.save()
    assert Settings().get("run/postprocess", True) is False


@pytest.mark.parametrize(
    "memory",
    [
        {"output": 5},
        {"output": ["a"], "current": {}},
        {"cases": [], "current": 3},
        {"cases": {"a.nii.gz": {"status": {}, "slice": 10**30}}, "output": ""},
        {"cases": {"a.nii.gz": "exported"}},
    ],
)
def test_a_damaged_worklist_starts_anew(tmp_path, hu, memory):
    folder = tmp_path / "cts"
    folder.mkdir()
    nib.save(nib.Nifti1Image(hu, np.eye(4)), folder / "a.nii.gz")
    first = Worklist(folder, state_folder())
    first.go_to(0)
    first._file.write_text(json.dumps(memory))
    again = Worklist(folder, state_folder())
    assert again.case.name == "a.nii.gz" and again.output == tmp_path / "cts_masks"
    again._file.write_text("[" * 100_000)
    assert len(Worklist(folder, state_folder())) == 1


@pytest.mark.slow
def test_the_next_case_is_not_restricted_to_this_ones_region(qtbot, window, volume):
    dock = PancreasDock(window)
    window.window.add_dock_widget(dock)
    window.add_layer(Layer.create(*ct_layer_data(volume)))
    dock.options_panel.region.last.value = 3
    assert dock.options_panel.options.slices == (0, 4)
    _, options = dock.app.runs.how()
    assert options.slices is None and options.box is None
    how = dock.app.runs.how
    dock.options_panel.postprocess.native.click()
    dock.options_panel.every_slice.native.click()
    expected = how()
    window.window.remove_dock_widget(dock)
    dock.deleteLater()
    qtbot.wait(50)
    assert how() == expected and not expected[1].postprocess and expected[1].every_slice


def test_a_stroke_while_a_case_is_left_is_written(qtbot, app, viewer, tmp_path, hu):
    folder = tmp_path / "cts"
    folder.mkdir()
    for name in "ab":
        nib.save(nib.Nifti1Image(hu, np.diag([1, 1, 2.5, 1])), folder / f"{name}.nii.gz")
    work = app.worklist
    work.open(folder)
    qtbot.waitUntil(lambda: not work.busy and work.case is not None, timeout=TIMEOUT)
    app.session.ct = viewer.layers["a"]
    mask = viewer.add_labels(np.zeros(app.session.ct.data.shape, np.uint8), name="by hand")
    app.session.mask = mask
    put(mask)
    work.step(1)
    assert work.busy
    put(mask, z=7)  # while the first stroke is being written
    qtbot.waitUntil(lambda: not work.busy and work.case.name == "b.nii.gz", timeout=TIMEOUT)
    written = nib.load(tmp_path / "cts_masks" / "a_mask.nii.gz").get_fdata()
    assert written.sum() == 2


@pytest.mark.parametrize(
    ("files", "is_worklist"),
    [
        (("series/1.dcm", "a.nii.gz"), True),
        (("one/1.dcm", "two/1.dcm"), True),
        (("a.nii.gz",), True),
        (("1.dcm", "2.dcm"), False),
        (("patient/1.dcm",), False),
        (("patient/study/series/1.dcm",), False),
    ],
)
def test_which_folders_are_worklists(tmp_path, files, is_worklist):
    for name in files:
        file = tmp_path / "cts" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(128) + (b"DICM" if name.endswith("dcm") else b"") + bytes(200))
    assert _is_one_series(tmp_path / "cts") is not is_worklist
