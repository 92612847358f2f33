"""The store of the user's own corrected cases."""

import json

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io import load_ct, load_mask
from napari_pancreas_seg.training.data.layouts.corrected_cases import (
    add_corrected_case,
    corrected_cases_folder,
    find_corrected_case,
    list_corrected_cases,
    remove_corrected_case,
)
from napari_pancreas_seg.training.data.layouts.opening import open_dataset
from napari_pancreas_seg.volume import CTVolume

OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.1, -0.05, 0.08) @ np.diag([-0.9, 0.8, 2.5]), [11.0, -7.0, 3.0]
)


def ct(seed: int = 0, affine=OBLIQUE) -> CTVolume:
    rng = np.random.default_rng(seed)
    hu = rng.integers(-100, 200, (9, 8, 6)).astype(np.int16)
    return CTVolume.from_source_array(hu, affine)


def mask_of(volume: CTVolume, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).random(volume.grid.shape) > 0.7).astype(np.uint8)


@settings(max_examples=12, deadline=None)
@given(
    flips=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    order=st.permutations([0, 1, 2]),
    reviewed=st.none() | st.sets(st.integers(0, 5), min_size=1),
)
def test_what_was_added_comes_back_as_a_data_set(tmp_path_factory, flips, order, reviewed):
    folder = tmp_path_factory.mktemp("store") / "corrections"
    affine = np.eye(4)
    affine[:3, :3] = (OBLIQUE[:3, :3] * flips)[:, order]
    volume = ct(affine=affine)
    mask = mask_of(volume)
    reviewed = None if reviewed is None else {z for z in reviewed if z < len(mask)} or {0}
    added = add_corrected_case(folder, volume, mask, reviewed)
    (case,) = open_dataset(folder).cases
    read, labels = case.load()
    np.testing.assert_array_equal(read.hu, volume.hu)
    np.testing.assert_array_equal(labels, mask)
    np.testing.assert_allclose(read.grid.affine, volume.grid.affine, atol=1e-4)
    assert case.slices == (None if reviewed is None else tuple(sorted(reviewed)))
    assert case.patient == added.patient
    assert list_corrected_cases(folder) == [added]


def test_the_same_ct_is_never_there_twice(tmp_path):
    volume = ct()
    first = add_corrected_case(tmp_path, volume, mask_of(volume), [1, 2], "anna")
    assert find_corrected_case(tmp_path, ct()) == first
    with pytest.raises(PancreasSegError, match="already"):
        add_corrected_case(tmp_path, ct(), mask_of(volume, 2), [3])
    assert list_corrected_cases(tmp_path) == [first]
    again = add_corrected_case(tmp_path, ct(), mask_of(volume, 2), [3], replace=True)
    assert (again.name, again.patient, again.reviewed) == (first.name, "anna", (3,))
    (case,) = open_dataset(tmp_path).cases
    np.testing.assert_array_equal(case.load()[1], mask_of(volume, 2))
    other = add_corrected_case(tmp_path, ct(5), mask_of(volume))
    assert {c.name for c in list_corrected_cases(tmp_path)} == {first.name, other.name}
    remove_corrected_case(tmp_path, first.name)
    assert list_corrected_cases(tmp_path) == [other]
    assert not first.folder.exists()
    with pytest.raises(PancreasSegError, match="no case"):
        remove_corrected_case(tmp_path, "../elsewhere")


def test_nothing_of_the_header_is_kept(tmp_path):
    path = tmp_path / "SMITH_JOHN.nii.gz"
    image = nib.Nifti1Image(ct().hu, OBLIQUE)
    image.header["descrip"] = b"Smith, John"
    image.header["db_name"] = b"Smith"
    nib.save(image, path)
    volume = load_ct(path)
    case = add_corrected_case(tmp_path / "store", volume, np.ones(volume.grid.shape, np.uint8))
    for file in case.folder.iterdir():
        data = nib.load(file).header.binaryblock if file.suffix == ".gz" else file.read_bytes()
        assert b"mith" not in data and b"MITH" not in data
    assert b"SMITH" not in str(case.folder.relative_to(tmp_path)).encode()


def test_a_case_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    volume = ct()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("napari_pancreas_seg.training.data.layouts.corrected_cases.save_mask", full)
        with pytest.raises(PancreasSegError, match="disk is full"):
            add_corrected_case(tmp_path, volume, mask_of(volume))
    assert list_corrected_cases(tmp_path) == []
    with pytest.raises(PancreasSegError, match="no case"):
        open_dataset(tmp_path)
    added = add_corrected_case(tmp_path, volume, mask_of(volume))
    assert list_corrected_cases(tmp_path) == [added]
    assert sorted(p.name for p in added.folder.iterdir()) == [
        "case.json",
        "ct.nii.gz",
        "mask.nii.gz",
    ]


def test_what_does_not_fit_is_refused_in_a_sentence(tmp_path):
    volume = ct()
    for mask, reviewed, words in (
        (np.zeros((2, 2, 2), np.uint8), None, "shape"),
        (mask_of(volume), [], "No slice"),
        (mask_of(volume), [99], "none of the CT's"),
        (mask_of(volume) + 2 * mask_of(volume, 2), None, "label 2"),
    ):
        with pytest.raises(PancreasSegError, match=words):
            add_corrected_case(tmp_path, volume, mask, reviewed)
    assert list_corrected_cases(tmp_path) == []
    add_corrected_case(tmp_path, volume, mask_of(volume))
    labels = {"pancreas": 1, "tumour": 2}
    with pytest.raises(PancreasSegError, match="other labels"):
        add_corrected_case(tmp_path, ct(2), mask_of(volume) * 2, labels=labels)
    (tmp_path / "corrections.json").write_text(json.dumps({"format": 9, "labels": {"pancreas": 1}}))
    with pytest.raises(PancreasSegError, match="newer version"):
        add_corrected_case(tmp_path, ct(2), mask_of(volume))


@pytest.mark.parametrize("labels", [{"pancreas": 1}, {"gland": 4}])
def test_a_mask_of_one_value_is_the_one_label_that_there_is(tmp_path, labels):
    mask = mask_of(ct())
    case = add_corrected_case(tmp_path, ct(), 255 * mask, labels=labels)
    stored = load_mask(case.folder / "mask.nii.gz")[0]
    np.testing.assert_array_equal(stored, mask * next(iter(labels.values())))


def test_the_folder_is_the_users_or_the_one_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_data_dir", lambda *_, **__: str(tmp_path))
    assert corrected_cases_folder() == tmp_path / "corrections"
    monkeypatch.setenv("NAPARI_PANCREAS_SEG_CORRECTIONS", str(tmp_path / "mine"))
    assert corrected_cases_folder() == tmp_path / "mine"
    assert list_corrected_cases(corrected_cases_folder()) == []


def test_a_case_that_is_replaced_takes_the_geometry_of_its_ct_and_keeps_its_folder(tmp_path):
    volume, store = ct(affine=np.diag([-0.7, 0.7, 5.0, 1.0])), tmp_path / "store"
    first = add_corrected_case(store, volume, mask_of(volume), patient="anna")
    first.folder.rename(store / "renamed")
    thick = ct(affine=np.diag([-1.4, 1.4, 10.0, 1.0]))
    again = add_corrected_case(store, thick, mask_of(thick, 2), replace=True)
    assert (again.name, again.patient) == ("renamed", "anna")
    assert [item.name for item in store.iterdir() if item.is_dir()] == ["renamed"]
    (case,) = open_dataset(store).cases
    read, labels = case.load()
    np.testing.assert_allclose(read.spacing, np.multiply(volume.spacing, 2), rtol=1e-5)
    np.testing.assert_array_equal(labels, mask_of(thick, 2))
