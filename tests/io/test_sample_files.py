"""What nibabel and pydicom test themselves with is read or refused, never a crash."""

import contextlib
from pathlib import Path

import nibabel
import pydicom
import pytest

from napari_pancreas_seg import io
from napari_pancreas_seg.cohort.inspection import inspect
from napari_pancreas_seg.errors import PancreasSegError

FOLDERS = (
    Path(nibabel.__file__).parent / "tests" / "data",
    Path(nibabel.__file__).parent / "nicom" / "tests" / "data",
    Path(pydicom.__file__).parent / "data",
)


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=["nibabel", "nicom", "pydicom"])
def test_sample_files_are_read_or_refused_with_a_sentence(folder):
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if not paths:
        pytest.skip(f"this installation has no {folder.name}")
    for path in paths:
        for read in (io.load_ct, io.load_mask):
            with contextlib.suppress(PancreasSegError):
                read(path)
        assert isinstance(inspect(path)["problem"], str | None)
