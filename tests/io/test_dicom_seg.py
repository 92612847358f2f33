"""DICOM-SEG out and back in: places, references, codes, and what independent programs say."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_series import AXIAL, Series, body, save, write_series
from highdicom.seg import Segmentation, SegmentDescription
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid
from scipy.spatial import KDTree

import napari_pancreas_seg as nps
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io import load_ct, load_mask, save_mask, sniff
from napari_pancreas_seg.io.alignment import bring_onto
from napari_pancreas_seg.io.convert import convert
from napari_pancreas_seg.io.dicom import seg_write as dicom_seg
from napari_pancreas_seg.io.dicom.seg_read import read_segmentation
from napari_pancreas_seg.io.dicom.seg_write import write_segmentation
from napari_pancreas_seg.io.dicom.slices import DicomHeader
from napari_pancreas_seg.io.dicom.uids import MINTED, check_uids, mint_uids
from napari_pancreas_seg.volume import CTVolume

CARD = {
    "name": "pancreas-test",
    "version": "3.1",
    "labels": {"pancreas": 1},
    "weights_sha256": "ab" * 32,
}

AXES = [
    np.array(axes)[:, list(order)] * signs
    for axes in [np.eye(3)]
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def affine_of(
    axes: Any, spacing: Any = (0.8, 1.3, 2.5), origin: Any = (31.5, -12.25, 210.0)
) -> Any:
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(axes) * np.asarray(spacing)
    affine[:3, 3] = origin
    return affine


def rotation(angles: tuple[float, float, float]) -> Any:
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("xyz", angles, degrees=True).as_matrix()


def load(series: Series) -> CTVolume:
    return load_ct(series.folder)


def marked(volume: CTVolume, seed: int = 0) -> Any:
    """A lopsided blob and a hole in it, empty slices at both ends and one in between."""
    mask = np.zeros(volume.grid.shape, np.uint8)
    z, y, x = mask.shape
    mask[1 : z - 1, y // 4 : y // 2, x // 3 : x - 2] = 1
    mask[z // 2] = 0
    mask[1, y // 2 - 1, x // 3] = 0
    noise = np.random.default_rng(seed).random(mask.shape) < 0.8
    return mask * noise.astype(np.uint8)


def points(mask: Any, affine: Any) -> Any:
    """World coordinates (RAS mm) of the voxels inside, in any order."""
    index = np.argwhere(mask)
    return index @ affine[:3, :3].T + affine[:3, 3]


def points_by_pydicom(path: Path, segment: int = 1) -> Any:
    """The same from a DICOM-SEG by the standard's formula (PS3.3 C.7.6.2.1.1) alone."""
    dataset = pydicom.dcmread(path)
    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    spacing = [float(s) for s in shared.PixelMeasuresSequence[0].PixelSpacing]
    found = []
    for frame, group in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        identification = (group if "SegmentIdentificationSequence" in group else shared)[
            "SegmentIdentificationSequence"
        ].value[0]
        if identification.ReferencedSegmentNumber != segment:
            continue
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        rows, columns = np.nonzero(frame)
        found.append(
            position
            + np.outer(columns * spacing[1], orientation[:3])
            + np.outer(rows * spacing[0], orientation[3:])
        )
    return np.concatenate(found) * (-1, -1, 1)


def points_by_sitk(path: Path) -> Any:
    image = sitk.ReadImage(str(path))
    index = np.argwhere(sitk.GetArrayViewFromImage(image))[:, ::-1]
    affine = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    return (index @ affine.T + image.GetOrigin()) * (-1, -1, 1)


def assert_same_points(found: Any, expected: Any) -> None:
    """Each of one lies within a micrometre of one of the other, and of one only."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.mean(axis=0), expected.mean(axis=0), rtol=0, atol=1e-3)
    distance, partner = KDTree(expected).query(found)
    assert distance.max() < 1e-3
    assert len(np.unique(partner)) == len(expected)


def check_places(series: Series, folder: Path) -> None:
    """Write a mask both ways and let everybody say where it is."""
    volume = load(series)
    mask = marked(volume)
    path = write_segmentation(mask, volume, folder / "seg.dcm", card=CARD)
    nifti = save_mask(mask, volume, folder / "mask.nii.gz")

    expected = points(mask, volume.grid.affine)
    image = nib.load(nifti)
    everybody = [
        points(np.asarray(image.dataobj), image.affine),
        points_by_pydicom(path),
        points_by_sitk(nifti),
    ]
    if series.hu[:, :, 0].size % 8 == 0:  # GDCM, beneath it, starts each frame at a whole byte
        everybody.append(points_by_sitk(path))
    for found in everybody:
        assert_same_points(found, expected)

    raw = read_segmentation(path)
    back = CTVolume.from_source_array(raw.stored, raw.affine)
    assert back.grid.same_as(volume.grid)
    np.testing.assert_array_equal(back.hu, mask)


@pytest.mark.slow
@pytest.mark.parametrize("multiframe", [False, True])
def test_every_orientation_stays_where_it_was_marked(tmp_path: Path, multiframe: bool) -> None:
    hu = body((9, 8, 6))
    for number, axes in enumerate(AXES[::5] if multiframe else AXES):
        folder = tmp_path / str(number)
        check_places(
            write_series(folder / "ct", hu, affine_of(axes), multiframe=multiframe), folder
        )


@pytest.mark.slow
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 7)] * 3),
    origin=st.tuples(*[st.floats(-900, 900)] * 3),
    shape=st.tuples(st.integers(8, 17), st.integers(8, 17), st.integers(5, 9)),
    flip=st.booleans(),
    multiframe=st.booleans(),
)
@settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_oblique_series_stay_where_they_were_marked(
    tmp_path: Path, angles: Any, spacing: Any, origin: Any, shape: Any, flip: bool, multiframe: bool
) -> None:
    folder = tmp_path / "case"
    shutil.rmtree(folder, ignore_errors=True)
    axes = rotation(angles) * (1, 1, -1 if flip else 1)
    affine = affine_of(axes, spacing, origin)
    check_places(write_series(folder / "ct", body(shape), affine, multiframe=multiframe), folder)


@pytest.mark.parametrize("multiframe", [False, True])
def test_a_tilted_gantry_leans_the_stack(tmp_path: Path, multiframe: bool) -> None:
    affine = affine_of(np.diag([-1, -1, 1]))
    affine[1, 2] = 0.7
    series = write_series(tmp_path / "ct", affine=affine, multiframe=multiframe)
    volume = load(series)
    mask = marked(volume)
    path = write_segmentation(mask, volume, tmp_path / "seg.dcm")
    expected = points(mask, volume.grid.affine)
    assert_same_points(points_by_pydicom(path), expected)
    raw = read_segmentation(path)
    back = CTVolume.from_source_array(raw.stored, raw.affine)
    assert back.grid.same_as(volume.grid)
    np.testing.assert_array_equal(back.hu, mask)


@pytest.mark.slow
def test_positions_that_were_rounded(tmp_path: Path) -> None:
    def change(k: int, dataset: pydicom.Dataset) -> None:
        dataset.ImagePositionPatient = [-30, -40, round(k * 0.3333, 2)]

    series = write_series(tmp_path / "ct", body((16, 16, 40)), change=change)
    volume = load(series)
    mask = marked(volume)
    path = write_segmentation(mask, volume, tmp_path / "seg.dcm")
    raw = read_segmentation(path)
    back = CTVolume.from_source_array(raw.stored, raw.affine)
    assert back.grid.same_as(volume.grid, tolerance_mm=0.01)
    np.testing.assert_array_equal(back.hu, mask)


def test_each_frame_refers_to_its_slice(tmp_path: Path) -> None:
    series = write_series(tmp_path / "ct")
    volume = load(series)
    path = write_segmentation(marked(volume), volume, tmp_path / "seg.dcm")
    headers = {str(h.ImagePositionPatient): h for h in volume.source.header.datasets}
    dataset = pydicom.dcmread(path)
    assert dataset.NumberOfFrames == len(headers)
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        header = headers[str(frame.PlanePositionSequence[0].ImagePositionPatient)]
        (derivation,) = frame.DerivationImageSequence
        (source,) = derivation.SourceImageSequence
        assert source.ReferencedSOPInstanceUID == header.SOPInstanceUID
        assert source.ReferencedSOPClassUID == header.SOPClassUID
        assert source.SpatialLocationsPreserved == "YES"
    first = volume.source.header.datasets[0]
    (references,) = dataset.ReferencedSeriesSequence
    assert references.SeriesInstanceUID == first.SeriesInstanceUID
    referenced = {item.ReferencedSOPInstanceUID for item in references.ReferencedInstanceSequence}
    assert referenced == {header.SOPInstanceUID for header in headers.values()}
    for name in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert dataset[name].value == first[name].value
    assert dataset.SeriesInstanceUID != first.SeriesInstanceUID


def test_each_frame_refers_to_its_frame_of_a_multi_frame_ct(tmp_path: Path) -> None:
    series = write_series(tmp_path / "ct", multiframe=True)
    volume = load(series)
    (ct,) = volume.source.header.datasets
    path = write_segmentation(marked(volume), volume, tmp_path / "seg.dcm")
    numbers = []
    for frame in pydicom.dcmread(path).PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert source.ReferencedSOPInstanceUID == ct.SOPInstanceUID
        numbers.append(source.ReferencedFrameNumber)
        group = ct.PerFrameFunctionalGroupsSequence[numbers[-1] - 1]
        assert (
            group.PlanePositionSequence[0].ImagePositionPatient
            == frame.PlanePositionSequence[0].ImagePositionPatient
        )
    assert sorted(numbers) == list(range(1, 7)) and numbers != sorted(numbers)


def test_a_part_of_a_multi_frame_ct_keeps_its_frame_numbers(tmp_path: Path) -> None:
    series = write_series(tmp_path / "ct", multiframe=True)
    whole = load(series)
    header = whole.source.header
    affine = series.affine.copy()
    affine[:3, 3] += 2 * affine[:3, 2]
    part = CTVolume.from_source_array(
        series.hu[:, :, 2:5],
        affine,
        path=series.folder,
        format="dicom",
        header=DicomHeader(header.datasets, header.files, True, header.frames[2:5]),
    )
    mask = np.ones(part.grid.shape, np.uint8)
    path = write_segmentation(mask, part, tmp_path / "seg.dcm")
    numbers = [
        frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        for frame in pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    ]
    assert sorted(numbers) == sorted(header.frames[2:5])
    assert_same_points(points_by_pydicom(path), points(mask, part.grid.affine))


def test_codes_say_what_it_is_and_what_found_it(tmp_path: Path) -> None:
    volume = load(write_series(tmp_path / "ct"))
    mask = marked(volume)
    path = write_segmentation(mask, volume, tmp_path / "seg.dcm", card=CARD)
    (segment,) = pydicom.dcmread(path).SegmentSequence
    assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "123037004"
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "15776009"
    assert segment.AnatomicRegionSequence[0].CodeValue == "15776009"
    assert segment.SegmentLabel == "Pancreas"
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("pancreas-test", "3.1")
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeMeaning == "Artificial Intelligence"
    assert CARD["weights_sha256"] in algorithm.AlgorithmParameters

    write_segmentation(mask, volume, path, card=CARD, edited=True, overwrite=True)
    assert pydicom.dcmread(path).SegmentSequence[0].SegmentAlgorithmType == "SEMIAUTOMATIC"


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("pancreas", "Pancreas"),
        ("Pancreas-Head", "Head of pancreas"),
        ("pancreatic_duct", "Pancreatic duct"),
        ("tumour of the pancreas head", "Neoplasm"),
        ("body", "Tissue"),
        ("liver", "Liver"),
        ("liver_lesion", "Lesion"),
        ("aorta", "Tissue"),
    ],
)
def test_what_a_label_means(name: str, meaning: str) -> None:
    from napari_pancreas_seg.io.dicom.segments import describe_segments

    (segment,) = describe_segments({1: name}, CARD, edited=False)
    assert segment.segmented_property_type.meaning == meaning


def test_the_mask_of_a_single_class_is_1_whatever_its_card_says() -> None:
    from napari_pancreas_seg.io.dicom.segments import names_of

    assert names_of({"labels": {"pancreas": 5}}, 1) == {1: "pancreas"}


def test_of_several_labels_without_names_none_is_called_the_pancreas(tmp_path: Path) -> None:
    volume = load(write_series(tmp_path / "ct"))
    mask = marked(volume)
    mask[0, 0, :2] = 3
    path = write_segmentation(mask, volume, tmp_path / "seg.dcm")
    segments = pydicom.dcmread(path).SegmentSequence
    assert [s.SegmentLabel for s in segments] == ["Label 1", "Label 2", "Label 3"]
    assert {s.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for s in segments} == {"Tissue"}
    assert all("AnatomicRegionSequence" not in s for s in segments)


@pytest.mark.slow
def test_several_labels_become_several_segments(tmp_path: Path) -> None:
    volume = load(write_series(tmp_path / "ct"))
    mask = np.random.default_rng(1).integers(0, 5, volume.grid.shape).astype(np.uint8)
    mask[mask == 3] = 0
    card = {**CARD, "labels": {"pancreas": 1, "pancreatic tumour": 2, "Gefäß": 4}}
    path = write_segmentation(mask, volume, tmp_path / "seg.dcm", card=card)
    segments = pydicom.dcmread(path).SegmentSequence
    kinds = [s.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for s in segments]
    assert kinds == ["Pancreas", "Neoplasm", "Tissue", "Tissue"]
    assert [s.SegmentLabel for s in segments][2:] == ["Label 3", "Gef??"]
    raw = read_segmentation(path)
    back = CTVolume.from_source_array(raw.stored, raw.affine)
    np.testing.assert_array_equal(back.hu, mask)
    for label in (1, 2, 4):
        assert_same_points(
            points_by_pydicom(path, label), points(mask == label, volume.grid.affine)
        )


def test_many_labels_leave_empty_frames_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_seg, "_LARGEST_WITH_EMPTY_FRAMES", 100)
    volume = load(write_series(tmp_path / "ct"))
    mask = marked(volume)
    path = write_segmentation(mask, volume, tmp_path / "seg.dcm")
    assert pydicom.dcmread(path).NumberOfFrames == mask.any(axis=(1, 2)).sum() == 3
    raw = read_segmentation(path)
    back = CTVolume.from_source_array(raw.stored, raw.affine)
    assert back.hu.shape == (4, 20, 24)  # from the first to the last, with the gap
    assert_same_points(points(back.hu, back.grid.affine), points(mask, volume.grid.affine))


def test_an_empty_mask_is_written_and_read(tmp_path: Path) -> None:
    volume = load(write_series(tmp_path / "ct"))
    path = write_segmentation(np.zeros(volume.grid.shape, bool), volume, tmp_path / "seg.dcm")
    raw = read_segmentation(path)
    assert raw.stored.shape == volume.source.shape and not raw.stored.any()


def test_headers_as_they_really_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(k: int, dataset: pydicom.Dataset) -> None:
        for name in ("PatientBirthDate", "StudyID", "AccessionNumber", "SliceThickness"):
            dataset.pop(name, None)  # the generator shares elements between slices
        dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
        dataset.PatientName = "Yamada^Tarou=山田^太郎"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset.PatientSex = "female"
            dataset.StudyDate = "2020.01.02"
        # Rounded differently from slice to slice.
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 1e-7 * k]

    volume = load(write_series(tmp_path / "ct", change=change))
    caplog.clear()
    with caplog.at_level("DEBUG"), warnings.catch_warnings():
        warnings.simplefilter("error")
        path = write_segmentation(marked(volume), volume, tmp_path / "seg.dcm")
        read_segmentation(path)
    assert "Yamada" not in caplog.text and "female" not in caplog.text
    dataset = pydicom.dcmread(path)
    assert str(dataset.PatientName) == "Yamada^Tarou=山田^太郎"
    assert dataset.PatientSex == "female" and dataset.PatientBirthDate == ""
    assert_same_points(points_by_pydicom(path), points(marked(volume), volume.grid.affine))


# What cannot be written


def test_a_ct_that_is_no_dicom_series(tmp_path: Path, ct_file: Path) -> None:
    with pytest.raises(PancreasSegError, match="refers to the DICOM series"):
        check_uids(load_ct(ct_file))


def test_a_series_without_uids(tmp_path: Path) -> None:
    volume = load(write_series(tmp_path / "ct", uids=False))
    with pytest.raises(PancreasSegError, match=r"no UIDs .*--mint-uids"):
        check_uids(volume)
    with pytest.raises(PancreasSegError, match="--mint-uids"):
        write_segmentation(marked(volume), volume, tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [[3, 4, 5], [4], [2, 6, 7]])
def test_without_empty_frames_it_is_converted_onto_its_ct(
    drawn: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_seg, "_LARGEST_WITH_EMPTY_FRAMES", 0)
    series = write_series(tmp_path / "ct", body((24, 20, 10)))
    volume = load(series)
    mask = np.zeros(volume.hu.shape, np.uint8)
    mask[drawn, 5:9, 5:9] = 1
    path = save_mask(mask, volume, tmp_path / "seg.dcm")
    assert load_mask(path)[0].shape[0] < len(mask)
    target = tmp_path / "seg.nii.gz"
    convert(path, target, ct=series.folder)
    found, on = load_mask(target)
    np.testing.assert_array_equal(found, mask)
    assert on.grid.same_as(volume.grid, 1e-3)
    other = load(
        write_series(tmp_path / "other", body((24, 20, 10)), AXIAL @ np.diag([1.1, 1, 1, 1]))
    )
    with pytest.raises(PancreasSegError, match=r"'seg.dcm' does not lie .* that it was drawn on"):
        convert(path, target, ct=other.source.path, overwrite=True)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> tuple[CTVolume, Path]:
    folder = tmp_path_factory.mktemp("sparse")
    return load(write_series(folder / "ct", body((24, 20, 14)))), folder


def without_spacing(
    folder: Path, volume: CTVolume, drawn: list[int], thickness: float | None
) -> tuple[Path, Any]:
    """A DICOM-SEG with frames for some slices, as those who do not write their spacing."""
    mask = np.zeros(volume.hu.shape, np.uint8)
    mask[drawn, 5:9, 6:12] = 1
    path = save_mask(mask, volume, folder / "seg.dcm", overwrite=True)
    dataset = pydicom.dcmread(path)
    (sizes,) = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    del sizes.SpacingBetweenSlices, sizes.SliceThickness
    if thickness:
        sizes.SliceThickness = thickness
    save(dataset, path)
    return path, mask


@pytest.mark.parametrize(
    ("drawn", "thickness", "step", "noted"),
    [
        ([5], 2.5, 2.5, False),
        ([5], None, 1, True),
        ([3, 4, 5], 2.5, 2.5, False),
        ([3, 4, 5], 5, 2.5, False),  # overlapping slices
        ([2, 3, 9], 2.5, 2.5, False),
        ([3, 9], 2.5, 2.5, True),
        ([2, 7, 12], 2.5, 2.5, True),
        ([3, 9], 5, 5, True),
        ([3, 9], None, 15, True),
        ([3, 6, 8], None, 2.5, True),
        ([2, 4, 6, 8], 1.25, 1.25, True),  # or thin slices with gaps
    ],
)
def test_frames_lie_on_their_slices_though_nothing_says_how_far_apart(
    sparse: tuple[CTVolume, Path],
    monkeypatch: pytest.MonkeyPatch,
    drawn: list[int],
    thickness: float | None,
    step: float,
    noted: bool,
) -> None:
    monkeypatch.setattr(dicom_seg, "_LARGEST_WITH_EMPTY_FRAMES", 0)
    volume, folder = sparse
    path, mask = without_spacing(folder, volume, drawn, thickness)
    labels, on = load_mask(path)
    assert on.spacing[0] == pytest.approx(step)
    assert [f"apart: {step:.3g} mm was taken" in note for note in on.notes] == [True] * noted
    np.testing.assert_array_equal(bring_onto(volume, labels, on, "seg"), mask)


def test_frames_of_another_series_are_not_strewn_over_a_ct(
    sparse: tuple[CTVolume, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of thicker slices: on thinner ones, every second would stay empty."""
    monkeypatch.setattr(dicom_seg, "_LARGEST_WITH_EMPTY_FRAMES", 0)
    volume, folder = sparse
    path, _ = without_spacing(folder, volume, [3, 5, 7], 5)
    thin = load(write_series(folder / "thin", body((24, 20, 14))))
    with pytest.raises(PancreasSegError, match="does not lie on the grid"):
        bring_onto(thin, *load_mask(path), "seg")


@pytest.mark.parametrize(
    ("same", "taken"),
    [({}, False), ({"study_uid": "1.2.3"}, True), ({"frame_of_reference": "1.2.4"}, True)],
)
def test_a_mask_of_another_study_on_the_same_grid_is_refused(
    same: dict[str, str], taken: bool, tmp_path: Path
) -> None:
    one = load(write_series(tmp_path / "one", study_uid="1.2.3", frame_of_reference="1.2.4"))
    other = load(write_series(tmp_path / "other", **same))  # type: ignore[arg-type]
    mask = marked(one)
    path = save_mask(mask, one, tmp_path / "seg.dcm")
    np.testing.assert_array_equal(bring_onto(one, *load_mask(path), "seg"), mask)
    refused = pytest.raises(PancreasSegError, match="another study")
    with contextlib.nullcontext() if taken else refused:
        np.testing.assert_array_equal(bring_onto(other, *load_mask(path), "seg"), mask)
    convert(path, tmp_path / "seg.nii.gz")  # as the refusal says
    bring_onto(other, *load_mask(tmp_path / "seg.nii.gz"), "seg")


def test_slices_of_one_uid(tmp_path: Path) -> None:
    def change(k: int, dataset: pydicom.Dataset) -> None:
        dataset.SOPInstanceUID = "1.2.3"

    volume = load(write_series(tmp_path / "ct", change=change))
    with pytest.raises(PancreasSegError, match="the same UID"):
        check_uids(volume)
    minted = mint_uids(volume)
    check_uids(minted)
    assert minted.source.header.datasets[0].SeriesInstanceUID == (
        volume.source.header.datasets[0].SeriesInstanceUID
    )


def test_files_that_must_stay(tmp_path: Path) -> None:
    series = write_series(tmp_path / "ct", names="{}.dcm".format)
    volume = load(series)
    mask = marked(volume)
    before = series.files[2].read_bytes()
    with pytest.raises(PancreasSegError, match="the CT itself"):
        save_mask(mask, volume, series.files[2], overwrite=True)
    assert series.files[2].read_bytes() == before
    path = write_segmentation(mask, volume, tmp_path / "seg.dcm")
    with pytest.raises(PancreasSegError, match="exists already"):
        write_segmentation(mask, volume, path)
    with pytest.raises(PancreasSegError, match="does not lie on the grid"):
        write_segmentation(mask[1:], volume, path, overwrite=True)


# UIDs made from content


@pytest.mark.parametrize("multiframe", [False, True])
def test_minted_uids_depend_on_the_content_alone(tmp_path: Path, multiframe: bool) -> None:
    def blank(_: int, dataset: pydicom.Dataset) -> None:
        for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            dataset[name].value = ""

    def uids(volume: CTVolume) -> list[str]:
        datasets = mint_uids(volume).source.header.datasets
        shared = (datasets[0].StudyInstanceUID, datasets[0].SeriesInstanceUID)
        return [*shared, *(each.SOPInstanceUID for each in datasets)]

    if multiframe:  # the generator has UIDs there
        blanked = load(write_series(tmp_path / "a", multiframe=True))
        again = load(write_series(tmp_path / "b", multiframe=True))
        for volume in (blanked, again):
            blank(0, volume.source.header.datasets[0])
    else:
        blanked = load(write_series(tmp_path / "a", uids=False))
        again = load(
            write_series(tmp_path / "b", uids=False, names=lambda k: f"x{k}", intercept=-2048.0)
        )
    found = uids(blanked)
    assert found == uids(again)
    assert len(set(found)) == len(found)
    assert all(pydicom.uid.UID(uid).is_valid for uid in found)
    frames = {each.FrameOfReferenceUID for each in mint_uids(blanked).source.header.datasets}
    assert frames == {blanked.source.header.datasets[0].FrameOfReferenceUID}
    assert blanked.source.header.datasets[0].StudyInstanceUID == ""  # left as it was

    hu = body((24, 20, 6))
    hu[3, 4, 2] += 1
    other = uids(load(write_series(tmp_path / "c", hu, uids=False)))
    if not multiframe:
        changed = [one != two for one, two in zip(found, other, strict=True)]
        assert changed == [True, True, False, False, True, False, False, False]


def test_minted_uids_are_told(tmp_path: Path) -> None:
    volume = load(write_series(tmp_path / "ct", uids=False))
    path = write_segmentation(marked(volume), volume, tmp_path / "seg.dcm", mint_uids=True)
    assert pydicom.dcmread(path).ImageComments == MINTED
    minted = mint_uids(volume)
    assert minted.notes == (MINTED,) and mint_uids(minted) is minted
    with_uids = load(write_series(tmp_path / "other"))
    assert mint_uids(with_uids) is with_uids


# What others write


def others(
    folder: Path, pixels: Any, segments: int = 1, **options: Any
) -> tuple[Path, Any, CTVolume]:
    """A DICOM-SEG that highdicom makes by itself from a series, frame by frame."""
    series = write_series(folder / "ct", body((12, 10, 6)))
    sources = [pydicom.dcmread(file) for file in series.files]
    kind = options.pop("segmentation_type", "BINARY")
    descriptions = [
        SegmentDescription(number, f"part {number}", codes.SCT.Organ, codes.SCT.Liver, "MANUAL")
        for number in range(1, segments + 1)
    ]
    segmentation = Segmentation(
        sources,
        pixels,
        kind,
        descriptions,
        generate_uid(),
        1,
        generate_uid(),
        1,
        "others",
        "others",
        "1",
        "1",
        **options,
    )
    path = folder / "others.dcm"
    segmentation.save_as(path)
    return path, series, load(series)


def test_reading_overlapping_segments(tmp_path: Path) -> None:
    pixels = np.zeros((6, 10, 12, 2), np.uint8)
    pixels[1:4, 2:6, 3:8, 0] = 1
    pixels[2:5, 4:8, 5:9, 1] = 1
    path, series, _ = others(tmp_path, pixels, 2)
    raw = read_segmentation(path)
    assert any("overlap" in note for note in raw.notes)
    assert load_mask(path)[1].notes == raw.notes
    expected = np.maximum(pixels[..., 0], 2 * pixels[..., 1]).transpose(2, 1, 0)
    back = CTVolume.from_source_array(raw.stored, raw.affine)
    theirs = CTVolume.from_source_array(expected, series.affine)
    for label in (1, 2):
        assert_same_points(
            points(back.hu == label, back.grid.affine),
            points(theirs.hu == label, theirs.grid.affine),
        )


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"])
def test_reading_fractions(tmp_path: Path, syntax: str) -> None:
    pixels = np.zeros((6, 10, 12), np.float32)
    pixels[1:4, 2:6, 3:8] = 0.7
    pixels[4, 2:6, 3:8] = 0.3
    path, _, volume = others(
        tmp_path, pixels, segmentation_type="FRACTIONAL", transfer_syntax_uid=syntax
    )
    raw = read_segmentation(path)
    assert any("fractions" in note for note in raw.notes)
    back = CTVolume.from_source_array(raw.stored, raw.affine)
    assert back.hu.sum() == (pixels > 0.5).sum()
    inside = CTVolume.from_source_array(
        (pixels > 0.5).astype(np.uint8).transpose(2, 1, 0), volume.source.affine
    )
    assert_same_points(points(back.hu, back.grid.affine), points(inside.hu, inside.grid.affine))


def test_reading_a_label_map(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 3, (6, 10, 12)).astype(np.uint8)
    path, _, volume = others(tmp_path, pixels, 2, segmentation_type="LABELMAP")
    raw = read_segmentation(path)
    back = CTVolume.from_source_array(raw.stored, raw.affine)
    theirs = CTVolume.from_source_array(pixels.transpose(2, 1, 0), volume.source.affine)
    np.testing.assert_array_equal(back.hu, theirs.hu)


def test_a_ct_is_no_segmentation(tmp_path: Path) -> None:
    series = write_series(tmp_path / "ct")
    with pytest.raises(PancreasSegError, match="not a DICOM-SEG"):
        read_segmentation(series.files[0])


@pytest.mark.slow
def test_damaged_objects_end_in_one_sentence(tmp_path: Path) -> None:
    volume = load(write_series(tmp_path / "ct"))
    whole = write_segmentation(marked(volume), volume, tmp_path / "seg.dcm").read_bytes()
    rng = np.random.default_rng(5)
    path = tmp_path / "damaged.dcm"
    for number in range(60):
        data = bytearray(whole)
        if number < 20:
            data = data[: len(whole) * number // 20]
        else:
            for at in rng.integers(130, len(whole), 1 + number // 4):
                data[at] = rng.integers(0, 256)
        path.write_bytes(data)
        with contextlib.suppress(PancreasSegError):
            assert read_segmentation(path).stored.ndim == 3


# What the validator says


needs_dciodvfy = pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian: dicom3tools)"
)


def complaints(path: Path) -> list[str]:
    result = subprocess.run(
        ["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False
    )
    lines = (result.stdout + result.stderr).splitlines()
    assert "Segmentation" in lines
    return [line for line in lines if line.startswith(("Error", "Warning"))]


@needs_dciodvfy
@pytest.mark.parametrize("multiframe", [False, True])
@pytest.mark.parametrize(
    "axes",
    [np.diag([-1, -1, 1]), np.diag([1, 1, 1]), AXES[21], rotation((12, -33, 71))],
    ids=["axial", "flipped", "sagittal", "oblique"],
)
def test_dciodvfy_finds_nothing(tmp_path: Path, multiframe: bool, axes: Any) -> None:
    series = write_series(tmp_path / "ct", affine=affine_of(axes), multiframe=multiframe)
    volume = load(series)
    path = write_segmentation(marked(volume), volume, tmp_path / "seg.dcm", card=CARD)
    assert complaints(path) == []


@needs_dciodvfy
def test_dciodvfy_finds_nothing_in_several_segments_or_minted_uids(tmp_path: Path) -> None:
    volume = load(write_series(tmp_path / "ct", uids=False))
    mask = np.random.default_rng(1).integers(0, 3, volume.grid.shape).astype(np.uint8)
    card = {**CARD, "labels": {"pancreas": 1, "tumour": 2}}
    path = write_segmentation(mask, volume, tmp_path / "s.dcm", card=card, mint_uids=True)
    assert complaints(path) == []


# The way through the program


def test_load_mask_knows_a_segmentation(tmp_path: Path) -> None:
    volume = load(write_series(tmp_path / "ct"))
    mask = marked(volume)
    path = save_mask(mask, volume, tmp_path / "seg.dcm", card=CARD)
    assert sniff(path).kind == "mask"
    assert sniff(volume.source.header.files[0]).kind == "CT"
    found, place = load_mask(path)
    np.testing.assert_array_equal(found, mask)
    assert place.grid.same_as(volume.grid)
    with pytest.raises(PancreasSegError, match="'ct' is a folder; give the file of a mask"):
        load_mask(tmp_path / "ct")


def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was loaded")

    monkeypatch.setattr("napari_pancreas_seg.inference.segment.LoadedModel", refuse)


def test_a_series_without_uids_is_refused_before_the_network_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_pancreas_seg.cohort.cases import find_inputs, plan
    from napari_pancreas_seg.cohort.run import segment_cases

    no_network(monkeypatch)
    series = write_series(tmp_path / "ct", uids=False)
    cases = plan(find_inputs([series.folder]), tmp_path / "seg.dcm")
    (result,) = segment_cases(cases)
    assert result.error is not None and "--mint-uids" in result.error
    assert sorted(tmp_path.iterdir()) == [series.folder]


def test_a_file_of_the_ct_is_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from napari_pancreas_seg.cohort.cases import find_inputs, plan
    from napari_pancreas_seg.cohort.run import segment_cases
    from napari_pancreas_seg.inference.options import OutputOptions

    no_network(monkeypatch)
    series = write_series(tmp_path / "ct", names=lambda k: f"{k}.dcm")
    before = series.files[2].read_bytes()
    cases = plan(find_inputs([series.folder]), series.files[2])
    (result,) = segment_cases(cases, outputs=OutputOptions(overwrite=True))
    assert result.error is not None and "never overwritten" in result.error
    assert series.files[2].read_bytes() == before


@pytest.mark.slow
def test_segmenting_a_series_without_uids(tmp_path: Path, tiny_bundle: Path) -> None:
    from napari_pancreas_seg.cohort.cases import find_inputs, plan
    from napari_pancreas_seg.cohort.run import segment_cases
    from napari_pancreas_seg.inference.options import OutputOptions

    series = write_series(tmp_path / "ct", body((64, 60, 6)), uids=False)
    cases = plan(find_inputs([series.folder]), tmp_path / "seg.dcm")
    (result,) = segment_cases(cases, str(tiny_bundle), outputs=OutputOptions(mint_uids=True))
    assert result.error is None and MINTED in result.notes
    sidecar = (tmp_path / "seg.json").read_text(encoding="utf-8")
    assert MINTED in sidecar and "SYNTHETIC" not in sidecar
    (segment,) = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    assert segment.SegmentAlgorithmName == "tiny"
    found = nps.segment(series.folder, str(tiny_bundle))
    with pytest.raises(PancreasSegError, match="UIDs"):
        found.save(tmp_path / "python.dcm")
    found.save(tmp_path / "python.dcm", mint_uids=True)
    np.testing.assert_array_equal(load_mask(tmp_path / "python.dcm")[0], found.mask)


# Real slices


def give_uids(source: Path, folder: Path) -> Path:
    """Write a real series again, with the UIDs that its scanner gave it."""
    folder.mkdir()
    study, series = generate_uid(), generate_uid()
    for file in sorted(source.iterdir()):
        dataset = pydicom.dcmread(file)
        dataset.SOPClassUID = pydicom.uid.CTImageStorage
        dataset.SOPInstanceUID = generate_uid()
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(folder / file.name)
    return folder


@pytest.mark.slow
def test_real_slices(tmp_path: Path, shared: Path) -> None:
    blank = load_ct(shared / "ct" / "dicom")
    with pytest.raises(PancreasSegError, match="--mint-uids"):
        check_uids(blank)

    volume = load_ct(give_uids(shared / "ct" / "dicom", tmp_path / "ct"))
    assert volume.grid.same_as(blank.grid)
    mask = np.zeros(volume.grid.shape, np.uint8)
    mask[3:15, 200:260, 180:300] = np.random.default_rng(0).random((12, 60, 120)) < 0.6
    path = save_mask(mask, volume, tmp_path / "seg.dcm", card=CARD)
    nifti = save_mask(mask, volume, tmp_path / "mask.nii.gz")
    image = nib.load(nifti)
    expected = points(np.asarray(image.dataobj), image.affine)
    for found in (points_by_pydicom(path), points_by_sitk(path), points_by_sitk(nifti)):
        assert_same_points(found, expected)
    np.testing.assert_array_equal(load_mask(path)[0], load_mask(nifti)[0])
    if shutil.which("dciodvfy"):
        # What it warns of is the study's own: no name, a coding scheme of the hospital.
        assert [line for line in complaints(path) if line.startswith("Error")] == []
    minted = save_mask(mask, blank, tmp_path / "minted.dcm", mint_uids=True)
    np.testing.assert_array_equal(load_mask(minted)[0], mask)
