"""A real CT to try the program on, downloaded when asked for and kept in a cache."""

from __future__ import annotations

from pathlib import Path

from napari_pancreas_seg.data.download import cache_folder, download

EXAMPLE_URL = (
    "https://raw.githubusercontent.com/wasserth/TotalSegmentator/"
    "0e65a448d557382b1e925276212b3bec7f5aff83/tests/reference_files/example_ct.nii.gz"
)
"""A file of the TotalSegmentator repository (Apache-2.0) at a fixed commit."""

EXAMPLE_SHA256 = "dbd3ae6d614d1d7ef3a46925c30c70038ed52da6b37fdd6afdc7b9b71387e3e1"


def example_ct_path(url: str = EXAMPLE_URL, *, sha256: str = EXAMPLE_SHA256) -> Path:
    """Path of a real CT of the trunk, downloaded on the first call (2 MB) and checked by its hash.

    The CT comes from the reference files of TotalSegmentator (Wasserthal et al. 2023,
    doi:10.1148/ryai.230024; Apache-2.0): 3 mm voxels, no contrast agent, a small fatty
    pancreas. It is a hard case for a network trained on portal-venous CT.
    """
    target = cache_folder() / "example" / "example_ct.nii.gz"
    otherwise = "The synthetic sample needs none."
    return download(url, sha256, target, "the example CT", otherwise=otherwise)
