"""The body is found whatever lies around it, and the user is told what is unusual."""

import numpy as np
import pytest
from scipy import ndimage

from napari_pancreas_seg.inference.body import find_body
from napari_pancreas_seg.inference.frame import FrameSpec, frame_around, resampling_matrix
from napari_pancreas_seg.inference.scan_context import (
    ScanContext,
    about_nothing_found,
    body_in,
    ct_warnings,
)
from napari_pancreas_seg.units import read_units
from napari_pancreas_seg.volume import CTVolume, Grid, Source

SPACING = (6.0, 2.5, 2.5)
SHAPE = (42, 112, 144)


def noted_of(ct: CTVolume) -> list[str]:
    return ct_warnings(ct, body_in(ct))


@pytest.fixture(scope="module")
def hu(drawn):
    return drawn(0, SPACING, SHAPE).volume.hu


@pytest.fixture(scope="module")
def body(hu):
    return find_body(hu, SPACING)


def volume(hu, spacing=SPACING):
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = *spacing, 1
    source = Source(None, "array", hu.shape, affine, np.eye(3, 2))
    return CTVolume(hu, Grid(hu.shape, affine), source)


def moved_mm(found, body, pad=(0, 0)):
    return [
        (a - b - n) * mm
        for a, b, n, mm in zip(found.centre, body.centre, pad, SPACING[1:], strict=True)
    ]


@pytest.mark.slow
def test_a_plain_ct_is_left_in_peace(hu, body):
    assert (body.shift, body.edges, body.turned, body.floor) == (0, (None,) * 4, (), None)
    assert noted_of(volume(hu)) == []
    assert ScanContext.of(volume(hu)).notes == ()


@pytest.mark.slow
@pytest.mark.parametrize("value", [0, 40, 100, -1000, -2000, 3071, 32767])
def test_padding_moves_nothing(value, hu, body):
    padded = np.pad(hu, ((0, 0), (9, 0), (14, 5)), constant_values=value)
    found = find_body(padded, SPACING)
    assert moved_mm(found, body, (9, 14)) == pytest.approx([0, 0], abs=1)
    assert (found.shift, found.edges, found.turned) == (0, (None,) * 4, ())
    noted = any("taken for air" in note for note in noted_of(volume(padded)))
    assert noted == (value > -200)


@pytest.mark.slow
@pytest.mark.parametrize("value", [0, 35, -500])
def test_a_masked_background_moves_nothing(value, hu, body):
    inside = ndimage.binary_fill_holes(ndimage.binary_opening(hu > -300, np.ones((1, 3, 3))))
    found = find_body(np.where(inside, hu, value).astype(np.int16), SPACING)
    assert moved_mm(found, body) == pytest.approx([0, 0], abs=5)
    assert (found.shift, found.turned) == (0, ())


@pytest.mark.parametrize("value", [0, -100, 3000])
def test_a_block_filled_inside_the_body_is_not_looked_at(value, hu, body):
    blocked = hu.copy()
    blocked[:, 40:55, 32:52] = value
    found = find_body(blocked, SPACING)
    assert moved_mm(found, body) == pytest.approx([0, 0], abs=6)
    assert found.fill[-1] == value and found.turned == ()


@pytest.mark.slow
def test_corners_of_a_rotation_are_no_tissue(hu):
    def rotated(value):
        return find_body(ndimage.rotate(hu, 8, (2, 1), order=1, cval=value), SPACING)

    air, zero = rotated(-1000), rotated(0)
    assert zero.centre == pytest.approx(air.centre, abs=0.5) and zero.shift == air.shift == 0


def beside(hu, value, width_mm=80, side=1, gap_mm=10):
    """The CT with something round beside the body, so far away, in all slices."""
    wide = np.pad(hu, ((0, 0), (0, 0), (60, 60)), constant_values=-1000)
    columns = np.flatnonzero((wide > -300).mean(axis=(0, 1)) > 0.1)
    radius, gap = width_mm / 2 / SPACING[2], gap_mm / SPACING[2]
    middle = columns[-1] + radius + gap if side > 0 else columns[0] - radius - gap
    y, x = np.ogrid[: wide.shape[1], : wide.shape[2]]
    round_ = (y - wide.shape[1] / 2) ** 2 + (x - middle) ** 2 < radius**2
    there = round_ & (wide < -300)
    wide[there] = np.random.default_rng(0).normal(value, 10, int(there.sum()))
    return wide


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("gap_mm", [10, 0, -10])
@pytest.mark.parametrize("value", [55, 30, -80])
def test_an_arm_or_a_cushion_moves_nothing(value, gap_mm, side, hu, body):
    """Whether it touches the body or not."""
    found = find_body(beside(hu, value, side=side, gap_mm=gap_mm), SPACING)
    assert moved_mm(found, body, (0, 60)) == pytest.approx([0, 0], abs=4)
    assert found.edges == (None,) * 4


@pytest.mark.parametrize("side", [1, -1])
def test_a_tight_gel_pad_moves_the_middle_little(side, hu, body):
    """What cannot be told from the trunk: the spine says where its middle lies."""
    pad, columns = round(60 / SPACING[2]), np.flatnonzero((hu > -300).any(axis=(0, 1)))
    wide = np.pad(hu, ((0, 0), (0, 0), (2 * pad, 2 * pad)), constant_values=-1000)
    edge = 2 * pad + (columns[-1] if side > 0 else columns[0])
    part = (
        wide[:, 20:-20, edge - 20 : edge + pad]
        if side > 0
        else wide[:, 20:-20, edge - pad : edge + 20]
    )
    there = part < -300
    part[there] = np.random.default_rng(0).normal(30, 10, int(there.sum()))
    moved = moved_mm(find_body(wide, SPACING), body, (0, 2 * pad))
    assert abs(moved[1]) <= 20


def noisy_belly(tissue):
    """A body of one kind of tissue in a rim of fat."""
    y, x = np.ogrid[:60, :80]
    distance = np.hypot((y - 30) / 22, (x - 40) / 32)
    hu = np.where(distance < 0.85, tissue, np.where(distance < 1, -105, -1000))
    return np.random.default_rng(0).normal(hu, 12, (8, 60, 80)).round().astype(np.int16)


@pytest.mark.parametrize(
    "window", [(-1024, 3000), (-160, 240), (-100, 240), (-50, 150), (-20, 250), (0, 300)]
)
def test_clipping_does_not_take_the_contrast_shift(window):
    dark, bright = (
        find_body(np.clip(noisy_belly(hu), *window), (5.0, 5.0, 5.0)).shift for hu in (32, 90)
    )
    assert dark == pytest.approx(48, abs=5) and bright == 0


@pytest.mark.parametrize("ceiling", [90, 100, 150])
def test_bone_that_was_cut_off_is_no_contrast_agent(ceiling):
    def shift(tissue):
        hu = noisy_belly(tissue)
        hu[:, 10:18, 28:52] = 400  # even blocks of bone, a tenth of the body
        return find_body(np.clip(hu, 0, ceiling), (5.0, 5.0, 5.0)).shift

    assert shift(32) == pytest.approx(48, abs=5) and shift(90) == 0


def test_a_crop_to_brighter_organs_without_contrast_agent_is_still_dark():
    def shift(bright):
        hu = noisy_belly(42)
        hu[:, 20:40, 24:44] += bright  # an organ, about a quarter of the body
        return find_body(hu, (5.0, 5.0, 5.0)).shift

    assert shift(0) == pytest.approx(38, abs=4) and shift(60) == 0


def with_residue(hu):
    """The CT clipped at 0 as lossy pictures hold it: some of what was 0 is 1 to 4."""
    rng = np.random.default_rng(0)
    clipped = np.clip(hu, 0, 255)
    residue = rng.integers(1, 5, hu.shape, np.int16) * (rng.random(hu.shape) < 0.1)
    return np.where((clipped == 0) & (hu > -300), residue, clipped).astype(np.int16)


@pytest.mark.slow
def test_what_lossy_compression_left_is_no_dark_tissue(hu):
    clipped = with_residue(hu)
    as_it_is = find_body(clipped, SPACING)
    assert as_it_is.shift == 0
    fat = np.where(clipped == 0, np.where(hu < -300, -1000, -100), clipped).astype(np.int16)
    found = find_body(fat, SPACING)
    assert found.shift == 0 and found.centre == pytest.approx(as_it_is.centre, abs=1)
    air = np.random.default_rng(0).normal(-1000, 8, (len(hu), hu.shape[1], 30)).astype(np.int16)
    assert find_body(np.concatenate([air, clipped], axis=2), SPACING).shift == 0


def test_most_of_a_body_shows_its_middle():
    """What 25 cm show is no crop to an organ: the frame stays where the whole CT has it."""
    cropped = np.clip(noisy_belly(90), 0, 255)[:, :, 15:65]
    found = find_body(np.ascontiguousarray(cropped), (5.0, 5.0, 5.0))
    assert found.edges[2:] == (0, 50) and found.centre[1] == pytest.approx(24.5, abs=1)


def test_air_around_what_was_clipped_before_is_no_sign_of_missing_contrast(hu):
    turned = ndimage.rotate(np.clip(hu, 0, 255), 8, (2, 1), order=1, cval=-1024)
    found = find_body(turned, SPACING)
    assert (found.shift, found.floor) == (0, 0)


FLIPS = {0: "head and feet", 1: "front and back", 2: "left and right"}


@pytest.mark.slow
@pytest.mark.parametrize("axis", FLIPS)
def test_anatomy_tells_of_flipped_voxels(axis, hu):
    flipped = np.ascontiguousarray(np.flip(hu, axis))
    assert find_body(flipped, SPACING).turned == (FLIPS[axis],)
    assert any(FLIPS[axis] in note for note in ScanContext.of(volume(flipped)).notes)


@pytest.mark.slow
def test_a_flip_is_seen_where_fat_is_cut_off(shared):
    from napari_pancreas_seg import io

    ct = io.load_ct(shared / "ct" / "example" / "ct.nii.gz")
    clipped = np.clip(ct.hu, 0, 255)
    assert find_body(clipped, ct.spacing).turned == ()
    flipped = np.ascontiguousarray(np.flip(clipped, 2))
    assert find_body(flipped, ct.spacing).turned == ("left and right",)
    chest = io.load_ct(shared / "ct" / "negatives" / "chest_1.nii.gz")  # its heart is no liver
    assert find_body(np.clip(chest.hu, 0, 130), chest.spacing).turned == ()


@pytest.mark.slow
def test_real_cts_are_the_right_way_round(shared):
    from napari_pancreas_seg import io

    paths = sorted((shared / "ct").rglob("*ct.nii.gz"))
    paths += [*sorted((shared / "ct" / "negatives").glob("*.nii.gz")), shared / "ct" / "dicom"]
    assert len(paths) >= 7
    for path in paths:
        ct = io.load_ct(path)
        assert find_body(ct.hu, ct.spacing).turned == ()


@pytest.mark.slow
@pytest.mark.parametrize("margin_mm", [20, 40])
def test_a_crop_is_continued_by_its_mirror_image(margin_mm, drawn):
    phantom = drawn(0, SPACING, SHAPE)
    y, x = (np.flatnonzero(phantom.mask.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    n = round(margin_mm / SPACING[1])
    part = np.s_[:, y[0] - n : y[-1] + n, x[0] - n : x[-1] + n]
    cropped = np.ascontiguousarray(phantom.volume.hu[part])
    found = find_body(cropped, SPACING)
    assert sum(end is not None for end in found.edges) >= 2
    assert any("cut off" in n or "less than a body" in n for n in noted_of(volume(cropped)))
    frame = frame_around(found.centre, cropped.shape[1:], SPACING, FrameSpec(), found.edges)
    gland = frame.into()[0] @ phantom.mask[part][20].astype(np.float32) @ frame.into()[1].T
    assert gland.shape == (160, 224)
    # Nothing that was found in a mirror image is kept.
    ones = frame.not_mirrored(np.ones((1, 160, 224, 1), np.float16))[0, ..., 0]
    rows, columns = frame.out_of()
    assert (rows @ ones.astype(np.float32) @ columns.T).max() > 0.9
    assert 0 < ones.mean() < 1


@pytest.mark.slow
@pytest.mark.parametrize("margin_mm", [20, 42, 50])
def test_a_crop_to_a_gland_among_fat_is_named(margin_mm, shared):
    from napari_pancreas_seg import io

    ct = io.load_ct(shared / "ct" / "example" / "ct.nii.gz")
    mask, _ = io.load_mask(shared / "ct" / "example" / "pancreas_v1.nii.gz")
    n = round(margin_mm / 3)
    places = [(p.min(), p.max()) for p in np.nonzero(mask)]
    part = tuple(slice(max(0, low - n), high + n + 1) for low, high in places)
    notes = ScanContext.of(volume(np.ascontiguousarray(ct.hu[part]), ct.spacing)).notes
    assert any("cut off" in note or "less than a body" in note for note in notes)
    assert not any("cut off" in note for note in ScanContext.of(ct).notes)


def test_mirrors():
    line = np.arange(10.0)
    got = resampling_matrix(10, 8, -3.0, 1.0, (0, None)) @ line
    np.testing.assert_allclose(got, [2, 1, 0, 0, 1, 2, 3, 4], atol=1e-6)
    got = resampling_matrix(10, 12, 0.0, 1.0, (2, 5)) @ line
    np.testing.assert_allclose(got, [3, 2, 2, 3, 4, 4, 3, 2, 2, 3, 4, 4], atol=1e-6)
    assert not resampling_matrix(10, 3, -9.0, 1.0).any()


def test_an_empty_mask_has_its_reason(hu):
    plain = ScanContext.of(volume(hu))
    said = about_nothing_found(plain, 0.23, 0.5)
    assert "No pancreas was found" in said and "23%" in said and "Check that the CT shows" in said
    assert "The reason may be: only a part" in about_nothing_found(plain, 0.23, 0.5, part=True)
    few = ScanContext.of(volume(np.clip(hu[:4, ::-1], -50, 150)))
    said = about_nothing_found(few, 0.1, 0.5)
    assert "few slices" in said and "clipped" in said
    one = ScanContext.of(volume(hu[:1]))
    assert "few slices" in about_nothing_found(one, 0.1, 0.5)
    assert "where no pancreas can" in about_nothing_found(plain, 0.9, 0.5)


@pytest.mark.parametrize(
    ("part", "spacing", "note"),
    [
        (np.s_[:], (7.0, 2.5, 2.5), "The slices are 7 mm apart"),
        (np.s_[10:15], (6.0, 2.5, 2.5), "There are only 5 slices."),
        (np.s_[10:11], (6.0, 2.5, 2.5), "There is only 1 slice."),
        (np.s_[10:22], (4.0, 2.5, 2.5), "The slices cover 4.8 cm only"),
        (np.s_[:], (6.0, 1.2, 1.2), "less than a body"),
    ],
)
def test_what_is_unusual_about_the_slices_is_noted(part, spacing, note, hu):
    (found,) = [n for n in ScanContext.of(volume(hu[part], spacing)).notes if "slice" in n]
    assert note in found


def test_dark_tissue_is_noted():
    dark, bright = (volume(noisy_belly(tissue), (5.0, 5.0, 5.0)) for tissue in (30, 90))
    assert any("darker than in portal-venous" in note for note in ScanContext.of(dark).notes)
    assert not any("darker" in note for note in ScanContext.of(bright).notes)


@pytest.mark.slow
def test_a_chest_is_noted(shared):
    from napari_pancreas_seg import io

    for name in ("chest_1.nii.gz", "chest_2.nii.gz"):
        chest = io.load_ct(shared / "ct" / "negatives" / name)
        assert any("Lungs are in" in note for note in noted_of(chest))
    abdomen = io.load_ct(shared / "ct" / "example" / "ct.nii.gz")
    assert not any("Lungs" in note for note in noted_of(abdomen))


def test_noise_and_what_is_no_body_are_noted(hu):
    noise = np.random.default_rng(0).integers(-1000, 1000, (8, 64, 64)).astype(np.int16)
    assert any("looks like noise" in note for note in read_units(noise).notes)
    ramp = np.broadcast_to(np.linspace(-1000, 3000, 400), (8, 64, 400)).astype(np.int16)
    assert any("not distributed like" in note for note in read_units(ramp).notes)
    assert read_units(hu).notes == ()
