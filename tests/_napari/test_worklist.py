"""From case to case: what was painted is kept, and one starts again where one stopped."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from napari.layers import Image, Labels
from qtpy.QtCore import Qt

from napari_pancreas_seg._napari.widget.ct_panel import CtPanel
from napari_pancreas_seg._napari.widget.worklist_panel import WorklistPanel
from napari_pancreas_seg._napari.worklist.session import WorklistSession, worklist_of
from napari_pancreas_seg.cohort.worklist import Status
from napari_pancreas_seg.inference.result import Options

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
def ct_panel(qtbot, session, viewer):
    """Chooses CT and mask, as in the dock."""
    panel = CtPanel(session)
    qtbot.addWidget(panel)
    for event in (viewer.layers.events.inserted, viewer.layers.events.removed):
        event.connect(lambda _: panel.offer_layers())
    return panel


@pytest.fixture
def panel(qtbot, session, ct_panel):
    panel = WorklistPanel(session)
    qtbot.addWidget(panel)
    panel.ahead.setChecked(False)
    return panel


def idle(work: WorklistSession):
    return lambda: not work.busy and work.case is not None


def shows(work: WorklistSession, name: str):
    return lambda: not work.busy and work.case is not None and work.case.name == name


def opened(qtbot, session, panel, folder) -> WorklistSession:
    work = worklist_of(session)
    panel.open_folder(folder)
    qtbot.waitUntil(idle(work), timeout=TIMEOUT)
    return work


def paint(session, viewer, z: int) -> Labels:
    """Paint a voxel, into a new layer if there is no mask."""
    if session.mask is None:
        viewer.add_labels(np.zeros(session.ct.data.shape, np.uint8), name="by hand")
    session.mask.data_setitem((np.array([z]), np.array([3]), np.array([4])), 1)
    return session.mask


def test_what_was_painted_is_kept_on_the_way(qtbot, session, viewer, panel, folder):
    work = opened(qtbot, session, panel, folder)
    assert [layer.name for layer in viewer.layers] == ["a"]
    assert "a · new" in panel.list.item(0).text()
    mask = paint(session, viewer, 6)
    viewer.dims.set_point(0, 2 * 2.5)
    qtbot.mouseClick(panel.next_button, LEFT)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert [layer.name for layer in viewer.layers] == ["b"]
    assert "corrected" in panel.list.item(0).text()
    written = np.asarray(nib.load(folder.parent / "cts_masks" / "a_mask.nii.gz").dataobj)
    assert np.count_nonzero(written) == 1
    qtbot.mouseClick(panel.previous_button, LEFT)
    qtbot.waitUntil(shows(work, "a.nii.gz"), timeout=TIMEOUT)
    assert np.array_equal(session.mask.data, mask.data)
    assert round(viewer.dims.point[0] / 2.5) == 2


def test_it_is_resumed_in_another_session(qtbot, session, viewer, panel, folder, ct_panel):
    work = opened(qtbot, session, panel, folder)
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    paint(session, viewer, 1)
    work.mark_reviewed()
    qtbot.waitUntil(lambda: work.case.status is Status.REVIEWED, timeout=TIMEOUT)
    viewer.layers.clear()
    again = WorklistSession(session)
    again.open(folder)
    qtbot.waitUntil(idle(again), timeout=TIMEOUT)
    assert again.case.name == "b.nii.gz"
    assert again.case.status is Status.REVIEWED
    assert np.count_nonzero(session.mask.data) == 1


def test_an_unchanged_mask_is_not_written_again(qtbot, session, viewer, panel, folder):
    work = opened(qtbot, session, panel, folder)
    paint(session, viewer, 6)
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


def test_a_mask_that_cannot_be_written_keeps_its_case(
    qtbot, session, viewer, panel, folder, notifications
):
    work = opened(qtbot, session, panel, folder)
    mask = paint(session, viewer, 6)
    (folder.parent / "cts_masks").write_text("in the way")
    work.step(1)
    qtbot.waitUntil(lambda: bool(notifications) and not work.busy, timeout=TIMEOUT)
    assert notifications[-1].severity.value == "error"
    assert work.case.name == "a.nii.gz"
    assert mask in viewer.layers


def test_a_case_that_cannot_be_read_stops_nothing(
    qtbot, session, viewer, panel, folder, notifications
):
    work = opened(qtbot, session, panel, folder)
    work.go_to(2)
    qtbot.waitUntil(lambda: bool(notifications) and not work.busy, timeout=TIMEOUT)
    assert "c.nii.gz" in notifications[-1].message
    work.go_to(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert [layer.name for layer in viewer.layers] == ["b"]


def test_export_goes_to_the_next_open_case(qtbot, session, viewer, panel, folder, notifications):
    work = opened(qtbot, session, panel, folder)
    qtbot.mouseClick(panel.done_button, LEFT)
    assert "no mask" in notifications[-1].message
    paint(session, viewer, 6)
    qtbot.mouseClick(panel.done_button, LEFT)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert work.worklist.cases[0].status is Status.EXPORTED
    assert "1 of 3 exported" in panel.status.text()
    work.step(-1)
    qtbot.waitUntil(shows(work, "a.nii.gz"), timeout=TIMEOUT)
    paint(session, viewer, 8)
    qtbot.waitUntil(lambda: work.case.status is Status.CORRECTED, timeout=TIMEOUT)


def test_a_mask_to_compare_with_is_not_taken_for_the_case(qtbot, session, viewer, panel, folder):
    work = opened(qtbot, session, panel, folder)
    own = paint(session, viewer, 6)
    work.mark_reviewed()
    qtbot.waitUntil(lambda: work.case.status is Status.REVIEWED, timeout=TIMEOUT)
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    work.step(-1)
    qtbot.waitUntil(shows(work, "a.nii.gz"), timeout=TIMEOUT)
    session.open_file(folder.parent / "cts_masks" / "a_mask.nii.gz")
    qtbot.waitUntil(lambda: len(viewer.layers) == 3, timeout=TIMEOUT)
    session.mask = viewer.layers[-1]
    viewer.layers[-1].data[:] = 1
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    written = np.asarray(nib.load(folder.parent / "cts_masks" / "a_mask.nii.gz").dataobj)
    assert written.sum() == own.data.sum() == 1
    assert len(viewer.layers) == 2  # what was opened beside it stays


def test_the_next_case_is_read_and_segmented_meanwhile(qtbot, session, viewer, panel, folder):
    panel.ahead.setChecked(True)
    panel.segment_with(lambda: ("box", Options()))
    work = opened(qtbot, session, panel, folder)
    qtbot.waitUntil(lambda: work.ahead.state == "segmented", timeout=TIMEOUT)
    assert "Next case: segmented" in panel.status.text()
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    ct, mask = viewer.layers
    assert isinstance(ct, Image)
    assert isinstance(mask, Labels)
    assert session.mask is mask
    assert mask.data.any()
    assert np.array_equal(mask.data, session.masks[mask].copy)
    assert not np.shares_memory(mask.data, session.masks[mask].copy)
    work.step(-1)
    qtbot.waitUntil(shows(work, "a.nii.gz"), timeout=TIMEOUT)
    assert work.worklist.cases[1].status is Status.SEGMENTED


def test_the_next_case_is_segmented_once_a_run_has_ended(qtbot, session, viewer, panel, folder):
    panel.ahead.setChecked(True)
    panel.segment_with(lambda: ("box", Options()))
    panel.open_folder(folder)
    work = worklist_of(session)
    qtbot.waitUntil(lambda: work.case is not None and not work.busy, timeout=TIMEOUT)
    run = session.start(session.ct, "slow")
    qtbot.waitUntil(lambda: work.ahead.state == "loaded", timeout=TIMEOUT)
    run.cancel()
    qtbot.waitUntil(lambda: work.ahead.state == "segmented", timeout=TIMEOUT)


def test_a_run_under_way_is_not_left(qtbot, session, viewer, panel, folder, notifications):
    work = opened(qtbot, session, panel, folder)
    run = session.start(session.ct, "slow")
    work.step(1)
    assert "under way" in notifications[-1].message
    assert work.case.name == "a.nii.gz"
    run.cancel()
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)


@pytest.mark.parametrize("model", ["fail", "slow"])
def test_a_failed_run_does_not_replace_the_file(
    qtbot, session, viewer, panel, folder, notifications, model
):
    work = opened(qtbot, session, panel, folder)
    session.start(session.ct, "box")
    qtbot.waitUntil(lambda: work.case.status is Status.SEGMENTED, timeout=TIMEOUT)
    work.mark_reviewed()
    qtbot.waitUntil(lambda: work.case.status is Status.REVIEWED, timeout=TIMEOUT)
    path = folder.parent / "cts_masks" / "a_mask.nii.gz"
    before = path.read_bytes()
    run = session.start(session.ct, model)
    if model == "slow":
        qtbot.waitUntil(lambda: run.done >= 2, timeout=TIMEOUT)
        work.mark_reviewed()  # nor is what a run is still filling written
        assert "under way" in notifications[-1].message
        session.network._child.process.kill()
    qtbot.waitUntil(lambda: not run.running, timeout=TIMEOUT)
    if model == "slow":
        for leave in (lambda: work.step(1), work.finish_case, work.mark_reviewed):
            leave()
            assert not work.busy and "Keep or discard" in notifications[-1].message
        run.discard()
    session.tell_edits()
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


@pytest.mark.parametrize("corrected", [True, False])
def test_masks_in_another_folder_are_loaded_and_not_replaced(
    qtbot, session, viewer, panel, folder, hu, notifications, corrected
):
    work = opened(qtbot, session, panel, folder)
    qtbot.waitUntil(lambda: work.ahead.state == "loaded", timeout=TIMEOUT)
    if corrected:
        paint(session, viewer, 6)
    other = a_masks_folder(folder, hu)
    before = {path: path.read_bytes() for path in other.iterdir()}
    work.use_output(other)
    qtbot.waitUntil(
        lambda: not work.busy and session.mask is not None and session.mask.data.sum() == 600,
        timeout=TIMEOUT,
    )
    assert work.case.name == "a.nii.gz" and len(viewer.layers) == 2
    own = folder.parent / "cts_masks" / "a_mask.nii.gz"
    if corrected:  # kept where it belonged, and that is said
        assert np.asarray(nib.load(own).dataobj).sum() == 1
        assert "'cts_masks'" in notifications[-1].message
    assert own.exists() == corrected
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert session.mask.data.sum() == 600
    work.step(-1)
    qtbot.waitUntil(shows(work, "a.nii.gz"), timeout=TIMEOUT)
    assert {path: path.read_bytes() for path in other.iterdir()} == before
    work.use_output(other)  # the same once more changes nothing
    assert not work.busy and work.case.name == "a.nii.gz"


def test_a_mask_moves_on_into_an_empty_folder(qtbot, session, viewer, panel, folder, tmp_path):
    work = opened(qtbot, session, panel, folder)
    mask = paint(session, viewer, 6)
    work.use_output(tmp_path / "elsewhere")
    assert mask in viewer.layers and not work.busy
    work.step(1)
    qtbot.waitUntil(shows(work, "b.nii.gz"), timeout=TIMEOUT)
    assert (tmp_path / "elsewhere" / "a_mask.nii.gz").exists()
    assert not (folder.parent / "cts_masks").exists()


def test_one_goes_on_from_a_case_that_cannot_be_read(
    qtbot, session, viewer, panel, folder, notifications
):
    (folder / "b.nii.gz").write_bytes(b"nothing")
    (folder / "a.nii.gz").rename(folder / "d.nii.gz")
    work = worklist_of(session)
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


def test_a_new_result_is_written_at_once(qtbot, session, viewer, panel, folder):
    work = opened(qtbot, session, panel, folder)
    session.start(session.ct, "box")
    qtbot.waitUntil(lambda: work.case.status is Status.SEGMENTED, timeout=TIMEOUT)
    assert (folder.parent / "cts_masks" / "a_mask.nii.gz").exists()
    assert (folder.parent / "cts_masks" / "a_mask.json").exists()
