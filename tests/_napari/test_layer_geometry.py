"""Whatever is done to a layer, what is drawn in it is written where it was drawn."""

from __future__ import annotations

import itertools
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from napari.components import ViewerModel
from napari.layers import Image, Labels
from scipy.spatial.transform import Rotation

from napari_pancreas_seg import load_ct

PLUGIN = "napari-pancreas-seg"
pytestmark = pytest.mark.usefixtures("manifest")

ORIENTATIONS = list(
    itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
)
SHOWN_TO_RAS = np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0]])
"""napari's (z, y, x) to the patient: z up, y to the back, x to the left."""

angles = st.tuples(*[st.floats(-40, 40)] * 3)
spacings = st.tuples(*[st.floats(0.4, 5)] * 3)
offsets = st.tuples(*[st.floats(-200, 200)] * 3)
quick = settings(
    max_examples=5,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def rotation(degrees: Any) -> np.ndarray:
    return Rotation.from_euler("zyx", degrees, degrees=True).as_matrix()


def marks(layer: Labels, seed: int) -> np.ndarray:
    """Draw single voxels, and return their indices."""
    index = np.random.default_rng(seed).integers(0, layer.data.shape, (6, 3))
    # Not by `data_setitem`, which fails in napari if the slice on screen misses the layer.
    layer.data[tuple(index.T)] = 1
    layer.refresh()
    return np.argwhere(layer.data)


def positions(path: Path) -> np.ndarray:
    image = nib.load(path)
    return nib.affines.apply_affine(image.affine, np.argwhere(np.asarray(image.dataobj)))


def assert_same_places(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    distance = np.linalg.norm(found[:, None] - wanted[None], axis=2)
    assert max(distance.min(axis=0).max(), distance.min(axis=1).max()) < 1e-3


@pytest.mark.slow
@quick
@given(
    orientation=st.sampled_from(ORIENTATIONS),
    spacing=spacings,
    tilt=st.tuples(*[st.floats(-25, 25)] * 3),
    scale=spacings,
    translate=offsets,
    turn=angles,
    kind=st.sampled_from(["copied", "bare", "moved"]),
    seed=st.integers(0, 999),
)
def test_labels_of_our_ct(
    viewer: ViewerModel, orientation: Any, spacing: Any, tilt: Any, scale: Any, translate: Any,
    turn: Any, kind: str, seed: int,
) -> None:  # fmt: skip
    """The CT's own voxels are what counts, however its layers are turned and moved on screen."""
    from unittest.mock import patch

    order, signs = orientation
    axes = np.zeros((3, 3))
    axes[list(order), range(3)] = signs
    affine = np.eye(4)
    affine[:3, :3] = rotation(tilt) @ axes * spacing
    affine[:3, 3] = translate
    with TemporaryDirectory() as name:
        path = Path(name) / "ct.nii"
        i, j, k = np.indices((17, 13, 9))
        r = np.hypot(i / 8 - 1, j / 6 - 1)
        hu = np.where(r < 0.8, 40 + i + 2 * k, np.where(r < 1, -100, -1000)).astype(np.int16)
        image = nib.Nifti1Image(hu, affine)
        image.set_sform(affine, 1)
        nib.save(image, path)
        viewer.layers.clear()
        (ct,) = viewer.open(path, plugin=PLUGIN)
        labels = Labels(np.zeros(ct.data.shape, np.uint8), name="drawn", scale=ct.scale)
        if kind != "bare":
            labels.metadata = ct.metadata
        if kind == "moved":
            labels.scale, labels.translate, labels.rotate = scale, translate, rotation(turn)
            ct.affine = nib.affines.from_matvec(rotation(turn), translate)
        viewer.add_layer(labels)
        drawn = marks(labels, seed)
        with patch("napari_pancreas_seg._napari.layers.writer.current_viewer", lambda: viewer):
            labels.save(str(Path(name) / "m.nii.gz"))
        assert_same_places(positions(Path(name) / "m.nii.gz"), load_ct(path).grid.world(drawn))
        # The CT's values tell which of its voxels these are.
        written = np.asarray(nib.load(Path(name) / "m.nii.gz").dataobj)
        assert written.shape == hu.shape
        assert sorted(hu[written > 0]) == sorted(ct.data[tuple(drawn.T)])
        np.testing.assert_array_equal(nib.load(Path(name) / "m.nii.gz").affine, image.affine)
        (again,) = viewer.open(Path(name) / "m.nii.gz", plugin=PLUGIN)
        np.testing.assert_array_equal(again.data, labels.data)


@quick
@given(
    scale=spacings,
    translate=offsets,
    turn=angles,
    further=angles,
    seed=st.integers(0, 999),
    suffix=st.sampled_from([".nii.gz", ".nrrd", ".mha"]),
)
def test_layers_that_others_made(
    viewer: ViewerModel, scale: Any, translate: Any, turn: Any, further: Any, seed: int, suffix: str
) -> None:
    """Of them nobody knows more than how they are shown: there the mask is written."""
    affine = np.eye(4)
    affine[:3, :3] = rotation(further)
    affine[:3, 3] = translate[::-1]
    transform = {
        **{"scale": scale, "translate": translate, "rotate": rotation(turn)},
        **{"affine": affine, "units": ("mm",) * 3},
    }
    image = Image(np.random.default_rng(0).integers(-900, 900, (9, 12, 11)), **transform)
    labels = Labels(np.zeros((9, 12, 11), np.uint8), **transform)
    drawn = marks(labels, seed)
    shown = np.array([image.data_to_world(index) for index in drawn]) @ SHOWN_TO_RAS.T
    with TemporaryDirectory() as name:
        path = Path(name) / f"m{suffix}"
        labels.save(str(path))
        if suffix == ".nii.gz":
            assert_same_places(positions(path), shown)
        read = sitk.ReadImage(str(path))
        seen = np.argwhere(sitk.GetArrayFromImage(read))[:, ::-1].tolist()
        points = np.array([read.TransformIndexToPhysicalPoint(index) for index in seen])
        assert_same_places(points * (-1, -1, 1), shown)
