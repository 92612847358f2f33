"""Labels of a cropped or coarser copy of a CT, as other plugins make them, end where they are."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Labels

from napari_pancreas_seg._napari.layers import writer
from napari_pancreas_seg._napari.layers.bridge import ct_layer_data
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.volume import CTVolume

OBLIQUE = np.array(
    [[-0.8, 0.05, 0.1, 77], [0.05, 0.8, -0.2, -82], [-0.03, 0.06, 2.5, 75], [0, 0, 0, 1]]
)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> tuple[ViewerModel, Image, CTVolume]:
    hu = np.random.default_rng(0).integers(-900, 900, (30, 25, 20)).astype(np.int16)
    volume = CTVolume.from_source_array(hu, OBLIQUE, name="case")
    viewer = ViewerModel()
    data, options, _ = ct_layer_data(volume)
    ct = viewer.add_layer(Image(data, **options))
    monkeypatch.setattr(writer, "current_viewer", lambda: viewer)
    return viewer, ct, volume


def written(layer: Labels, path: Path) -> nib.Nifti1Image:
    writer.write_layers(str(path), [layer.as_layer_data_tuple()])
    return nib.load(path)


def world_of(image: nib.Nifti1Image) -> np.ndarray:
    return nib.affines.apply_affine(image.affine, np.argwhere(np.asarray(image.dataobj)))


def test_labels_of_a_crop_are_saved_on_the_whole_ct(shown: tuple, tmp_path: Path) -> None:
    viewer, ct, volume = shown
    start = np.array([5, 8, 6])
    mask = np.zeros((7, 9, 10), np.uint8)
    mask[3, 1, 2] = 1
    scale = np.asarray(ct.scale)
    layer = viewer.add_layer(
        Labels(mask, scale=scale, translate=np.asarray(ct.translate) + start * scale)
    )
    image = written(layer, tmp_path / "m.nii.gz")
    expected = volume.grid.world(np.add(start, (3, 1, 2)))
    np.testing.assert_allclose(world_of(image), [expected], atol=1e-3)
    assert image.shape == volume.source.shape
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-4)


@pytest.mark.parametrize("turned", [False, True])
def test_labels_of_a_coarser_copy_lie_where_they_are_shown(
    turned: bool, shown: tuple, tmp_path: Path
) -> None:
    viewer, ct, volume = shown
    mask = np.zeros((10, 12, 15), np.uint8)
    mask[4, 5, 6] = 1
    scale, extra = np.asarray(ct.scale) * 2, {"rotate": (0, 0, 20)} if turned else {}
    # Corner to corner: the first coarse voxel covers two fine ones.
    layer = viewer.add_layer(
        Labels(mask, scale=scale, translate=np.asarray(ct.translate) + scale / 4, **extra)
    )
    index = ct.world_to_data(layer.data_to_world((4, 5, 6)))
    image = written(layer, tmp_path / "m.nii.gz")
    np.testing.assert_allclose(world_of(image), [volume.grid.world(index)], atol=1e-3)
    assert sorted(image.shape) == [10, 12, 15]


def test_labels_beside_the_ct_are_what_is_shown(shown: tuple, tmp_path: Path) -> None:
    viewer, _, _ = shown
    mask = np.zeros((4, 5, 6), np.uint8)
    mask[1, 2, 3] = 1
    layer = viewer.add_layer(Labels(mask, translate=(1000, 1000, 1000)))
    image = written(layer, tmp_path / "m.nii.gz")
    np.testing.assert_allclose(world_of(image), [(-1003, -1002, 1001)], atol=1e-3)


def test_labels_on_two_cts_are_refused(shown: tuple, tmp_path: Path) -> None:
    viewer, _, volume = shown
    data, options, _ = ct_layer_data(volume)
    viewer.add_layer(Image(data, **options))
    layer = viewer.add_layer(Labels(np.ones((4, 5, 6), np.uint8)))
    with pytest.raises(PancreasSegError, match="several CTs"):
        written(layer, tmp_path / "m.nii.gz")
    assert not list(tmp_path.iterdir())
