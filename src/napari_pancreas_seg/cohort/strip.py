"""A small picture of a case for the quality page: slices and a coronal view, the mask outlined."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from napari_pancreas_seg.arrays import Array, Labels
from napari_pancreas_seg.cohort.overview import MASK_COLOUR, WINDOW_HU, fullest_slice
from napari_pancreas_seg.io import stem
from napari_pancreas_seg.io.files import atomic_write
from napari_pancreas_seg.volume import CTVolume, bounding_box

FOLDER = "pictures"
SLICES = 5
TILE = (150, 200)
"""Rows and columns of a slice in the picture, in pixels."""
FIELD_MM = (120.0, 160.0)
"""What a slice shows around the mask, unless the mask is larger."""
MARGIN_MM = 15.0
MOST_BYTES = 50_000


def strip_path(mask: Path) -> Path:
    """Path of the picture of a mask."""
    return mask.parent / FOLDER / f"{stem(mask)}.jpg"


def draw_strip(volume: CTVolume, mask: Array, path: Path) -> None:
    """Draw slices (Z, Y, X) and the coronal one with the mask's outline, as a small JPEG."""
    found = bounding_box(mask)
    box = found or tuple(slice(0, n) for n in mask.shape)
    ends = box[0].start, box[0].stop - 1
    shown = sorted({round(z) for z in np.linspace(*ends, SLICES + 2)[1:-1]})
    tiles = [(0, z, f"{z}") for z in shown] + [(1, fullest_slice(mask, None, 1), "coronal")]
    picture = Image.new("RGB", (TILE[1] * (SLICES + 1), TILE[0]))
    for column, (axis, index, words) in enumerate(tiles):
        tile = Image.fromarray(_tile(volume, mask, axis, index, box))
        draw = ImageDraw.Draw(tile)
        draw.text((4, 2), words, fill="white", stroke_width=1, stroke_fill="black")
        picture.paste(tile, (TILE[1] * column, 0))
    for quality in (85, 75, 60, 45, 30):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True, subsampling=0)
        if file.tell() <= MOST_BYTES:
            break
    with atomic_write(path, overwrite=True) as out:
        out.write(file.getvalue())


def _tile(volume: CTVolume, mask: Array, axis: int, index: int, box: tuple[slice, ...]) -> Labels:
    """A slice across an axis, (rows, columns, RGB), around the mask's box."""
    from scipy import ndimage

    mm = [edge * (part.stop - part.start) for edge, part in zip(volume.spacing, box, strict=True)]
    wide = max(max(FIELD_MM[0], mm[a] + 2 * MARGIN_MM) / TILE[0] for a in (0, 1))
    wide = max(wide, (max(FIELD_MM[1], mm[2] + 2 * MARGIN_MM)) / TILE[1])
    axes = (1 - axis, 2)
    places = []
    for a, n in zip(axes, TILE, strict=True):
        middle = (box[a].start + box[a].stop - 1) / 2
        along = middle + (np.arange(n) - (n - 1) / 2) * wide / volume.spacing[a]
        places.append(along[::-1] if a == 0 else along)  # the head is at the top
    points = np.stack(np.meshgrid(*places, indexing="ij"))
    plane = np.take(volume.hu, index, axis=axis).astype(np.float32)
    hu = ndimage.map_coordinates(plane, points, order=1, cval=WINDOW_HU[0])
    grey = np.clip((hu - WINDOW_HU[0]) / (WINDOW_HU[1] - WINDOW_HU[0]), 0, 1) * 255
    inside = ndimage.map_coordinates(
        (np.take(mask, index, axis=axis) != 0).astype(np.float32), points, order=1
    )
    inside = inside > 0.5
    tile = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    tile[inside & ~ndimage.binary_erosion(inside)] = ImageColor.getrgb(MASK_COLOUR)
    return tile
