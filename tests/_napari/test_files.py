"""From a file to layers and back, through napari's own ways in and out."""

from __future__ import annotations

import csv
import json
import pickle
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import nibabel as nib
import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer
from napari.layers._layer_actions import _duplicate_layer
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QWidget

from napari_pancreas_seg._napari.background import report
from napari_pancreas_seg._napari.correct.apply import chosen_target
from napari_pancreas_seg._napari.layers import samples
from napari_pancreas_seg._napari.layers.bridge import (
    ct_layer_data,
    map_layer_data,
    mask_of,
    volume_of,
)
from napari_pancreas_seg._napari.layers.placement import (
    placement_of,
    reference_of,
    slice_on_screen,
    why_not_ct,
)
from napari_pancreas_seg._napari.layers.reader import get_reader, read_layer
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.options import OutputOptions
from napari_pancreas_seg.inference.result import ScalarMap, Segmentation, save_result
from napari_pancreas_seg.io import load_ct
from napari_pancreas_seg.volume import CTVolume

PLUGIN = "napari-pancreas-seg"
pytestmark = pytest.mark.usefixtures("manifest")


def open_ct(viewer: ViewerModel, path: Path) -> Image:
    (layer,) = viewer.open(path, plugin=PLUGIN)
    return layer


def add_mask(viewer: ViewerModel, ct: Image) -> Labels:
    """A mask with a landmark, in a layer that knows its CT as the model's layers do."""
    from napari_pancreas_seg._napari.layers.bridge import labels_layer_data

    data = np.zeros(ct.data.shape, np.uint8)
    data[2, 5, 9:14] = 1
    layer = Layer.create(*labels_layer_data(data, placement_of(ct), "mask"))
    viewer.add_layer(layer)
    return layer


def assert_on_grid(path: Path, ct_path: Path, mask: np.ndarray, volume: CTVolume) -> None:
    written, source = nib.load(path), nib.load(ct_path)
    assert written.get_data_dtype() == np.uint8
    assert np.array_equal(written.affine, source.affine)
    assert np.array_equal(np.asarray(written.dataobj), volume.to_source_order(mask))


def test_a_ct_opens_with_its_geometry(viewer, ct_path, volume):
    layer = open_ct(viewer, ct_path)
    assert layer.name == "case 7"
    assert layer.contrast_limits == [-160, 240]
    assert np.allclose(layer.scale, volume.spacing)
    assert [str(unit) for unit in layer.units] == ["millimeter"] * 3
    assert layer.axis_labels == ("z", "y", "x")
    assert not layer.rgb
    assert np.array_equal(layer.data, volume.hu)
    assert reference_of(layer).grid.same_as(volume.grid)


def test_a_slice_with_four_columns_is_no_colour_picture(volume):
    narrow = CTVolume.from_source_array(volume.hu[:, :, :4].transpose(), np.eye(4))
    assert Layer.create(*ct_layer_data(narrow)).ndim == 3


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
@pytest.mark.parametrize("way", ["layers.save", "layer.save"])
def test_labels_are_written_onto_the_grid_of_the_ct(viewer, ct_path, volume, tmp_path, suffix, way):
    mask = add_mask(viewer, open_ct(viewer, ct_path))
    mask.name, mask.translate = "moved", (10, 20, 30)
    target = tmp_path / f"out{suffix}"
    if way == "layer.save":
        mask.save(str(target))
    else:
        viewer.layers.selection = {mask}
        viewer.layers.save(str(target), selected=True)
    assert_on_grid(target, ct_path, mask.data, volume)


def test_a_written_mask_opens_as_labels(viewer, ct_path, tmp_path):
    mask = add_mask(viewer, open_ct(viewer, ct_path))
    mask.save(str(tmp_path / "m.nii.gz"))
    (again,) = viewer.open(tmp_path / "m.nii.gz", plugin=PLUGIN)
    assert isinstance(again, Labels)
    assert again.data.dtype == np.uint8
    assert np.array_equal(again.data, mask.data)
    again.data[0, 0, 0] = 1
    again.save(str(tmp_path / "m.nii.gz"))  # onto itself: a mask may be, a CT never
    assert nib.load(tmp_path / "m.nii.gz").get_fdata().sum() == 6


def test_the_ct_is_never_overwritten(viewer, ct_path):
    mask = add_mask(viewer, open_ct(viewer, ct_path))
    with pytest.raises(PancreasSegError, match="never overwritten"):
        mask.save(str(ct_path))


def test_converted_and_bare_masks_find_their_ct(viewer, ct_path, volume, tmp_path):
    mask = add_mask(viewer, open_ct(viewer, ct_path))
    bare = Labels(mask.data.astype(np.int64), name="drawn by hand")
    image = Image(mask.data, metadata=mask.metadata, name="converted")
    for layer in (bare, image):
        viewer.add_layer(layer)
    from unittest.mock import patch

    with patch("napari_pancreas_seg._napari.layers.writer.current_viewer", lambda: viewer):
        for number, layer in enumerate((bare, image)):
            layer.save(str(tmp_path / f"{number}.nii.gz"))
            assert_on_grid(tmp_path / f"{number}.nii.gz", ct_path, mask.data, volume)


def test_a_cut_mask_is_refused_with_the_reason(viewer, ct_path, tmp_path):
    mask = add_mask(viewer, open_ct(viewer, ct_path))
    cut = Labels(mask.data[1:], metadata=mask.metadata)
    with pytest.raises(PancreasSegError, match="cut or resampled"):
        cut.save(str(tmp_path / "cut.nii.gz"))
    assert not (tmp_path / "cut.nii.gz").exists()


def test_several_layers_go_to_files_beside_one_another(viewer, ct_path, volume, tmp_path):
    ct = open_ct(viewer, ct_path)
    mask = add_mask(viewer, ct)
    coarse = volume.grid.sub_grid((10, 16, 20), (0, 0.5, 0.5), (1, 2, 2))
    values = np.random.default_rng(0).random((10, 16, 20)).astype(np.float16)
    gate = Layer.create(
        *map_layer_data(
            ScalarMap(values, coarse), placement_of(ct), "case 7 attention 1", colormap="inferno"
        )
    )
    viewer.add_layer(gate)
    viewer.layers.select_all()
    written = viewer.layers.save(str(tmp_path / "m.nii.gz"))
    names = {Path(path).name for path in written}
    assert names == {"m.nii.gz", "m_case_7.nii.gz", "m_case_7_attention_1.nii.gz"}
    assert_on_grid(tmp_path / "m.nii.gz", ct_path, mask.data, volume)
    back = nib.load(tmp_path / "m_case_7.nii.gz")
    assert np.array_equal(np.asarray(back.dataobj), volume.to_source_order(volume.hu))
    attention = nib.load(tmp_path / "m_case_7_attention_1.nii.gz")
    assert np.allclose(attention.get_fdata().sum(), values.astype(float).sum(), rtol=1e-3)


def test_maps_lie_over_the_ct_to_half_a_pixel(viewer, ct_path, volume):
    ct = open_ct(viewer, ct_path)
    coarse = volume.grid.sub_grid((10, 9, 12), (0, -2.5, -3.5), (1, 4, 4))
    data = map_layer_data(
        ScalarMap(np.zeros((10, 9, 12), np.float16), coarse),
        placement_of(ct),
        "gate",
        colormap="inferno",
    )
    gate = Layer.create(*data)
    assert np.allclose(gate.data_to_world((3, 2, 1)), ct.data_to_world((3, 5.5, 0.5)))
    assert gate.contrast_limits == [0, 1]
    assert [str(unit) for unit in gate.units] == ["millimeter"] * 3


def test_a_written_map_opens_over_its_ct(viewer, ct_path, volume, tmp_path):
    from unittest.mock import patch

    from napari_pancreas_seg import io

    values = np.random.default_rng(0).random((10, 9, 12)).astype(np.float16)
    coarse = volume.grid.sub_grid((10, 9, 12), (0, -2.5, -3.5), (1, 4, 4))
    path = tmp_path / "m_attention_1.nii.gz"
    io.save_map(ScalarMap(values, coarse), volume, path)
    (alone,) = viewer.open(path, plugin=PLUGIN)
    assert alone.visible
    assert np.allclose(alone.data, values, atol=1e-3)
    assert np.allclose(alone.scale, coarse.spacing)
    ct = open_ct(viewer, ct_path)
    with patch("napari_pancreas_seg._napari.layers.reader.current_viewer", lambda: viewer):
        (gate,) = viewer.open(path, plugin=PLUGIN)
    assert np.allclose(gate.data_to_world((3, 2, 1)), ct.data_to_world((3, 5.5, 0.5)), atol=1e-3)
    assert gate.contrast_limits == [0, 1]
    gate.save(str(tmp_path / "again.nii.gz"))
    assert np.allclose(nib.load(tmp_path / "again.nii.gz").affine, nib.load(path).affine)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Image(np.zeros((5, 5))), "2 dimensions"),
        (Image(np.zeros((2, 5, 5, 5))), "4 dimensions"),
        (Image(np.zeros((5, 5, 3), np.uint8), rgb=True), "colour"),
        (Image([np.zeros((4, 8, 8)), np.zeros((2, 4, 4))], multiscale=True), "resolutions"),
        (Labels(np.zeros((5, 5, 5), np.uint8)), "not an image"),
    ],
)
def test_what_cannot_be_a_ct(layer, reason):
    assert reason in why_not_ct(layer)
    with pytest.raises(PancreasSegError, match=reason):
        placement_of(layer)


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(PancreasSegError, match="from 0 to 300"):
        mask_of(np.array([0, 300]))
    assert mask_of(np.array([0, 255])).dtype == np.uint8


def test_other_layers_do_not_shift_the_slice_on_screen(viewer, ct_path):
    ct = open_ct(viewer, ct_path)
    reference = reference_of(ct)
    viewer.dims.set_point(0, 7 * ct.scale[0])
    assert slice_on_screen(viewer, ct, reference) == 7
    viewer.add_image(np.zeros((90, 20, 20)), scale=(0.1, 1, 1), units=("cm",) * 3)
    factor = float((1 * ct.units[0]).to(viewer.dims.units[0]).magnitude)
    viewer.dims.set_point(0, 6 * ct.scale[0] * factor)
    assert slice_on_screen(viewer, ct, reference) == 6
    viewer.dims.ndisplay = 3
    assert slice_on_screen(viewer, ct, reference) is None


def test_the_reader_takes_what_it_knows():
    assert get_reader("a.nii.gz") is not None
    assert get_reader(["a.NII", "b.nii.gz"]) is not None
    assert get_reader("a.tif") is None
    assert get_reader(["a.nii", "b.tif"]) is None


def test_a_file_that_is_no_ct_says_why(viewer, tmp_path):
    path = tmp_path / "bad.nii.gz"
    path.write_bytes(b"not a NIfTI")
    with pytest.raises(PancreasSegError, match=r"bad\.nii\.gz"):
        viewer.open(path, plugin=PLUGIN)


@pytest.mark.slow
def test_the_phantom_opens(viewer):
    (layer,) = viewer.open_sample(PLUGIN, "phantom")
    assert isinstance(layer, Image)
    assert "synthetic" in layer.name
    assert layer.data.ndim == 3


def test_a_sample_is_made_in_a_thread_where_a_window_waits(qtbot, viewer, volume, monkeypatch):
    made_in = []

    def load_sample():
        made_in.append(threading.current_thread())
        return SimpleNamespace(volume=volume)

    monkeypatch.setattr("napari_pancreas_seg.data.sample.load_sample", load_sample)
    monkeypatch.setattr(samples, "current_viewer", lambda: viewer)
    QTimer.singleShot(0, lambda: viewer.open_sample(PLUGIN, "phantom"))
    qtbot.waitUntil(lambda: len(viewer.layers) == 1, timeout=20_000)
    qtbot.waitUntil(lambda: isinstance(viewer.layers[0], Image), timeout=20_000)
    assert [layer.name for layer in viewer.layers] == ["synthetic CT"]
    assert made_in[0] is not threading.main_thread()


def test_a_sample_that_cannot_be_made_leaves_nothing(qtbot, viewer, monkeypatch, notifications):
    def load_sample():
        raise PancreasSegError("No memory.")

    monkeypatch.setattr("napari_pancreas_seg.data.sample.load_sample", load_sample)
    monkeypatch.setattr(samples, "current_viewer", lambda: viewer)
    opened = []
    QTimer.singleShot(0, lambda: opened.append(viewer.open_sample(PLUGIN, "phantom")))
    qtbot.waitUntil(lambda: bool(opened) and not viewer.layers, timeout=20_000)
    assert "No memory." in notifications[-1].message


def test_export_writes_a_record_beside_the_mask(qtbot, app, viewer, ct_path, tmp_path, volume):
    ct = open_ct(viewer, ct_path)
    run = app.runs.start(ct, "box")
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    run.labels.data_setitem((np.array([0]), np.array([0]), np.array([0])), 1)
    run.labels.name = "anything"
    viewer.layers.remove(ct)
    written = []
    app.files.export(run.labels, tmp_path / "m.nii.gz", then=written.append)
    qtbot.waitUntil(lambda: bool(written), timeout=20_000)
    assert_on_grid(tmp_path / "m.nii.gz", ct_path, run.labels.data, volume)
    record = json.loads((tmp_path / "m.json").read_text())
    assert record["model"]["name"] == "box"
    assert record["edits"] == {"voxels_added": 1, "voxels_removed": 0, "slices": 1}


def test_edits_of_a_mask_that_a_run_wrote_before_are_counted(qtbot, app, viewer, ct_path, tmp_path):
    volume, path = load_ct(ct_path), tmp_path / "m.nii.gz"
    found = np.zeros(volume.grid.shape, np.uint8)
    found[2, 5, 9:14] = 1
    values = ScalarMap(found.astype(np.float16), volume.grid)
    card = {"name": "box", "version": "1"}
    save_result(
        Segmentation(found, values, (), volume.grid, 0.5, card, {}), volume, path, OutputOptions()
    )
    mask, written = add_mask(viewer, open_ct(viewer, ct_path)), []
    assert np.array_equal(mask.data, found)
    mask.data_setitem((np.array([2, 3, 3]), np.array([5, 0, 0]), np.array([9, 0, 1])), [0, 1, 1])

    def export() -> dict:
        app.files.export(mask, path, overwrite=True, then=written.append)
        qtbot.waitUntil(lambda: bool(written), timeout=20_000)
        written.clear()
        return json.loads((tmp_path / "m.json").read_text())

    record = export()
    assert record["edits"] == {"voxels_added": 2, "voxels_removed": 1, "slices": 2}
    assert record["corrected"] and record["measurements"]["voxels"] == 6
    assert export()["edits"] == record["edits"]
    mask.data_setitem((np.array([4]), np.array([0]), np.array([0])), 1)
    assert export()["edits"] == {"voxels_added": 3, "voxels_removed": 1, "slices": 3}
    nib.save(nib.Nifti1Image(np.zeros(nib.load(path).shape, np.uint8), nib.load(path).affine), path)
    mask.data_setitem((np.array([4]), np.array([0]), np.array([0])), 0)
    assert export()["edits"] is None  # another program was there


def test_strokes_are_counted_once_over_several_sittings(
    qtbot, app, viewer, ct_path, tmp_path, monkeypatch
):
    ct = open_ct(viewer, ct_path)
    run = app.runs.start(ct, "box")
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    drawn, written, path = {2: (1, 0)}, [], tmp_path / "m.nii.gz"
    monkeypatch.setattr(app.files, "_strokes", lambda layer: dict(drawn))

    def export(mask: Labels) -> dict:
        app.files.export(mask, path, overwrite=True, then=written.append)
        qtbot.waitUntil(lambda: bool(written), timeout=20_000)
        written.clear()
        return json.loads((tmp_path / "m.json").read_text())["edits"]

    assert export(run.labels)["strokes"] == {
        "add": 1, "remove": 0, "slices": {"2": {"add": 1, "remove": 0}}
    }  # fmt: skip
    (again,) = viewer.open(path, plugin=PLUGIN)
    drawn.clear()
    for z, total in ((2, 2), (4, 3)):
        again.data_setitem((np.array([z]), np.array([0]), np.array([0])), 1)
        drawn[z] = (1, 0)
        edits = export(again)
        assert edits["strokes"]["add"] == edits["voxels_added"] + 1 == total
    assert edits["strokes"]["slices"]["2"] == {"add": 2, "remove": 0}


@pytest.mark.parametrize("way", ["saved by napari", "exported", "exported elsewhere first"])
def test_strokes_are_counted_once_in_each_record(
    qtbot, app, viewer, ct_path, tmp_path, monkeypatch, way
):
    monkeypatch.setattr("napari_pancreas_seg._napari.layers.writer.current_viewer", lambda: viewer)
    run = app.runs.start(open_ct(viewer, ct_path), "box")
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    drawn, written, path = {}, [], tmp_path / "m.nii.gz"
    monkeypatch.setattr(app.files, "_strokes", lambda layer: dict(drawn))

    def export(mask: Labels, name: str) -> None:
        app.files.export(mask, tmp_path / name, overwrite=True, then=written.append)
        qtbot.waitUntil(lambda: bool(written), timeout=20_000)
        written.clear()

    export(run.labels, path.name)
    (again,) = viewer.open(path, plugin=PLUGIN)
    for z, total in ((2, 1), (4, 2)):
        again.data_setitem((np.array([z]), np.array([0]), np.array([0])), 1)
        drawn[z] = (1, 0)
        if way == "saved by napari":
            again.save(str(path))
        else:
            if way == "exported elsewhere first":
                export(again, "copy.nii.gz")
            export(again, path.name)
        edits = json.loads((tmp_path / "m.json").read_text())["edits"]
        assert edits["strokes"]["add"] == edits["voxels_added"] == total


def test_a_surface_or_a_table_leaves_the_record_of_the_mask_beside_it(
    qtbot, app, viewer, ct_path, tmp_path
):
    run = app.runs.start(open_ct(viewer, ct_path), "box")
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    written = []

    def export(mask: Labels, suffix: str) -> dict:
        app.files.export(mask, tmp_path / f"m{suffix}", overwrite=True, then=written.append)
        qtbot.waitUntil(lambda: bool(written), timeout=20_000)
        written.clear()
        return json.loads((tmp_path / "m.json").read_text())

    record = export(run.labels, ".nii.gz")
    run.labels.data_setitem((np.array([5]), np.array([1]), np.array([1])), 1)
    assert record["mask_sha256"] and export(run.labels, ".stl") == record
    assert export(run.labels, ".csv") == record
    # As the command line writes the hash.
    there = {**record, "resume": {"mask_sha256": record.pop("mask_sha256")}}
    del there["mask_sha256"]
    (tmp_path / "m.json").write_text(json.dumps(there))
    assert export(run.labels, ".stl") == there
    (again,) = viewer.open(tmp_path / "m.nii.gz", plugin=PLUGIN)
    again.data_setitem((np.array([5]), np.array([0]), np.array([0])), 1)
    assert export(again, ".nii.gz")["edits"]["voxels_added"] == 1


def test_an_opened_mask_is_written_as_that_of_the_chosen_phase(
    qtbot, app, viewer, ct_path, tmp_path, hu
):
    phases = []
    for name in ("arterial", "venous", "late"):
        path = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(hu + len(phases), nib.load(ct_path).affine), path)
        phases.append(open_ct(viewer, path))
    open_mask = add_mask(viewer, phases[1])
    open_mask.save(str(tmp_path / "m.nii.gz"))
    viewer.layers.remove(open_mask)
    (mask,) = viewer.open(tmp_path / "m.nii.gz", plugin=PLUGIN)
    app.session.ct, app.session.mask = phases[1], mask
    app.files.export(mask, tmp_path / "m.csv")
    qtbot.waitUntil((tmp_path / "m.csv").exists, timeout=20_000)
    (row,) = csv.DictReader((tmp_path / "m.csv").read_text(encoding="utf-8").splitlines())
    assert row["case"] == "venous"
    inside = phases[1].data[mask.data > 0].mean()
    assert float(row["mean_hu"]) == pytest.approx(inside, abs=0.01)


def test_a_record_of_another_ct_goes_with_the_mask_that_is_replaced(
    qtbot, app, viewer, ct_path, tmp_path, notifications
):
    ct = open_ct(viewer, ct_path)
    run = app.runs.start(ct, "box")
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    written: list[Path] = []
    app.files.export(run.labels, tmp_path / "m.nii.gz", then=written.append)
    qtbot.waitUntil(lambda: len(written) == 1, timeout=20_000)
    record = json.loads((tmp_path / "m.json").read_text())
    record["source"]["sha256"] = "another CT's"
    (tmp_path / "m.json").write_text(json.dumps(record))
    hand = add_mask(viewer, ct)
    app.files.export(hand, tmp_path / "m.nrrd", then=written.append)
    qtbot.waitUntil(lambda: notifications and "m.json" in notifications[-1].message, timeout=20_000)
    app.files.export(hand, tmp_path / "m.csv", then=written.append)  # a table replaces no mask
    qtbot.waitUntil(lambda: len(written) == 2, timeout=20_000)
    assert (tmp_path / "m.json").exists()
    app.files.export(hand, tmp_path / "m.nii.gz", overwrite=True, then=written.append)
    qtbot.waitUntil(lambda: len(written) == 3, timeout=20_000)
    assert not (tmp_path / "m.json").exists()


def test_a_mask_from_elsewhere_takes_over_no_record(qtbot, app, viewer, ct_path, tmp_path):
    ct = open_ct(viewer, ct_path)
    app.session.ct = ct
    run = app.runs.start(ct, "box")
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    written: list[Path] = []

    def export(mask: Labels, name: str) -> bool:
        app.files.export(mask, tmp_path / name, overwrite=True, then=written.append)
        qtbot.waitUntil(lambda: bool(written), timeout=20_000)
        written.clear()
        return (tmp_path / "m.json").exists()

    assert export(run.labels, "m.nii.gz")
    app.files.export(run.labels, tmp_path / "theirs.nii.gz", then=written.append)
    qtbot.waitUntil(lambda: bool(written), timeout=20_000)
    written.clear()
    (tmp_path / "theirs.json").unlink()
    own, theirs = (
        viewer.open(tmp_path / f"{name}.nii.gz", plugin=PLUGIN)[0] for name in ("m", "theirs")
    )
    for mask in (own, theirs):
        mask.data_setitem((np.array([0]), np.array([0]), np.array([0])), 1)
    assert export(own, "m.nii.gz"), "its own record stays, brought up to date"
    assert export(own, "m.nrrd"), "and is that of other formats"
    assert not export(theirs, "m.nii.gz")


@pytest.mark.parametrize(
    ("part", "shift", "said"),
    [
        (slice(None), 0.0, ""),
        (slice(2, 9), 0.0, "shows a part of 'case 7'"),
        (slice(None), 30.0, "on the grid of no CT that is open"),
    ],
)
def test_a_mask_lies_where_its_file_says(
    viewer, app, ct_path, tmp_path, volume, part, shift, said, notifications
):
    ct = open_ct(viewer, ct_path)
    app.session.ct = ct
    mask = np.zeros(nib.load(ct_path).shape, np.uint8)
    mask[4:8, 10:15, 3:6] = 1
    affine = nib.load(ct_path).affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start or 0, 0, 0]
    affine[:3, 3] += shift * affine[:3, 0] / np.linalg.norm(affine[:3, 0])
    nib.save(nib.Nifti1Image(mask[part], affine), tmp_path / "m.nii.gz")
    with patch("napari_pancreas_seg._napari.layers.reader.current_viewer", lambda: viewer):
        (layer,) = viewer.open(tmp_path / "m.nii.gz", plugin=PLUGIN)
    notes = " ".join(note.message for note in notifications)
    assert said in notes and ("grid" in notes) == bool(said)
    place = np.mean([layer.data_to_world(v) for v in np.argwhere(layer.data)], axis=0)
    expected = np.mean(
        [ct.data_to_world(v) for v in np.argwhere(_in_display_order(volume, mask))], axis=0
    )
    away = np.abs(place - expected)
    assert away.max() == pytest.approx(shift, abs=1e-3)
    assert (layer in app.session.mask_layers(app.session.reference)) == (shift == 0)


def _in_display_order(volume: CTVolume, array: np.ndarray) -> np.ndarray:
    return CTVolume.from_source_array(array.astype(np.int16), volume.source.affine).hu


@pytest.mark.slow
def test_only_what_a_run_has_filled_gets_its_record(qtbot, app, viewer, ct_path, tmp_path):
    ct = open_ct(viewer, ct_path)
    app.session.ct = ct
    run = app.runs.start(ct, "box")
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    hand = add_mask(viewer, ct)
    viewer.layers.selection = {run.labels}
    _duplicate_layer(viewer.layers)
    _duplicate_layer(viewer.layers)  # napari has selected the first one
    copy = viewer.layers.selection.active
    assert copy.name.endswith("copy copy")
    written = []
    for name, layer in (("hand", hand), ("copy", copy)):
        app.files.export(layer, tmp_path / f"{name}.nii.gz", then=written.append)
    qtbot.waitUntil(lambda: len(written) == 2, timeout=20_000)
    assert not (tmp_path / "hand.json").exists()
    assert json.loads((tmp_path / "copy.json").read_text())["model"]["name"] == "box"


def test_a_duplicate_has_the_record_of_the_run_that_it_was_made_after(
    qtbot, app, viewer, ct_path, tmp_path
):
    app.session.ct = ct = open_ct(viewer, ct_path)
    for model in ("graded", "box"):
        run = app.runs.start(ct, model)
        qtbot.waitUntil(lambda run=run: not run.running, timeout=20_000)
        if model == "graded":
            viewer.layers.selection = {run.labels}
            _duplicate_layer(viewer.layers)
            copy = viewer.layers.selection.active
            assert app.rethreshold.ask(run.labels, 0.3, True)
            qtbot.waitUntil(lambda: not app.rethreshold.working, timeout=20_000)
    assert not np.array_equal(run.labels.data, copy.data)
    written = []
    app.files.export(copy, tmp_path / "copy.nii.gz", then=written.append)
    qtbot.waitUntil(lambda: bool(written), timeout=20_000)
    record = json.loads((tmp_path / "copy.json").read_text())
    assert (record["model"]["name"], record["options"]["applied_threshold"]) == ("graded", 0.5)
    assert not any(record["edits"].values())


def test_the_same_mask_in_other_formats_shares_its_record(
    qtbot, app, viewer, ct_path, tmp_path, notifications
):
    ct = open_ct(viewer, ct_path)
    run = app.runs.start(ct, "box")
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    written = []
    for number, name in enumerate(("m.nii.gz", "m.nrrd"), 1):
        app.files.export(run.labels, tmp_path / name, then=written.append)
        qtbot.waitUntil(lambda number=number: len(written) == number, timeout=20_000)
    assert not [note for note in notifications if note.severity.value == "error"]
    record = json.loads((tmp_path / "m.json").read_text())
    record["source"]["sha256"] = "another CT's"
    (tmp_path / "m.json").write_text(json.dumps(record))
    app.files.export(run.labels, tmp_path / "m.mha", then=written.append)
    qtbot.waitUntil(lambda: notifications and "m.json" in notifications[-1].message, timeout=20_000)
    assert not (tmp_path / "m.mha").exists()


def test_a_mask_over_another_has_a_colour_of_its_own(qtbot, app, viewer, ct_path, tmp_path):
    mask = add_mask(viewer, open_ct(viewer, ct_path))
    app.files.export(mask, tmp_path / "other.nii.gz", then=app.files.open)
    qtbot.waitUntil(lambda: len(viewer.layers) == 3, timeout=20_000)
    other = viewer.layers[-1]
    assert np.array_equal(other.data, mask.data)
    assert not np.array_equal(other.colormap.map(1), mask.colormap.map(1))


def test_export_overwrites_only_when_told(qtbot, app, viewer, ct_path, tmp_path, notifications):
    mask = add_mask(viewer, open_ct(viewer, ct_path))
    target = tmp_path / "m.nii.gz"
    target.write_bytes(b"precious")
    ended = []
    app.files.export(mask, target, then=ended.append, failed=lambda: ended.append("failed"))
    qtbot.waitUntil(lambda: bool(ended), timeout=20_000)
    assert ended == ["failed"]
    assert target.read_bytes() == b"precious"
    assert [record.severity.value for record in notifications] == ["error"]
    assert notifications[0].message.endswith("was left as it is; choose another name.")
    app.files.export(mask, target, overwrite=True, then=ended.append)
    qtbot.waitUntil(lambda: len(ended) == 2, timeout=20_000)
    assert nib.load(target).get_fdata().sum() == 5


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, "choose another"),
        ({"option": " or allow it (--overwrite)."}, "choose another."),
        ({"option": " (--mint-uids).", "in_window": " (the box)."}, "choose another (the box)."),
    ],
)
def test_a_window_names_no_option_of_the_command_line(qapp, notifications, options, shown):
    error = PancreasSegError("choose another", **options)
    report(error)
    assert [one.message for one in notifications] == [shown]
    assert str(error) == "choose another" + options.get("option", "")
    assert pickle.loads(pickle.dumps(error)).in_window == shown  # as of a cluster


def test_saving_a_second_file_beside_the_mask_replaces_nothing(viewer, ct_path, tmp_path, manifest):
    viewer.open(ct_path, plugin=PLUGIN)
    ct = viewer.layers[0]
    viewer.add_labels(np.zeros(ct.data.shape, np.uint8), scale=ct.scale, name="mask")
    other = tmp_path / "out_case_7.nii.gz"
    other.write_bytes(b"somebody's")
    with pytest.raises(PancreasSegError, match=r"out_case_7\.nii\.gz.*exists already"):
        viewer.layers.save(str(tmp_path / "out.nii.gz"), plugin=PLUGIN)
    assert other.read_bytes() == b"somebody's" and not (tmp_path / "out.nii.gz").exists()
    other.unlink()
    (tmp_path / "out.nii.gz").write_bytes(b"replaced: napari has asked")
    assert len(viewer.layers.save(str(tmp_path / "out.nii.gz"), plugin=PLUGIN)) == 2
    assert nib.load(tmp_path / "out.nii.gz").shape == nib.load(ct_path).shape


def test_what_does_not_look_like_a_ct_is_opened_if_the_person_says_so(
    app, viewer, tmp_path, qtbot, monkeypatch
):
    """The counterpart in the window of the command line's ``--force``."""
    picture = np.random.default_rng(0).integers(0, 256, (40, 32, 10)).astype(np.int16)
    path = tmp_path / "odd.nii.gz"
    nib.save(nib.Nifti1Image(picture, np.eye(4)), path)
    window = QWidget()
    qtbot.addWidget(window)
    monkeypatch.setattr("napari_pancreas_seg._napari.compat.qt_window", lambda viewer: window)
    app.files.open(path)
    qtbot.waitUntil(lambda: app.files.question is not None)
    assert len(viewer.layers) == 0
    box = app.files.question
    assert "odd.nii.gz" in box.text()
    next(b for b in box.buttons() if b.text() == "Open all the same").click()
    qtbot.waitUntil(lambda: len(viewer.layers) == 1)
    layer = viewer.layers[0]
    # A run takes the values as they are, too.
    volume = volume_of(layer.data, reference_of(layer))
    assert volume.hu.min() == picture.min()
    assert "as asked" in volume.notes[0]


def test_a_ct_is_opened_without_a_question(app, viewer, ct_path, qtbot):
    app.files.open(ct_path)
    qtbot.waitUntil(lambda: len(viewer.layers) == 1)
    assert app.files.question is None


@pytest.mark.parametrize("mask_first", [False, True])
def test_a_mask_of_a_part_is_put_on_the_ct_that_is_dropped_with_it(
    qtbot, app, viewer, ct_path, tmp_path, mask_first
):
    image, part = nib.load(ct_path), np.zeros((20, 16, 5), np.uint8)
    part[5:9, 5:9, 1:3] = 1
    affine = image.affine.copy()
    affine[:3, 3] = (image.affine @ [5, 5, 2, 1])[:3]
    nib.save(nib.Nifti1Image(part, affine), tmp_path / "part_mask.nii.gz")
    paths = [ct_path, tmp_path / "part_mask.nii.gz"]
    for path in paths[::-1] if mask_first else paths:
        app.files.open(path)
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=20_000)
    ct, mask = viewer.layers
    assert isinstance(mask, Labels) and mask.data.shape == ct.data.shape
    assert mask.data.sum() == part.sum()


@pytest.mark.parametrize("named", [False, True])
def test_labels_that_nothing_names_are_told(ct_path, tmp_path, named):
    labels = np.zeros(nib.load(ct_path).shape, np.uint8)
    labels[:3], labels[5] = 7, 2
    nib.save(nib.Nifti1Image(labels, nib.load(ct_path).affine), tmp_path / "m.nii")
    if named:
        record = {"program": {"name": PLUGIN}, "labels": {"a": {"value": 2}, "b": {"value": 7}}}
        (tmp_path / "m.json").write_text(json.dumps(record))
    notes = " ".join(read_layer(tmp_path / "m.nii")[1])
    assert ("several labels (2, 7), and nothing says which are the pancreas" in notes) != named


@pytest.mark.parametrize("way", ["export", "napari's own"])
def test_what_is_drawn_on_the_chosen_ct_goes_onto_its_grid(
    qtbot, app, viewer, ct_path, tmp_path, way
):
    ours = open_ct(viewer, ct_path)
    theirs = viewer.add_image(ours.data.copy(), scale=(5, 2, 2), units=["mm"] * 3, name="theirs")
    for chosen in (theirs, ours):
        app.session.ct = chosen
        drawn = viewer.add_labels(np.zeros(ours.data.shape, np.uint8), scale=chosen.scale)
        app.session.mask = drawn
        target = tmp_path / f"{chosen.name}_mask.nii.gz"
        if way == "export":
            app.files.export(drawn, target)
        else:
            with patch("napari_pancreas_seg._napari.layers.writer.current_viewer", lambda: viewer):
                drawn.save(str(target), plugin=PLUGIN)
        qtbot.waitUntil(target.exists, timeout=20_000)
        written = nib.load(target)
        assert np.allclose(sorted(written.header.get_zooms()), sorted(chosen.scale), atol=1e-3)


def test_the_chosen_one_of_two_cts_of_a_shape_gets_what_is_drawn(
    qtbot, app, viewer, ct_path, tmp_path, volume
):
    open_ct(viewer, ct_path)
    chosen = open_ct(viewer, ct_path)
    app.session.ct = chosen
    app.session.mask = drawn = viewer.add_labels(np.zeros(chosen.data.shape, np.uint8))
    app.files.export(drawn, tmp_path / "m.nii.gz")
    qtbot.waitUntil((tmp_path / "m.nii.gz").exists, timeout=20_000)
    assert chosen_target(app.session).reference is reference_of(chosen)
    app.session.mask = None
    viewer.layers.selection.active = drawn
    assert chosen_target(app.session).reference is reference_of(chosen)
