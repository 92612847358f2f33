"""The body in a CT and warnings for the user, found before the network runs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.body import Body, find_body
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.volume import CTVolume

THICK_MM = 6.0
FEW_SLICES = 10
SHORT_MM = 60.0
NARROW_MM = 200.0
CHEST_SHARE = 0.7
FILL_HU = -200
"""What is filled with less looks like air, and need not be mentioned."""

_TURNED = {
    "front and back": "the spine lies in front",
    "left and right": "the liver lies on the left",
    "head and feet": "the lungs lie below the liver",
}


@dataclass(frozen=True)
class ScanContext:
    """The body found in a CT, and warnings for the user."""

    body: Body
    notes: tuple[str, ...]

    @classmethod
    def of(cls, volume: CTVolume) -> ScanContext:
        """Find the body and warnings. PancreasSegError if no slice holds any soft tissue."""
        body = find_body(volume.hu, volume.spacing)
        return cls(body, tuple(ct_warnings(volume, body)))


def body_in(volume: CTVolume) -> Body | None:
    """The body in a CT, None if there is none."""
    try:
        return find_body(volume.hu, volume.spacing)
    except PancreasSegError:
        return None


def ct_warnings(volume: CTVolume, body: Body | None) -> list[str]:
    """Return a sentence for each thing in a CT that may spoil a mask; `body` is from `body_in`."""
    if body is None:
        return [*_about_grid(volume), "No body was found: no soft tissue that holds together."]
    return [*_about_grid(volume), *_about_body(volume, body), *_about_contrast(body)]


def about_nothing_found(
    scan: ScanContext, highest: float, threshold: float, *, part: bool = False
) -> str:
    """Explain an empty mask: what the network saw, and possible reasons."""
    body, reasons = scan.body, []
    if part:
        reasons.append("only a part of the CT was asked for")
    if body.turned:
        reasons.append("the CT seems to lie the wrong way round")
    if any(end is not None for end in body.edges):
        reasons.append("the body is cut off")
    if body.chest > CHEST_SHARE:
        reasons.append("this is a CT of the chest")
    if any(re.search("slices cover|There (are|is) only", note) for note in scan.notes):
        reasons.append("there are few slices")
    if body.shift:
        reasons.append("there is no contrast agent")
    if body.floor is not None:
        reasons.append("its values are clipped")
    if highest > threshold:
        seen = (
            f"What the network saw (probability up to {highest:.0%}) is too small or lies where no "
            "pancreas can."
        )
    else:
        seen = (
            f"The highest probability that the network gave is {highest:.0%}, and "
            f"{threshold:.0%} is the threshold."
        )
    why = (
        f"The reason may be: {'; '.join(reasons)}."
        if reasons
        else "Check that the CT shows the upper abdomen, or try a lower threshold."
    )
    return f"No pancreas was found. {seen} {why}"


def _about_grid(volume: CTVolume) -> list[str]:
    z, y, x = volume.spacing
    n_slices, rows, columns = volume.grid.shape
    notes = []
    if z > THICK_MM:
        notes.append(f"The slices are {z:.3g} mm apart: small parts of the gland may be missed.")
    if n_slices < FEW_SLICES:
        there = "is only 1 slice" if n_slices == 1 else f"are only {n_slices} slices"
        notes.append(f"There {there}.")
    elif n_slices * z < SHORT_MM:
        notes.append(
            f"The slices cover {n_slices * z / 10:.1f} cm only; the pancreas spans about 10 cm."
        )
    if max(rows * y, columns * x) < NARROW_MM:
        notes.append(
            f"The slices show {columns * x / 10:.0f} × {rows * y / 10:.0f} cm, less than a body: "
            "a cropped CT may give a worse mask."
        )
    return notes


def _about_body(volume: CTVolume, body: Body) -> list[str]:
    notes = []
    if (cut := _cut_within_frame(volume, body)) and not _narrow(volume):
        notes.append(
            f"The body is cut off {_listed(cut)}: the network was shown a mirror image of what is "
            "there instead, and the mask may be worse."
        )
    bright = [f"{v:g}" for v in body.fill if v > FILL_HU and v != body.floor]
    if bright:
        notes.append(
            f"Areas filled with {' and '.join(bright)} HU were taken for air and not for tissue."
        )
    if body.turned:
        facts = " and ".join(_TURNED[way] for way in body.turned)
        notes.append(
            f"{facts[0].upper()}{facts[1:]}, if the orientation in the file is right: "
            f"{' and '.join(body.turned)} may be exchanged. Nothing was turned; check the "
            "orientation, because the mask is unreliable."
        )
    if body.chest > CHEST_SHARE:
        notes.append(
            f"Lungs are in {body.chest:.0%} of the slices: this is a CT of the chest, and most or "
            "all of the pancreas lies below it."
        )
    return notes


def _about_contrast(body: Body) -> list[str]:
    if not body.shift:
        return []
    return [
        "The soft tissue is darker than in portal-venous CT, so the network was shown values "
        f"{body.shift} HU higher; without contrast agent the mask is less reliable."
    ]


def _narrow(volume: CTVolume) -> bool:
    _, rows, columns = volume.grid.shape
    return max(rows * volume.spacing[1], columns * volume.spacing[2]) < NARROW_MM


def _cut_within_frame(volume: CTVolume, body: Body) -> list[str]:
    """List the sides on which the body is cut off within the frame."""
    frame = body.frame(volume.grid.shape, volume.spacing, FrameSpec())
    spans = [(origin, origin + step * (n - 1)) for n, _, origin, step, _ in frame.axes]
    names = ("in front", "behind", "on the right", "on the left")
    return [
        name
        for i, (name, end) in enumerate(zip(names, body.edges, strict=True))
        if end is not None and spans[i // 2][0] < end < spans[i // 2][1]
    ]


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
