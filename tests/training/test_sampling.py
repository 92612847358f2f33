"""What a step learns from, and that one class of single slices is learnt as it always was."""

from dataclasses import replace

import numpy as np
import pytest

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.model.attention_unet import Architecture
from napari_pancreas_seg.training.data.cache import CachedRows, cached_rows
from napari_pancreas_seg.training.data.datasets import TrainingSlices, working_frame
from napari_pancreas_seg.training.fit.batches import sampling_chances, training_batch
from napari_pancreas_seg.training.fit.loop import fit
from napari_pancreas_seg.training.fit.recipe import TrainSettings

SETTINGS = TrainSettings(
    architecture=Architecture(filters=2, dropout=0.2), steps=4, steps_per_epoch=2, batch_size=2,
    frame=FrameSpec(32, 48, 6.0), calibration_batches=2, policy="float32",
)  # fmt: skip


KEPT = working_frame(SETTINGS.frame)


def made_up():
    """Four slices of two patients, two of a CT without pancreas."""
    y, x = np.mgrid[:304, :400]
    body = ((y - 152) / 110) ** 2 + ((x - 200) / 170) ** 2 < 1
    hu, target = [], []
    for i in range(6):
        gland = ((y - 130 - 3 * i) / 20) ** 2 + ((x - 190 - 5 * i) / 45) ** 2 < 1
        grain = (7 * y + 13 * x * (i + 1)) % 23 * body
        hu.append(np.where(gland, 130 - 4 * i, np.where(body, 50 + 3 * i, 0)) + grain)
        target.append(255 * gland * (i != 4))
    # As much room on either side as is kept around this frame.
    room = [(0, 0), *(((n - m) // 2,) * 2 for n, m in ((KEPT.height, 304), (KEPT.width, 400)))]
    return TrainingSlices(
        np.pad(np.array(hu).astype(np.uint8), room),
        np.pad(np.array(target).astype(np.uint8), room)[..., None],
        np.array([f"P{i // 2}" for i in range(6)]),
        np.array(["patient"] * 4 + ["negative"] * 2),
        np.ones(6, bool),
    )


@pytest.mark.slow
def test_one_class_of_single_slices_is_learnt_as_it_always_was(tmp_path):
    _, history = fit(made_up(), replace(SETTINGS, steps_per_epoch=1), tmp_path)
    # Written down with the mixing of slices. Chance that is drawn otherwise changes the second
    # decimal; processors differ in the fifth.
    losses = [line["loss"] for line in history]
    assert losses[1::2] == pytest.approx([2.9394763, 2.9568510], abs=5e-5)


@pytest.mark.slow
def test_slices_from_disk_teach_what_those_in_memory_do(tmp_path):
    slices = made_up()
    rows = cached_rows(tmp_path / "rows", "a", lambda: CachedRows(slices.hu, slices.target))
    stored = replace(slices, hu=rows.hu, target=rows.target)
    settings = replace(SETTINGS, steps=2, calibration_batches=1)
    chances = sampling_chances(slices, settings)
    np.testing.assert_array_equal(chances, sampling_chances(stored, settings))
    for step in range(4):
        there, here = (training_batch(s, chances, settings, step) for s in (stored, slices))
        for name in here:
            np.testing.assert_array_equal(there[name], here[name])
    kept = (KEPT.height, KEPT.width)
    assert here["hu"].shape == (2, 1, *kept) and here["target"].shape == (2, *kept, 1)
    _, history = fit(stored, settings, tmp_path)
    assert np.isfinite(history[-1]["loss"])


def test_slices_with_and_without_the_gland_are_balanced():
    slices = made_up()
    target = slices.target.copy()
    target[0] = 0
    mixed = replace(slices, target=target)
    chances = sampling_chances(mixed, replace(SETTINGS, positive_share=0.7))
    patient = 1 - SETTINGS.negative_share
    # P1's two slices both show it, so nothing is to be balanced there.
    assert chances[:4] == pytest.approx([patient / 2 * s for s in (0.3, 0.7, 0.5, 0.5)])
    assert chances[4:] == pytest.approx([SETTINGS.negative_share / 2] * 2)
    # Where every slice shows it, the share says nothing.
    np.testing.assert_array_equal(
        sampling_chances(slices, SETTINGS),
        sampling_chances(slices, replace(SETTINGS, positive_share=0.2)),
    )


def test_what_is_not_usable_is_never_drawn():
    slices = made_up()
    usable = np.array([True, False, True, True, True, False])
    chances = sampling_chances(replace(slices, usable=usable), SETTINGS)
    assert chances[~usable].tolist() == [0, 0] and chances.sum() == pytest.approx(1)
    with pytest.raises(PancreasSegError, match="no slices"):
        sampling_chances(replace(slices, usable=np.zeros(6, bool)), SETTINGS)


def test_impossible_inputs_are_refused():
    with pytest.raises(PancreasSegError):
        TrainSettings(positive_share=0.0)
