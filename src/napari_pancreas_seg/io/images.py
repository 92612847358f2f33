"""CTs that are in memory already: images of nibabel and SimpleITK, which are not imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.itk import read as itk
from napari_pancreas_seg.io.nifti.read import affine_of
from napari_pancreas_seg.io.raw import RawImage
from napari_pancreas_seg.io.suffixes import stem
from napari_pancreas_seg.io.voxels import check_shape, reading


def read_image(image: Any) -> tuple[str, str, RawImage, Path | None]:
    """Take a CT out of an image in memory; return its format, the case's name, the CT, its file."""
    kind = type(image)
    if hasattr(image, "dataobj") and hasattr(image, "affine"):
        file = image.get_filename() if hasattr(image, "get_filename") else None
        name = stem(Path(file)) if file else "CT"
        with reading(Path(name), "nibabel"):
            known, raw = _from_nibabel(image, name)
            return known, name, raw, Path(file) if file else None
    if kind.__module__.partition(".")[0] == "SimpleITK" and hasattr(image, "GetDirection"):
        return "array", "CT", _from_simpleitk(image), None
    if hasattr(image, "__array__"):
        raise PancreasSegError(
            "An array does not say where it lies in the patient; give "
            "CTVolume.from_array(array, affine)."
        )
    raise PancreasSegError(
        f"An object of type {kind.__name__} is not a CT; give a path, an image of nibabel or "
        "SimpleITK, or CTVolume.from_array(array, affine)."
    )


def _from_nibabel(image: Any, name: str) -> tuple[str, RawImage]:
    from nibabel import AnalyzeImage, Spm99AnalyzeImage
    from nibabel.arrayproxy import ArrayProxy

    shape = check_shape(Path(name), tuple(image.shape))
    header, affine = image.header, image.affine
    known: str = "array"
    notes: tuple[str, ...] = ()
    if hasattr(header, "get_qform"):  # NIfTI's
        best = header.get_best_affine()
        if affine is None or np.allclose(affine, best, atol=1e-4):
            affine, notes = affine_of(header)
            known = "nifti" if tuple(header.get_data_shape()) == shape else known
    elif isinstance(image, AnalyzeImage) and not isinstance(image, Spm99AnalyzeImage):
        raise PancreasSegError(
            f"The image '{name}' is Analyze 7.5, which does not say where left and right are; "
            "convert the CT to NIfTI."
        )
    if affine is None:
        raise PancreasSegError(
            f"The image '{name}' has no affine, so its position is unknown; set one."
        )
    stored = np.asanyarray(image.dataobj)
    # The image stays as it is, and its file; only what nibabel has just read is nobody else's.
    if isinstance(stored, np.memmap) or not isinstance(image.dataobj, ArrayProxy):
        stored = np.array(stored)
    copied = header.copy() if known == "nifti" else None
    return known, RawImage(stored, 1.0, 0.0, np.asarray(affine, float), copied, notes)


def _from_simpleitk(image: Any) -> RawImage:
    import SimpleITK as sitk

    shape = check_shape(Path("image"), tuple(image.GetSize()))
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise PancreasSegError("This image holds colours or vectors, so it is not a CT.")
    stored = sitk.GetArrayFromImage(image).transpose().reshape(shape)
    return RawImage(stored, 1.0, 0.0, itk.affine_of(image), None)
