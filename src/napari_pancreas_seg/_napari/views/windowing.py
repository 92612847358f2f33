"""The HU window in which a CT is shown: by name, or by dragging the mouse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from napari.components import ViewerModel
from napari.layers import Image

from napari_pancreas_seg._napari.layers.bridge import HU_LIMITS, HU_RANGE
from napari_pancreas_seg._napari.session import Session

HU_PRESETS: dict[str, tuple[float, float]] = {
    # Level 40, width 400: the usual window for the abdomen.
    "Abdomen": HU_LIMITS,
    # What networks for the pancreas are commonly shown of a CT: -100 to 240 HU
    # (Zhou 2017, 10.1007/978-3-319-66182-7_79).
    "Pancreas": (-100.0, 240.0),
    # Level 30, width 150: narrow, for faint lesions in the liver.
    "Liver": (-45.0, 105.0),
    # Level 400, width 1800.
    "Bone": (-500.0, 1300.0),
}
"""HU windows by name, as lower and upper limit."""
RIGHT_BUTTON = 2
PIXELS = 300
"""How far the mouse goes for a window of twice the width, or a level that is a width higher."""


def show_window(layer: Image, low: float, high: float) -> None:
    first, last = layer.contrast_limits_range
    least, most = min(HU_RANGE[0], low), max(HU_RANGE[1], high)
    if first > least or last < most:
        layer.contrast_limits_range = (min(first, least), max(last, most))
    layer.contrast_limits = (low, high)


class WindowDrag:
    """The right button, dragged over slices: sideways for the window, up for brighter."""

    def __init__(self, session: Session, show_message: Callable[[str], None]) -> None:
        self._session, self._show_message = session, show_message
        session.viewer.mouse_drag_callbacks.append(self._drag)

    def _drag(self, viewer: ViewerModel, event: Any) -> Iterator[None]:
        ct, camera = self._session.ct, viewer.scene.camera
        # A tool that draws has taken the mouse from the camera.
        if event.button != RIGHT_BUTTON or not camera.mouse_pan:
            return
        if ct is None or not ct.visible or viewer.dims.ndisplay != 2:
            return
        (x, y), (low, high) = event.pos, ct.contrast_limits
        width, level = float(high - low), float(low + high) / 2
        camera.mouse_pan = False  # else napari zooms
        yield
        while event.type == "mouse_move":
            across, down = event.pos[0] - x, event.pos[1] - y
            wide = max(1.0, round(width * (1 + across / PIXELS)))
            middle = min(max(round(level + width * down / PIXELS), HU_RANGE[0]), HU_RANGE[1])
            show_window(ct, middle - wide / 2, middle + wide / 2)
            self._show_message(f"Window {wide:.0f}, level {middle:.0f} HU")
            yield
        camera.mouse_pan = True
        self._show_message("")
