"""A new threshold without the network gives what the network's run gives with it."""

from __future__ import annotations

import numpy as np
import pytest

import napari_pancreas_seg as nps
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.finishing import remask
from napari_pancreas_seg.inference.result import Options, exhaust
from napari_pancreas_seg.inference.segment import iter_segment
from napari_pancreas_seg.volume import CTVolume


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return tiny_model


@pytest.fixture(scope="module")
def volume():
    rng = np.random.default_rng(1)
    hu = np.full((96, 80, 9), -1000, np.int16)
    hu[15:80, 10:70] = rng.integers(0, 160, (65, 60, 9))
    return CTVolume.from_source_array(hu, np.diag([-3.0, 3.0, 2.0, 1.0]))


@pytest.fixture(scope="module")
def result(volume, loaded):
    return nps.segment(volume, loaded)


def levels(result) -> list[float]:
    """Thresholds that cut the tiny network's probabilities in two, wherever those lie."""
    values = result.probability.values.astype(np.float32)
    found = np.quantile(values[np.isfinite(values)], [0.3, 0.6, 0.9, 0.99])
    return [float(min(max(level, 0.01), 0.99)) for level in found]


@pytest.mark.slow
@pytest.mark.parametrize("postprocess", [True, False])
def test_it_gives_what_a_run_gives(volume, loaded, result, postprocess):
    some = 0
    for threshold in levels(result):
        there = nps.segment(volume, loaded, threshold=threshold, postprocess=postprocess)
        assert np.array_equal(remask(result, threshold, postprocess), there.mask)
        some += bool(there.mask.any())
    assert some
    assert np.array_equal(remask(result), result.mask)


@pytest.mark.slow
def test_it_keeps_to_the_region_of_the_run(volume, loaded, result):
    part = nps.segment(
        volume, loaded, threshold=levels(result)[0], slices=(2, 6), box=(20, 50, 30, 60)
    )
    again = remask(part, levels(result)[1])
    there = nps.segment(
        volume, loaded, threshold=levels(result)[1], slices=(2, 6), box=(20, 50, 30, 60)
    )
    assert part.mask.any() and np.array_equal(again, there.mask)
    outside = np.ones(part.mask.shape, bool)
    outside[2:6, 20:50, 30:60] = False
    assert not part.mask[outside].any()


@pytest.mark.slow
def test_only_the_slices_of_the_region_are_predicted(volume, loaded):
    steps = list(iter_segment(volume, loaded, Options(slices=(2, 6), first_slice=4)))
    found = [step.slices for step in steps if step.slices is not None]
    assert np.concatenate([part.z for part in found]).tolist() == [4, 3, 5, 2]
    assert steps[-1].total == 4
    values = nps.segment(volume, loaded, slices=(2, 6)).probability.values
    known = np.isfinite(values).all(axis=(1, 2))
    assert np.flatnonzero(known).tolist() == [2, 3, 4, 5]


@pytest.mark.slow
def test_without_post_processing_a_region_cuts_the_whole_masks_slices(volume, loaded, result):
    threshold = levels(result)[0]
    whole = nps.segment(volume, loaded, threshold=threshold, postprocess=False).mask
    part = nps.segment(
        volume, loaded, threshold=threshold, postprocess=False, slices=(3, 5), box=(9, 40, 20, 77)
    ).mask
    assert np.array_equal(part[3:5, 9:40, 20:77], whole[3:5, 9:40, 20:77])


@pytest.mark.parametrize("threshold", [0, 1, -1.0, 2.0, float("nan"), "0.5"])
def test_a_threshold_that_makes_no_sense_is_refused(result, threshold):
    with pytest.raises(PancreasSegError, match="threshold must be a number between 0 and 1"):
        remask(result, threshold)


def test_maps_stream_with_the_slices(volume, loaded):
    steps = []
    result = exhaust(
        iter_segment(volume, loaded, Options(first_slice=4, batch_size=4)), steps.append
    )
    parts = [step.slices for step in steps if step.slices is not None]
    assert len(parts[0].z) == 1
    for number, whole in enumerate(result.attention, start=1):
        for part in parts:
            scalar_map = part.maps[f"attention {number}"]
            assert np.array_equal(scalar_map.values, whole.values[part.z])
            assert scalar_map.grid.same_as(whole.grid)


def test_a_region_beyond_the_ct_says_so(volume, loaded):
    with pytest.raises(PancreasSegError, match="slices must lie within 9 slices"):
        nps.segment(volume, loaded, slices=(9, 12))
    with pytest.raises(PancreasSegError, match="box must lie"):
        nps.segment(volume, loaded, box=(900, 950, 0, 9))
    with pytest.raises(PancreasSegError, match="stop must come after its start"):
        nps.segment(volume, loaded, box=(5, 5, 0, 9))


def test_warming_up_compiles_what_a_run_needs(volume, loaded):
    options = Options(first_slice=3, batch_size=4)
    loaded.warm_up(volume, options)
    sizes = []
    predict = loaded.predictor.predict_batch
    loaded.predictor.predict_batch = lambda hu, *rest: sizes.append(len(hu)) or predict(hu, *rest)
    try:
        list(iter_segment(volume, loaded, options))
    finally:
        del loaded.predictor.predict_batch
    assert sizes == [1, 4, 4]


def test_smoothing_only_where_it_matters_changes_no_voxel(volume, loaded, result, monkeypatch):
    """Against smoothing everywhere, for pixels that are finer and coarser than the frame's."""
    from napari_pancreas_seg.inference import finishing
    from napari_pancreas_seg.inference.schedule import SliceGrid
    from napari_pancreas_seg.mask.postprocessing import smooth_along_z

    def masks(noise, frame):
        how = finishing.Finishing(frame, SliceGrid(9), (2.0, 1, 1), np.ones(9, bool))
        return [how.mask(noise, threshold) for threshold in (0.2, 0.5)]

    rng = np.random.default_rng(2)
    noise = rng.random(result.probability.values.shape).astype(np.float16) ** 6
    noise[:, :3] = noise[:, :, -4:] = 0
    for step in (0.4, 1.7):
        frame = finishing.Frame(loaded.frame, volume.grid.shape[1:], (2.0, -3.0), (step, step))
        there = masks(noise, frame)
        with monkeypatch.context() as patch:
            patch.setattr(
                finishing, "_smooth_near", lambda p, t, f, z, found=None: smooth_along_z(p, z)
            )
            here = masks(noise, frame)
        assert all(np.array_equal(a, b) for a, b in zip(there, here, strict=True))
        assert there[0].any()
