"""Figures of patients by hand: overlap, attention in and around the gland, intervals."""

import numpy as np
import pytest

from napari_pancreas_seg.inference.result import ScalarMap, Segmentation
from napari_pancreas_seg.training.judge.scores import (
    PatientCounts,
    bootstrap_interval,
    paired_difference,
    summarise,
    summarise_patients,
)
from napari_pancreas_seg.training.judge.tables import evaluation_markdown
from napari_pancreas_seg.volume import CTVolume


def ct(shape=(1, 24, 32), spacing=(5.0, 1.0, 1.0)) -> CTVolume:
    z, y, x = spacing
    hu = np.full(shape, 50, np.int16)
    return CTVolume.from_source_array(hu.transpose(2, 1, 0), np.diag([-x, -y, z, 1.0]))


def segmentation(volume: CTVolume, mask: np.ndarray, *maps: ScalarMap) -> Segmentation:
    probability = ScalarMap(mask.astype(np.float16), volume.grid)
    return Segmentation(mask, probability, maps, volume.grid, 0.5, {}, {})


def test_the_interval_is_that_of_the_mean_over_patients():
    values = np.random.default_rng(1).normal(0.75, 0.1, 60)
    low, high = bootstrap_interval(values)
    error = values.std(ddof=1) / np.sqrt(60)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.003)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.003)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(values, seed=1) != (low, high)
    assert bootstrap_interval([0.4]) == (0.4, 0.4)


def test_a_summary_by_hand():
    found = summarise([0.5, None, 0.7, 0.9])
    assert found["n"] == 3
    assert (found["mean"], found["sd"], found["median"]) == pytest.approx((0.7, 0.2, 0.7))
    assert found["worst"] == 0.5
    assert summarise([1.0, 4.0], higher_is_better=False)["worst"] == 4.0
    assert summarise([None]) == {"n": 0}


def test_one_patient_has_no_interval():
    assert summarise([0.7]) == {"n": 1, "mean": 0.7, "median": 0.7, "worst": 0.7}
    assert paired_difference({"a": 0.7}, {"a": 0.5}) == {"n": 1, "mean": 0.2}
    row = {"dice": 0.7, "slices": 3, "missed_slices": 0}
    page = evaluation_markdown({"patients": {"a": row}, **summarise_patients({"a": row})})
    assert "| Dice | 0.700 | — | — | — | 0.700 | 0.700 | 1 |" in page
    assert "0 of 1 patient." in page and "none, 0 of 1 patient." in page


def test_patients_in_whom_nothing_was_found_are_counted():
    volume, rows = ct(), {}
    reference = np.zeros((1, 24, 32), np.uint8)
    reference[0, 5, 5:9] = 1
    for patient, mask in (("a", reference), ("b", 0 * reference)):
        tally = PatientCounts()
        tally.add(segmentation(volume, mask), volume, reference)
        rows[patient] = tally.figures()
    assert rows["b"]["hd95_mm"] == pytest.approx(np.hypot(24, 32))
    found = summarise_patients(rows)
    assert found["nothing_found"] == 1
    assert "Nothing found: 1 of 2 patients" in evaluation_markdown({"patients": rows, **found})


def test_a_gate_that_says_nothing_of_a_patient_is_no_gate_of_theirs():
    one = {"inside": 0.6, "tissue": 0.3, "frame": 0.2, "sd": 0.1}
    rows = {"a": {"dice": 1, "attention": [one, one]}, "b": {"dice": 1, "attention": [{}, one]}}
    found = summarise_patients(rows)["attention"]
    assert [(row["gate"], row["ratio_to_tissue"]["n"]) for row in found] == [(1, 1), (2, 2)]


def test_a_patient_is_pooled_over_slices():
    tally = PatientCounts()
    for predicted, true in ((4, 6), (10, 2), (0, 3)):
        mask, reference = np.zeros((2, 1, 24, 32), np.uint8)
        mask[0, 5, 5 : 5 + predicted] = 1
        reference[0, 5, 5 : 5 + true] = 1
        volume = ct()
        tally.add(segmentation(volume, mask), volume, reference)
    score = tally.figures()
    both, predicted, true = 4 + 2, 14, 11
    assert score["dice"] == pytest.approx(2 * both / (predicted + true))
    assert (score["recall"], score["precision"]) == pytest.approx((both / true, both / predicted))
    assert score["volume_ratio"] == pytest.approx(predicted / true)
    assert (score["slices"], score["missed_slices"]) == (3, 1)
    assert 0 < score["surface_dice_2mm"] < 1
    # More than 5 % of the outlines lie in the slice that was missed.
    assert score["hd95_mm"] == pytest.approx(np.hypot(24, 32))


def test_nothing_to_find_and_nothing_found():
    volume, tally = ct(), PatientCounts()
    empty = np.zeros((1, 24, 32), np.uint8)
    tally.add(segmentation(volume, empty), volume, empty)
    score = tally.figures()
    names = ("dice", "surface_dice_2mm", "hd95_mm", "slices")
    assert [score[name] for name in names] == [1.0, 1.0, 0.0, 0]
    assert score["recall"] is score["precision"] is score["volume_ratio"] is None


def test_surfaces_of_whole_cts_are_those_in_space():
    volume, tally = ct((6, 24, 32), (4.0, 1.0, 1.0)), PatientCounts()
    mask, reference = np.zeros((2, 6, 24, 32), np.uint8)
    reference[1:4, 5:20, 5:20] = 1
    mask[2:5, 5:20, 5:20] = 1  # a slice higher
    tally.add(segmentation(volume, mask), volume, reference)
    assert tally.figures()["hd95_mm"] == pytest.approx(4.0)


@pytest.mark.parametrize("coarser", [1, 2, 4])
def test_attention_in_and_around_the_gland(coarser):
    volume = ct()
    volume.hu[0, :, 24:] = -100  # fat
    reference = np.zeros((1, 24, 32), np.uint8)
    reference[0, 8:16, 8:16] = 1
    # The map covers columns 4 to 31 of the CT, at its own resolution.
    grid = volume.grid.sub_grid(
        (1, 24 // coarser, 28 // coarser),
        (0.0, (coarser - 1) / 2, 4 + (coarser - 1) / 2),
        (1.0, coarser, coarser),
    )
    full = np.full((1, 24, 28), 0.25)
    full[0, 8:16, 4:12] = 0.75
    full[0, :, 20:] = 1.0
    tally = PatientCounts()
    gate = ScalarMap(full[:, ::coarser, ::coarser].astype(np.float16), grid)
    tally.add(segmentation(volume, reference, gate), volume, reference)
    (means,) = tally.figures()["attention"]
    assert means["inside"] == pytest.approx(0.75)
    assert means["tissue"] == pytest.approx(0.25)
    assert means["frame"] == pytest.approx((24 * 20 - 64) / (24 * 28 - 64) * 0.25 + 24 * 8 / 608)
    assert means["sd"] == pytest.approx(full.std(), rel=1e-3)
    row = tally.figures()
    (summary,) = summarise_patients({"a": row, "b": row})["attention"]
    assert summary["gate"] == 1
    assert summary["ratio_to_tissue"]["mean"] == pytest.approx(3.0)
    assert summary["ratio_to_tissue"]["n"] == 2


def test_failures_are_listed_worst_first():
    rows = {p: {"dice": d, "hd95_mm": 9 - d} for p, d in {"a": 0.4, "b": 0.9, "c": 0.1}.items()}
    found = summarise_patients(rows)
    assert found["failures"]["patients"] == ["c", "a"]
    assert found["summary"]["dice"]["worst"] == 0.1
    assert found["summary"]["hd95_mm"]["worst"] == 8.9
    assert found["attention"] == []
