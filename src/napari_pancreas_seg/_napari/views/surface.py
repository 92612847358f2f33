"""The mask in 3-D, as a surface, with the patient the right way round."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from napari.layers import Labels, Layer, Surface
from napari.utils.colormaps import Colormap
from qtpy.compat import isalive
from qtpy.QtCore import QObject, Signal

from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.background import Background, report, timer
from napari_pancreas_seg._napari.layers.bridge import color_of
from napari_pancreas_seg._napari.layers.placement import data_to_world, transform_of, with_all_axes
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg._napari.views.orientation import face_camera, patient_direction, unmirror
from napari_pancreas_seg.arrays import Array, Floats32
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.volume import bounding_box

PAUSE_MS = 300
"""How soon the surface follows a mask that changes."""
RESIZED = 1.25
"""A surface that has become so many times as long, or as short, is shown whole again."""
SMOOTHING = 0.8
"""Standard deviation in voxels of what smooths the steps between voxels away, for the eye."""
LIGHT = (0.3, 0.8, 0.5)
"""Where light comes from in the patient (RAS): napari's own is wrong for a flipped camera."""


class Mesh(NamedTuple):
    """A surface in the layer's voxels: corners (n, 3), triangles (m, 3), outward normals (n, 3)."""

    corners: Floats32
    triangles: npt.NDArray[np.int32]
    normals: Floats32

    def brightness(self, light: Array) -> Floats32:
        """How bright each corner is, from 0 to 1, for light from a direction in voxels."""
        facing = self.normals @ (light / np.linalg.norm(light))
        # Half-Lambert: what looks away from the light is dim, not black.
        return np.asarray(0.5 + 0.5 * facing, dtype=np.float32)


def surface_of(mask: Array) -> Mesh | None:
    """Surface of a mask, by marching cubes on the slightly smoothed mask; None if it is empty."""
    from scipy.ndimage import gaussian_filter
    from skimage.measure import marching_cubes

    box = bounding_box(mask := np.asarray(mask))
    if box is None:
        return None
    margin = 3  # closes the surface at the edge, and leaves the smoothing its room
    inside = np.pad((mask[box] != 0).astype(np.float32), margin)
    smooth = gaussian_filter(inside, SMOOTHING)
    # A mask of a voxel or two would be smoothed away.
    values = smooth if smooth.max() > 0.5 else inside
    corners, triangles, normals, _ = marching_cubes(values, 0.5)
    if (normals * (corners - corners.mean(axis=0))).sum() < 0:
        normals = -normals
    offset = np.array([edge.start for edge in box], dtype=np.float32) - margin
    return Mesh((corners + offset).astype(np.float32), triangles.astype(np.int32), normals)


class SurfaceView(QObject):
    """Switches between slices and the mask's surface; puts back what it hid.

    ``starting``: before it hides what is visible.
    """

    changed = Signal()
    starting = Signal()

    def __init__(self, session: Session, background: Background) -> None:
        super().__init__()
        self._session = session
        self._background = background
        self._surface: Surface | None = None
        self._shown: Labels | None = None
        self._hidden = session.behind
        self._before: tuple[Any, float, tuple[float, ...]] | None = None
        self.on = False
        self._soon = timer(self, PAUSE_MS, self._make)
        session.mask_changed.connect(self._on_edit)
        session.mask_chosen.connect(self._on_mask)
        session.viewer.dims.events.ndisplay.connect(self._on_ndisplay, position="last")
        session.viewer.layers.events.removed.connect(self._on_removed)

    def toggle(self) -> None:
        (self.stop if self.on else self.start)()

    def start(self) -> None:
        if self._session.mask is None or self._session.ct is None:
            report(PancreasSegError("There is no mask to show in 3-D yet: run first."))
            self.changed.emit()
            return
        self.on = True
        self.changed.emit()
        self._make()

    def stop(self) -> None:
        viewer, surface, before = self._session.viewer, self._surface, self._before
        self.on, self._surface, self._shown, self._before = False, None, None, None
        if viewer is not None:
            viewer.dims.ndisplay = 2
            if surface in viewer.layers:
                viewer.layers.remove(surface)
            for layer in list(self._hidden):
                if layer not in viewer.layers:  # its outline cannot be drawn in 3-D: a warning
                    compat.slice_as_seen(viewer, layer)
                layer.visible = layer not in self._session.aside
            if before is not None:
                camera = viewer.scene.camera
                camera.center, camera.zoom, point = before
                # napari has taken the slice from the camera.
                viewer.dims.set_point(range(viewer.dims.ndim), point)
        self._hidden.clear()
        self.changed.emit()

    def _make(self) -> None:
        mask = self._session.mask
        if not self.on or mask is None:
            return
        made, show = partial(surface_of, mask.data), partial(self._show, mask)
        self._background.submit(made, show, self.stop)

    def _show(self, mask: Labels, mesh: Mesh | None) -> None:
        if not self.on or mask is not self._session.mask:
            return
        if mesh is None:
            if self._soon.isActive() or self._is_awaited(mask):
                return  # there is more to come than what was looked at
            self.stop()
            report(PancreasSegError("The mask is empty: there is nothing to show in 3-D."))
            return
        if self._surface is None:
            self._add(mask, mesh)
        else:
            before = _size(self._surface)
            self._surface.data = self._lit(mask, mesh)
            if not 1 / RESIZED < _size(self._surface) / before < RESIZED:  # by a run, mostly
                self._fit(self._surface)
            if mask is not self._shown:
                for name, value in _appearance(mask).items():
                    setattr(self._surface, name, value)
        self._shown = mask

    def _is_awaited(self, mask: Labels) -> bool:
        """Whether a run has emptied a mask that was shown, and is still to fill it."""
        model = self._session.masks.get(mask)
        return self._surface is not None and model is not None and model.result is None

    def _add(self, mask: Labels, mesh: Mesh) -> None:
        viewer, ct = self._session.viewer, self._session.ct
        if viewer is None or ct is None:
            return
        how = {"contrast_limits": (0.0, 1.3), "shading": "none", **_appearance(mask)}
        surface = self._surface = Surface(self._lit(mask, mesh), **how)
        self.starting.emit()
        # Hidden before: a volume rendering of the CT would be uploaded at once.
        for layer in viewer.layers:
            self._hide(layer)
        compat.add_unselected(viewer, surface)
        placement, camera = self._session.placement(ct), viewer.scene.camera
        self._before = camera.center, camera.zoom, viewer.dims.point
        viewer.dims.ndisplay = 3
        unmirror(viewer, placement)
        face_camera(viewer, placement)
        self._fit(surface)
        self.changed.emit()

    def _fit(self, surface: Surface) -> None:
        viewer = self._session.viewer
        whole = with_all_axes(viewer, [surface])
        viewer.reset_view(layers=whole, margin=0.3, reset_camera_angle=False)

    def _lit(self, mask: Labels, mesh: Mesh) -> tuple[Array, Array, Array]:
        """Corners, triangles and brightness, as napari's surface takes them."""
        ct = self._session.ct
        light = np.array([1.0, 0.0, 0.0])
        if ct is not None:
            # A normal is dotted with a direction, so that goes by the transposed matrix.
            direction = patient_direction(self._session.placement(ct), LIGHT)
            light = np.linalg.inv(data_to_world(mask)[:3, :3]) @ direction
        return mesh.corners, mesh.triangles, mesh.brightness(light)

    def _on_edit(self, layer: Labels) -> None:
        if self.on and layer is self._session.mask:
            self._soon.start()

    def _on_mask(self) -> None:
        """Show another mask that is chosen, and not its voxels, which napari would render."""
        mask = self._session.mask
        if not self.on:
            return
        if mask is None:
            self.stop()
        elif mask is not self._shown:
            if self._surface is not None:
                self._hide(mask)
            self._make()

    def _hide(self, layer: Layer) -> None:
        if layer.visible:
            self._hidden.add(layer)
            layer.visible = False

    def _on_ndisplay(self, event: Any) -> None:
        if isalive(self) and self._surface and event.source.ndisplay == 2:
            self.stop()

    def _on_removed(self, event: Any) -> None:
        if isalive(self) and self._surface and event.value in (self._surface, self._shown):
            self.stop()


def _size(surface: Surface) -> float:
    """Longest side of a surface's box in the world."""
    return float(np.ptp(surface.extent.world, axis=0).max())


def _appearance(mask: Labels) -> dict[str, Any]:
    color = color_of(mask)
    return {
        "name": f"{mask.name} in 3-D",
        "colormap": Colormap([[*color[:3] * 0.15, 1], color, [1, 1, 1, 1]], name="mask"),
        **transform_of(mask),
    }
