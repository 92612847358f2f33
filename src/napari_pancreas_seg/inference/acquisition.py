"""How a CT was taken, as far as its values tell: contrast phase, noise, metal.

What cannot be known is None, or the phase ``"unknown"``: for it the aorta must be found before the
spine in several slices of the abdomen, as a disk of even HU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy

from napari_pancreas_seg.arrays import Array, Spacing
from napari_pancreas_seg.inference.blocks import block_means
from napari_pancreas_seg.inference.body import Body
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.inference.scan_context import body_in, ct_warnings
from napari_pancreas_seg.tissue import evenly_spread, peaks
from napari_pancreas_seg.volume import CTVolume

CHEST_SHARE = 0.5
"""With lungs in more of the slices, a CT is not taken for one of the abdomen."""
MOST_SLICES = 16
FINE_MM = 1.6
"""Size of the pixels that vessels are looked for in."""
FEWEST_SLICES = 3
BONE_HU = 220
VESSEL_HU = (250, 190, 145, 110, 85)
"""Thresholds above which a vessel is a disk of its own, tried from the highest."""
AORTA_CM2 = (1.3, 9.5)
THINNEST_MM = 10.0
"""What is thinner is cut off from a disk."""
IN_FRONT_MM = (12.0, 62.0)
BESIDE_MM = (-16.0, 45.0)
"""Where the aorta's middle lies from the spine's: to the front, and to the patient's left."""
ARTERIAL_HU, VENOUS_HU, ENHANCED_HU = 200, 115, 90
"""An aorta from so much: arterial, portal-venous, enhanced."""
AORTA_TO_LIVER = 2.4, 3.5
"""Up to so many times as bright as the liver: portal-venous; from so many times: arterial."""
PLAIN_SHARE = 0.02
"""Without contrast agent, at most that share of soft tissue is as bright as an enhanced vessel."""

SQUARE, FEWEST_SQUARES = 8, 40
"""Pixels along a square in which noise is measured, and how many squares in tissue it takes."""
NOISY_HU = 35.0
METAL_HU, METAL_ML = 2600, 0.1
"""Bone and contrast agent stay below; so much of it leaves streaks."""


def find_acquisition(volume: CTVolume, body: Body) -> dict[str, Any]:
    """Find phase and its HU, noise (SD in HU), metal (mL) and the body's facts, for JSON."""
    z = evenly_spread(np.flatnonzero(body.plausible), MOST_SLICES)
    planes = body.shown(volume.hu[z])
    sides = ("front", "back", "right", "left")
    chest = body.chest > CHEST_SHARE
    found: dict[str, Any] = {
        "phase": "unknown",
        "aorta_hu": None,
        "liver_hu": None,
        "noise_hu": _noise(planes),
        "metal_ml": 0.0 if chest else _metal(volume, body),
        "slice_spacing_mm": round(volume.spacing[0], 4),
        "cut_off": [side for side, end in zip(sides, body.edges, strict=True) if end is not None],
        "exchanged": list(body.turned),
        "contrast_shift_hu": int(body.shift),
        "chest_share": round(body.chest, 3),
    }
    if chest or body.turned or len(z) < FEWEST_SLICES or body.floor not in (None, 0.0):
        return found
    step = tuple(max(1, round(FINE_MM / s)) for s in volume.spacing[1:])
    mm = (step[0] * volume.spacing[1], step[1] * volume.spacing[2])
    fine = np.stack([block_means(plane, step) for plane in planes])
    if body.spine is None:
        return found
    at = [np.interp(z, body.spine[:, 0], body.spine[:, axis]) for axis in (1, 2)]
    y, x = ((place - (k - 1) / 2) / k for place, k in zip(at, step, strict=True))
    spine = list(zip(y.tolist(), x.tolist(), strict=True))
    aorta, liver = _aorta(fine, spine, mm), _liver(fine, spine, mm)
    plain = _share_enhanced(fine) <= PLAIN_SHARE
    return found | {"phase": _phase(aorta, liver, plain), "aorta_hu": aorta, "liver_hu": liver}


def acquisition_and_warnings(volume: CTVolume) -> tuple[dict[str, Any], list[str]]:
    """Return the result of `find_acquisition`, empty without a body, and all warnings on the CT."""
    body = body_in(volume)
    found = {} if body is None else find_acquisition(volume, body)
    return found, [*ct_warnings(volume, body), *acquisition_warnings(found)]


def acquisition_warnings(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Return warnings on noise and metal, which may spoil a mask."""
    notes = []
    if (found.get("noise_hu") or 0) > NOISY_HU:
        notes.append(
            f"The CT is noisy: even tissue varies by {found['noise_hu']:.0f} HU (SD). Thicker "
            "slices or a smoother reconstruction may give a better mask."
        )
    if found.get("metal_ml"):
        notes.append("There is metal in the body: its streaks may spoil the mask nearby.")
    return tuple(notes)


def _phase(aorta: float | None, liver: float | None, plain: bool) -> str:
    if aorta is None:
        return "no contrast agent" if plain else "unknown"
    if liver is None:
        return "unknown"
    if aorta >= ARTERIAL_HU and aorta > AORTA_TO_LIVER[1] * liver:
        return "arterial"
    if aorta >= VENOUS_HU and aorta < AORTA_TO_LIVER[0] * liver:
        return "portal-venous"
    if ENHANCED_HU <= aorta < VENOUS_HU and abs(aorta - liver) < 25:
        return "delayed"
    return "unknown"


def _aorta(fine: Array, spine: list[tuple[float, float]], mm: tuple[float, float]) -> float | None:
    """HU of the aorta, if a disk of one HU lies in front of the spine in many slices."""
    disks = [
        disk
        for plane, middle in zip(fine, spine, strict=True)
        if (disk := _disk(plane, middle, mm)) is not None
    ]
    if len(disks) < max(FEWEST_SLICES, 0.3 * len(fine)):
        return None
    hu, y, x = np.array(disks).T
    near = np.hypot((y - np.median(y)) * mm[0], (x - np.median(x)) * mm[1]) < 25
    near &= np.abs(hu - np.median(hu)) < 0.2 * np.median(hu)
    if near.sum() < max(FEWEST_SLICES, 0.25 * len(fine)):
        return None
    return round(float(np.median(hu[near])), 1)


def _disk(plane: Array, spine: tuple[float, float], mm: tuple[float, float]) -> Spacing | None:
    """HU and place, from the spine, of the disk in a slice that may be the aorta."""
    top = max(0, round(spine[0] - IN_FRONT_MM[1] / mm[0] - 10))
    left = max(0, round(spine[1] + BESIDE_MM[0] / mm[1] - 10))
    part = plane[
        top : max(top, round(spine[0] + 10)),
        left : max(left, round(spine[1] + BESIDE_MM[1] / mm[1] + 10)),
    ]
    r = max(1, round(THINNEST_MM / 2 / mm[0]))
    round_ = np.hypot(*np.ogrid[-r : r + 1, -r : r + 1]) <= r + 0.2
    for least in VESSEL_HU:
        bright = scipy.ndimage.binary_opening(part > least, round_)
        pieces, _ = scipy.ndimage.label(bright)
        for number, box in enumerate(scipy.ndimage.find_objects(pieces), start=1):
            piece = pieces[box] == number
            size = [k * s for k, s in zip(piece.shape, mm, strict=True)]
            cm2 = piece.sum() * mm[0] * mm[1] / 100
            y, x = (edge.start + (edge.stop - edge.start - 1) / 2 for edge in box)
            ahead = (spine[0] - top - y) * mm[0]
            beside = (x - (spine[1] - left)) * mm[1]
            if (
                AORTA_CM2[0] <= cm2 <= AORTA_CM2[1]
                and max(size) < 1.5 * min(size)
                and piece.mean() > 0.68
                and IN_FRONT_MM[0] <= ahead <= IN_FRONT_MM[1]
                and BESIDE_MM[0] <= beside <= BESIDE_MM[1]
            ):
                core = scipy.ndimage.binary_erosion(piece, iterations=2)
                values = part[box][core if core.any() else piece]
                hu = float(np.median(values))
                grown = scipy.ndimage.binary_dilation(pieces == number, iterations=3)
                around = part[grown & (pieces != number)]
                # The core of a vertebra has a brighter rim.
                if values.std() < 0.15 * hu + 10 and (around > 1.2 * hu + 20).mean() < 0.1:
                    return hu, -ahead / mm[0], beside / mm[1]
    return None


def _liver(fine: Array, spine: list[tuple[float, float]], mm: tuple[float, float]) -> float | None:
    """The commonest HU of even tissue on the right; the liver's where there is one."""
    smooth = scipy.ndimage.gaussian_filter(fine, (0, 4 / mm[0], 4 / mm[1]))
    even = np.hypot(*np.gradient(smooth, axis=(1, 2))) < 4
    right = np.zeros_like(even)
    for k, (y, x) in enumerate(spine):
        right[k, : max(0, round(y)), : max(0, round(x - 25 / mm[1]))] = True
    values = smooth[even & right & (smooth > 20) & (smooth < 220)]
    if values.size * mm[0] * mm[1] / 100 < 30:  # cm² in all slices together
        return None
    found = [place for place, height in peaks(values, 20, 220, 50) if height > 0.5]
    return round(found[-1], 1) if found else None


def _share_enhanced(fine: Array) -> float:
    """Share of soft tissue, without bone and what is beside it, as bright as enhanced vessels."""
    near_bone = scipy.ndimage.binary_dilation(fine > BONE_HU, np.ones((1, 3, 3)), iterations=5)
    soft = (fine > 0) & (fine < BONE_HU) & ~near_bone
    return float((fine[soft] > ENHANCED_HU).mean()) if soft.any() else 1.0


def _noise(planes: Array) -> float | None:
    """SD in HU of the evenest soft tissue, in squares; None where there is little of it."""
    planes = planes[:: max(1, len(planes) // 8)]
    rows, columns = (n // SQUARE * SQUARE for n in planes.shape[1:])
    squares = planes[:, :rows, :columns].astype(np.float32)
    squares = squares.reshape(len(planes), rows // SQUARE, SQUARE, columns // SQUARE, SQUARE)
    mean = squares.mean(axis=(2, 4))
    soft = (mean > 20) & (mean < 180)
    if soft.sum() < FEWEST_SQUARES:
        return None
    square = np.einsum("nyaxb,nyaxb->nyx", squares, squares) / SQUARE**2
    sd = np.sqrt(np.maximum(square[soft] - mean[soft] ** 2, 0))
    return round(float(np.percentile(sd, 20)), 1)


def _metal(volume: CTVolume, body: Body) -> float:
    """Metal in what the network sees where a pancreas can lie, in mL; a voxel stands for four."""
    frame = body.frame(volume.grid.shape, volume.spacing, FrameSpec())
    rows, columns = (  # what lies in the air beside the body leaves no streaks in the gland
        slice(max(0, round(origin)), max(0, round(origin + step * (n - 1)) + 1), 2)
        for n, _, origin, step, _ in frame.axes
    )
    found = sum(
        np.count_nonzero(volume.hu[z, rows, columns] >= METAL_HU)
        for z in np.flatnonzero(body.plausible)
    )
    ml = 4 * found * volume.grid.voxel_volume_mm3 / 1000
    return round(float(ml), 3) if ml >= METAL_ML else 0.0
