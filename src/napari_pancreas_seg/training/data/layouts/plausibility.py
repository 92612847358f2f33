"""Checks whether a mask on a CT is plausible."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np

from napari_pancreas_seg.arrays import Labels, Mask
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.body import find_body
from napari_pancreas_seg.mask.measures import volume_ml
from napari_pancreas_seg.training.data.layouts.flips import flip_overlaps, name_flips
from napari_pancreas_seg.volume import CTVolume, bounding_box

VOLUME_ML = (15.0, 250.0)
"""An adult's gland has 40 to 180 mL (Saisho et al. 2007, doi:10.1002/ca.20543); a tumour adds."""
MEDIAN_HU = (-30.0, 220.0)
"""Fatty glands without contrast agent, and glands in the arterial phase."""
AIR_HU = -300
AIR_SHARE = 0.01
OUTSIDE_SHARE = 0.01
LARGE_PIECE = 0.1
"""Of the mask's volume; islands below are strokes that went astray, or a tail's tip."""
LARGE_PIECE_ML = 1.0
CLEARLY_BETTER = 0.1
"""By so much another way to lay the mask must fit better: see `flip_overlaps`."""
CLEAR_MARGIN = 0.02
"""By so much the way it lies must be ahead of others to be told from them."""
MISPLACED_MM = 15.0
"""The gland's middle lies in front of the body's (-51 to 5 mm in 50 patients of NIH Pancreas-CT)
and to the left of it (-3 to 50 mm): mirrored, most would be farther off than this."""
WHOLE_MM = 60.0
"""A scan that covers less along z does not show a whole gland, of which alone more can be said."""

_PANCREAS = re.compile(r"pancrea", re.IGNORECASE)


def suspicious_findings(
    volume: CTVolume, labels: Labels, classes: Mapping[str, int], reviewed: bool = False
) -> list[str]:
    """List what is suspicious about a label map on its CT, one sentence each."""
    if bounding_box(labels) is None:
        return ["The mask is empty."]
    found: list[str] = []
    for name, value in classes.items():
        mask = labels == value
        if not mask.any():
            found.append(f"There is no {name} in it.")
            continue
        found += _density(volume, mask, name)
        if not reviewed:
            found += _pieces(volume, mask, name)
    outside = _share_outside(volume, labels)
    if outside > OUTSIDE_SHARE:
        found.append(f"{outside:.0%} of the mask lies outside of the body.")
    gland = [value for name, value in classes.items() if _PANCREAS.search(name)]
    mask = np.isin(labels, gland).astype(np.uint8) if len(classes) > 1 else labels
    if gland and mask.any():
        found += _flips(volume, mask)
        if not reviewed and len(mask) * volume.spacing[0] >= WHOLE_MM:
            found += _place(volume, mask)
            found += _size(volume, mask)
    return found


def _density(volume: CTVolume, mask: Mask, name: str) -> Iterator[str]:
    values = volume.hu[mask]
    median, air = float(np.median(values)), float(np.mean(values < AIR_HU))
    if not MEDIAN_HU[0] <= median <= MEDIAN_HU[1]:
        yield f"The median in {name} is {median:.0f} HU, which is no soft tissue."
    elif air > AIR_SHARE:
        yield f"{air:.0%} of {name} is air."


def _pieces(volume: CTVolume, mask: Mask, name: str) -> Iterator[str]:
    from scipy import ndimage

    box = bounding_box(mask)
    if box is None or len(mask) == 1:
        return
    pieces, _ = ndimage.label(mask[box], np.ones((3, 3, 3)))
    sizes_ml = np.bincount(pieces.ravel())[1:] * volume.grid.voxel_volume_mm3 / 1000
    large = sizes_ml[sizes_ml >= max(LARGE_PIECE * sizes_ml.sum(), LARGE_PIECE_ML)]
    if len(large) > 1:
        sizes = ", ".join(f"{size:.1f}" for size in sorted(large, reverse=True))
        yield f"There are {len(large)} separate pieces of {name} ({sizes} mL)."


def _share_outside(volume: CTVolume, labels: Labels) -> float:
    """Share of the mask outside of the body; 0 where air was cut off, so that none can be told."""
    from scipy import ndimage

    if volume.hu.min() > AIR_HU:
        return 0.0
    counts = np.count_nonzero(labels, axis=(1, 2))
    chosen = np.flatnonzero(counts)
    chosen = chosen[:: max(1, len(chosen) // 20)]
    outside = 0
    for z in chosen:
        pieces, n = ndimage.label(ndimage.binary_opening(volume.hu[z] > AIR_HU))
        if n:
            sizes = np.bincount(pieces.ravel())
            sizes[0] = 0
            body = ndimage.binary_fill_holes(pieces == sizes.argmax())
            outside += int(np.count_nonzero(labels[z][~body]))
        else:
            outside += int(counts[z])
    return outside / int(counts[chosen].sum())


def _flips(volume: CTVolume, mask: Labels) -> Iterator[str]:
    """Whether the mask would fit the CT better if it were flipped."""
    scores = flip_overlaps(volume, mask)
    as_it_is = next(found.score for found in scores if not any(found.flips))
    other = next(found for found in scores if any(found.flips))
    if other.score - as_it_is > CLEARLY_BETTER:
        yield (
            f"The mask would fit the CT better {name_flips(other.flips)} (overlap "
            f"{other.score:.2f} instead of {as_it_is:.2f}): it may be turned the wrong way."
        )
    elif len(mask) > 1 and as_it_is - other.score < CLEAR_MARGIN:
        yield (
            f"Which way round the mask lies is hard to tell: its overlap is {as_it_is:.2f}, and "
            f"{other.score:.2f} {name_flips(other.flips)}. Look at the picture."
        )


def _place(volume: CTVolume, mask: Labels) -> Iterator[str]:
    """Whether the gland lies where a patient has it: else CT and mask are turned together."""
    try:
        body = find_body(volume.hu, volume.spacing)
    except PancreasSegError:
        return
    box = bounding_box(mask)
    assert box is not None
    part = mask[box] > 0
    middles = [
        float(np.average(np.arange(edge.start, edge.stop), weights=part.sum(axis=others)))
        for edge, others in zip(box[1:], ((0, 2), (0, 1)), strict=True)
    ]
    back, left = (
        (middle - body) * step
        for middle, body, step in zip(middles, body.centre, volume.spacing[1:], strict=True)
    )
    if back > MISPLACED_MM:
        yield (
            f"The gland lies {back:.0f} mm behind the middle of the body: the CT with its mask "
            "may be upside down (front and back exchanged)."
        )
    if left < -MISPLACED_MM:
        yield (
            f"The gland lies {-left:.0f} mm to the right of the middle of the body: the CT with "
            "its mask may be mirrored (left and right exchanged)."
        )
    counts = np.count_nonzero(mask, axis=(1, 2))
    if counts[~body.plausible].sum() > counts.sum() / 2:
        yield (
            "The gland lies farther from the lower end of the lungs than it can: the CT with its "
            "mask may be upside down (head and feet exchanged)."
        )


def _size(volume: CTVolume, mask: Labels) -> Iterator[str]:
    if mask[0].any() or mask[-1].any():
        yield "The gland reaches the end of the scan: a part of it may be missing."
        return
    size = volume_ml(mask, volume.grid)
    if not VOLUME_ML[0] <= size <= VOLUME_ML[1]:
        yield f"{size:.1f} mL are unusual for a pancreas (an adult's has 40 to 180)."
