"""A mask lies where the CT lies, for every program, whatever the CT's orientation."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from napari_pancreas_seg import io
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import ScalarMap
from napari_pancreas_seg.io.nifti import write
from napari_pancreas_seg.io.raw import MAP_SLOPE
from napari_pancreas_seg.volume import CTVolume

ORIENTATIONS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
SPACING = (0.7, 0.9, 2.5)


def oriented(order: tuple[int, ...], signs: tuple[int, ...], seed: int) -> np.ndarray:
    """An oblique affine whose axis i runs along world axis order[i]."""
    rng = np.random.default_rng(seed)
    tilt = Rotation.from_euler("xyz", rng.uniform(-20, 20, 3), degrees=True).as_matrix()
    axes = np.zeros((3, 3))
    for axis, (target, sign) in enumerate(zip(order, signs, strict=True)):
        axes[target, axis] = sign * SPACING[axis]
    affine = np.eye(4)
    affine[:3, :3] = tilt @ axes
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    return affine


@pytest.mark.parametrize("number", range(len(ORIENTATIONS)))
def test_all_48_orientations(number: int, body: Callable, tmp_path: Path) -> None:
    affine = oriented(*ORIENTATIONS[number], seed=number)
    shape = tuple(int(n) for n in np.random.default_rng(number).integers(7, 24, 3))
    array = body(shape, seed=number)
    marked = tuple(int(n) for n in np.random.default_rng(number).integers(0, shape))
    array[marked] = 1500
    path, mask_path = tmp_path / "ct.nii.gz", tmp_path / "mask.nii.gz"
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, path)

    volume = io.load_ct(path)
    found = np.argwhere(volume.hu == 1500)
    assert len(found) == 1
    world = nib.load(path).affine @ (*marked, 1)
    np.testing.assert_allclose(volume.grid.world(found[0]), world[:3], atol=1e-4)
    # Display order: up, back, left are the axes that these directions are nearest to.
    directions = volume.grid.affine[:3, :3] / volume.spacing
    for axis, (along, sign) in enumerate([(2, 1), (1, -1), (0, -1)]):
        assert np.argmax(np.abs(directions[:, axis])) == along
        assert np.sign(directions[along, axis]) == sign

    io.save_mask(volume.hu == 1500, volume, mask_path)
    mask = nib.load(mask_path)
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(mask.dataobj), array == 1500)
    assert mask.affine.tobytes() == nib.load(path).affine.tobytes()

    ct, other = sitk.ReadImage(str(path)), sitk.ReadImage(str(mask_path))
    assert ct.GetSize() == other.GetSize()
    assert ct.GetSpacing() == other.GetSpacing()
    assert ct.GetOrigin() == other.GetOrigin()
    assert ct.GetDirection() == other.GetDirection()
    assert np.argwhere(sitk.GetArrayFromImage(other)).tolist() == [list(reversed(marked))]

    again, _ = io.load_mask(mask_path)
    np.testing.assert_array_equal(again, volume.hu == 1500)


def test_sheared_affine(body: Callable, tmp_path: Path) -> None:
    affine = np.diag([1.0, 1, 2, 1])
    affine[1, 2] = 0.6  # a tilted gantry
    nib.save(nib.Nifti1Image(body((20, 20, 8)), affine), tmp_path / "ct.nii")
    volume = io.load_ct(tmp_path / "ct.nii")
    io.save_mask(volume.hu > 0, volume, tmp_path / "mask.nii")
    before, after = nib.load(tmp_path / "ct.nii"), nib.load(tmp_path / "mask.nii")
    assert after.affine.tobytes() == before.affine.tobytes()


GEOMETRY = (
    *("dim", "pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("extra", [(), (1,), (1, 1)])
@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 2), (1, 2)])
def test_every_field_of_geometry_is_copied_and_nothing_else(
    kind: type,
    endianness: str,
    extra: tuple[int, ...],
    codes: tuple[int, int],
    body: Callable,
    tmp_path: Path,
) -> None:
    shape = (20, 18, 7)
    header = kind.header_class(endianness=endianness)
    header.set_data_dtype(np.dtype(np.int16).newbyteorder(endianness))
    header["descrip"] = b"DOE^JOHN"
    header["aux_file"] = b"doe.txt"
    header["intent_name"] = b"doe"
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JOHN"))
    image = kind(body(shape).reshape(*shape, *extra), None, header)
    affine = oriented((1, 0, 2), (1, -1, -1), 3)
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    path, mask_path = tmp_path / "ct.nii", tmp_path / "mask.nii"
    nib.save(image, path)

    volume = io.load_ct(path)
    assert volume.hu.dtype == np.int16
    assert volume.hu.ndim == 3
    io.save_mask(volume.hu > 0, volume, mask_path)
    before, after = nib.load(path), nib.load(mask_path)
    assert type(after) is kind
    assert after.shape == before.shape == (*shape, *extra)
    for name in GEOMETRY:
        assert after.header[name].tolist() == before.header[name].tolist(), name
    assert_same_image(io.mask_image(np.uint8(volume.hu > 0), volume), after)
    np.testing.assert_array_equal(np.asarray(after.dataobj), np.asarray(before.dataobj) > 0)
    assert b"doe" not in mask_path.read_bytes().lower()
    assert bool(volume.notes) == (codes == (0, 0))


def assert_same_image(found: nib.Nifti1Image, saved: nib.Nifti1Image) -> None:
    """What nibabel gets from us in memory is what it reads from our file."""
    assert type(found) is type(saved) and found.get_data_dtype() == saved.get_data_dtype()
    for name in GEOMETRY:
        assert found.header[name].tolist() == saved.header[name].tolist(), name
    assert found.affine.tobytes() == saved.affine.tobytes()
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(saved.dataobj))


def test_the_image_of_a_mask_is_mended_as_nibabel_mends_a_file(
    body: Callable, tmp_path: Path
) -> None:
    image = nib.Nifti1Image(body((20, 20, 6)), None)
    image.set_sform(None, 0)
    image.set_qform(np.diag([-1.0, -1, 3, 1]), 1)
    nib.save(image, tmp_path / "ct.nii")
    with open(tmp_path / "ct.nii", "r+b") as file:
        file.seek(76)  # pixdim[0], which should be 1 or -1
        file.write(np.float32(0).tobytes())
    volume = io.load_ct(tmp_path / "ct.nii")
    path = io.save_mask(volume.hu > 0, volume, tmp_path / "mask.nii")
    assert_same_image(io.mask_image(np.uint8(volume.hu > 0), volume), nib.load(path))


def test_qform_and_sform_that_disagree_are_noted(body: Callable, tmp_path: Path) -> None:
    image = nib.Nifti1Image(body((20, 20, 6)), np.diag([1, 1, 3, 1]))
    moved = np.diag([1.0, 1, 3, 1])
    moved[0, 3] = 40
    image.set_qform(moved, 1)
    nib.save(image, tmp_path / "ct.nii")
    volume = io.load_ct(tmp_path / "ct.nii")
    assert any("40 mm" in note for note in volume.notes)
    np.testing.assert_array_equal(volume.source.affine, image.affine)


def test_lengths_in_metres(body: Callable, tmp_path: Path) -> None:
    image = nib.Nifti1Image(body((20, 20, 6)), np.diag([-0.001, -0.001, 0.003, 1]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "ct.nii")
    volume = io.load_ct(tmp_path / "ct.nii")
    np.testing.assert_allclose(volume.spacing, (3, 1, 1), rtol=1e-6)
    io.save_mask(volume.hu > 0, volume, tmp_path / "mask.nii")
    mask = nib.load(tmp_path / "mask.nii")
    assert mask.header.get_xyzt_units()[0] == "meter"
    assert mask.affine.tobytes() == nib.load(tmp_path / "ct.nii").affine.tobytes()


def test_volume_made_in_memory(body: Callable, tmp_path: Path) -> None:
    affine = oriented((2, 0, 1), (-1, 1, 1), 5)
    volume = CTVolume.from_source_array(body((20, 16, 9)), affine)
    io.save_ct(volume, tmp_path / "ct.nii.gz")
    io.save_mask(volume.hu > 0, volume, tmp_path / "mask.nii.gz")
    again = io.load_ct(tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(again.hu, volume.hu)
    assert again.grid.same_as(volume.grid)
    held = io.mask_image(np.uint8(volume.hu > 0), volume)
    assert_same_image(held, nib.load(tmp_path / "mask.nii.gz"))
    mask = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    assert sitk.ReadImage(str(tmp_path / "ct.nii.gz")).GetOrigin() == mask.GetOrigin()
    np.testing.assert_allclose(mask.GetSpacing(), SPACING, rtol=1e-5)


@pytest.mark.parametrize("number", range(0, 48, 5))
def test_maps_overlay_the_ct(number: int, body: Callable, tmp_path: Path) -> None:
    affine = oriented(*ORIENTATIONS[number], seed=number)
    volume = CTVolume.from_source_array(body((20, 22, 12)), affine)
    shape = (volume.grid.shape[0], 5, 4)
    grid = volume.grid.sub_grid(shape, (0, 1.5, 2.5), (1, 4, 4))
    values = np.zeros(shape, np.float16)
    values[3, 4, 1] = 1.0
    values[5] = np.nan
    io.save_map(ScalarMap(values, grid), volume, tmp_path / "map.nii.gz")

    image = nib.load(tmp_path / "map.nii.gz")
    written = np.asarray(image.dataobj)
    assert nib.aff2axcodes(image.affine) == nib.aff2axcodes(affine)
    assert written.min() == 0
    assert written.max() == 1  # exactly, and no NaN
    (index,) = np.argwhere(written == 1)
    np.testing.assert_allclose(image.affine @ (*index, 1), (*grid.world((3, 4, 1)), 1), atol=1e-3)
    reader = sitk.ReadImage(str(tmp_path / "map.nii.gz"))
    point = np.array(reader.TransformIndexToPhysicalPoint([int(n) for n in index]))
    np.testing.assert_allclose(point * (-1, -1, 1), grid.world((3, 4, 1)), atol=1e-3)


def test_maps_come_back(body: Callable, tmp_path: Path) -> None:
    volume = CTVolume.from_source_array(body((20, 22, 12)), oriented((2, 1, 0), (-1, 1, -1), 7))
    grid = volume.grid.sub_grid((20, 5, 4), (0, 1.5, 2.5), (1, 4, 4))
    values = np.random.default_rng(0).random(grid.shape).astype(np.float16)
    path = io.save_map(ScalarMap(values, grid), volume, tmp_path / "map.nii.gz")
    found = io.sniff(path).volume
    np.testing.assert_allclose(found.values, values, atol=4e-5)
    assert found.grid.same_as(grid)
    ct = io.save_ct(volume, tmp_path / "ct.nii.gz")
    assert [io.sniff(item).kind for item in (path, ct)] == ["map", "CT"]
    header = write.header_of((4, 5, 6), np.eye(4))
    write.write(np.full((4, 5, 6), -9, np.int16), header, tmp_path / "x.nii", slope=MAP_SLOPE)
    with pytest.raises(PancreasSegError, match="not a map"):
        io.sniff(tmp_path / "x.nii")


def test_maps_keep_their_values(body: Callable, tmp_path: Path) -> None:
    volume = CTVolume.from_source_array(body((20, 20, 6)), np.diag([-1, -1, 2, 1]))
    values = np.random.default_rng(0).random(volume.grid.shape).astype(np.float16)
    io.save_map(ScalarMap(values, volume.grid), volume, tmp_path / "map.nii")
    image = nib.load(tmp_path / "map.nii")
    assert image.get_data_dtype() == np.int16
    again = np.asarray(image.dataobj).transpose(2, 1, 0)
    np.testing.assert_allclose(again, values, atol=4e-5)
