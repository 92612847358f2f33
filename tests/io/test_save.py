"""Every format out, read again by programs that know nothing of ours."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from napari_pancreas_seg import io
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import ScalarMap
from napari_pancreas_seg.io.itk import read as itk
from napari_pancreas_seg.volume import CTVolume

ITK = (".nrrd", ".mha")
ORIENTATIONS = list(
    itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
)
TILTED = np.array([[-1.0, 0, 0, 5], [0, -1, 0.4, 6], [0, 0, 3, 7], [0, 0, 0, 1]])


@st.composite
def cts(draw: st.DrawFn, oblique: bool = True) -> tuple[CTVolume, np.ndarray]:
    """A CT in any orientation with a mask that is not symmetric."""
    order, signs = draw(st.sampled_from(ORIENTATIONS))
    spacing = draw(st.tuples(*[st.floats(0.3, 6)] * 3))
    axes = np.zeros((3, 3))
    axes[list(order), range(3)] = np.multiply(signs, spacing)
    if oblique:
        angles = draw(st.tuples(*[st.floats(-25, 25)] * 3))
        axes = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ axes
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    shape = draw(st.tuples(*[st.integers(5, 11)] * 3))
    seed = draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    volume = CTVolume.from_source_array(rng.integers(-900, 900, shape).astype(np.int16), affine)
    mask = (rng.random(volume.grid.shape) < 0.1).astype(np.uint8)
    mask[0, 1, 2] = 1
    return volume, mask


def centroid(volume: CTVolume, mask: np.ndarray) -> np.ndarray:
    return volume.grid.world(np.argwhere(mask)).mean(axis=0)


def centroid_by_simpleitk(path: Path) -> np.ndarray:
    image = sitk.ReadImage(str(path))
    index = np.argwhere(sitk.GetArrayFromImage(image))[:, ::-1].mean(axis=0)
    point = image.TransformContinuousIndexToPhysicalPoint(index.tolist())
    return np.array(point) * (-1, -1, 1)


def settings_for(examples: int) -> settings:
    return settings(
        deadline=None,
        max_examples=examples,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


@pytest.mark.slow
@pytest.mark.parametrize("suffix", io.VOLUME_SUFFIXES)
@settings_for(30)
@given(case=cts())
def test_a_mask_lies_where_it_was_marked(
    case: tuple[CTVolume, np.ndarray], suffix: str, tmp_path: Path
) -> None:
    volume, mask = case
    path = io.save_mask(mask, volume, tmp_path / f"m{suffix}", overwrite=True)
    np.testing.assert_allclose(centroid_by_simpleitk(path), centroid(volume, mask), atol=1e-3)
    image = sitk.ReadImage(str(path))
    assert image.GetPixelID() == sitk.sitkUInt8
    stored = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    np.testing.assert_array_equal(stored, volume.to_source_order(mask))
    if suffix in (".nii.gz", ".nii"):
        np.testing.assert_allclose(nib.load(path).affine, volume.source.affine, atol=1e-4)
    else:
        np.testing.assert_allclose(itk.read(path).affine, volume.source.affine, atol=1e-10)
    again, on = io.load_mask(path)
    np.testing.assert_array_equal(again, mask)
    assert on.grid.same_as(volume.grid)


@pytest.mark.parametrize(("number", "suffix"), list(zip(range(48), itertools.cycle(ITK))))
def test_all_48_orientations_from_nifti(
    number: int, suffix: str, body: Callable, tmp_path: Path
) -> None:
    order, signs = ORIENTATIONS[number]
    axes = np.zeros((3, 3))
    axes[list(order), range(3)] = np.multiply(signs, (0.7, 0.9, 2.5))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (5, -8, 11), degrees=True).as_matrix() @ axes
    affine[:3, 3] = 10, -20, 30
    nib.save(nib.Nifti1Image(body((12, 11, 10), seed=number), affine), tmp_path / "ct.nii.gz")
    volume = io.load_ct(tmp_path / "ct.nii.gz")
    mask = np.zeros(volume.grid.shape, np.uint8)
    mask[2:4, 1:3, 5] = 1
    path = io.save_mask(mask, volume, tmp_path / f"m{suffix}")
    by_nibabel = np.argwhere(volume.to_source_order(mask)).mean(axis=0)
    expected = nib.load(tmp_path / "ct.nii.gz").affine @ (*by_nibabel, 1)
    np.testing.assert_allclose(centroid_by_simpleitk(path), expected[:3], atol=1e-3)


@pytest.mark.parametrize("out", io.VOLUME_SUFFIXES)
@pytest.mark.parametrize("suffix", io.VOLUME_SUFFIXES)
def test_a_ct_goes_from_format_to_format(
    suffix: str, out: str, body: Callable, tmp_path: Path
) -> None:
    affine = np.array([[0, 0.8, 0, 3], [-0.9, 0, 0, 4], [0, 0, 2.5, 5], [0, 0, 0, 1]])
    made = CTVolume.from_source_array(body((20, 18, 7)), affine)
    volume = io.load_ct(io.save_ct(made, tmp_path / f"a{suffix}"))
    again = io.load_ct(io.save_ct(volume, tmp_path / "out" / f"a{out}"))
    np.testing.assert_array_equal(again.hu, made.hu)
    assert again.hu.dtype == np.int16
    assert again.grid.same_as(made.grid, 1e-6)
    assert again.name == "a"
    fraction = CTVolume(made.hu + np.float32(0.25), made.grid, made.source)
    path = io.save_ct(fraction, tmp_path / "f" / f"a{out}")
    np.testing.assert_array_equal(io.load_ct(path).hu, fraction.hu)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ITK)
@settings_for(15)
@given(case=cts())
def test_maps_overlay_the_ct_and_come_back(
    case: tuple[CTVolume, np.ndarray], suffix: str, tmp_path: Path
) -> None:
    volume, _ = case
    grid = volume.grid.sub_grid((volume.grid.shape[0], 3, 4), (0, 1.5, 0.5), (1, 2, 3))
    values = np.zeros(grid.shape, np.float16)
    values[2, 1, 3], values[0] = 1, np.nan
    path = io.save_map(ScalarMap(values, grid), volume, tmp_path / f"p{suffix}", overwrite=True)
    found = io.sniff(path)
    assert found.kind == "map"
    np.testing.assert_allclose(centroid_by_simpleitk(path), grid.world((2, 1, 3)), atol=1e-3)
    np.testing.assert_array_equal(found.volume.values, np.nan_to_num(values))
    assert found.volume.grid.same_as(grid)


@pytest.mark.parametrize("suffix", ITK)
def test_a_sheared_ct_is_refused_with_a_way_out(
    suffix: str, body: Callable, tmp_path: Path
) -> None:
    volume = CTVolume.from_source_array(body((20, 18, 7)), TILTED)
    mask = (volume.hu > 0).astype(np.uint8)
    for refuse in (io.check_can_save, lambda path, like: io.save_mask(mask, like, path)):
        with pytest.raises(PancreasSegError, match=r"sheared.*\.nii\.gz"):
            refuse(tmp_path / f"m{suffix}", volume)
    assert list(tmp_path.iterdir()) == []
    io.check_can_save(tmp_path / "m.nii.gz", volume)
    io.check_can_save(tmp_path / "m.stl", volume)


@pytest.mark.parametrize("suffix", io.MASK_SUFFIXES)
def test_nothing_is_overwritten_without_being_told(
    suffix: str, body: Callable, tmp_path: Path
) -> None:
    volume = CTVolume.from_source_array(body((20, 18, 7)), np.diag([-1.0, -1, 3, 1]))
    target = tmp_path / f"m{suffix}"
    target.write_bytes(b"old")
    with pytest.raises(PancreasSegError, match=r"exists already|DICOM"):
        io.save_mask(volume.hu > 0, volume, target)
    assert target.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("suffix", ITK)
def test_the_ct_is_never_overwritten(suffix: str, body: Callable, tmp_path: Path) -> None:
    made = CTVolume.from_source_array(body((20, 18, 7)), np.diag([-1.0, -1, 3, 1]))
    volume = io.load_ct(io.save_ct(made, tmp_path / f"ct{suffix}"))
    with pytest.raises(PancreasSegError, match="CT itself"):
        io.save_mask(volume.hu > 0, volume, tmp_path / f"ct{suffix}", overwrite=True)


def test_voxels_beside_a_header_are_the_ct(body: Callable, tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(body((20, 18, 7))), str(tmp_path / "ct.mhd"))
    header = (tmp_path / "ct.mhd").read_text()
    (tmp_path / "ct.mhd").write_text(header.replace("ct.raw", "ct.mha"))
    before = (tmp_path / "ct.raw").rename(tmp_path / "ct.mha").read_bytes()
    volume = io.load_ct(tmp_path / "ct.mhd")
    for refuse in (io.check_can_save, lambda path, ct: io.save_mask(ct.hu > 0, ct, path)):
        with pytest.raises(PancreasSegError, match=r"'ct\.mha' is the CT itself"):
            refuse(tmp_path / "ct.mha", volume)
    assert (tmp_path / "ct.mha").read_bytes() == before


def test_a_mask_needs_a_loaded_ct(tmp_path: Path) -> None:
    with pytest.raises(PancreasSegError, match="load it first"):
        io.save_mask(np.zeros((3, 3, 3), np.uint8), "ct.nii.gz", tmp_path / "m.nii.gz")


def test_measurements_as_a_row(body: Callable, tmp_path: Path) -> None:
    made = CTVolume.from_source_array(body((20, 18, 7)), np.diag([-1.0, -1, 3, 1]))
    volume = io.load_ct(io.save_ct(made, tmp_path / "case 7.nrrd"))
    mask = np.zeros(volume.grid.shape, np.uint8)
    mask[1:3, 8:10, 8:13] = 1
    for like, known in ((volume, True), (CTVolume.of_grid(volume.grid, volume.source), False)):
        path = io.save_mask(mask, like, tmp_path / "m.csv", overwrite=True)
        (row,) = csv.DictReader(path.read_text().splitlines())
        assert row["case"] == "case 7"
        assert float(row["volume_ml"]) == pytest.approx(20 * 3 / 1000)
        assert float(row["extent_z_mm"]) == 6
        assert bool(row["mean_hu"]) == known


def test_the_same_mask_gives_the_same_bytes(body: Callable, tmp_path: Path) -> None:
    volume = CTVolume.from_source_array(body((20, 18, 7)), np.diag([-1.0, -1, 3, 1]))
    for suffix in (".nrrd", ".mha", ".stl", ".ply", ".obj", ".csv"):
        first, second = (
            io.save_mask(volume.hu > 0, volume, tmp_path / f"{n}{suffix}").read_bytes()
            for n in (1, 2)
        )
        assert first == second


def test_an_unknown_ending_names_those_there_are(body: Callable, tmp_path: Path) -> None:
    volume = CTVolume.from_source_array(body((20, 18, 7)), np.diag([-1.0, -1, 3, 1]))
    for name in ("m.vtk", "m.nhdr", "m.mhd"):
        with pytest.raises(PancreasSegError, match=re.escape(".nrrd, .mha, .dcm, .stl")):
            io.save_mask(volume.hu > 0, volume, tmp_path / name)
    for name in ("ct.stl", "ct.mhd"):
        with pytest.raises(PancreasSegError, match=r"\.nrrd or \.mha\."):
            io.save_ct(volume, tmp_path / name)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.full((4, 5, 6), 300, np.int16), "this file 300"),
        (np.full((4, 5, 6), 0.5, np.float32), r"this file 0\.5"),
        (np.full((4, 5, 6), np.nan), "voxels without a value"),
        (np.zeros((4, 5, 6, 2), np.uint8), "give one of them"),
    ],
)
def test_what_is_no_mask_and_why(labels: np.ndarray, said: str, tmp_path: Path) -> None:
    path = tmp_path / "m.nii.gz"
    nib.save(nib.Nifti1Image(labels, np.eye(4)), path)
    with pytest.raises(PancreasSegError, match=said):
        io.load_mask(path)


def test_what_is_no_map_is_not_written_as_one(tmp_path: Path) -> None:
    volume = CTVolume.from_array(np.arange(480).reshape(8, 10, 6) - 200, np.diag([-1, -1, 2, 1]))
    values = np.zeros(volume.grid.shape, np.float32)
    io.save_map(ScalarMap(values - 1e-4, volume.grid), volume, tmp_path / "p.nii.gz")
    for wrong in (ScalarMap(values - 2, volume.grid), volume):
        with pytest.raises(PancreasSegError, match="values from 0 to 1"):
            io.save_map(wrong, volume, tmp_path / "q.nii.gz")
    with pytest.raises(PancreasSegError, match="give its name"):
        io.save_mask(values > 0, volume, None)
    assert [path.name for path in tmp_path.iterdir()] == ["p.nii.gz"]
