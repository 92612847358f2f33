"""The demo from end to end, with a network that is only pretended."""

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from napari_pancreas_seg.cohort import demo
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import Progress, ScalarMap, Segmentation


@pytest.fixture
def phantom(drawn, monkeypatch):
    monkeypatch.setattr(demo, "load_sample", lambda: drawn(0))
    return drawn(0)


@pytest.fixture
def asked(monkeypatch, phantom):
    """A segmentation that finds the true mask, eroded by nothing but its first slice."""
    calls = []

    def iter_segment(volume, model="default", options=None):
        calls.append((model, options))
        yield Progress("segmenting", 1, 2)
        yield Progress("segmenting", 2, 2)
        mask = phantom.mask.copy()
        mask[np.flatnonzero(mask.any(axis=(1, 2)))[0]] = 0
        grid = volume.grid.sub_grid((35, 31, 40), (0, 0.5, 0.5), (1, 2, 2))
        values = ndimage.zoom(mask.astype(np.float32), (1, 0.5, 0.5), order=1).astype(np.float16)
        scalar_map = ScalarMap(values, grid)
        card = {"name": "pretended", "version": "0", "classes": {"pancreas": 1}}
        return Segmentation(
            mask, scalar_map, (scalar_map,), volume.grid, 0.5, card, {"segmenting": 0.1}, options
        )

    monkeypatch.setattr(demo.segmentation, "iter_segment", iter_segment)
    return calls


@pytest.mark.slow
def test_writes_everything_and_compares(asked, phantom, tmp_path):
    seen = []
    result = demo.run_demo(
        tmp_path / "new" / "folder", model="mine", device="cpu", progress=seen.append
    )
    assert asked[0][0] == "mine"
    assert asked[0][1].device == "cpu"
    assert [step.done for step in seen] == [1, 2]
    assert 0.9 < result.dice < 1
    assert 0 < result.volume_ml < result.reference_volume_ml < 120
    assert result.seconds >= 0
    assert all(path.is_file() for path in result.files)
    assert len(set(result.files)) == len(result.files)
    names = {path.name for path in result.files}
    assert names >= {
        "phantom_ct.nii.gz", "phantom_pancreas.nii.gz", "phantom_reference.nii.gz",
        "phantom_overview.png",
    }  # fmt: skip
    assert any("attention" in name for name in names)
    # Nothing is left that the result does not name.
    assert {p.name for p in (tmp_path / "new" / "folder").iterdir()} == names


@pytest.mark.slow
def test_files_lie_on_the_grid_of_the_ct(asked, phantom, tmp_path):
    demo.run_demo(tmp_path)
    ct, mask, reference = (
        nibabel.load(tmp_path / f"phantom_{name}.nii.gz")
        for name in ("ct", "pancreas", "reference")
    )
    source = phantom.volume.source
    for image in (ct, mask, reference):
        assert image.shape == source.shape
        np.testing.assert_allclose(image.affine, source.affine, atol=1e-3)
    truth = phantom.volume.to_source_order(phantom.mask)
    np.testing.assert_array_equal(np.asanyarray(reference.dataobj), truth)
    assert (np.asanyarray(mask.dataobj) <= truth).all()


@pytest.mark.slow
def test_runs_again_over_its_own_files(asked, tmp_path):
    first = demo.run_demo(tmp_path)
    assert demo.run_demo(tmp_path).files == first.files


def test_says_when_the_folder_is_a_file(asked, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PancreasSegError):
        demo.run_demo(tmp_path / "file")
    assert asked == []
