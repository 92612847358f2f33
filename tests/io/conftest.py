"""Small CTs that are plausible enough to be let in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest


def _body(shape: tuple[int, int, int], seed: int = 0) -> npt.NDArray[np.int16]:
    """Air, a rim of fat, soft tissue and noise; shape (I, J, K)."""
    inner = [np.abs(np.linspace(-1, 1, n)) for n in shape[:2]]
    distance = np.maximum(inner[0][:, None], inner[1][None, :])[..., None]
    hu = np.where(distance < 0.7, 50.0, np.where(distance < 0.8, -100.0, -1000.0))
    noise = np.random.default_rng(seed).normal(0, 10, shape)
    return (np.broadcast_to(hu, shape) + noise).round().astype(np.int16)


@pytest.fixture(scope="session")
def body() -> Callable[..., npt.NDArray[np.int16]]:
    return _body


@pytest.fixture
def ct_file(tmp_path: Path) -> Path:
    """A CT of 24×20×6 voxels in LPS order."""
    path = tmp_path / "ct.nii.gz"
    affine = np.array([[-1.5, 0, 0, 10], [0, -1.5, 0, 20], [0, 0, 3, -30], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(_body((24, 20, 6)), affine), path)
    return path
