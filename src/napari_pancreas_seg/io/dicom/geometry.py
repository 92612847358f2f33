"""Where the slices of a DICOM stack lie: their order, and one affine for all of them.

Not by a library: SimpleITK takes the gap between the first two slices for all of them and drops a
tilt, highdicom refuses a tilt. Here a gap is named, and a tilt becomes a sheared affine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from napari_pancreas_seg.arrays import Floats
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.dicom.slices import Slice
from napari_pancreas_seg.io.dicom.stacks import SAME_PLACE_MM, UNEVEN
from napari_pancreas_seg.io.raw import LPS_TO_RAS

_SQUARE = 1e-2  # how far two direction cosines may be from unit vectors at right angles
_NOTED_MM = 0.05  # slices that lie further than this from an even spacing are worth a note
_AGREE = 0.05  # part by which distances may differ that headers round
_TILTED = np.deg2rad(0.5)  # a stack that leans less is straight but for rounding


def place(
    name: str,
    slices: Sequence[Slice],
    same_pixels: Callable[[Slice, Slice], bool],
    others: Sequence[Slice] = (),
) -> tuple[tuple[Slice, ...], Floats, tuple[str, ...]]:
    """Sort slices along their normal, never by number or name; with their affine (RAS+), notes."""
    row, column, spacing = _axes(name, slices[0])
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    corners = [_position(name, item) for item in slices]
    order = np.argsort([corner @ normal for corner in corners], kind="stable")
    ordered = [slices[k] for k in order]
    positions = np.array([corners[k] for k in order])
    kept = _without_repeats(name, ordered, positions, same_pixels)
    notes = []
    if len(kept) < len(ordered):
        repeated = len(ordered) - len(kept)
        were = "1 slice of this CT was" if repeated == 1 else f"{repeated} slices of this CT were"
        notes.append(f"{were} there more than once, with the same values: each was taken once.")
    ordered, positions = [ordered[k] for k in kept], positions[kept]
    step, more = _step(name, positions, normal, slices[0], others)
    more += _every_other(ordered, float(abs(step @ normal)))
    affine = np.eye(4)
    affine[:3] = np.column_stack([row * spacing[1], column * spacing[0], step, positions[0]])
    return tuple(ordered), LPS_TO_RAS @ affine, (*notes, *more)


def _axes(name: str, item: Slice) -> tuple[Floats, Floats, tuple[float, float]]:
    """Return unit vectors along columns' and rows' index, and the spacing."""
    plane = item.plane
    if plane.orientation is None:
        raise PancreasSegError(
            f"'{name}' does not say how its slices are oriented (no Image Orientation Patient), "
            "so no mask could be placed; export the series again from its archive."
        )
    if plane.spacing is None or not all(1e-3 <= length <= 100 for length in plane.spacing):
        raise PancreasSegError(
            f"'{name}' does not say how large its pixels are (no usable Pixel Spacing), so no mask "
            "could be placed; export the series again from its archive."
        )
    row, column = plane.orientation[:3], plane.orientation[3:]
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(float(row @ column))) > _SQUARE:
        raise PancreasSegError(
            f"'{name}' is damaged: its Image Orientation Patient is not made of two unit vectors "
            "at right angles; export the series again from its archive."
        )
    return row / lengths[0], column / lengths[1], plane.spacing


def _position(name: str, item: Slice) -> Floats:
    if item.plane.position is None:
        raise PancreasSegError(
            f"'{name}' does not say where its slices lie (no Image Position Patient in "
            f"'{item.file.path.name}'), so their order and spacing are unknown; export the series "
            "again from its archive."
        )
    return item.plane.position


def _without_repeats(
    name: str,
    slices: Sequence[Slice],
    positions: Floats,
    same_pixels: Callable[[Slice, Slice], bool],
) -> list[int]:
    kept: list[int] = []
    for k, position in enumerate(positions):
        if not kept or np.abs(position - positions[kept[-1]]).max() > SAME_PLACE_MM:
            kept.append(k)
        elif not same_pixels(slices[kept[-1]], slices[k]):
            raise PancreasSegError(
                f"'{name}' holds different slices at the same place ({slices[kept[-1]].label} and "
                f"{slices[k].label}) and does not say which belong together; give a folder "
                "with the files of one acquisition."
            )
    return kept


def _step(
    name: str, positions: Floats, normal: Floats, item: Slice, others: Sequence[Slice]
) -> tuple[Floats, tuple[str, ...]]:
    """Return the way from a slice to the next, or say why there is none for all of them."""
    count = len(positions)
    if count == 1:
        thickness = item.plane.thickness
        usable = 1e-3 <= thickness <= 100
        taken = thickness if usable else 1.0
        how = "thickness is taken as" if usable else "thickness is not said and is taken as"
        return normal * taken, (f"This CT has one slice; its {how} {taken:g} mm.",)
    heights = positions @ normal
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    worst = int(np.argmax(np.abs(gaps - usual)))
    if usual <= 0 or abs(gaps[worst] - usual) > UNEVEN * usual:
        stranger = _stranger(others, normal, heights[worst : worst + 2], item)
        raise PancreasSegError(stranger or _gap(name, gaps, usual, worst, heights))
    step = (positions[-1] - positions[0]) / (count - 1)
    line = positions[0] + np.outer(np.arange(count), step)
    away = np.linalg.norm(positions - line, axis=1)
    if away.max() > UNEVEN * usual:
        raise PancreasSegError(
            f"The slices of '{name}' do not lie on a line: slice {int(away.argmax()) + 1} of "
            f"{count} is {away.max():.2f} mm from where the others put it (their distances run "
            f"from {gaps.min():.3g} to {gaps.max():.3g} mm); export the series again, or "
            "resample it to an even spacing."
        )
    notes = []
    if away.max() > _NOTED_MM:
        notes.append(
            f"The slices of this CT are not quite evenly spaced: they were taken as if, which "
            f"moves none by more than {away.max():.2f} mm."
        )
    lean = np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1))
    if lean > _TILTED:
        notes.append(
            f"The stack of this CT leans by {np.rad2deg(lean):.1f}° (a tilted gantry): nothing was "
            "resampled, the affine is sheared, and masks lie on the slices as they are. Some "
            "programs do not open sheared NIfTI files."
        )
    return step, tuple(notes)


def _every_other(ordered: Sequence[Slice], gap: float) -> tuple[str, ...]:
    """Note slices that may be missing evenly: by their numbers and by the header's distance."""
    said = ordered[0].plane.thickness
    numbers = {abs(int(step)) for step in np.diff([item.instance for item in ordered])}
    every = numbers.pop() if len(numbers) == 1 else 0
    # Numbers alone count two series in turn, a distance alone is gaps between thin slices.
    if every < 2 or not said or abs(gap / said / every - 1) > _AGREE:
        return ()
    return (
        f"The slices of this CT lie {gap:.3g} mm apart, {every} times the {said:.3g} mm that the "
        f"header says, and their numbers are {every} apart: those between may be missing.",
    )


def _gap(name: str, gaps: Floats, usual: float, worst: int, heights: Floats) -> str:
    gap, where = gaps[worst], f"between slices {worst + 1} and {worst + 2} of {len(heights)}"
    at = f"(at {heights[worst]:.2f} and {heights[worst + 1]:.2f} mm along the stack)"
    missing = round(gap / usual) - 1 if usual > 0 else 0
    if missing >= 1 and abs(gap - (missing + 1) * usual) <= UNEVEN * usual:
        what = "1 slice is" if missing == 1 else f"{missing} slices are"
        return (
            f"'{name}' is not complete: {where} there are {gap:.3g} mm instead of {usual:.3g} mm "
            f"{at}, so {what} missing; copy or export the whole series again."
        )
    return (
        f"The slices of '{name}' are unevenly spaced: {where} there are {gap:.3g} mm instead of "
        f"{usual:.3g} mm {at}; export the series again, or give a folder with one of its volumes."
    )


def _stranger(others: Sequence[Slice], normal: Floats, between: Floats, item: Slice) -> str:
    """Say which slice of another kind lies where one is missing; empty if none does."""
    for other in others:
        place = other.plane
        if place.position is None or not between[0] < place.position @ normal < between[1]:
            continue
        what = "is of another phase, acquisition or series than the others"
        if (place.rows, place.columns) != (item.plane.rows, item.plane.columns):
            usual = f"{item.plane.columns}×{item.plane.rows}"
            what = f"has {place.columns}×{place.rows} pixels instead of {usual}"
        elif place.spacing != item.plane.spacing:
            what = "has another pixel spacing than the others"
        return (
            f"The slice {other.label} (at {place.position @ normal:.2f} mm along the stack) "
            f"{what}, so the CT lacks one there; export the series again."
        )
    return ""
