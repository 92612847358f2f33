"""Writing NRRD and MetaImage by SimpleITK: header and data in one file.

SimpleITK does not notice every fault of a disk, so what it wrote is read again before it gets its
name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.files import atomic_path, check_target
from napari_pancreas_seg.io.itk.read import check_whole, in_unicode
from napari_pancreas_seg.io.raw import LPS_TO_RAS
from napari_pancreas_seg.io.suffixes import NRRD, suffix_of

_FAST = 2  # level of compression: at the usual one an empty mask takes seconds

_LARGEST_SHEAR = 1e-3
"""Cosine of the angle between two axes; headers rounded to float32 stay far below."""


def write(
    array: Array, affine: npt.ArrayLike, path: Path, *, content: str = "", overwrite: bool = False
) -> None:
    """Write an array (I, J, K), uint8, int16 or float32, compressed; the ending says the format."""
    import SimpleITK as sitk

    spacing, direction, origin = check_axes(affine, path)
    check_target(path, overwrite=overwrite)
    image = sitk.GetImageFromArray(array.reshape(array.shape[:3]).transpose())
    image.SetSpacing(spacing.tolist())
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin(origin.tolist())
    if content:
        is_nrrd = path.name.lower().endswith(NRRD)
        image.SetMetaData("NRRD_content" if is_nrrd else "Comment", content)
    with atomic_path(path, overwrite=overwrite, suffix=suffix_of(path).lower()) as temporary:
        _write(image, temporary, path)


def check_axes(affine: npt.ArrayLike, path: Path) -> tuple[Array, Array, Array]:
    """Take an affine (RAS+) apart into spacing, direction and origin in LPS+; refuse a shear."""
    lps = LPS_TO_RAS @ np.asarray(affine, dtype=np.float64)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    direction = lps[:3, :3] / spacing
    if np.abs(direction.T @ direction - np.eye(3)).max() > _LARGEST_SHEAR:
        raise PancreasSegError(
            f"'{path.name}' cannot be written: the axes of this CT are sheared (a tilted gantry), "
            "which only NIfTI can store; choose a name that ends in .nii.gz."
        )
    return spacing, direction, lps[:3, 3]


def _write(image: Any, temporary: Path, path: Path) -> None:
    """Write an image under a temporary name and read it again."""
    import SimpleITK as sitk

    with open(temporary, "xb"):  # where that is refused, the system says why
        pass
    try:
        link = f"link/{temporary.name}"
        with in_unicode(temporary, link, {"link": temporary.parent}) as name:
            sitk.WriteImage(image, name, True, _FAST)
        check_whole(temporary)
    except (RuntimeError, PancreasSegError) as error:
        raise PancreasSegError(
            f"'{path.name}' was not written: the disk is full or did not take all of it; make "
            "room or choose another folder."
        ) from error
