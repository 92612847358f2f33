"""The second stage's frame: what it learns from is laid around the gland, as it will be used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pytest

from napari_pancreas_seg.data.phantom import make_phantom
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.frame import FrameSpec, gland_centre, place_frame
from napari_pancreas_seg.inference.segment import LoadedModel, segment
from napari_pancreas_seg.model.attention_unet import Architecture
from napari_pancreas_seg.model.bundle import load_card
from napari_pancreas_seg.training.data.datasets import (
    WORKING_FRAME,
    load_cases,
    load_phantoms,
    working_frame,
)
from napari_pancreas_seg.training.data.layouts.slices import read_slice_layout
from napari_pancreas_seg.training.data.placing import check_classes, gland_of_slices, lay_frame
from napari_pancreas_seg.training.fit.augmentation import Augment, AugmentationSettings, draw
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.judge.validation import HeldBack
from napari_pancreas_seg.training.run import Split, train
from napari_pancreas_seg.training.stages import FINE_FRAME, STAGES, stage_named

LABELS = {"pancreas": 1}
TINY = FrameSpec(32, 48, 4.0, (0.0, 0.0), "gland")


@dataclass(frozen=True)
class Whole:
    """A phantom as a case."""

    seed: int = 1
    name: str = "a"
    patient: str = "a"
    slices: None = None
    files: tuple = ()

    @cached_property
    def phantom(self):
        return make_phantom(self.seed, spacing_mm=(10.0, 4.0, 4.0), shape=(25, 70, 90))

    def load(self):
        return self.phantom.volume, self.phantom.mask


def middle_mm(target, mm):
    """Centre of a target (n, H, W, 1) from the frame's centre in mm."""
    centre = gland_centre(np.asarray(target)[..., 0] > 127)
    return [(c - (n - 1) / 2) * mm for c, n in zip(centre, target.shape[1:3], strict=True)]


def test_what_is_kept_has_room_to_move_the_frame_in_and_its_resolution():
    assert working_frame(FrameSpec()) == WORKING_FRAME
    assert working_frame(FrameSpec(offset_mm=(0.0, 0.0))).offset_mm == (0.0, 0.0)
    small = FrameSpec(32, 32, 2.0, (5.0, 0.0))
    assert working_frame(small) == replace(WORKING_FRAME, offset_mm=(5.0, 0.0))
    organs = working_frame(FrameSpec(224, 288, 1.3, (0.0, 0.0)))
    assert organs == FrameSpec(408, 512, 1.0, (0.0, 0.0))
    kept = working_frame(FINE_FRAME)
    assert kept.mm_per_pixel == FINE_FRAME.mm_per_pixel and kept.centre == "gland"
    for size, all_of_it in ((FINE_FRAME.height, kept.height), (FINE_FRAME.width, kept.width)):
        assert (all_of_it - size) * kept.mm_per_pixel >= 110


def test_a_volume_is_kept_around_its_gland():
    slices = load_cases([Whole()], LABELS, frame=TINY)
    kept = working_frame(TINY)
    assert slices.hu.shape[1:] == (kept.height, kept.width)
    assert middle_mm(slices.target, kept.mm_per_pixel) == pytest.approx([0, 0], abs=4)
    around_body = load_cases([Whole()], LABELS)
    assert np.abs(middle_mm(around_body.target, 1.0)).max() > 4
    phantoms = load_phantoms([1], frame=TINY)
    assert middle_mm(phantoms.target, kept.mm_per_pixel) == pytest.approx([0, 0], abs=3)


def test_slices_of_a_patient_share_a_place_of_the_body(dataset):
    records = read_slice_layout(dataset)
    places = gland_of_slices(records, [1], TINY)
    assert places.keys() == {f"P{i}" for i in range(6)}
    assert gland_of_slices(records, [1], FrameSpec()) == {}
    both = [r for r in records if r.patient == "P3"]
    frames, centres = [], []
    for record in both:
        volume, mask = record.load()
        frames.append(lay_frame(volume, mask, [1], TINY, places["P3"]))
        centres.append(gland_centre(mask))
        alone = lay_frame(volume, mask, [1], TINY)
        assert alone.origin == place_frame(volume.hu, volume.spacing, TINY, mask).origin
    # One place for both, half-way between the two glands, which lie apart.
    np.testing.assert_allclose(frames[0].origin, frames[1].origin)
    frame = frames[0]
    sizes = zip(frame.origin, frame.step, (TINY.height, TINY.width), strict=True)
    middle = [o + s * (n - 1) / 2 for o, s, n in sizes]
    assert np.abs(np.diff(centres, axis=0)).max() > 3
    np.testing.assert_allclose(middle, np.mean(centres, axis=0), atol=3)


def test_training_and_validation_see_the_same_frame(dataset):
    records = read_slice_layout(dataset)[:4]
    settings = TrainSettings(architecture=Architecture(filters=1), frame=TINY)
    slices = load_cases(records, LABELS, frame=TINY)
    chance = draw(np.random.default_rng(0), 4, TINY, AugmentationSettings.none())
    batch = {"hu": slices.inputs(np.arange(4)), "target": slices.target[np.arange(4)], **chance}
    _, target, _ = Augment(TINY, working_frame(TINY))(batch)

    class Nothing:
        def predict_on_batch(self, inputs):
            return {"probability": np.zeros((*inputs.shape[:3], 1), np.float32)}

    for one, seen in zip(
        HeldBack(records, LABELS, settings).predict(Nothing()), np.asarray(target), strict=True
    ):
        assert one.target.sum() == pytest.approx(seen.sum(), rel=0.1)
        assert np.abs(one.target[0] - seen[..., 0]).mean() < 0.01


def test_a_case_in_the_cache_is_made_anew_for_another_frame(dataset, tmp_path):
    records = read_slice_layout(dataset)[:2]
    for frame in (FrameSpec(), TINY):
        cached = load_cases(records, LABELS, frame=frame, cache=tmp_path)
        np.testing.assert_array_equal(cached.hu[:], load_cases(records, LABELS, frame=frame).hu)
    assert len(list(tmp_path.glob("*.rows"))) == 4


def test_both_stages_cost_the_same_a_slice():
    single, fine = (TrainSettings(**stage_named(name)).frame for name in STAGES)
    assert (single.height, single.width) == (fine.height, fine.width)
    assert fine.mm_per_pixel < single.mm_per_pixel
    with pytest.raises(PancreasSegError, match="known are single, fine"):
        stage_named("third")


def test_organs_do_not_lie_around_the_gland():
    check_classes(TINY, {"pancreas": 1, "tumour": 2})
    check_classes(FrameSpec(), {"pancreas": 1, "liver": 2})
    with pytest.raises(PancreasSegError, match="and not pancreas, liver"):
        check_classes(TINY, {"pancreas": 1, "liver": 2})


def test_the_second_stage_is_trained_and_finds_its_localiser(
    dataset, tiny_bundle, tmp_path, monkeypatch
):
    settings = TrainSettings(
        architecture=Architecture(filters=2), steps=2, steps_per_epoch=2, batch_size=2,
        frame=TINY, calibration_batches=2,
    )  # fmt: skip
    with pytest.raises(PancreasSegError, match="Only the second stage"):
        train(dataset, tmp_path, replace(settings, frame=FrameSpec()), localiser=tiny_bundle)
    run = tmp_path / "run"
    bundle = train(dataset, run, settings, split=Split(3), localiser=tiny_bundle, phantoms=0)
    card = load_card(bundle)
    assert card["frame"]["centre"] == "gland"
    assert card["localiser"] == {
        "name": "tiny",
        "weights_sha256": load_card(tiny_bundle)["weights_sha256"],
    }
    assert "around the reference's gland" in card["validation"]["what"]
    monkeypatch.setenv("NAPARI_PANCREAS_SEG_MODELS", str(tiny_bundle.parent))
    volume, _ = read_slice_layout(dataset)[0].load()
    result = segment(volume, LoadedModel(bundle, "cpu"))
    assert result.mask.shape == volume.grid.shape and result.model["localiser"]["name"] == "tiny"
