"""Which way the patient lies on the screen: letters at the edges, the three planes, the camera."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.components.overlays import TextOverlay
from napari.layers import Image
from qtpy.QtCore import QTimer

from napari_pancreas_seg._napari.layers.placement import METADATA_KEY, Placement, with_all_axes
from napari_pancreas_seg.arrays import Affine, Array

PLANES = ("axial", "coronal", "sagittal")

DRAWN_MS = 200
"""After which what was added has been drawn."""

_LETTERS = ("LR", "PA", "IS")
"""For every RAS axis, where it comes from and where it points."""
_OPPOSITE = dict(zip("LRPAIS", "RLAPSI", strict=True))
_POSITIONS = {
    "left": "middle_left",
    "right": "middle_right",
    "top": "top_center",
    "bottom": "bottom_center",
}
_ROWS_AND_COLUMNS = {"axial": "PL", "coronal": "IL", "sagittal": "IP"}
"""Where rows and columns of a plane point on a radiologist's screen: down, to the right."""


def knows_orientation(layer: Image) -> bool:
    """Whether anyone said how a CT lies in the patient: we who opened it, or an affine."""
    return METADATA_KEY in layer.metadata or not np.allclose(layer.affine.affine_matrix, np.eye(4))


def edge_letters(viewer: ViewerModel, placement: Placement) -> dict[str, str]:
    """Find the letters for the edges of the view: R, L, A, P, S, I; the nearest if oblique."""
    axes = _screen_axes(viewer)
    if axes is None:
        return {}
    right, bottom = (_letter(_world_to_patient(placement) @ axis) for axis in axes)
    return {"left": _OPPOSITE[right], "right": right, "top": _OPPOSITE[bottom], "bottom": bottom}


def show_plane(viewer: ViewerModel, placement: Placement, plane: str) -> None:
    """Show one of `PLANES` as a radiologist expects it: right on the left, head up."""
    first = viewer.dims.ndim - 3
    to_patient = _world_to_patient(placement)
    letters = [_letter(column) for column in to_patient.T]
    down, right = tuple(_ROWS_AND_COLUMNS[plane])
    rows, columns = (_axis_along(letters, letter) for letter in (down, right))
    if rows is None or columns is None or rows == columns:
        return  # so oblique that two axes share a letter
    (other,) = {0, 1, 2} - {rows, columns}
    viewer.dims.ndisplay = 2
    viewer.dims.order = (*range(first), first + other, first + rows, first + columns)
    viewer.scene.camera.orientation2d = (
        "down" if letters[rows] == down else "up",
        "right" if letters[columns] == right else "left",
    )
    seen = [layer for layer in viewer.layers if layer.visible]
    viewer.reset_view(layers=with_all_axes(viewer, seen))


def plane_on_screen(viewer: ViewerModel, placement: Placement) -> str | None:
    """Which of `PLANES` is shown; None in 3-D."""
    letters = edge_letters(viewer, placement) if viewer.dims.ndisplay == 2 else {}
    shown = set(letters.values())
    return next((plane for plane in PLANES if set(_ROWS_AND_COLUMNS[plane]) <= shown), None)


def unmirror(viewer: ViewerModel, placement: Placement) -> None:
    """Let the 3-D camera look along the axis that does not mirror the patient."""
    camera = viewer.scene.camera
    _, vertical, horizontal = camera.orientation
    flips = (str(vertical) == "up") + (str(horizontal) == "left")
    mirrored = np.linalg.det(_world_to_patient(placement)) < 0  # by a right-handed z, y, x
    away = mirrored != (flips % 2 == 1)
    camera.orientation = ("away" if away else "towards", vertical, horizontal)


def face_camera(viewer: ViewerModel, placement: Placement) -> None:
    shown = [axis - (viewer.dims.ndim - 3) for axis in viewer.dims.displayed]
    backwards, upwards = (patient_direction(placement, to) for to in ((0, -1, 0), (0, 0, 1)))
    view, up = (tuple(direction[shown].tolist()) for direction in (backwards, upwards))
    viewer.scene.camera.set_view_direction(view, up)


def patient_direction(placement: Placement, ras: tuple[float, float, float]) -> Array:
    """Direction in the viewer's last three axes of one in the patient (right, front, head)."""
    return np.linalg.inv(_world_to_patient(placement)) @ np.asarray(ras, dtype=float)


class OrientationLetters:
    def __init__(self, viewer: ViewerModel, placement: Callable[[], Placement | None]) -> None:
        self._viewer = weakref.ref(viewer)
        self._placement = placement
        dims, camera = viewer.dims.events, viewer.scene.camera.events
        for event in (dims.order, dims.ndisplay, dims.ndim, camera.orientation, camera.angles):
            event.connect(self.refresh)
        QTimer.singleShot(0, self._prepare)

    @property
    def letters(self) -> dict[str, str]:
        viewer = self._viewer()
        overlays = {} if viewer is None else viewer.canvas.overlays
        shown = {edge: overlays.get(_key(edge)) for edge in _POSITIONS}
        seen = {edge: each for edge, each in shown.items() if each and each.visible}
        return {edge: each.text for edge, each in seen.items() if each.opacity}

    def refresh(self, event: Any = None) -> None:
        viewer, placement = self._viewer(), self._placement()
        if viewer is None:
            return
        letters = {} if placement is None else edge_letters(viewer, placement)
        for edge in _POSITIONS:
            overlay = viewer.canvas.overlays.get(_key(edge))
            if overlay is not None:
                overlay.text = letters.get(edge, overlay.text)
                overlay.visible, overlay.opacity = edge in letters, 1.0

    def _prepare(self) -> None:
        """Let napari draw every letter once, unseen: the first time stalls it, and no CT waits."""
        viewer = self._viewer()
        if viewer is None:
            return
        overlays = viewer.canvas.overlays
        missing = [edge for edge in _POSITIONS if _key(edge) not in overlays]
        if missing:
            edge = missing[0]
            how = {"position": _POSITIONS[edge], "font_size": 14, "visible": True, "opacity": 0.0}
            overlays[_key(edge)] = TextOverlay(text="".join(_OPPOSITE), **how)
        # One at a time; and the last one is to be drawn before it changes.
        QTimer.singleShot(0 if missing else DRAWN_MS, self._prepare if missing else self.refresh)


def _screen_axes(viewer: ViewerModel) -> tuple[Array, Array] | None:
    """Where right and down on the screen point, along the viewer's last three axes."""
    dims, camera = viewer.dims, viewer.scene.camera
    shown = [axis - (dims.ndim - 3) for axis in dims.displayed]
    if dims.ndim < 3 or min(shown) < 0:
        return None
    signs = [str(word) in ("away", "down", "right") for word in camera.orientation]
    towards_back, downwards, rightwards = (1 if along else -1 for along in signs)
    if dims.ndisplay == 2:
        return np.eye(3)[shown[-1]] * rightwards, np.eye(3)[shown[-2]] * downwards
    to_world = np.eye(3)[shown].T  # from displayed axes
    view, up = np.array(camera.view_direction), np.array(camera.up_direction)
    hand = -towards_back * downwards * rightwards  # a mirrored axis turns the cross product
    return to_world @ (hand * np.cross(view, up)), to_world @ -up


def _world_to_patient(placement: Placement) -> Affine:
    """Matrix (3, 3) from a direction in the viewer to one in the patient (RAS)."""
    reference = placement.reference
    to_world = (placement.matrix @ reference.to_layer)[:3, :3]
    return reference.grid.affine[:3, :3] @ np.linalg.inv(to_world)


def _letter(direction: Array) -> str:
    axis = int(np.argmax(np.abs(direction)))
    return _LETTERS[axis][int(direction[axis] > 0)]


def _axis_along(letters: list[str], letter: str) -> int | None:
    """Which axis runs to a letter or away from it."""
    fitting = [axis for axis, own in enumerate(letters) if own in (letter, _OPPOSITE[letter])]
    return fitting[0] if fitting else None


def _key(edge: str) -> str:
    return f"pancreas_{edge}"
