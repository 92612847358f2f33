"""From case to case: what was painted is kept, and one starts again where one stopped."""

from __future__ import annotations

import json
import shutil
from unittest.mock import MagicMock

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from napari.layers import Image, Labels
from napari.layers._layer_actions import _duplicate_layer
from qtpy.QtCore import Qt

from napari_pancreas_seg._napari.autosave.store import AutosaveStore, autosave_folder
from napari_pancreas_seg._napari.correct.apply import chosen_target
from napari_pancreas_seg._napari.correct.strokes import Drag
from napari_pancreas_seg._napari.layers.bridge import CUTS_KEY, cuts_of
from napari_pancreas_seg._napari.widget.canvas_bar import CanvasBar
from napari_pancreas_seg._napari.widget.header import CtPanel
from napari_pancreas_seg._napari.widget.worklist_panel import WorklistPanel
from napari_pancreas_seg._napari.worklist.case import read_case
from napari_pancreas_seg._napari.worklist.session import WorklistSession
from napari_pancreas_seg.cohort.given import GivenMasks
from napari_pancreas_seg.cohort.worklist import Status, Worklist, WorklistCase, state_folder
from napari_pancreas_seg.inference.finishing import remask
from napari_pancreas_seg.inference.result import Options
from napari_pancreas_seg.inference.saving import PROGRAM, read_sidecar, sidecar_path, write_sidecar

TIMEOUT = 30_000
LEFT = Qt.MouseButton.LeftButton


@pytest.fixture
def folder(tmp_path, hu):
    """Three CTs, the last of which is broken."""
    folder = tmp_path / "cts"
    folder.mkdir()
    for number, name in enumerate(("a", "b")):
        nib.save(nib.Nifti1Image(hu + number, np.diag([1, 1, 2.5, 1])), folder / f"{name}.nii.gz")
    (folder / "c.nii.gz").write_bytes(b"nothing")
    return folder


@pytest.fixture
def ct_panel(qtbot, app, viewer):
    """Chooses CT and mask, as in the dock."""
    panel = CtPanel(app.session)
    qtbot.addWidget(panel)
    for event in (viewer.layers.events.inserted, viewer.layers.events.removed):
        event.connect(lambda _: panel.offer_layers())
    return panel


@pytest.fixture
def panel(qtbot, app, ct_panel):
    panel = WorklistPanel(app)
    qtbot.addWidget(panel)
    panel.ahead.value = False
    return panel


def idle(work: WorklistSession):
    return lambda: not work.busy and work.case is not None


def shows(work: WorklistSession, name: str):
    return lambda: not work.busy and work.case is not None and work.case.name == name


def opened(qtbot, app, panel, folder) -> WorklistSession:
    work = app.worklist
    panel.open_folder(folder)
    qtbot.waitUntil(idle(work), timeout=TIMEOUT)
    return work


def paint(app, viewer, z: int) -> Labels:
    """Paint a voxel, into a new layer if there is no mask."""
    if app.session.mask is None:
        viewer.add_labels(np.zeros(app.session.ct.data.shape, np.uint8), name="by hand")
    app.session.mask.data_setitem((np.array([z]), np.array([3]), np.array([4])), 1)
    return app.session.mask


@pytest.mark.slow
def test_what_was_painted_is_kept_on_the_way(qtbot, app, viewer, panel, folder):
    work = opened(qtbot, app, panel, folder)
    assert [layer.name for layer in viewer.layers] == ["a"]
    assert "a · new" in panel.list.item(0).text()
    mask = paint(app, viewer, 6)
    viewer.dims.set_point(0, 2 * 2.5)
    qtbot.mouseClick(panel.next_button, LEFT)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert [layer.name for layer in viewer.layers] == ["b"]
    assert "corrected" in panel.list.item(0).text()
    written = np.asarray(nib.load(folder.parent / "cts_masks" / "a_mask.nii.gz").dataobj)
    assert np.count_nonzero(written) == 1
    qtbot.mouseClick(panel.previous_button, LEFT)
    qtbot.waitUntil(shows(work, "a.nii.gz"), timeout=TIMEOUT)
    assert np.array_equal(app.session.mask.data, mask.data)
    assert round(viewer.dims.point[0] / 2.5) == 2


@pytest.mark.slow
def test_reviewed_slices_and_the_slice_survive(qtbot, app, viewer, panel, folder, ct_panel):
    work = opened(qtbot, app, panel, folder)
    paint(app, viewer, 1)
    app.review.set_reviewed(app.session.mask, {2, 3})
    work.step(1)  # to another case and back
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    work.step(-1)
    qtbot.waitUntil(lambda: shows(work, "a.nii.gz")() and not work.busy, timeout=TIMEOUT)
    assert app.review.reviewed_of(app.session.mask) == {2, 3}
    app.review.set_reviewed(app.session.mask, {2, 3, 4})
    app.review.show(4)
    # A while later it is on the disk, whatever becomes of the window.
    qtbot.waitUntil(
        lambda: Worklist(folder, state_folder()).cases[0].reviewed == (2, 3, 4), timeout=TIMEOUT
    )
    assert Worklist(folder, state_folder()).cases[0].slice == 4


def test_slices_reviewed_with_strokes_that_are_not_written_are_not_reviewed_in_the_file(
    qtbot, app, viewer, panel, folder
):
    def marked() -> tuple[int, ...]:
        case = Worklist(folder, state_folder()).cases[0]
        return case.reviewed if case.digest == work._shown.loaded.saved else ()

    work = opened(qtbot, app, panel, folder)
    mask = paint(app, viewer, 1)
    work.mark_reviewed()
    qtbot.waitUntil(lambda: work.case.status is Status.REVIEWED, timeout=TIMEOUT)
    app.review.set_reviewed(mask, {1})
    qtbot.waitUntil(lambda: marked() == (1,), timeout=TIMEOUT)
    paint(app, viewer, 6)
    app.review.set_reviewed(mask, {1, 6})
    qtbot.waitUntil(lambda: marked() == (), timeout=TIMEOUT)  # as it is after a crash
    mask.undo()
    qtbot.waitUntil(lambda: marked() == (1, 6), timeout=TIMEOUT)


def test_a_stroke_while_the_mask_is_written_is_not_in_the_file_once_it_is_undone(
    qtbot, app, viewer, panel, folder, monkeypatch
):
    work = opened(qtbot, app, panel, folder)
    mask, export = paint(app, viewer, 1), app.files.export

    def paint_and_export(*of, **how):
        monkeypatch.setattr(app.files, "export", export)
        paint(app, viewer, 6)
        export(*of, **how)

    monkeypatch.setattr(app.files, "export", paint_and_export)
    work.mark_reviewed()
    qtbot.waitUntil(lambda: work.case.status is Status.REVIEWED, timeout=TIMEOUT)
    file = work.case.mask
    assert np.count_nonzero(nib.load(file).dataobj) == 2
    mask.undo()
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert np.count_nonzero(nib.load(file).dataobj) == 1


def test_a_case_is_as_far_as_it_was_once_its_correction_is_undone(
    qtbot, app, viewer, panel, folder
):
    work = opened(qtbot, app, panel, folder)
    mask = paint(app, viewer, 1)
    work.mark_reviewed()
    qtbot.waitUntil(lambda: work.case.status is Status.REVIEWED, timeout=TIMEOUT)
    paint(app, viewer, 6)
    qtbot.waitUntil(lambda: work.case.status is Status.CORRECTED, timeout=TIMEOUT)
    mask.undo()
    qtbot.waitUntil(lambda: work.case.status is Status.REVIEWED, timeout=TIMEOUT)
    mask.redo()
    qtbot.waitUntil(lambda: work.case.status is Status.CORRECTED, timeout=TIMEOUT)


def test_another_mask_is_not_taken_for_reviewed(qtbot, app, viewer, panel, folder, ct_panel):
    work = opened(qtbot, app, panel, folder)
    paint(app, viewer, 1)
    app.review.set_reviewed(app.session.mask, {2})
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    mask = Worklist(folder, state_folder()).cases[0].mask
    written = nib.load(mask)
    nib.save(nib.Nifti1Image(np.ones(written.shape, np.uint8), written.affine), mask)
    work.ahead.drop()
    work.step(-1)
    qtbot.waitUntil(lambda: shows(work, "a.nii.gz")() and not work.busy, timeout=TIMEOUT)
    assert app.review.reviewed_of(app.session.mask) == frozenset()


@pytest.mark.slow
def test_it_is_resumed_in_another_session(qtbot, app, viewer, panel, folder, ct_panel):
    work = opened(qtbot, app, panel, folder)
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    paint(app, viewer, 1)
    work.mark_reviewed()
    qtbot.waitUntil(lambda: work.case.status is Status.REVIEWED, timeout=TIMEOUT)
    viewer.layers.clear()
    again = WorklistSession(
        app.session,
        app.runs,
        app.files,
        app.maps,
        app.watch,
        app.review,
        app.ahead,
        app.background,
    )
    again.open(folder)
    qtbot.waitUntil(idle(again), timeout=TIMEOUT)
    assert again.case.name == "b.nii.gz"
    assert again.case.status is Status.REVIEWED
    assert np.count_nonzero(app.session.mask.data) == 1


@pytest.mark.slow
def test_an_unchanged_mask_is_not_written_again(qtbot, app, viewer, panel, folder):
    work = opened(qtbot, app, panel, folder)
    paint(app, viewer, 6)
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    path = folder.parent / "cts_masks" / "a_mask.nii.gz"
    before = path.stat()
    work.step(-1)
    qtbot.waitUntil(shows(work, "a.nii.gz"), timeout=TIMEOUT)
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert path.stat().st_ino == before.st_ino
    assert not (folder.parent / "cts_masks" / "b_mask.nii.gz").exists()


def test_cuts_that_were_moved_are_written(qtbot, app, viewer, panel, folder):
    work = opened(qtbot, app, panel, folder)
    run = app.runs.start(app.session.ct, "box")
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    qtbot.waitUntil(lambda: work.case.status is Status.SEGMENTED and not work.busy, timeout=TIMEOUT)
    app.session.mask.metadata[CUTS_KEY] = (0.2, 0.4)
    for by, name in ((1, "b.nii.gz"), (-1, "a.nii.gz")):
        work.step(by)
        qtbot.waitUntil(shows(work, name), timeout=TIMEOUT)
    record = read_sidecar(sidecar_path(work.case.mask))
    assert record["measurements"]["cuts"] == [0.2, 0.4] and record["edits"]["slices"] == 0
    assert work.case.status is Status.SEGMENTED
    assert cuts_of(app.session.mask) == (0.2, 0.4)


def test_a_mask_that_cannot_be_written_keeps_its_case(
    qtbot, app, viewer, panel, folder, notifications
):
    work = opened(qtbot, app, panel, folder)
    mask = paint(app, viewer, 6)
    (folder.parent / "cts_masks").write_text("in the way")
    work.step(1)
    qtbot.waitUntil(lambda: bool(notifications) and not work.busy, timeout=TIMEOUT)
    assert notifications[-1].severity.value == "error"
    assert work.case.name == "a.nii.gz"
    assert mask in viewer.layers


def test_a_step_that_leads_nowhere_says_why(qtbot, app, panel, folder, notifications):
    app.worklist.step(1)
    assert "no worklist yet" in notifications[-1].message
    opened(qtbot, app, panel, folder).step(-1)
    assert "first case" in notifications[-1].message


def test_a_case_that_cannot_be_read_stops_nothing(qtbot, app, viewer, panel, folder, notifications):
    work = opened(qtbot, app, panel, folder)
    work.go_to(2)
    qtbot.waitUntil(lambda: bool(notifications) and not work.busy, timeout=TIMEOUT)
    assert "c.nii.gz" in notifications[-1].message
    work.go_to(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert [layer.name for layer in viewer.layers] == ["b"]


@pytest.mark.slow
def test_export_goes_to_the_next_open_case(qtbot, app, viewer, panel, folder, notifications):
    work = opened(qtbot, app, panel, folder)
    qtbot.mouseClick(panel.done_button, LEFT)
    assert "no mask" in notifications[-1].message
    paint(app, viewer, 6)
    qtbot.mouseClick(panel.done_button, LEFT)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert work.worklist.cases[0].status is Status.EXPORTED
    assert "1 of 3 exported" in panel.status.text()
    work.step(-1)
    qtbot.waitUntil(shows(work, "a.nii.gz"), timeout=TIMEOUT)
    paint(app, viewer, 8)
    qtbot.waitUntil(lambda: work.case.status is Status.CORRECTED, timeout=TIMEOUT)


@pytest.mark.slow
def test_a_mask_to_compare_with_is_not_taken_for_the_case(qtbot, app, viewer, panel, folder):
    work = opened(qtbot, app, panel, folder)
    own = paint(app, viewer, 6)
    work.mark_reviewed()
    qtbot.waitUntil(lambda: work.case.status is Status.REVIEWED, timeout=TIMEOUT)
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    work.step(-1)
    qtbot.waitUntil(shows(work, "a.nii.gz"), timeout=TIMEOUT)
    app.files.open(folder.parent / "cts_masks" / "a_mask.nii.gz")
    qtbot.waitUntil(lambda: len(viewer.layers) == 3, timeout=TIMEOUT)
    app.session.mask = viewer.layers[-1]
    viewer.layers[-1].data[:] = 1
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    written = np.asarray(nib.load(folder.parent / "cts_masks" / "a_mask.nii.gz").dataobj)
    assert written.sum() == own.data.sum() == 1
    assert len(viewer.layers) == 1


def draw(app, viewer, name: str, voxels: int = 1) -> Labels:
    """Paint into a layer of one's own, as napari's "New labels" makes it."""
    layer = viewer.add_labels(np.zeros(app.session.ct.data.shape, np.uint8), name=name)
    places = np.full((2, voxels), [[6], [3]]), np.arange(4, 4 + voxels)
    layer.data_setitem((*places[0], places[1]), 1)
    return layer


def masks_written(folder) -> list[str]:
    return sorted(path.name for path in (folder.parent / "cts_masks").glob("*.nii.gz"))


def test_what_was_drawn_on_a_case_is_no_mask_of_the_next(
    qtbot, app, viewer, panel, folder, notifications
):
    work = opened(qtbot, app, panel, folder)
    gland, vessels = draw(app, viewer, "gland"), draw(app, viewer, "vessels", voxels=3)
    app.session.mask = gland
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert any(one.message.endswith("shown again: 'vessels'.") for one in notifications)
    assert app.session.mask is None and [layer.name for layer in viewer.layers] == ["b"]
    assert app.autosave.unexported() == [vessels], "closing the window asks about it"
    qtbot.waitUntil(lambda: len(list(autosave_folder().glob("*.npz"))) == 1, timeout=TIMEOUT)
    work.step(-1)
    qtbot.waitUntil(shows(work, "a.nii.gz"), timeout=TIMEOUT)
    assert masks_written(folder) == ["a_mask.nii.gz"]
    assert vessels in viewer.layers and app.session.mask.name == "a pancreas"
    viewer.layers.remove(app.session.mask)  # nor is it taken for a mask as long as there was one
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert app.session.mask is None and masks_written(folder) == ["a_mask.nii.gz"]
    written = np.asarray(nib.load(folder.parent / "cts_masks" / "a_mask.nii.gz").dataobj)
    assert written.sum() == 1, "that of the gland"


def test_a_drawing_that_was_written_stays_the_mask_of_its_case(qtbot, app, viewer, panel, folder):
    work = opened(qtbot, app, panel, folder)
    draw(app, viewer, "gland")
    work.mark_reviewed()
    qtbot.waitUntil(lambda: work.case.status is Status.REVIEWED, timeout=TIMEOUT)
    vessels = draw(app, viewer, "vessels", voxels=3)
    assert app.session.mask is vessels
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    written = np.asarray(nib.load(folder.parent / "cts_masks" / "a_mask.nii.gz").dataobj)
    assert written.sum() == 1 and app.autosave.unexported() == [vessels]


def test_a_drawn_mask_is_written_while_another_is_compared_with_it(
    qtbot, app, viewer, panel, folder, hu, notifications
):
    other = a_masks_folder(folder, hu) / "a_mask.nii.gz"
    work = opened(qtbot, app, panel, folder)
    drawn = draw(app, viewer, "by hand")
    app.files.open(other)
    qtbot.waitUntil(lambda: len(viewer.layers) == 3, timeout=TIMEOUT)
    app.session.mask = viewer.layers[-1]
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert work.worklist.cases[0].status is Status.CORRECTED
    written = np.asarray(nib.load(folder.parent / "cts_masks" / "a_mask.nii.gz").dataobj)
    assert np.count_nonzero(written) == 1 and drawn not in viewer.layers
    work.step(-1)
    qtbot.waitUntil(shows(work, "a.nii.gz"), timeout=TIMEOUT)
    assert any(one.message.endswith("shown again: 'a_mask'.") for one in notifications)
    assert app.session.mask.name == "a pancreas" and len(viewer.layers) == 3
    assert masks_written(folder) == ["a_mask.nii.gz"]


def test_a_mask_opened_on_a_case_is_none_of_the_next_and_comes_back(
    qtbot, app, viewer, panel, folder, hu, notifications
):
    other = a_masks_folder(folder, hu) / "a_mask.nii.gz"
    work = opened(qtbot, app, panel, folder)
    paint(app, viewer, 6)
    app.files.open(other)
    qtbot.waitUntil(lambda: len(viewer.layers) == 3, timeout=TIMEOUT)
    theirs = viewer.layers[-1]
    viewer.add_labels(np.ones((4, 5, 6), np.uint8), name="of no CT")
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert app.session.mask is None
    assert {layer.name for layer in viewer.layers} == {"b", "of no CT"}
    work.step(-1)
    qtbot.waitUntil(shows(work, "a.nii.gz"), timeout=TIMEOUT)
    assert theirs in viewer.layers and app.session.is_opened(theirs)
    assert app.session.mask.name == "a pancreas"


def test_a_mask_of_no_grid_that_was_opened_on_a_case_does_not_cover_the_next(
    qtbot, app, viewer, panel, folder, tmp_path
):
    work = opened(qtbot, app, panel, folder)
    mask = np.zeros((20, 16, 10), np.uint8)
    mask[4:10, 4:10, 2:6] = 1
    path = tmp_path / "coarser.nii.gz"
    nib.save(nib.Nifti1Image(mask, np.diag([2, 2, 2.5, 1])), path)
    app.files.open(path)
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=TIMEOUT)
    coarser = viewer.layers[-1]
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert [layer.name for layer in viewer.layers] == ["b"]
    work.step(-1)
    qtbot.waitUntil(shows(work, "a.nii.gz"), timeout=TIMEOUT)
    assert coarser in viewer.layers


def test_an_exported_case_is_not_any_more_once_a_cancelled_run_is_kept(
    qtbot, app, viewer, panel, folder
):
    work = come_back_to(qtbot, app, viewer, panel, folder)
    work.worklist.update(0, status=Status.EXPORTED)
    run = app.runs.start(app.session.ct, "slow")
    qtbot.waitUntil(lambda: run.labels is not None and run.labels.data.any(), timeout=TIMEOUT)
    run.cancel()
    qtbot.waitUntil(lambda: run.can_discard, timeout=TIMEOUT)
    app.watch.notify()
    assert work.case.status is Status.EXPORTED
    run.keep()
    qtbot.waitUntil(lambda: work.case.status is Status.CORRECTED, timeout=TIMEOUT)


def test_a_chosen_mask_that_is_nobody_s_is_not_written_and_that_is_said(
    qtbot, app, viewer, panel, folder, hu, notifications
):
    viewer.add_labels(np.ones(hu.T.shape, np.uint8), name="nobody's")
    work = opened(qtbot, app, panel, folder)
    assert app.session.mask.name == "nobody's"
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    said = [one.message for one in notifications]
    assert said == ["'nobody's' is not this case's mask and is not written."]
    viewer.layers.remove("nobody's")
    paint(app, viewer, 6)
    work.step(-1)
    qtbot.waitUntil(shows(work, "a.nii.gz"), timeout=TIMEOUT)
    assert len(notifications) == 1 and masks_written(folder) == ["b_mask.nii.gz"]


def test_only_the_mask_that_the_header_names_is_exported(
    qtbot, app, viewer, panel, folder, hu, notifications
):
    other = a_masks_folder(folder, hu) / "a_mask.nii.gz"
    work = opened(qtbot, app, panel, folder)
    own = paint(app, viewer, 6)
    app.files.open(other)
    qtbot.waitUntil(lambda: len(viewer.layers) == 3, timeout=TIMEOUT)
    app.session.mask = viewer.layers[-1]
    for finish in (work.finish_case, work.mark_reviewed):
        finish()
        assert not work.busy
        assert notifications[-1].message.startswith("'a_mask' is chosen as Mask, but this case's")
    assert not (folder.parent / "cts_masks").exists()
    app.session.mask = own
    notifications.clear()
    work.finish_case()
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert work.worklist.cases[0].status is Status.EXPORTED
    assert not any("is chosen as Mask" in one.message for one in notifications)


def write_theirs(folder, name: str) -> bytes:
    """Write a mask of a case as somebody else, or another program, would meanwhile."""
    ct = nib.load(folder / f"{name}.nii.gz")
    mask = np.zeros(ct.shape, np.uint8)
    mask[5:15, 5:15, 3:6] = 1
    path = folder.parent / "cts_masks" / f"{name}_mask.nii.gz"
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(mask, ct.affine), path)
    return path.read_bytes()


@pytest.mark.parametrize("there_before", [True, False])
def test_a_mask_that_was_written_elsewhere_meanwhile_stays_and_so_does_ours(
    qtbot, app, viewer, panel, folder, notifications, there_before
):
    work = opened(qtbot, app, panel, folder)
    paint(app, viewer, 6)
    if there_before:
        work.mark_reviewed()
        qtbot.waitUntil(lambda: work.case.status is Status.REVIEWED, timeout=TIMEOUT)
    theirs = write_theirs(folder, "a")
    work.finish_case()
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    masks = folder.parent / "cts_masks"
    assert (masks / "a_mask.nii.gz").read_bytes() == theirs
    ours = masks / "a_kept_1_mask.nii.gz"
    assert np.asarray(nib.load(ours).dataobj).sum() == 1
    said = [one.message for one in notifications]
    assert sum("'a_mask.nii.gz' was written elsewhere" in one for one in said) == 1
    assert any(f"is kept in '{ours.name}'" in one for one in said)
    assert work.worklist.cases[0].status is Status.SEGMENTED
    work.step(-1)
    qtbot.waitUntil(shows(work, "a.nii.gz"), timeout=TIMEOUT)
    assert app.session.mask.data.sum() == 300
    paint(app, viewer, 6)  # seen by now, and corrected
    notifications.clear()
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert np.asarray(nib.load(masks / "a_mask.nii.gz").dataobj).sum() == 301
    assert not notifications and len(masks_written(folder)) == 2


@pytest.mark.slow
def test_a_mask_in_a_format_that_is_only_read_goes_on_as_nifti(
    qtbot, app, viewer, panel, folder, notifications
):
    write_theirs(folder, "a")
    masks = folder.parent / "cts_masks"
    image = sitk.ReadImage(str(masks / "a_mask.nii.gz"))
    sitk.WriteImage(image, str(masks / "a_mask.mhd"))
    (masks / "a_mask.nii.gz").unlink()
    work = opened(qtbot, app, panel, folder)
    assert app.session.mask.data.sum() == 300
    work.step(1)  # as it is, it stays
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert {path.name for path in masks.iterdir()} == {"a_mask.mhd", "a_mask.raw"}
    work.step(-1)
    qtbot.waitUntil(shows(work, "a.nii.gz"), timeout=TIMEOUT)
    for z in (6, 7):
        paint(app, viewer, z)
        work.step(1)
        qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
        work.step(-1)
        qtbot.waitUntil(shows(work, "a.nii.gz"), timeout=TIMEOUT)
        assert app.session.mask.data.sum() == 295 + z
    assert {path.name for path in masks.iterdir()} == {"a_mask.mhd", "a_mask.raw", "a_mask.nii.gz"}
    assert Worklist(folder, state_folder()).cases[0].mask.name == "a_mask.nii.gz"
    assert not notifications


def test_a_mask_exported_over_its_file_by_hand_was_not_written_elsewhere(
    qtbot, app, viewer, panel, folder, notifications
):
    work = opened(qtbot, app, panel, folder)
    mask, target = paint(app, viewer, 6), work.case.mask
    work.mark_reviewed()
    qtbot.waitUntil(lambda: work.case.status is Status.REVIEWED, timeout=TIMEOUT)
    paint(app, viewer, 7)
    written = []
    app.files.export(mask, target, overwrite=True, then=written.append)
    qtbot.waitUntil(lambda: bool(written), timeout=TIMEOUT)
    paint(app, viewer, 8)
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert np.asarray(nib.load(target).dataobj).sum() == 3
    assert masks_written(folder) == ["a_mask.nii.gz"] and not notifications


def test_a_restricted_run_on_a_mask_from_its_file_keeps_the_rest_of_it(
    qtbot, app, viewer, panel, folder
):
    panel.ahead.value = False
    work = opened(qtbot, app, panel, folder)
    paint(app, viewer, 8)
    for by, name in ((1, "b.nii.gz"), (-1, "a.nii.gz")):
        work.step(by)
        qtbot.waitUntil(shows(work, name), timeout=TIMEOUT)
    before = app.session.mask.data.copy()
    assert before[8].any()
    run = app.runs.start(app.session.ct, "graded", Options(slices=(4, 6)))
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    target = work.worklist.cases[0].mask
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    work.step(-1)
    qtbot.waitUntil(shows(work, "a.nii.gz"), timeout=TIMEOUT)
    after = app.session.mask.data
    assert target.exists() and after[4:6].any()
    assert np.array_equal(np.delete(after, [4, 5], 0), np.delete(before, [4, 5], 0))


def come_back_to(qtbot, app, viewer, panel, folder):
    """A worklist at its first case, whose mask was painted and is read from its file again."""
    work = opened(qtbot, app, panel, folder)
    paint(app, viewer, 8)
    for by, name in ((1, "b.nii.gz"), (-1, "a.nii.gz")):
        work.step(by)
        qtbot.waitUntil(shows(work, name), timeout=TIMEOUT)
    return work


@pytest.mark.slow
def test_a_mask_exported_to_another_file_is_written_into_its_own_too(
    qtbot, app, viewer, panel, folder, tmp_path
):
    work = come_back_to(qtbot, app, viewer, panel, folder)
    mask, target = paint(app, viewer, 6), work.case.mask
    app.files.export(mask, tmp_path / "sent.nii.gz")
    qtbot.waitUntil(lambda: np.asarray(nib.load(target).dataobj).sum() == 2, timeout=TIMEOUT)
    qtbot.waitUntil(idle(work), timeout=TIMEOUT)
    assert work.case.status is Status.CORRECTED and app.autosave.unexported() == []


def test_a_corrected_mask_that_a_run_replaces_in_its_file_is_kept_and_offered(
    qtbot, app, viewer, panel, folder
):
    work = come_back_to(qtbot, app, viewer, panel, folder)
    mask = app.session.mask
    run = app.runs.start(app.session.ct, "graded")
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert app.autosave.unexported() == [mask]
    qtbot.waitUntil(lambda: bool(app.offers.left), timeout=TIMEOUT)
    assert len(list(autosave_folder().glob("*.npz"))) == 1


@pytest.mark.parametrize("moved_on", [False, True])
def test_a_correction_that_is_restored_after_a_crash_goes_on_from_the_mask_in_the_file(
    qtbot, app, viewer, panel, folder, moved_on
):
    work = come_back_to(qtbot, app, viewer, panel, folder)
    before = app.session.mask
    before.data_setitem((np.array([9]), np.array([3]), np.array([4])), 1)
    app.autosave.keep_all()
    (kept,) = autosave_folder().glob("*.npz")
    left = kept.with_name("0123456789ab-1.npz")
    shutil.copy(kept, left)  # as a window leaves it that is killed
    before.undo()
    qtbot.waitUntil(lambda: not app.autosave.unexported(), timeout=TIMEOUT)
    if moved_on:  # the file holds more than what was corrected then
        paint(app, viewer, 2)
        for by, name in ((1, "b.nii.gz"), (-1, "a.nii.gz")):
            work.step(by)
            qtbot.waitUntil(shows(work, name), timeout=TIMEOUT)
        before = app.session.mask
    (offer,) = [one for one in AutosaveStore().left_behind() if one.file == left]
    app.offers.add(offer)
    app.offers.restore(offer, app.session.placement(app.session.ct))
    qtbot.waitUntil(lambda: app.session.mask is not before, timeout=TIMEOUT)
    restored = app.session.mask
    work.finish_case()
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    written = np.asarray(nib.load(work.worklist.cases[0].mask).dataobj)
    assert written.sum() == restored.data.sum() == 2
    assert app.autosave.unexported() == ([before] if moved_on else [])


def test_a_run_that_finds_nothing_leaves_a_mask_from_its_file(qtbot, app, viewer, panel, folder):
    work = come_back_to(qtbot, app, viewer, panel, folder)
    mask = app.session.mask
    run = app.runs.start(app.session.ct, "nothing")
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    assert app.session.mask is mask
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert np.asarray(nib.load(work.worklist.cases[0].mask).dataobj).sum() == 1


def test_a_mask_whose_file_has_gone_is_written_again(qtbot, app, viewer, panel, folder):
    work = opened(qtbot, app, panel, folder)
    paint(app, viewer, 6)
    work.mark_reviewed()
    qtbot.waitUntil(lambda: work.case.status is Status.REVIEWED, timeout=TIMEOUT)
    target = work.case.mask
    target.unlink()
    work.finish_case()
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert target.exists() and work.worklist.cases[0].status is Status.EXPORTED


def test_a_mask_that_is_drawn_in_place_of_a_deleted_one_is_written(
    qtbot, app, viewer, panel, folder
):
    work = opened(qtbot, app, panel, folder)
    paint(app, viewer, 1)
    work.mark_reviewed()
    qtbot.waitUntil(lambda: work.case.status is Status.REVIEWED, timeout=TIMEOUT)
    viewer.layers.remove(app.session.mask)
    assert app.session.mask is None
    paint(app, viewer, 6)
    work.finish_case()
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    written = np.asarray(nib.load(work.worklist.cases[0].mask).dataobj)
    assert written.sum() == 1 and written[..., 6].any()


def test_of_drawn_masks_the_last_chosen_one_or_its_duplicate_is_written(
    qtbot, app, viewer, panel, folder
):
    work = opened(qtbot, app, panel, folder)
    gland = draw(app, viewer, "gland")
    draw(app, viewer, "vessels")
    app.session.mask = gland
    viewer.layers.selection = {gland}
    _duplicate_layer(viewer.layers)
    copy = app.session.mask
    assert copy.name == "gland copy"
    copy.data_setitem((np.array([7]), np.array([3]), np.array([4])), 1)
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    written = np.asarray(nib.load(folder.parent / "cts_masks" / "a_mask.nii.gz").dataobj)
    assert np.count_nonzero(written) == 2 and len(viewer.layers) == 1


@pytest.mark.slow
def test_the_next_case_is_read_and_segmented_meanwhile(qtbot, app, viewer, panel, folder):
    panel.ahead.value = True
    app.runs.how = lambda: ("graded", Options())
    work = opened(qtbot, app, panel, folder)
    qtbot.waitUntil(lambda: work.ahead.state == "segmented", timeout=TIMEOUT)
    qtbot.waitUntil(idle(work), timeout=TIMEOUT)
    assert "Next case: segmented" in panel.next.text()
    # The first one, too, for which nobody has clicked Run.
    assert app.session.mask.data.any()
    assert work.worklist.cases[0].status is Status.SEGMENTED
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    ct, mask = viewer.layers
    assert isinstance(ct, Image)
    assert isinstance(mask, Labels)
    assert app.session.mask is mask
    assert mask.data.any()
    assert np.array_equal(mask.data, app.session.masks[mask].copy)
    assert not np.shares_memory(mask.data, app.session.masks[mask].copy)
    before = mask.data.sum()
    with qtbot.waitSignal(app.rethreshold.done, timeout=TIMEOUT):
        assert app.rethreshold.ask(mask, 0.2, True), "its result is its own to change"
    assert mask.data.sum() > before
    work.step(-1)
    qtbot.waitUntil(shows(work, "a.nii.gz"), timeout=TIMEOUT)
    assert work.worklist.cases[1].status is Status.SEGMENTED


@pytest.mark.parametrize("chosen", ["best", "probability"])
def test_maps_of_what_was_segmented_ahead_are_shown(qtbot, app, viewer, panel, folder, chosen):
    app.maps.show(None, chosen)
    panel.ahead.value = True
    app.runs.how = lambda: ("box", Options())
    work = opened(qtbot, app, panel, folder)
    qtbot.waitUntil(lambda: work.ahead.state == "segmented" and not work.busy, timeout=TIMEOUT)
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    word = "attention 1" if chosen == "best" else chosen
    assert [layer.name for layer in viewer.layers] == ["b", f"b {word}", "b pancreas"]
    assert viewer.layers[1].visible and app.session.mask.contour > 0
    qtbot.waitUntil(idle(work), timeout=TIMEOUT)
    work.step(-1)
    qtbot.waitUntil(shows(work, "a.nii.gz"), timeout=TIMEOUT)
    assert "b" not in {layer.name[0] for layer in viewer.layers}


def test_what_was_read_ahead_is_read_again_if_it_has_changed(qtbot, app, viewer, panel, folder):
    panel.ahead.value = True
    app.runs.how = lambda: ("box", Options())
    work = opened(qtbot, app, panel, folder)
    qtbot.waitUntil(lambda: work.ahead.state == "segmented" and not work.busy, timeout=TIMEOUT)
    theirs = write_theirs(folder, "b")
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert app.session.mask.data.sum() == 300 and work.case.status is Status.SEGMENTED
    assert (folder.parent / "cts_masks" / "b_mask.nii.gz").read_bytes() == theirs
    assert masks_written(folder) == ["a_mask.nii.gz", "b_mask.nii.gz"]


@pytest.mark.parametrize(
    ("model", "options", "runs"),
    [
        ("graded", Options(), False),
        ("graded", Options(threshold=0.2), False),
        ("box", Options(), True),
        ("graded", Options(every_slice=True), True),
    ],
)
def test_what_was_segmented_ahead_is_of_the_model_and_options_of_now(
    qtbot, app, viewer, panel, folder, model, options, runs
):
    panel.ahead.value = True
    app.runs.how = lambda: ("graded", Options())
    work = opened(qtbot, app, panel, folder)
    qtbot.waitUntil(lambda: work.ahead.state == "segmented" and not work.busy, timeout=TIMEOUT)
    first = app.runs.latest
    app.runs.how = lambda: (model, options)
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert (app.runs.latest is not first) == runs, "only where it takes another run"
    qtbot.waitUntil(lambda: not app.runs.running and not work.busy, timeout=TIMEOUT)
    made = app.session.masks[app.session.mask].result
    assert (made.model["name"], made.options.every_slice) == (model, options.every_slice)
    assert made.threshold == (options.threshold or 0.5)
    if not runs:
        assert np.array_equal(made.mask, remask(made)) and made.mask.any()
    written = np.asarray(nib.load(work.case.mask).dataobj)
    assert written.sum() == made.mask.sum()


@pytest.mark.slow
def test_the_next_case_is_segmented_once_a_run_has_ended(qtbot, app, viewer, panel, folder):
    panel.ahead.value = True
    app.runs.how = lambda: ("slow", Options())
    panel.open_folder(folder)
    work = app.worklist
    qtbot.waitUntil(lambda: app.runs.running, timeout=TIMEOUT)
    run = app.runs.latest
    app.runs.how = lambda: ("box", Options())
    qtbot.waitUntil(lambda: work.ahead.state == "loaded", timeout=TIMEOUT)
    run.cancel()
    qtbot.waitUntil(lambda: work.ahead.state == "segmented", timeout=TIMEOUT)


def test_a_run_under_way_is_not_left(qtbot, app, viewer, panel, folder, notifications):
    work = opened(qtbot, app, panel, folder)
    run = app.runs.start(app.session.ct, "slow")
    panel.list.setCurrentRow(1)  # as a click does
    panel.list.itemClicked.emit(panel.list.item(1))
    assert notifications[-1].message == ("'a' is being segmented: wait, or press Cancel.")
    assert work.case.name == "a.nii.gz" and panel.list.currentRow() == 0
    run.cancel()
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)


def test_a_case_is_not_left_while_an_edit_is_worked_out(
    qtbot, app, viewer, panel, folder, notifications, monkeypatch
):
    work, waiting = opened(qtbot, app, panel, folder), []
    paint(app, viewer, 6)
    monkeypatch.setattr(app.editor, "_background", MagicMock(submit=lambda *a: waiting.append(a)))
    app.editor.grow()
    work.step(1)
    assert "“Grow by 1 mm” is not done yet" in notifications[-1].message
    assert work.case.name == "a.nii.gz" and not work.busy
    app.background.submit(*waiting.pop())
    qtbot.waitUntil(lambda: not app.editor.working, timeout=TIMEOUT)
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert np.asarray(nib.load(work.worklist.cases[0].mask).dataobj).sum() > 1


def test_a_case_is_not_left_while_a_stroke_is_answered(
    qtbot, app, viewer, panel, folder, notifications, monkeypatch
):
    work, waiting = opened(qtbot, app, panel, folder), []
    mask = paint(app, viewer, 6)
    app.answers.ask = lambda volume, plane, z, **how: np.ones_like(plane)
    monkeypatch.setattr(app.mending, "_background", MagicMock(submit=lambda *a: waiting.append(a)))
    drag = Drag(chosen_target(app.session), 6, adds=True)
    drag.to(viewer, mask.data_to_world((6, 10, 10)))
    app.mending._end(drag)
    work.step(1)
    assert "“Mend” is not done yet" in notifications[-1].message and not work.busy
    app.background.submit(*waiting.pop())
    qtbot.waitUntil(lambda: not app.mending.working, timeout=TIMEOUT)
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert np.asarray(nib.load(work.worklist.cases[0].mask).dataobj)[..., 6].all()


def test_a_case_is_not_left_while_its_mask_is_made_anew(
    qtbot, app, viewer, panel, folder, notifications, monkeypatch
):
    work, waiting = opened(qtbot, app, panel, folder), []
    run = app.runs.start(app.session.ct, "graded")
    qtbot.waitUntil(lambda: not run.running and not work.busy, timeout=TIMEOUT)
    before = np.count_nonzero(run.labels.data)
    later = MagicMock(submit=lambda *a: waiting.append(a))
    monkeypatch.setattr(app.rethreshold.newest, "_background", later)
    assert app.rethreshold.ask(run.labels, 0.1, True)
    work.step(1)
    assert "“Threshold” is not done yet" in notifications[-1].message and not work.busy
    app.background.submit(*waiting.pop())
    qtbot.waitUntil(lambda: not app.rethreshold.working, timeout=TIMEOUT)
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    written = np.asarray(nib.load(work.worklist.cases[0].mask).dataobj)
    assert np.count_nonzero(written) > before


def test_a_case_is_not_left_if_a_run_begins_meanwhile(
    qtbot, app, viewer, panel, folder, notifications, tmp_path
):
    work = opened(qtbot, app, panel, folder)
    paint(app, viewer, 1)
    work.step(1)
    assert work.busy
    run = app.runs.start(app.session.ct, f"slow {tmp_path / 'go'}")
    qtbot.waitUntil(idle(work), timeout=TIMEOUT)
    assert work.case.name == "a.nii.gz" and "is being segmented" in notifications[-1].message
    (tmp_path / "go").touch()
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert run.labels not in viewer.layers


@pytest.mark.slow
@pytest.mark.parametrize("model", ["fail", "slow"])
def test_a_failed_run_does_not_replace_the_file(
    qtbot, app, viewer, panel, folder, notifications, model
):
    work = opened(qtbot, app, panel, folder)
    app.runs.start(app.session.ct, "box")
    qtbot.waitUntil(lambda: work.case.status is Status.SEGMENTED, timeout=TIMEOUT)
    work.mark_reviewed()
    qtbot.waitUntil(lambda: work.case.status is Status.REVIEWED, timeout=TIMEOUT)
    path = folder.parent / "cts_masks" / "a_mask.nii.gz"
    before = path.read_bytes()
    run = app.runs.start(app.session.ct, model)
    if model == "slow":
        qtbot.waitUntil(lambda: run.done >= 2, timeout=TIMEOUT)
        work.mark_reviewed()  # nor is what a run is still filling written
        assert notifications[-1].message == ("'a' is being segmented: wait, or press Cancel.")
        app.network.process._child.process.kill()
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    if model == "slow":
        for leave in (lambda: work.step(1), work.finish_case, work.mark_reviewed):
            leave()
            assert not work.busy and "Keep or discard" in notifications[-1].message
        run.discard()
    app.watch.notify()
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert path.read_bytes() == before
    assert work.worklist.cases[0].status is Status.REVIEWED


def a_masks_folder(folder, hu, names: str = "ab"):
    """A folder in which somebody has corrected masks already."""
    other = folder.parent / "colleague"
    other.mkdir()
    mask = np.zeros(hu.shape, np.uint8)
    mask[15:25, 10:20, 2:8] = 1
    for name in names:
        image = nib.Nifti1Image(mask, np.diag([1, 1, 2.5, 1]))
        nib.save(image, other / f"{name}_mask.nii.gz")
    return other


@pytest.mark.slow
@pytest.mark.parametrize("corrected", [True, False])
def test_masks_in_another_folder_are_loaded_and_not_replaced(
    qtbot, app, viewer, panel, folder, hu, notifications, corrected
):
    work = opened(qtbot, app, panel, folder)
    qtbot.waitUntil(lambda: work.ahead.state == "loaded", timeout=TIMEOUT)
    if corrected:
        paint(app, viewer, 6)
    other = a_masks_folder(folder, hu)
    before = {path: path.read_bytes() for path in other.iterdir()}
    work.use_output(other)
    qtbot.waitUntil(
        lambda: (
            not work.busy and app.session.mask is not None and app.session.mask.data.sum() == 600
        ),
        timeout=TIMEOUT,
    )
    assert work.case.name == "a.nii.gz" and len(viewer.layers) == 2
    own = folder.parent / "cts_masks" / "a_mask.nii.gz"
    if corrected:  # kept where it belonged, and that is said
        assert np.asarray(nib.load(own).dataobj).sum() == 1
        assert any("'cts_masks'" in one.message for one in notifications)
    assert own.exists() == corrected
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert app.session.mask.data.sum() == 600
    work.step(-1)
    qtbot.waitUntil(shows(work, "a.nii.gz"), timeout=TIMEOUT)
    assert {path: path.read_bytes() for path in other.iterdir()} == before
    work.use_output(other)  # the same once more changes nothing
    assert not work.busy and work.case.name == "a.nii.gz"


def test_a_status_does_not_go_along_into_another_folder(qtbot, app, viewer, panel, folder, hu):
    work = opened(qtbot, app, panel, folder)
    paint(app, viewer, 6)
    work.finish_case()
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    paint(app, viewer, 6)
    first = work.worklist.output
    work.use_output(a_masks_folder(folder, hu))
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert [case.status for case in work.worklist.cases[:2]] == [Status.SEGMENTED] * 2
    work.use_output(first)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    statuses = [case.status for case in work.worklist.cases[:2]]
    assert statuses == [Status.EXPORTED, Status.CORRECTED]
    assert Worklist(folder, state_folder()).cases[0].status is Status.EXPORTED


def test_a_mask_moves_on_into_an_empty_folder(qtbot, app, viewer, panel, folder, tmp_path):
    work = opened(qtbot, app, panel, folder)
    mask = paint(app, viewer, 6)
    work.use_output(tmp_path / "elsewhere")
    assert mask in viewer.layers and not work.busy
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert (tmp_path / "elsewhere" / "a_mask.nii.gz").exists()
    assert not (folder.parent / "cts_masks").exists()


def test_a_ct_that_has_come_meanwhile_takes_no_other_one_s_mask(
    qtbot, app, viewer, panel, folder, tmp_path
):
    work = opened(qtbot, app, panel, folder)
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    paint(app, viewer, 6)
    shutil.copy(folder / "a.nii.gz", folder / "aa.nii.gz")
    (folder / "c.nii.gz").unlink()
    work.use_output(tmp_path / "elsewhere")
    assert work.case.name == "b.nii.gz" and len(work.worklist) == 3
    work.step(-1)
    qtbot.waitUntil(shows(work, "a.nii.gz"), timeout=TIMEOUT)
    written = [path.name for path in (tmp_path / "elsewhere").glob("*.nii.gz")]
    assert written == ["b_mask.nii.gz"]


def test_one_goes_on_from_a_case_that_cannot_be_read(
    qtbot, app, viewer, panel, folder, notifications
):
    (folder / "b.nii.gz").write_bytes(b"nothing")
    (folder / "a.nii.gz").rename(folder / "d.nii.gz")
    work = app.worklist
    panel.open_folder(folder)  # b and c are broken
    for name in "bc":
        qtbot.waitUntil(
            lambda name=name: bool(notifications) and f"{name}.nii.gz" in notifications[-1].message,
            timeout=TIMEOUT,
        )
        qtbot.waitUntil(lambda: not work.busy, timeout=TIMEOUT)
        work.step(1)
    qtbot.waitUntil(shows(work, "d.nii.gz"), timeout=TIMEOUT)
    assert work.worklist.current == 2


@pytest.mark.slow
def test_a_new_result_is_written_at_once(qtbot, app, viewer, panel, folder):
    work = opened(qtbot, app, panel, folder)
    app.runs.start(app.session.ct, "box")
    qtbot.waitUntil(lambda: work.case.status is Status.SEGMENTED, timeout=TIMEOUT)
    assert (folder.parent / "cts_masks" / "a_mask.nii.gz").exists()
    assert (folder.parent / "cts_masks" / "a_mask.json").exists()


def test_after_a_reset_the_next_case_is_segmented_as_the_panel_says(app, panel):
    assert not app.ahead.segments
    app.settings.clear()
    assert panel.ahead.value and app.ahead.segments


def test_the_worklist_of_the_last_time_is_offered(qtbot, app, panel, folder):
    assert panel.last_button.isHidden()
    opened(qtbot, app, panel, folder)
    assert panel.last_button.isHidden()
    app.worklist.worklist = None  # as in a window that was opened anew
    later = WorklistPanel(app)
    qtbot.addWidget(later)
    assert not later.last_button.isHidden() and "'cts'" in later.last_button.text()
    later.last_button.click()
    qtbot.waitUntil(lambda: app.worklist.worklist is not None, timeout=TIMEOUT)
    assert later.last_button.isHidden()
    assert len(app.worklist.worklist) == 3


def test_one_goes_on_with_the_marked_cases_alone_and_with_no_folder_that_could_not_be_opened(
    qtbot, app, panel, folder, tmp_path, notifications
):
    work = app.worklist
    panel.open_worklist(folder, only={"b_mask.nii.gz"})
    qtbot.waitUntil(idle(work), timeout=TIMEOUT)
    (tmp_path / "empty").mkdir()
    panel.open_worklist(tmp_path / "empty")
    qtbot.waitUntil(lambda: bool(notifications) and not work.busy, timeout=TIMEOUT)
    work.worklist = None
    panel.last_button.click()
    qtbot.waitUntil(lambda: work.worklist is not None, timeout=TIMEOUT)
    assert work.worklist.folder == folder
    assert [case.name for case in work.worklist.cases] == ["b.nii.gz"]


def test_a_list_changes_where_its_cases_do(qtbot, app, panel, folder):
    work = opened(qtbot, app, panel, folder)
    items = [panel.list.item(row) for row in range(3)]
    items[2].setText("as it was")  # of the open case the slice on screen changes
    work.worklist.update(1, status=Status.REVIEWED)
    work.changed.emit()
    assert items[2].text() == "as it was" and "b · reviewed" in items[1].text()
    panel.open_folder(folder)
    qtbot.waitUntil(lambda: "c · new" in items[2].text(), timeout=TIMEOUT)


def test_a_worklist_goes_on_with_its_ct_while_the_panel_is_closed(qtbot, app, viewer, folder):
    app.worklist.open(folder)  # no header is there, which would choose CT and mask
    qtbot.waitUntil(idle(app.worklist), timeout=TIMEOUT)
    assert app.session.ct is viewer.layers["a"]
    app.session.mask = viewer.add_labels(np.zeros_like(app.session.ct.data, np.uint8))
    paint(app, viewer, 6)
    app.worklist.step(1)
    qtbot.waitUntil(shows(app.worklist, "b.nii.gz"), timeout=TIMEOUT)
    assert app.session.ct is viewer.layers["b"] and app.session.mask is None
    app.worklist.step(-1)
    qtbot.waitUntil(shows(app.worklist, "a.nii.gz"), timeout=TIMEOUT)
    assert app.session.mask is viewer.layers["a pancreas"]


def test_masks_of_another_program_are_corrected_like_ours(
    qtbot, app, viewer, panel, folder, ct_panel, tmp_path
):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    ct = nib.load(folder / "a.nii.gz")
    labels = np.zeros(ct.shape, np.uint8)
    labels[10:14, 10:14, 3:6] = 7
    labels[20:24, 10:14, 3:6] = 1
    nib.save(nib.Nifti1Image(labels, ct.affine), theirs / "a.nii.gz")
    work = app.worklist
    panel.open_worklist(folder, masks=GivenMasks(theirs, 7, "TotalSegmentator"))
    qtbot.waitUntil(idle(work), timeout=TIMEOUT)
    assert np.count_nonzero(app.session.mask.data) == 48
    assert work.case.status is Status.SEGMENTED
    sidecar = sidecar_path(work.case.mask)
    record = read_sidecar(sidecar)
    assert (record["mask_by"], record["measurements"]["voxels"]) == ("TotalSegmentator", 48)
    paint(app, viewer, 1)
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert app.session.mask is None or not np.any(app.session.mask.data)
    record = read_sidecar(sidecar)
    assert (record["mask_by"], record["measurements"]["voxels"]) == ("TotalSegmentator", 49)
    assert record["corrected"]
    assert np.array_equal(np.asarray(nib.load(theirs / "a.nii.gz").dataobj), labels)


def test_a_mask_of_others_is_taken_with_its_ct_read_as_is_remembered(tmp_path):
    hu = np.full((30, 20, 6), 700, np.int16)  # no CT by itself
    hu[::2] = 900
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    nib.save(nib.Nifti1Image(hu, np.eye(4)), tmp_path / "a.nii.gz")
    nib.save(nib.Nifti1Image((hu > 800).astype(np.uint8), np.eye(4)), theirs / "a.nii.gz")
    given = GivenMasks(theirs), theirs / "a.nii.gz"
    target = tmp_path / "out" / "a_mask.nii.gz"
    case = WorklistCase("a", tmp_path / "a.nii.gz", target, given=given, force=True)
    loaded = read_case(0, case)
    assert loaded.mask is not None and np.count_nonzero(loaded.mask.data) == hu.size // 2


def test_the_command_opens_napari_with_a_worklist(monkeypatch, folder):
    from napari_pancreas_seg._napari import __main__ as start

    dock, asked = MagicMock(), []
    monkeypatch.setattr(start.napari, "Viewer", lambda: "viewer")
    monkeypatch.setattr(start.napari, "run", lambda: asked.append("run"))
    monkeypatch.setattr(start, "open_dock", lambda viewer: dock)
    masks = [str(folder), 7, "nnU-Net"]
    start.main(json.dumps({"folder": "cts", "output": "out", "masks": masks, "only": ["a"]}))
    dock.worklist_panel.open_worklist.assert_called_once_with(
        "cts", "out", masks=GivenMasks(folder, 7, "nnU-Net"), only={"a"}
    )
    assert asked == ["run"]


@pytest.mark.slow
def test_a_case_that_was_only_reviewed_is_not_offered_as_unexported(
    qtbot, app, viewer, panel, folder, ct_panel
):
    masks = folder.parent / "cts_masks"
    masks.mkdir()
    ct = nib.load(folder / "a.nii.gz")
    mask = np.zeros(ct.shape, np.uint8)
    mask[3:9, 3:9, 2:8] = 1
    nib.save(nib.Nifti1Image(mask, ct.affine), masks / "a_mask.nii.gz")
    work = opened(qtbot, app, panel, folder)
    app.review.set_reviewed(app.session.mask, {2, 3})
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        app.autosave.save()
    assert not list(autosave_folder().glob("*.npz")), "it is remembered with the case"
    paint(app, viewer, 6)
    with qtbot.waitSignal(app.autosave.saved, timeout=TIMEOUT):
        app.autosave.save()
    assert len(list(autosave_folder().glob("*.npz"))) == 1
    app.review.set_reviewed(app.session.mask, {2, 3, 4})
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    qtbot.waitUntil(lambda: not list(autosave_folder().glob("*.npz")), timeout=TIMEOUT)
    qtbot.wait(400)  # longer than the pause before what has changed is kept
    assert not list(autosave_folder().glob("*.npz")) and app.offers.left == []


@pytest.mark.slow
def test_a_case_is_as_doubtful_as_when_it_was_segmented(qtbot, app, panel, folder, ct_panel):
    masks = folder.parent / "cts_masks"
    masks.mkdir()
    ct = nib.load(folder / "a.nii.gz")
    mask = np.zeros(ct.shape, np.uint8)
    mask[3:9, 3:9, 2:5] = 1
    nib.save(nib.Nifti1Image(mask, ct.affine), masks / "a_mask.nii.gz")
    expected = [None, None, 0.9, 0.4, 0.8, *[None] * 5]
    write_sidecar(masks / "a_mask.json", {"program": {"name": PROGRAM}, "expected_dice": expected})
    opened(qtbot, app, panel, folder)
    qtbot.waitUntil(lambda: app.review.facts is not None, timeout=TIMEOUT)
    np.testing.assert_allclose(app.review.facts.doubt[2:5], [0.1, 0.6, 0.2], atol=1e-6)
    assert np.isnan(app.review.facts.doubt[[0, 1, 5]]).all()
    app.review.go_to_uncertain(1)
    assert app.review.slice == 3


def test_the_first_case_is_segmented_at_once_and_named_over_the_picture(
    qtbot, app, viewer, panel, folder, ct_panel
):
    bar = CanvasBar(app, None)
    qtbot.addWidget(bar)
    panel.ahead.value = True
    app.runs.how = lambda: ("box", Options())
    opened(qtbot, app, panel, folder)
    assert app.runs.running and bar.case.text() == "Case 1 of 3: a, new"
    qtbot.waitUntil(lambda: app.worklist.case.status is Status.SEGMENTED, timeout=TIMEOUT)
    assert bar.case.text() == "Case 1 of 3: a, segmented"
    qtbot.waitUntil(lambda: not app.runs.running and not app.worklist.busy, timeout=TIMEOUT)
    app.worklist.mark_reviewed()
    assert bar.case.text() == "Keeping the mask…"
    qtbot.waitUntil(lambda: bar.case.text() == "Case 1 of 3: a, reviewed", timeout=TIMEOUT)


@pytest.mark.slow
def test_a_case_is_left_while_the_model_s_mask_is_shown(
    qtbot, app, viewer, panel, folder, ct_panel
):
    work = opened(qtbot, app, panel, folder)
    app.runs.start(app.session.ct, "box")
    qtbot.waitUntil(lambda: work.case.status is Status.SEGMENTED and not work.busy, timeout=TIMEOUT)
    app.views.blink(True)
    assert any("the model's" in layer.name for layer in viewer.layers)
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert [layer.name for layer in viewer.layers] == ["b"]
