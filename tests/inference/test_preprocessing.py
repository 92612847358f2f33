"""The frame lies where it says, in millimetres."""

import numpy as np
import pytest

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.body import find_body, place_frame
from napari_pancreas_seg.inference.frame import (
    Frame,
    FrameSpec,
    resampling_matrix,
)
from napari_pancreas_seg.volume import Grid


def body(shape=(3, 256, 320), spacing=(5.0, 1.0, 1.0), centre=(130, 150), radii=(80, 120)):
    """Slices with an elliptic body of soft tissue, and a table below it."""
    y, x = np.ogrid[: shape[1], : shape[2]]
    inside = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 <= 1
    hu = np.full(shape, -1000, np.int16)
    hu[:, inside] = 60
    hu[:, 240:242] = 120
    return hu, spacing


def test_the_identity_is_the_identity():
    np.testing.assert_array_equal(resampling_matrix(5, 5, 0.0, 1.0), np.eye(5, dtype=np.float32))


@pytest.mark.parametrize(("start", "step"), [(0.3, 0.4), (2.0, 1.7), (-3.0, 2.5)])
def test_a_straight_line_stays_straight(start, step):
    line = 3.0 + 0.5 * np.arange(200)
    where = start + step * np.arange(30)
    got = resampling_matrix(200, 30, start, step) @ line
    inside = (where > 4) & (where < 195)
    # A widened triangle on whole samples is off by a few hundredths of a sample.
    np.testing.assert_allclose(got[inside], 3.0 + 0.5 * where[inside], atol=0.05)


def test_outside_is_zero():
    matrix = resampling_matrix(4, 10, -20.0, 1.0)
    assert not matrix.any()


def test_fine_stripes_are_averaged_not_aliased():
    stripes = np.tile([0.0, 1.0], 100)
    got = resampling_matrix(200, 40, 10.0, 4.0) @ stripes
    np.testing.assert_allclose(got, 0.5, atol=0.02)


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.0])
def test_the_body_is_found_at_any_spacing(scale):
    hu, spacing = body()
    n = round(1 / scale) if scale < 0.7 else 1
    hu = np.repeat(np.repeat(hu, n, 1), n, 2)
    y, x = find_body(hu, (5.0, spacing[1] / n, spacing[2] / n)).centre
    assert (y + 0.5) / n == pytest.approx(130.5, abs=4)
    assert (x + 0.5) / n == pytest.approx(150.5, abs=4)


def test_air_alone_is_refused():
    with pytest.raises(PancreasSegError, match="soft tissue"):
        place_frame(np.full((2, 64, 64), -1000, np.int16), (1.0, 1.0, 1.0), FrameSpec())


def test_into_the_frame_and_out_again():
    spec = FrameSpec(64, 80, 2.0, (0.0, 0.0))
    hu, spacing = body()
    frame = place_frame(hu, spacing, spec)
    y, x = np.ogrid[:256, :320]
    blob = np.exp(-(((y - 120) / 20) ** 2 + ((x - 160) / 25) ** 2)).astype(np.float32)
    rows, columns = frame.into()
    back_rows, back_columns = frame.out_of()
    back = back_rows @ (rows @ blob @ columns.T) @ back_columns.T
    np.testing.assert_allclose(back, blob, atol=0.03)


@pytest.mark.parametrize("coarser", [1, 2, 8])
def test_a_map_covers_the_same_millimetres_as_the_frame(coarser):
    spec = FrameSpec(64, 80, 1.5)
    frame = Frame(spec, (200, 200), (10.0, 20.0), (1.5 / 0.8, 1.5 / 0.8))
    volume = Grid((4, 200, 200), np.diag([3.0, 0.8, 0.8, 1.0]))
    grid = frame.grid(volume, (64 // coarser, 80 // coarser), coarser)
    fine = frame.grid(volume)
    low, high = grid.world((0, -0.5, -0.5)), grid.world((3, 64 / coarser - 0.5, 80 / coarser - 0.5))
    np.testing.assert_allclose(low, fine.world((0, -0.5, -0.5)))
    np.testing.assert_allclose(high, fine.world((3, 63.5, 79.5)))
    np.testing.assert_allclose(fine.world((0, 0, 0)), [0, 8.0, 16.0])


def test_specification_round_trip():
    spec = FrameSpec(10, 20, 1.25, (1.0, -2.0))
    assert FrameSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(("tissue", "shift"), [(20, 60), (35, 45), (50, 0), (100, 0)])
def test_dark_tissue_is_brightened(tissue, shift):
    rng = np.random.default_rng(0)
    hu = np.full((4, 60, 60), -1000)
    hu[:, 10:50, 10:50] = rng.normal(tissue, 10, (4, 40, 40))
    for values in (hu, np.clip(hu, -160, 240)):
        body = find_body(values.astype(np.int16), (5.0, 3.0, 3.0))
        assert body.shift == pytest.approx(shift, abs=5)
