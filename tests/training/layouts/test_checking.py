"""What `dataset check` finds: every fault planted is named, a sound case is left in peace."""

from __future__ import annotations

import csv
import gc
import json
import os
import sys
import weakref
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from napari_pancreas_seg.cli import main
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io import save_mask
from napari_pancreas_seg.training.data.layouts.checking import check_case, check_dataset
from napari_pancreas_seg.training.data.layouts.opening import open_dataset
from napari_pancreas_seg.training.data.layouts.plausibility import suspicious_findings
from napari_pancreas_seg.volume import CTVolume, Grid

ONE = {"pancreas": 1}


@pytest.fixture
def pairs(writers, phantoms, tmp_path):
    writers["pairs"][1](tmp_path / "data", phantoms)
    return tmp_path / "data"


@pytest.mark.slow
def test_a_sound_case_is_left_in_peace(phantoms):
    for item in phantoms:
        assert suspicious_findings(item.volume, item.mask, ONE) == []


@pytest.mark.slow
def test_real_masks_are_left_in_peace(shared):
    for case in open_dataset(shared / "ct" / "stacks").cases:
        said = suspicious_findings(*case.load(), ONE)
        # The stacks begin and end with the gland.
        assert said == ["The gland reaches the end of the scan: a part of it may be missing."]


def _flipped(item, axes, of_ct=False):
    volume = replace(item.volume, hu=np.flip(item.volume.hu, axes)) if of_ct else item.volume
    return volume, np.flip(item.mask, axes)


def _in_corner(item):
    mask = np.zeros_like(item.mask)
    mask[8:12, :8, :8] = 1
    return item.volume, mask


def _in_air(item):
    mask = item.mask.copy()
    z = int(mask.any(axis=(1, 2)).argmax()) + 3
    mask[z - 2 : z + 3, 1:4, 40:48] = 1
    return item.volume, mask


def _in_pieces(item):
    mask = item.mask.copy()
    z, y, x = (int(np.median(i)) for i in np.nonzero(mask))
    mask[z : z + 6, y + 8 : y + 16, x + 4 : x + 16] = 1
    mask[z - 1 : z + 7, y + 5 : y + 8] = 0
    return item.volume, mask


def _tail(item):
    mask = item.mask.copy()
    mask[:, :, : int(np.median(np.nonzero(mask)[2]))] = 0
    return replace(item, mask=mask)


def _small(item):
    mask = item.mask.copy()
    z = np.flatnonzero(mask.any(axis=(1, 2)))
    mask[z[2:]] = 0
    return item.volume, mask


def _cut_off(item):
    first = int(np.flatnonzero(item.mask.any(axis=(1, 2)))[2])
    grid = Grid((len(item.mask) - first, *item.mask.shape[1:]), item.volume.grid.affine)
    return replace(item.volume, hu=item.volume.hu[first:], grid=grid), item.mask[first:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda item: (item.volume, item.mask * 0), "The mask is empty"),
        (lambda item: _flipped(item, 0), "better flipped feet to head"),
        (lambda item: _flipped(item, 1), "better flipped front to back"),
        (lambda item: _flipped(item, 2), "better flipped left to right"),
        (lambda item: _flipped(item, 1, of_ct=True), "front and back exchanged"),
        (lambda item: _flipped(_tail(item), 2, of_ct=True), "left and right exchanged"),
        (_in_corner, "which is no soft tissue"),
        (_in_corner, "100% of the mask lies outside of the body"),
        (_in_air, "of pancreas is air"),
        (_in_pieces, "2 separate pieces of pancreas"),
        (_small, "mL are unusual for a pancreas"),
        (_cut_off, "reaches the end of the scan"),
    ],
)
def test_a_fault_is_named(make, sentence, phantoms):
    assert any(
        sentence in said for item in phantoms for said in suspicious_findings(*make(item), ONE)
    )


@pytest.mark.slow
def test_a_gland_far_from_the_lungs_is_doubted(phantoms):
    item = phantoms[0]
    shape = (len(item.mask) + 40, *item.mask.shape[1:])
    hu = np.full(shape, -1000, np.int16)
    # A chest on top: tissue around lungs, over 28 cm.
    hu[-40:, 10:50, 10:70] = 40
    hu[-40:, 16:44, 16:64] = -800
    hu += np.random.default_rng(0).normal(0, 10, shape).astype(np.int16)
    hu[: len(item.mask)] = item.volume.hu
    mask = np.zeros(shape, np.uint8)
    mask[-20:-14] = item.mask[item.mask.any(axis=(1, 2)).argmax()][None]
    volume = replace(item.volume, hu=hu, grid=Grid(shape, item.volume.grid.affine))
    assert any("head and feet exchanged" in said for said in suspicious_findings(volume, mask, ONE))


def test_of_reviewed_slices_no_whole_gland_is_asked(phantoms):
    volume, mask = _small(phantoms[0])
    assert suspicious_findings(volume, mask, ONE, reviewed=True) == []


@pytest.mark.slow
def test_a_class_that_is_missing_is_named(phantoms):
    item = phantoms[0]
    assert suspicious_findings(item.volume, item.mask, {"pancreas": 1, "duct": 2}) == [
        "There is no duct in it."
    ]


def test_of_a_gland_that_is_missing_no_place_is_asked(phantoms):
    item = phantoms[0]
    spleen = item.mask * np.uint8(2)
    said = suspicious_findings(item.volume, spleen, {"pancreas": 1, "spleen": 2})
    assert said == ["There is no pancreas in it."]


@pytest.mark.slow
def test_a_bad_case_does_not_stop_the_others(pairs):
    (pairs / "PANCREAS_0012_ct.nii.gz").write_bytes(b"damaged")
    seen = []
    found = check_dataset(
        open_dataset(pairs),
        on_case=lambda done, total, case: seen.append((done, total, case["name"])),
    )
    assert [s[:2] for s in seen] == [(1, 3), (2, 3), (3, 3)]
    assert [case["usable"] for case in found["cases"]] == [True, False, True]
    assert "PANCREAS_0012" in found["cases"][1]["problem"]
    assert not found["usable"]
    summary = found["summary"]
    assert (summary["cases"], summary["usable"], summary["patients"]) == (3, 2, 3)
    assert summary["spacing_mm"]["z"]["minimum"] == 5.0
    json.dumps(found, allow_nan=False)


@pytest.mark.slow
def test_volumes_are_measured(pairs, phantoms):
    cases = check_dataset(open_dataset(pairs))["cases"]
    for case, item in zip(cases, phantoms, strict=True):
        voxels = np.count_nonzero(item.mask)
        assert case["volume_ml"]["pancreas"] == pytest.approx(voxels * 5 * 3 * 3 / 1000, rel=1e-3)
        assert case["median_hu"]["pancreas"] == np.median(item.volume.hu[item.mask > 0])
        assert (case["slices"], case["labelled"]) == (34, 34)
    oblique = "The axes run obliquely through the patient; masks keep that exactly."
    assert [case["suspicious"] for case in cases] == [[], [], [oblique]]


@pytest.mark.slow
def test_repeats_are_found_by_their_voxels(pairs, phantoms):
    first, second, third = phantoms
    for kind, item in (("ct", first), ("pancreas", first)):
        source = pairs / f"PANCREAS_{item.number}_{kind}.nii.gz"
        (pairs / f"PANCREAS_0099_{kind}.nii.gz").write_bytes(source.read_bytes())
    save_mask(
        first.mask, third.volume, pairs / f"PANCREAS_{third.number}_pancreas.nii.gz", overwrite=True
    )
    cases = check_dataset(open_dataset(pairs))["cases"]
    found = {case["name"]: " ".join(case["suspicious"]) for case in cases}
    assert "The CT is the same as that of PANCREAS_0099." in found["PANCREAS_0005"]
    assert "goes by several patients" in found["PANCREAS_0005"]
    assert "The mask is the same as that of PANCREAS_0005 and" not in found["PANCREAS_0012"]
    assert "The mask is the same as that of PANCREAS_0005, PANCREAS_0099" in found["PANCREAS_0045"]
    assert found[f"PANCREAS_{second.number}"] == ""
    (pairs / "patients.csv").write_text(
        "case,patient\nPANCREAS_0005,a\nPANCREAS_0099,a\nPANCREAS_0012,b\nPANCREAS_0045,b\n"
    )
    checked = check_dataset(open_dataset(pairs))
    assert not any("several patients" in s for case in checked["cases"] for s in case["suspicious"])
    assert any("2 of 2 patients have several cases" in remark for remark in checked["remarks"])


@pytest.mark.slow
def test_labels_of_reviewed_slices_are_counted(writers, phantoms, tmp_path):
    writers["corrections"][1](tmp_path, phantoms)
    found = check_dataset(open_dataset(tmp_path))
    assert [case["labelled"] for case in found["cases"]] == [2, 34, 34]


@pytest.mark.slow
def test_one_case_at_a_time_is_held(phantoms, tmp_path):
    loaded, held = [], []

    @dataclass(frozen=True)
    class Counted:
        name: str
        patient: str
        slices: None = None
        files: tuple[Path, ...] = ()

        def load(self):
            gc.collect()
            held.append(sum(volume() is not None for volume in loaded))
            item = phantoms[0]
            volume = _Marked(item.volume.hu, item.volume.grid, item.volume.source)
            loaded.append(weakref.ref(volume))
            return volume, item.mask

    class _Marked(CTVolume):
        pass

    dataset = replace(
        open_dataset(_written(phantoms, tmp_path)), cases=(Counted("a", "a"), Counted("b", "b"))
    )
    check_dataset(dataset)
    assert held == [0, 0]


def _written(phantoms, folder):
    from napari_pancreas_seg.io import save_ct

    save_ct(phantoms[0].volume, folder / "a.nii.gz")
    save_mask(phantoms[0].mask, phantoms[0].volume, folder / "a_mask.nii.gz")
    return folder


# The command


@pytest.mark.slow
def test_the_command_writes_tables_and_pictures(pairs, tmp_path, capsys):
    report = tmp_path / "report"
    assert main(["dataset", "check", str(pairs), "-o", str(report)]) == 0
    said = capsys.readouterr().out
    assert "layout pairs" in said
    assert "3 of 3 patients, 3 usable, 1 to look at" in said
    data = json.loads((report / "dataset.json").read_text())
    assert data["usable"] is True
    with (report / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == [case["name"] for case in data["cases"]]
    assert float(rows[0]["pancreas_ml"]) == data["cases"][0]["volume_ml"]["pancreas"]
    pictures = sorted(path.name for path in (report / "pictures").iterdir())
    assert pictures == [f"{row['case']}.png" for row in rows]
    assert main(["dataset", "check", str(pairs), "-o", str(report)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    again = ["dataset", "check", str(pairs), "-o", str(report), "--overwrite", "--no-pictures"]
    assert main(again) == 0


@pytest.mark.slow
def test_the_command_fails_where_a_case_is_unusable(pairs, capsys):
    (pairs / "PANCREAS_0012_ct.nii.gz").write_bytes(b"damaged")
    assert main(["dataset", "check", str(pairs), "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["summary"]["usable"] == 2
    assert "1 of 3 cases cannot be used" in printed.err


@pytest.mark.slow
def test_the_command_takes_classes_and_a_layout(writers, phantoms, tmp_path, capsys):
    writers["totalsegmentator"][1](tmp_path, phantoms[:1])
    command = ["dataset", "check", str(tmp_path), "--layout", "totalsegmentator"]
    assert main([*command, "--classes", "gland=pancreas", "--classes", "vertebrae"]) == 0
    assert "gland = pancreas; vertebrae" in capsys.readouterr().out
    assert main([*command, "--classes", "a=b"]) == 1
    assert "no class 'b'" in capsys.readouterr().err
    for wrong in ("a=", "=b", "a=b+"):
        assert main([*command, "--classes", wrong]) == 2
    assert main(["dataset", "check", str(tmp_path), "--layout", "paris"]) == 1
    assert main(["dataset", "check", str(tmp_path / "nowhere")]) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="names are not any bytes there")
def test_any_bytes_are_a_name_of_a_case(pairs, tmp_path, capsys):
    odd = os.fsdecode(b"M\xfcller")
    case = open_dataset(pairs).cases[0]
    for path in case.files:
        path.rename(path.with_name(path.name.replace(case.name, odd)))
    out = tmp_path / "out"
    assert main(["dataset", "check", str(pairs), "-o", str(out)]) == 0
    capsys.readouterr()
    names = [case["name"] for case in json.loads((out / "dataset.json").read_text())["cases"]]
    assert any("\udcfc" in name for name in names)
    assert all((out / "pictures" / f"{name}.png").is_file() for name in names)
    with open(out / "cases.csv", encoding="utf-8", newline="") as file:
        said = [row["case"] for row in csv.DictReader(file)]
    assert said == [name.replace("\udcfc", "\\xfc") for name in names]


@pytest.mark.slow
def test_a_case_or_picture_that_fails_stops_no_other(pairs, tmp_path, monkeypatch):
    def draw(volume, labels, maps, path, title):
        if "0012" in title:
            raise PancreasSegError("the disk is full")
        path.parent.mkdir(exist_ok=True)
        path.touch()

    def check(case, *what):
        if "0045" in case.name:
            raise ZeroDivisionError("of nothing")
        return check_case(case, *what)

    where = "napari_pancreas_seg.training.data.layouts.checking"
    monkeypatch.setattr(f"{where}.draw_overview", draw)
    monkeypatch.setattr(f"{where}.check_case", check)
    dataset = open_dataset(pairs)
    found = check_dataset(dataset, pictures=tmp_path / "pictures")["cases"]
    assert len(found) == len(dataset.cases) == 3
    by_name = {case["name"]: case for case in found}
    assert any("disk is full" in said for said in by_name["PANCREAS_0012"]["suspicious"])
    assert sum("ZeroDivisionError" in str(case["problem"]) for case in found) == 1
    assert len(list((tmp_path / "pictures").iterdir())) == 1


@pytest.mark.slow
def test_a_mask_one_slice_short_is_not_usable(pairs, capsys):
    case = next(case for case in open_dataset(pairs).cases if case.name == "PANCREAS_0012")
    mask = nib.load(case.masks[0].path)
    values = np.asarray(mask.dataobj)
    n = values.shape[2]
    nib.save(nib.Nifti1Image(values[:, :, 1:], mask.affine), case.masks[0].path)
    assert main(["dataset", "check", str(pairs)]) == 1
    said = capsys.readouterr().out
    assert "2 usable" in said
    assert f"PANCREAS_0012: unusable: the mask has {n - 1} slices, the CT {n}" in said


def test_a_slice_whose_file_is_missing_stops_no_other(tmp_path, capsys):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for name in "ab":
        grey = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
        Image.fromarray(grey).save(tmp_path / "images" / f"{name}.jpg")
        Image.fromarray((grey > 200).astype(np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    rows = "name,patient,crop_margin_px\na,1,0\nb,2,0\n"
    (tmp_path / "manifest.csv").write_text(rows)
    (tmp_path / "masks" / "b.png").unlink()
    assert main(["dataset", "check", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "1 usable" in said.out and "1 of 2 cases cannot be used" in said.err
