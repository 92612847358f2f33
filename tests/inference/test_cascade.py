"""The cascade, with networks that call whatever is bright enough the gland."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import napari_pancreas_seg as nps
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference import cascade
from napari_pancreas_seg.inference.cascade import (
    GlandLocation,
    find_localiser,
    localiser_entry,
    share_outside,
    with_localiser,
)
from napari_pancreas_seg.inference.frame import (
    FrameSpec,
    body_centre,
    frame_around,
    gland_centre,
    place_frame,
)
from napari_pancreas_seg.inference.provenance import describe
from napari_pancreas_seg.inference.remask import remask
from napari_pancreas_seg.inference.result import Options
from napari_pancreas_seg.inference.segment import LoadedModel, iter_segment
from napari_pancreas_seg.mask.metrics import dice
from napari_pancreas_seg.model.bundle import load_card, save_bundle
from napari_pancreas_seg.volume import CTVolume

FINE = FrameSpec(48, 64, 1.5, (0.0, 0.0), "gland")
GLAND = (slice(40, 80), slice(60, 80), slice(100, 140))
"""Where the bright box lies in (z, y, x)."""


@pytest.fixture(scope="module")
def bundles(tiny_card, tmp_path_factory):
    """A localiser and a second stage: what exceeds about 100 HU is the gland."""
    from napari_pancreas_seg.model.attention_unet import Architecture, build

    folder = tmp_path_factory.mktemp("cascade")
    spec = FrameSpec(64, 80, 4.0, (0.0, 0.0))
    frames = {"coarse": spec, "fine": FINE}
    for name, frame in frames.items():
        sizes = {"height": frame.height, "width": frame.width}
        card = {
            **tiny_card,
            "name": name,
            "architecture": {**tiny_card["architecture"], **sizes},
            "frame": frame.to_dict(),
        }
        save_bundle(build(Architecture(**card["architecture"])), card, folder / name)
    return folder


def bright(loaded: LoadedModel) -> LoadedModel:
    """Put a threshold on HU in the network's place; count the slices that come by."""
    loaded.seen = []  # type: ignore[attr-defined]

    def look(hu, rows, columns, shift=0.0):
        loaded.seen.append(len(hu))  # type: ignore[attr-defined]
        inside = rows @ hu.astype(np.float32) @ columns.T
        probability = 1 / (1 + np.exp(-np.clip((inside + shift - 100) / 4, -30, 30)))
        coarse = {f"attention_{k}": probability[:, :: 2**k, :: 2**k] for k in (1, 2, 3, 4)}
        maps = {"probability": probability[..., None], **coarse}
        return {name: values.astype(np.float16) for name, values in maps.items()}

    loaded.predictor.predict_batch = look  # type: ignore[method-assign]
    return loaded


@pytest.fixture
def model(bundles):
    loaded = bright(LoadedModel(bundles / "fine", "cpu", bundles / "coarse"))
    bright(loaded.localiser)
    return loaded


@pytest.fixture(scope="module")
def body():
    """120 slices of 2 mm with a body that fills most of them."""
    hu = np.full((120, 120, 200), -1000, np.int16)
    hu[:, 15:105, 20:180] = 60
    return hu


@pytest.fixture(scope="module")
def volume(body):
    hu = body.copy()
    hu[GLAND] = 140
    return CTVolume.from_source_array(hu.transpose(2, 1, 0), np.diag([-1.6, -1.6, 2.0, 1.0]))


@pytest.fixture(scope="module")
def truth(volume):
    mask = np.zeros(volume.grid.shape, np.uint8)
    mask[GLAND] = 1
    return mask


def run(volume, model, **options):
    seen = []
    steps = iter_segment(volume, model, Options(**options))
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as stop:
            return seen, stop.value


def test_the_second_stage_finds_what_the_first_one_found(volume, truth, model):
    _, found = run(volume, model)
    assert dice(found.mask, truth) > 0.97
    # The maps are the second network's, around the gland, and their grid says where.
    assert found.probability.values.shape[1:] == (FINE.height, FINE.width)
    place = volume.grid.affine @ [60, 69.5, 119.5, 1]
    middle = found.probability.grid.affine @ [0, (FINE.height - 1) / 2, (FINE.width - 1) / 2, 1]
    np.testing.assert_allclose(middle[:2], place[:2], atol=2.0)
    assert len(found.attention) == 4 and found.notes == ()
    # Work grows with the gland: 80 mm and a margin on either side, a row every 2 mm.
    assert sum(model.seen) < 60 and found.slices_seen < 60
    assert np.isfinite(found.expected_dice[45:75]).all()


def test_progress_counts_both_stages(volume, model):
    steps, found = run(volume, model, batch_size=4)
    stages = list(dict.fromkeys(step.stage for step in steps))
    assert stages == ["loading the network", "finding the gland", "segmenting", "post-processing"]
    counts = [step.done for step in steps[1:-1]]
    assert counts == sorted(counts) and counts[-1] == steps[-2].total == steps[-1].done
    # No slice is shown before the second stage has seen it.
    assert all((step.slices is None) == (step.stage != "segmenting") for step in steps)
    assert {"finding the gland", "network"} <= found.seconds.keys()


def test_another_threshold_needs_no_network(volume, model):
    found = nps.segment(volume, model)
    np.testing.assert_array_equal(remask(found), found.mask)
    loose = nps.segment(volume, model, threshold=0.2, postprocess=False)
    np.testing.assert_array_equal(remask(found, 0.2, postprocess=False), loose.mask)


def test_where_nothing_is_found_the_mask_is_empty_and_a_note_says_so(body, model):
    empty = CTVolume.from_source_array(body.transpose(2, 1, 0), np.diag([-1.6, -1.6, 2.0, 1.0]))
    steps, found = run(empty, model)
    assert not found.mask.any() and found.slices_seen == 0
    assert "first stage found no pancreas" in found.notes[0]
    assert np.isnan(found.probability.values).all() and np.isnan(found.expected_dice).all()
    assert not remask(found, 0.3).any()
    assert steps[-1].done == steps[-2].total


@pytest.mark.parametrize("every_slice", [False, True])
def test_a_single_slice_and_a_region(volume, truth, model, every_slice):
    one = CTVolume.from_source_array(
        volume.hu[50:51].transpose(2, 1, 0), np.diag([-1.6, -1.6, 2.0, 1.0])
    )
    assert dice(nps.segment(one, model, every_slice=every_slice).mask, truth[50:51]) > 0.97
    part = nps.segment(volume, model, slices=(60, 90), first_slice=62, every_slice=every_slice)
    assert not part.mask[:60].any() and dice(part.mask[60:80], truth[60:80]) > 0.95
    # What is found in a box is what the frame is laid around.
    box = nps.segment(volume, model, box=(0, 120, 100, 120))
    assert box.mask.any() and not box.mask[..., 120:].any()


def test_a_gland_larger_than_the_frame_is_said(body, model):
    hu = body.copy()
    hu[40:80, 20:100, 40:160] = 140
    large = CTVolume.from_source_array(hu.transpose(2, 1, 0), np.diag([-1.6, -1.6, 2.0, 1.0]))
    assert any("larger than" in note for note in nps.segment(large, model).notes)


def test_the_record_names_both_models(volume, model):
    record = describe(volume, nps.segment(volume, model))
    card = model.localiser.card
    assert record["model"]["name"] == "fine"
    assert record["localiser"] == {"name": "coarse", "weights_sha256": card["weights_sha256"]}


def test_the_card_or_the_user_names_the_localiser(bundles, monkeypatch, tmp_path):
    monkeypatch.setenv("NAPARI_PANCREAS_SEG_MODELS", str(tmp_path))
    card, coarse = load_card(bundles / "fine"), load_card(bundles / "coarse")
    with pytest.raises(PancreasSegError, match="does not say which model"):
        find_localiser(card)
    named = with_localiser(card, bundles / "coarse")
    assert named["localiser"] == localiser_entry(bundles / "coarse")
    assert with_localiser(named, bundles / "coarse") == named
    with pytest.raises(PancreasSegError, match="not here"):
        find_localiser(named)
    # The same weights under another name, then a namesake.
    (tmp_path / "mine").symlink_to(bundles / "coarse")
    assert find_localiser(named) == "mine"
    assert with_localiser(named) == named
    gone = {**card, "localiser": {"name": "mine", "weights_sha256": "0" * 64}}
    assert find_localiser(gone) == "mine"
    assert with_localiser(gone)["localiser"]["weights_sha256"] == coarse["weights_sha256"]
    with pytest.raises(PancreasSegError, match="by itself"):
        find_localiser(coarse, "default")
    with pytest.raises(PancreasSegError, match="second stage of a cascade itself"):
        find_localiser(card, bundles / "fine")
    assert find_localiser(coarse) is None and with_localiser(coarse) is coarse


def test_a_localiser_must_know_the_pancreas(bundles):
    card = load_card(bundles / "coarse")
    organs = {**card, "labels": {"liver": 1, "spleen": 2}}
    with pytest.raises(PancreasSegError, match="knows no pancreas"):
        cascade.localiser_entry("organs", organs)


def test_whereabouts_reach_beyond_the_ends_but_not_the_region():
    gland = np.zeros((50, 30, 30), bool)
    gland[20:30, 10:15, 4:25] = True
    found = GlandLocation.of(gland, 3.0, slice(0, 50))
    assert found == GlandLocation((12.0, 14.0), slice(17, 33))
    assert GlandLocation.of(gland, 3.0, slice(19, 31)).part == slice(19, 31)
    assert GlandLocation.of(np.zeros_like(gland), 3.0, slice(0, 50)) is None


def test_the_gland_is_centred_and_strays_do_not_count():
    rng = np.random.default_rng(0)
    mask = np.zeros((9, 80, 90), np.uint8)
    mask[2:6, 20:40, 50:81] = 1
    assert gland_centre(mask) == pytest.approx((29.5, 65.0), abs=1)
    mask[8, 70, rng.integers(0, 90, 9)] = 1
    assert gland_centre(mask) == pytest.approx((29.5, 65.0), abs=1)
    assert gland_centre(np.zeros_like(mask)) is None


def test_a_frame_lies_around_the_gland_or_where_most_bodies_have_it(volume, truth):
    frame = place_frame(volume.hu, volume.spacing, FINE, truth)
    sizes = zip(frame.origin, frame.step, (48, 64), strict=True)
    middle = [o + s * (n - 1) / 2 for o, s, n in sizes]
    assert middle == pytest.approx([69.5, 119.5], abs=1)
    nowhere = place_frame(volume.hu, volume.spacing, FINE, np.zeros_like(truth))
    typical = replace(FINE, offset_mm=FrameSpec().offset_mm)
    centre = body_centre(volume.hu, volume.spacing)
    expected = frame_around(centre, volume.grid.shape[1:], volume.spacing, typical)
    assert nowhere.origin == expected.origin
    assert share_outside(truth, frame) == 0
    assert share_outside(truth, replace(frame, origin=(frame.origin[0], 120.0))) == 0.5
    with pytest.raises(PancreasSegError, match="body or the gland"):
        FrameSpec(centre="liver")


def test_cards_say_the_centre_only_where_it_is_not_the_body(bundles):
    assert "centre" not in FrameSpec().to_dict()
    assert FrameSpec.from_dict(FINE.to_dict()) == FINE
    assert FrameSpec.from_dict(FrameSpec().to_dict()) == FrameSpec()
