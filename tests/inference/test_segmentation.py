"""The generator, on a network that is right in everything but skill."""

import numpy as np
import pytest

import napari_pancreas_seg as nps
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.finishing import native_mask
from napari_pancreas_seg.inference.result import Options, exhaust
from napari_pancreas_seg.inference.segment import iter_segment
from napari_pancreas_seg.mask.metrics import dice
from napari_pancreas_seg.volume import CTVolume


@pytest.fixture
def loaded(tiny_model):
    return tiny_model


@pytest.fixture(scope="module")
def volume():
    hu = np.full((96, 80, 7), -1000, np.int16)
    hu[15:80, 10:70] = 50
    hu[40:60, 30:50, 2:5] = 110
    return CTVolume.from_source_array(hu, np.diag([-3.0, 3.0, 4.0, 1.0]))


def run(steps):
    seen = []
    return seen, exhaust(steps, seen.append)


@pytest.mark.slow
def test_progress_finds_every_slice_once(volume, loaded):
    seen, result = run(iter_segment(volume, loaded, Options(batch_size=3, first_slice=5)))
    found = [p.slices for p in seen if p.slices is not None]
    order = np.concatenate([f.z for f in found])
    assert order[0] == 5 and sorted(order) == list(range(7))
    # The slice that somebody waits for goes alone.
    assert [p.done for p in seen if p.slices is not None] == [1, 4, 7]
    assert seen[0].stage == "loading the network" and seen[-1].stage == "post-processing"
    assert all(f.mask.dtype == np.uint8 and f.mask.shape[1:] == (80, 96) for f in found)
    assert result.mask.shape == volume.grid.shape and result.mask.dtype == np.uint8
    assert set(result.seconds) >= {"network", "post-processing"}


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_threshold_rules_the_mask(volume, loaded):
    low = nps.segment(volume, loaded, threshold=0.01, postprocess=False)
    high = nps.segment(volume, loaded, threshold=0.999, postprocess=False)
    assert low.mask.sum() > high.mask.sum() == 0
    assert low.threshold == 0.01


def test_native_mask_is_the_thresholded_interpolation(volume, loaded):
    from napari_pancreas_seg.inference.body import place_frame

    frame = place_frame(volume.hu, volume.spacing, loaded.frame)
    probability = np.random.default_rng(0).random((2, 32, 48)).astype(np.float16)
    rows, columns = frame.out_of()
    whole = rows @ probability.astype(np.float32) @ columns.T > 0.6
    np.testing.assert_array_equal(native_mask(probability, frame, 0.6), whole)


@pytest.mark.slow
def test_closing_cancels(volume, loaded):
    steps = iter_segment(volume, loaded, Options(batch_size=1))
    next(steps), next(steps)
    steps.close()
    with pytest.raises(StopIteration):
        next(steps)


@pytest.mark.slow
def test_exhausted_memory_halves_the_batch(volume, loaded, monkeypatch):
    sizes = []
    predict = loaded.predictor.predict_batch

    def tight(hu, *matrices):
        sizes.append(len(hu))
        if len(hu) > 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return predict(hu, *matrices)

    monkeypatch.setattr(loaded.predictor, "predict_batch", tight)
    _, result = run(iter_segment(volume, loaded, Options(batch_size=7)))
    # A second batch of four was on its way when the first one failed.
    assert sizes == [7, 4, 4, 2, 2, 2, 2]
    assert np.isfinite(result.probability.values).all()


def test_other_faults_are_not_swallowed(volume, loaded, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(loaded.predictor, "predict_batch", fail)
    with pytest.raises(ZeroDivisionError):
        nps.segment(volume, loaded)


@pytest.mark.slow
def test_a_single_slice_is_a_volume(loaded):
    hu = np.full((64, 64, 1), -1000, np.int16)
    hu[8:56, 8:56] = 60
    volume = CTVolume.from_source_array(hu, np.diag([-4.0, -4.0, 5.0, 1.0]))
    result = nps.segment(volume, loaded)
    assert result.mask.shape == (1, 64, 64)


@pytest.mark.parametrize(
    "options",
    [{"device": "tpu"}, {"batch_size": 0}, {"threshold": 1.5}, {"device": "gpu:99"}],
)
def test_wrong_options_are_one_sentence(volume, tiny_bundle, options):
    with pytest.raises(PancreasSegError) as caught:
        nps.segment(volume, tiny_bundle, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_default_model_finds_the_phantom(phantom, default_model):
    result = nps.segment(phantom.volume, default_model)
    assert dice(result.mask, phantom.mask) >= 0.75


# -- a scan of thin slices, with a network that is always right


@pytest.fixture
def knowing(loaded, monkeypatch):
    """The tiny model, with the answer instead of its network: bright is pancreas."""

    def predict(hu, canvas, shift):
        bright = (hu > 100).astype(np.float32)
        probability = np.clip(canvas.rows @ bright @ canvas.columns.T, 0, 1).astype(np.float16)
        return {"probability": probability[..., None], "attention_1": probability[:, ::2, ::2]}

    monkeypatch.setattr(loaded, "predict", predict)
    monkeypatch.setattr(loaded, "card", {**loaded.card, "threshold": 0.5})
    return loaded


@pytest.fixture(scope="module")
def thin():
    """Slices of 1 mm, with a gland that is 70 mm long and leans."""
    n = 240
    hu = np.full((96, 80, n), -1000, np.int16)
    hu[15:80, 10:70] = 50
    z, y, x = np.indices((n, 80, 96))
    inside = ((z - 130) / 35.5) ** 2 + ((y - 35 - (z - 130) / 8) / 9) ** 2 + ((x - 45) / 14) ** 2
    hu[(inside < 1).transpose(2, 1, 0)] = 110
    return CTVolume.from_source_array(hu, np.diag([-3.0, -3.0, 1.0, 1.0])), inside < 1


@pytest.mark.slow
def test_a_sweep_finds_the_gland_and_loses_nothing_of_it(thin, knowing):
    volume, gland = thin
    quick = nps.segment(volume, knowing)
    whole = nps.segment(volume, knowing, every_slice=True)
    assert whole.slices_seen == 240 and quick.slices_seen <= 56
    assert dice(whole.mask, gland) > 0.93
    assert dice(quick.mask, whole.mask) > 0.98
    held = np.flatnonzero(quick.mask.any(axis=(1, 2)))
    # Ends between two slices that were seen are rounded.
    truth = np.flatnonzero(whole.mask.any(axis=(1, 2)))
    assert np.abs(held[[0, -1]] - truth[[0, -1]]).max() <= 2
    assert np.array_equal(np.diff(held), np.ones(len(held) - 1)), "no slice in between is empty"


@pytest.mark.slow
@pytest.mark.parametrize("first_slice", [None, 120])
def test_a_range_of_slices_is_found_to_its_ends(thin, knowing, first_slice):
    volume, gland = thin
    ranged = Options(slices=(101, 160), first_slice=first_slice)
    _, result = run(iter_segment(volume, knowing, ranged))
    held = np.flatnonzero(result.mask.any(axis=(1, 2)))
    assert held.tolist() == list(range(101, 160))
    assert dice(result.mask[101:160], gland[101:160]) > 0.93
    assert np.flatnonzero(np.isfinite(result.expected_dice)).tolist() == held.tolist()


@pytest.mark.slow
def test_what_lies_outside_of_a_box_counts_for_nothing(thin, knowing):
    volume, gland = thin
    whole = nps.segment(volume, knowing)
    half = nps.segment(volume, knowing, box=(0, 80, 45, 96))
    assert 0.3 * gland.sum() < (half.mask > 0).sum() < 0.7 * gland.sum()
    assert np.nansum(half.probability.values) < 0.7 * np.nansum(whole.probability.values)
    assert not any("elsewhere" in noticed for noticed in half.quality["noticed"])
    away = nps.segment(volume, knowing, box=(0, 20, 0, 20))
    assert not away.mask.any() and "is the threshold" in " ".join(away.notes)
    assert "only a part of the CT was asked for" in " ".join(away.notes)
    assert any("of the part that was asked for" in noticed for noticed in half.quality["noticed"])


@pytest.mark.slow
def test_maps_lie_where_the_network_looked(thin, knowing):
    volume, _ = thin
    _, result = run(iter_segment(volume, knowing, Options(first_slice=130)))
    for found in (result.probability, *result.attention):
        assert found.grid.shape == found.values.shape
        assert found.grid.spacing[0] == pytest.approx(3.0)
        brightest = np.nan_to_num(found.values).sum(axis=(1, 2), dtype=float).argmax()
        z = (np.linalg.inv(volume.grid.affine) @ found.grid.affine @ [brightest, 0, 0, 1])[0]
        assert abs(z - 130) <= 6 and round(z) % 3 == 130 % 3
    assert len(result.expected_dice) == 240


@pytest.mark.slow
def test_what_streams_covers_the_slices_between(thin, knowing):
    volume, _ = thin
    shown = np.zeros(volume.hu.shape, np.uint8)
    seen, result = run(iter_segment(volume, knowing, Options(first_slice=131)))
    parts = [p.slices for p in seen if p.slices is not None]
    assert sorted(parts[0].z) == [130, 131, 132] and parts[0].rows.tolist() == [43]
    for part in parts:
        shown[part.z] = part.mask
        for word, scalar_map in part.maps.items():
            assert len(scalar_map.values) == len(part.rows), word
    assert dice(shown, result.mask) > 0.95
    done = [p.done for p in seen if p.slices is not None]
    assert done[-1] == result.slices_seen == seen[-1].total


@pytest.mark.slow
def test_another_threshold_reaches_the_slices_between(thin, knowing):
    from napari_pancreas_seg.inference.finishing import remask

    volume, _ = thin
    result = nps.segment(volume, knowing)
    lower = nps.segment(volume, knowing, threshold=0.3)
    np.testing.assert_array_equal(remask(result), result.mask)
    np.testing.assert_array_equal(remask(result, 0.3), lower.mask)


def test_a_gland_is_cut_out_of_large_slices_only_where_it_can_lie(loaded):
    """The network is compiled for a canvas, which CTs of different sizes have in common."""
    from napari_pancreas_seg.inference.frame import FrameCrop, frame_around

    shapes = set()
    for size, spacing in ((512, 0.7), (512, 0.74), (768, 0.72), (430, 0.71)):
        frame = frame_around(
            (size / 2, size / 2), (size, size), (1.0, spacing, spacing), loaded.frame
        )
        canvas = FrameCrop(frame)
        hu = np.random.default_rng(0).integers(-100, 200, (2, size, size), np.int16)
        rows, columns = frame.into()
        there = canvas.rows @ canvas.cut(hu, np.array([1])).astype(np.float32) @ canvas.columns.T
        np.testing.assert_allclose(there[0], rows @ hu[1].astype(np.float32) @ columns.T, atol=1e-3)
        shapes.add(canvas.shape)
    assert len(shapes) == 1
