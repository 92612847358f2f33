"""A fine-tuning, compiled as for users, makes a model better."""

import json
from dataclasses import replace

import keras
import pytest

from napari_pancreas_seg.model.attention_unet import Architecture, build
from napari_pancreas_seg.model.bundle import Bundle, load_bundle, save_bundle
from napari_pancreas_seg.training.finetune.run import FinetuneSettings, finetune
from napari_pancreas_seg.training.finetune.tuner import STAGES

pytestmark = pytest.mark.slow

LEARNING = FinetuneSettings(
    steps=80, batch_size=4, stages=tuple(replace(s, rate=3e-3) for s in STAGES),
    forgets_at_most=1.0,
)  # fmt: skip


@pytest.fixture(scope="session")
def start(tiny_card, tmp_path_factory) -> Bundle:
    """A tiny untrained network whose decoder has an encoder to listen to."""
    keras.utils.set_random_seed(3)
    network = build(Architecture(**tiny_card["architecture"]))
    card = {**tiny_card, "licence": "CC BY 4.0", "training": {"patients": ["A"]}}
    return load_bundle(save_bundle(network, card, tmp_path_factory.mktemp("start") / "start"))


@pytest.fixture(scope="module")
def made(dataset, start, tmp_path_factory):
    """A fine-tuning and what was told of it."""
    told = []
    path = tmp_path_factory.mktemp("made") / "new"
    return finetune(
        dataset, path, start, settings=LEARNING, report=lambda *step: told.append(step)
    ), told


def test_a_model_is_made_tested_and_told_of(made, start):
    found, told = made
    card = load_bundle(found["model"]).card
    assert card["name"] == "new" and card["licence"] == "CC BY 4.0"
    assert card["training"]["patients"] == ["A", *(f"P{i}" for i in range(6))]
    assert card["description"].startswith("Fine-tuned from tiny 0 on 12 slices of 6 patients; Dice")
    about = card["finetuned"]
    assert about["from"]["weights_sha256"] == start.card["weights_sha256"]
    assert about["patients"] == 6 and about["slices"] == 12 and about["steps"] == 80
    assert about["held_out"]["n"] == found["held_out"]["n"] == 2
    assert about["guard"]["n"] == 1 and about["usual"]["n"] == 2
    assert json.loads(json.dumps(found))["name"] == "new"
    shares = [share for _, share, _ in told]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert {"trial: the decoder", "learning: the whole network"} <= {stage for stage, *_ in told}


def test_what_learns_becomes_better(made):
    found = made[0]
    assert found["held_out"]["after"] > found["held_out"]["before"] + 0.1 and found["better"]
