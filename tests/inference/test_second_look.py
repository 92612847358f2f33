"""A second look changes what the first one found, and nothing else."""

import numpy as np
import pytest

import napari_pancreas_seg as nps
from napari_pancreas_seg.inference.body import Body
from napari_pancreas_seg.inference.frame import FrameSpec, frame_around
from napari_pancreas_seg.inference.mend import FADE_MM
from napari_pancreas_seg.inference.second_look import BATCH, SIZE, SURE, SecondLook
from napari_pancreas_seg.model.bundle import Bundle, load_bundle
from napari_pancreas_seg.volume import CTVolume

SPACING = (2.0, 0.9, 0.9)
SHAPE = (BATCH + 3, 300, 360)
FRAME = frame_around((150.0, 180.0), SHAPE[1:], SPACING, FrameSpec(160, 224, 1.2, (0.0, 0.0)))


@pytest.fixture(scope="module")
def volume() -> CTVolume:
    hu = np.random.default_rng(0).normal(60, 30, SHAPE).astype(np.int16)
    affine = np.diag([*SPACING[::-1], 1.0])
    return CTVolume.from_source_array(np.ascontiguousarray(hu.transpose(2, 1, 0)), affine)


@pytest.fixture(scope="module")
def body(volume) -> Body:
    from napari_pancreas_seg.inference.scan_context import ScanContext

    return ScanContext.of(volume).body


@pytest.fixture
def look(monkeypatch):
    """A second look whose network is sure of what it is told to answer; what it was shown."""

    def make(answer=0.9, **told):
        card = {"second_look": {"model": "mend", "mm": 4.0, "share": 1.0, "shift": 0.0, **told}}
        card["threshold"] = 0.5
        made, shown = SecondLook(card, "cpu"), []

        def answers(seen):
            shown.append(seen)
            return np.full((len(seen), *SIZE), answer, np.float32)

        monkeypatch.setattr(made._mender, "answers", answers)
        return made, shown

    return make


def first_look() -> tuple[np.ndarray, np.ndarray]:
    """Probability, and the first mask in it; nothing in the first and last slice."""
    probability = np.full((SHAPE[0], 160, 224), 0.01, np.float16)
    gland = np.zeros(probability.shape, bool)
    gland[1:-1, 60:90, 100:150] = True
    probability[gland] = 0.8
    return probability, gland


def revise(made, volume, body, probability, gland) -> list[int]:
    first = np.where(gland, probability, 0)
    return list(made.revise(volume, body, FRAME, np.arange(SHAPE[0]), probability, first))


@pytest.mark.slow
def test_slices_with_a_first_mask_are_seen_and_no_others(look, volume, body):
    made, shown = look()
    probability, gland = first_look()
    assert revise(made, volume, body, probability, gland) == [*range(1, SHAPE[0] - 1)]
    assert [len(seen) for seen in shown] == [BATCH, BATCH]  # one size, compiled once
    for z in (0, -1):
        assert np.array_equal(probability[z], first_look()[0][z])


@pytest.mark.slow
def test_the_network_is_shown_the_picture_and_what_the_first_look_found(look, volume, body):
    made, shown = look()
    probability, gland = first_look()
    probability[:, 60:70, 160:170] = 0.4  # below the threshold: perhaps
    probability[:, 80:90, 160:170] = 0.9  # left out of the first mask
    revise(made, volume, body, probability, gland)
    seen = shown[0][0]
    inside = seen[..., -1] > 0
    # 30 × 50 pixels of 1.2 mm, in pixels of 1 mm, in the middle.
    assert inside.sum() == pytest.approx(36 * 60, rel=0.05)
    assert np.abs(np.argwhere(inside).mean(axis=0) - (np.array(SIZE) - 1) / 2).max() < 1
    # As sure as the first look was, but its surest part, 0.8 here, counts as gland.
    fade = np.exp(-4.0 / FADE_MM)
    assert seen[..., -1].max() == pytest.approx(np.tanh(SURE / 2) * fade, rel=1e-2)
    assert ((seen[..., -1] / fade + 0.2) ** 2 < 1e-4).sum() == pytest.approx(11 * 11, rel=0.3)
    assert seen[..., -1].min() == pytest.approx(-fade, rel=1e-2)
    assert not seen[..., 3:-1].any()
    assert 0.15 < seen[..., 0].mean() < 0.35  # HU of 60 in a window of 255


@pytest.mark.slow
def test_both_answers_are_mixed_near_the_mask(look, volume, body):
    before, gland = first_look()
    for share, shift, expected in (
        (1.0, 0.0, 0.9),
        (0.0, 0.0, 0.8),
        (0.5, 0.0, 0.857),
        (1, 1, 0.96),
    ):
        probability = before.copy()
        revise(look(share=share, shift=shift)[0], volume, body, probability, gland)
        assert probability[gland] == pytest.approx(expected, abs=0.005)
        far = np.ones(gland.shape[1:], bool)
        far[15:135, 55:195] = False  # the finer frame's 96 × 128 mm lie within
        assert np.array_equal(probability[:, far], before[:, far])


@pytest.mark.slow
def test_where_the_first_look_is_sure_of_nothing_it_stays_so(look, volume, body):
    probability, gland = first_look()
    probability[:, 70:75, 160:165] = 0  # as beyond the body
    revise(look()[0], volume, body, probability, gland)
    assert not probability[:, 70:75, 160:165].any()


@pytest.mark.parametrize(
    ("told", "sentence"),
    [({"weights_sha256": "ab" * 32}, "of other weights"), ({"model": "none"}, "none")],
)
def test_a_network_that_is_not_the_cards_is_refused_before_the_first_look(
    tiny_bundle, tmp_path, drawn, told, sentence
):
    bundle = load_bundle(tiny_bundle)
    told = {"model": "mend", "mm": 4.0, "share": 0.4, "shift": 0.0, **told}
    card = {**bundle.card, "second_look": told}
    model = nps.LoadedModel(Bundle(card, bundle.weights))
    steps = []
    with pytest.raises(nps.PancreasSegError, match=sentence):
        steps.extend(nps.iter_segment(drawn(1).volume, model))
    assert "segmenting" not in {step.stage for step in steps}
    assert nps.segment(drawn(1).volume, model, second_look=False).mask.shape


@pytest.mark.slow
def test_models_without_one_do_without(drawn, tiny_model):
    assert tiny_model.second_look is None
    assert "second look" not in nps.segment(drawn(1).volume, tiny_model).seconds


@pytest.mark.slow
def test_the_bundled_model_looks_twice_unless_told_otherwise(phantom, default_model):
    once = nps.segment(phantom.volume, default_model, second_look=False)
    twice = nps.segment(phantom.volume, default_model)
    assert "second look" in twice.seconds and "second look" not in once.seconds
    assert 0.6 < nps.dice(once.mask > 0, twice.mask > 0) < 1
    before, after = (np.nan_to_num(each.probability.values) for each in (once, twice))
    change = before != after
    rows = np.flatnonzero(change.any(axis=(1, 2)))
    found = (before > once.threshold).any(axis=(1, 2))
    assert rows.size and set(rows) <= set(np.flatnonzero(found))
