"""The synthetic CT: the same for a seed, like an abdomen, and true to its mask."""

import itertools

import numpy as np
import pytest
from nibabel import aff2axcodes
from scipy import ndimage

from napari_pancreas_seg.errors import PancreasSegError
from phantom import Phantom, make_phantom
from phantom.anatomy import ORGANS

COARSE = {"spacing_mm": (7.0, 4.5, 4.5), "shape": (35, 62, 80)}


@pytest.fixture(scope="module")
def phantoms(drawn) -> list[Phantom]:
    return [drawn(seed, **COARSE) for seed in (0, 1, 3)]


def volume_ml(phantom: Phantom) -> float:
    return np.count_nonzero(phantom.mask) * phantom.volume.grid.voxel_volume_mm3 / 1000


@pytest.mark.slow
def test_same_seed_same_voxels(phantoms):
    again = make_phantom(1, **COARSE)
    np.testing.assert_array_equal(again.volume.hu, phantoms[1].volume.hu)
    np.testing.assert_array_equal(again.mask, phantoms[1].mask)
    np.testing.assert_array_equal(again.volume.grid.affine, phantoms[1].volume.grid.affine)


def test_seeds_give_other_bodies(phantoms):
    for one, other in itertools.combinations(phantoms, 2):
        assert (one.mask != other.mask).any()
        assert not np.allclose(one.volume.grid.affine, other.volume.grid.affine)
        # Far beyond noise: the anatomy moves, and the body's outline with it.
        outline = (one.volume.hu > -300) != (other.volume.hu > -300)
        assert outline.mean() > 0.01


def test_lies_on_an_oblique_grid_in_display_order(phantoms):
    for phantom in phantoms:
        grid = phantom.volume.grid
        assert phantom.volume.hu.dtype == np.int16
        assert phantom.volume.hu.shape == phantom.mask.shape == grid.shape == COARSE["shape"]
        assert aff2axcodes(grid.affine) == ("S", "P", "L")
        np.testing.assert_allclose(grid.spacing, COARSE["spacing_mm"])
        off_axis = np.abs(grid.affine[:3, :3]) > 0.01
        assert off_axis.sum() > 3


def test_source_order_differs_and_round_trips(phantoms):
    for phantom in phantoms:
        source = phantom.volume.source
        assert source.shape == COARSE["shape"][::-1]
        index = np.argwhere(phantom.mask)[7]
        flagged = np.zeros(phantom.mask.shape, np.uint8)
        flagged[tuple(index)] = 1
        (there,) = np.argwhere(phantom.volume.to_source_order(flagged))
        np.testing.assert_allclose(
            source.affine[:3, :3] @ there + source.affine[:3, 3],
            phantom.volume.grid.world(index),
            atol=1e-6,
        )
    assert len({aff2axcodes(p.volume.source.affine) for p in phantoms}) > 1


def test_pancreas_is_one_piece_of_soft_tissue_of_natural_size(phantoms):
    for phantom in phantoms:
        assert set(np.unique(phantom.mask)) == {0, 1}
        assert ndimage.label(phantom.mask)[1] == 1
        assert 45 < volume_ml(phantom) < 120
        hu = phantom.volume.hu[phantom.mask == 1]
        assert 55 < np.median(hu) < 125
        # In contrast with the fat around it, whatever the coarse voxels average.
        assert np.percentile(hu, 10) > -60


def test_many_slices_have_no_pancreas(phantoms):
    for phantom in phantoms:
        with_gland = phantom.mask.any(axis=(1, 2))
        assert 5 <= with_gland.sum() <= 0.6 * len(with_gland)
        assert not with_gland[:4].any()
        assert not with_gland[-4:].any()


def test_anatomy_in_radiological_display(phantoms):
    for phantom in phantoms:
        hu, spacing = phantom.volume.hu, phantom.volume.spacing
        z, y, x = (np.arange(n) - (n - 1) / 2 for n in hu.shape)
        lungs = (hu < -700) & (hu > -950)
        upper = hu[-2:]
        assert ((upper < -700) & (upper > -950)).sum() > lungs[: len(z) // 2].sum() / 10
        # The spine lies at the back, on the midline.
        bone = hu > 350
        rows = np.broadcast_to(y[None, :, None] * spacing[1], hu.shape)
        middle = bone & (np.abs(x)[None, None, :] * spacing[2] < 30)
        assert rows[middle].mean() > 20
        # The liver, on the left of the picture, has more soft tissue than the other side
        # above the pancreas; the tail of the pancreas reaches to the right.
        level = slice(int(np.flatnonzero(phantom.mask.any((1, 2))).max()), -6)
        tissue = (hu[level] > 70) & (hu[level] < 150)
        assert tissue[..., x < 0].sum() > 1.3 * tissue[..., x > 0].sum()
        assert phantom.mask[..., x * spacing[2] > 40].any()


@pytest.mark.slow
def test_is_finer_where_voxels_are_finer():
    fine = make_phantom(2, spacing_mm=(5.0, 2.5, 2.5), shape=(40, 90, 120))
    assert 50 < volume_ml(fine) < 120
    assert fine.volume.hu[fine.mask == 1].std() < 60


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": -1},
        {"shape": (20, 56, 70), "spacing_mm": (1.0, 1.0, 1.0)},
        {"spacing_mm": (0.0, 1.0, 1.0)},
        {"spacing_mm": (float("nan"), 1.0, 1.0)},
    ],
)
def test_refuses_what_holds_no_abdomen(wrong):
    with pytest.raises(PancreasSegError, match="phantom needs"):
        make_phantom(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"shape": (84, 224)}, {"shape": 84}, {"spacing_mm": (3.0, 1.0)}, {"spacing_mm": 3.0}]
)
def test_refuses_what_is_no_volume(wrong):
    with pytest.raises(PancreasSegError, match="three numbers"):
        make_phantom(0, **wrong)


def test_the_organs_lie_where_they_are_seen(phantoms):
    """Each is in the CT where its number is: by its HU, its size, and its side of the body."""
    for phantom in phantoms:
        organs, hu = phantom.organs, phantom.volume.hu
        np.testing.assert_array_equal(organs == ORGANS["pancreas"], phantom.mask > 0)
        ml = {
            name: np.count_nonzero(organs == n) * phantom.volume.grid.voxel_volume_mm3 / 1000
            for name, n in ORGANS.items()
        }
        assert 700 < ml["liver"] < 2500 and 40 < ml["spleen"] < 400 and 150 < ml["kidneys"] < 600
        assert 50 < ml["stomach"] < 900 and 20 < ml["duodenum"] < 250 and ml["gallbladder"] < 100
        for name in ("liver", "spleen", "kidneys"):
            assert 70 < np.median(hu[organs == ORGANS[name]]) < 220
        # Columns run from the patient's right to the left.
        column = {n: np.argwhere(organs == ORGANS[n])[:, 2].mean() for n in ("liver", "spleen")}
        assert column["liver"] < hu.shape[2] / 2 < column["spleen"]
        _, kidneys = ndimage.label(organs == ORGANS["kidneys"], np.ones((3, 3, 3)))
        assert kidneys >= 2
