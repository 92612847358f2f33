"""DICOM in napari: which paths the reader takes, and one layer for a series."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from dicom_series import write_series
from napari.components import ViewerModel
from napari.layers import Layer
from npe2 import PluginManager, PluginManifest
from pydicom import dcmread

from napari_pancreas_seg._napari.layers import reader
from napari_pancreas_seg._napari.layers.files import write_mask
from napari_pancreas_seg._napari.layers.placement import placements, reference_of
from napari_pancreas_seg._napari.layers.reader import get_reader, one_of_each_folder, read_layer
from napari_pancreas_seg.io import report_path


def test_the_reader_takes_folders_files_and_zips_of_dicom_only(tmp_path: Path) -> None:
    series = write_series(tmp_path / "ct")
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "ct")
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.tif").write_bytes(b"II*\0")
    empty = shutil.make_archive(str(tmp_path / "empty"), "zip", other)
    for path in (tmp_path / "ct", series.files[0], Path(packed)):
        assert get_reader(str(path)) is not None
    for path in (other, other / "a.tif", Path(empty), tmp_path / "nothing"):
        assert get_reader(str(path)) is None


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("IM000012", True),
        ("CT.1.3.12.2.1107.16573", True),
        ("slice.dcm", True),
        ("slice.IMA", True),
        ("ct.zip", True),
        ("picture.tif", False),
        ("stack001.tif", False),
        ("table.csv", False),
    ],
)
def test_the_manifest_offers_the_reader_for_names_of_dicom(name: str, offered: bool) -> None:
    manager = PluginManager()
    manager.register(PluginManifest.from_distribution("napari-pancreas-seg"))
    assert bool(list(manager.iter_compatible_readers(f"/data/{name}"))) == offered


def test_a_series_becomes_one_layer_however_many_files_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = write_series(tmp_path / "ct")
    assert one_of_each_folder([*series.files, tmp_path / "x.nii"]) == [
        series.files[0],
        tmp_path / "x.nii",
    ]
    viewer = ViewerModel()
    said: list[str] = []
    monkeypatch.setattr(reader, "current_viewer", lambda: viewer)
    monkeypatch.setattr(reader, "show_info", said.append)
    for path in series.files[:3]:  # as napari does with what is dropped on it
        read = get_reader(str(path))
        assert read is not None
        for data in read(str(path)):
            if len(data) > 1:
                viewer.add_layer(Layer.create(*data))
    assert len(viewer.layers) == 1
    assert len(said) == 2 and all("open already" in text for text in said)
    reference = reference_of(viewer.layers[0])
    assert reference is not None
    np.testing.assert_allclose(reference.source.affine, series.affine, atol=1e-6)


def test_a_tilted_stack_is_shown_slice_by_slice(tmp_path: Path) -> None:
    affine = np.array([[-1, 0, 0, 0], [0, -0.94, 0, 0], [0, -0.342, 2, 0], [0, 0, 0, 1.0]])
    series = write_series(tmp_path, affine=affine)
    (data, options, kind), notes = read_layer(tmp_path)
    assert kind == "image" and data.shape == series.hu.shape[::-1]
    assert len(options["scale"]) == 3
    assert "leans by" in notes[0]


def test_a_report_beside_a_mask_that_is_replaced_is_renewed(tmp_path: Path) -> None:
    ct = Layer.create(*read_layer(write_series(tmp_path / "ct").folder)[0])
    reference = reference_of(ct)
    assert reference is not None
    mask, path = np.zeros(ct.data.shape, np.uint8), tmp_path / "seg.dcm"
    mask[1:3, 5:9, 5:9] = 1
    write_mask(mask, reference, path, ct=ct.data)
    report = report_path(path)
    assert not report.exists()  # none was asked for
    write_mask(mask, reference, path, ct=ct.data, report=True, overwrite=True)
    mask[3] = mask[2]
    write_mask(mask, reference, path, ct=ct.data, overwrite=True)
    study = dcmread(report).CurrentRequestedProcedureEvidenceSequence[0]
    named = [
        instance.ReferencedSOPInstanceUID
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    ]
    assert dcmread(path).SOPInstanceUID in named


def test_a_mask_of_another_study_is_told_though_its_grid_is_the_same(tmp_path: Path) -> None:
    one, other = (
        Layer.create(*read_layer(write_series(tmp_path / name).folder)[0]) for name in "ab"
    )
    reference = reference_of(one)
    assert reference is not None
    path = write_mask(np.ones(one.data.shape, np.uint8), reference, tmp_path / "seg.dcm")
    for ct, told in ((one, False), (other, True)):
        _, notes = read_layer(path, placements([ct]))
        assert [("another study" in note) for note in notes] == [True] * told
