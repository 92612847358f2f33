"""DICOM in: every voxel where SimpleITK and dcm2niix see it, and stacks that are no volume."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import SimpleITK as sitk
from dicom_series import AXIAL, Series, body, write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from scipy.spatial.transform import Rotation

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io import load_ct, save_mask
from napari_pancreas_seg.volume import CTVolume

LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
# pip puts it beside the interpreter, which need not be on the path.
PLACES = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
DCM2NIIX = shutil.which("dcm2niix", path=os.pathsep.join(PLACES))

ORIENTATIONS = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def aligned(axes: tuple[int, ...], signs: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Affine whose axes lie along the patient's, in any order and direction."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (axis, sign, spacing) in enumerate(zip(axes, signs, (0.7, 0.9, 2.5), strict=True)):
        affine[axis, column] = sign * spacing
    affine[:3, 3] = (-31.25, 17.5, 402.75)
    return affine


def sorted_hu(series: Series) -> npt.NDArray[np.generic]:
    """Voxels with slices along the normal: the source order of a stack that was written."""
    return series.hu if np.linalg.det(series.affine[:3, :3]) > 0 else series.hu[:, :, ::-1]


def check_against_simpleitk(volume: CTVolume) -> None:
    """Compare values and world positions of all corners with an independent reader."""
    header = volume.source.header
    image = sitk.ReadImage([str(path) for path in header.files])
    stored = volume.to_source_order(volume.hu)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), stored)
    for corner in itertools.product(*((0, n - 1) for n in stored.shape)):
        lps = np.array(image.TransformIndexToPhysicalPoint(corner))
        ours = volume.source.affine @ [*corner, 1]
        np.testing.assert_allclose(ours[:3], lps * LPS_TO_RAS, atol=1e-3)


@pytest.mark.parametrize("multiframe", [False, True])
@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_all_48_orientations_come_in_where_they_are(
    tmp_path: Path, axes: tuple[int, ...], signs: tuple[int, ...], multiframe: bool
) -> None:
    series = write_series(tmp_path, body((11, 10, 5)), aligned(axes, signs), multiframe=multiframe)
    volume = load_ct(tmp_path)
    np.testing.assert_array_equal(volume.to_source_order(volume.hu), sorted_hu(series))
    marked = np.unravel_index(np.argmax(series.hu), series.hu.shape)
    (found,) = np.argwhere(volume.hu == series.hu.max())[:1]
    np.testing.assert_allclose(
        volume.grid.world(found), (series.affine @ [*marked, 1])[:3], atol=1e-5
    )
    # Display order: along z to the head, along y to the back, along x to the left.
    assert (np.argmax(np.abs(volume.grid.affine[:3, :3]), axis=0) == (2, 1, 0)).all()
    if not multiframe:
        check_against_simpleitk(volume)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 5)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    shape=st.tuples(st.integers(9, 13), st.integers(9, 13), st.integers(2, 6)),
    mirrored=st.booleans(),
    multiframe=st.booleans(),
)
def test_oblique_stacks_come_in_where_they_are(
    angles: tuple[float, ...],
    spacing: tuple[float, ...],
    origin: tuple[float, ...],
    shape: tuple[int, int, int],
    mirrored: bool,
    multiframe: bool,
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    affine[:3, 3] = origin
    affine[:3, 2] *= -1 if mirrored else 1
    with tempfile.TemporaryDirectory() as folder:
        series = write_series(Path(folder), body(shape), affine, multiframe=multiframe)
        volume = load_ct(folder)
        np.testing.assert_array_equal(volume.to_source_order(volume.hu), sorted_hu(series))
        corner = [0, 0, shape[2] - 1 if mirrored else 0]
        expected = (series.affine @ [*corner, 1])[:3]
        np.testing.assert_allclose(volume.source.affine[:3, 3], expected, atol=1e-5)
        np.testing.assert_allclose(
            np.abs(volume.source.affine[:3, :3]), np.abs(series.affine[:3, :3]), atol=1e-5
        )
        if not multiframe:
            check_against_simpleitk(volume)


@pytest.mark.skipif(DCM2NIIX is None, reason="dcm2niix is not installed")
@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (0, 2, 1)])
@pytest.mark.parametrize("angle", [0, 17])
def test_dcm2niix_sees_every_voxel_at_the_same_place(
    tmp_path: Path, axes: tuple[int, ...], angle: float
) -> None:
    affine = aligned(axes, (-1, 1, -1))
    turn = Rotation.from_euler("xyz", (angle, angle / 2, -angle), degrees=True).as_matrix()
    affine[:3, :3] = turn @ affine[:3, :3]
    write_series(tmp_path / "ct", body((24, 20, 6)), affine)
    volume = load_ct(tmp_path / "ct")
    command = [str(DCM2NIIX), "-z", "n", "-b", "n", "-f", "theirs", "-o", tmp_path, tmp_path / "ct"]
    subprocess.run(command, check=True, capture_output=True)
    theirs = nib.load(tmp_path / "theirs.nii")
    save_mask(volume.hu > 0, volume, tmp_path / "ours.nii")
    ours = nib.load(tmp_path / "ours.nii")
    for index in itertools.product((0, 23), (0, 19), (0, 5)):
        world = ours.affine @ [*index, 1]
        there = np.linalg.inv(theirs.affine) @ world
        np.testing.assert_allclose(there, np.rint(there), atol=1e-3)
        place = tuple(np.rint(there[:3]).astype(int))
        assert (np.asarray(theirs.dataobj)[place] > 0) == np.asarray(ours.dataobj)[index]


def test_order_comes_from_positions_alone(tmp_path: Path) -> None:
    def lie(k: int, dataset: Dataset) -> None:
        dataset.InstanceNumber = 100 - k
        dataset.SliceLocation = 5.0

    series = write_series(tmp_path, names=lambda k: f"{9 - k}.dcm", change=lie)
    volume = load_ct(tmp_path)
    np.testing.assert_array_equal(volume.to_source_order(volume.hu), series.hu)


@pytest.mark.parametrize("degrees", [-25, 12])
def test_a_tilted_gantry_gives_a_sheared_affine(tmp_path: Path, degrees: float) -> None:
    affine = AXIAL.copy()
    turn = Rotation.from_euler("x", degrees, degrees=True).as_matrix()
    affine[:3, :2] = turn @ affine[:3, :2]  # slices lean, the table still moves along z
    series = write_series(tmp_path, body((24, 20, 6)), affine)
    volume = load_ct(tmp_path)
    np.testing.assert_array_equal(volume.to_source_order(volume.hu), series.hu)
    np.testing.assert_allclose(volume.source.affine, series.affine, atol=1e-6)
    assert f"leans by {abs(degrees):.1f}°" in volume.notes[0]
    assert volume.grid.voxel_volume_mm3 == pytest.approx(abs(np.linalg.det(affine[:3, :3])))
    save_mask(volume.hu > 0, volume, tmp_path / "mask.nii")
    written = nib.load(tmp_path / "mask.nii")
    np.testing.assert_allclose(written.affine, series.affine, atol=1e-4)


# -- stacks that are no volume, or not quite


def moved(k: int, millimetres: float) -> Callable[[int, Dataset], None]:
    def change(number: int, dataset: Dataset) -> None:
        if number == k:
            x, y, z = dataset.ImagePositionPatient
            dataset.ImagePositionPatient = [x, y, z + millimetres]

    return change


def test_a_missing_slice_is_refused_and_named(tmp_path: Path) -> None:
    series = write_series(tmp_path)
    series.files[2].unlink()
    with pytest.raises(PancreasSegError, match="between slices 2 and 3 of 5 there are 5 mm") as no:
        load_ct(tmp_path)
    assert "1 slice is missing" in str(no.value) and "2.5 mm" in str(no.value)


@pytest.mark.parametrize(
    ("kept", "step", "thickness", "noted"),
    [
        (range(0, 12, 2), 1, 2.5, "lie 5 mm apart, 2 times the 2.5 mm"),
        (range(0, 12, 3), -1, 2.5, "lie 7.5 mm apart, 3 times"),
        ([0, 11], 1, 2.5, "11 times"),
        (range(12), 1, 1.25, None),  # gaps between thin slices
        (range(12), 2, 2.5, None),  # numbered in turn with another series
        (range(0, 12, 2), 1, 5.0, None),  # half of overlapping slices cannot be told
        (range(12), 0, 1.25, None),
    ],
)
def test_slices_that_are_missing_evenly_are_noted(
    tmp_path: Path, kept: Iterable[int], step: int, thickness: float, noted: str | None
) -> None:
    def numbered(k: int, dataset: Dataset) -> None:
        dataset.InstanceNumber, dataset.SliceThickness = 50 + step * k, thickness

    series = write_series(tmp_path, body((24, 20, 12)), change=numbered)
    for k in set(range(12)) - set(kept):
        series.files[k].unlink()
    notes = load_ct(tmp_path).notes
    assert [noted in note for note in notes] == [True] if noted else notes == ()


def test_uneven_gaps_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path, change=moved(3, 1.0))
    with pytest.raises(PancreasSegError, match=r"unevenly spaced: between slices 3 and 4"):
        load_ct(tmp_path)


def test_gaps_that_drift_are_refused(tmp_path: Path) -> None:
    def drift(k: int, dataset: Dataset) -> None:
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, z + 0.03 * k * k]

    write_series(tmp_path, body((24, 20, 12)), change=drift)
    with pytest.raises(PancreasSegError, match="do not lie on a line"):
        load_ct(tmp_path)


def test_slices_beside_the_line_are_refused(tmp_path: Path) -> None:
    def aside(k: int, dataset: Dataset) -> None:
        if k == 2:
            x, y, z = dataset.ImagePositionPatient
            dataset.ImagePositionPatient = [x + 10, y, z]

    write_series(tmp_path, change=aside)
    with pytest.raises(PancreasSegError, match="do not lie on a line"):
        load_ct(tmp_path)


def test_a_rounded_position_is_noted(tmp_path: Path) -> None:
    write_series(tmp_path, change=moved(3, 0.2))
    assert "0.20 mm" in load_ct(tmp_path).notes[0]
    write_series(tmp_path / "b", change=moved(3, 0.01))
    assert load_ct(tmp_path / "b").notes == ()


def test_identical_repeats_are_dropped_and_others_refused(tmp_path: Path) -> None:
    series = write_series(tmp_path)
    shutil.copy(series.files[1], tmp_path / "copy1")
    assert load_ct(tmp_path).notes[0].startswith("1 slice of this CT was there more than once")
    shutil.copy(series.files[4], tmp_path / "copy4")
    volume = load_ct(tmp_path)
    np.testing.assert_array_equal(volume.to_source_order(volume.hu), series.hu)
    assert volume.notes[0].startswith("2 slices of this CT were there more than once")
    dataset = pydicom.dcmread(tmp_path / "copy4")
    dataset.RescaleIntercept = -1000
    dataset.save_as(tmp_path / "copy4")
    with pytest.raises(PancreasSegError, match="different slices at the same place"):
        load_ct(tmp_path)


@pytest.mark.parametrize(
    ("keyword", "what"),
    [
        ("ImagePositionPatient", "where its slices lie"),
        ("ImageOrientationPatient", "how its slices are oriented"),
        ("PixelSpacing", "how large its pixels are"),
    ],
)
def test_geometry_that_is_not_there_is_not_invented(
    tmp_path: Path, keyword: str, what: str
) -> None:
    def drop(k: int, dataset: Dataset) -> None:
        delattr(dataset, keyword)

    write_series(tmp_path, change=drop)
    with pytest.raises(PancreasSegError, match=what):
        load_ct(tmp_path)


def test_directions_that_are_not_perpendicular_are_refused(tmp_path: Path) -> None:
    def skew(k: int, dataset: Dataset) -> None:
        dataset.ImageOrientationPatient = [1, 0, 0, 0.5, 0.5, 0]

    write_series(tmp_path, change=skew)
    with pytest.raises(PancreasSegError, match="unit vectors"):
        load_ct(tmp_path)


def test_two_orientations_in_one_series_are_two_volumes(tmp_path: Path) -> None:
    series = write_series(tmp_path, names=lambda k: f"a{k}")
    uid = pydicom.dcmread(series.files[0]).SeriesInstanceUID

    def same_series(k: int, dataset: Dataset) -> None:
        dataset.SeriesInstanceUID = uid

    coronal = aligned((0, 2, 1), (-1, -1, -1))
    write_series(tmp_path, body((24, 20, 5)), coronal, names=lambda k: f"b{k}", change=same_series)
    with pytest.raises(PancreasSegError, match=r"#1: CT, 24×20×6.*#2: CT, 24×20×5"):
        load_ct(tmp_path)
    (tmp_path / "b0").rename(tmp_path / "keep")
    for k in range(1, 5):
        (tmp_path / f"b{k}").unlink()
    volume = load_ct(tmp_path)  # one slice is a scout
    np.testing.assert_array_equal(volume.to_source_order(volume.hu), series.hu)
    assert "1 × a CT slice of another size, orientation or phase" in volume.notes[0]


@pytest.mark.parametrize("left", [0, 100, 400])
def test_a_last_slice_that_is_cut_off_is_noted(tmp_path: Path, left: int) -> None:
    series = write_series(tmp_path)
    series.files[5].write_bytes(series.files[5].read_bytes()[:left])
    volume = load_ct(tmp_path)
    assert volume.grid.shape[0] == 5
    assert len(volume.notes) == 1
    series.files[3].write_bytes(b"")
    with pytest.raises(PancreasSegError, match="1 slice is missing"):
        load_ct(tmp_path)


def test_pixels_that_break_off_are_refused(tmp_path: Path) -> None:
    series = write_series(tmp_path)
    series.files[5].write_bytes(series.files[5].read_bytes()[:-10])
    with pytest.raises(PancreasSegError, match=f"{series.files[5].name}.*truncated"):
        load_ct(tmp_path)


def test_a_ct_of_one_slice_takes_its_thickness(tmp_path: Path) -> None:
    write_series(tmp_path, body((24, 20, 1)))
    volume = load_ct(tmp_path)
    assert volume.spacing[0] == pytest.approx(2.5)
    assert "one slice" in volume.notes[0]
