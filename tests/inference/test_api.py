"""What the package offers to Python: the same as the command line, from whatever holds a CT."""

import copy
import json
import pickle
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

import napari_pancreas_seg as nps
from napari_pancreas_seg.cli import main
from napari_pancreas_seg.inference.result import exhaust


@pytest.fixture
def model(tiny_model):
    return tiny_model


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    """A CT in an order of axes of its own."""
    hu = np.full((9, 80, 60), -1000, np.int16)
    hu[:, 10:70, 8:52] = 50
    hu[3:6, 30:50, 20:40] = 110
    affine = np.array([[0, 0, 3.0, 5], [0, 3.0, 0, -7], [4.0, 0, 0, 11], [0, 0, 0, 1]])
    path = tmp_path_factory.mktemp("ct") / "ct.nii.gz"
    nib.save(nib.Nifti1Image(hu, affine), path)
    return path


@pytest.mark.slow
def test_the_mask_is_an_image_on_the_cts_own_grid(ct, model):
    result = nps.segment(ct, model, threshold=0.3, postprocess=False)
    image, source = result.mask_image(), nib.load(ct)
    assert image.shape == source.shape and image.get_data_dtype() == np.uint8
    np.testing.assert_allclose(image.affine, source.affine, atol=1e-6)
    assert nib.aff2axcodes(image.affine) == nib.aff2axcodes(source.affine)
    np.testing.assert_array_equal(np.asarray(image.dataobj), result.ct.to_source_order(result.mask))
    for code in ("sform_code", "qform_code"):
        assert image.header[code] == source.header[code]


def test_a_result_and_its_ct_are_shown_in_a_line_each(ct, model):
    result = nps.segment(ct, model, threshold=0.3, postprocess=False)
    quality, volume = result.quality, nps.load_ct(ct)
    assert repr(result) == (
        f"Segmentation(shape=(9, 80, 60), model='tiny 0', volume_ml={result.volume_ml:.1f}, "
        f"expected_dice={quality['expected_dice']}, noticed={len(quality['noticed'])})"
    )
    notes = f"notes={len(volume.notes)}"
    assert repr(volume) == (
        f"CTVolume(shape={volume.grid.shape}, spacing_mm=(4, 3, 3), format='nifti', {notes})"
    )
    assert max(len(repr(part)) for part in (result, volume, result.probability)) < 400


def test_a_copied_result_is_read_only_and_saved_as_its_original_is(ct, model, tmp_path):
    result = nps.segment(ct, model, threshold=0.3, postprocess=False)
    for again in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        np.testing.assert_array_equal(again.mask, result.mask)
        with pytest.raises(ValueError, match="read-only"):
            again.mask[0] = 1
        (mask, _) = again.save(tmp_path / "mask.nii.gz", overwrite=True)
        np.testing.assert_array_equal(nps.load_mask(mask)[0], result.mask)


@pytest.mark.parametrize("path", ["", None])
def test_what_is_no_path_is_refused_in_a_sentence(path, ct, model):
    result = nps.segment(ct, model, slices=(0, 1))
    with pytest.raises(nps.PancreasSegError, match="give its path"):
        result.save(path)
    with pytest.raises(nps.PancreasSegError, match=r"give its path|path of the mask is empty"):
        nps.load_mask(path)


@pytest.mark.slow
def test_a_path_and_images_give_the_same_mask(ct, model):
    sitk = pytest.importorskip("SimpleITK")
    whole = nps.segment(str(ct), model, threshold=0.3)
    assert whole.mask.any()
    for held in (nps.load_ct(ct), nib.load(ct), sitk.ReadImage(str(ct))):
        np.testing.assert_array_equal(nps.segment(held, model, threshold=0.3).mask, whole.mask)
        steps = nps.iter_segment(held, model, nps.Options(threshold=0.3))
        np.testing.assert_array_equal(exhaust(steps).mask, whole.mask)


@pytest.mark.slow
def test_a_result_is_saved_as_the_command_line_does(ct, model, tiny_bundle, tmp_path):
    there = tmp_path / "there" / "m.nii.gz"
    arguments = ["--model", str(tiny_bundle), "--device", "cpu", "--threshold", "0.3"]
    arguments += ["--probability", "--attention", "--slices", "1:7"]
    assert main(["segment", str(ct), "-o", str(there), *arguments]) == 0
    result = nps.segment(ct, model, threshold=0.3, slices=(1, 7))
    files = result.save(tmp_path / "here" / "m.nii.gz", probability=True, attention=True)
    assert files[0].name == "m.nii.gz" and files[-1].name == "m.json"
    assert sorted(p.name for p in files) == sorted(p.name for p in there.parent.iterdir())
    for path in files[:-1]:
        assert path.read_bytes() == (there.parent / path.name).read_bytes()
    ours, theirs = (json.loads((p.parent / "m.json").read_text()) for p in (files[0], there))
    for record in (ours, theirs):
        for varying in ("created", "seconds", "software"):
            record.pop(varying)
        record["options"].pop("device")
        record["resume"].pop("source_stamp")
    assert ours == theirs and ours["device"] == "cpu:0"
    with pytest.raises(nps.PancreasSegError, match="exists already"):
        result.save(files[0])
    result.save(files[0], overwrite=True)
    with pytest.raises(nps.PancreasSegError, match="the CT itself"):
        result.save(ct, overwrite=True)


def test_a_named_model_stays_in_memory_until_another_lies_there(
    ct, tiny_bundle, tmp_path, monkeypatch
):
    made, load = [], nps.LoadedModel.__init__
    monkeypatch.setattr(nps.LoadedModel, "__init__", lambda *what: made.append(1) or load(*what))
    folder = shutil.copytree(tiny_bundle, tmp_path / "model")
    for _ in range(2):
        nps.segment(ct, folder, device="cpu", slices=(1, 3))
    assert len(made) == 1
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    (folder / "card.json").write_text(json.dumps({**card, "threshold": 0.9}), encoding="utf-8")
    assert nps.segment(ct, folder, device="cpu", slices=(1, 3)).threshold == 0.9
    assert len(made) == 2


def test_an_unknown_keyword_is_pythons_own_error(ct, model):
    with pytest.raises(
        TypeError, match=r"^segment\(\) got an unexpected keyword argument 'treshold'"
    ):
        nps.segment(ct, model, treshold=0.3)


def test_gpu_is_the_first_one_or_one_sentence(monkeypatch, tiny_bundle):
    from napari_pancreas_seg.inference import devices

    monkeypatch.setattr(devices, "_gpu_count", lambda: 0)
    with pytest.raises(nps.PancreasSegError, match=r"^The device gpu cannot be used\. No GPU: "):
        nps.LoadedModel(tiny_bundle, "gpu")
    monkeypatch.setattr(devices, "_gpu_count", lambda: 2)
    monkeypatch.setattr(devices, "_free_bytes", lambda number: None)
    assert devices.choose_device("gpu").name == "gpu:0"
    with pytest.raises(nps.PancreasSegError, match="gpu:0 to gpu:1"):
        devices.choose_device("gpu:2")


def test_public_names_are_there():
    assert {name for name in nps.__all__ if getattr(nps, name) is None} == set()
    assert set(nps.__all__) <= set(dir(nps))
    assert all(re.fullmatch(r"\w+", name) for name in nps.__all__)
    assert "default" in {entry.name for entry in nps.list_models()}


@pytest.mark.slow
def test_a_mask_is_measured_and_compared(ct, model, tmp_path):
    volume = nps.load_ct(ct)
    result = nps.segment(volume, model)
    mask = nps.remask(result, 0.3, postprocess=False)
    found = nps.measure(mask, volume)
    assert found["voxels"] == np.count_nonzero(mask)
    assert nps.dice(mask, mask) == 1.0
    loaded = nps.load_mask(nps.save_mask(mask, volume, tmp_path / "mask.nii.gz"))
    for use in (
        lambda mask: nps.dice(mask, mask),
        lambda mask: nps.measure(mask, volume),
        lambda mask: nps.save_mask(mask, volume, tmp_path / "again.nii.gz"),
        lambda mask: nps.mend(volume, mask, 3),
    ):
        for wrong in (loaded, loaded[1], str(tmp_path / "mask.nii.gz")):
            with pytest.raises(nps.PancreasSegError, match="the first of what load_mask gives"):
                use(wrong)
