"""The quality page: what its cards say, and that it works in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from napari_pancreas_seg.cohort.cases import Case, find_cases
from napari_pancreas_seg.cohort.page import write_page
from napari_pancreas_seg.cohort.steps import CaseResult
from napari_pancreas_seg.cohort.strip import MOST_BYTES, draw_strip, strip_path
from napari_pancreas_seg.cohort.table import CohortTable
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference import saving
from napari_pancreas_seg.inference.result import describe_given
from napari_pancreas_seg.inference.saving import PROGRAM, mask_sha256, read_sidecar, write_sidecar
from napari_pancreas_seg.io import load_ct, load_mask, save_mask

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
CLASSES = {"labels": {"pancreas": 1, "tumour": 2}}
AFFINE = np.diag([-1.0, -1, 5, 1])


def write_case(folder: Path, name: str, *, expected: float | None = None, **more: Any) -> Case:
    """A CT, its mask and its sidecar."""
    hu = np.full((60, 50, 8), -1000, np.int16)
    hu[5:55, 5:45] = 50 + np.random.default_rng(0).integers(-9, 9, (50, 40, 8))
    mask = np.zeros(hu.shape, np.uint8)
    mask[20:30, 20:25, 2:6] = 1
    (folder / "out").mkdir(exist_ok=True)
    case = Case(folder / f"{name}.nii.gz", folder / "out" / f"{name}_mask.nii.gz", name)
    nib.save(nib.Nifti1Image(hu, AFFINE), case.source)
    nib.save(nib.Nifti1Image(mask, AFFINE), case.mask)
    record = {
        "program": {"name": PROGRAM},
        "measurements": {"volume_ml": 1.0, "slices": 4, "extent_mm": [20.0, 5.0, 10.0]},
        "quality": {"expected_dice": expected, "phase": "unknown", "noticed": []},
        "notes": [],
        "resume": {"mask_sha256": mask_sha256(case.mask)},
    }
    write_sidecar(case.sidecar, {**record, **more})
    return case


def write_table(cases: list[Case], *failed: str) -> Path:
    out = cases[0].mask.parent
    table = CohortTable(out / "cohort.csv", cases)
    for case in cases:
        table.add(CaseResult(case, volume_ml=1.0, slices=4, measurements={"volume_ml": 1.0}))
    for name in failed:
        table.add(CaseResult(Case(Path(name), out / f"{name}_mask.nii.gz", name), error="<b>no CT"))
    table.write()
    return out


def cards(page: Path) -> list[dict[str, Any]]:
    found = re.search(r'(?s)id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found is not None
    return json.loads(found[1])["cards"]


def test_a_picture_shows_slices_with_the_outline_and_is_small(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a")
    path = strip_path(case.mask)
    for mask in (load_mask(case.mask)[0], np.zeros((8, 50, 60), np.uint8)):
        draw_strip(load_ct(case.source), mask, path)
        assert path.stat().st_size <= MOST_BYTES
        pixels = np.asarray(Image.open(path)).astype(int)
        assert pixels.shape[0] == 150
        orange = (pixels[..., 0] - pixels[..., 2] > 100).sum()
        assert (orange > 100) == bool(mask.any())


def test_a_noisy_picture_is_small_too(tmp_path: Path) -> None:
    hu = np.random.default_rng(0).integers(-160, 240, (200, 200, 30)).astype(np.int16)
    nib.save(nib.Nifti1Image(hu, AFFINE), tmp_path / "ct.nii")
    volume = load_ct(tmp_path / "ct.nii", force=True)
    draw_strip(volume, np.zeros(volume.grid.shape, np.uint8), tmp_path / "a.jpg")
    assert (tmp_path / "a.jpg").stat().st_size <= 60_000


def test_every_case_has_a_card_and_the_page_asks_nothing_of_a_network(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a ü#1", expected=0.61, notes=["Few slices."])
    out = write_table([case], "broken.nii")
    page = write_page(out, [case])
    failed, done = cards(page)
    assert done["case"] == "a ü#1.nii.gz"
    assert done["values"]["expected_dice"] == 0.61
    assert done["notes"] == ["Few slices."]
    assert (out / "pictures" / "a ü#1_mask.jpg").is_file()
    assert done["picture"] == "pictures/a%20%C3%BC%231_mask.jpg"
    assert (failed["status"], failed["reason"], failed["picture"]) == ("failed", "<b>no CT", "")
    text = page.read_text(encoding="utf-8")
    assert "<b>no" not in text
    assert not re.search(r"https?:|src=\"|<link", text)


def test_without_the_cts_pictures_are_not_drawn(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a")
    out = write_table([case])
    assert cards(write_page(out))[0]["picture"] == ""


def test_a_mask_that_somebody_has_changed_is_measured_and_drawn_again(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a", expected=0.9)
    out = write_table([case])
    write_page(out, [case])
    mask = np.zeros((60, 50, 8), np.uint8)
    mask[20:40, 20:25, 2:6] = 1
    nib.save(nib.Nifti1Image(mask, AFFINE), case.mask)
    later = strip_path(case.mask).stat().st_mtime + 10
    os.utime(case.mask, (later, later))
    (card,) = cards(write_page(out, [case]))
    assert card["values"]["volume_ml"] == pytest.approx(2.0)
    assert card["corrected"]
    assert "expected_dice" not in card["values"]
    record = read_sidecar(case.sidecar)
    assert record is not None and record["measurements"]["voxels"] == 400
    assert "a.nii.gz,a_mask.nii.gz,,done,2," in (out / "cohort.csv").read_text()


def change(case: Case) -> None:
    """Give the mask twice its volume."""
    mask = np.zeros((60, 50, 8), np.uint8)
    mask[20:40, 20:25, 2:6] = 1
    nib.save(nib.Nifti1Image(mask, AFFINE), case.mask)


def test_a_changed_mask_is_known_by_its_content_whatever_its_time(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a")
    out = write_table([case])
    write_page(out, [case])
    change(case)
    os.utime(case.mask, (1e9, 1e9))  # as copying with times leaves it
    assert cards(write_page(out, [case]))[0]["values"]["volume_ml"] == pytest.approx(2.0)
    case.source.unlink()
    told: list[str] = []
    write_page(out, [case], told.append)  # known to be measured
    assert told == []


def test_a_mask_that_the_window_has_corrected_is_known_to_be_measured(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a")
    change(case)
    record = read_sidecar(case.sidecar) or {}
    corrected = {**record, "mask_sha256": mask_sha256(case.mask)}  # beside that of the run's mask
    write_sidecar(case.sidecar, corrected, overwrite=True)
    told: list[str] = []
    write_page(write_table([case]), [], told.append)
    assert told == []
    nib.save(nib.Nifti1Image(np.ones((60, 50, 8), np.uint8), AFFINE), case.mask)
    write_page(case.mask.parent, [], told.append)
    assert len(told) == 1


def test_a_changed_mask_whose_ct_is_gone_is_named(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a")
    out = write_table([case])
    told: list[str] = []
    write_page(out, [], told.append)
    assert told == []
    change(case)
    write_page(out, [], told.append)
    case.source.unlink()
    write_page(out, [case], told.append)
    assert ["its CT is not known" in line for line in told] == [True, True]


def test_a_mask_is_not_measured_on_another_ct_of_the_same_name(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a")
    volume, (mask, _) = load_ct(case.source), load_mask(case.mask)
    made = describe_given(volume, mask, "me") | {"resume": {"mask_sha256": mask_sha256(case.mask)}}
    write_sidecar(case.sidecar, made, overwrite=True)
    out = write_table([case])
    other = nib.load(case.source)
    venous = tmp_path / "venous.nii.gz"
    nib.save(nib.Nifti1Image(np.asanyarray(other.dataobj) + np.int16(60), AFFINE), venous)
    change(case)
    told: list[str] = []
    write_page(out, [replace(case, source=venous)], told.append)
    assert len(told) == 1 and "made from another CT" in told[0]
    assert read_sidecar(case.sidecar) == made
    write_page(out, [case], told.append)
    assert (read_sidecar(case.sidecar) or {})["measurements"]["volume_ml"] == pytest.approx(2.0)


def test_a_mask_that_a_run_has_kept_is_measured_too_and_keeps_the_reason(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a")
    out = write_table([case])
    kept = CaseResult(case, error="made otherwise", measurements={"volume_ml": 9.0})
    failed = CaseResult(case, error="not readable")  # and since, it has got a mask
    for result, status, reason in ((kept, "kept", "made otherwise"), (failed, "done", "")):
        table = CohortTable(out / "cohort.csv", [case])
        table.add(result)
        table.write()
        (card,) = cards(write_page(out, [case]))
        assert (card["status"], card["reason"]) == (status, reason)
        assert card["values"]["volume_ml"] == 1.0


@pytest.mark.parametrize("resume", [{}, {"resume": {"mask_sha256": "0" * 64}}])
def test_what_the_window_says_of_edits_stays_until_the_mask_is_changed(
    tmp_path: Path, resume: dict[str, Any]
) -> None:
    """Its export has no hash; that of a mask made by a run has the hash of the run's mask."""
    case = write_case(tmp_path, "a")
    volume, (mask, _) = load_ct(case.source), load_mask(case.mask)
    edits = {"voxels_added": 3, "voxels_removed": 0, "slices": 1}
    more = {"edits": edits, "quality": {"expected_dice": 0.7, "phase": "unknown"}}
    record = {**describe_given(volume, mask, "me"), **more, **resume}
    write_sidecar(case.sidecar, record, overwrite=True)
    out = write_table([case])
    (card,) = cards(write_page(out, [case]))
    assert (card["values"]["expected_dice"], card["corrected"]) == (0.7, False)
    assert (read_sidecar(case.sidecar) or {})["edits"] == edits
    strip_path(case.mask).unlink()
    save_mask(np.roll(mask, 9, axis=1), volume, case.mask, overwrite=True)  # of the same shape
    (card,) = cards(write_page(out, [case]))
    assert "expected_dice" not in card["values"] and card["corrected"]
    assert (read_sidecar(case.sidecar) or {})["edits"] is None


def test_a_change_of_label_alone_is_a_change(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a")
    volume, (mask, _) = load_ct(case.source), load_mask(case.mask)
    parts = {"pancreas": {"value": 1, "voxels": 200}, "tumour": {"value": 2, "voxels": 0}}
    record = {**describe_given(volume, mask, "me"), "labels": parts, "edits": {}}
    write_sidecar(case.sidecar, record, overwrite=True)
    mask[mask.any(axis=(1, 2)).argmax()] *= 2
    save_mask(mask, volume, case.mask, overwrite=True, card=CLASSES)
    write_page(write_table([case]), [case])
    again = read_sidecar(case.sidecar) or {}
    assert [part["voxels"] for part in again["labels"].values()] == [150, 50]
    assert again["edits"] is None


def test_masks_that_are_in_no_table_get_their_rows(tmp_path: Path) -> None:
    cases = [write_case(tmp_path, name) for name in "abc"]
    (tmp_path / "out" / "c_mask.json").unlink()  # a mask of somebody else
    page = write_page(tmp_path / "out", cases)  # all were exported from the window
    assert [card["case"] for card in cards(page)] == ["a.nii.gz", "b.nii.gz"]
    (tmp_path / "out" / "cohort.csv").unlink()
    write_table(cases[:1])
    page = write_page(tmp_path / "out", cases)
    assert sorted(card["case"] for card in cards(page)) == ["a.nii.gz", "b.nii.gz"]
    assert "b.nii.gz,b_mask.nii.gz,,done," in (tmp_path / "out" / "cohort.csv").read_text()


def test_a_mask_that_was_corrected_into_another_format_is_measured(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a", expected=0.9)
    out = write_table([case])
    mask = np.ones((8, 50, 60), np.uint8)
    save_mask(mask, load_ct(case.source), out / "a_mask.nrrd")
    os.utime(case.mask, (1, 1))
    cases = find_cases([[case.source]], out)
    (card,) = cards(write_page(out, cases))
    assert (card["mask"], card["corrected"]) == ("a_mask.nrrd", True)
    record = read_sidecar(case.sidecar)
    assert record is not None and record["measurements"]["voxels"] == mask.size
    table = (out / "cohort.csv").read_text()
    assert "a.nii.gz,a_mask.nrrd,,done,120," in table and "a_mask.nii.gz" not in table


def test_what_cannot_be_written_changes_neither_record_nor_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = write_case(tmp_path, "a")
    out = write_table([case])
    change(case)
    told: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(saving, "write_sidecar", Mock(side_effect=PancreasSegError("full.")))
        (card,) = cards(write_page(out, [case], told.append))
    assert told == ["a.nii.gz: not drawn or measured again: full."]
    assert card["values"]["volume_ml"] == 1 and not card["corrected"]
    (card,) = cards(write_page(out, [case], told.append))
    assert card["values"]["volume_ml"] == pytest.approx(2.0)


def test_another_page_is_left_alone_and_a_table_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(PancreasSegError, match="holds no cohort"):
        write_page(tmp_path)
    case = write_case(tmp_path, "a")
    out = write_table([case])
    (out / "index.html").write_text("mine")
    with pytest.raises(PancreasSegError, match="not a quality page"):
        write_page(out)
    assert (out / "index.html").read_text() == "mine"


DRIVE = """
<script>
const errors = [];
addEventListener("error", event => errors.push(event.message));
addEventListener("load", () => {
  const press = key => dispatchEvent(new KeyboardEvent("keydown", {key}));
  const set = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event("change")); };
  const names = () => order.map(card => card.case[0]).join("");
  const shown = document.querySelectorAll("article").length;
  const seen = {before: marksAsCsv(), first: names(), shown};
  press("l"); press("g"); press("j"); press("k");
  seen.here = here; seen.csv = marksAsCsv(); seen.count = $("count").textContent;
  set("sort", "volume_ml"); seen.volume = names();
  $("turn").click(); seen.turned = names(); $("turn").click();
  set("show", "look-again"); seen.again = names();
  set("show", ""); set("noticed", "Few slices: #."); seen.noticed = names(); set("noticed", "");
  set("column", "volume_ml"); set("from", "2"); seen.from = names(); set("from", "");
  set("phase", "arterial"); seen.phase = names();
  seen.pictures = [...document.images].map(image => image.complete && image.naturalWidth);
  seen.errors = errors;
  document.body.append(make("pre", JSON.stringify(seen), "seen"));
});
</script>
"""


@pytest.mark.slow
def test_in_a_browser_it_sorts_filters_and_keeps_marks(tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    cases = []
    for name, expected, ml in (("a", 0.9, 3.0), ("b", 0.3, 1.0), ("c", None, 2.0)):
        case = write_case(tmp_path, name, notes=[f"Few slices: {ml:g}."] if ml > 1 else [])
        record = read_sidecar(case.sidecar)
        assert record is not None
        record["measurements"]["volume_ml"] = ml
        record["quality"] |= {"expected_dice": expected, "phase": "arterial" if ml > 2 else ""}
        write_sidecar(case.sidecar, record, overwrite=True)
        cases.append(case)
    page = write_page(write_table(cases, "z.nii"), cases)
    page.write_text(page.read_text(encoding="utf-8") + DRIVE, encoding="utf-8")

    def visit() -> dict[str, Any]:
        done = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000",
             f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        found = re.search(r'<pre class="seen">(.*?)</pre>', done.stdout)
        assert found is not None, done.stderr[-2000:]
        return json.loads(found[1])

    seen = visit()
    assert seen["errors"] == []
    assert (seen["first"], seen["shown"]) == ("zcba", 4)  # worst first, the broken one above all
    assert seen["before"] == "mask,case,mark\n"
    assert "c_mask.nii.gz,c.nii.gz,good\n" in seen["csv"]
    assert "z.nii_mask.nii.gz,z.nii,look-again\n" in seen["csv"]
    assert seen["here"] == 2
    assert seen["count"] == "4 of 4 cases; 1 good, 1 to look at again"
    assert (seen["volume"], seen["turned"]) == ("bcaz", "acbz")
    assert (seen["again"], seen["noticed"], seen["from"], seen["phase"]) == ("z", "ca", "ca", "a")
    assert visit()["before"] == seen["csv"]
