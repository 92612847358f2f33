"""Writing NRRD and MetaImage by SimpleITK: header and data in one file, or in two.

SimpleITK does not notice every fault of a disk, so what it wrote is read again before it gets its
name. Of two files the data come first: after a power failure the old pair is as it was.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.files import all_or_none, atomic_path, check_target
from napari_pancreas_seg.io.itk.read import check_whole, in_unicode, layout_of
from napari_pancreas_seg.io.raw import LPS_TO_RAS
from napari_pancreas_seg.io.suffixes import NRRD, stem, suffix_of

_DATA = {".nhdr": ".raw.gz", ".mhd": ".zraw"}
"""Endings of the files that SimpleITK puts beside a header."""

_UNNAMEABLE = r"[\ud800-\udfff%\\\x00-\x1f]|\bLIST\b|^ +"
"""What a header cannot say, or says of several files: bytes that are no Unicode, and more."""

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
    suffix = suffix_of(path).lower()
    if suffix in _DATA:
        _write_two(image, path, suffix, overwrite)
        return
    with atomic_path(path, overwrite=overwrite, suffix=suffix) as temporary:
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


def _write_two(image: Any, path: Path, suffix: str, overwrite: bool) -> None:
    path = Path(os.path.realpath(path))
    before = _own_data(path, _DATA[suffix])
    name = _free_name(path, _DATA[suffix])
    data = path.with_name(f"{name}{_DATA[suffix]}")
    try:
        with all_or_none(path.parent, last=path.name, overwrite=overwrite) as folder:
            _write(image, folder / f"{name}{suffix}", path)
            os.replace(folder / f"{name}{suffix}", folder / path.name)
    except BaseException:  # Ctrl+C too
        if _own_data(path, _DATA[suffix]) != data:
            data.unlink(missing_ok=True)
        raise
    if before is not None and before != data:
        before.unlink(missing_ok=True)


def data_files(path: Path) -> list[Path]:
    """List the files beside a detached header that writing it anew may replace or delete."""
    path = Path(os.path.realpath(path))
    if suffix := _DATA.get(suffix_of(path).lower()):
        return [path.with_name(f"{_plain(path)}{suffix}"), _own_data(path, suffix) or path]
    return []


def _plain(path: Path) -> str:
    return re.sub(_UNNAMEABLE, "_", stem(path))


def _free_name(path: Path, suffix: str) -> str:
    name, number = _plain(path), 2
    while os.path.lexists(path.with_name(f"{name}{suffix}")):
        name, number = f"{_plain(path)}_{number}", number + 1
    return name


def _own_data(path: Path, suffix: str) -> Path | None:
    """Find the data of a header that is to be replaced, if we have written both."""
    try:
        data = layout_of(path).data
    except (OSError, PancreasSegError):
        return None
    ours = rf"{re.escape(_plain(path))}(_\d+)?{re.escape(suffix)}"
    return data if data.parent == path.parent and re.fullmatch(ours, data.name) else None
