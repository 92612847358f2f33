"""A stroke mends a slice: what the network may change, whatever it says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

import napari_pancreas_seg as nps
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.inference.mend import GUIDES, REACH_MM, Mender, _leftovers, lay_frame
from napari_pancreas_seg.inference.process.client import NetworkProcess
from napari_pancreas_seg.inference.process.server import _Network
from napari_pancreas_seg.model.bundle import list_models, load_bundle, save_bundle
from napari_pancreas_seg.volume import CTVolume

SHAPE = (5, 90, 130)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained network that flips about half of what it sees."""
    import keras

    from napari_pancreas_seg.model.attention_unet import Architecture, build

    keras.utils.set_random_seed(1)
    frame = FrameSpec(32, 48, 4.0, (0.0, 0.0))
    architecture = Architecture(filters=2, height=32, width=48, channels=3 + GUIDES)
    card = {
        "name": "mend",
        "version": "0",
        "licence": "BSD-3-Clause",
        "task": "mend",
        "architecture": architecture.to_dict(),
        "frame": frame.to_dict(),
        "windows": [[0, 255], [40, 150], [80, 140]],
        "labels": {"pancreas": 1},
        "threshold": 0.5,
        "weights_sha256": "",
    }
    return save_bundle(build(architecture), card, tmp_path_factory.mktemp("models") / "mend")


@pytest.fixture(scope="module")
def mender(folder):
    return Mender(folder, "cpu")


def ct(spacing=(2.5, 1.5, 1.5)) -> CTVolume:
    hu = np.random.default_rng(0).normal(60, 60, SHAPE).astype(np.int16)
    affine = np.diag([*spacing[::-1], 1.0])
    return CTVolume.from_source_array(np.ascontiguousarray(hu.transpose(2, 1, 0)), affine)


def strokes(rng) -> np.ndarray:
    """One to three short lines."""
    drawn = np.zeros(SHAPE[1:], bool)
    for _ in range(rng.integers(1, 4)):
        y, x = rng.integers(0, SHAPE[1] - 3), rng.integers(0, SHAPE[2] - 12)
        drawn[y : y + 3, x : x + rng.integers(2, 12)] = True
    return drawn


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_strokes_are_obeyed_and_what_is_far_or_of_others_stays(mender, seed):
    rng = np.random.default_rng(seed)
    spacing = (2.5, *rng.choice([0.7, 1.5, 4.0], 2))
    volume, mask = ct(spacing), rng.integers(0, 4, SHAPE).astype(np.uint8)
    if seed % 3 == 0:
        mask[:] = 0
    add, remove = strokes(rng), strokes(rng) if seed % 2 else None
    prior = (strokes(rng), 2.5) if seed % 4 == 0 else None
    found = mender.mend(volume, mask, 2, add=add, remove=remove, prior=prior, label=2)
    taken = np.zeros_like(add) if remove is None else remove
    assert found.dtype == np.uint8 and found.shape == SHAPE[1:]
    assert (found[add & ~taken] == 2).all() and (found[taken] != 2).all()
    others = ~np.isin(mask[2], (0, 2)) & ~add
    changed = found != mask[2]
    assert not changed[others].any()
    away = ndimage.distance_transform_edt(~(add | taken), sampling=spacing[1:])
    assert not changed[away > REACH_MM].any()
    assert changed[~add & ~taken].any()  # the network was heard


def test_without_strokes_nothing_changes(mender):
    mask = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
    none = np.zeros(SHAPE[1:], bool)
    for given in ({}, {"add": none, "remove": none}, {"prior": (none, 2.5)}):
        found = mender.mend(ct(), mask, 1, **given)
        assert np.array_equal(found, mask[1])
        assert found.base is None and not np.shares_memory(found, mask)


def test_a_neighbours_mask_alone_is_a_proposal_around_it(mender):
    prior = np.zeros(SHAPE[1:], bool)
    prior[10:14, 10:20] = True
    found = mender.mend(ct(), np.zeros(SHAPE, np.uint8), 1, prior=(prior, 2.5), label=3)
    assert set(np.unique(found)) == {0, 3}
    away = ndimage.distance_transform_edt(~prior, sampling=1.5)
    assert not found[away > REACH_MM].any()


def test_a_proposal_does_not_depend_on_what_was_there(mender):
    prior, rng = np.zeros(SHAPE[1:], bool), np.random.default_rng(0)
    prior[30:40, 50:80] = True
    masks = np.zeros(SHAPE, np.uint8), (rng.random(SHAPE) < 0.3).astype(np.uint8)
    empty, full = (mender.mend(ct(), mask, 1, prior=(prior, 2.5)) for mask in masks)
    assert np.array_equal(empty, full)
    others = np.where(masks[1] > 0, 2, masks[1]).astype(np.uint8)
    found = mender.mend(ct(), others, 1, prior=(prior, 2.5))
    assert np.array_equal(found == 2, others[1] == 2)  # no other label gives way to it


def test_a_proposal_keeps_to_a_near_neighbour(mender, monkeypatch):
    """Where the network cannot tell, or hardly, the neighbour's outline does."""
    prior = np.zeros(SHAPE[1:], bool)
    prior[30:50, 50:90] = True
    empty, said = np.zeros(SHAPE, np.uint8), np.float32(0.5)
    monkeypatch.setattr(mender, "_ask", lambda *_: np.full((32, 48), said, np.float32))
    for mm in (1.0, 6.0):
        assert np.array_equal(mender.mend(ct(), empty, 1, prior=(prior, mm)) > 0, prior)
    said = np.float32(0.99)
    near, far = (mender.mend(ct(), empty, 1, prior=(prior, mm)) > 0 for mm in (1.0, 6.0))
    assert prior.sum() < near.sum() < far.sum()
    add = np.zeros(SHAPE[1:], bool)
    add[40:43, 60:70] = True
    mended = mender.mend(ct(), empty, 1, add=add, prior=(prior, 1.0)) > 0
    assert mended.sum() > near.sum()  # of a stroke, the network alone judges


def test_what_the_network_leaves_alone_keeps_its_edges(mender, monkeypatch):
    """Back and forth through coarser pixels, nothing may be smoothed."""
    mask = np.random.default_rng(0).random(SHAPE) < 0.3
    add = np.zeros(SHAPE[1:], bool)
    add[40:43, 60:70] = True
    monkeypatch.setattr(mender, "_ask", lambda hu, shift, rows, columns, guides: guides[0])
    found = mender.mend(ct(), mask.astype(np.uint8), 0, add=add)
    assert np.array_equal(found > 0, mask[0] | add)


def test_what_is_left_of_a_piece_that_a_stroke_takes_away_goes_with_it(mender, monkeypatch):
    mask = np.zeros(SHAPE, np.uint8)
    mask[0, 20:40, 20:50] = 1  # the gland
    mask[0, 20:40, 60:80] = 1  # a piece that is none
    mask[0, 20:25, 100:105] = 1  # a small one elsewhere
    mask[0, 20:24, 80:84] = 2
    lost = np.zeros(SHAPE[1:], bool)
    lost[20:40, 60:78] = True  # but not all of it

    def answer(volume, z, frame, planes, weight):
        before = (mask[0] == 1)[frame.support()]
        return before, np.where(before & ~lost[frame.support()], 3.0, -3.0)

    monkeypatch.setattr(mender, "_answer", answer)
    stroke, none = np.zeros_like(lost), np.zeros_like(lost)
    stroke[28:32, 62:72] = True
    found = mender.mend(ct(), mask, 0, remove=stroke)
    wanted = mask[0].copy()
    wanted[20:40, 60:80] = 0
    assert np.array_equal(found, wanted)
    none[30:32, 79] = True  # a stroke says that this is right
    kept = mender.mend(ct(), mask, 0, remove=stroke, add=none)
    assert (kept[20:40, 78:80] == 1).all()
    mask[0, 20:40, 20:50] = 0  # the largest that there is stays
    mask[0, 20:25, 100:105] = 0
    assert (mender.mend(ct(), mask, 0, remove=stroke)[20:40, 78:80] == 1).all()


@pytest.mark.parametrize("mm", [0.3, 3.0])
def test_a_voxel_beside_what_was_taken_away_is_left_of_it(mm):
    before = np.zeros((40, 40), bool)
    before[2:9, 2:9] = before[20:23, 20:23] = True  # the gland and a piece that is none
    after, none = before.copy(), np.zeros_like(before)
    after[20:23, 20:23] = False
    after[22, 22] = True
    assert _leftovers(before, after, none, (mm, mm)).sum() == 1
    assert not _leftovers(before, after, after, (mm, mm)).any()
    after[20:23, 20:23] = True
    assert not _leftovers(before, after, none, (mm, mm)).any()


def test_the_network_sees_what_it_was_trained_on(mender, monkeypatch):
    seen = {}

    def ask(hu, shift, rows, columns, guides):
        seen.update(guides=guides)
        return guides[0]

    monkeypatch.setattr(mender, "_ask", ask)
    add = np.zeros(SHAPE[1:], bool)
    add[40:50, 60:75] = True
    mask, prior = np.zeros(SHAPE, np.uint8), np.ones(SHAPE[1:], bool)
    mask[0, 40:50, 60:90] = 2
    mender.mend(ct(), mask, 0, add=add, prior=(prior, 8.0), label=2)
    present, given, taken, neighbour = seen["guides"]
    assert present.max() == pytest.approx(1) and given.max() == pytest.approx(1)
    assert present.sum() > given.sum() > 0 and not taken.any()
    assert neighbour[16, 24] == pytest.approx(np.exp(-1))
    mender.mend(ct(), mask, 0, add=add)
    assert not seen["guides"][3].any()


def test_a_ct_without_soft_tissue_is_mended_too(mender):
    volume = ct()
    empty = CTVolume(np.full(SHAPE, -1000, np.int16), volume.grid, volume.source)
    add = np.zeros(SHAPE[1:], bool)
    add[40, 60] = True
    assert mender.mend(empty, np.zeros(SHAPE, np.uint8), 0, add=add)[40, 60] == 1


def test_the_frame_lies_around_strokes_and_what_is_near():
    strokes, spec = np.zeros((512, 512), bool), FrameSpec(128, 160, 1.0, (0.0, 0.0))
    strokes[300:306, 200:220] = True
    near = strokes.copy()
    near[300:330, 150:290] = True
    frame = lay_frame(strokes, near, (2.5, 0.8, 0.8), spec)
    assert frame.spec.mm_per_pixel == 1
    rows, columns = frame.support()
    assert columns.start < 150 and columns.stop > 290
    strokes[100, 20] = True  # far away: all of it is seen, less finely
    frame = lay_frame(strokes, strokes, (2.5, 0.8, 0.8), spec)
    rows, columns = frame.support()
    assert frame.spec.mm_per_pixel > 1 and rows.start < 100 and columns.start < 20


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mask": np.zeros((5, 90, 131), np.uint8)}, "same grid"),
        ({"mask": np.full(SHAPE, 257)}, "whole numbers from 0 to 255"),
        ({"z": 5}, "no slice 5"),
        ({"z": -1}, "no slice -1"),
        ({"label": 0}, "label 0"),
        ({"add": np.zeros((90, 131), bool)}, "strokes that add"),
        ({"prior": (np.zeros((90, 131), bool), 1.0)}, "neighbour's mask"),
        ({"prior": np.zeros(SHAPE[1:], bool)}, "distance in mm"),
        ({"prior": (np.zeros(SHAPE[1:], bool), np.nan)}, "distance in mm"),
        ({"prior": (np.zeros(SHAPE[1:], bool), None)}, "distance in mm"),
        ({"prior": 1.0}, "distance in mm"),
        ({"volume": "ct.nii.gz"}, "what load_ct returned"),
        ({"z": 1.0}, "slice must be a whole number"),
        ({"label": 1.5}, "label must be a whole number"),
    ],
)
def test_what_does_not_fit_is_refused(mender, changes, sentence):
    asked = {"volume": ct(), "mask": np.zeros(SHAPE, np.uint8), "z": 0, **changes}
    with pytest.raises(nps.PancreasSegError, match=sentence):
        mender.mend(**asked)


def test_a_model_for_another_task_is_refused(folder, tiny_bundle, monkeypatch):
    with pytest.raises(nps.PancreasSegError, match="made to mend, not to segment"):
        nps.LoadedModel(folder)
    with pytest.raises(nps.PancreasSegError, match="made to segment, not to mend"):
        load_bundle(tiny_bundle, "mend")
    monkeypatch.setenv("NAPARI_PANCREAS_SEG_MODELS", str(folder.parent))
    assert "mend" not in {entry.name for entry in list_models()}


@pytest.mark.slow
def test_the_child_answers_as_the_function_does(mender, folder, monkeypatch):
    network, volume, plane = _Network(), ct(), np.zeros(SHAPE[1:], np.uint8)
    network._mender = Mender(folder, "cpu", network._body)
    add = strokes(np.random.default_rng(3))
    asked = {"z": 2, "label": 1, "add": add, "remove": None, "prior": (add, 2.5)}
    assert network.mend(volume, plane=None, **asked) is None
    found = network.mend(volume, plane=plane, **asked)
    expected = mender.mend_plane(volume, plane, 2, add=add, prior=(add, 2.5))
    assert np.array_equal(found, expected)


@pytest.mark.slow
def test_strokes_travel_to_the_child_and_the_slice_comes_back():
    fake = str(Path(__file__).parents[1] / "_napari" / "fake_network.py")
    network = NetworkProcess([sys.executable, fake])
    volume, plane = ct(), np.zeros(SHAPE[1:], np.uint8)
    add = strokes(np.random.default_rng(3))
    try:
        assert network.mend(volume, None, 0, key="a") is None
        found = network.mend(volume, plane, 2, add=add, label=3, key="a")
        assert np.array_equal(found, 3 * add)
        again = network.mend(volume, found, 2, remove=add, label=3, key="a")
        assert not again.any()
        assert np.array_equal(network.mend(volume, plane, 0, prior=(add, 2.5), key="a"), add)
        with pytest.raises(nps.PancreasSegError):
            network.mend(volume, plane[1:], 0, key="a")
    finally:
        network.close()
    assert network.mend(volume, plane, 0) is None


@pytest.mark.slow
def test_importing_it_loads_no_keras():
    code = "import sys, napari_pancreas_seg as n; n.mend; sys.exit('keras' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_the_bundled_network_says_what_it_is_and_hears_strokes():
    bundle = load_bundle("mend", "mend")
    assert len(bundle.weights) <= 5_000_000 and bundle.card["gflop"] <= 3
    assert bundle.card["figures"]["slices"] == 164
    assert "mend" not in {entry.name for entry in list_models()}
    add = np.zeros(SHAPE[1:], bool)
    add[40:44, 55:70] = True
    hu = np.full(SHAPE, -100, np.int16)
    hu[:, 20:70, 30:100] = 40
    hu[:, 35:50, 45:80] = 110
    volume = CTVolume(hu, ct().grid, ct().source)
    found = nps.mend(volume, np.zeros(SHAPE, np.uint8), 2, add=add)
    assert found[add].all() and found.sum() > add.sum()
    again = nps.mend(volume, np.broadcast_to(found, SHAPE), 2, remove=found > 0)
    assert not again[found > 0].any()
