"""What is unusual in the header of a file with one array is noted, and nothing else is."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from napari_pancreas_seg import io

AFFINE = np.diag([-4.5, -4.5, 7.0, 1.0])


@pytest.fixture(scope="module")
def stored(drawn):
    return drawn(0).volume.hu.transpose(2, 1, 0)


def notes_of(tmp_path, values, change=lambda image: None):
    image = nib.Nifti1Image(values, AFFINE)
    image.header.set_xyzt_units("mm")
    change(image)
    path = tmp_path / "ct.nii.gz"
    nib.save(image, path)
    return io.load_ct(path).notes


def no_place(image):
    image.set_sform(None, 0)
    image.set_qform(None, 0)


def two_places(image):
    image.set_sform(AFFINE, 1)
    image.set_qform(
        AFFINE @ np.array([[1, 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), 1
    )


def microns(image):
    image.set_sform(np.diag([1000.0, 1000.0, 1000.0, 1.0]) @ AFFINE, 1)
    image.header.set_xyzt_units("micron")


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (no_place, "no sform, no qform"),
        (two_places, "22.5 mm apart: the sform is used"),
        (microns, "another unit than mm"),
    ],
)
def test_what_is_unusual_in_a_nifti_header_is_noted(change, note, stored, tmp_path):
    (found,) = notes_of(tmp_path, stored, change)
    assert note in found


@pytest.mark.parametrize("number", [0, np.nan])
def test_the_qform_places_a_ct_whose_sform_is_empty(number, stored, tmp_path):
    image = nib.Nifti1Image(stored, AFFINE)
    image.set_qform(AFFINE, 1)
    content = bytearray(image.to_bytes())
    content[280:328] = np.full(12, number, "<f4").tobytes()  # srow_x, srow_y, srow_z
    (tmp_path / "ct.nii").write_bytes(content)
    volume = io.load_ct(tmp_path / "ct.nii")
    np.testing.assert_allclose(volume.source.affine, AFFINE, atol=1e-5)
    assert [note for note in volume.notes if "sform is empty" in note] == list(volume.notes)
    mask = volume.hu > 0
    again, on = io.load_mask(io.save_mask(mask, volume, tmp_path / "m.nii.gz"))
    np.testing.assert_array_equal(again, mask)
    assert on.grid.same_as(volume.grid)
    np.testing.assert_allclose(nib.load(tmp_path / "m.nii.gz").affine, AFFINE, atol=1e-5)


def test_a_plain_file_has_no_notes(stored, tmp_path):
    assert notes_of(tmp_path, stored) == ()


@pytest.mark.parametrize(
    ("bad", "said"), [((np.nan, -np.inf), "2 voxels of"), ((2_000_000,), "1 voxel of")]
)
def test_voxels_without_a_value_are_counted(bad, said, stored, tmp_path):
    values = stored.astype(np.float32)
    values[: len(bad), 0, 0] = bad
    (found,) = notes_of(tmp_path, values)
    why = "NaN, infinite or beyond ±1,000,000"
    assert found == f"{said} this CT had no usable value ({why}): taken as air (-1024 HU)."


@pytest.mark.parametrize("space", ["", "left-posterior-superior"])
def test_a_header_without_an_anatomical_space_is_noted(space, stored, tmp_path):
    path = tmp_path / "ct.nrrd"
    image = sitk.GetImageFromArray(stored.transpose(2, 1, 0))
    image.SetSpacing((3.0, 3.0, 8.0))
    sitk.WriteImage(image, path)
    head, _, values = path.read_bytes().partition(b"\n\n")
    if not space:
        head = head.replace(b"space: left-posterior-superior", b"space dimension: 3")
    path.write_bytes(head + b"\n\n" + values)
    assert [("no anatomical space" in note) for note in io.load_ct(path).notes] == [True] * (
        not space
    )
