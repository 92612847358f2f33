"""DICOM in: what is found, which series is taken, what is refused, and that values are right."""

from __future__ import annotations

import io
import logging
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_series import (
    AXIAL,
    DEFLATED,
    JPEG_2000,
    JPEG_BASELINE,
    JPEG_EXTENDED,
    JPEG_LS_NEAR,
    LOSSLESS,
    PATIENT,
    Series,
    body,
    save,
    write_series,
)
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from napari_pancreas_seg.cohort.cases import find_inputs, plan
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io import (
    is_dicom,
    load_ct,
    save_mask,
    sniff,
    stem,
)
from napari_pancreas_seg.io.dicom.read import named_after
from napari_pancreas_seg.io.dicom.slices import DicomHeader
from napari_pancreas_seg.volume import CTVolume


def same(volume: CTVolume, series: Series) -> bool:
    """Whether a loaded CT has a series' values, in the source's order, and its affine."""
    found = volume.to_source_order(volume.hu)
    return np.array_equal(found, series.hu) and np.allclose(
        volume.source.affine, series.affine, atol=1e-6
    )


def edit(path: Path, **values: Any) -> None:
    """Change elements of a file; None removes one."""
    dataset = pydicom.dcmread(path)
    for keyword, value in values.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)


# -- finding


def test_a_folder_a_file_and_a_zip_give_the_same_ct(tmp_path: Path) -> None:
    series = write_series(tmp_path / "ct")
    (tmp_path / "ct" / "README").write_text("not DICOM")
    (tmp_path / "ct" / "DICOMDIR").write_bytes(b"\0" * 128 + b"no mark")
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "ct")
    for path in (tmp_path / "ct", series.files[3], Path(archive)):
        volume = load_ct(path)
        assert same(volume, series)
        assert volume.source.path == path
        assert volume.source.format == "dicom"
        assert volume.hu.dtype == np.int16
        assert volume.notes == ()


def test_names_come_from_the_folder_or_the_file(tmp_path: Path) -> None:
    series = write_series(tmp_path / "1.2.840.7", names=lambda k: f"CT.1.2.3.{100 + k}")
    assert load_ct(tmp_path / "1.2.840.7").name == "1.2.840.7"
    assert load_ct(series.files[0]).name == "1.2.840.7"  # which holds this CT alone
    assert named_after(series.files[0]) == tmp_path / "1.2.840.7"
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "1.2.840.7")
    assert load_ct(Path(archive)).name == "packed"
    (series.folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert load_ct(series.folder / "DICOMDIR").name == "1.2.840.7"
    several = write_series(series.folder, series_number=4, names=lambda k: f"CT.4.{k}")
    assert load_ct(several.files[0]).name == "CT.4.0"  # the folder holds another CT, too
    assert named_after(several.files[0]) == several.files[0]
    whole = write_series(tmp_path / "whole", multiframe=True)
    assert load_ct(whole.files[0]).name == stem(whole.files[0])
    assert stem(Path("x/packed.zip")) == "packed"


def test_the_header_goes_with_the_slices(tmp_path: Path) -> None:
    def number(k: int, dataset: Dataset) -> None:
        dataset.ImageComments = str(k)
        dataset.add_new((0x0009, 0x0010), "LO", "PRIVATE")

    write_series(tmp_path, change=number)
    header = load_ct(tmp_path).source.header
    assert isinstance(header, DicomHeader)
    assert [dataset.ImageComments for dataset in header.datasets] == list("012345")
    assert [pydicom.dcmread(file).ImageComments for file in header.files] == list("012345")
    assert not header.multiframe and header.frames == ()
    assert all("PixelData" not in d and (9, 0x10) not in d for d in header.datasets)


def test_a_medium_with_folders_below_is_found(tmp_path: Path) -> None:
    series = write_series(tmp_path / "PATIENT" / "STUDY" / "SERIES")
    (tmp_path / "AUTORUN.INF").write_text("[autorun]")
    assert is_dicom(tmp_path)
    assert not is_dicom(tmp_path, below=False)
    assert same(load_ct(tmp_path), series)
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    assert same(load_ct(tmp_path / "DICOMDIR"), series)


def test_a_folder_without_dicom_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    assert not is_dicom(tmp_path)
    with pytest.raises(PancreasSegError, match="without DICOM files"):
        load_ct(tmp_path)


@pytest.mark.parametrize(("slices", "others", "sign"), [(32, 32, ""), (3, 300, "-")])
def test_previews_beside_the_slices_hide_no_series(
    slices: int, others: int, sign: str, tmp_path: Path
) -> None:
    series = write_series(tmp_path / "ct", body((24, 20, slices)), names="{:04}.dcm".format)
    for k in range(others):
        (tmp_path / "ct" / f"{sign}{k:04}.bmp").write_bytes(b"BM")
    assert same(load_ct(tmp_path / "ct"), series)
    assert is_dicom(Path(shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path / "ct")))


def test_a_file_without_preamble_is_read(tmp_path: Path) -> None:
    series = write_series(tmp_path, transfer_syntax="1.2.840.10008.1.2")
    for path in series.files:
        dataset = pydicom.dcmread(path)
        del dataset.file_meta
        dataset.preamble = None
        dataset.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
        assert path.read_bytes()[128:132] != b"DICM"
    assert same(load_ct(tmp_path), series)


def test_a_ct_is_neither_a_mask_nor_a_map(tmp_path: Path) -> None:
    series = write_series(tmp_path)
    for path in (tmp_path, series.files[0]):
        assert sniff(path).kind == "CT"


def test_a_ct_is_never_overwritten_by_its_mask(tmp_path: Path) -> None:
    series = write_series(tmp_path, names=lambda k: f"{k}.dcm")
    volume = load_ct(tmp_path)
    before = series.files[2].read_bytes()
    with pytest.raises(PancreasSegError, match="CT itself"):
        save_mask(np.zeros(volume.hu.shape, np.uint8), volume, series.files[2], overwrite=True)
    assert series.files[2].read_bytes() == before


# -- zips


def test_an_unsafe_zip_is_refused_or_harmless(tmp_path: Path) -> None:
    series = write_series(tmp_path / "ct")
    path = tmp_path / "slip.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, file in enumerate(series.files):
            archive.write(file, f"../../../outside/{number}")
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    before = sorted(tmp_path.rglob("*"))
    assert same(load_ct(path), series)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_bomb_is_refused_by_the_size_it_declares(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("IM1", b"\0" * 128 + b"DICM" + b"\0" * (1 << 20))
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\1\2")
    content[directory + 24 : directory + 28] = (0xFFFFFFF0).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(PancreasSegError, match="declares 4 GB"):
        load_ct(path)


@pytest.mark.parametrize("damage", ["cut", "flipped", "none inside"])
def test_a_damaged_zip_is_refused(tmp_path: Path, damage: str) -> None:
    series = write_series(tmp_path / "ct")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        if damage == "none inside":
            archive.writestr("a.txt", "hello")
        for file in series.files if damage != "none inside" else ():
            archive.write(file, file.name)
    content = bytearray(buffer.getvalue())
    if damage == "cut":
        del content[len(content) // 2 :]
    if damage == "flipped":
        content[500] ^= 0x55
    path = tmp_path / "damaged.zip"
    path.write_bytes(content)
    with pytest.raises(PancreasSegError):
        load_ct(path)


# -- values


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("multiframe", [False, True])
@pytest.mark.parametrize("transfer_syntax", LOSSLESS)
def test_every_lossless_transfer_syntax_gives_every_value(
    tmp_path: Path, transfer_syntax: str, multiframe: bool, signed: bool
) -> None:
    series = write_series(
        tmp_path,
        transfer_syntax=transfer_syntax,
        multiframe=multiframe,
        signed=signed,
        intercept=0 if signed else -1024,
    )
    volume = load_ct(tmp_path)
    assert same(volume, series)
    header = volume.source.header
    assert header.multiframe == multiframe
    if multiframe:
        frames = header.datasets[0].PerFrameFunctionalGroupsSequence
        content = [frames[n - 1].FrameContentSequence[0] for n in header.frames]
        assert [item.InStackPositionNumber for item in content] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("transfer_syntax", "bits", "slope", "off"),
    [
        (JPEG_BASELINE, 8, 16.0, 90),
        (JPEG_EXTENDED, 12, 1.0, 60),
        (JPEG_LS_NEAR, 16, 1.0, 2),
        (JPEG_2000, 16, 1.0, 60),
    ],
)
def test_lossy_transfer_syntaxes_come_close(
    tmp_path: Path, transfer_syntax: str, bits: int, slope: float, off: int
) -> None:
    series = write_series(tmp_path, transfer_syntax=transfer_syntax, bits_stored=bits, slope=slope)
    volume = load_ct(tmp_path)
    found = volume.to_source_order(volume.hu).astype(float)
    assert np.abs(found - series.hu).max() <= off


def test_an_unknown_transfer_syntax_is_named(tmp_path: Path) -> None:
    write_series(tmp_path)
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        old, new = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.77"
        path.write_bytes(content.replace(old, new, 1))
    with pytest.raises(PancreasSegError, match="transfer syntax"):
        load_ct(tmp_path)


def test_slope_and_intercept_may_differ_from_slice_to_slice(tmp_path: Path) -> None:
    hu = body((24, 20, 6)) // 2 * 2
    slopes, intercepts = [1, 2, 1, 2, 1, 2], [-1024, -1024, -2000, -2000, -1024, -1100]
    series = write_series(tmp_path, hu, slope=slopes, intercept=intercepts)
    volume = load_ct(tmp_path)
    assert same(volume, series)
    assert volume.hu.dtype == np.int16


@pytest.mark.parametrize("multiframe", [False, True])
def test_fractions_of_hounsfield_units_are_kept(tmp_path: Path, multiframe: bool) -> None:
    hu = body((24, 20, 6)).astype(np.float64)
    hu[:, :, 3] = np.rint(hu[:, :, 3] * 4) / 4 + 0.25
    slopes = [1, 1, 1, 0.25, 1, 1]
    series = write_series(tmp_path, hu, slope=slopes, multiframe=multiframe)
    volume = load_ct(tmp_path)
    assert volume.hu.dtype == np.float32
    assert same(volume, series)


def test_padding_becomes_air(tmp_path: Path) -> None:
    hu = body((24, 20, 6))
    hu[:3] = -2000

    def pad(k: int, dataset: Dataset) -> None:
        dataset.add_new("PixelPaddingValue", "US", 63536)  # -2000, as an unsigned number

    write_series(tmp_path, hu, signed=True, intercept=0, change=pad)
    volume = load_ct(tmp_path)
    assert (volume.to_source_order(volume.hu)[:3] == -1024).all()
    assert volume.notes == ()


def test_a_padding_value_that_tissue_has_is_doubted(tmp_path: Path) -> None:
    def pad(k: int, dataset: Dataset) -> None:
        dataset.PixelPaddingValue = 1024 + 50

    series = write_series(tmp_path, change=pad)
    volume = load_ct(tmp_path)
    assert same(volume, series)
    assert "50 HU" in volume.notes[0]


def test_a_damaged_file_beside_the_series_is_named(tmp_path: Path) -> None:
    series = write_series(tmp_path)
    assert load_ct(tmp_path).notes == ()
    whole = series.files[0].read_bytes()
    (tmp_path / "broken.dcm").write_bytes(whole[:132] + b"\xff" * 300)
    volume = load_ct(tmp_path)
    assert same(volume, series)
    assert "1 DICOM file beside this CT cannot be read" in volume.notes[0]


def test_an_overlay_in_unused_bits_is_dropped(tmp_path: Path) -> None:
    def overlay(k: int, dataset: Dataset) -> None:
        stored = np.frombuffer(dataset.PixelData, "<u2") | 0x8000
        dataset.PixelData = stored.tobytes()

    series = write_series(tmp_path, bits_stored=12, change=overlay)
    assert same(load_ct(tmp_path), series)


def test_inverted_display_does_not_invert_values(tmp_path: Path) -> None:
    def invert(k: int, dataset: Dataset) -> None:
        dataset.PhotometricInterpretation = "MONOCHROME1"

    series = write_series(tmp_path, change=invert)
    volume = load_ct(tmp_path)
    assert same(volume, series)
    assert "MONOCHROME1" in volume.notes[0]


# -- which series


@pytest.mark.slow
def test_several_series_are_listed_and_one_can_be_chosen(tmp_path: Path) -> None:
    one = write_series(tmp_path, series_number=2, names=lambda k: f"a{k}")
    hu = body((24, 20, 7), seed=1)
    two = write_series(tmp_path, hu, series_number=5, names=lambda k: f"b{k}")
    with pytest.raises(PancreasSegError, match="holds 2 CT volumes") as refused:
        load_ct(tmp_path)
    sentence = str(refused.value)
    assert "2: CT, 24×20×6, 0.80×0.80×2.50 mm" in sentence
    assert "5: CT, 24×20×7, 0.80×0.80×2.50 mm" in sentence
    assert PATIENT not in sentence
    uid = pydicom.dcmread(two.files[0]).SeriesInstanceUID
    for asked in (5, "5", uid, "#2"):
        assert same(load_ct(tmp_path, series=asked), two)
    assert same(load_ct(tmp_path, series="1"), one)  # no series has that number: the first
    assert same(load_ct(two.files[0]), two)
    with pytest.raises(PancreasSegError, match="holds no series '9'"):
        load_ct(tmp_path, series="9")


def test_series_belong_to_dicom_alone(ct_file: Path) -> None:
    with pytest.raises(PancreasSegError, match="not DICOM"):
        load_ct(ct_file, series=1)


def test_what_is_no_ct_volume_is_set_aside_with_a_note(tmp_path: Path) -> None:
    series = write_series(tmp_path)
    uid = pydicom.dcmread(series.files[0]).SeriesInstanceUID

    def localizer(k: int, dataset: Dataset) -> None:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        dataset.SeriesInstanceUID = uid

    write_series(tmp_path, body((30, 40, 1)), names=lambda k: "scout", change=localizer)
    write_series(tmp_path, modality="PT", names=lambda k: f"pet{k}")
    volume = load_ct(tmp_path)
    assert same(volume, series)
    assert len(volume.notes) == 1
    assert "1 × a localizer" in volume.notes[0] and "6 × PT and not CT" in volume.notes[0]
    with pytest.raises(PancreasSegError, match="localizer"):
        load_ct(tmp_path / "scout")
    with pytest.raises(PancreasSegError, match="PT and not CT"):
        load_ct(tmp_path / "pet0")


@pytest.mark.parametrize("modality", ["MR", "PT", "SEG", "RTSTRUCT", ""])
def test_other_modalities_are_refused_in_a_sentence(tmp_path: Path, modality: str) -> None:
    def plain(k: int, dataset: Dataset) -> None:
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"

    write_series(tmp_path, modality=modality, change=plain)
    with pytest.raises(PancreasSegError, match="not CT"):
        load_ct(tmp_path)


def test_a_screenshot_is_refused(tmp_path: Path) -> None:
    def screenshot(k: int, dataset: Dataset) -> None:
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        del dataset.ImagePositionPatient

    write_series(tmp_path, change=screenshot)
    with pytest.raises(PancreasSegError, match="secondary capture"):
        load_ct(tmp_path)


def test_maps_of_spectral_ct_are_refused(tmp_path: Path) -> None:
    def iodine(k: int, dataset: Dataset) -> None:
        dataset.RescaleType = "MGML"

    write_series(tmp_path, change=iodine)
    with pytest.raises(PancreasSegError, match="not in Hounsfield units"):
        load_ct(tmp_path)


@pytest.mark.parametrize("mark", ["AcquisitionNumber", "ConvolutionKernel"])
def test_phases_at_the_same_places_are_told_apart(tmp_path: Path, mark: str) -> None:
    uid = generate_uid()

    def phase(value: str) -> Callable[[int, Dataset], None]:
        def change(k: int, dataset: Dataset) -> None:
            dataset.SeriesInstanceUID = uid
            setattr(dataset, mark, value)

        return change

    write_series(tmp_path, names=lambda k: f"a{k}", change=phase("1"))
    hu = body((24, 20, 6), seed=3)
    second = write_series(tmp_path, hu, names=lambda k: f"b{k}", change=phase("2"))
    with pytest.raises(PancreasSegError, match=r"#1: CT, .*; #2: CT"):
        load_ct(tmp_path)
    assert same(load_ct(tmp_path, series="#2"), second)
    assert same(load_ct(second.files[0]), second)


def test_series_without_uids_are_kept_apart(tmp_path: Path) -> None:
    one = write_series(tmp_path, uids=False, names=lambda k: f"a{k}")
    assert same(load_ct(tmp_path), one)
    other = write_series(tmp_path, body((24, 20, 6), 1), uids=False, names=lambda k: f"b{k}")
    with pytest.raises(PancreasSegError, match="holds 2 CT volumes"):
        load_ct(tmp_path)
    assert same(load_ct(other.files[2]), other)


# -- cases


def test_a_series_is_one_case_of_a_folder(tmp_path: Path, ct_file: Path) -> None:
    cohort = tmp_path / "cohort"
    write_series(cohort / "p1.a")
    write_series(cohort / "p2" / "study")
    shutil.copy(ct_file, cohort / "c.nii.gz")
    (cohort / "notes").mkdir()
    (cohort / "notes" / "a.txt").write_text("hello")
    shutil.make_archive(str(cohort / "z"), "zip", cohort / "p2")
    with zipfile.ZipFile(cohort / "model.zip", "w") as archive:
        archive.writestr("card.json", "{}")
    names = ["c.nii.gz", "p1.a", "p2", "z.zip"]
    assert [path.name for path in find_inputs([cohort])] == names
    assert list(find_inputs([cohort / "p1.a"])) == [cohort / "p1.a"]
    masks = [case.mask.name for case in plan(find_inputs([cohort]), tmp_path / "out")]
    assert masks == [f"{name}_mask.nii.gz" for name in ("c", "p1.a", "p2", "z")]


# -- real data, patient data


def test_nothing_from_headers_is_logged_or_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def odd(k: int, dataset: Dataset) -> None:
        dataset.PhotometricInterpretation = "MONOCHROME1"  # for a note

    # Not a time: pydicom's remark on it would quote it.
    for path in write_series(tmp_path, change=odd).files:
        path.write_bytes(path.read_bytes().replace(b"030405", PATIENT[:6].encode()))
    with caplog.at_level(logging.DEBUG):
        volume = load_ct(tmp_path)
    assert volume.notes
    assert "DOE" not in caplog.text + "".join(volume.notes)


def test_a_damaged_modality_is_not_quoted(tmp_path: Path) -> None:
    def damage(k: int, dataset: Dataset) -> None:
        dataset["Modality"]._value = f"CT {PATIENT}"
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"

    write_series(tmp_path, change=damage)
    with pytest.raises(PancreasSegError, match="unnamed modality") as refused:
        load_ct(tmp_path)
    assert "DOE" not in str(refused.value)


@pytest.mark.slow
def test_what_an_anonymiser_left_is_read(shared: Path) -> None:
    import SimpleITK as sitk

    folder = shared / "ct" / "dicom"
    volume = load_ct(folder)
    assert volume.notes == () and volume.hu.dtype == np.int16
    assert volume.spacing == (2.0, 0.9765625, 0.9765625)
    files = volume.source.header.files
    image = sitk.ReadImage([str(path) for path in files])
    stored = volume.to_source_order(volume.hu)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), stored)
    for k in (0, 19):
        lps = image.TransformIndexToPhysicalPoint((0, 0, k))
        np.testing.assert_allclose(
            volume.source.affine @ [0, 0, k, 1], [-lps[0], -lps[1], lps[2], 1], atol=1e-3
        )


def test_deflated_data_do_not_grow_without_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_pancreas_seg.io.dicom.files._SMALLEST_LIMIT", 1000)
    monkeypatch.setattr("napari_pancreas_seg.io.dicom.files.LARGEST_RATIO", 1)
    series = write_series(tmp_path, transfer_syntax=DEFLATED)
    with pytest.raises(PancreasSegError):
        load_ct(series.files[0])


def test_saved_slices_are_sane(tmp_path: Path) -> None:
    """The generator's own check: a slice that is edited and saved is still read."""
    series = write_series(tmp_path, affine=AXIAL)
    dataset = pydicom.dcmread(series.files[0])
    save(dataset, series.files[0])
    edit(series.files[1], ImageComments="x")
    assert same(load_ct(tmp_path), series)
