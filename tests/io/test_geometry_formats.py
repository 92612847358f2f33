"""From any format to any other: every marked voxel lies where it was marked.

CTs are written by independent programs (nibabel, SimpleITK, pydicom) in every orientation, and
what we write is read by independent ones (nibabel, SimpleITK, highdicom, dcm2niix). What is
compared are positions in the patient, in mm.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from dicom_series import body, write_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from napari_pancreas_seg import io
from napari_pancreas_seg.io import VOLUME_SUFFIXES
from napari_pancreas_seg.io.suffixes import VOLUME
from napari_pancreas_seg.volume import CTVolume

Array = npt.NDArray[Any]

LPS = np.diag([-1.0, -1.0, 1.0])
TOLERANCE_MM = 1e-3
ORIENTATIONS = list(
    itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
)

INPUTS = (*VOLUME, "nifti2", "qform", "big-endian", "dicom", "multi-frame")
SHEARED_INPUTS = (".nii.gz", "nifti2", "big-endian")


def affine_of(
    orientation: tuple[Any, Any], spacing: Any, angles: Any, origin: Any, shear: float = 0.0
) -> Array:
    """An affine whose axis i runs along the world's axis order[i], more or less."""
    order, signs = orientation
    axes = np.zeros((3, 3))
    axes[list(order), range(3)] = signs
    axes = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ axes
    axes[:, 2] += shear * axes[:, 1]
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = origin
    return affine


def write_ct(kind: str, array: Array, affine: Array, folder: Path) -> Path:
    """Write a CT with a program that is not ours."""
    if kind in ("dicom", "multi-frame"):
        series = write_series(folder / "series", array, affine, multiframe=kind == "multi-frame")
        return series.folder
    if kind in VOLUME and not kind.startswith(".nii"):
        image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        image.SetSpacing(spacing)
        image.SetDirection((LPS @ affine[:3, :3] / spacing).ravel())
        image.SetOrigin(LPS @ affine[:3, 3])
        path = folder / f"ct{kind}"
        sitk.WriteImage(image, str(path), useCompression=bool(array.shape[0] % 2))
        return path
    image_type = nib.Nifti2Image if kind == "nifti2" else nib.Nifti1Image
    header = image_type.header_class(endianness=">" if kind == "big-endian" else "<")
    made = image_type(array, affine, header)
    if kind == "qform":
        made.set_qform(affine, 1)
        made.set_sform(affine, 0)
    path = folder / ("ct.nii" if kind == ".nii" else "ct.nii.gz")
    nib.save(made, path)
    return path


def by_nibabel(path: Path) -> Array:
    image = nib.load(path)
    marked = np.argwhere(np.asarray(image.dataobj).reshape(image.shape[:3]))
    return nib.affines.apply_affine(image.affine, marked)


def by_simpleitk(path: Path) -> Array:
    image = sitk.ReadImage(str(path))
    marked = np.argwhere(sitk.GetArrayFromImage(image))[:, ::-1]
    points = [image.TransformIndexToPhysicalPoint([int(n) for n in index]) for index in marked]
    return np.asarray(points) @ LPS


def by_highdicom(path: Path) -> Array:
    """Positions by the standard's own formula (PS3.3 C.7.6.2.1.1), plane by plane."""
    import highdicom as hd
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = hd.seg.Segmentation.from_dataset(pydicom.dcmread(path))
    frames = data.pixel_array.reshape(-1, data.Rows, data.Columns)
    shared = data.SharedFunctionalGroupsSequence[0]
    rows, columns = (float(n) for n in shared.PixelMeasuresSequence[0].PixelSpacing)
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    found = []
    for frame, group in zip(frames, data.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        for row, column in np.argwhere(frame):
            found.append(
                position + orientation[:3] * columns * column + orientation[3:] * rows * row
            )
    return np.asarray(found) @ LPS


def assert_same_places(found: Array, marked: Array) -> None:
    """Every mark is found once and nothing else is."""
    assert found.shape == marked.shape
    distance = np.linalg.norm(found[:, None] - marked[None], axis=2)
    assert distance.min(axis=0).max() < TOLERANCE_MM
    assert distance.min(axis=1).max() < TOLERANCE_MM
    assert np.abs(found.mean(axis=0) - marked.mean(axis=0)).max() < TOLERANCE_MM


def check(
    kind: str,
    suffixes: tuple[str, ...],
    shape: tuple[int, int, int],
    affine: Array,
    seed: int,
    readers: dict[str, Callable[[Path], Array]],
) -> None:
    """Write a CT, load it, mark voxels by where they lie, save, and read elsewhere."""
    rng = np.random.default_rng(seed)
    array = body(shape, seed)
    index = np.unique(rng.integers(0, shape, (9, 3)), axis=0)
    with TemporaryDirectory() as name:
        folder = Path(name)
        written = write_ct(kind, array, affine, folder)
        if kind == "qform":  # float32: near half a turn some µm are lost
            affine = nib.load(written).affine
        world = nib.affines.apply_affine(affine, index)
        volume = io.load_ct(written)
        places = volume.grid.index(world)
        marks = tuple(np.rint(places).astype(int).T)
        # Where they were written they are found, with the values that they had.
        assert np.abs(volume.grid.world(np.transpose(marks)) - world).max() < TOLERANCE_MM
        np.testing.assert_array_equal(volume.hu[marks], array[tuple(index.T)])
        mask = np.zeros(volume.grid.shape, np.uint8)
        mask[marks] = 1
        for suffix in suffixes:
            path = io.save_mask(mask, volume, folder / f"mask{suffix}")
            for reader in {readers[suffix], *([by_simpleitk] if suffix in VOLUME_SUFFIXES else [])}:
                nifti = suffix.startswith(".nii")
                if reader is by_simpleitk and nifti and (kind == "nifti2" or _is_sheared(affine)):
                    continue  # it reads neither, the CT as little as the mask
                assert_same_places(reader(path), world)
            again, on = io.load_mask(path)
            assert_same_places(on.grid.world(np.argwhere(again)), world)


def _is_sheared(affine: Array) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > 1e-4)


READERS = {
    **{
        suffix: by_nibabel if suffix.startswith(".nii") else by_simpleitk
        for suffix in VOLUME_SUFFIXES
    },
    ".dcm": by_highdicom,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", INPUTS)
@settings(
    max_examples=4,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    orientation=st.sampled_from(ORIENTATIONS),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    angles=st.tuples(*[st.floats(-30, 30)] * 3),
    origin=st.tuples(*[st.floats(-400, 400)] * 3),
    shape=st.tuples(*[st.integers(9, 19)] * 3),
    seed=st.integers(0, 10_000),
)
def test_every_pair_of_formats(
    kind: str, orientation: Any, spacing: Any, angles: Any, origin: Any, shape: Any, seed: int
) -> None:
    suffixes = VOLUME_SUFFIXES
    if kind in ("dicom", "multi-frame"):
        suffixes = (*suffixes, ".dcm")
    affine = affine_of(orientation, spacing, angles, origin)
    check(kind, suffixes, shape, affine, seed, READERS)


@pytest.mark.parametrize("number", range(48))
def test_all_48_orientations_through_dicom(number: int) -> None:
    """Each once for certain, with odd sizes and a different spacing along each axis."""
    affine = affine_of(ORIENTATIONS[number], (0.7, 0.9, 2.5), (3, -2, 4), (11.5, -90, 33))
    suffixes = (".nii.gz", ".dcm") if number % 6 == 0 else (".nii.gz",)
    check("dicom", suffixes, (13, 11, 9), affine, number, READERS)


@pytest.mark.parametrize("number", range(48))
def test_all_48_orientations_through_nrrd_and_metaimage(number: int) -> None:
    affine = affine_of(ORIENTATIONS[number], (0.7, 0.9, 2.5), (-5, 7, 2), (-80, 9.25, 400))
    check((".nrrd", ".mha")[number % 2], (".nii", ".mha"), (13, 11, 9), affine, number, READERS)


@pytest.mark.parametrize("kind", SHEARED_INPUTS)
@settings(max_examples=4, deadline=None)
@given(
    orientation=st.sampled_from(ORIENTATIONS),
    angles=st.tuples(*[st.floats(-20, 20)] * 3),
    shear=st.floats(-0.6, 0.6),
    seed=st.integers(0, 10_000),
)
def test_sheared(kind: str, orientation: Any, angles: Any, shear: float, seed: int) -> None:
    affine = affine_of(orientation, (0.8, 0.8, 3.0), angles, (5, 6, 7), shear)
    check(kind, (".nii.gz", ".nii"), (12, 13, 9), affine, seed, READERS)


@pytest.mark.parametrize("number", [0, 5, 19, 30, 41, 47])
def test_dcm2niix_sees_the_mask_on_the_series(number: int, tmp_path: Path) -> None:
    """What it makes of the series, and our mask of the same series, lie on one another."""
    program = shutil.which("dcm2niix") or shutil.which("dcm2niix", path=Path(sys.executable).parent)
    if program is None:
        pytest.skip("dcm2niix is not installed")
    affine = affine_of(ORIENTATIONS[number], (0.75, 0.75, 2.5), (2, 3, -2), (20, -30, 100))
    array = body((22, 20, 9), number)
    marked = tuple(int(n) for n in np.random.default_rng(number).integers(0, array.shape))
    array[marked] = 2500
    series = write_series(tmp_path / "series", array, affine)
    subprocess.run(
        [program, "-z", "n", "-f", "theirs", "-o", str(tmp_path), str(series.folder)],
        check=True,
        capture_output=True,
    )
    theirs = nib.load(next(tmp_path.glob("theirs*.nii")))
    seen = nib.affines.apply_affine(theirs.affine, np.argwhere(theirs.get_fdata() == 2500))
    volume = io.load_ct(series.folder)
    path = io.save_mask(volume.hu == 2500, volume, tmp_path / "mask.nii.gz")
    assert_same_places(by_nibabel(path), seen)
    np.testing.assert_allclose(seen[0], nib.affines.apply_affine(affine, marked), atol=1e-3)


def test_it_would_notice() -> None:
    """A mirrored, moved or incomplete mask is not the same."""
    marked = np.array([[1.0, 2, 3], [4, 5, 6]])
    assert_same_places(marked[::-1], marked)
    for wrong in (marked * (-1, 1, 1), marked + 2e-3, marked[:1], np.vstack([marked, marked[:1]])):
        with pytest.raises(AssertionError):
            assert_same_places(wrong, marked)


def test_a_volume_made_in_memory_goes_to_every_format(tmp_path: Path) -> None:
    affine = affine_of(ORIENTATIONS[29], (0.7, 1.1, 2.5), (10, -8, 3), (1, 2, 3))
    volume = CTVolume.from_source_array(body((15, 12, 10)), affine)
    mask = np.zeros(volume.grid.shape, np.uint8)
    mask[3, 4, 5] = mask[7, 1, 2] = 1
    world = volume.grid.world(np.argwhere(mask))
    for suffix in VOLUME_SUFFIXES:
        path = io.save_mask(mask, volume, tmp_path / f"m{suffix}")
        assert_same_places(READERS[suffix](path), world)
