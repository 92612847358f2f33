"""DICOM structured reports: what they say, whose they are, and what other programs make of them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from dicom_series import PATIENT, body, write_series

from napari_pancreas_seg import cli
from napari_pancreas_seg.cohort.cases import TABLE, find_inputs, is_ours, plan
from napari_pancreas_seg.cohort.page import write_page
from napari_pancreas_seg.cohort.run import segment_cases
from napari_pancreas_seg.cohort.table import CohortTable
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.options import OutputOptions
from napari_pancreas_seg.io import load_ct, load_mask, report_path, save_mask
from napari_pancreas_seg.io.convert import convert
from napari_pancreas_seg.io.dicom.report import MEASURES, write_report
from napari_pancreas_seg.mask.measures import measure
from napari_pancreas_seg.volume import CTVolume


def gland(shape: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[1:5, 8:14, 5:20] = 1
    return mask


def written(folder: Path, mask: np.ndarray, volume: CTVolume, **more) -> tuple[Path, Path]:
    seg = save_mask(mask, volume, folder / "seg.dcm", **more)
    return seg, write_report(mask, volume, seg, report_path(seg))


def numbers(report: Path) -> list[dict[str, float]]:
    """Each group's numbers, as highdicom reads them: by concept, derivation and site."""
    content = hd.sr.srread(report).content
    found = []
    for group in content.get_volumetric_roi_measurement_groups():
        values = {}
        for one in group.get_measurements():
            derivation = None if one.derivation is None else one.derivation.meaning
            sites = [site.value.meaning for site in one.finding_sites]
            values[one.name.meaning, derivation, *sites] = one.value
        found.append(values)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("multiframe", [False, True])
def test_the_report_says_what_is_measured_and_refers_to_the_segmentation(tmp_path, multiframe):
    volume = load_ct(write_series(tmp_path / "ct", multiframe=multiframe).folder)
    mask = gland(volume.grid.shape)
    seg, report = written(tmp_path, mask, volume)
    expected = measure(mask, volume)
    (values,) = numbers(report)
    assert values["Volume", None] == pytest.approx(expected["volume_ml"], rel=1e-9)
    assert values["Attenuation Coefficient", "Mean"] == pytest.approx(expected["eroded_mean_hu"])
    assert values["Fat fraction", None] == pytest.approx(expected["fat_fraction"])
    assert values["Volume", None, "Head of pancreas"] == pytest.approx(expected["head_ml"])
    assert len(values) == sum(expected[name] is not None for name in MEASURES)

    content = hd.sr.srread(report).content
    (group,) = content.get_volumetric_roi_measurement_groups()
    segment = group.referenced_segment
    header = pydicom.dcmread(seg, stop_before_pixels=True)
    assert segment.referenced_sop_instance_uid == header.SOPInstanceUID
    assert group.finding_type.meaning == "Pancreas"
    first = volume.source.header.datasets[0]
    plain = pydicom.dcmread(report)
    for name in ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "StudyDate"):
        assert plain[name].value == first[name].value
    assert plain.SeriesInstanceUID not in (first.SeriesInstanceUID, header.SeriesInstanceUID)


def test_what_was_not_measured_is_left_out(tmp_path):
    series = write_series(tmp_path / "ct")
    volume = load_ct(series.folder)
    hidden = CTVolume(volume.hu.clip(0, 255), volume.grid, volume.source)
    mask = np.ones(volume.grid.shape, np.uint8)
    _, report = written(tmp_path, mask, hidden)
    (values,) = numbers(report)
    assert ("Fat fraction", None) not in values
    assert ("Volume", None) in values


@pytest.mark.slow
def test_a_mask_of_one_value_is_one_segment(tmp_path):
    volume = load_ct(write_series(tmp_path / "ct").folder)
    mask = gland(volume.grid.shape)
    seg, report = written(tmp_path, mask * 255, volume)
    (segment,) = pydicom.dcmread(seg).SegmentSequence
    assert segment.SegmentLabel == "Pancreas"
    np.testing.assert_array_equal(load_mask(seg)[0], mask)
    (values,) = numbers(report)
    assert values["Volume", None] == pytest.approx(measure(mask, volume)["volume_ml"])


@pytest.mark.slow
def test_each_segment_has_its_measures(tmp_path):
    volume = load_ct(write_series(tmp_path / "ct").folder)
    mask = gland(volume.grid.shape)
    mask[2, 9, 6:9] = 2
    card = {"labels": {"pancreas": 1, "pancreatic tumour": 2}, "name": "x", "version": "1"}
    _, report = written(tmp_path, mask, volume, card=card)
    first, second = numbers(report)
    assert first["Volume", None] == pytest.approx(measure(mask == 1, volume)["volume_ml"])
    assert second["Volume", None] == pytest.approx(measure(mask == 2, volume)["volume_ml"])
    assert ("Length", None) not in second


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is missing")
def test_dciodvfy_finds_no_error(tmp_path):
    volume = load_ct(write_series(tmp_path / "ct").folder)
    for path in written(tmp_path, gland(volume.grid.shape), volume):
        done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        assert not [line for line in said.splitlines() if line.startswith("Error")], said


def test_headers_that_break_the_standard_are_taken_over_as_they_are(tmp_path):
    def change(_: int, dataset: pydicom.Dataset) -> None:
        dataset.PatientName = "Müller^Jörg"
        dataset.SpecificCharacterSet = "ISO_IR 100"
        dataset.PatientSex = "W"

    volume = load_ct(write_series(tmp_path / "ct", change=change).folder)
    _, report = written(tmp_path, gland(volume.grid.shape), volume)
    plain = pydicom.dcmread(report)
    assert (plain.PatientName, plain.PatientSex) == ("Müller^Jörg", "W")


@pytest.mark.slow
def test_convert_writes_both_from_the_command_line(tmp_path):
    series = write_series(tmp_path / "ct", uids=False)
    volume = load_ct(series.folder)
    save_mask(gland(volume.grid.shape), volume, tmp_path / "m.nii.gz")
    run = ["convert", str(tmp_path / "m.nii.gz"), str(tmp_path / "seg.dcm"), "--sr"]
    assert cli.main(run) == 1  # no CT
    assert not (tmp_path / "seg.dcm").exists()
    assert cli.main([*run, "--ct", str(series.folder), "--mint-uids"]) == 0
    seg = pydicom.dcmread(tmp_path / "seg.dcm", stop_before_pixels=True)
    report = pydicom.dcmread(tmp_path / "seg_report.dcm")
    assert report.StudyInstanceUID == seg.StudyInstanceUID
    assert (tmp_path / "seg_report.dcm").read_bytes().count(PATIENT.encode()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("uids", [True, False])
def test_a_cohort_gets_its_reports_and_goes_on(uids, tmp_path, tiny_bundle):
    series = write_series(tmp_path / "ct", body((64, 60, 6)), uids=uids)
    out = tmp_path / "out"
    cases = plan(find_inputs([series.folder]), out, ".dcm")

    def run(**more):
        outputs = OutputOptions(report=True, resume=True, mint_uids=not uids, **more)
        (result,) = segment_cases(cases, str(tiny_bundle), outputs=outputs)
        return result

    first = run()
    assert first.error is None
    report = out / "ct_mask_report.dcm"
    assert report in first.files and report.exists()
    record = json.loads((out / "ct_mask.json").read_text())
    (values,) = numbers(report)
    assert values["Volume", None] == pytest.approx(record["measurements"]["volume_ml"])
    assert run().before
    volume = load_ct(series.folder)
    how = {"overwrite": True, "mint_uids": not uids}
    save_mask(gland(volume.grid.shape), volume, out / "ct_mask.dcm", **how)
    table = CohortTable(out / TABLE, cases)
    table.add(first)
    table.write()
    record["measurements"]["cuts"] = [0.1, 0.2]  # as the window may have moved them
    (out / "ct_mask.json").write_text(json.dumps(record))
    write_page(out, cases)
    (values,) = numbers(report)
    measured = json.loads((out / "ct_mask.json").read_text())["measurements"]
    assert measured["cuts"] == [0.1, 0.2]
    assert values["Volume", None, "Head of pancreas"] == pytest.approx(measured["head_ml"])
    assert values["Volume", None] == pytest.approx(
        measure(gland(volume.grid.shape), volume)["volume_ml"]
    )
    refers = pydicom.dcmread(report).CurrentRequestedProcedureEvidenceSequence
    named = {
        instance.ReferencedSOPInstanceUID
        for study in refers
        for each in study.ReferencedSeriesSequence
        for instance in each.ReferencedSOPSequence
    }
    assert pydicom.dcmread(out / "ct_mask.dcm").SOPInstanceUID in named
    assert run(overwrite=True).error is None
    report.unlink()
    assert "without the report" in run().error
    assert run(overwrite=True).error is None and report.exists()
    assert is_ours(report)
    (nifti,) = segment_cases(
        plan(find_inputs([series.folder]), tmp_path / "nii"),
        str(tiny_bundle),
        outputs=OutputOptions(report=True),
    )
    assert "its name must end in .dcm" in nifti.error


@pytest.mark.slow
def test_a_report_needs_a_segmentation_and_a_ct(tmp_path):
    with pytest.raises(PancreasSegError, match=r"its name must end in \.dcm"):
        report_path(tmp_path / "m.nii.gz")
    volume = load_ct(write_series(tmp_path / "ct").folder)
    mask = gland(volume.grid.shape)
    bare = CTVolume.of_grid(volume.grid, volume.source)
    seg = save_mask(mask, volume, tmp_path / "seg.dcm")
    with pytest.raises(PancreasSegError, match="values of the CT"):
        write_report(mask, bare, seg, report_path(seg))
    report = write_report(mask, volume, seg, report_path(seg))
    before = report.read_bytes()
    with pytest.raises(PancreasSegError, match="exists already"):
        write_report(mask, volume, seg, report)
    assert report.read_bytes() == before
    save_mask(mask, volume, tmp_path / "m.nii.gz")
    with pytest.raises(PancreasSegError, match="exists already"):
        convert(tmp_path / "m.nii.gz", tmp_path / "seg.dcm", ct=tmp_path / "ct", report=True)
