"""Slices on disk: read as if they lay in memory, made anew when they are not what they were."""

import errno
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.training.data import cache
from napari_pancreas_seg.training.data.cache import (
    CachedRows,
    Gathered,
    cached_rows,
    case_key,
    classes_shown,
    joined_rows,
)
from napari_pancreas_seg.training.data.datasets import load_cases
from napari_pancreas_seg.training.data.layouts.cases import BadCases


def made(seed=0, n=5, classes=2):
    """Slices of which the second and the last show something of one class each."""
    rng = np.random.default_rng(seed)
    hu = rng.integers(0, 256, (n, 6, 8)).astype(np.uint8)
    target = np.zeros((n, 6, 8, classes), np.uint8)
    target[1, ..., 0], target[-1, 2, 3, -1] = rng.integers(1, 256, (6, 8)), 7
    return CachedRows(hu, target)


def never():
    raise AssertionError("it is in the cache")


def test_what_comes_back_is_what_went_in(tmp_path):
    there = made()
    first = cached_rows(tmp_path, "a", made)
    again = cached_rows(tmp_path, "a", never)
    for rows in (first, again):
        for index in (3, -1, slice(1, 4), np.array([[4, 0], [1, 1]]), there.hu[:, 0, 0] > 0):
            np.testing.assert_array_equal(rows.hu[index], there.hu[index])
            np.testing.assert_array_equal(rows.target[index], there.target[index])
        assert rows.target.shape == there.target.shape and len(rows.hu) == 5
        np.testing.assert_array_equal(classes_shown(rows.target), there.target.any(axis=(1, 2)))
    assert (tmp_path / ".gitignore").read_text() == "*\n"
    # Slices that show nothing take no room for their targets.
    stored = zipfile.ZipFile(tmp_path / "a.rows").namelist()
    assert [name for name in stored if name.startswith("target")] == ["target1", "target4"]


def test_a_case_without_slices_is_one_too(tmp_path):
    empty = CachedRows(np.zeros((0, 6, 8), np.uint8), np.zeros((0, 6, 8, 1), np.uint8))
    rows = cached_rows(tmp_path, "none", lambda: empty)
    assert joined_rows([rows.hu, made().hu])[np.arange(5)].tolist() == made().hu.tolist()


def test_many_files_and_arrays_are_one(tmp_path):
    stored = [cached_rows(tmp_path, str(i), lambda i=i: made(i, 3 + i)) for i in range(4)]
    in_memory = made(9)
    parts = [*(rows.hu for rows in stored), in_memory.hu]
    whole = np.concatenate([*(made(i, 3 + i).hu for i in range(4)), in_memory.hu])
    joined = joined_rows([joined_rows(parts[:2]), *parts[2:]])
    assert isinstance(joined, Gathered) and len(joined.parts) == 5
    rows = np.random.default_rng(0).integers(0, len(whole), (7, 3))
    np.testing.assert_array_equal(joined[rows], whole[rows])
    targets = joined_rows([*(rows.target for rows in stored), in_memory.target])
    assert classes_shown(targets).sum() == 2 * 5
    assert isinstance(joined_rows([in_memory.hu, in_memory.hu]), np.ndarray)


@pytest.mark.parametrize("fault", ["half", "empty", "bit", "description", "longer", "other"])
def test_a_file_that_is_not_whole_is_made_anew(tmp_path, fault):
    cached_rows(tmp_path, "a", made)
    path = tmp_path / "a.rows"
    data = bytearray(path.read_bytes())
    if fault == "bit":
        data[20] ^= 1
    if fault == "description":
        data[-30] ^= 1
    broken = {
        "half": data[: len(data) // 2],
        "empty": b"",
        "longer": data + b"x",
        "other": b"x" * 99,
    }
    path.write_bytes(broken.get(fault, data))
    rows = cached_rows(tmp_path, "a", made)
    np.testing.assert_array_equal(rows.hu[:], made().hu)
    cached_rows(tmp_path, "a", never)


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(file, rows):
        file.write(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "_write", full)
    with pytest.raises(PancreasSegError, match=r"cache .* the disk is full") as caught:
        cached_rows(tmp_path / "rows", "a", made)
    assert "\n" not in str(caught.value)
    assert [p.name for p in (tmp_path / "rows").iterdir()] == [".gitignore"]


def test_a_damaged_case_is_not_blamed_on_the_disk(tmp_path):
    def damaged():
        raise PancreasSegError("Case A: its CT cannot be read.") from OSError(errno.EIO, "fault")

    with pytest.raises(PancreasSegError, match=r"^Case A"):
        cached_rows(tmp_path, "a", damaged)


@dataclass(frozen=True)
class Case:
    """A case of files."""

    files: tuple[Path, ...]
    name: str = "one"
    patient: str = "P"
    slices: tuple[int, ...] | None = None


def test_a_key_depends_on_all_that_the_slices_depend_on(tmp_path):
    series = tmp_path / "series"
    (series / "deep").mkdir(parents=True)
    (series / "deep" / "1.dcm").write_bytes(b"one")
    mask = tmp_path / "mask.nii"
    mask.write_bytes(b"mask")
    case, settings = Case((series, mask)), {"step": 2.5, "labels": {"pancreas": 1}}
    key = case_key(case, settings)
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "moved" / "mask.nii").write_bytes(b"mask")
    assert case_key(case, dict(settings)) == key
    assert case_key(Case((series, moved / "mask.nii")), settings) == key
    others = [
        case_key(case, {**settings, "step": 2.0}),
        case_key(case, {**settings, "labels": {"pancreas": 2}}),
        case_key(replace(case, slices=(1, 2)), settings),
    ]
    (series / "deep" / "1.dcm").write_bytes(b"two")
    others.append(case_key(case, settings))
    assert len({key, *others}) == 5
    mask.unlink()
    with pytest.raises(PancreasSegError, match=r"Case one: 'mask\.nii' cannot be read"):
        case_key(case, settings)


@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr", "a.hdr"])
def test_a_key_depends_on_data_that_lie_beside_their_header(tmp_path, name):
    keys = set()
    for value in (0, 1):
        mask, path = np.full((4, 5, 6), value, np.uint8), tmp_path / name
        if name == "a.hdr":
            nib.save(nib.Nifti1Pair(mask, np.eye(4)), path)
        else:
            sitk.WriteImage(sitk.GetImageFromArray(mask), path)
        keys.add(case_key(Case((path,)), {}))
    assert len(keys) == 2 and len([*tmp_path.iterdir()]) == 2


def test_a_file_that_vanished_is_one_sentence(tmp_path):
    rows = cached_rows(tmp_path, "a", made)
    (tmp_path / "a.rows").unlink()
    with pytest.raises(PancreasSegError, match="--resume"):
        rows.hu[0]


def test_all_files_that_cannot_be_opened_are_named_at_once(tmp_path):
    cases = [Case((tmp_path / f"{name}.nii",), name) for name in ("one", "two")]
    with pytest.raises(BadCases, match=r"2 cases .* 'one\.nii' .* 'two\.nii' cannot be read"):
        load_cases(cases, {"pancreas": 1}, cache=tmp_path)
