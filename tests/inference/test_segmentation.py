"""The generator, on a network that is right in everything but skill."""

import numpy as np
import pytest

import napari_pancreas_seg as nps
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import Options
from napari_pancreas_seg.inference.schedule import slice_order
from napari_pancreas_seg.inference.segmentation import LoadedModel, iter_segment, native_mask
from napari_pancreas_seg.volume import CTVolume


@pytest.fixture(scope="module")
def loaded(tiny_bundle):
    return LoadedModel(tiny_bundle, "cpu")


@pytest.fixture(scope="module")
def volume():
    hu = np.full((96, 80, 7), -1000, np.int16)
    hu[15:80, 10:70] = 50
    hu[40:60, 30:50, 2:5] = 110
    return CTVolume.from_source_array(hu, np.diag([-3.0, 3.0, 4.0, 1.0]))


def exhaust(steps):
    seen = []
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as stop:
            return seen, stop.value


def test_progress_finds_every_slice_once(volume, loaded):
    seen, result = exhaust(iter_segment(volume, loaded, Options(batch_size=3, first_slice=5)))
    found = [p.slices for p in seen if p.slices is not None]
    order = np.concatenate([f.z for f in found])
    assert order[0] == 5 and sorted(order) == list(range(7))
    # The slice that somebody waits for goes alone.
    assert [p.done for p in seen if p.slices is not None] == [1, 4, 7]
    assert seen[0].stage == "loading the network" and seen[-1].stage == "post-processing"
    assert all(f.mask.dtype == np.uint8 and f.mask.shape[1:] == (80, 96) for f in found)
    assert result.mask.shape == volume.grid.shape and result.mask.dtype == np.uint8
    assert set(result.seconds) >= {"segmenting", "post-processing"}


def test_batches_do_not_change_the_result(volume, loaded):
    one = nps.segment(volume, loaded, batch_size=1, postprocess=False)
    all_at_once = nps.segment(volume, loaded, batch_size=7, postprocess=False)
    np.testing.assert_allclose(one.probability.values, all_at_once.probability.values, atol=2e-3)


def test_maps_are_compact_and_within_limits(volume, loaded):
    result = nps.segment(volume, loaded)
    assert [m.values.shape for m in result.attention] == [
        (7, 16, 24), (7, 8, 12), (7, 4, 6), (7, 2, 3),
    ]  # fmt: skip
    for found in (result.probability, *result.attention):
        assert found.values.dtype == np.float16
        assert found.values.min() >= 0 and found.values.max() <= 1
        assert found.grid.shape == found.values.shape


def test_the_threshold_rules_the_mask(volume, loaded):
    low = nps.segment(volume, loaded, threshold=0.01, postprocess=False)
    high = nps.segment(volume, loaded, threshold=0.999, postprocess=False)
    assert low.mask.sum() > high.mask.sum() == 0
    assert low.threshold == 0.01


def test_native_mask_is_the_thresholded_interpolation(volume, loaded):
    from napari_pancreas_seg.inference.preprocessing import place_frame

    frame = place_frame(volume.hu, volume.spacing, loaded.frame)
    probability = np.random.default_rng(0).random((2, 32, 48)).astype(np.float16)
    rows, columns = frame.out_of()
    whole = rows @ probability.astype(np.float32) @ columns.T > 0.6
    np.testing.assert_array_equal(native_mask(probability, frame, 0.6), whole)


def test_closing_cancels(volume, loaded):
    steps = iter_segment(volume, loaded, Options(batch_size=1))
    next(steps), next(steps)
    steps.close()
    with pytest.raises(StopIteration):
        next(steps)


def test_exhausted_memory_halves_the_batch(volume, tiny_bundle):
    loaded = LoadedModel(tiny_bundle, "cpu")
    sizes = []
    predict = loaded.predictor.predict_batch

    def tight(hu, *matrices):
        sizes.append(len(hu))
        if len(hu) > 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return predict(hu, *matrices)

    loaded.predictor.predict_batch = tight
    _, result = exhaust(iter_segment(volume, loaded, Options(batch_size=7)))
    assert sizes == [7, 4, 2, 2, 2, 2]
    assert result.mask.shape == volume.grid.shape


def test_other_faults_are_not_swallowed(volume, tiny_bundle):
    loaded = LoadedModel(tiny_bundle, "cpu")
    loaded.predictor.predict_batch = lambda *a: (_ for _ in ()).throw(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        nps.segment(volume, loaded)


def test_a_single_slice_is_a_volume(loaded):
    hu = np.full((64, 64, 1), -1000, np.int16)
    hu[8:56, 8:56] = 60
    volume = CTVolume.from_source_array(hu, np.diag([-4.0, -4.0, 5.0, 1.0]))
    result = nps.segment(volume, loaded)
    assert result.mask.shape == (1, 64, 64)


@pytest.mark.parametrize(
    "options",
    [{"device": "tpu"}, {"batch_size": 0}, {"threshold": 1.5}, {"speed": 3}, {"device": "gpu:99"}],
)
def test_wrong_options_are_one_sentence(volume, tiny_bundle, options):
    with pytest.raises(PancreasSegError) as caught:
        nps.segment(volume, tiny_bundle, **options)
    assert "\n" not in str(caught.value)


def test_slice_order_goes_outward():
    assert slice_order(5).tolist() == [0, 1, 2, 3, 4]
    assert slice_order(5, 3).tolist() == [3, 2, 4, 1, 0]
    assert sorted(slice_order(5, 99)) == [0, 1, 2, 3, 4]


def test_the_default_model_finds_the_phantom():
    from napari_pancreas_seg.data.phantom import make_phantom
    from napari_pancreas_seg.metrics import dice

    phantom = make_phantom(0)
    result = nps.segment(phantom.volume)
    assert dice(result.mask, phantom.mask) >= 0.75
