"""Every layout: recognised, read voxel by voxel, and refused with a reason."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from dicom_series import body, write_series
from hypothesis import given
from hypothesis import strategies as st

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.classes import ONE_CLASS
from napari_pancreas_seg.inference.saving import mask_sha256
from napari_pancreas_seg.io import load_ct, load_mask, save_ct, save_mask, stem
from napari_pancreas_seg.io.alignment import bring_onto
from napari_pancreas_seg.training.data.datasets import fold_of_patients
from napari_pancreas_seg.training.data.layouts.flips import flip_overlaps
from napari_pancreas_seg.training.data.layouts.opening import (
    choose_classes,
    classes_of_model,
    open_dataset,
    open_for_model,
)
from napari_pancreas_seg.training.data.layouts.pairs import match_references
from napari_pancreas_seg.training.data.layouts.slices import read_slice_layout
from napari_pancreas_seg.training.judge.evaluation import _pairs
from napari_pancreas_seg.volume import CTVolume, Grid

KINDS = (
    *("nih", "decathlon", "nnunet", "totalsegmentator", "pairs", "pairs in two folders"),
    *("pairs in a folder each", "pairs of DICOM", "corrections", "slices"),
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_layout_is_recognised_and_read(kind, writers, material, tmp_path):
    layout, write = writers[kind]
    write(tmp_path, material)
    found = open_dataset(tmp_path)
    assert (found.layout, found.labels, found.notes) == (layout, {"pancreas": 1}, ())
    assert [p[-4:] for p in found.patients] == [item.number for item in material]
    truth = {item.number: item for item in material}
    for case in found.cases:
        item = truth[case.patient[-4:]]
        volume, labels = case.load()
        assert labels.dtype == np.uint8
        assert all(path.exists() for path in case.files)
        if layout == "slices":
            z = int(case.name.rpartition("slice")[2])
            np.testing.assert_array_equal(labels[0], item.mask[z])
            continue
        np.testing.assert_array_equal(volume.hu, item.volume.hu)
        np.testing.assert_array_equal(labels, item.mask)
        assert case.slices == ((2, 4) if layout == "corrections" and item is material[0] else None)


@pytest.mark.slow
def test_the_same_seed_splits_the_same_patients_in_every_layout(writers, phantoms, tmp_path):
    held = set()
    for kind, (_, write) in writers.items():
        root = tmp_path / kind.replace(" ", "-")
        write(root, phantoms)
        found = open_dataset(root)
        parts = [fold_of_patients([c.patient for c in found.cases], 3, k, 7) for k in range(3)]
        held.add(tuple(tuple(p[-4:] for p in part) for part in parts))
    assert len(held) == 1


def test_a_table_says_whose_cts_they_are(writers, phantoms, tmp_path):
    write = writers["pairs"][1]
    write(tmp_path, phantoms)
    table = tmp_path / "patients.csv"
    table.write_text("case,patient\nPANCREAS_0005,ann\nPANCREAS_0012,ann\nPANCREAS_0045,bob\n")
    found = open_dataset(tmp_path)
    assert [case.patient for case in found.cases] == ["ann", "ann", "bob"]
    assert found.patients == ("ann", "bob")
    table.write_text("case,patient\nPANCREAS_0005,ann\nelse,bob\n")
    notes = " ".join(open_dataset(tmp_path).notes)
    assert "not in the data set: else" in notes
    assert "Not named in patients.csv: PANCREAS_0012, PANCREAS_0045" in notes
    for text, complaint in (
        ("case,patient\na,b\na,c\n", "two patients"),
        ("case,age\na,9\n", "'patients.csv' is not a table with the columns case and patient"),
        ("case,patient\na\n", "Line 2 of patients.csv"),
    ):
        table.write_text(text)
        with pytest.raises(PancreasSegError, match=complaint):
            open_dataset(tmp_path)


def test_the_table_of_patients_may_name_files_and_lie_around_the_data_set(
    writers, phantoms, tmp_path
):
    writers["pairs"][1](tmp_path / "inner", phantoms)
    rows = ["PANCREAS_0005_ct.nii.gz,ann", "PANCREAS_0012.nii.gz,ann"]
    (tmp_path / "patients.csv").write_text("\n".join(["case,patient", *rows]))
    found = open_dataset(tmp_path)
    assert [case.patient for case in found.cases] == ["ann", "ann", "0045"]
    assert found.notes == ("Not named in patients.csv: PANCREAS_0045.",)


# NIH Pancreas-CT


@pytest.mark.slow
def test_a_real_series_with_turned_rows(shared, tmp_path):
    (tmp_path / "PANCREAS_0001").symlink_to(shared / "ct" / "dicom", target_is_directory=True)
    mask, on = load_mask(shared / "ct" / "dicom_pancreas.nii.gz")
    affine = on.grid.affine[:, [2, 1, 0, 3]]
    turned = CTVolume.from_source_array(np.flip(mask.transpose(2, 1, 0), 1), affine)
    save_mask(turned.hu, turned, tmp_path / "labels" / "label0001.nii.gz")
    volume, labels = open_dataset(tmp_path).cases[0].load()
    np.testing.assert_array_equal(labels, mask)
    assert any("best flipped front to back" in note for note in volume.notes)


@pytest.mark.slow
@pytest.mark.parametrize("flips", list(itertools.product((0, 1), repeat=3)))
def test_turned_labels_find_their_place_by_what_they_cover(flips, writers, material, tmp_path):
    item = material[0]
    writers["nih"][1](tmp_path, [item], [axis for axis in range(3) if flips[axis]])
    volume, labels = open_dataset(tmp_path).cases[0].load()
    np.testing.assert_array_equal(labels, item.mask)
    assert any("fits this CT best" in note for note in volume.notes)


@pytest.mark.slow
def test_every_patient_at_hand_is_turned_the_right_way(shared):
    records = open_dataset(shared / "pancreas-ct").cases
    for patient in sorted({r.patient for r in records})[::5]:
        loaded = [r.load() for r in records if r.patient == patient and r.margin_px == 0]
        if len(loaded) < 3:
            continue
        hu = np.concatenate([v.hu for v, _ in loaded])
        volume = CTVolume.from_source_array(hu.transpose(2, 1, 0), np.diag([-0.8, -0.8, 5.0, 1.0]))
        best, second = flip_overlaps(volume, np.concatenate([m for _, m in loaded]))[:2]
        assert not any(best.flips)
        assert best.score > second.score + 0.02


@pytest.mark.slow
def test_cts_and_labels_that_stand_alone_are_named(writers, phantoms, tmp_path):
    writers["nih"][1](tmp_path, phantoms)
    (tmp_path / "TCIA_pancreas_labels-02-05-2017" / "label0005.nii.gz").unlink()
    shutil.rmtree(tmp_path / "manifest-1" / "Pancreas-CT" / "PANCREAS_0045")
    found = open_dataset(tmp_path)
    assert [case.name for case in found.cases] == ["PANCREAS_0012"]
    assert found.notes == (
        "CTs without a label: PANCREAS_0005.",
        "Labels without a CT: label0045.nii.gz.",
    )


@pytest.mark.slow
def test_a_label_with_another_number_of_slices_is_refused(writers, phantoms, tmp_path):
    writers["nih"][1](tmp_path, phantoms[:1])
    label = next(tmp_path.rglob("label*"))
    volume = load_ct(next(tmp_path.rglob("CT")))
    part = CTVolume.from_source_array(volume.hu[1:], np.eye(4))
    save_mask(np.zeros(part.grid.shape, np.uint8), part, label, overwrite=True)
    with pytest.raises(PancreasSegError, match=r"PANCREAS_0005.*voxels"):
        open_dataset(tmp_path).cases[0].load()


# Classes


def _two_classes(item):
    labels = item.mask.copy()
    z = np.flatnonzero(labels.any(axis=(1, 2)))
    labels[z[len(z) // 2] :] *= 2
    return labels


def test_classes_are_joined_or_kept_apart(writers, phantoms, tmp_path):
    writers["decathlon"][1](tmp_path, phantoms)
    item = phantoms[0]
    path = tmp_path / "labelsTr" / f"pancreas_{item.number}.nii.gz"
    drawn = _two_classes(item)
    save_mask(drawn, item.volume, path, overwrite=True)

    def read(labels=None):
        found = open_dataset(tmp_path, labels)
        return found, found.cases[0].load()[1]

    found, labels = read()
    assert dict(found.classes) == {"pancreas": ("pancreas", "cancer")}
    np.testing.assert_array_equal(labels, item.mask)
    found, labels = read({"pancreas": ["pancreas"]})
    np.testing.assert_array_equal(labels, drawn == 1)
    found, labels = read({"tumour": ["cancer"], "gland": ["pancreas"]})
    assert found.labels == {"tumour": 1, "gland": 2}
    np.testing.assert_array_equal(labels, np.array([0, 2, 1])[drawn])
    with pytest.raises(PancreasSegError, match=r"no class 'liver'.* pancreas, cancer"):
        read({"liver": ["liver"]})
    with pytest.raises(PancreasSegError, match="twice"):
        read({"a": ["cancer"], "b": ["cancer"]})
    with pytest.raises(PancreasSegError, match="at least one"):
        read({"a": []})


@pytest.mark.parametrize(
    ("there", "parts"),
    [
        (["pancreas"], ["pancreas"]),
        (["pancreas", "cancer"], ["pancreas", "cancer"]),
        (["spleen", "pancreas", "liver"], ["pancreas"]),
        (["liver", "pancreas", "tumor"], ["pancreas"]),
        (["Pancreas", "pancreatic_duct", "PDAC lesion", "veins"],) * 2,
        (["pancreas", "pancreatic_artery"], ["pancreas"]),
    ],
)
def test_what_counts_as_pancreas_by_default(there, parts):
    expected = tuple(part for part in parts if part != "veins")
    assert choose_classes(there) == {"pancreas": expected}


def test_a_data_set_without_pancreas_says_what_it_has():
    with pytest.raises(PancreasSegError, match="it has liver, spleen"):
        choose_classes(["liver", "spleen"])
    with pytest.raises(PancreasSegError, match=r"no class 'kidneys'; .* --classes NAME=CLASS"):
        choose_classes(["kidney_left", "kidney_right"], {"kidneys": ["kidneys"]})


def test_a_models_classes_are_asked_for_in_its_order():
    asked = {"liver": ["liver"], "kidneys": ["left", "right"]}
    assert [*classes_of_model(["kidneys", "liver"], asked).items()] == [
        ("kidneys", ["left", "right"]),
        ("liver", ["liver"]),
    ]
    assert classes_of_model(["pancreas"]) is None
    assert classes_of_model(["liver"]) == {"liver": ["liver"]}
    assert classes_of_model(["pancreas"], {"gland": ["pancreas", "cancer"]}) == {
        "pancreas": ["pancreas", "cancer"]
    }
    for others in ({"liver": ["liver"]}, {"kidneys": ["left"], "spleen": ["spleen"]}):
        with pytest.raises(
            PancreasSegError, match=r"knows kidneys, liver, not .*; name them alike"
        ):
            classes_of_model(["kidneys", "liver"], others)


def test_a_model_is_judged_by_what_it_was_trained_on(writers, phantoms, tmp_path):
    writers["decathlon"][1](tmp_path, phantoms[:1])

    def made_of(parts, labels=None):
        recipe = {"classes": {"pancreas": parts}} if parts else {}
        card = {"labels": {"pancreas": 1}, "training": {"recipe": recipe}}
        return dict(open_for_model(tmp_path, card, labels).classes)["pancreas"]

    assert made_of(["pancreas"]) == ("pancreas",)
    assert made_of(["pancreas", "duct"]) == made_of(None) == ("pancreas", "cancer")
    assert made_of(["pancreas"], {"pancreas": ["cancer"]}) == ("cancer",)


def test_classes_in_files_of_their_own(writers, phantoms, tmp_path):
    writers["totalsegmentator"][1](tmp_path, phantoms)
    wanted = {"pancreas": ["pancreas"], "bone": ["vertebrae"]}
    found = open_dataset(tmp_path, wanted)
    labels = found.cases[0].load()[1]
    bone = phantoms[0].volume.hu > 200
    np.testing.assert_array_equal(labels == 2, bone)
    np.testing.assert_array_equal(labels == 1, (phantoms[0].mask > 0) & ~bone)
    (tmp_path / "s0012" / "segmentations" / "vertebrae.nii.gz").unlink()
    found = open_dataset(tmp_path, wanted)
    assert [case.name for case in found.cases] == ["s0005", "s0045"]
    assert found.notes == ("Cases without a mask of every class: s0012.",)
    assert len(open_dataset(tmp_path).cases) == 3


def test_values_without_a_meaning_are_refused(writers, phantoms, tmp_path):
    writers["pairs"][1](tmp_path, phantoms)
    item = phantoms[0]
    drawn = _two_classes(item)
    path = tmp_path / f"PANCREAS_{item.number}_pancreas.nii.gz"
    save_mask(255 * item.mask, item.volume, path, overwrite=True)
    np.testing.assert_array_equal(open_dataset(tmp_path).cases[0].load()[1], item.mask)
    save_mask(drawn, item.volume, path, overwrite=True)
    with pytest.raises(PancreasSegError, match=r"several values \(1, 2\).*labels\.json"):
        open_dataset(tmp_path).cases[0].load()
    (tmp_path / "labels.json").write_text('{"pancreas": 1, "duct": 2}')
    found = open_dataset(tmp_path, {"pancreas": ["pancreas"], "duct": ["duct"]})
    np.testing.assert_array_equal(found.cases[0].load()[1], drawn)
    (tmp_path / "labels.json").write_text('{"pancreas": 1}')
    with pytest.raises(PancreasSegError, match=r"PANCREAS_0005.*value 2"):
        open_dataset(tmp_path).cases[0].load()


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ("name,crop_margin_px,patient\na,40\n", "no slice or no patient"),
        ("name,crop_margin_px,patient\na,40, \n", "no slice or no patient"),
        ("name,crop_margin_px,patient\na,256,P\n", "from 0 to 255"),
        ("name,crop_margin_px,patient\na,-1,P\n", "from 0 to 255"),
    ],
)
def test_a_manifest_with_a_senseless_row_is_refused(tmp_path, rows, complaint):
    (tmp_path / "manifest.csv").write_text(rows)
    with pytest.raises(PancreasSegError, match=complaint):
        read_slice_layout(tmp_path)


def test_a_meaning_may_be_a_number_in_quotes(tmp_path):
    pairs_of(tmp_path, ["a"], ["a"])
    (tmp_path / "labels.json").write_text('{"pancreas": "1", "background": 0}')
    assert open_dataset(tmp_path).cases[0].masks[0].classes == {1: "pancreas"}
    (tmp_path / "labels.json").write_text('{"pancreas": "one"}')
    with pytest.raises(PancreasSegError, match=r"^labels\.json"):
        open_dataset(tmp_path)


def test_a_decathlon_may_be_numbered_from_0(writers, phantoms, tmp_path):
    writers["decathlon"][1](tmp_path, phantoms[:1])
    for folder in ("imagesTr", "labelsTr"):
        (mask,) = (tmp_path / folder).glob("p*.nii.gz")
        shutil.copy(mask, mask.with_name("case_0001.nii.gz"))
        mask.rename(mask.with_name("case_0000.nii.gz"))
    found = open_dataset(tmp_path)
    assert found.layout == "decathlon" and found.patients == ("case_0000", "case_0001")


# Whose mask it is


def pairs_of(folder, cts, masks):
    """Empty files in two folders; the pairs that are found, and the notes."""
    for kind, names in (("images", cts), ("labels", masks)):
        (folder / kind).mkdir(exist_ok=True)
        for name in names:
            (folder / kind / f"{name}.nii.gz").touch()
    found = open_dataset(folder)
    pairs = {stem(case.masks[0].path): stem(case.ct) for case in found.cases}
    assert {stem(m): c for m, c, p in match_references(folder / "images", folder / "labels")
            if isinstance(p, Path)} == pairs  # fmt: skip
    return pairs, found.notes


def test_a_mask_of_the_very_name_comes_first_and_another_one_is_told_of(tmp_path):
    pairs, notes = pairs_of(tmp_path, ["P1_2", "P2"], ["P1", "P2"])
    assert pairs == {"P1": "P1_2", "P2": "P2"}
    said = "Paired with the one CT whose name only begins alike: P1.nii.gz (P1_2)."
    assert notes == (said,)
    pairs, notes = pairs_of(tmp_path, [], ["P1_2"])
    assert pairs == {"P1_2": "P1_2", "P2": "P2"}
    assert notes == ("Masks without a CT: P1.nii.gz.",)


def test_contours_beside_a_series_are_no_ct(tmp_path):
    def change(_, dataset):
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"

    write_series(tmp_path / "P1/CT")
    write_series(tmp_path / "P1/RTSTRUCT", body((24, 20, 1)), change=change)
    (tmp_path / "P1/mask.nii.gz").touch()
    (case,) = open_dataset(tmp_path).cases
    assert (case.name, case.ct) == ("P1", tmp_path / "P1/CT")


def test_nnunets_channel_is_no_odd_name(tmp_path):
    assert pairs_of(tmp_path, ["P1_0000"], ["P1"]) == ({"P1": "P1_0000"}, ())


@pytest.mark.parametrize(
    ("record", "noted"),
    [
        ({"model": {"name": "default"}, "edits": {"slices": 0}}, True),
        ({"model": {"name": "default"}, "edits": {"slices": 2}}, False),
        ({"model": {"name": "default"}, "edits": None}, False),
        ({"model": {"name": "default"}, "edits": {"slices": 0}, "mask_sha256": "0" * 64}, False),
        ({"mask_by": "somebody"}, False),
    ],
    ids=["as it was", "corrected here", "perhaps corrected", "changed elsewhere", "of others"],
)
def test_masks_of_this_program_that_nobody_corrected_are_told_of(tmp_path, record, noted):
    pairs_of(tmp_path, ["a", "b"], ["a_mask", "b_mask"])
    made = {"mask_sha256": mask_sha256(tmp_path / "labels" / "a_mask.nii.gz")}
    record = {"program": {"name": "napari-pancreas-seg"}, "resume": made, **record}
    (tmp_path / "labels" / "a_mask.json").write_text(json.dumps(record))
    said = "Masks that this program made and nobody corrected: a_mask.nii.gz."
    assert open_dataset(tmp_path).notes == ((said,) if noted else ())
    _, how = _pairs(tmp_path / "images", tmp_path / "labels", ONE_CLASS)
    assert how.get("notes") == (said if noted else None)


# What a description may not say


@pytest.mark.parametrize(
    ("kind", "change", "complaint"),
    [
        ("nnunet", {"labels": {"background": 0, "all": [1, 2], "tumour": 2}}, "region"),
        ("nnunet", {"labels": {"background": 0, "pancreas": 1, "ignore": 2}}, "ignore"),
        ("nnunet", {"labels": {"pancreas": "one", "background": 0}}, "no number"),
        ("nnunet", {"channel_names": {"0": "T2", "1": "FLAIR"}}, "T2, FLAIR"),
        ("nnunet", {"channel_names": {"0": "MRI"}}, "MRI"),
        ("nnunet", {"channel_names": ["CT"]}, "channel_names"),
        ("nnunet", {"labels": ["pancreas"]}, "labels"),
        ("decathlon", {"modality": {"0": "MRI"}}, "MRI, not CT"),
        ("decathlon", {"labels": {"1": "liver"}}, "called pancreas"),
    ],
)
def test_a_description_that_does_not_serve_is_refused(
    kind, change, complaint, writers, phantoms, tmp_path
):
    writers[kind][1](tmp_path, phantoms[:1])
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PancreasSegError, match=complaint):
        open_dataset(tmp_path)
    path.write_text("[1]")
    with pytest.raises(PancreasSegError, match="JSON object"):
        open_dataset(tmp_path)


def test_of_several_channels_the_ct_is_taken(writers, phantoms, tmp_path):
    writers["nnunet"][1](tmp_path, phantoms[:1])
    ct = next((tmp_path / "imagesTr").iterdir())
    shutil.copy(ct, ct.with_name(ct.name.replace("_0000", "_0001")))
    ct.write_bytes(b"not this one")
    path = tmp_path / "dataset.json"
    channels = {"channel_names": {"0": "PET", "1": "CT_venous"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | channels))
    volume, _ = open_dataset(tmp_path).cases[0].load()
    np.testing.assert_array_equal(volume.hu, phantoms[0].volume.hu)


def test_corrections_that_nobody_reviewed_do_not_count(writers, phantoms, tmp_path):
    writers["corrections"][1](tmp_path, phantoms)
    about = tmp_path / "case-0012" / "case.json"
    about.write_text('{"reviewed": [], "patient": "0012"}')
    (tmp_path / "case-0045" / "mask.nii.gz").unlink()
    found = open_dataset(tmp_path)
    assert [case.name for case in found.cases] == ["case-0005"]
    assert found.notes == (
        "Folders without ct.nii.gz, mask.nii.gz or case.json: case-0045.",
        "Cases without a reviewed slice: case-0012.",
    )
    about.write_text('{"reviewed": "all"}')
    with pytest.raises(PancreasSegError, match="list of slices"):
        open_dataset(tmp_path)
    about.write_text('{"reviewed": [99]}')
    with pytest.raises(PancreasSegError, match=r"case-0012: slice 99"):
        open_dataset(tmp_path).cases[1].load()
    (tmp_path / "corrections.json").write_text('{"format": 2, "labels": {"pancreas": 1}}')
    with pytest.raises(PancreasSegError, match="format 2"):
        open_dataset(tmp_path)


# Which layout it is


def test_a_folder_that_is_no_data_set_says_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(PancreasSegError) as refused:
        open_dataset(tmp_path)
    for word in ("label0001", "imagesTr", "_0000", "segmentations", "corrections", "manifest"):
        assert word in str(refused.value)
    with pytest.raises(PancreasSegError, match="does not exist"):
        open_dataset(tmp_path / "nowhere")


def test_a_data_set_is_found_one_folder_down(writers, phantoms, tmp_path):
    writers["decathlon"][1](tmp_path / "Task07_Pancreas", phantoms)
    found = open_dataset(tmp_path)
    assert (found.layout, found.root) == ("decathlon", tmp_path / "Task07_Pancreas")
    writers["totalsegmentator"][1](tmp_path / "other", phantoms)
    with pytest.raises(PancreasSegError, match=r"several data sets: .*--layout"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, layout="totalsegmentator").root == tmp_path / "other"


def test_two_layouts_in_one_folder_are_told_apart_by_name(writers, phantoms, tmp_path):
    writers["pairs"][1](tmp_path, phantoms)
    writers["totalsegmentator"][1](tmp_path, phantoms)
    with pytest.raises(PancreasSegError, match=r"totalsegmentator .*pairs"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, layout="pairs").layout == "pairs"
    with pytest.raises(PancreasSegError, match="no layout 'paris'; those known are nih"):
        open_dataset(tmp_path, layout="paris")


def test_a_manifest_that_excel_saved(writers, phantoms, tmp_path):
    writers["slices"][1](tmp_path, phantoms)
    before = [case.name for case in open_dataset(tmp_path).cases]
    manifest = tmp_path / "manifest.csv"
    manifest.write_bytes(b"\xef\xbb\xbf" + manifest.read_bytes())
    assert [case.name for case in open_dataset(tmp_path).cases] == before


def test_pairs_whose_names_begin_differently(phantoms, tmp_path):
    item = phantoms[0]
    save_ct(item.volume, tmp_path / "imagesTr" / "img0005.nii.gz")
    save_mask(item.mask, item.volume, tmp_path / "labelsTr" / "label0005.nii.gz")
    found = open_dataset(tmp_path)
    assert (found.layout, found.cases[0].name) == ("pairs", "img0005")
    np.testing.assert_array_equal(found.cases[0].load()[1], item.mask)


def test_what_3d_slicer_adds_to_a_masks_name_is_no_part_of_it(tmp_path):
    names = ["a_Segmentation.seg", "b.seg", "c-label.seg", "d"]
    pairs, notes = pairs_of(tmp_path, "abcd", names)
    assert pairs == dict(zip(names, "abcd", strict=True)) and not notes


def test_masks_that_fit_no_ct_or_several_are_named(writers, phantoms, tmp_path):
    writers["pairs in two folders"][1](tmp_path, phantoms)
    images, masks = tmp_path / "images", tmp_path / "masks"
    shutil.copy(masks / "PANCREAS_0005.nii.gz", masks / "alone.nii.gz")
    shutil.copy(masks / "PANCREAS_0005.nii.gz", masks / "PANCREAS_0012_seg.nii.gz")
    shutil.copy(images / "PANCREAS_0005.nrrd", images / "PANCREAS_0099.nrrd")
    found = open_dataset(tmp_path)
    assert [case.name for case in found.cases] == ["PANCREAS_0005", "PANCREAS_0045"]
    assert found.notes == (
        "CTs without a mask: PANCREAS_0099.nrrd.",
        "Masks without a CT: alone.nii.gz.",
        "CTs with several masks: PANCREAS_0012.nrrd.",
    )


# Where a mask lies


def test_a_mask_on_another_grid_is_refused_by_the_name_of_its_case(phantoms, tmp_path):
    item = phantoms[0]
    save_ct(item.volume, tmp_path / "a.nii.gz")
    array, affine = item.scanned
    mask = tmp_path / "a_mask.nii.gz"

    def put(affine, keep=slice(None)):
        like = CTVolume.from_source_array(array[keep], affine)
        save_mask(np.ones(like.grid.shape, np.uint8), like, mask, overwrite=True)
        return open_dataset(tmp_path).cases[0].load()

    put(affine)
    half = affine.copy()
    half[:3, 3] += affine[:3, 0] / 2
    with pytest.raises(PancreasSegError, match=r"Case a: 'a_mask\.nii\.gz' .* mm from"):
        put(half)
    with pytest.raises(PancreasSegError, match="its spacing is"):
        put(affine @ np.diag([1.1, 1.1, 1, 1]))
    outside = affine.copy()
    outside[:3, 3] -= affine[:3, 0]
    with pytest.raises(PancreasSegError, match=r"it has .* voxels"):
        put(outside, slice(1, None, 2))


@pytest.mark.slow
@given(
    order=st.permutations(range(3)),
    flips=st.tuples(*[st.booleans()] * 3),
    cut=st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_exact_flips_permutations_and_parts_find_their_voxels(order, flips, cut, seed):
    rng = np.random.default_rng(seed)
    shape = (6, 7, 8)
    affine = np.diag([-0.9, -0.8, 2.5, 1.0])
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    ct = CTVolume.from_source_array(np.zeros(shape, np.int16), affine)
    labels = rng.integers(1, 4, shape).astype(np.uint8)  # in the order of the file
    part = tuple(slice(a, n - b) for (a, b), n in zip(cut, shape, strict=True))
    inner = np.zeros(shape, np.uint8)
    inner[part] = labels[part]
    # The same voxels as another program may have written them.
    start = np.eye(4)
    start[:3, 3] = [edge.start for edge in part]
    turned, place = labels[part], affine @ start
    for axis in (axis for axis in range(3) if flips[axis]):
        flip = np.eye(4)
        flip[axis, axis], flip[axis, 3] = -1, turned.shape[axis] - 1
        turned, place = np.flip(turned, axis), place @ flip
    turned, place = turned.transpose(order), place[:, [*order, 3]]
    read = CTVolume.from_source_array(turned.astype(np.int16), place)
    shorter = sum(a < b for a, b in zip(turned.shape, shape, strict=True))
    if np.allclose(place, affine) and shorter == 1:  # which are missing, nobody knows
        with pytest.raises(PancreasSegError, match="but the same affine"):
            bring_onto(ct, read.hu.astype(np.uint8), read, "mask")
        return
    found = bring_onto(ct, read.hu.astype(np.uint8), read, "mask")
    np.testing.assert_array_equal(ct.to_source_order(found), inner)


@given(st.floats(0.15, 0.85), st.integers(0, 2))
def test_a_shift_by_a_part_of_a_voxel_is_refused(share, axis):
    ct = CTVolume.from_source_array(np.zeros((5, 6, 7), np.int16), np.diag([2.0, 3.0, 4.0, 1.0]))
    affine = ct.grid.affine.copy()
    affine[:3, 3] += share * affine[:3, axis]
    on = SimpleNamespace(grid=Grid((5, 5, 5), affine), source=ct.source)
    with pytest.raises(PancreasSegError, match="grid"):
        bring_onto(ct, np.zeros((5, 5, 5), np.uint8), on, "mask")


def test_slices_have_their_patients_own_spacing(writers, phantoms, tmp_path):
    writers["slices"][1](tmp_path, phantoms)
    before = read_slice_layout(tmp_path)
    assert not any(record.spacing_known for record in before)
    known, other = sorted({record.patient for record in before})[:2]
    table = tmp_path / "spacing.csv"
    table.write_text(f"patient,pixel_spacing_mm,slice_spacing_mm\n{known},0.9,1.5\n")
    for old, new in zip(before, read_slice_layout(tmp_path), strict=True):
        if new.patient == known:
            assert new.spacing_known and new.spacing_mm == pytest.approx(old.spacing_mm * 0.9 / 0.8)
            volume, _ = new.load()
            assert volume.spacing == pytest.approx((1.5, new.spacing_mm, new.spacing_mm))
        if new.patient == other:
            assert new == old
    table.write_text(f"patient,pixel_spacing_mm,slice_spacing_mm\n{known},-1,1\n")
    with pytest.raises(PancreasSegError, match="not a positive number"):
        read_slice_layout(tmp_path)
    table.write_text(f"patient,pixel_spacing_mm,slice_spacing_mm\n{known},1\n")
    with pytest.raises(PancreasSegError, match="must have numbers"):
        read_slice_layout(tmp_path)
    table.write_text(f"patient,mm\n{known},1\n")
    with pytest.raises(PancreasSegError, match="columns patient, pixel_spacing_mm and slice_sp"):
        read_slice_layout(tmp_path)
