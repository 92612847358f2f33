"""CTs that are in memory: arrays, images of nibabel and of SimpleITK."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

import napari_pancreas_seg as nps
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.saving import source_record

OBLIQUE = np.array([[-0.8, 0.1, 0, 90], [0.1, 0.8, 0.05, -70], [0, -0.06, 2.5, 10], [0, 0, 0, 1]])


@pytest.fixture
def saved(body: Callable, tmp_path: Path) -> Path:
    header = nib.Nifti1Header()
    header.set_xyzt_units("mm")
    image = nib.Nifti1Image(body((24, 20, 6)), OBLIQUE, header)
    image.set_qform(None, 0)
    nib.save(image, tmp_path / "case 7.nii.gz")
    return tmp_path / "case 7.nii.gz"


def same(one: nps.CTVolume, other: nps.CTVolume, tolerance_mm: float = 1e-5) -> bool:
    return (
        np.array_equal(one.hu, other.hu)
        and one.hu.dtype == other.hu.dtype
        and one.grid.same_as(other.grid, tolerance_mm)
        and one.notes == other.notes
    )


def test_a_path_an_image_and_an_array_are_the_same_ct(saved: Path) -> None:
    of_path = nps.load_ct(saved)
    image = nib.load(saved)
    assert same(nps.load_ct(str(saved)), of_path)
    assert same(nps.load_ct(image), of_path)
    assert same(nps.CTVolume.from_array(image.get_fdata(), image.affine), of_path)
    assert nps.load_ct(of_path) is of_path


@pytest.mark.parametrize("turn", [np.eye(3), np.diag([-1.0, -1, 1]), np.eye(3)[[2, 0, 1]]])
def test_an_image_of_simpleitk_is_the_same_ct(
    turn: np.ndarray, body: Callable, tmp_path: Path
) -> None:
    image = sitk.GetImageFromArray(body((24, 20, 6)).transpose())
    image.SetSpacing((0.8, 0.9, 2.5))
    image.SetOrigin((-100, 33, 7))
    image.SetDirection(turn.ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / "ct.nrrd"))
    volume = nps.load_ct(image)
    assert same(volume, nps.load_ct(tmp_path / "ct.nrrd"))
    marked = np.zeros(volume.grid.shape, np.uint8)
    marked[2, 3, 4] = 1
    path = nps.save_mask(marked, volume, tmp_path / "m.nii.gz")
    (index,) = np.argwhere(nib.load(path).get_fdata()).tolist()
    point = np.array(image.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
    np.testing.assert_allclose(volume.grid.world((2, 3, 4)), point, atol=1e-4)


def test_a_mask_of_a_nibabel_image_lies_on_its_grid(saved: Path, tmp_path: Path) -> None:
    image = nib.load(saved)
    volume = nps.load_ct(image)
    assert volume.name == "case 7"
    back = nib.load(nps.save_mask(volume.hu > 0, volume, tmp_path / "m.nii.gz"))
    np.testing.assert_array_equal(back.affine, image.affine)
    assert back.shape == image.shape
    moved = nib.Nifti1Image(image.get_fdata(), image.affine)
    moved.affine[:3, 3] += 5  # nibabel allows that, and the header does not know of it
    expected = image.affine.copy()
    expected[:3, 3] += 5
    np.testing.assert_allclose(nps.load_ct(moved).source.affine, expected)


def test_the_file_of_a_nibabel_image_is_the_ct_itself(saved: Path) -> None:
    volume, before = nps.load_ct(nib.load(saved)), saved.read_bytes()
    assert source_record(volume.source) == source_record(nps.load_ct(saved).source)
    with pytest.raises(nps.PancreasSegError, match="CT itself"):
        nps.save_mask(volume.hu > 0, volume, saved, overwrite=True)
    assert saved.read_bytes() == before


def test_what_was_handed_over_stays_as_it_was(body: Callable) -> None:
    lost = body((40, 40, 12)) + np.int16(1024)
    image = nib.Nifti1Image(lost.copy(), np.diag([-1.0, -1, 2, 1]))
    by_itk = sitk.GetImageFromArray(lost.transpose())
    array = np.ascontiguousarray(lost[::-1, ::-1].transpose(2, 1, 0)).transpose(2, 1, 0)
    before = array.copy()
    for volume in (
        nps.load_ct(image),
        nps.load_ct(by_itk),
        nps.CTVolume.from_array(array, np.diag([-1.0, -1, 2, 1])),
    ):
        assert any("1024" in note for note in volume.notes)
        assert volume.hu.min() < -900
    np.testing.assert_array_equal(image.get_fdata(), lost)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(by_itk), lost.transpose())
    np.testing.assert_array_equal(array, before)


def test_an_image_that_only_reads_its_file_is_copied(body: Callable, tmp_path: Path) -> None:
    """Its axes run as the display's do, so that no turning copies it."""
    shifted = (np.maximum(body((24, 20, 6)), -1000) + 1024).astype(np.int16)
    nib.save(nib.Nifti1Image(shifted, np.diag([-1.5, -1.5, 3, 1])), tmp_path / "ct.nii")
    image = nib.load(tmp_path / "ct.nii", mmap="r")
    volume = nps.load_ct(image)
    np.testing.assert_array_equal(volume.to_source_order(volume.hu), shifted - 1024)
    np.testing.assert_array_equal(image.dataobj, shifted)


@pytest.mark.parametrize("kind", ["int32", "int64", "uint32", "float64", "uint16"])
def test_integers_never_wrap(kind: str, body: Callable) -> None:
    hu = np.maximum(body((24, 20, 6)), 0) if kind[0] == "u" else body((24, 20, 6))
    if kind[0] != "u":
        array = hu.astype(kind)
        array[3, 4, 5] = 70_000
        volume = nps.CTVolume.from_array(array, OBLIQUE)
        assert volume.to_source_order(volume.hu)[3, 4, 5] == 70_000
    array = hu.astype(kind)
    array[3, 4, 5] = 40_000
    made = nps.CTVolume(array, *_place(array.shape))
    assert made.hu[3, 4, 5] == 40_000
    assert made.hu.dtype == np.float32


def _place(shape: tuple[int, ...]) -> tuple[nps.Grid, object]:
    volume = nps.CTVolume.from_source_array(np.zeros(shape, np.int16), np.eye(4))
    return nps.Grid(shape, np.eye(4)), volume.source


@pytest.mark.parametrize(
    ("array", "affine", "reason"),
    [
        (lambda hu: (hu - hu.min()) / float(np.ptp(hu)), OBLIQUE, "normalised"),
        (lambda hu: (hu > 0).astype(int), OBLIQUE, "mask and not a CT"),
        (lambda hu: np.full(hu.shape, np.nan), OBLIQUE, "NaN"),
        (lambda hu: hu > 0, OBLIQUE, "one integer or float"),
        (lambda hu: hu + 1j, OBLIQUE, "one integer or float"),
        (lambda hu: hu[0], OBLIQUE, "3-D"),
        (lambda hu: hu[..., None].repeat(2, -1), OBLIQUE, "3-D"),
        (lambda hu: hu, np.diag([0, 0, 0, 1]), "singular"),
        (lambda hu: hu, OBLIQUE.T, "0 0 0 1"),
        (lambda hu: hu, np.eye(3), "4×4"),
    ],
)
def test_arrays_are_checked_as_files_are(
    array: Callable, affine: np.ndarray, reason: str, body: Callable
) -> None:
    with pytest.raises(PancreasSegError, match=reason):
        nps.CTVolume.from_array(array(body((24, 20, 6))), affine)


def test_what_is_no_ct_says_what_to_give(body: Callable) -> None:
    with pytest.raises(PancreasSegError, match="from_array"):
        nps.load_ct(body((24, 20, 6)))
    for load, nothing in ((nps.load_ct, None), (nps.load_ct, ""), (nps.load_mask, None)):
        with pytest.raises(PancreasSegError, match="path"):
            load(nothing)
    with pytest.raises(PancreasSegError, match="not a CT"):
        nps.load_ct(sitk.Image(8, 8, 8, sitk.sitkVectorFloat32))
    with pytest.raises(PancreasSegError, match="2-D"):
        nps.load_ct(sitk.Image(8, 8, sitk.sitkInt16))
    with pytest.raises(PancreasSegError, match="3 volumes"):
        nps.load_ct(nib.Nifti1Image(np.zeros((8, 8, 8, 3)), np.eye(4)))
    with pytest.raises(PancreasSegError, match="normalised"):
        nps.load_ct(nib.Nifti1Image(np.linspace(0, 1, 512).reshape(8, 8, 8), np.eye(4)))
    with pytest.raises(PancreasSegError, match="series"):
        nps.load_ct(nib.Nifti1Image(body((24, 20, 6)), OBLIQUE), series=3)


def test_an_image_in_a_file_that_is_written_anew_stays_what_it_was(tmp_path: Path, body) -> None:
    path, stored = tmp_path / "ct.nii", body((24, 20, 6))
    affine = np.diag([-1.0, -1, 2, 1])  # needs no flips
    nib.save(nib.Nifti1Image(stored, affine), path)
    volume = nps.load_ct(nib.load(path))
    before = volume.hu.copy()
    with path.open("r+b") as file:
        file.seek(352)
        file.write(b"\0" * (path.stat().st_size - 352))
    assert np.array_equal(volume.hu, before)


def test_a_lazy_array_of_others_is_not_turned_in_place(body) -> None:
    stored = body((24, 20, 6))

    class Lazy:
        shape, dtype, ndim = stored.shape, stored.dtype, 3

        def __array__(self, *_: object, **__: object) -> np.ndarray:
            return stored

        def __getitem__(self, part: object) -> np.ndarray:
            return stored[part]

    before = stored.copy()
    nps.load_ct(nib.Nifti1Image(Lazy(), np.diag([1.0, 1, 2, 1])))
    assert np.array_equal(stored, before)


def test_analyze_does_not_say_where_left_and_right_are(body) -> None:
    stored = body((24, 20, 6)).astype(np.int16)
    affine = np.diag([-1.0, 1, 2, 1])
    with pytest.raises(PancreasSegError, match="left and right"):
        nps.load_ct(nib.AnalyzeImage(stored, affine))
    assert nps.load_ct(nib.Spm99AnalyzeImage(stored, affine)).grid.shape == (6, 20, 24)
