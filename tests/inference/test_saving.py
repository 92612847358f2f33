from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import napari_pancreas_seg
from napari_pancreas_seg import io
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import Options, ScalarMap, Segmentation, describe
from napari_pancreas_seg.inference.saving import (
    is_sidecar,
    left_by_run,
    recorded_sha256,
    source_record,
    write_sidecar,
)
from napari_pancreas_seg.volume import CTVolume


@pytest.fixture
def volume(tmp_path: Path) -> CTVolume:
    hu = np.full((20, 20, 4), -1000, np.int16)
    hu[3:17, 3:17] = np.random.default_rng(0).normal(50, 9, (14, 14, 4))
    made = CTVolume.from_source_array(hu, np.diag([-1.0, -1, 5, 1]), notes=("thick slices",))
    folder = tmp_path / "DOE^JOHN"
    return io.load_ct(io.save_ct(made, folder / "john_doe_1970.nii.gz"))


def found(volume: CTVolume) -> Segmentation:
    mask = np.zeros(volume.grid.shape, np.uint8)
    mask[1:3, 5:9, 5:9] = 1
    values = ScalarMap(mask.astype(np.float16), volume.grid)
    card = {"name": "tiny", "version": "3", "weights_sha256": "ab" * 32, "author": "somebody"}
    seconds = {"segmenting": np.float32(1.25)}
    return Segmentation(
        mask, values, (), volume.grid, 0.4, card, seconds, Options("cpu", 2), ("a note",)
    )


def test_record(volume: CTVolume, tmp_path: Path) -> None:
    record = describe(volume, found(volume), seconds={"reading": 0.5})
    path = write_sidecar(tmp_path / "m.json", record)
    read = json.loads(path.read_text(encoding="utf-8"))
    assert read["program"]["version"] == napari_pancreas_seg.__version__
    assert read["model"] == {"name": "tiny", "version": "3", "weights_sha256": "ab" * 32}
    twice = {"model": "mend", "weights_sha256": "cd" * 32}
    result = replace(found(volume), model={**found(volume).model, "second_look": twice})
    assert describe(volume, result)["model"]["second_look"] == twice
    assert read["options"]["device"] == "cpu"
    assert read["options"]["applied_threshold"] == 0.4
    assert read["measurements"]["volume_ml"] == pytest.approx(32 * 5 / 1000)
    assert read["measurements"]["slices"] == 2
    assert read["seconds"] == {"reading": 0.5, "segmenting": 1.25}
    assert read["grid"]["shape"] == [4, 20, 20]
    assert read["edits"] == {"voxels_added": 0, "voxels_removed": 0, "slices": 0}
    assert read["source"]["files"] == 1
    assert read["notes"] == ["a note"]
    assert 0 < read["quality"]["expected_dice"] < 1
    assert any("The mask has 0 mL" in sentence for sentence in read["quality"]["noticed"])
    assert read["software"]["numpy"] == np.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", read["created"])
    source = volume.source.path
    assert source is not None
    assert read["source"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()


def test_nothing_names_the_patient(volume: CTVolume, tmp_path: Path) -> None:
    path = write_sidecar(tmp_path / "m.json", describe(volume, found(volume)))
    text = path.read_text(encoding="utf-8").lower()
    assert "john" not in text
    assert "doe" not in text
    assert str(tmp_path) not in text


def test_edits_are_counted_and_measured(volume: CTVolume) -> None:
    segmentation = found(volume)
    mask = segmentation.mask.copy()
    mask[3, 5, 5:8] = 1
    mask[1, 5, 5] = 0
    record = describe(volume, segmentation, mask=mask)
    assert record["edits"] == {"voxels_added": 3, "voxels_removed": 1, "slices": 2}
    assert record["measurements"]["slices"] == 3
    assert record["quality"] == {"phase": "unknown"}  # the rest was said of the model's mask


def test_relabelled_voxels_are_neither_added_nor_removed(volume: CTVolume) -> None:
    segmentation = found(volume)
    classes = {**segmentation.model, "labels": {"pancreas": 1, "tumour": 2}}
    mask = segmentation.mask.copy()
    mask[1, 5, 5:9] = 2
    mask[1, 4, 5:7] = 2
    mask[2, 5, 5] = 0
    expected = {"voxels_added": 2, "voxels_removed": 1, "voxels_relabelled": 4, "slices": 2}
    for model in (segmentation.model, classes):
        record = describe(volume, replace(segmentation, model=model), mask=mask)
        assert record["edits"] == expected
    unchanged = describe(volume, replace(segmentation, model=classes))["edits"]
    assert unchanged == dict.fromkeys(expected, 0)


def test_values_without_a_number_become_null(tmp_path: Path) -> None:
    record = {
        "a": np.float64("nan"),
        "b": (np.int64(3), None, True),
        "c": np.eye(2),
        "d": Path("x"),
    }
    path = write_sidecar(tmp_path / "m.json", record)
    assert json.loads(path.read_text()) == {
        "a": None,
        "b": [3, None, True],
        "c": [[1, 0], [0, 1]],
        "d": "x",
    }
    with pytest.raises(PancreasSegError, match="exists already"):
        write_sidecar(path, {})


def test_several_files_have_one_hash_whatever_their_order(volume: CTVolume, tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(volume.hu), str(tmp_path / "ct.mhd"))
    pair = io.load_ct(tmp_path / "ct.mhd")
    source = describe(pair, found(pair))["source"]
    hashes = sorted(
        hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("ct.mhd", "ct.raw")
    )
    assert source["files"] == 2
    assert source["sha256"] == hashlib.sha256("".join(hashes).encode()).hexdigest()
    assert source["bytes"] == sum(item.stat().st_size for item in tmp_path.glob("ct.*"))


def test_our_records_are_known(volume: CTVolume, tmp_path: Path) -> None:
    assert is_sidecar(write_sidecar(tmp_path / "m.json", describe(volume, found(volume))))
    for content in ("", "[]", '{"program": 1}', '{"program": {"name": "another"}}'):
        (tmp_path / "other.json").write_text(content)
        assert not is_sidecar(tmp_path / "other.json")
    assert not is_sidecar(tmp_path / "none.json")


def test_maps_of_a_replaced_result_go_with_it(volume: CTVolume, tmp_path: Path) -> None:
    path, own = tmp_path / "m.nii.gz", tmp_path / "m_probability_mine.nii.gz"
    result = found(volume)
    result = replace(result, ct=volume, attention=(result.probability,) * 2)
    result.save(path, probability=True, attention=True)
    own.write_bytes(b"not ours")
    result.save(path, probability=True, overwrite=True)
    assert sorted(p.name for p in tmp_path.glob("m*")) == [
        "m.json", "m.nii.gz", "m_probability.nii.gz", own.name
    ]  # fmt: skip
    result.save(tmp_path / "m.nrrd", overwrite=True)
    assert (tmp_path / "m_probability.nii.gz").exists(), "the mask that it belongs to stays"


def test_a_result_stays_what_was_found(volume: CTVolume) -> None:
    result = replace(found(volume), ct=volume)
    with pytest.raises(ValueError, match="read-only"):
        result.mask[0] = 1
    voxels = np.asanyarray(result.mask_image().dataobj)
    voxels[...] = 7
    assert result.mask.max() == 1


def test_a_ct_that_was_replaced_since_it_was_read_is_not_named(volume: CTVolume) -> None:
    path = volume.source.path
    assert "sha256" in source_record(volume.source)
    path.write_bytes(path.read_bytes() + b"another")
    assert "sha256" not in source_record(volume.source)
    assert "sha256" in source_record(replace(volume.source, stamp=()))


@pytest.mark.parametrize("record", [None, {}, {"resume": None}, {"resume": "by hand"}])
def test_a_record_without_what_a_run_leaves_is_no_fault(record):
    assert left_by_run(record) == {}
    assert recorded_sha256(record or {}) is None
