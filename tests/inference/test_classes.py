"""Several classes: one label map, each class post-processed as its organ asks for."""

from __future__ import annotations

import io

import keras
import numpy as np
import pytest

from napari_pancreas_seg.inference.classes import ONE_CLASS, Classes
from napari_pancreas_seg.inference.finishing import Finishing, native_mask, remask
from napari_pancreas_seg.inference.frame import Frame, FrameSpec
from napari_pancreas_seg.inference.process import messages
from napari_pancreas_seg.inference.result import (
    Options,
    Progress,
    Segmentation,
    describe,
    edited_record,
    exhaust,
)
from napari_pancreas_seg.inference.schedule import SliceGrid
from napari_pancreas_seg.inference.segment import LoadedModel, iter_segment
from napari_pancreas_seg.model.attention_unet import Architecture, build
from napari_pancreas_seg.model.bundle import Bundle
from napari_pancreas_seg.model.weights import pack_weights
from napari_pancreas_seg.volume import CTVolume, Grid, ScalarMap

LABELS = {"pancreas": 1, "pancreas tumour": 4, "kidneys": 2}
ORGANS = Classes(tuple(LABELS), tuple(LABELS.values()))


def test_what_belongs_to_the_gland() -> None:
    assert ORGANS.in_gland == (True, True, False)
    assert not ORGANS.only_gland
    for names, expected in (
        (("pancreas", "cancer"), (True, True)),
        (("pancreas", "pancreatic_duct", "liver"), (True, True, False)),
        (("liver", "tumour"), (False, False)),
        (("gland of ours",), (True,)),
        (("pancreas", "Main duct", "cysts"), (True, True, True)),
        (("PDAC_lesion", "veins", "pancreas parenchyma"), (True, False, True)),
        (("pancreas", "liver", "liver_tumor", "tumour"), (True, False, False, False)),
        (("pancreas", "bile_duct"), (True, False)),
    ):
        assert Classes(names, tuple(range(1, len(names) + 1))).in_gland == expected
    assert Classes.of({"labels": LABELS}) == ORGANS
    assert Classes.of({}) == ONE_CLASS


SPEC = FrameSpec(40, 60, 2.0, (0.0, 0.0))
FRAME = Frame(SPEC, (80, 120), (0.5, 0.5), (2.0, 2.0))
SPACING = (2.0, 1.0, 1.0)


def scene() -> np.ndarray:
    """Gland with a small tumour, two kidneys far apart, and specks of each that are none."""
    p = np.full((3, 24, 40, 60), 0.01, np.float32)
    p[0, 6:18, 15:25, 20:40] = 0.9
    p[:2, 10:13, 18:21, 25:28] = [[[[0.1]]], [[[0.85]]]]
    p[2, 4:20, 25:35, 3:13] = p[2, 4:20, 25:35, 47:57] = 0.9
    p[0, 2, 2:4, 2:4] = p[1, 3, 2:4, 50:52] = p[2, 12, 2:4, 30:32] = 0.9  # specks
    return p


def finished(p: np.ndarray, classes: Classes, plausible: np.ndarray | None) -> np.ndarray:
    return Finishing(FRAME, SliceGrid(24), SPACING, plausible, None, classes).mask(p, 0.5)


def test_each_organ_keeps_its_pieces() -> None:
    plausible = np.ones(24, bool)
    mask = finished(scene().astype(np.float16), ORGANS, plausible)
    assert set(np.unique(mask)) == {0, 1, 2, 4}
    assert (mask[11, 37:41, 51:55] == 4).all()  # a tumour is small, and stays in its gland
    assert (mask[12, 55:65, 10:20] == 2).all() and (mask[12, 55:65, 100:110] == 2).all()
    for z, y, x in ((2, 5, 5), (3, 5, 102), (12, 5, 62)):
        assert mask[z, y, x] == 0
    raw = finished(scene(), ORGANS, None)
    assert raw[2, 5, 5] == 1 and raw[3, 5, 102] == 4 and raw[12, 5, 62] == 2

    # Where no pancreas can lie there may be kidneys.
    plausible[:10] = False
    low = finished(scene(), ORGANS, plausible)
    assert not np.isin(low[:10], (1, 4)).any()
    assert (low[5:10, 55:65, 10:20] == 2).all()


def test_a_class_that_is_never_seen_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    p = np.stack([rng.random((24, 40, 60)) ** 3, np.zeros((24, 40, 60))]).astype(np.float16)
    pair = Classes(("pancreas", "tumour"), (1, 2))
    for plausible in (None, np.arange(24) > 5):
        np.testing.assert_array_equal(
            finished(p, pair, plausible), finished(p[:1], ONE_CLASS, plausible)
        )


def test_together_they_must_be_likely_and_the_likeliest_wins() -> None:
    p = np.zeros((3, 1, 40, 60), np.float32)
    p[:, 0, :, :20] = [[[0.2]], [[0.25]], [[0.1]]]
    p[:, 0, :, 20:40] = [[[0.1]], [[0.25]], [[0.1]]]
    mask = native_mask(p, FRAME, 0.5, ORGANS)
    assert (mask[0, 2:-2, 5:35] == 4).all()
    assert not mask[0, :, 45:75].any()


@pytest.fixture(scope="module")
def volume(drawn) -> CTVolume:
    return drawn(0).volume


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """An untrained network of three classes that finds some of each."""
    keras.utils.set_random_seed(1)
    shape = Architecture(filters=4, height=32, width=48, classes=3)
    network = build(shape)
    head = network.get_layer("head_conv")
    kernel, bias = head.get_weights()
    head.set_weights([kernel * 3, bias])
    card = {
        "name": "three",
        "version": "0",
        "licence": "none",
        "architecture": shape.to_dict(),
        "frame": FrameSpec(32, 48, 7.0).to_dict(),
        "windows": [[0, 255], [40, 150], [80, 140]],
        "labels": LABELS,
        "threshold": 0.75,
        "temperature": 1.5,
        "weights_sha256": "",
    }
    return LoadedModel(Bundle(card, pack_weights(network)), "cpu")


@pytest.fixture(scope="module")
def run(volume: CTVolume, loaded: LoadedModel) -> tuple[Segmentation, np.ndarray]:
    """A result without post-processing, and what streamed before it."""
    seen = np.zeros(volume.grid.shape, np.uint8)

    def show(step: Progress) -> None:
        if step.slices is not None:
            seen[step.slices.z] = step.slices.mask

    steps = iter_segment(volume, loaded, Options(batch_size=8, postprocess=False))
    return exhaust(steps, show), seen


@pytest.mark.slow
def test_a_run_of_several_classes(run: tuple[Segmentation, np.ndarray], volume: CTVolume) -> None:
    result, seen = run
    assert set(np.unique(result.mask)) <= {0, *LABELS.values()}
    assert len(np.unique(result.mask)) > 2
    np.testing.assert_array_equal(seen, result.mask)
    assert list(result.probabilities) == list(LABELS)
    whole = sum(each.values.astype(np.float32) for each in result.probabilities.values())
    np.testing.assert_allclose(result.probability.values, whole, atol=3e-3)
    assert len(result.attention) == 4
    assert sum(result.volumes_ml.values()) == pytest.approx(result.volume_ml)
    record = describe(volume, result)
    assert {n: r["value"] for n, r in record["labels"].items()} == LABELS
    assert record["labels"]["kidneys"]["volume_ml"] == pytest.approx(result.volumes_ml["kidneys"])
    gland = np.isin(result.mask, (1, 4))
    assert 0 < record["measurements"]["voxels"] == gland.sum() < (result.mask > 0).sum()
    assert record["quality"]["expected_dice"] is None, "it was fitted to masks of the gland"
    again = edited_record(record, result.mask, volume)
    assert again["measurements"]["voxels"] == gland.sum()


def test_what_is_noticed_is_noticed_of_the_gland() -> None:
    mask = np.zeros((40, 80, 80), np.uint8)
    mask[10:20, 20:50, 20:50] = 1  # 72 mL
    mask[2:38, 55:75] = 2
    grid = Grid(mask.shape, np.diag([-2.0, 2, 2, 1])[[2, 1, 0, 3]])
    empty = ScalarMap(np.zeros(mask.shape, np.float16), grid)

    def noticed(**labels: int) -> list[str]:
        found = Segmentation(mask, empty, (), grid, 0.5, {"labels": labels}, {})
        return found.quality["noticed"]

    assert noticed(pancreas=1, liver=2) == []
    assert noticed(spleen=1, liver=2) == []
    assert any("mL" in said for said in noticed(pancreas=1, tumour=2))


def test_another_threshold_without_the_network(run: tuple, volume: CTVolume, loaded) -> None:
    result, _ = run
    np.testing.assert_array_equal(remask(result), result.mask)
    fewer = remask(result, threshold=0.85)
    assert 0 < np.count_nonzero(fewer) < np.count_nonzero(result.mask)
    assert set(np.unique(fewer)) <= set(np.unique(result.mask))


def test_the_result_travels_between_processes(run: tuple[Segmentation, np.ndarray]) -> None:
    result, _ = run
    pipe = io.BytesIO()
    messages.send(pipe, {"reply": "result", "found": result})
    pipe.seek(0)
    back = messages.receive(pipe)["found"]  # type: ignore[index]
    np.testing.assert_array_equal(back.mask, result.mask)
    assert back.scan == result.scan and back.quality == result.quality
    assert list(back.probabilities) == list(result.probabilities)
    for name, each in result.probabilities.items():
        np.testing.assert_array_equal(back.probabilities[name].values, each.values)
        assert back.probabilities[name].grid.same_as(each.grid)
