"""The commands convert and check, and segment into every format."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import trimesh
from dicom_series import write_series

from napari_pancreas_seg import io
from napari_pancreas_seg.cli import main
from napari_pancreas_seg.cohort import run as cohort
from napari_pancreas_seg.cohort.inspection import inspect
from napari_pancreas_seg.inference import segment as segmentation
from napari_pancreas_seg.inference.result import Options, Progress, ScalarMap, Segmentation
from napari_pancreas_seg.volume import CTVolume

CARD = {"name": "fake", "version": "1", "weights_sha256": "0" * 64}


def body(shape: tuple[int, int, int] = (60, 50, 12)) -> np.ndarray:
    """Air, fat, soft tissue and noise."""
    i, j = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[:2]), indexing="ij")
    distance = np.hypot(i, j)[..., None]
    hu = np.where(distance < 0.7, 90.0, np.where(distance < 0.8, -100.0, -1000.0))
    hu = hu + np.random.default_rng(0).normal(0, 10, shape)
    hu[0, 0, 0] = 1500
    return hu.round().astype(np.int16)


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    hu = body()
    hu[20:30, 20:30, 4:8] = 170
    path = tmp_path / "in" / "a.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(hu, np.diag([-7.0, -7, 5, 1])), path)
    return path


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    def iter_segment(
        volume: CTVolume, model: Any, options: Options
    ) -> Generator[Progress, None, Segmentation]:
        yield Progress("segmenting", 1, 6)
        mask = (volume.hu > 140).astype(np.uint8) * (volume.hu < 1000)
        values = ScalarMap(mask.astype(np.float16), volume.grid)
        return Segmentation(mask, values, (values,), volume.grid, 0.5, CARD, {}, options)

    monkeypatch.setattr(cohort, "load_card", lambda model: CARD)
    monkeypatch.setattr(segmentation, "LoadedModel", lambda *what: None)
    monkeypatch.setattr(segmentation, "iter_segment", iter_segment)


ALL = [suffix for suffix in io.MASK_SUFFIXES if suffix != ".dcm"]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ALL)
def test_segment_into_every_format(suffix: str, ct: Path, tmp_path: Path, network: None) -> None:
    target = tmp_path / "out" / f"m{suffix}"
    arguments = ["segment", str(ct), "-o", str(target), "--probability"]
    assert main(arguments) == 0
    assert main(arguments) == 1
    assert main([*arguments, "--overwrite"]) == 0
    record = json.loads((tmp_path / "out" / "m.json").read_text())
    voxels = record["measurements"]["voxels"]
    assert record["edits"] == {"voxels_added": 0, "voxels_removed": 0, "slices": 0}
    assert voxels > 300
    if suffix in io.VOLUME_SUFFIXES:
        assert sitk.GetArrayFromImage(sitk.ReadImage(str(target))).sum() == voxels
        assert (tmp_path / "out" / f"m_probability{suffix}").exists()
    else:
        assert (tmp_path / "out" / "m_probability.nii.gz").exists()
    if suffix in (".stl", ".ply", ".obj"):
        assert trimesh.load_mesh(target).volume == pytest.approx(voxels * 245, rel=0.03)
    if suffix == ".csv":
        (row,) = csv.DictReader(target.read_text().splitlines())
        assert float(row["volume_ml"]) == pytest.approx(voxels * 0.245, rel=1e-3)
        assert float(row["mean_hu"]) > 140


def test_dicom_needs_a_dicom_series(
    ct: Path, tmp_path: Path, network: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", str(ct), "-o", str(tmp_path / "m.dcm")]) == 1
    assert "DICOM" in capsys.readouterr().err
    assert not (tmp_path / "m.dcm").exists()


@pytest.mark.slow
def test_the_format_of_a_folder(
    ct: Path, tmp_path: Path, network: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["segment", str(ct.parent), "-o", str(out), "--format"]
    assert main([*arguments, "nrrd"]) == 0
    names = {"a_mask.nrrd", "a_mask.json", "cohort.csv", "index.html", "pictures"}
    assert {item.name for item in out.iterdir()} == names
    assert main([*arguments, "tif"]) == 2
    assert main([*arguments, "nhdr"]) == 2
    assert main(["segment", str(ct), "-o", str(tmp_path / "m.nhdr")]) == 1
    assert "must end in .nii.gz, .nii, .nrrd, .mha, .dcm, .stl" in capsys.readouterr().err
    assert main(["segment", str(ct), "-o", str(tmp_path / "m.mha"), "--format", "nrrd"]) == 1
    assert "leave --format out" in capsys.readouterr().err


def test_a_report_without_a_segmentation_is_refused_before_any_work(
    ct: Path, tmp_path: Path, network: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", str(ct.parent), "-o", str(tmp_path / "out"), "--sr"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "in a folder: --format dcm" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", io.VOLUME_SUFFIXES)
def test_convert_a_ct_there_and_back(suffix: str, ct: Path, tmp_path: Path) -> None:
    there, back = tmp_path / f"b{suffix}", tmp_path / "c.nii.gz"
    assert main(["convert", str(ct), str(there)]) == 0
    assert main(["convert", str(there), str(back)]) == 0
    before, after = nib.load(ct), nib.load(back)
    np.testing.assert_array_equal(np.asarray(after.dataobj), np.asarray(before.dataobj))
    np.testing.assert_allclose(after.affine, before.affine)


@pytest.mark.slow
def test_convert_a_mask_and_a_map(
    ct: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = io.load_ct(ct)
    mask = ((volume.hu > 140) & (volume.hu < 1000)).astype(np.uint8)
    mask_path = io.save_mask(mask, volume, tmp_path / "m.nii.gz")
    map_path = io.save_map(ScalarMap(mask * 0.5, volume.grid), volume, tmp_path / "p.nii.gz")
    for source, target in ((mask_path, "m.mha"), (map_path, "p.nrrd"), (mask_path, "m.stl")):
        assert main(["convert", str(source), str(tmp_path / target)]) == 0
    np.testing.assert_array_equal(io.load_mask(tmp_path / "m.mha")[0], mask)
    np.testing.assert_array_equal(io.sniff(tmp_path / "p.nrrd").volume.values, mask * 0.5)
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" ->")[0] for line in said] == [
        *("m.nii.gz: mask", "p.nii.gz: map", "m.nii.gz: mask")
    ]
    for extra, known in (([], False), (["--ct", str(ct)], True)):
        target = tmp_path / f"{known}.csv"
        assert main(["convert", str(mask_path), str(target), *extra]) == 0
        (row,) = csv.DictReader(target.read_text().splitlines())
        assert bool(row["mean_hu"]) == known


def test_one_label_of_several_is_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[1:3, 2:4, 2:4], labels[4] = 7, 1
    organs, table = tmp_path / "organs.nii", tmp_path / "organs.csv"
    nib.save(nib.Nifti1Image(labels, np.eye(4)), organs)
    assert main(["convert", str(organs), str(table)]) == 1
    assert "several labels (1, 7); say with --label" in capsys.readouterr().err
    assert main(["convert", str(organs), str(table), "--label", "7"]) == 0
    (row,) = csv.DictReader(table.read_text().splitlines())
    assert float(row["volume_ml"]) == 0.008
    assert main(["convert", str(organs), str(tmp_path / "one.nrrd"), "--label", "7"]) == 0
    assert io.load_mask(tmp_path / "one.nrrd")[0].sum() == 8
    surface = str(tmp_path / "organs.stl")
    assert main(["convert", str(organs), surface]) == 1
    assert "several labels (1, 7); say with --label" in capsys.readouterr().err
    assert main(["convert", str(organs), surface, "--label", "7"]) == 0
    both = [str(tmp_path / "both.nrrd"), "--label", "7", "--label", "1"]
    assert main(["convert", str(organs), *both]) == 0
    assert io.load_mask(tmp_path / "both.nrrd")[0].sum() == 8 + 7 * 8
    assert main(["convert", str(organs), str(tmp_path / "all.nrrd")]) == 0
    assert set(np.unique(io.load_mask(tmp_path / "all.nrrd")[0])) == {0, 1, 7}


@pytest.mark.slow
def test_convert_says_what_was_unusual_of_a_mask_beside_its_ct(
    ct: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = io.load_ct(ct)
    mask = nib.load(io.save_mask(volume.hu > 1000, volume, tmp_path / "m.nii.gz"))
    mask.set_qform(np.eye(4), 1)
    nib.save(mask, tmp_path / "odd.nii.gz")
    assert (
        main(["convert", str(tmp_path / "odd.nii.gz"), str(tmp_path / "m.csv"), "--ct", str(ct)])
        == 0
    )
    assert "sform and qform place this CT" in capsys.readouterr().err


def test_convert_takes_values_as_they_are_if_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hu = np.random.default_rng(0).integers(300, 900, (20, 20, 5)).astype(np.int16)
    nib.save(nib.Nifti1Image(hu, np.eye(4)), tmp_path / "odd.nii")
    nib.save(nib.Nifti1Image((hu > 600).astype(np.uint8), np.eye(4)), tmp_path / "m.nii")
    for line in (["odd.nii", "odd.nrrd"], ["m.nii", "m.csv", "--ct", str(tmp_path / "odd.nii")]):
        run = ["convert", *(str(tmp_path / name) for name in line[:2]), *line[2:]]
        assert main(run) == 1
        assert "not Hounsfield units" in capsys.readouterr().err
        assert main([*run, "--force"]) == 0
        assert "as asked" in capsys.readouterr().err
    assert io.load_ct(tmp_path / "odd.nrrd", force=True).hu.max() == hu.max()


@pytest.mark.slow
def test_convert_refuses(ct: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.nii.gz"
    nib.save(nib.Nifti1Image(np.eye(3, dtype=np.uint8)[None], np.eye(4)), other)
    (tmp_path / "there.nrrd").write_bytes(b"old")
    for arguments, reason in [
        ((ct, tmp_path / "there.nrrd"), "exists already"),
        ((ct, ct, "--overwrite"), "never overwritten"),
        ((ct, tmp_path / "b.stl"), "its name must end in"),
        ((ct, tmp_path / "b.tif"), "its name must end in"),
        ((ct, tmp_path / "b.nhdr"), "its name must end in .nii.gz, .nii, .nrrd or .mha."),
        ((ct, tmp_path / "b.nii", "--ct", ct), "is not a mask"),
        ((ct, tmp_path / "b.nii", "--label", 1), "is not a mask and has no labels"),
        ((other, tmp_path / "b.nii", "--ct", ct), "does not lie on the grid"),
        ((tmp_path / "none.nii", tmp_path / "b.nii"), "does not exist"),
    ]:
        assert main(["convert", *map(str, arguments)]) == 1, arguments
        said = capsys.readouterr().err
        assert reason in said
        assert len(said.splitlines()) == 1
    assert (tmp_path / "there.nrrd").read_bytes() == b"old"
    assert main(["convert", str(ct), str(tmp_path / "there.nrrd"), "--overwrite"]) == 0


def test_check_in_words(ct: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume = io.load_ct(ct)
    mask = io.save_mask(volume.hu > 1000, volume, tmp_path / "m.mha")
    assert main(["check", str(ct), str(mask)]) == 0
    said = capsys.readouterr().out
    assert "a.nii.gz: CT, NIfTI" in said
    assert "60 × 50 × 12 voxels (int16)" in said
    assert "7 × 7 × 5 mm" in said
    assert "LPS (axes run to the left, back, head)" in said
    assert "42 × 35 × 6 cm" in said
    assert "m.mha: mask, MetaImage" in said
    assert "label 1" in said
    (tmp_path / "bad.nii").write_bytes(b"nonsense")
    assert main(["check", str(ct), str(tmp_path / "bad.nii")]) == 1
    assert "unusable" in capsys.readouterr().out


def test_check_names_the_folder_it_is_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert inspect(".")["file"] == tmp_path.name
    for number in (3, 4):  # two CTs, so that the folder is refused
        write_series(tmp_path, series_number=number, names=lambda k, n=number: f"{n}-{k}.dcm")
    assert inspect(".")["problem"].startswith(f"'{tmp_path.name}' holds 2 CT volumes")


def test_check_as_json(ct: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--json", str(ct), "nowhere.nii"]) == 1
    good, bad = json.loads(capsys.readouterr().out)
    assert good["usable"]
    assert good["shape"] == [60, 50, 12]
    assert good["values"]["maximum"] == 1500
    assert not bad["usable"]
    assert "does not exist" in bad["problem"]


def test_a_file_that_fails_stops_no_other(
    ct: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: Path, **what: Any) -> Any:
        if path.name == "b.nii.gz":
            raise ZeroDivisionError("of nothing")
        return inspect(path, **what)

    monkeypatch.setattr("napari_pancreas_seg.cohort.inspection.inspect", fail)
    assert main(["check", "--json", "b.nii.gz", str(ct)]) == 1
    bad, good = json.loads(capsys.readouterr().out)
    assert "ZeroDivisionError" in bad["problem"] and good["usable"]


def saved(folder: Path, hu: np.ndarray, affine: np.ndarray, **codes: int) -> dict[str, Any]:
    image = nib.Nifti1Image(hu, affine)
    for name, code in codes.items():
        moved = affine.copy()
        moved[0, 3] += 40
        getattr(image, f"set_{name}")(moved, code)
    nib.save(image, folder / "ct.nii.gz")
    return inspect(folder / "ct.nii.gz")


@pytest.mark.slow
def test_what_is_suspicious(tmp_path: Path) -> None:
    plain = np.diag([-7.0, -7, 6, 1])
    tilted = plain.copy()
    tilted[1, 2] = 1.5
    hu = body()
    flipped = hu.copy()
    flipped[20, 20, 6] = -16000
    assert saved(tmp_path, body((120, 100, 15)), np.diag([-3.4, -3.4, 5, 1]))["suspicious"] == []
    for found, word in [
        (saved(tmp_path, hu, tilted), "right angles"),
        (saved(tmp_path, hu, np.diag([-7.0, -7, 9, 1])), "9 mm apart"),
        (saved(tmp_path, hu[:, :, :4], plain), "only 4 slices"),
        (saved(tmp_path, hu[:, :, 5:6], plain), "is only 1 slice."),
        (saved(tmp_path, flipped, plain), "-16000 HU are impossible"),
        (saved(tmp_path, hu.clip(-300, 2000), plain), "clipped below -300"),
        (saved(tmp_path, hu.clip(-2000, 95), plain), "clipped above 95"),
        (saved(tmp_path, hu + np.float32(0.3), plain), "not whole numbers"),
        (saved(tmp_path, hu, plain, qform=1), "40 mm apart"),
        (saved(tmp_path, hu, np.diag([-700.0, -700, 600, 1])), "unit of length"),
    ]:
        assert found["usable"], found
        assert any(word in sentence for sentence in found["suspicious"]), (word, found)
    found = saved(tmp_path, np.zeros((9, 9, 9), np.float32) + np.arange(9), plain)
    assert found["kind"] == "mask"
    found = saved(tmp_path, (hu * 0.0001).astype(np.float32), plain)
    assert not found["usable"]
    assert "normalised" in found["problem"]
    assert found["spacing_mm"] == [7, 7, 6]


@pytest.mark.slow
def test_a_chest_is_recognised(shared: Path) -> None:
    found = inspect(shared / "ct" / "negatives" / "chest_1.nii.gz")
    assert any("chest" in sentence for sentence in found["suspicious"])
    found = inspect(shared / "ct" / "example" / "ct.nii.gz")
    (note,) = found["suspicious"]  # it was taken without contrast agent
    assert "darker than in portal-venous CT" in note


def test_a_name_cannot_steer_the_terminal(tmp_path, capsys) -> None:
    path = tmp_path / "a\x1b[31m\nb.nii.gz"
    path.write_bytes(b"nothing")
    assert main(["check", str(path)]) == 1
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and "a\\x1b[31m" in said.out


@pytest.mark.skipif(sys.platform != "linux", reason="names are not any bytes there")
def test_a_name_is_shown_as_tables_have_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / os.fsdecode(b"M\xfcller.nii")).write_bytes(b"nothing")
    assert main(["check", str(tmp_path / os.fsdecode(b"M\xfcller.nii"))]) == 1
    assert capsys.readouterr().out.startswith("M\\xfcller.nii: not readable")


@pytest.mark.slow
def test_a_person_may_say_that_values_are_hounsfield_units(network, tmp_path: Path, capsys) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (60, 50, 12)).astype(np.int16)
    path, mask = tmp_path / "odd.nii.gz", tmp_path / "out.nii.gz"
    nib.save(nib.Nifti1Image(picture, np.eye(4)), path)
    assert main(["check", str(path)]) == 1
    assert main(["segment", str(path), "-o", str(mask)]) == 1
    assert "odd.nii.gz" in capsys.readouterr().err
    assert not mask.exists()
    assert main(["check", str(path), "--force"]) == 0
    assert main(["segment", str(path), "-o", str(mask), "--force"]) == 0
    assert "as asked" in "".join(capsys.readouterr())
    assert mask.exists()
