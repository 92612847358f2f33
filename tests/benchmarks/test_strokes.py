"""The robot draws where something is wrong, as long and as wide as it may, and counts rightly."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from napari_pancreas_seg.model.bundle import load_bundle
from strokes import (
    LONGEST_MM,
    PATIENTS,
    SPILT_MM,
    WIDTH_MM,
    Case,
    draw,
    draw_stroke,
    paint,
    summary,
)


def test_the_bundled_network_has_learnt_from_no_patient_that_is_scored():
    trained_on = load_bundle("mend", "mend").card["training"]["patients"]
    assert trained_on and set(PATIENTS.split(",")).isdisjoint(trained_on)


def disc(centre, radius, shape=(120, 160)):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2


@pytest.mark.parametrize("seed", range(10))
def test_a_stroke_lies_in_the_largest_wrong_piece(seed):
    rng = np.random.default_rng(seed)
    truth, present = disc((60, 40), 20) | disc((60, 140), 6), disc((60, 100), 12)
    stroke, adds = draw_stroke(present, truth, (1.0, 1.0), rng)
    assert adds and stroke.any()
    away = ndimage.distance_transform_edt(~disc((60, 40), 20))
    assert away[stroke].max() <= SPILT_MM
    y, x = np.nonzero(stroke)
    assert np.hypot(np.ptp(y), np.ptp(x)) <= LONGEST_MM + 1
    assert ndimage.distance_transform_edt(np.pad(stroke, 1)).max() <= WIDTH_MM / 2 + 1
    stroke, adds = draw_stroke(truth | present, truth, (0.7, 0.7), rng)
    assert not adds and (present & ~truth)[stroke].mean() > 0.8


def test_nothing_is_drawn_where_all_is_right():
    truth = disc((60, 40), 20)
    stroke, adds = draw_stroke(truth, truth, (1.0, 1.0), np.random.default_rng(0))
    assert not stroke.any() and not adds


class Picture:
    spacing = (1.0, 1.0, 1.0)


def case():
    truth = disc((60, 60), 25)
    start = disc((60, 70), 22)
    return Case("a", "p", Picture(), truth, start, truth.astype(np.float32))


def test_painting_gets_better_with_every_stroke():
    scores, seconds = draw(case(), paint, 0)
    assert len(scores) == 6 and len(seconds) == 5
    assert scores[-1] > scores[1] > scores[0]


def test_strokes_add_up_and_the_last_one_counts():
    seen = []

    def mend(case, mask, add, remove):
        seen.append((add.copy(), remove.copy()))
        return mask

    draw(case(), mend, 0)
    for (add, remove), (more, less) in itertools.pairwise(seen):
        assert not (add & remove).any()
        assert (more | less)[add | remove].all()


def test_the_worst_quarter_and_the_share_of_good_slices():
    scores = np.array([[0.2] * 6, [0.4] * 6, [0.9] * 6, [1.0] * 6])
    report = summary(scores, ["a", "a", "b", "b"])
    expected = {"mean": 0.625, "worst_quarter": 0.2, "share_090": 0.5, "patient_mean": 0.625}
    assert report["0"] == report["5"] == expected
