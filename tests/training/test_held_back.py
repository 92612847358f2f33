"""Cases held back: cut as inference cuts them, bounded in number, scored on their own pixels."""

from dataclasses import dataclass

import numpy as np
import pytest

from napari_pancreas_seg.inference.body import place_frame
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.model.attention_unet import Architecture
from napari_pancreas_seg.training.fit.presets import PRESETS
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.judge.calibration import (
    MOST_BYTES,
    MOST_SLICES,
    HeldBack,
    _bytes_of_slice,
    score_predictions,
)


@dataclass
class Case:
    phantom: object
    name: str = "a"
    patient: str = "p"
    slices: tuple[int, ...] | None = None
    files: tuple = ()

    def load(self):
        return self.phantom.volume, self.phantom.mask


@pytest.fixture(scope="module")
def phantom(drawn):
    return drawn(1)


class Tells:
    """A network that gives back a channel of what it is shown."""

    def __init__(self, channel):
        self.channel = channel

    def predict_on_batch(self, inputs):
        return {"probability": inputs[..., self.channel : self.channel + 1]}


def settings(**changes):
    return TrainSettings(
        architecture=Architecture(filters=1), frame=FrameSpec(32, 48, 6.0), **changes
    )


@pytest.mark.slow
def test_slices_are_cut_as_inference_cuts_them(phantom):
    held = HeldBack([Case(phantom)], {"pancreas": 1}, settings(windows=((0, 255),)))
    assert held.complete and len(held) == len(phantom.mask)
    found = list(held.predict(Tells(0)))
    frame = place_frame(phantom.volume.hu, phantom.volume.spacing, FrameSpec(32, 48, 6.0))
    rows, columns = frame.into()
    z = len(found) // 2
    expected = rows @ np.clip(phantom.volume.hu[z], 0, 255).astype(np.float32) @ columns.T / 255
    np.testing.assert_allclose(found[z].probability[0], expected, atol=1e-5)
    assert [one.name for one in found][:2] == ["a slice 0", "a slice 1"]
    np.testing.assert_array_equal(found[z].mask[0], phantom.mask[z])


@pytest.mark.slow
def test_only_labelled_slices_count(phantom):
    held = HeldBack([Case(phantom, slices=(3, 7))], {"pancreas": 1}, settings())
    assert [one.name for one in held.predict(Tells(0))] == ["a slice 3", "a slice 7"]
    assert held.complete


@pytest.mark.slow
def test_a_bounded_sample_keeps_mostly_slices_with_the_gland(phantom):
    cases = [Case(phantom, name) for name in "abc"]
    held = HeldBack(cases, {"pancreas": 1}, settings(), most_slices=36)
    assert len(held) == 36 and not held.complete
    predicted = list(held.predict(Tells(0)))
    shown = sum(one.mask.any() for one in predicted)
    assert shown == 27
    assert set(score_predictions(predicted).dice()) == {"p"}


@pytest.mark.parametrize("classes", [1, pytest.param(7, marks=pytest.mark.slow)])
def test_slices_and_predictions_fit_into_the_memory(phantom, classes):
    labels = {str(value): value for value in range(1, classes + 1)}
    recipe = settings()
    room = 30 * (512 * 512 + 32 * 48 * 10)

    class Says:
        def predict_on_batch(self, inputs):
            return {"probability": np.zeros((*inputs.shape[:3], classes), np.float32)}

    held = HeldBack([Case(phantom, name) for name in "abc"], labels, recipe, most_bytes=room)
    predicted = list(held.predict(Says()))
    one = predicted[0]
    shown = held._slices[0][0].nbytes
    # Masks of the phantom are smaller than those of a CT.
    bytes_of_one = 512 * 512 + shown + one.probability.nbytes + one.shares.nbytes
    assert 0.8 * room < len(predicted) * bytes_of_one <= room
    assert len(HeldBack([Case(phantom)], labels, recipe, most_bytes=1)) == 1


def test_the_usual_task_has_as_many_slices_as_ever():
    usual = TrainSettings()
    assert MOST_BYTES // _bytes_of_slice(usual, 1) > MOST_SLICES
    organs = TrainSettings(**PRESETS["organs"].settings)
    assert 600 < MOST_BYTES // _bytes_of_slice(organs, 7) < MOST_SLICES
