"""Numbers that a file holds become Hounsfield units, or the file is refused."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from napari_pancreas_seg import io
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.hounsfield import scale
from napari_pancreas_seg.io.quiet import quiet_libraries
from napari_pancreas_seg.units import read_units

AFFINE = np.diag([-1.0, -1, 3, 1])


def saved(array: np.ndarray, path: Path, slope: float = 1, intercept: float = 0) -> Path:
    image = nib.Nifti1Image(array, AFFINE, dtype=array.dtype)
    image.header.set_slope_inter(slope, intercept)
    nib.save(image, path)
    return path


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "expected"),
    [
        ("int16", 1, 0, "int16"),
        ("int32", 1, 0, "int16"),
        ("int64", 1, 0, "int16"),
        ("float32", 1, 0, "int16"),
        ("float64", 1, 0, "int16"),
        (">i2", 1, 0, "int16"),
        (">f4", 1, 0, "int16"),
        ("uint16", 1, -1200, "int16"),
        ("int16", 2, 0, "int16"),
        ("int16", 0.5, 0, "int16"),
        ("int16", 0.5, 0.25, "float32"),
        ("float64", 1, 0.25, "float32"),
    ],
)
def test_scaling_and_type(
    stored: str, slope: float, intercept: float, expected: str, body: Callable, tmp_path: Path
) -> None:
    hu = body((20, 20, 5)).astype(float) // 2 * 2 + intercept % 1
    numbers = ((hu - intercept) / slope).astype(stored)
    volume = io.load_ct(saved(numbers, tmp_path / "ct.nii", slope, intercept))
    assert volume.hu.dtype == expected
    np.testing.assert_array_equal(volume.to_source_order(volume.hu), hu)


def test_scale_agrees_with_nibabel(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(-3000, 3000, (9, 8, 7, 1)).astype(np.int32)
    scaled = scale(numbers, 0.37, 12.5).values
    assert scaled.dtype == np.float32
    assert scaled.shape == numbers.shape
    np.testing.assert_allclose(scaled, numbers * 0.37 + 12.5, rtol=1e-6)


def test_large_integers_become_float() -> None:
    scaled = scale(np.array([[[100_000, -5]]], np.int32)).values
    assert scaled.dtype == np.float32
    assert scaled.tolist() == [[[100_000, -5]]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_some_voxels_without_value_become_air(bad: float, body: Callable, tmp_path: Path) -> None:
    hu = body((20, 20, 5)).astype(np.float32)
    hu[0, :3, 0] = bad
    volume = io.load_ct(saved(hu, tmp_path / "ct.nii"))
    assert volume.hu.dtype == np.int16
    assert (volume.to_source_order(volume.hu)[0, :3, 0] == -1024).all()
    assert any("3 voxels" in note for note in volume.notes)


def test_a_lost_intercept_is_put_back(body: Callable, tmp_path: Path) -> None:
    hu = np.maximum(body((40, 40, 5)), -1024)
    volume = io.load_ct(saved((hu + 1024).astype(np.uint16), tmp_path / "ct.nii"))
    np.testing.assert_array_equal(volume.to_source_order(volume.hu), hu)
    assert any("1024" in note for note in volume.notes)


@pytest.mark.parametrize("fraction", [0, 0.5])
@pytest.mark.parametrize("padding", [-1, -1024, -2000, -32768])
def test_a_lost_intercept_is_found_despite_padding(
    padding: int, fraction: float, body: Callable, tmp_path: Path
) -> None:
    hu = np.maximum(body((40, 40, 5)), -1024).astype(float) + fraction
    hu[:3, :3] = padding - 1024
    stored = (hu + 1024).astype(np.float32 if fraction else np.int16)
    volume = io.load_ct(saved(stored, tmp_path / "ct.nii"))
    assert volume.hu.dtype == stored.dtype
    expected = hu if fraction else np.maximum(hu, -32768)
    np.testing.assert_array_equal(volume.to_source_order(volume.hu), expected)
    assert any("lost rescale intercept" in note for note in volume.notes)


def test_the_lowest_voxel_does_not_wrap_around(body: Callable, tmp_path: Path) -> None:
    stored = (np.maximum(body((40, 40, 50)), -1024) + 1024).astype(np.int16)
    stored[0, 0, 1] = -32768  # in a slice that is not looked at
    volume = io.load_ct(saved(stored, tmp_path / "ct.nii"))
    assert volume.to_source_order(volume.hu)[0, 0, 1] == -32768


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0, 1024])
@pytest.mark.parametrize("padding", [None, -2000, -3024])
def test_hounsfield_units_are_not_taken_for_shifted(
    shift: int, padding: int | None, drawn: Callable
) -> None:
    hu = drawn(3).volume.hu.copy()
    hu[:, 25:37, 34:46] = np.random.default_rng(0).normal(1000, 99, (35, 12, 12))  # a lot of bone
    shifted = np.maximum(hu, -1024) + np.int16(shift)
    if padding is not None:
        y, x = (np.linspace(-1, 1, n) for n in hu.shape[1:])
        shifted[:, np.hypot.outer(y, x) > 1] = padding
    assert read_units(shifted)[:2] == (1, -shift)


REAL = sorted(Path(__file__).parents[3].glob("shared/ct/[!s]*/*c*t*.nii.gz"))


@pytest.mark.skipif(not REAL, reason="no real CTs at hand")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_cts_are_not_taken_for_shifted(path: Path) -> None:
    volume = io.load_ct(path)
    assert not any("intercept" in note for note in volume.notes)


@pytest.mark.parametrize("window", [(-160, 240), (-200, 300), (-1000, 1000)])
def test_clipped_windows_are_let_in(window: tuple[int, int], body: Callable) -> None:
    slope, shift, notes = read_units(np.clip(body((40, 40, 5)).T, *window))
    assert (slope, shift) == (1, 0)
    noted = [f"clipped below {window[0]}" in note for note in notes]
    assert noted == [True] * (window[0] > -900)


def photo(size: int = 256) -> np.ndarray:
    """Smooth shades from 0 to 255, as in a picture of anything."""
    noise = np.random.default_rng(0).normal(size=(1, size, size))
    smooth = ndimage.gaussian_filter(noise, (0, 9, 9))
    return (smooth - smooth.min()) / np.ptp(smooth) * 255


RAMP = np.broadcast_to(np.linspace(-1000, 1000, 64), (8, 64, 64))


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (photo().round(), "picture"),
        (photo().round() - 128, "8-bit"),
        ((photo() > 120).astype(np.uint8), "a mask"),
        (photo() / 255, "normalised"),
        ((photo() - 120) / 40, "normalised"),
        (photo() * 12, "MR"),
        (np.linspace(0, 255, 64 * 64).reshape(1, 64, 64), "picture"),
        (np.random.default_rng(0).integers(0, 256, (1, 64, 64)), "picture"),
        (np.random.default_rng(0).integers(0, 2000, (1, 64, 64)), "MR"),
        (np.where(np.abs(RAMP) < 500, 900.0, -1000.0), "soft tissue"),
        (np.full((3, 30, 30), 40.0), "constant"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_ct_is_refused(array: np.ndarray, reason: str) -> None:
    with pytest.raises(PancreasSegError, match=reason):
        read_units(array)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (RAMP, "distributed"),
        (np.random.default_rng(0).normal(0, 300, (5, 64, 64)), "noise"),
        (np.random.default_rng(0).integers(-1000, 1000, (5, 64, 64)), "noise"),
    ],
    ids=["ramp", "normal", "uniform"],
)
def test_what_has_hounsfield_units_but_is_no_body_gets_a_note(
    array: np.ndarray, reason: str
) -> None:
    slope, shift, notes = read_units(array)
    assert (slope, shift) == (1, 0) and len(notes) == 1 and reason in notes[0]


@pytest.mark.slow
def test_real_cts_are_let_in(shared: Path) -> None:
    paths = [
        path for path in sorted((shared / "ct").rglob("*.nii.gz")) if io.sniff(path).kind == "CT"
    ]
    assert len(paths) == 6
    for path in paths:
        volume = io.load_ct(path)
        assert volume.hu.dtype == np.int16
        assert any("clipped" in note for note in volume.notes) == (path.parent.name == "stacks")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32"])
def test_real_single_slices_are_let_in(dtype: str, shared: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pictures = sorted((shared / "pancreas-ct" / "images").glob("*.jpg"))[::40]
    assert pictures
    for picture in pictures:
        array = np.asarray(image.open(picture)).T[..., None].astype(dtype)
        volume = io.load_ct(saved(array, tmp_path / "slice.nii"))
        assert volume.hu.shape == (1, 512, 512)
        np.testing.assert_array_equal(volume.to_source_order(volume.hu), array)


def test_masks_are_told_from_cts(ct_file: Path, tmp_path: Path, body: Callable) -> None:
    volume = io.load_ct(ct_file)
    mask = io.save_mask(volume.hu > 0, volume, tmp_path / "mask.nii.gz")
    empty = io.save_mask(volume.hu > 9000, volume, tmp_path / "empty.nii.gz")
    floats = saved((body((20, 20, 5)) > 0).astype(np.float64), tmp_path / "floats.nii")
    clipped = saved(np.clip(body((40, 40, 5)), 0, 255).astype(np.uint8) * 3, tmp_path / "c.nii")
    assert [io.sniff(path).kind for path in (mask, empty, floats)] == ["mask"] * 3
    assert io.sniff(ct_file).kind == "CT"
    for path in (tmp_path, tmp_path / "none.nii", tmp_path / "x.txt"):
        with pytest.raises(PancreasSegError):
            io.sniff(path)
    assert io.load_mask(floats)[0].dtype == np.uint8
    assert clipped.exists()
    with pytest.raises(PancreasSegError, match="not a mask"):
        io.load_mask(ct_file)


def test_many_labels_are_told_from_a_clipped_ct(tmp_path: Path, body: Callable) -> None:
    clipped = np.clip(body((40, 40, 20)), 0, 100).astype(np.uint8)
    labels = np.kron(np.arange(160).reshape(8, 5, 4), np.ones((5, 4, 5))).astype(np.uint8)
    assert len(np.unique(clipped)) > 50
    assert io.sniff(saved(clipped, tmp_path / "ct.nii")).kind == "CT"
    assert io.sniff(saved(labels, tmp_path / "labels.nii")).kind == "mask"


def test_real_masks_are_told_from_cts(shared: Path) -> None:
    paths = sorted((shared / "ct").rglob("*.nii.gz"))
    masks = {path.name for path in paths if io.sniff(path).kind == "mask"}
    assert masks == {path.name for path in paths if "pancreas" in path.name.replace("PANCREAS", "")}


@pytest.mark.slow
@given(
    stored=arrays(
        st.sampled_from(["u1", "i1", "i2", "u2", ">i2", ">u2", "i4", "u4", "i8", "f4"]),
        (2, 3, 2),
        elements=st.integers(0, 127),
        fill=st.nothing(),
    ),
    extreme=st.booleans(),
    slope=st.sampled_from([1.0, 2.0, -1.0, 3.0, 0.5, 40000.0]),
    intercept=st.sampled_from([0.0, -1024.0, 32767.0, -40000.0, 0.25]),
)
@settings(max_examples=200, deadline=None)
def test_whole_numbers_are_scaled_as_real_ones_are(
    stored: np.ndarray, extreme: bool, slope: float, intercept: float
) -> None:
    """Whichever way is taken, and whatever wraps around on it."""
    if extreme and stored.dtype.kind in "iu":
        limits = np.iinfo(stored.dtype)
        stored[0, 0, 0], stored[1, 1, 1] = limits.min, limits.max
    real = stored.astype(np.float64) * slope + intercept
    real[np.abs(real) > 1e6] = -1024
    fits = real.min() >= -32768 and real.max() <= 32767 and (np.rint(real) == real).all()
    scaled = scale(stored, slope, intercept).values
    assert scaled.dtype == (np.int16 if fits else np.float32)
    np.testing.assert_array_equal(scaled, real.astype(np.float32))


@pytest.mark.parametrize("kind", ["float32", "float64", "int32", "int64"])
@pytest.mark.parametrize("odd", [None, 0.5, 40000, np.nan, np.inf])
def test_what_is_read_in_pieces_is_whole(
    kind: str, odd: float | None, body: Callable, tmp_path: Path
) -> None:
    """One odd number, far into the file, changes how all of them are kept and none of them."""
    hu = body((120, 90, 40)).astype(kind)
    if odd is not None and np.can_cast(type(odd), kind):
        hu[-3, -2, -1] = odd
    loaded = io.load_ct(saved(hu, tmp_path / "ct.nii"))
    expected = np.where(np.isfinite(hu), hu, -1024).astype(np.float32)
    back = loaded.to_source_order(loaded.hu)
    np.testing.assert_array_equal(back, expected)
    assert loaded.hu.flags.c_contiguous
    whole = (np.rint(expected) == expected).all() and expected.max() <= 32767
    assert loaded.hu.dtype == (np.int16 if whole else np.float32)


@pytest.mark.parametrize("kind", ["int16", "float32", "uint8"])
def test_a_mask_with_an_automatic_slope_is_a_mask(kind: str, tmp_path: Path) -> None:
    """nibabel stores 1 as 0.99999 when floats are saved as integers."""
    labels = np.zeros((12, 10, 8))
    labels[2:5, 3:6, 2:4], labels[7:9, 3:6, 2:4] = 1, 3
    image = nib.Nifti1Image(labels * (1.0000002 if kind == "float32" else 1), AFFINE)
    image.set_data_dtype(kind)
    nib.save(image, tmp_path / "m.nii.gz")
    again = nib.load(tmp_path / "m.nii.gz").get_fdata()
    assert not np.array_equal(again, labels)  # or this tests nothing
    assert io.sniff(tmp_path / "m.nii.gz").kind == "mask"
    mask, volume = io.load_mask(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(volume.to_source_order(mask), labels)


def test_fractions_are_no_mask(tmp_path: Path) -> None:
    labels = np.zeros((12, 10, 8), np.float32)
    labels[2:5] = 0.99
    nib.save(nib.Nifti1Image(labels, AFFINE), tmp_path / "m.nii")
    with pytest.raises(PancreasSegError, match="whole numbers"):
        io.load_mask(tmp_path / "m.nii")


@pytest.mark.parametrize("kind", ["uint16", "uint32", "float32"])
def test_signed_numbers_read_as_unsigned_are_named(
    kind: str, body: Callable, tmp_path: Path
) -> None:
    hu = body((40, 40, 6))
    bits = 32 if kind == "uint32" else 16
    wrapped = (hu.astype(np.int64) % 2**bits).astype(kind)
    with pytest.raises(PancreasSegError, match=f"unsigned.*{2**bits - 1000} stands for -1000"):
        io.load_ct(saved(wrapped, tmp_path / "ct.nii"))
    padded = (np.maximum(hu, -1000) + 1024).astype(np.uint16)
    padded[:3] = 63536  # padding of one value is none of that
    notes = io.load_ct(saved(padded, tmp_path / "padded.nii")).notes
    assert any("1024 was subtracted" in note for note in notes)
    assert not any("unsigned" in note for note in notes)


@pytest.mark.parametrize("suffix", [".hdr", ".img"])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_nifti_pair(suffix: str, packed: str, body: Callable, tmp_path: Path) -> None:
    hu = body((24, 20, 6))
    affine = np.array([[-0.8, 0, 0, 9], [0, 0.9, 0, 8], [0, 0, 3, 7], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Pair(hu, affine), tmp_path / f"case 1.img{packed}")
    volume = io.load_ct(tmp_path / f"case 1{suffix}{packed}")
    np.testing.assert_array_equal(volume.to_source_order(volume.hu), hu)
    np.testing.assert_allclose(volume.source.affine, affine, atol=1e-6)
    assert volume.name == "case 1" and volume.notes == ()
    path = io.save_mask(volume.hu > 0, volume, tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(nib.load(path).get_fdata(), hu > 0)
    gone = ".img" if suffix == ".hdr" else ".hdr"
    (tmp_path / f"case 1{gone}{packed}").unlink()
    with pytest.raises(PancreasSegError, match=f"'case 1{gone}', is not beside it"):
        io.load_ct(tmp_path / f"case 1{suffix}{packed}")


def test_analyze_is_refused_by_name(body: Callable, tmp_path: Path) -> None:
    nib.save(nib.AnalyzeImage(body((24, 20, 6)), None), tmp_path / "a.img")
    with pytest.raises(PancreasSegError, match="Analyze"):
        io.load_ct(tmp_path / "a.hdr")


def test_a_stem_is_a_matter_of_the_name_alone(tmp_path: Path) -> None:
    names = {"a.nii.gz": "a", "1.2.840.7": "1.2.840.7", "a.b": "a.b", "c.IMA": "c", "d.hdr": "d"}
    for name, expected in names.items():
        assert io.stem(tmp_path / name) == expected
        (tmp_path / name).mkdir()
        assert io.stem(tmp_path / name) == expected


def test_two_reads_at_once_leave_the_loggers_as_they_were(body: Callable, tmp_path: Path) -> None:
    loggers = [logging.getLogger(n) for n in ("nibabel.global", "pydicom", "highdicom")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers], list(warnings.filters)
    first, second = quiet_libraries(), quiet_libraries()
    first.__enter__()
    second.__enter__()
    assert not any(logger.isEnabledFor(logging.CRITICAL) for logger in loggers)
    first.__exit__(None, None, None)  # the one that came first goes first
    assert not any(logger.isEnabledFor(logging.CRITICAL) for logger in loggers)
    second.__exit__(None, None, None)
    assert ([(lg.level, list(lg.handlers)) for lg in loggers], list(warnings.filters)) == before
    paths = [saved(body((24, 20, 6)), tmp_path / f"{n}.nii.gz") for n in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(io.load_ct, paths))
    assert ([(lg.level, list(lg.handlers)) for lg in loggers], list(warnings.filters)) == before


@pytest.mark.parametrize("read", [io.load_ct, io.load_mask, io.sniff])
def test_names_that_the_system_refuses(read: Callable, tmp_path: Path) -> None:
    for path in (tmp_path / f"{'a' * 300}.nii.gz", tmp_path / "none", tmp_path):
        with pytest.raises(PancreasSegError):
            read(path)
