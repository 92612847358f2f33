"""Offsets and windows are found from air, fat and soft tissue, or the volume is refused."""

import numpy as np
import pytest

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.hounsfield import to_hounsfield
from napari_pancreas_seg.units import read_units


@pytest.fixture(scope="module")
def hu(drawn):
    return drawn(0, (6.0, 2.5, 2.5), (42, 112, 144)).volume.hu


@pytest.mark.parametrize("offset", [1000, 1024, 8192])
@pytest.mark.parametrize("air", [-1000, -1024])
def test_offsets_are_found(offset, air, hu):
    stored = np.maximum(hu, air) + np.int16(offset)
    slope, shift, notes = read_units(stored)
    assert (slope, shift) == (1, -offset)
    assert len(notes) == 1 and str(abs(offset)) in notes[0] and "uncertain" not in notes[0]
    back, _ = to_hounsfield(stored, "'ct'")
    np.testing.assert_array_equal(back, np.maximum(hu, air))


@pytest.mark.parametrize("offset", [1500, -1024])
def test_what_no_tool_adds_is_not_guessed(offset, hu):
    with pytest.raises(PancreasSegError, match="Hounsfield units"):
        read_units(np.maximum(hu, -1024) + np.int16(offset))


def wide(hu, padding):
    """The same body, small in a large field of view that is filled around the scan circle."""
    z, y, x = hu.shape
    size = 5 * x // 2
    out = np.random.default_rng(0).normal(-998, 8, (z, size, size)).round().astype(np.int16)
    out[:, (size - y) // 2 :, (size - x) // 2 :][:, :y, :x] = hu
    middle = np.abs(np.arange(size) - (size - 1) / 2)
    out[:, np.hypot.outer(middle, middle) > size / 2] = padding
    return out


@pytest.mark.parametrize("padding", [-1024, -2000, -2048, -3024])
def test_padding_around_a_thin_patient_is_no_air_of_another_offset(padding, hu):
    thin = np.where((hu > -200) & (hu < -20), np.int16(-990), hu)
    assert read_units(wide(thin, padding)) == (1, 0, ())
    slope, shift, notes = read_units(wide(thin, padding) + np.int16(1024))
    assert (slope, shift) == (1, -1024) and "1024" in notes[0]


def test_hounsfield_units_have_no_offset(hu):
    assert read_units(hu) == (1, 0, ())
    assert read_units(np.pad(hu, ((0, 0), (9, 9), (9, 9)))) == (1, 0, ())


@pytest.mark.parametrize(
    "window",
    [(-160, 240), (-50, 150), (-45, 105), (-100, 100), (-125, 125), (-20, 250), (0, 300)],
)
def test_narrow_windows_go_on_with_a_note(window, hu):
    slope, shift, notes = read_units(np.clip(hu, *window))
    assert (slope, shift) == (1, 0)
    assert [f"clipped to {window[0]} to {window[1]}" in note for note in notes] == [True]


@pytest.mark.parametrize("window", [(-160, 240), (-100, 240)])
@pytest.mark.parametrize("stored", [np.uint8, np.float32])
def test_a_window_stored_as_grey_values_is_converted_back(window, stored, hu):
    low, high = window
    grey = ((np.clip(hu, *window) - np.float32(low)) / np.float32(high - low) * 255).astype(stored)
    values = grey.astype(np.int16 if stored is np.uint8 else np.float32)
    back, notes = to_hounsfield(values, "'ct'")
    assert any("stored as 0 to 255" in note for note in notes)
    assert np.abs(back - np.clip(hu, *window)).max() <= 3


@pytest.mark.parametrize("window", [(-160, 240), (-100, 240)])
@pytest.mark.parametrize("top", [1000, 4095, 65535])
def test_a_window_spread_over_more_numbers_than_it_has_hu_is_converted_back(top, window, hu):
    clipped = np.clip(hu, *window)
    stored = np.rint((clipped - np.float64(window[0])) / (window[1] - window[0]) * top)
    values = stored.astype(np.int16 if top < 32768 else np.float32)
    back, notes = to_hounsfield(values, "'ct'")
    assert any(f"stored as 0 to {top}" in note for note in notes)
    assert np.abs(back - clipped).max() <= 1


@pytest.mark.parametrize("window", [(-1000, 1000), (-1000, 2000), (-1000, 600)])
def test_a_window_with_air_in_it_is_converted_back(window, hu):
    clipped = np.clip(hu, *window)
    clipped[0, :2, :2] = window[1]  # the phantom's bone is not so bright
    stored = np.rint((clipped - np.float64(window[0])) / (window[1] - window[0]) * 900)
    back, notes = to_hounsfield(stored.astype(np.int16), "'ct'")
    assert any("stored as 0 to 900" in note for note in notes)
    assert np.abs(back - clipped).max() <= 3


@pytest.mark.parametrize("lowest", [-30, -50])
def test_what_was_cut_off_below_alone_goes_on_with_a_note(lowest, hu):
    cut = np.maximum(hu, lowest)
    cut[0, :2, :2] = 1839  # the phantom's bone is not so bright
    slope, shift, notes = read_units(cut)
    assert (slope, shift) == (1, 0)
    assert [f"clipped below {lowest}" in note for note in notes] == [True]
    with pytest.raises(PancreasSegError, match="all that lies below 0"):
        read_units(np.maximum(cut, 0))  # as in MR


def chest(hu):
    """A CT cropped to the body, most of which is lung."""
    cropped = hu[:, 25:-25, 25:-25].copy()
    y, x = np.ogrid[: cropped.shape[1], : cropped.shape[2]]
    for side in (0.3, 0.7):
        radius = np.hypot((y / cropped.shape[1] - 0.5) / 0.3, (x / cropped.shape[2] - side) / 0.18)
        there = np.broadcast_to(radius < 1, cropped.shape)
        cropped[there] = np.random.default_rng(0).normal(-850, 50, int(there.sum()))
    return cropped


@pytest.mark.parametrize("offset", [1000, 2000])
def test_lungs_are_not_taken_for_air_of_another_offset(offset, hu):
    slope, shift, notes = read_units(chest(hu) + np.int16(offset))
    assert slope == 1 and shift == pytest.approx(-offset, abs=48) and len(notes) == 1


@pytest.mark.parametrize("value", [40, 1000, 3000])
def test_padding_hides_no_clipping(value, hu):
    padded = np.pad(np.clip(hu, 0, 255), ((0, 0), (20, 20), (30, 30)), constant_values=value)
    slope, shift, notes = read_units(padded)
    assert (slope, shift) == (1, 0) and "clipped" in notes[0]


def test_a_wide_window_stored_as_grey_values_is_refused(hu):
    grey = ((np.clip(hu, -1000, 1000) + 1000.0) / 2000 * 255).astype(np.int16)
    with pytest.raises(PancreasSegError, match="window"):
        read_units(grey)


@pytest.mark.parametrize("window", [(-200, 300), (-250, 250), (-300, 300)])
def test_a_window_of_unknown_width_is_not_taken_for_hounsfield_units(window, hu):
    grey = np.rint((np.clip(hu, *window) - window[0]) / (window[1] - window[0]) * 255)
    try:
        slope, shift, _ = read_units(grey.astype(np.int16))
    except PancreasSegError as error:
        assert "window" in str(error)  # noqa: PT017
    else:
        assert slope == pytest.approx((window[1] - window[0]) / 255)
        assert shift == pytest.approx(window[0], abs=20)


@pytest.mark.parametrize(("low", "high"), [(75, 255), (500, 627)])
def test_what_begins_within_soft_tissue_is_refused(low, high, hu):
    grey = low + np.clip(hu, 0, 255) * ((high - low) / 255)
    with pytest.raises(PancreasSegError, match=f"{low} to {high}"):
        read_units(grey.astype(np.int16))


def test_a_person_may_insist(hu):
    mr = np.random.default_rng(0).integers(0, 2000, (3, 64, 64)).astype(np.int16)
    with pytest.raises(PancreasSegError, match=r"'ct' holds.*MR"):
        to_hounsfield(mr, "'ct'")
    same, notes = to_hounsfield(mr, "'ct'", force=True)
    assert same is mr and "as asked" in notes[0] and "MR" in notes[0]


def test_who_insists_gets_the_values_as_they_are(hu):
    stored = hu + np.int16(1024)
    same, notes = to_hounsfield(stored, "'ct'", force=True)
    assert same is stored and len(notes) == 1 and "-1024 added" in notes[0]
    assert to_hounsfield(hu, "'ct'", force=True)[1] == ()
