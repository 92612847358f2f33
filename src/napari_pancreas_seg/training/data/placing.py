"""Where the frame lies on a labelled case, as inference would lay it.

A frame around the gland lies alike on all slices of a CT. Single slices of a patient are parts of
one CT too: pictures of the slice layout are cropped by the same margin on all sides, so that the
middle of each is the same place of the body, and the gland's box is sought over all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.classes import Classes
from napari_pancreas_seg.inference.frame import (
    Frame,
    FrameSpec,
    frame_around,
    place_frame,
)
from napari_pancreas_seg.training.data.layouts.cases import LabelledCase
from napari_pancreas_seg.training.data.layouts.slices import SliceRecord
from napari_pancreas_seg.volume import CTVolume

__all__ = ["check_classes", "gland_of_slices", "lay_frame", "middle_of_box", "mm_from_middle"]

Place = tuple[float, float]


def check_classes(spec: FrameSpec, labels: Mapping[str, int]) -> None:
    """Refuse a frame around the gland for classes that lie elsewhere.

    Raises
    ------
    PancreasSegError
        If there are such classes.
    """
    if spec.centre == "gland" and not Classes.of({"labels": labels}).only_gland:
        raise PancreasSegError(
            "The second stage of a cascade sees the surroundings of the pancreas alone: it learns "
            f"the pancreas and what lies in it, and not {', '.join(labels)}."
        )


def gland_of_slices(
    cases: Sequence[LabelledCase], values: Sequence[int], spec: FrameSpec
) -> dict[str, Place]:
    """Find the gland of each patient of whom there are single slices.

    Parameters
    ----------
    cases : sequence of LabelledCase
        Cases of any layout; whole CTs are left out.
    values : sequence of int
        Values of the gland in the label maps.
    spec : FrameSpec
        The frame; if it is centred on the body, nothing is read.

    Returns
    -------
    dict of str to tuple of float
        By patient: (towards the back, towards the patient's left) in mm from the slices' middle
        to the centre of the box around the gland in all of them.
    """
    if spec.centre != "gland":
        return {}
    places: dict[str, list[npt.NDArray[np.float64]]] = {}
    for case in cases:
        if isinstance(case, SliceRecord):
            volume, labels = case.load()
            inside = mm_from_middle(np.isin(labels[0], values), volume)
            places.setdefault(case.patient, []).append(inside)
    found = {patient: middle_of_box(parts) for patient, parts in places.items()}
    return {patient: place for patient, place in found.items() if place is not None}


def mm_from_middle(gland: npt.NDArray[Any], volume: CTVolume) -> npt.NDArray[np.float64]:
    """Where a slice's pixels (Y, X) are not 0, in mm from the slice's middle, shape (n, 2)."""
    middle = (np.array(gland.shape) - 1) / 2
    return np.asarray((np.argwhere(gland) - middle) * volume.spacing[1:])


def middle_of_box(parts: Sequence[npt.NDArray[np.float64]]) -> Place | None:
    """Middle of the box around places, but for a hundredth on each side; None without any."""
    places = np.concatenate(parts)
    if not len(places):
        return None
    low, high = np.percentile(places, [1, 99], axis=0)
    y, x = np.round((low + high) / 2, 2).tolist()
    return y, x


def lay_frame(
    volume: CTVolume,
    labels: npt.NDArray[Any],
    values: Sequence[int],
    spec: FrameSpec,
    gland_mm: Place | None = None,
) -> Frame:
    """Lay a frame on a labelled CT.

    Parameters
    ----------
    volume : CTVolume
        The CT.
    labels : ndarray, shape (Z, Y, X)
        Its label map.
    values : sequence of int
        Values of the gland in it.
    spec : FrameSpec
        The frame.
    gland_mm : tuple of float, optional
        From `gland_of_slices`, for a single slice.

    Raises
    ------
    PancreasSegError
        If no slice holds any soft tissue.
    """
    if spec.centre == "gland" and gland_mm is not None:
        shape, spacing = volume.grid.shape[1:], volume.spacing
        middle = ((shape[0] - 1) / 2, (shape[1] - 1) / 2)
        centre = (middle[0] + gland_mm[0] / spacing[1], middle[1] + gland_mm[1] / spacing[2])
        return frame_around(centre, shape, spacing, spec)
    gland = np.isin(labels, values) if spec.centre == "gland" else None
    return place_frame(volume.hu, volume.spacing, spec, gland)
