"""Surfaces: closed, the right way round, as large as the mask and where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_pancreas_seg import io
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.mesh import surface
from napari_pancreas_seg.volume import CTVolume, Grid

LPS = np.array([-1, -1, 1])
AFFINES = {
    "as displayed": np.array([[0, 0, -0.8, 100], [0, -0.8, 0, 90], [2.5, 0, 0, -40], [0, 0, 0, 1]]),
    "other hand": np.array([[0, 0, 0.8, 100], [0, -0.8, 0, 90], [2.5, 0, 0, -40], [0, 0, 0, 1]]),
    "sheared": np.array([[0, 0, -1.0, 0], [0.6, -1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1]]),
    "oblique": np.array(
        [[0.1, 0.2, -0.9, 5], [0.3, -0.9, -0.2, 6], [2.4, 0.2, 0.2, 7], [0, 0, 0, 1]]
    ),
}


def gland(shape: tuple[int, int, int] = (12, 40, 50)) -> np.ndarray:
    """A bent sausage."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return ((x / 0.8) ** 2 + ((y - 0.5 * x**2) / 0.3) ** 2 + (z / 0.6) ** 2 < 1).astype(np.uint8)


@pytest.mark.parametrize("name", AFFINES)
def test_a_gland(name: str) -> None:
    mask, grid = gland(), Grid((12, 40, 50), AFFINES[name])
    mesh = surface(mask, grid)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    volume = mask.sum() * grid.voxel_volume_mm3
    assert mesh.volume == pytest.approx(volume, rel=0.01)  # positive: normals point outward
    centre = grid.world(np.argwhere(mask)).mean(axis=0) * LPS
    np.testing.assert_allclose(mesh.center_mass, centre, atol=0.1)
    # Half a voxel at most from where the mask ends.
    index = grid.index(mesh.vertices * LPS)
    for axis, found in enumerate(np.nonzero(mask)):
        assert index[:, axis].min() == pytest.approx(found.min() - 0.5, abs=0.5)
        assert index[:, axis].max() == pytest.approx(found.max() + 0.5, abs=0.5)


def test_it_is_smooth() -> None:
    mask, grid = gland(), Grid((12, 40, 50), AFFINES["as displayed"])
    steps = trimesh.Trimesh(*_stairs(mask, grid), process=False)
    mesh = surface(mask, grid)
    before, after = (np.abs(it.face_adjacency_angles) > 0.7 for it in (steps, mesh))
    assert before.mean() > 0.1  # edges bent by more than 40°
    assert after.mean() < 0.01


def _stairs(mask: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    from skimage.measure import marching_cubes

    points, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5)
    return grid.world(points - 1), faces


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), share=st.floats(0.01, 0.7))
def test_whatever_a_person_paints_is_closed(seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((5, 6, 7)) < share
    mask[0, 0, 0] = True  # at the edge of the CT, too
    grid = Grid(mask.shape, AFFINES["other hand"])
    mesh = surface(mask, grid)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(mask.sum() * grid.voxel_volume_mm3, rel=0.03)
    assert np.isfinite(mesh.vertices).all()


@pytest.mark.parametrize("suffix", [".stl", ".ply", ".obj"])
def test_files(suffix: str, tmp_path: Path) -> None:
    mask = gland()
    array = np.zeros(mask.shape, np.int16)
    grid = Grid(mask.shape, AFFINES["as displayed"])
    like = CTVolume.from_source_array(
        array.transpose(2, 1, 0), AFFINES["as displayed"][:, [2, 1, 0, 3]]
    )
    path = io.save_mask(mask, like, tmp_path / f"m{suffix}")
    assert b"SPACE=LPS" in path.read_bytes()[:200]
    read = trimesh.load_mesh(path)
    assert read.is_watertight
    assert read.volume == pytest.approx(mask.sum() * grid.voxel_volume_mm3, rel=0.03)
    expected = surface(mask, grid)
    np.testing.assert_allclose(read.bounds, expected.bounds, atol=1e-3)


def test_an_empty_mask_has_no_surface(tmp_path: Path) -> None:
    like = CTVolume.from_source_array(np.zeros((4, 4, 4), np.int16), np.eye(4))
    with pytest.raises(PancreasSegError, match="empty"):
        io.save_mask(np.zeros((4, 4, 4), np.uint8), like, tmp_path / "m.stl")
    assert list(tmp_path.iterdir()) == []
