"""Evaluation of a tiny network on tiny CTs: the same Dice as an independent program."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from dicom_series import write_series

from napari_pancreas_seg.cli import main
from napari_pancreas_seg.cohort.given import GivenMasks
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.classes import ONE_CLASS, Classes
from napari_pancreas_seg.inference.segment import LoadedModel, segment
from napari_pancreas_seg.io import load_ct, load_mask, save_ct, save_mask
from napari_pancreas_seg.mask.metrics import dice
from napari_pancreas_seg.model.attention_unet import Architecture, build, gflop_per_slice
from napari_pancreas_seg.model.bundle import load_bundle, save_bundle
from napari_pancreas_seg.training.data.layouts.corrected_cases import (
    add_corrected_case,
    case_name,
)
from napari_pancreas_seg.training.data.layouts.opening import open_dataset
from napari_pancreas_seg.training.data.layouts.pairs import match_references
from napari_pancreas_seg.training.judge import evaluation
from napari_pancreas_seg.training.judge.evaluation import (
    _EvaluationScores,
    _pairs,
    evaluate,
    mask_of_others,
)
from napari_pancreas_seg.training.judge.scores import PatientCounts
from napari_pancreas_seg.training.judge.seen import names_for_card, names_of, those_seen
from napari_pancreas_seg.training.judge.tables import evaluation_markdown
from napari_pancreas_seg.volume import CTVolume

AFFINE = np.diag([-6.0, -6.0, 5.0, 1.0])
NAMES = ("PANCREAS_0001_slice1", "PANCREAS_0001_slice2", "PANCREAS_0002_slice7", "other")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """CTs of one to three slices of a body of 6 mm pixels, and masks."""
    root = tmp_path_factory.mktemp("volumes")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :64]
    body = ((y - 24) / 18) ** 2 + ((x - 32) / 26) ** 2 < 1
    for k, name in enumerate(NAMES):
        n = 3 if name == "other" else 1
        hu = np.where(body, 60, -900) + rng.normal(0, 25, (n, 48, 64))
        volume = CTVolume.from_source_array(hu.astype(np.int16).transpose(2, 1, 0), AFFINE)
        gland = ((y - 20 - k) / 5) ** 2 + ((x - 30) / 9) ** 2 < 1
        suffix = "" if name == "other" else "_pancreas"
        save_ct(volume, root / "ct" / f"{name}.nii.gz")
        masks = np.repeat(gland[None], n, 0).astype(np.uint8)
        save_mask(masks, volume, root / "mask" / f"{name}{suffix}.nii.gz")
    return root


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model


@pytest.fixture(scope="module")
def threshold(folders, model):
    """Where the untrained network's mask is a part of the frame, neither all nor nothing."""
    found = segment(load_ct(folders / "ct" / f"{NAMES[0]}.nii.gz"), model)
    return float(np.quantile(found.probability.values.astype(float), 0.7))


@pytest.mark.slow
def test_dice_is_that_of_the_independent_program(folders, model, threshold, tmp_path, shared):
    script = shared / "tools" / "score.py"
    if not script.is_file():
        pytest.skip("no score.py in ../shared")
    result = evaluate(
        folders / "ct", model, references=folders / "mask", threshold=threshold, postprocess=False
    )
    for path in (folders / "ct").iterdir():
        volume = load_ct(path)
        found = segment(volume, model, threshold=threshold, postprocess=False)
        save_mask(found.mask, volume, tmp_path / f"{path.name.split('.')[0]}_mask.nii.gz")
    said = subprocess.run(
        [sys.executable, script, tmp_path, folders / "mask"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    theirs = dict(re.findall(r"^(\S+) (0\.\d+)$", said, re.MULTILINE))
    assert theirs.keys() == result["patients"].keys() == {"PANCREAS_0001", "PANCREAS_0002", "other"}
    for patient, value in theirs.items():
        assert 0 < float(value) < 1
        assert result["patients"][patient]["dice"] == pytest.approx(float(value), abs=1e-4)
    mean = float(re.search(r"^mean (\S+)", said, re.MULTILINE)[1])
    assert result["summary"]["dice"]["mean"] == pytest.approx(mean, abs=1e-4)


@pytest.mark.slow
def test_an_evaluation_of_volumes(folders, model, threshold):
    seen = []
    data = evaluate(
        folders / "ct", model, references=folders / "mask", threshold=threshold,
        on_case=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(i, 4) for i in range(1, 5)]
    json.dumps(data, allow_nan=False)
    assert data["patients"]["other"]["slices"] == 3
    assert [g["gate"] for g in data["attention"]] == [1, 2, 3, 4]
    assert all(0 < g["inside"] < 1 for g in data["attention"])
    assert data["summary"]["dice"]["n"] == 3
    assert set(data["failures"]["patients"]) == {
        p for p, row in data["patients"].items() if row["dice"] < 0.5
    }
    network = model.predictor.network
    assert data["cost"]["parameters"] == network.count_params()
    assert data["cost"]["weights_mb"] == pytest.approx(len(model.bundle.weights) / 1e6, abs=0.01)


def test_of_a_correction_only_the_reviewed_slices_count(folders, model, threshold, tmp_path):
    volume = load_ct(folders / "ct" / "other.nii.gz")
    how = {"threshold": threshold, "postprocess": False}
    found = segment(volume, model, **how).mask
    mask = found.copy()
    mask[2] = 1  # nobody has looked at it
    mask[1, 20:22] = 1 - mask[1, 20:22]
    for reviewed, counted in (([0], [0]), ([0, 1], [0, 1]), ([0, 1, 2], [0, 1, 2])):
        add_corrected_case(tmp_path, volume, mask, reviewed, "anna", replace=True)
        data = evaluate(tmp_path, model, **how)
        row = data["patients"]["anna"]
        assert row["dice"] == pytest.approx(dice(found[counted], mask[counted]), abs=1e-4)
        part = len(counted) < 3
        assert ("only the labelled slices count" in data["how"].get("labelled_in_part", "")) is part
        assert not data["not_scored"]
    add_corrected_case(tmp_path, volume, mask, [0], "anna", replace=True)
    row = evaluate(tmp_path, model, **how)["patients"]["anna"]
    assert (row["dice"], row["hd95_mm"], row["slices"]) == (1, 0, 1)


def test_references_that_show_nothing_are_named(folders, model, tmp_path):
    masks = shutil.copytree(folders / "mask", tmp_path / "mask")
    where = {"folder": folders / "ct", "references": masks, "model": model}
    assert "empty_references" not in evaluate(**where)["how"]
    labels, on = load_mask(masks / "other.nii.gz")
    save_mask(labels * 0, on, masks / "other.nii.gz", overwrite=True)
    found = evaluate(**where)
    assert found["how"]["empty_references"].startswith("other; Dice is 1 if")
    assert found["patients"]["other"]["dice"] in (0, 1)


@pytest.mark.slow
def test_patients_of_the_training_are_left_out(folders, model, threshold, monkeypatch):
    seen = {**model.card, "training": {"patients": ["0001", "other"]}}
    monkeypatch.setattr(model, "card", seen)
    where = {"folder": folders / "ct", "references": folders / "mask", "model": model}
    result = evaluate(**where, threshold=threshold)
    assert set(result["patients"]) == {"PANCREAS_0002"}
    assert result["how"]["left_out"].startswith("PANCREAS_0001, other: ")
    assert "- left out: PANCREAS_0001, other: " in evaluation_markdown(result)
    every = evaluate(**where, threshold=threshold, every_patient=True)
    assert every["how"]["seen_in_training"] == "PANCREAS_0001, other"
    assert "left_out" not in every["how"]
    seen["training"]["patients"].append("0002")
    with pytest.raises(PancreasSegError, match=r"\(PANCREAS_0001, .*, other\);.*--every-patient"):
        evaluate(**where)


@pytest.mark.parametrize(
    ("patient", "on_the_card", "seen"),
    [
        ("PANCREAS_0001", "0001", True), ("0001", "PANCREAS_0001", True), ("0001", "0001", True),
        ("pancreas_021", "MSD07_0021", True), ("MSD07_0021", "pancreas_021", True),
        ("pancreas_021_0000", "MSD07_0021", True), ("anna", "anna", True),
        ("pancreas_021", "0021", False), ("PANCREAS_0021", "MSD07_0021", False),
        ("pancreas_0212", "MSD07_0021", False), ("anna", "anna_2", False),
        ("pancreas_0001", "0001", True), ("NIH_0001", "0001", True), ("Anna_ct", "anna", True),
        ("case_001_0000", "case_001", True), ("case_001", "case_002", False),
    ],
)  # fmt: skip
def test_a_patient_is_known_by_each_of_the_names_that_data_sets_give(patient, on_the_card, seen):
    assert bool(names_of(patient) & names_of(on_the_card)) is seen


def test_a_table_of_patients_hides_from_nobody_who_was_seen(tmp_path):
    for name in ("PANCREAS_0001", "scan_1", "scan_2"):
        ct_with(tmp_path, name, **{name: [1]})
    rows = ["PANCREAS_0001,p1", "scan_1,anna", "scan_2,anna"]
    (tmp_path / "patients.csv").write_text("\n".join(["case,patient", *rows]))
    cases, _ = _pairs(tmp_path / "ct", tmp_path / "mask", ONE_CLASS)
    assert [c.patient for c in cases] == ["p1", "anna", "anna"]
    for found in (cases, open_pairs(tmp_path)):
        for patient, on_the_card in (("p1", "0001"), ("anna", "scan_2"), ("anna", "ANNA")):
            card = {"training": {"patients": [on_the_card]}}
            assert those_seen(found, [card]) == [patient]


def test_a_ct_that_was_corrected_is_known_by_its_voxels(model, tmp_path, monkeypatch):
    for name, value in (("a", 50), ("b", 70)):
        ct_with(tmp_path, name, **{name: [1]})
        hu = np.full((64, 48, 1), -900, np.int16)
        hu[16:48, 12:36] = value
        save_ct(CTVolume.from_source_array(hu, AFFINE), tmp_path / "ct" / f"{name}.nii.gz",
                overwrite=True)  # fmt: skip
    volume, store = load_ct(tmp_path / "ct" / "a.nii.gz"), tmp_path / "store"
    add_corrected_case(store, volume, volume.hu == 50, patient="anna")  # whom no file names
    names = names_for_card(open_dataset(store).cases)
    assert names == {"anna", case_name(volume)}
    seen = {**model.card, "training": {"patients": [*names]}}
    monkeypatch.setattr(model, "card", seen)
    where = {"folder": tmp_path / "ct", "references": tmp_path / "mask", "model": model}
    found = evaluate(**where)
    assert [*found["patients"]] == ["b"] and found["cases"] == 1
    assert found["how"]["left_out"].startswith("a: the model's card")
    every = evaluate(**where, every_patient=True)
    assert [*every["patients"]] == ["a", "b"] and every["how"]["seen_in_training"] == "a"


def ct_with(folder, ct, **masks):
    """Write a CT and masks of it, the values of each in a row of its own."""
    hu = np.full((64, 48, 1), -900, np.int16)
    hu[16:48, 12:36] = 60
    volume = CTVolume.from_source_array(hu, AFFINE)
    save_ct(volume, folder / "ct" / f"{ct}.nii.gz")
    for name, values in masks.items():
        mask = np.zeros((1, 48, 64), np.uint8)
        for row, value in enumerate(values):
            mask[0, row] = value
        save_mask(mask, volume, folder / "mask" / f"{name}.nii.gz")


def test_whom_a_model_learnt_from_is_known_by_the_name_of_the_ct(model, tmp_path, monkeypatch):
    ct_with(tmp_path, "a_ct", a_pancreas=[1])
    ct_with(tmp_path, "PANCREAS_0003_late", PANCREAS_0003_late_mask=[1])
    cases, _ = _pairs(tmp_path / "ct", tmp_path / "mask", ONE_CLASS)
    assert [(c.name, c.patient, c.ct) for c in cases] == [
        ("PANCREAS_0003_late", "PANCREAS_0003", "PANCREAS_0003_late"),
        ("a", "a", "a_ct"),
    ]
    trained = {case.patient for case in open_pairs(tmp_path)}
    monkeypatch.setattr(model, "card", {**model.card, "training": {"patients": [*trained]}})
    with pytest.raises(PancreasSegError, match=r"every patient of this data \(PANCREAS_0003, a\)"):
        evaluate(tmp_path / "ct", model, references=tmp_path / "mask")


def open_pairs(folder):
    """Cases of two folders, as a training finds them."""
    return open_dataset(folder, layout="pairs").cases


def test_several_references_of_a_ct_are_not_pooled(tmp_path):
    ct_with(tmp_path, "a", a_mask=[1], a_pancreas=[1])
    ct_with(tmp_path, "b", b=[1])
    *twice, alone = _pairs(tmp_path / "ct", tmp_path / "mask", ONE_CLASS)[0]
    assert [case.name for case in twice] == ["a_mask", "a_pancreas"]
    for case in twice:
        with pytest.raises(PancreasSegError, match=f"{case.name}.* several references of a; keep"):
            case.load()
    assert alone.name == "b" and alone.load()[1].any()


def test_a_reference_of_several_values_is_taken_for_no_gland(tmp_path):
    ct_with(tmp_path, "a", a=[7])
    ct_with(tmp_path, "b", b=[1, 2])
    several = Classes(("tumour", "pancreas"), (2, 1))
    (a, b), how = _pairs(tmp_path / "ct", tmp_path / "mask", ONE_CLASS)
    assert "references" not in how
    assert set(np.unique(a.load()[1])) == {0, 1}  # one value, whatever it is
    with pytest.raises(PancreasSegError, match=r"b\.nii\.gz holds several values \(1, 2\)"):
        b.load()
    (a, b), how = _pairs(tmp_path / "ct", tmp_path / "mask", several)
    assert how["references"] == "values taken as the model's: {'tumour': 2, 'pancreas': 1}"
    assert b.load()[1][0, :2, 0].tolist() == [1, 2]
    with pytest.raises(PancreasSegError, match=r"value 7, .*\(tumour, pancreas\) does not mention"):
        a.load()
    (tmp_path / "mask" / "labels.json").write_text(
        '{"tumour": 1, "pancreas": 2, "splenic vein": 7}'
    )
    (a, b), how = _pairs(tmp_path / "ct", tmp_path / "mask", ONE_CLASS)
    assert how["references"] == "pancreas is tumour + pancreas"
    assert b.load()[1][0, :2, 0].tolist() == [1, 1] and not a.load()[1].any()
    (_, b), how = _pairs(tmp_path / "ct", tmp_path / "mask", several)
    assert b.load()[1][0, :2, 0].tolist() == [2, 1] and "references" not in how


def test_another_program_is_compared_with_models_of_the_gland_only(model, tmp_path, monkeypatch):
    for names, said in (
        (("pancreas", "liver"), "leave it out"),
        (("pancreas", "tumour"), "folder"),
    ):
        monkeypatch.setattr(model, "classes", Classes(names, (1, 2)))
        with pytest.raises(PancreasSegError, match=said):
            evaluate(tmp_path / "no", model, references=tmp_path, also=GivenMasks(tmp_path))
    monkeypatch.setattr(model, "classes", Classes(("pancreas", "liver"), (1, 2)))
    with pytest.raises(PancreasSegError, match="folder"):
        evaluate(tmp_path / "no", model, references=tmp_path)


def test_figures_stay_if_no_mask_of_the_other_program_can_be_used(tmp_path):
    scores = _EvaluationScores(ONE_CLASS, GivenMasks(tmp_path), lacking={"a"})
    assert scores.how()["also"].startswith(f"no mask of {tmp_path.name} could be compared")
    assert "also" not in scores.figures()
    scores.others["a"] = scores.others["b"] = PatientCounts(1, 1, 1)
    assert scores.how()["also"].endswith("no mask, or not of every CT, of a")
    assert _EvaluationScores(ONE_CLASS, None).how() == {}


@pytest.mark.slow
def test_a_threshold_of_nothing_is_a_threshold(folders, model, monkeypatch):
    used = []

    def refuse(volume, loaded, *, threshold, postprocess):
        used.append(threshold)
        raise PancreasSegError("enough")

    monkeypatch.setattr(evaluation, "segment", refuse)
    for threshold in (0.0, None, 0.3):
        with pytest.raises(PancreasSegError, match="enough"):
            evaluate(folders / "ct", model, references=folders / "mask", threshold=threshold)
    assert list(dict.fromkeys(used)) == [0.0, model.card["threshold"], 0.3]


def test_references_find_their_cts(tmp_path):
    def make(folder, *names):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_bytes(b"")
        return tmp_path / folder

    cts = make("ct", "a.nii.gz", "a_2.nii.gz", "b.nii", "c_venous.nii.gz", "d_1.nii", "d_2.nii")
    masks = make("masks", "a_pancreas.nii.gz", "b_mask.nii.gz", "c.nii.gz", "notes.txt",
                 "a_probability.nii.gz")  # fmt: skip
    pairs = [(m.name, n, c.name) for m, n, c in match_references(cts, masks)]
    assert pairs == [
        ("a_pancreas.nii.gz", "a", "a.nii.gz"),
        ("b_mask.nii.gz", "b", "b.nii"),
        ("c.nii.gz", "c_venous", "c_venous.nii.gz"),
    ]
    some = match_references(cts, make("some", "b.nii", "z.nii", "d.nii"))
    assert [n for _, n, c in some if isinstance(c, PancreasSegError)] == ["d", "z"]
    make("patients")
    for name in ("s1", "s2"):
        make(f"patients/{name}", "ct.nii.gz")
    of_patients = match_references(tmp_path / "patients", make("of", "s1.nii.gz", "s2_mask.nii"))
    assert [(n, c.parent.name) for _, n, c in of_patients] == [("s1", "s1"), ("s2", "s2")]
    together = make("together", "a.nii.gz", "a_pancreas.nii.gz")
    assert [(m.name, n) for m, n, _ in match_references(together, together)] == [
        ("a_pancreas.nii.gz", "a")
    ]
    with pytest.raises(PancreasSegError, match=r"No CTs .* a\.nii\.gz|belong"):
        match_references(together, make("one", "z.nii"))
    with pytest.raises(PancreasSegError, match=r"2 CTs .* d_1\.nii, d_2\.nii"):
        match_references(cts, make("several", "d.nii.gz"))
    with pytest.raises(PancreasSegError, match="no files"):
        match_references(make("empty"), masks)
    with pytest.raises(PancreasSegError, match="not a folder"):
        match_references(tmp_path / "nowhere", masks)


def test_references_may_be_dicom_segmentations(tmp_path):
    series, masks = tmp_path / "ct" / "P1", tmp_path / "masks"
    write_series(series)
    volume = load_ct(series)
    save_mask(volume.hu > 0, volume, masks / "P1_seg.dcm")
    assert match_references(series.parent, masks) == [(masks / "P1_seg.dcm", "P1", series)]


def test_a_reference_on_another_grid_is_refused(folders, model, tmp_path):
    moved = AFFINE.copy()
    moved[0, 3] = 3.0
    volume = CTVolume.from_source_array(np.zeros((64, 48, 1), np.int16), moved)
    save_mask(np.ones((1, 48, 64), np.uint8), volume, tmp_path / f"{NAMES[0]}.nii.gz")
    with pytest.raises(PancreasSegError, match="grid"):
        evaluate(folders / "ct", model, references=tmp_path)


@pytest.mark.slow
def test_the_command_writes_both_files_once(folders, tiny_bundle, threshold, tmp_path, capsys):
    figures, page = tmp_path / "eval.json", tmp_path / "eval.md"
    arguments = [
        *("evaluate", str(folders / "ct"), "--references", str(folders / "mask")),
        *("--model", str(tiny_bundle), "--threshold", str(threshold)),
        *("-o", str(figures), "--markdown", str(page), "--no-postprocess"),
    ]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    data = json.loads(figures.read_text())
    assert data["how"]["postprocessing"] == "none"
    for patient, row in data["patients"].items():
        assert f"{row['dice']:.3f}" in said
        assert f"| {patient} | {row['slices']} |" in page.read_text()
    assert main(arguments) == 1
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.slow
def test_one_bad_case_keeps_the_scores_of_the_others(
    folders, tiny_bundle, threshold, tmp_path, capsys
):
    cts, masks = tmp_path / "ct", tmp_path / "mask"
    shutil.copytree(folders / "ct", cts)
    shutil.copytree(folders / "mask", masks)
    whole = (masks / "other.nii.gz").read_bytes()
    (masks / "other.nii.gz").write_bytes(whole[: len(whole) // 2])
    (cts / f"{NAMES[2]}.nii.gz").write_bytes(b"no CT")
    shutil.copy(masks / f"{NAMES[0]}_pancreas.nii.gz", masks / "nobody.nii.gz")
    figures, page = tmp_path / "eval.json", tmp_path / "eval.md"
    arguments = ["evaluate", str(cts), "--references", str(masks), "--model", str(tiny_bundle)]
    arguments += ["--threshold", str(threshold), "-o", str(figures), "--markdown", str(page)]
    assert main(arguments) == 1
    said = capsys.readouterr().err.splitlines()
    bad = ["PANCREAS_0002_slice7", "nobody", "other"]
    assert [line.split(":")[0] for line in said[:-1]] == bad
    assert said[-1] == f"3 of 5 cases could not be scored: {', '.join(bad)}."
    data = json.loads(figures.read_text())
    assert list(data["patients"]) == ["PANCREAS_0001"]
    assert list(data["not_scored"]) == bad
    assert "truncated" in data["not_scored"]["other"] or "damaged" in data["not_scored"]["other"]
    assert "nobody" in page.read_text()


@pytest.mark.parametrize("of_others", [False, True])
def test_a_case_that_cannot_be_counted_costs_no_other(folders, model, monkeypatch, of_others):
    def fail(self, found, volume, *reference):
        if volume.name == "other" and of_others is (not found.attention):
            raise ZeroDivisionError
        add(self, found, volume, *reference)

    add = PatientCounts.add
    monkeypatch.setattr(PatientCounts, "add", fail)
    also = GivenMasks(folders / "mask")
    result = evaluate(folders / "ct", model, references=folders / "mask", also=also)
    assert [*result["not_scored"]] == ([] if of_others else ["other"])
    assert [*result["not_compared"]] == (["other (mask)"] if of_others else [])
    assert ("## Not compared" in evaluation_markdown(result)) is of_others
    assert len(result["patients"]) == (3 if of_others else 2)
    assert len(result["also"]["patients"]) == 2


def test_a_bad_mask_of_another_program_is_no_case_that_could_not_be_scored(
    folders, tiny_bundle, tmp_path, capsys
):
    also = also_of(folders, tmp_path / "also", *NAMES)
    (also / "other_seg.nii.gz").write_bytes(b"no mask")
    arguments = ["evaluate", str(folders / "ct"), "--references", str(folders / "mask")]
    assert main([*arguments, "--model", str(tiny_bundle), "--also", str(also)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("other (also): failed: ")
    assert said[-1] == f"1 of the masks in {also} could not be compared: other (also)."


def test_where_nothing_can_be_written_no_work_is_done(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: pytest.fail("work"))
    (tmp_path / "file").touch()
    for option in ("-o", "--markdown"):
        assert main(["evaluate", str(tmp_path), option, str(tmp_path / "file" / "a.json")]) == 1
        assert "file" in capsys.readouterr().err


@pytest.mark.parametrize("error", [MemoryError(), ZeroDivisionError("of\nnothing")])
def test_an_error_that_nobody_expects_is_of_its_case(error, folders, model, monkeypatch):
    def fail(volume, *args, **options):
        if volume.name == "other":
            raise error
        return segment(volume, *args, **options)

    monkeypatch.setattr(evaluation, "segment", fail)
    result = evaluate(folders / "ct", model, references=folders / "mask")
    assert list(result["not_scored"]) == ["other"] and len(result["patients"]) == 2
    assert "\n" not in result["not_scored"]["other"]


@pytest.mark.parametrize(("cut", "off", "scored"), [(1, 0, False), (-1, 0, False), (1, 1, True)])
def test_a_mask_without_a_slice_is_scored_where_its_affine_tells_which(
    cut, off, scored, folders, model, tmp_path
):
    labels, on = load_mask(folders / "mask" / "other.nii.gz")
    affine = on.source.affine.copy()
    affine[2, 3] += off * affine[2, 2]
    short = labels[1:] if cut > 0 else labels[:-1]
    volume = CTVolume.from_source_array(np.zeros((64, 48, 2), np.int16), affine)
    save_mask(short, volume, tmp_path / "other.nii.gz")
    if scored:
        assert list(evaluate(folders / "ct", model, references=tmp_path)["patients"]) == ["other"]
    else:
        with pytest.raises(PancreasSegError, match="has 2 slices, the CT 3"):
            evaluate(folders / "ct", model, references=tmp_path)


def also_of(folders, tmp_path, *names):
    """Masks of another program: the references, named otherwise."""
    for path in (folders / "mask").iterdir():
        if any(path.name.startswith(name) for name in names):
            labels, on = load_mask(path)
            name = path.name.replace("_pancreas", "").replace(".nii.gz", "_seg.nii.gz")
            save_mask(labels, on, tmp_path / name)
    return tmp_path


@pytest.mark.slow
def test_masks_of_another_program_are_scored_beside(folders, model, threshold, tmp_path):
    also = GivenMasks(also_of(folders, tmp_path, *NAMES[:3]))
    where = {"folder": folders / "ct", "references": folders / "mask", "model": model}
    data = evaluate(**where, threshold=threshold, also=also)
    json.dumps(data, allow_nan=False)
    assert data["also"]["patients"].keys() == {"PANCREAS_0001", "PANCREAS_0002"}
    assert all(row["dice"] == 1 for row in data["also"]["patients"].values())
    assert data["also"]["good"] == {"from": 0.85, "n": 2, "share": 1.0}
    gap = data["also"]["ours_minus_theirs"]["dice"]
    ours = [data["patients"][p]["dice"] for p in data["also"]["patients"]]
    assert gap["n"] == 2 and gap["mean"] == pytest.approx(np.mean(ours) - 1, abs=2e-4)
    assert gap["low"] <= gap["mean"] <= gap["high"] < 0
    assert "no mask, or not of every CT, of other" in data["how"]["also"]
    page = evaluation_markdown(data)
    assert "this model minus these, paired" in page and "Dice of at least 0.85: 2 of 2" in page
    # Of a patient with two CTs and one mask, nothing is compared.
    (tmp_path / f"{NAMES[1]}_seg.nii.gz").unlink()
    less = evaluate(**where, threshold=threshold, also=GivenMasks(tmp_path))
    assert less["also"]["patients"].keys() == {"PANCREAS_0002"}
    (tmp_path / f"{NAMES[2]}_seg.nii.gz").unlink()
    none = evaluate(**where, threshold=threshold, also=GivenMasks(tmp_path))
    assert "no mask of" in none["how"]["also"] and "also" not in none
    assert none["patients"] == data["patients"]
    (tmp_path / f"{NAMES[0]}_seg.nii.gz").unlink()
    with pytest.raises(PancreasSegError, match="name them like the cases"):
        evaluate(**where, threshold=threshold, also=GivenMasks(tmp_path))


def test_masks_of_several_organs_need_a_value(folders, tmp_path):
    labels, on = load_mask(folders / "mask" / "other.nii.gz")
    labels = labels * 7
    labels[:, 0, 0] = 3
    volume = load_ct(folders / "ct" / "other.nii.gz")
    save_mask(labels, on, tmp_path / "other.nii.gz")
    with pytest.raises(PancreasSegError, match=r"3, 7.*--label"):
        mask_of_others(GivenMasks(tmp_path), "other", volume)
    assert (mask_of_others(GivenMasks(tmp_path, 7), "other", volume) == (labels == 7)).all()
    assert mask_of_others(GivenMasks(tmp_path), "another", volume) is None
    both = mask_of_others(GivenMasks(tmp_path, (3, 7)), "other", volume)
    assert (both == (labels > 0)).all()
    with pytest.raises(PancreasSegError, match="no label 9, but 3, 7"):
        mask_of_others(GivenMasks(tmp_path, 9), "other", volume)
    save_mask(np.full_like(labels, 9), on, tmp_path / "another.nii.gz")
    assert not mask_of_others(GivenMasks(tmp_path, 9), "other", volume).any()


def test_a_label_that_no_mask_holds_is_named_and_not_scored(folders, model, tmp_path):
    also = also_of(folders, tmp_path, *NAMES[:3])
    where = {"folder": folders / "ct", "references": folders / "mask", "model": model}
    data = evaluate(**where, also=GivenMasks(also, 9))
    assert "also" not in data and len(data["not_compared"]) == 3
    assert "has no label 9, but 1" in next(iter(data["not_compared"].values()))


@pytest.mark.slow
def test_a_model_of_another_organ_is_compared_with_that_organ(folders, tiny_bundle, tmp_path):
    card = dict(load_bundle(tiny_bundle).card) | {"labels": {"liver": 1}}
    liver = LoadedModel(save_bundle(load_bundle(tiny_bundle).network(), card, tmp_path / "liver"))
    volume = load_ct(folders / "ct" / "other.nii.gz")
    labels = np.zeros(volume.grid.shape, np.uint8)
    labels[:, 10:14, 20:30], labels[:, 20:40, 30:60] = 1, 2
    for patient in ("a", "b"):
        save_ct(volume, tmp_path / "data" / f"{patient}.nii.gz")
        save_mask(labels, volume, tmp_path / "data" / f"{patient}_mask.nii.gz")
    (tmp_path / "data" / "labels.json").write_text('{"pancreas": 1, "liver": 2}')
    found = segment(volume, liver, threshold=1e-6, postprocess=False).mask > 0
    data = evaluate(tmp_path / "data", liver, threshold=1e-6, postprocess=False)
    dice = 2 * (found & (labels == 2)).sum() / (found.sum() + (labels == 2).sum())
    assert data["patients"]["a"]["dice"] == pytest.approx(dice, abs=1e-4)
    with pytest.raises(PancreasSegError, match="name them alike"):
        evaluate(tmp_path / "data", liver, labels={"pancreas": ["pancreas"]})
    both = evaluate(
        tmp_path / "data", liver, labels={"belly": ["liver", "pancreas"]}, threshold=0.5
    )
    assert both["patients"].keys() == {"a", "b"}  # another name for what it finds, with more
    for mask in (tmp_path / "data").glob("*_mask.nii.gz"):
        save_mask((labels == 1).astype(np.uint8), volume, mask, overwrite=True)
    (tmp_path / "data" / "labels.json").write_text('{"pancreas": 1}')
    with pytest.raises(PancreasSegError, match="no class 'liver'; its classes are pancreas"):
        evaluate(tmp_path / "data", liver)


@pytest.mark.parametrize("name", ["a.png", "a_mask.png", "a.PNG", "a_pancreas.png"])
def test_a_picture_is_found_by_the_name_of_its_case(tmp_path, name):
    assert evaluation._find(GivenMasks(tmp_path), "a") is None
    (tmp_path / name).touch()
    assert evaluation._find(GivenMasks(tmp_path), "a") == tmp_path / name
    assert evaluation._find(GivenMasks(tmp_path), "b") is None


@pytest.mark.slow
def test_slices_are_compared_with_pictures(dataset, tiny_bundle, tmp_path, capsys):
    figures = tmp_path / "e.json"
    also = ["--also", str(dataset / "masks"), "-o", str(figures)]
    assert main(["evaluate", str(dataset), "--model", str(tiny_bundle), *also]) == 0
    assert "this model minus these, paired" in capsys.readouterr().out
    data = json.loads(figures.read_text())
    assert {row["dice"] for row in data["also"]["patients"].values()} == {1.0}
    assert data["also"]["ours_minus_theirs"]["dice"]["n"] == 6
    wrong = [*also[:2], "--label", "9"]
    assert main(["evaluate", str(dataset), "--model", str(tiny_bundle), *wrong]) == 0
    assert "none of them shows what --label asks for" in " ".join(capsys.readouterr().out.split())


def test_models_are_still_listed(capsys):
    assert main(["models"]) == 0
    assert "default (bundled)" in capsys.readouterr().out


@pytest.mark.slow
def test_operations_of_a_slice():
    def cost(**changes):
        return gflop_per_slice(
            build(Architecture(**{"filters": 2, "height": 32, "width": 32} | changes))
        )

    plain = cost()
    assert cost(height=64) == pytest.approx(2 * plain)
    assert plain > cost(attention=False)
    # A further channel of the input: 3 × 3 products and sums for each pixel and filter.
    assert cost(channels=4) - plain == pytest.approx(2 * 3 * 3 * 2 * 32 * 32 / 1e9)
