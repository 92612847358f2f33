"""Corrections on plain arrays: what they promise whatever the mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.mask import editing
from napari_pancreas_seg.mask.editing import Change, change_of

SPACING = (2.5, 0.8, 0.7)

masks = hnp.arrays(
    np.uint8,
    st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)),
    elements=st.sampled_from([0, 0, 0, 1]),
)
"""Ragged masks, empty ones and ones that touch every border among them."""
label_maps = hnp.arrays(np.uint8, (4, 5, 6), elements=st.integers(0, 3))
distances = st.floats(0.1, 6.0)
quick = settings(max_examples=60, deadline=None)


def ball(shape, centre, radius_mm, spacing=SPACING):
    grid = np.indices(shape, dtype=float)
    steps = [(g - c) * s for g, c, s in zip(grid, centre, spacing, strict=True)]
    return (sum(step**2 for step in steps) <= radius_mm**2).astype(np.uint8)


@quick
@given(masks)
def test_filling_leaves_what_was_there_and_stays_between_the_ends(mask):
    filled = editing.fill_between_slices(mask, SPACING)
    held = np.flatnonzero(mask.any(axis=(1, 2)))
    assert np.array_equal(filled[held], mask[held])
    inner = slice(held[0], held[-1] + 1) if len(held) else slice(0, 0)
    outside = np.ones(len(mask), bool)
    outside[inner] = False
    assert not filled[outside].any()
    assert set(np.unique(filled)) <= {0, 1}


@quick
@given(masks)
def test_filling_is_the_same_upside_down_and_mirrored(mask):
    filled = editing.fill_between_slices(mask, SPACING)
    for axis in range(3):
        flipped = editing.fill_between_slices(np.flip(mask, axis), SPACING)
        # Interpolated distances of exactly 0 may fall on either side of the outline.
        assert np.count_nonzero(np.flip(flipped, axis) != filled) <= 0.05 * mask.size


@quick
@given(hnp.arrays(np.uint8, (7, 8), elements=st.integers(0, 1)), st.integers(1, 5))
def test_between_equal_slices_lies_the_same_slice(plane, gap):
    mask = np.zeros((gap + 2, 7, 8), np.uint8)
    mask[[0, -1]] = plane
    assert np.array_equal(editing.fill_between_slices(mask, SPACING), [plane] * (gap + 2))


def test_filling_follows_an_oblique_duct():
    # A disc that moves by more than its width from end to end of the gap, but overlaps.
    disc = ball((1, 40, 40), (0, 20, 12), 5.0, (1, 1, 1))[0]
    mask = np.stack([np.roll(disc, 4 * z, axis=1) for z in range(3)])
    filled = editing.fill_between_slices(mask * np.array([1, 0, 1])[:, None, None], (1, 1, 1))
    assert np.count_nonzero(filled[1] != mask[1]) < 0.1 * disc.sum()


def test_a_ball_is_filled_in_to_a_ball():
    mask = ball((21, 40, 40), (10, 20, 20), 12.0, (1, 0.8, 0.8))
    sparse = mask.copy()
    sparse[np.arange(21) % 4 != 2] = 0
    filled = editing.fill_between_slices(sparse, (1, 0.8, 0.8))
    inner = slice(2, 19)
    overlap = 2 * (filled & mask)[inner].sum() / (filled[inner].sum() + mask[inner].sum())
    assert overlap > 0.93


def test_a_piece_without_a_counterpart_tapers_off():
    mask = np.zeros((6, 20, 20), np.uint8)
    mask[0, 2:18, 2:6] = mask[-1, 2:18, 2:6] = 1
    mask[0, 6:14, 12:19] = 1
    areas = editing.fill_between_slices(mask, (1, 1, 1))[:, :, 10:].sum(axis=(1, 2))
    assert (np.diff(areas.astype(int)) <= 0).all()
    assert areas[1] > 0 and areas[-1] == 0


@quick
@given(masks, st.data())
def test_the_piece_at_a_point_is_connected_and_whole(mask, data):
    inside = np.argwhere(mask)
    if not len(inside):
        with pytest.raises(PancreasSegError):
            editing.keep_piece_at(mask, (0, 0, 0))
        return
    point = tuple(inside[data.draw(st.integers(0, len(inside) - 1))].tolist())
    kept = editing.keep_piece_at(mask, point)
    assert kept[point] and not (kept & ~mask).any()
    # No voxel of the mask that was dropped touches a voxel that was kept.
    near = editing.grow(kept, (1, 1, 1), 1.8)
    assert np.array_equal(near & mask, kept)


def test_a_point_outside_the_mask_is_refused():
    mask = np.zeros((2, 3, 4), np.uint8)
    mask[0, 0, 0] = 1
    for point in [(1, 2, 3), (0, 0, 4), (-1, 0, 0)]:
        with pytest.raises(PancreasSegError, match="no piece"):
            editing.keep_piece_at(mask, point)


@quick
@given(masks, st.floats(0, 30))
def test_islands_go_by_their_size(mask, min_mm3):
    kept = editing.remove_islands(mask, SPACING, min_mm3)
    assert not (kept & ~mask).any()
    assert kept.any() == mask.any()
    assert np.array_equal(editing.remove_islands(kept, SPACING, min_mm3), kept)
    dropped = mask & ~kept
    if dropped.any():
        point = tuple(np.argwhere(dropped)[0].tolist())
        piece = editing.keep_piece_at(mask, point)
        assert not (piece & kept).any()
        assert piece.sum() * np.prod(SPACING) < min_mm3


@quick
@given(masks, distances)
def test_growing_and_shrinking_mirror_each_other(mask, distance):
    grown = editing.grow(mask, SPACING, distance)
    shrunk = editing.shrink(mask, SPACING, distance)
    assert not (mask & ~grown).any() and not (shrunk & ~mask).any()
    if mask.any() and not mask.all():
        # Shrinking is growing the background.
        assert np.array_equal(shrunk, 1 - editing.grow(1 - mask, SPACING, distance))


@pytest.mark.parametrize(("axis", "steps"), [(0, 1), (1, 3), (2, 4)])
def test_growing_is_in_mm_along_every_axis(axis, steps):
    mask = np.zeros((9, 15, 15), np.uint8)
    mask[4, 7, 7] = 1
    grown = editing.grow(mask, SPACING, 2.9)
    line = [4, 7, 7]
    line[axis] = slice(None)
    assert grown[tuple(line)].sum() == 2 * steps + 1
    assert np.array_equal(editing.grow(mask, SPACING, 0.5), mask)


@quick
@given(masks, distances)
def test_smoothing_keeps_an_empty_or_full_mask(mask, sigma):
    assert not editing.smooth(np.zeros_like(mask), SPACING, sigma).any()
    assert editing.smooth(np.ones_like(mask), SPACING, sigma).all()
    assert np.array_equal(editing.smooth(mask, SPACING, 0), mask)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 3.0))
def test_smoothing_keeps_the_volume_and_takes_the_noise(seed, sigma):
    clean = ball((12, 40, 40), (6, 20, 20), 10)
    noise = np.random.default_rng(seed).random(clean.shape) < 0.08
    mask = clean ^ noise.astype(np.uint8)
    smoothed = editing.smooth(mask, SPACING, sigma)
    assert abs(int(smoothed.sum()) - int(mask.sum())) <= 0.03 * mask.sum()

    def surface(m):
        return sum(np.count_nonzero(np.diff(m.astype(int), axis=axis)) for axis in range(3))

    assert surface(smoothed) < surface(mask)


def test_within_hu_takes_both_ends():
    hu = np.array([-31, -30, 0, 150, 151], np.int16)
    assert editing.within_hu(hu, -30, 150).tolist() == [False, True, True, True, False]


@quick
@given(label_maps, st.integers(1, 3), hnp.arrays(np.uint8, (4, 5, 6), elements=st.integers(0, 1)))
def test_a_change_spares_the_other_labels(labels, label, after):
    before = (labels == label).astype(np.uint8)
    change = change_of(before, after, label)
    if change is None:
        assert np.array_equal(before, after)
        return
    indices, values = change.voxels(labels)
    now = labels.copy()
    now[indices] = values
    others = (labels != 0) & (labels != label)
    assert np.array_equal(now[others], labels[others])
    assert np.array_equal(now[~others] == label, after[~others] != 0)
    assert len(values) == np.count_nonzero(now != labels)
    assert change.slices == np.flatnonzero((before != after).any(axis=(1, 2))).tolist()


def test_a_change_spares_what_was_painted_meanwhile():
    before = np.zeros((3, 4, 4), np.uint8)
    before[0] = 1
    after = np.zeros_like(before)
    after[2] = 1
    change = change_of(before, after, 1)
    assert isinstance(change, Change)
    labels = before.copy()
    labels[0, 0, 0], labels[2, 0, 0], labels[1] = 2, 3, 1  # a person's strokes
    indices, values = change.voxels(labels)
    labels[indices] = values
    assert labels[0].sum() == 2 and labels[2, 0, 0] == 3 and (labels[1] == 1).all()
    assert (labels[2] == 1).sum() == 15


@pytest.mark.parametrize(
    "correct",
    [
        lambda mask: editing.fill_between_slices(mask, SPACING),
        lambda mask: editing.remove_islands(mask, SPACING, 5.0),
        lambda mask: editing.smooth(mask, SPACING, 1.0),
        lambda mask: editing.grow(mask, SPACING, 1.0),
        lambda mask: editing.shrink(mask, SPACING, 1.0),
    ],
)
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16])
def test_a_mask_of_any_dtype_is_left_alone(correct, dtype):
    mask = ball((6, 12, 12), (3, 6, 6), 4).astype(dtype)
    before = mask.copy()
    result = correct(mask)
    assert result.dtype == np.uint8 and result.shape == mask.shape
    assert np.array_equal(mask, before)
