"""2.5-D: the network is shown each slice with its neighbours at a fixed distance in mm."""

import numpy as np
import pytest

import napari_pancreas_seg as nps
from napari_pancreas_seg.inference.neighbours import neighbouring_slices
from napari_pancreas_seg.inference.segment import LoadedModel
from napari_pancreas_seg.volume import CTVolume

SPACING_MM = 2.5


@pytest.mark.parametrize(
    ("spacing", "row"),
    [(1.0, [5, 10, 15]), (5.0, [9, 10, 11]), (2.0, [7, 10, 13]), (20.0, [10] * 3)],
)
def test_the_neighbours_of_a_slice(spacing, row):
    assert neighbouring_slices(21, spacing, 5.0)[10].tolist() == row


def test_beyond_the_ends_the_slice_at_the_end_serves():
    assert neighbouring_slices(3, 5.0, 5.0).tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 2]]


def test_without_a_distance_a_slice_is_alone():
    assert neighbouring_slices(4, 1.0, None).tolist() == [[0], [1], [2], [3]]


@pytest.fixture(scope="module")
def loaded(tiny_card, tmp_path_factory):
    """A model of three neighbouring slices; of its card's windows the first serves."""
    import keras

    from napari_pancreas_seg.model.attention_unet import Architecture, build
    from napari_pancreas_seg.model.bundle import save_bundle

    keras.utils.set_random_seed(0)
    network = build(Architecture(**tiny_card["architecture"]))
    card = {**tiny_card, "neighbours_mm": 5.0}
    return LoadedModel(save_bundle(network, card, tmp_path_factory.mktemp("m") / "near"), "cpu")


@pytest.fixture(scope="module")
def volume():
    """A body that is 10 HU brighter from slice to slice."""
    hu = np.full((96, 80, 7), -1000, np.int16)
    hu[15:80, 10:70] = 50 + 10 * np.arange(7)
    return CTVolume.from_source_array(hu, np.diag([-3.0, 3.0, SPACING_MM, 1.0]))


def test_the_network_sees_each_slice_with_its_neighbours(loaded, volume):
    shown = []
    predict = loaded.predictor.predict_batch

    def watched(hu, *rest):
        shown.append(hu)
        return predict(hu, *rest)

    loaded.predictor.predict_batch = watched
    try:
        found = nps.segment(volume, loaded, batch_size=3, every_slice=True, postprocess=False)
    finally:
        del loaded.predictor.predict_batch
    assert {hu.shape[:2] for hu in shown} == {(3, 3)}
    seen = [tuple(int(plane.max()) for plane in item) for hu in shown for item in hu]
    bright = volume.hu.max(axis=(1, 2))
    expected = bright[neighbouring_slices(7, SPACING_MM, 5.0)]
    assert {tuple(map(int, row)) for row in expected} == set(seen) - {(0, 0, 0)}
    assert found.mask.shape == volume.grid.shape
    # The neighbours matter: among others, the same slice looks otherwise.
    still = CTVolume(
        **{**vars(volume), "hu": np.where(volume.hu > -500, bright[3], -1000).astype(np.int16)}
    )
    other = nps.segment(still, loaded, batch_size=3, every_slice=True, postprocess=False)
    gap = found.probability.values[3].astype(float) - other.probability.values[3]
    assert np.abs(gap).max() > 1e-3


def test_a_slice_alone_is_its_own_neighbour(loaded, volume):
    hu = volume.hu[3]
    single = CTVolume.from_source_array(
        np.asarray(hu.T[:, :, None]), np.diag([-3.0, -3.0, 5.0, 1.0])
    )
    assert nps.segment(single, loaded).mask.shape == (1, 80, 96)
    loaded.warm_up(single)
