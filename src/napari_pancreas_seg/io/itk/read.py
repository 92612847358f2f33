"""Reading NRRD and MetaImage, with data in the file or in one beside it.

SimpleITK says how a header places the volume, so that it lies where 3D Slicer shows it; it sees a
header only after `header` has approved of it.
"""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from napari_pancreas_seg.arrays import Array, Floats, Labels
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.deflate import inflated
from napari_pancreas_seg.io.itk.header import VoxelLayout, parse_metaimage, parse_nrrd
from napari_pancreas_seg.io.raw import LPS_TO_RAS, MAP_CONTENT, RawImage
from napari_pancreas_seg.io.suffixes import NRRD
from napari_pancreas_seg.io.voxels import check_shape, check_size, read_voxels, reading


class TextHeader(NamedTuple):
    """Which files a volume was read from: that of the header, and another one with its data."""

    files: tuple[Path, ...]


def read(path: Path) -> RawImage:
    """Read a NRRD or MetaImage file."""
    with reading(path, _name(path)):
        layout = layout_of(path)
        if not layout.sized:  # ITK would take 1 mm
            raise PancreasSegError(
                f"'{path.name}' cannot be placed in space because its header does not say how "
                "large its voxels are; repair its header or convert it again."
            )
        affine = _affine(path, layout)
        with _voxels(layout) as stream:
            stored = read_voxels(layout.data, stream, layout.shape, layout.dtype)
    notes: tuple[str, ...] = ()
    if layout.segments:
        stored, notes = _flattened(stored, layout.segments)
    if not layout.placed:
        notes += (
            "The header does not say how this CT lies in the patient (no anatomical space): left "
            "and right, front and back are assumed as ITK does.",
        )
    if layout.to_mm != 1:
        notes += ("The header gives lengths in another unit than mm: they were converted.",)
    return RawImage(
        stored,
        1.0,
        0.0,
        affine,
        TextHeader(tuple(dict.fromkeys((path, layout.data)))),
        notes,
        layout.dtype.name,
        layout.content == MAP_CONTENT,
    )


def _flattened(
    layers: Array, segments: tuple[tuple[int, int], ...]
) -> tuple[Labels, tuple[str, ...]]:
    """Make one label map of layers (L, I, J, K), in which segments overlap."""
    labels = np.zeros(layers.shape[1:], np.uint8, order="F")
    values = [value for _, value in segments]
    alike = len(set(values)) < len(values) or max(values) > 255
    overlap = False
    for number, (layer, value) in enumerate(segments, start=1):
        if layer >= len(layers) or number > 255:
            raise PancreasSegError("This file names layers or labels that it does not have.")
        inside = layers[layer] == value
        overlap = overlap or bool(labels[inside].any())
        labels[inside] = number if alike else value
    notes = []
    if alike:
        notes.append("Segments of this file share label values: they were numbered in their order.")
    if overlap:
        notes.append("Segments of this file overlap; where they do, the last one was taken.")
    return labels, tuple(notes)


def check_whole(path: Path) -> None:
    """Read a file to its end, where its checksum is verified, and keep nothing."""
    with reading(path, _name(path)):
        layout = layout_of(path)
        left = math.prod(layout.shape) * layout.dtype.itemsize
        with _voxels(layout) as stream:
            while block := stream.read(1 << 24):
                left -= len(block)
        if left > 0:
            raise EOFError


def _name(path: Path) -> str:
    return "NRRD" if path.name.lower().endswith(NRRD) else "MetaImage"


def layout_of(path: Path) -> VoxelLayout:
    """Find out where the voxels are, and refuse what cannot be."""
    layout = parse_nrrd(path) if _name(path) == "NRRD" else parse_metaimage(path)
    check_shape(path, layout.volume_shape)
    compressed = layout.encoding != "raw"
    # How many bytes of a compressed file are the header's does not matter: next to nothing.
    offset = layout.skip + (0 if compressed else max(layout.start, 0))
    check_size(layout.data, offset, layout.shape, layout.dtype, compressed=compressed)
    return layout


def _affine(path: Path, layout: VoxelLayout) -> Floats:
    """Ask SimpleITK how the header places the volume in space."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO(f"{'Nrrd' if _name(path) == 'NRRD' else 'Meta'}ImageIO")
    try:
        header = f"header{path.suffix}"
        with in_unicode(path, header, {header: path, layout.data.name: layout.data}) as name:
            reader.SetFileName(name)
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise PancreasSegError(
            f"'{path.name}' cannot be placed in space because its header is invalid; repair "
            "it or convert the CT again."
        ) from error
    size, components = tuple(reader.GetSize())[:3], reader.GetNumberOfComponents()
    if size != layout.volume_shape[:3] or (components != 1 and not layout.segments):
        raise PancreasSegError(
            f"'{path.name}' is not one volume of plain numbers; give one 3-D CT."
        )
    affine = affine_of(reader)
    affine[:3] *= layout.to_mm
    return affine


def affine_of(image: Any) -> Floats:
    """Where SimpleITK's image or reader places its voxels, in RAS+."""
    n, affine = image.GetDimension(), np.eye(4)
    direction = np.reshape(image.GetDirection(), (n, n))[:3, :3]
    affine[:3, :3] = direction * np.asarray(image.GetSpacing()[:3])
    affine[:3, 3] = image.GetOrigin()[:3]
    return LPS_TO_RAS @ affine


@contextlib.contextmanager
def in_unicode(path: Path, other: str, links: Mapping[str, Path]) -> Iterator[str]:
    """A path that SimpleITK can take, else `other` in a folder of links.

    It ends the process over a name that is no Unicode.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            for name, target in links.items():
                Path(folder, name).symlink_to(target.absolute(), target.is_dir())
            yield str(Path(folder, other))
    else:
        yield str(path)


@contextlib.contextmanager
def _voxels(layout: VoxelLayout) -> Iterator[io.BufferedIOBase]:
    """Open the data at their first voxel, decompressed."""
    with open(layout.data, "rb") as file:
        if layout.start < 0:
            file.seek(-layout.dtype.itemsize * math.prod(layout.shape), io.SEEK_END)
        else:
            file.seek(layout.start)
        stream = file if layout.encoding == "raw" else inflated(file)
        if layout.skip:
            stream.read(layout.skip)
        yield stream
