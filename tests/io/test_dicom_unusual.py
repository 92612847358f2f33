"""Series as anonymisers, converters and exports leave them: read with a note, or named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_series import AXIAL, Series, body, save, write_series
from pydicom import config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import generate_uid

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io import load_ct, load_mask, save_mask
from napari_pancreas_seg.volume import CTVolume

Change = Callable[[int, Dataset], None]
HASHED = "05703841015643452503209109170649121759226008273168"


@pytest.fixture(autouse=True)
def _write_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in ("writing_validation_mode", "reading_validation_mode"):
        monkeypatch.setattr(config.settings, mode, config.IGNORE)


def same(volume: CTVolume, series: Series) -> bool:
    return np.array_equal(volume.to_source_order(volume.hu), series.hu) and np.allclose(
        volume.source.affine, series.affine, atol=1e-6
    )


def setting(only: int | None = None, **values: Any) -> Change:
    """Set elements of every slice, or of one; None deletes."""

    def change(k: int, dataset: Dataset) -> None:
        for keyword, value in values.items() if only in (None, k) else ():
            if keyword in dataset:
                delattr(dataset, keyword)  # the slices may share it
            if value is not None:
                setattr(dataset, keyword, value)

    return change


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({"SOPClassUID": HASHED}, "SOP class"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "secondary captures"),
        ({"RescaleType": "Houndsfield Unit"}, "unit of the values"),
        ({"RescaleType": "unspecified"}, "unit of the values"),
        ({"Modality": "", "SOPClassUID": HASHED}, "does not name CT"),
        ({"Modality": "OT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "does not name CT"),
        ({"SeriesDescription": "Abdomen mIP 10/2"}, "word MIP"),
        ({"SeriesDescription": "Abdomen CHIMIPRAX"}, None),
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, None),
        ({"RescaleType": "hu"}, None),
        ({"RescaleType": None}, None),
        ({"Modality": ""}, None),
    ],
)
def test_what_other_programs_read_is_read_with_a_note(
    values: dict[str, Any], note: str | None, tmp_path: Path
) -> None:
    series = write_series(tmp_path, change=setting(**values))
    volume = load_ct(tmp_path)
    assert same(volume, series)
    if note is None:
        assert volume.notes == ()
        return
    assert any(note in said for said in volume.notes)
    # A CT that is beyond doubt goes before it.
    plain = write_series(tmp_path, body((24, 20, 7), seed=2), names=lambda k: f"plain{k}")
    assert same(load_ct(tmp_path), plain)


@pytest.mark.parametrize("unit", ["MGML", "Z_EFF", "%", "ed"])
def test_other_quantities_are_no_hounsfield_units(unit: str, tmp_path: Path) -> None:
    write_series(tmp_path, change=setting(RescaleType=unit))
    with pytest.raises(PancreasSegError, match="not in Hounsfield units"):
        load_ct(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "MIP"]},
        {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "MIN IP"]},
        {"VolumeBasedCalculationTechnique": "MAX_IP"},
    ],
)
def test_projections_are_no_slices(values: dict[str, Any], tmp_path: Path) -> None:
    write_series(tmp_path, body((24, 20, 7)), names=lambda k: f"p{k}", change=setting(**values))
    with pytest.raises(PancreasSegError, match=r"a projection of several slices \(MIP or MinIP\)"):
        load_ct(tmp_path)
    series = write_series(tmp_path)
    volume = load_ct(tmp_path)
    assert same(volume, series) and "7 × a projection" in volume.notes[0]


def test_images_at_one_place_are_no_volume(tmp_path: Path) -> None:
    """As of bolus tracking, beside the CT."""

    def watch(k: int, dataset: Dataset) -> None:
        setting(ImagePositionPatient=[-10, -10, -280], AcquisitionTime=f"12000{k}")(k, dataset)

    series = write_series(tmp_path)
    bolus = write_series(tmp_path, body((24, 20, 8), seed=3), names=lambda k: f"b{k}", change=watch)
    volume = load_ct(tmp_path)
    assert same(volume, series) and "8 × a CT slice of another" in volume.notes[0]
    for path in series.files:
        path.unlink()
    with pytest.raises(PancreasSegError, match="different slices at the same place"):
        load_ct(bolus.folder)


def test_a_series_that_is_split_over_folders(tmp_path: Path) -> None:
    series = write_series(tmp_path)
    below = tmp_path / "below"
    write_series(below / "other")
    assert load_ct(tmp_path).notes == ()
    for path in series.files[3:]:
        path.rename(below / path.name)
    volume = load_ct(tmp_path)
    assert volume.hu.shape[0] == 3 and "Folders below hold more files" in volume.notes[0]


def test_a_report_or_a_scout_lies_above_the_series(tmp_path: Path) -> None:
    series = write_series(tmp_path / "S3")

    def report(k: int, dataset: Dataset) -> None:
        dataset.SOPClassUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.88.67", "SR"
        for keyword in ("PixelData", "Rows", "Columns", "ImagePositionPatient", "PixelSpacing"):
            delattr(dataset, keyword)

    write_series(tmp_path, body((24, 20, 1)), names=lambda k: "dose.dcm", change=report)
    volume = load_ct(tmp_path)
    assert same(volume, series)
    assert "1 × SR and not CT" in volume.notes[0]
    save_mask(volume.hu > 0, volume, tmp_path / "seg.dcm")  # one object of six frames
    assert "1 × SEG and not CT" in load_ct(tmp_path).notes[0]
    write_series(tmp_path, body((30, 40, 1)), names=lambda k: "scout.dcm")
    assert same(load_ct(tmp_path), series)


TWO: dict[str, tuple[Any, str]] = {
    "AcquisitionNumber": (2, "acquisition 2"),
    "ConvolutionKernel": ("B70f", "kernel B70f"),
    "ImageType": (["DERIVED", "SECONDARY", "MPR"], "image type DERIVED"),
    "SliceThickness": ("6.5", r"thickness \(mm\) 6.5"),
    "SeriesDescription": ("DOE^JANE thin", "description"),
}


@pytest.mark.slow
@pytest.mark.parametrize("keyword", TWO)
@pytest.mark.parametrize("between", [False, True])
def test_two_reconstructions_in_one_series(keyword: str, between: bool, tmp_path: Path) -> None:
    """At the same places, or at others: never is a slice missing."""
    value, said = TWO[keyword]
    ids = {"SeriesInstanceUID": generate_uid(), "StudyInstanceUID": generate_uid()}
    one = write_series(tmp_path, body((24, 20, 12)), names=lambda k: f"a{k}", change=setting(**ids))
    affine = AXIAL.copy()
    if between:
        affine[:3, 2] *= 2.2
        affine[2, 3] += 1.1
    two = write_series(
        tmp_path,
        body((24, 20, 5 if between else 12), seed=1),
        affine,
        names=lambda k: f"b{k}",
        change=setting(**ids, **{keyword: value}),
    )
    said = said.replace("description", "description|thickness")
    with pytest.raises(PancreasSegError, match=f"holds 2 CT volumes.*({said})") as refused:
        load_ct(tmp_path)
    assert "DOE" not in str(refused.value)
    found = [load_ct(tmp_path, series=f"#{n}") for n in (1, 2)]
    assert sorted(same(volume, two) for volume in found) == [False, True]
    assert sorted(same(volume, one) for volume in found) == [False, True]
    assert same(load_ct(two.files[1]), two)


def test_two_reconstructions_that_only_their_order_tells_apart(tmp_path: Path) -> None:
    ids = {"SeriesInstanceUID": generate_uid(), "StudyInstanceUID": generate_uid()}

    def numbered(first: int) -> Change:
        def change(k: int, dataset: Dataset) -> None:
            setting(**ids, InstanceNumber=first + k, SliceThickness="3")(k, dataset)

        return change

    one = write_series(tmp_path, body((24, 20, 9)), names=lambda k: f"a{k}", change=numbered(1))
    affine = AXIAL.copy()
    affine[:3, 2] *= 2.2
    affine[2, 3] += 1.1
    two = write_series(
        tmp_path, body((24, 20, 5)), affine, names=lambda k: f"b{k}", change=numbered(10)
    )
    with pytest.raises(PancreasSegError, match=r"holds 2 CT volumes.*part 1.*part 2"):
        load_ct(tmp_path)
    assert same(load_ct(tmp_path, series="#1"), one)
    assert same(load_ct(tmp_path, series="#2"), two)


def test_two_blocks_of_one_series_lack_the_slice_between_them(tmp_path: Path) -> None:
    def blocks(k: int, dataset: Dataset) -> None:
        dataset.AcquisitionNumber = 1 + (k > 5)

    series = write_series(tmp_path, body((24, 20, 12)), change=blocks)
    volume = load_ct(tmp_path)
    assert same(volume, series) and volume.notes == ()
    series.files[5].unlink()
    with pytest.raises(PancreasSegError, match="1 slice is missing"):
        load_ct(tmp_path)


def test_a_series_uid_for_each_slice(tmp_path: Path) -> None:
    def own(k: int, dataset: Dataset) -> None:
        for keyword in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
            setattr(dataset, keyword, generate_uid())

    series = write_series(tmp_path, change=own)
    for path in (tmp_path, series.files[2]):
        volume = load_ct(path)
        assert same(volume, series)
        assert "series UID of its own" in volume.notes[0]
    with pytest.raises(PancreasSegError, match="UID"):
        save_mask(volume.hu > 0, volume, tmp_path / "out" / "m.dcm")
    series.files[3].unlink()
    with pytest.raises(PancreasSegError, match="5 single CT slices"):
        load_ct(tmp_path)


@pytest.mark.parametrize("where", [2, 5])
def test_one_slice_of_another_matrix(where: int, tmp_path: Path) -> None:
    def smaller(k: int, dataset: Dataset) -> None:
        # For every slice: the slices of a series share their elements here.
        dataset.Columns, dataset.Rows = (12, 10) if k == where else (24, 20)
        if k == where:
            dataset.PixelData = dataset.PixelData[:240]

    series = write_series(tmp_path, change=smaller)
    if where == 5:  # nothing is missing between the others
        volume = load_ct(tmp_path)
        assert volume.hu.shape[0] == 5
        assert "1 × a CT slice of another size" in volume.notes[0]
        return
    name = series.files[where].name
    with pytest.raises(PancreasSegError, match=f"'{name}'.* 12×10 pixels instead of 24×20"):
        load_ct(tmp_path)


@pytest.mark.slow
def test_one_slice_of_another_phase(tmp_path: Path) -> None:
    """In the place of a slice, beside it, or from another series."""
    inside = write_series(
        tmp_path / "in", body((24, 20, 12)), change=setting(4, AcquisitionNumber=2)
    )
    volume = load_ct(tmp_path / "in")
    assert same(volume, inside)
    assert "no. 5 differ" in volume.notes[0] and "acquisition" in volume.notes[0]

    ids = {"SeriesInstanceUID": generate_uid(), "StudyInstanceUID": generate_uid()}
    beside = write_series(tmp_path / "beside", body((24, 20, 12)), change=setting(**ids))
    other = write_series(
        tmp_path / "other",
        body((24, 20, 12), seed=1),
        change=setting(**ids, AcquisitionNumber=2),
    )
    other.files[4].rename(tmp_path / "beside" / "extra")
    volume = load_ct(tmp_path / "beside")
    assert same(volume, beside)
    assert "1 × a CT slice of another size, orientation or phase" in volume.notes[0]

    write_series(tmp_path / "third", body((24, 20, 12)))
    (tmp_path / "beside" / "extra").rename(tmp_path / "third" / "extra")
    stolen = sorted((tmp_path / "third").glob("IM*"))
    heights = [float(pydicom.dcmread(p).ImagePositionPatient[2]) for p in stolen]
    stolen[int(np.argsort(heights)[4])].unlink()
    with pytest.raises(PancreasSegError, match=r"'extra'.*of another phase"):
        load_ct(tmp_path / "third")


@pytest.mark.parametrize("missing", [("RescaleSlope", "RescaleIntercept"), ("RescaleIntercept",)])
@pytest.mark.parametrize("value", [None, ""])
def test_a_slice_without_rescale_tags_gets_those_of_the_others(
    missing: tuple[str, ...], value: str | None, tmp_path: Path
) -> None:
    series = write_series(tmp_path, change=setting(2, **dict.fromkeys(missing, value)))
    volume = load_ct(tmp_path)
    assert same(volume, series)
    # The sidecar keeps the note: no name of a file, which may be the patient's.
    assert "no. 3 of 6" in volume.notes[0] and "IM0" not in volume.notes[0]
    assert "slope 1, intercept -1024" in volume.notes[0]


def test_rescale_tags_that_cannot_be_right_are_refused(tmp_path: Path) -> None:
    lost = write_series(tmp_path / "lost", change=setting(2, RescaleIntercept=0))
    with pytest.raises(PancreasSegError, match=f"'{lost.files[2].name}'.*far from its neighbours"):
        load_ct(tmp_path / "lost")

    def differ(k: int, dataset: Dataset) -> None:
        dataset.RescaleIntercept = -1024 - k
        if k == 2:
            del dataset.RescaleIntercept

    gone = write_series(tmp_path / "gone", change=differ)
    with pytest.raises(PancreasSegError, match=f"'{gone.files[2].name}'"):
        load_ct(tmp_path / "gone")
    none = write_series(
        tmp_path / "none", intercept=0.0, signed=True, change=setting(RescaleIntercept=None)
    )
    volume = load_ct(tmp_path / "none")
    assert same(volume, none) and volume.notes == ()


def test_a_dicom_seg_of_others(tmp_path: Path) -> None:
    """Without a preamble, a frame of reference, or what else nothing here depends on."""
    ct = load_ct(write_series(tmp_path / "ct").folder)
    mask = np.zeros(ct.grid.shape, np.uint8)
    mask[1:3, 4:9, 3:7] = 1
    path = save_mask(mask, ct, tmp_path / "ok.dcm")

    def check(name: str) -> None:
        found, on = load_mask(tmp_path / name)
        np.testing.assert_array_equal(found, mask)
        assert on.grid.same_as(ct.grid)

    (tmp_path / "bare.dcm").write_bytes(path.read_bytes()[132:])
    check("bare.dcm")
    for keyword in ("FrameOfReferenceUID", "StudyInstanceUID", "PatientID", "SamplesPerPixel"):
        dataset = pydicom.dcmread(path)
        delattr(dataset, keyword)
        save(dataset, tmp_path / "less.dcm")
        check("less.dcm")
    dataset = pydicom.dcmread(path)
    for keyword in ("SegmentLabel", "SegmentedPropertyTypeCodeSequence", "SegmentAlgorithmType"):
        delattr(dataset.SegmentSequence[0], keyword)
    save(dataset, tmp_path / "less.dcm")
    check("less.dcm")
    dataset.file_meta = FileMetaDataset()
    pydicom.dcmwrite(
        tmp_path / "no_meta.dcm",
        dataset,
        enforce_file_format=False,
        implicit_vr=False,
        little_endian=True,
    )
    check("no_meta.dcm")
