"""Endings of the files we know, in one place: for reading, for writing and for names."""

from __future__ import annotations

from pathlib import Path

NIFTI = (".nii.gz", ".nii")
PAIR = (".hdr", ".img", ".hdr.gz", ".img.gz")
"""NIfTI in two files, which is read and not written."""

NRRD = (".nrrd", ".nhdr")
METAIMAGE = (".mha", ".mhd")
DICOM = (".dcm",)
SURFACE = (".stl", ".ply", ".obj")
CSV = (".csv",)

VOLUME = (*NIFTI, *NRRD, *METAIMAGE)
"""Formats of one array with its place in space."""

WRITTEN = (*NIFTI, NRRD[0], METAIMAGE[0])
"""Those of them that are written: with header and voxels in one file."""

_KNOWN = (*VOLUME, *PAIR[::-1], *DICOM, *SURFACE, *CSV, ".dicom", ".ima", ".zip")
"""Longest first where one ends like another."""


def suffix_of(path: Path) -> str:
    """Ending of a file's name, double ones included, as it is written; empty if we know none."""
    for suffix in _KNOWN:
        if path.name.lower().endswith(suffix):
            return path.name[-len(suffix) :]
    return ""


def stem(path: Path) -> str:
    """Name of a file without the ending of its format: ``ct`` for ``ct.nii.gz``."""
    # By the name alone: what lies there may change. What follows a dot in a folder's name, or in
    # a UID that names a file, is no ending.
    suffix = suffix_of(path)
    return path.name.removesuffix(suffix) or path.name or path.resolve().name  # "." has none


def list_suffixes(suffixes: tuple[str, ...]) -> str:
    """List endings for a sentence: ``.nii.gz, .nii or .mha``."""
    *first, last = suffixes
    return f"{', '.join(first)} or {last}" if first else last
