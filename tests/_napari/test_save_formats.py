"""napari's own way to save, into every format that is declared."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from unittest.mock import patch

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import trimesh
from napari.layers import Labels, Layer
from npe2 import PluginManifest

import napari_pancreas_seg
from napari_pancreas_seg import io
from napari_pancreas_seg._napari.layers.bridge import labels_layer_data, map_layer_data
from napari_pancreas_seg._napari.layers.placement import placement_of
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import ScalarMap

PLUGIN = "napari-pancreas-seg"
pytestmark = pytest.mark.usefixtures("manifest")


@pytest.fixture
def opened(viewer, ct_path):
    """A CT, its mask and a map over it."""
    (ct,) = viewer.open(ct_path, plugin=PLUGIN)
    data = np.zeros(ct.data.shape, np.uint8)
    data[2:5, 5:9, 9:14] = 1
    placement = placement_of(ct)
    mask = Layer.create(*labels_layer_data(data, placement, "mask"))
    grid = placement.reference.grid
    values = np.random.default_rng(0).random(grid.shape).astype(np.float16)
    gate = Layer.create(
        *map_layer_data(ScalarMap(values, grid), placement, "gate", colormap="inferno")
    )
    viewer.add_layer(mask)
    viewer.add_layer(gate)
    with patch("napari_pancreas_seg._napari.layers.writer.current_viewer", lambda: viewer):
        yield viewer


def test_what_can_be_written_is_declared():
    manifest = PluginManifest.from_file(Path(napari_pancreas_seg.__file__).parent / "napari.yaml")
    (writer,) = manifest.contributions.writers
    assert set(writer.filename_extensions) == set(io.MASK_SUFFIXES)
    (patterns,) = (reader.filename_patterns for reader in manifest.contributions.readers)
    assert {f"*{suffix}" for suffix in io.VOLUME_SUFFIXES} <= set(patterns)


@pytest.mark.parametrize("suffix", io.VOLUME_SUFFIXES)
def test_all_together(opened, suffix, tmp_path, volume):
    opened.layers.select_all()
    written = opened.layers.save(str(tmp_path / f"m{suffix}"))
    names = {Path(path).name for path in written}
    assert names == {f"m{suffix}", f"m_case_7{suffix}", f"m_gate{suffix}"}
    image = sitk.ReadImage(str(tmp_path / f"m{suffix}"))
    stored = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    np.testing.assert_array_equal(stored, volume.to_source_order(opened.layers["mask"].data))
    assert io.sniff(tmp_path / f"m_gate{suffix}").kind == "map"
    np.testing.assert_array_equal(io.load_ct(tmp_path / f"m_case_7{suffix}").hu, volume.hu)
    layers = opened.open(written, plugin=PLUGIN)
    assert [type(layer).__name__ for layer in layers].count("Labels") == 1


@pytest.mark.parametrize("suffix", [".stl", ".ply", ".obj", ".csv"])
def test_what_only_a_mask_can_be(opened, suffix, tmp_path, volume):
    opened.layers.select_all()
    written = opened.layers.save(str(tmp_path / f"m{suffix}"))
    names = {Path(path).name for path in written}
    assert names == {f"m{suffix}", "m_case_7.nii.gz", "m_gate.nii.gz"}
    voxels = int(opened.layers["mask"].data.sum())
    if suffix == ".csv":
        (row,) = csv.DictReader((tmp_path / "m.csv").read_text().splitlines())
        assert float(row["volume_ml"]) == pytest.approx(
            voxels * volume.grid.voxel_volume_mm3 / 1000, rel=1e-3
        )
    else:
        assert trimesh.load_mesh(tmp_path / f"m{suffix}").is_watertight


@pytest.mark.slow
def test_the_save_dialog_writes_the_record_of_a_run(qtbot, app, viewer, ct_path, tmp_path):
    (ct,) = viewer.open(ct_path, plugin=PLUGIN)
    run = app.runs.start(ct, "box")
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    run.labels.data_setitem((np.array([0]), np.array([0]), np.array([0])), 1)
    hand = Labels(run.labels.data.copy(), name="by hand")
    viewer.add_layer(hand)
    with patch("napari_pancreas_seg._napari.layers.writer.current_viewer", lambda: viewer):
        for name in ("m.nii.gz", "m.nii.gz", "m.mha", "m.stl"):
            run.labels.save(str(tmp_path / name))
            record = json.loads((tmp_path / "m.json").read_text())
            assert record["model"]["name"] == "box"
            assert record["edits"] == {"voxels_added": 1, "voxels_removed": 0, "slices": 1}
            assert record["measurements"]["mean_hu"] is not None
        hand.save(str(tmp_path / "hand.nii.gz"))
        assert not (tmp_path / "hand.json").exists()
        (tmp_path / "other.json").write_text('{"my": "notes"}')
        with pytest.raises(PancreasSegError, match="another name"):
            run.labels.save(str(tmp_path / "other.nii.gz"))
        assert not (tmp_path / "other.nii.gz").exists()
        assert json.loads((tmp_path / "other.json").read_text()) == {"my": "notes"}


def test_an_export_replaces_no_file_that_is_not_its_record(
    qtbot, app, viewer, ct_path, tmp_path, notifications
):
    (ct,) = viewer.open(ct_path, plugin=PLUGIN)
    run = app.runs.start(ct, "box")
    qtbot.waitUntil(lambda: not run.running, timeout=20_000)
    target, record, ended = tmp_path / "m.nii.gz", tmp_path / "m.json", []
    target.write_bytes(b"a mask")
    record.write_text('{"Manual": true}')

    def export():
        app.files.export(
            run.labels,
            target,
            overwrite=True,
            then=ended.append,
            failed=lambda: ended.append(None),
        )

    export()
    qtbot.waitUntil(lambda: ended == [None], timeout=20_000)
    assert "another name or folder" in notifications[-1].message
    assert (target.read_bytes(), record.read_text()) == (b"a mask", '{"Manual": true}')
    record.unlink()
    for _ in range(2):  # its own record is replaced with it
        export()
    qtbot.waitUntil(lambda: ended == [None, target, target], timeout=20_000)
    assert json.loads(record.read_text())["model"]["name"] == "box"


def test_a_mask_of_a_metaimage_goes_back_onto_it(viewer, tmp_path, volume):
    path = io.save_ct(volume, tmp_path / "ct.mha")
    (ct,) = viewer.open(path, plugin=PLUGIN)
    assert ct.name == "ct"
    mask = Layer.create(
        *labels_layer_data((volume.hu > 0).astype(np.uint8), placement_of(ct), "mask")
    )
    viewer.add_layer(mask)
    mask.translate = (5, 6, 7)
    mask.save(str(tmp_path / "m.nii.gz"))
    written = nib.load(tmp_path / "m.nii.gz")
    np.testing.assert_allclose(written.affine, volume.source.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(written.dataobj), volume.to_source_order(mask.data))
