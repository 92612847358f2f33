"""The picture of a result: what is on it, where, and that it is written whole or not at all."""

import matplotlib.colors
import numpy as np
import pytest
from PIL import Image

from napari_pancreas_seg.cohort.overview import MASK_COLOUR, REFERENCE_COLOUR, draw_overview
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import ScalarMap
from napari_pancreas_seg.volume import CTVolume

SHAPE = (20, 60, 80)


@pytest.fixture
def volume():
    affine = np.diag([-1.5, -1.5, 4.0, 1.0])
    hu = np.full(SHAPE[::-1], -1000, dtype=np.int16)
    return CTVolume.from_source_array(hu, affine)


@pytest.fixture
def mask():
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[8:12, 20:30, 30:50] = 1
    return mask


def attention_map(volume, block, z=9, x=slice(15, 25), y=slice(10, 15)):
    """A map at half resolution on every third slice: 1 in a block, 0 elsewhere in its slice."""
    shape = (7, SHAPE[1] // 2, SHAPE[2] // 2)
    values = np.full(shape, np.nan, dtype=np.float16)
    values[z // 3] = 0
    if block:
        values[z // 3, y, x] = 1
    grid = volume.grid.sub_grid(shape, (0, 0.5, 0.5), (3, 2, 2))
    return ScalarMap(values, grid)


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def without_colour_bar(path):
    return pixels(path)[:, :-100]


def coloured(picture, colour):
    rgb = np.round(np.array(matplotlib.colors.to_rgb(colour)) * 255)
    return np.abs(picture - rgb).max(axis=-1) < 40


@pytest.mark.slow
def test_outlines_and_maps_are_drawn(volume, mask, tmp_path):
    path = tmp_path / "overview.png"
    reference = np.roll(mask, 8, axis=2)
    maps = [attention_map(volume, True)] * 3
    draw_overview(volume, mask, maps, path, reference=reference, title="a title")
    picture = pixels(path)
    height, width, _ = picture.shape
    # Two panels of the CT and three maps.
    assert width == pytest.approx((5 * 4.0 + 0.7) * 110, abs=2)
    for colour in (MASK_COLOUR, REFERENCE_COLOUR):
        ys, xs = np.nonzero(coloured(picture, colour)[:, : width // 2])
        assert len(xs) > 100
        assert xs.min() > width * 0.2  # the first panel is the bare CT
        assert ys.min() < height / 2 < ys.max()  # both rows
    assert sorted(p.name for p in tmp_path.iterdir()) == ["overview.png"]


def bright(picture):
    """Pixels with the colour of a high coefficient over black."""
    red, _, blue = np.moveaxis(picture, -1, 0)
    return (red > 120) & (red - blue > 40)


@pytest.mark.slow
def test_attention_lies_where_its_grid_says(volume, mask, tmp_path):
    """A map whose block covers the mask is bright where the mask's outline is."""
    draw_overview(volume, mask, [attention_map(volume, True)], tmp_path / "a.png")
    picture = without_colour_bar(tmp_path / "a.png")
    upper = picture[: int(picture.shape[0] * 0.6)]
    ys, xs = np.nonzero(coloured(upper, MASK_COLOUR)[:, : int(picture.shape[1] * 0.62)])
    # The outline runs in the middle panel, too; the block is in the right one.
    outline = ys.min(), ys.max(), np.ptp(xs)
    ys, xs = np.nonzero(bright(upper) & ~coloured(upper, MASK_COLOUR))
    right = xs > picture.shape[1] * 0.62
    block = ys[right].min(), ys[right].max(), np.ptp(xs[right])
    # A pixel of the CT is five of the picture: half of one too far would show.
    np.testing.assert_allclose(block, outline, atol=2)


@pytest.mark.slow
def test_maps_without_anything_computed_and_empty_masks(volume, mask, tmp_path):
    empty = attention_map(volume, False)
    nothing = ScalarMap(np.full_like(empty.values, np.nan), empty.grid)
    draw_overview(volume, np.zeros_like(mask), [nothing], tmp_path / "nothing.png")
    assert not coloured(without_colour_bar(tmp_path / "nothing.png"), MASK_COLOUR).any()
    draw_overview(volume, np.zeros_like(mask), [], tmp_path / "plain.png", reference=mask)
    picture = pixels(tmp_path / "plain.png")
    assert coloured(picture, REFERENCE_COLOUR).sum() > 100
    assert picture.shape[1] == pytest.approx((2 * 4.0 + 0.7) * 110, abs=2)


@pytest.mark.slow
def test_replaces_an_earlier_picture(volume, mask, tmp_path):
    path = tmp_path / "overview.png"
    path.write_bytes(b"old")
    draw_overview(volume, mask, [], path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_refuses_a_mask_of_another_shape(volume, mask, tmp_path):
    with pytest.raises(PancreasSegError, match="grid of this CT"):
        draw_overview(volume, mask[1:], [], tmp_path / "a.png")
    with pytest.raises(PancreasSegError, match="grid of this CT"):
        draw_overview(volume, mask, [], tmp_path / "a.png", reference=mask[:, 1:])
    assert not any(tmp_path.iterdir())


def test_says_when_it_cannot_be_written(volume, mask, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PancreasSegError, match=r"file|overview"):
        draw_overview(volume, mask, [], tmp_path / "file" / "overview.png")


@pytest.mark.slow
@pytest.mark.parametrize("title", ["M\udcfcller", "$a_", "two\nlines"])
def test_any_name_is_a_title(title, volume, mask, tmp_path):
    draw_overview(volume, mask, (), tmp_path / "a.png", title=title)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 100


@pytest.mark.slow
def test_a_map_is_transparent_where_it_is_low_and_has_no_stripes(volume, mask, tmp_path):
    """Between the slices that the network saw it is interpolated."""
    some = attention_map(volume, True)
    some.values[:] = np.nan
    some.values[[1, 3, 5]] = 0
    some.values[[1, 3, 5], 10:15, 15:25] = 1
    draw_overview(volume, mask, [some], tmp_path / "map.png")
    picture = without_colour_bar(tmp_path / "map.png")
    lower = picture[int(picture.shape[0] * 0.6) :, int(picture.shape[1] * 0.7) :]
    rows = np.flatnonzero(bright(lower).any(axis=1))
    assert np.ptp(rows) + 1 == len(rows), "one block without gaps"
    low = ~bright(lower) & (lower.sum(axis=-1) > 0)
    assert low.mean() < 0.1, "where the coefficient is 0 the black CT shows"
