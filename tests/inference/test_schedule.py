"""Which slices the network sees: enough of them, and no more."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_pancreas_seg.inference.schedule import FINE_MM, Schedule, SliceGrid, choose_slice_grid


def plan(n, spacing, part=None, first=None, likely=None, every=False):
    part = part or slice(0, n)
    slice_grid = choose_slice_grid(n, spacing, part, first, every)
    return slice_grid, Schedule(slice_grid, spacing, part, first, likely, every)


def carry_out(slice_grid, schedule, gland, most=8, behind=1):
    """Rows in the order in which they are handed out; answers come some batches later."""
    order, running = [], []
    while True:
        rows = schedule.take(most)
        if len(rows):
            running.append(rows)
            order += rows.tolist()
        if len(running) > behind or (running and not len(rows)):
            done = running.pop(0)
            schedule.record(done, np.isin(slice_grid.z[done], gland) * 9.0)
        elif not len(rows):
            return order


def test_every_slice_goes_outward():
    def order(n, first=None):
        slice_grid, schedule = plan(n, 5.0, first=first)
        return carry_out(slice_grid, schedule, [])

    assert order(5) == [0, 1, 2, 3, 4]
    assert order(5, 3) == [3, 2, 4, 1, 0]
    assert sorted(order(5, 99)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("n", "spacing", "every", "stride"),
    [(300, 1.0, False, 3), (300, 0.7, False, 4), (300, 1.25, False, 2), (300, 3.0, False, 1),
     (300, 5.0, False, 1), (39, 1.0, False, 1), (300, 1.0, True, 1)],
)  # fmt: skip
def test_rows_lie_at_most_three_millimetres_apart(n, spacing, every, stride):
    slice_grid = choose_slice_grid(n, spacing, slice(0, n), None, every)
    assert slice_grid.stride == stride
    assert stride == 1 or stride * spacing <= FINE_MM + 1e-9


@pytest.mark.slow
@given(
    n=st.integers(40, 400),
    spacing=st.floats(0.5, 3.0),
    start=st.floats(0, 1),
    length_mm=st.floats(15, 150),
    first=st.none() | st.integers(0, 399),
    behind=st.integers(0, 2),
)
def test_a_gland_is_seen_whole_wherever_it_lies(n, spacing, start, length_mm, first, behind):
    length = min(n, round(length_mm / spacing) + 1)
    z0 = round(start * (n - length))
    gland = np.arange(z0, z0 + length)
    slice_grid, schedule = plan(n, spacing, first=first)
    order = carry_out(slice_grid, schedule, gland, behind=behind)
    assert len(order) == len(set(order)), "a slice was seen twice"
    assert set(np.flatnonzero(np.isin(slice_grid.z, gland))) <= set(order)
    # A sweep, the gland, and at most one gap of the sweep at each end of it.
    gap = 12.0 / (spacing * slice_grid.stride) + 2
    assert (
        len(order) <= len(slice_grid) / (gap - 2) * 1.5 + length / slice_grid.stride + 3 * gap + 2
    )


def test_work_grows_with_the_gland_and_not_with_the_scan():
    gland = np.arange(200, 290)

    def seen(n):
        likely = np.zeros(n, bool)
        likely[50:350] = True
        slice_grid, schedule = plan(n, 1.0, likely=likely)
        return len(carry_out(slice_grid, schedule, gland))

    assert seen(400) == seen(2000) <= 70


def test_where_nothing_is_found_it_looks_more_closely():
    slice_grid, schedule = plan(300, 1.0)
    order = carry_out(slice_grid, schedule, [])
    assert sorted(order) == list(range(len(slice_grid)))
    # The coarse ones first.
    assert sorted(order[:25]) == list(range(0, 100, 4))


def test_a_short_gland_between_two_slices_of_the_sweep_is_found():
    slice_grid, schedule = plan(300, 1.0)
    gland = np.arange(100, 107)  # 7 mm: rows 34 and 35, between 32 and 36
    order = carry_out(slice_grid, schedule, gland)
    assert {33, 34, 35} <= set(order) and len(order) < len(slice_grid)


def test_faint_finds_far_away_are_not_looked_at_closely():
    slice_grid, schedule = plan(300, 1.0)
    sums = np.zeros(300)
    sums[150:220], sums[30:50] = 100.0, 1.0
    running = []
    order = []
    while len(rows := schedule.take(8)) or running:
        running += [rows] if len(rows) else []
        order += rows.tolist()
        done = running.pop(0)
        schedule.record(done, sums[slice_grid.z[done]])
    close = set(range(10, 17)) & set(order)
    assert close == {12, 16}


def test_a_region_is_kept_to():
    slice_grid, schedule = plan(300, 1.0, slice(100, 200), first=150)
    order = carry_out(slice_grid, schedule, np.arange(90, 250))
    assert slice_grid.z[order[0]] == 150
    assert slice_grid.z[order].min() >= 100 and slice_grid.z[order].max() < 200
    slice_grid, schedule = plan(300, 1.0, slice(100, 103))
    assert slice_grid.z[carry_out(slice_grid, schedule, [])].tolist() == [100, 101, 102]


def test_rows_given_back_are_handed_out_again():
    slice_grid, schedule = plan(10, 5.0)
    rows = schedule.take(8)
    schedule.give_back(rows)
    assert sorted(carry_out(slice_grid, schedule, [], most=4)) == list(range(10))
    assert schedule.total == 10


@pytest.mark.slow
@given(n=st.integers(1, 50), stride=st.integers(1, 6), data=st.data())
def test_slices_between_rows_are_interpolated(n, stride, data):
    offset = data.draw(st.integers(0, min(stride, n) - 1))
    slice_grid = SliceGrid(n, stride, offset)
    values = slice_grid.z.astype(float)
    for z in range(n):
        below, above, share = slice_grid.between(z)
        place = (1 - share) * values[below] + share * values[above]
        assert place == pytest.approx(np.clip(z, values[0], values[-1]))
        nearest = slice_grid.z[slice_grid.nearest()[z]]
        assert abs(nearest - z) <= max(stride / 2, abs(np.clip(z, values[0], values[-1]) - z))
