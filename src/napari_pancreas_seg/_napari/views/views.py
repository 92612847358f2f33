"""Ways of looking: planes, the model's own mask for a moment, orthogonal views."""

from __future__ import annotations

import importlib.util
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from napari.layers import Image, Labels, Layer
from napari.utils.colormaps import Colormap
from qtpy.QtCore import QObject, Qt, QTimer, Signal

from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.background import Background, report
from napari_pancreas_seg._napari.layers.bridge import color_of, original_of
from napari_pancreas_seg._napari.layers.placement import METADATA_KEY, Placement, transform_of
from napari_pancreas_seg._napari.run.model_mask import ModelMask
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg._napari.views.orientation import (
    OrientationLetters,
    edge_letters,
    knows_orientation,
    show_plane,
    unmirror,
)
from napari_pancreas_seg._napari.views.surface import SurfaceView
from napari_pancreas_seg._napari.views.windowing import HU_PRESETS, WindowDrag, show_window
from napari_pancreas_seg.errors import PancreasSegError

HOW_TO_INSTALL = (
    "Orthogonal views come with another plugin. Install it with "
    '"pip install napari-pancreas-seg[orthogonal]" and start napari again.'
)


class Blink:
    """Shows the model's mask, as a picture that no tool can paint on, in the edited one's place."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.mask: Labels | None = None
        self._picture: Image | None = None
        session.viewer.layers.events.removed.connect(self._on_removed)
        # First: others may find that the mask has changed, by which it ends.
        session.viewer.layers.events.inserted.connect(self._on_inserted, position="first")

    @property
    def on(self) -> bool:
        return self._picture is not None

    def start(self, layer: Labels, model: ModelMask) -> None:
        layers = self._session.viewer.layers
        if self.on or not layer.visible or layer not in layers:
            return
        # Its picture is nobody's CT and nobody's mask: of no kind that panels offer.
        reference = replace(model.reference, kind="picture")
        # After a restricted run the mask as it has left it.
        made = model.copy if model.rest is None else np.maximum(model.copy, model.rest)
        color = color_of(layer)
        self.mask = layer
        self._picture = Image(
            reference.layer_view(made),
            name=f"{layer.name} (the model's)",
            colormap=Colormap([[*color[:3], 0.0], [*color[:3], 1.0]], name="model"),
            contrast_limits=(0, 1),
            interpolation2d="nearest",
            opacity=layer.opacity,
            rgb=False,
            multiscale=False,
            **transform_of(layer),
            metadata={METADATA_KEY: reference},
        )
        compat.add_unselected(self._session.viewer, self._picture, layers.index(layer) + 1)
        layer.opacity = 0.0  # a layer that is hidden tells of no undo

    def stop(self) -> None:
        mask, picture = self.mask, self._picture
        self.mask = self._picture = None
        if mask is not None and picture is not None:
            mask.opacity = picture.opacity
        if picture in self._session.layers:
            self._session.viewer.layers.remove(picture)

    def _on_inserted(self, event: Any) -> None:
        picture = self._picture
        if picture is None or event.value is picture:
            return
        if self.mask is not None and original_of(event.value) is self.mask:
            event.value.opacity = picture.opacity  # a duplicate must not be as clear as it is now
        QTimer.singleShot(0, self.stop)

    def _on_removed(self, event: Any) -> None:
        if self.on and event.value in (self.mask, self._picture):
            # Not while napari is still at it.
            QTimer.singleShot(0, self.stop)


class OrthogonalViews:
    """The plugin napari-orthogonal-views, if it is installed: three views at once."""

    def __init__(self, viewer: Any, placement: Callable[[], Placement | None]) -> None:
        self._viewer = weakref.ref(viewer)
        self._placement = placement
        self._letters: list[OrientationLetters] = []

    @staticmethod
    def installed() -> bool:
        return importlib.util.find_spec("napari_orthogonal_views") is not None

    def toggle(self) -> None:
        manager = compat.orthogonal_manager(self._viewer())
        if manager.is_shown():
            self._letters.clear()
            manager.hide()
            return
        manager.show()
        placement = self._placement()
        for model in compat.orthogonal_models(self._viewer()):
            self._letters.append(OrientationLetters(model, self._placement))
            # A radiologist expects the head up where rows run from the feet.
            if placement and edge_letters(model, placement).get("bottom") == "S":
                model.scene.camera.orientation2d = ("up", "right")

    def refresh(self, layer: Layer) -> None:
        """Draw a layer anew there: what is written in place reaches the copies by no event."""
        for model in compat.orthogonal_models(self._viewer()):
            for copy in model.layers:
                if copy.data is layer.data:
                    copy.refresh(thumbnail=False, highlight=False, extent=False)

    def refresh_letters(self) -> None:
        for letters in self._letters:
            letters.refresh()


class Views(QObject):
    changed = Signal()

    def __init__(self, session: Session, background: Background) -> None:
        super().__init__()
        self._session, viewer = session, session.viewer
        self._blink = Blink(session)
        self._orthogonal = OrthogonalViews(viewer, self.placement)
        self.surface = SurfaceView(session, background)
        self.letters = OrientationLetters(viewer, self.placement)
        self.dragged = ""  # the HU window while it is, for people to read
        self._window_drag = WindowDrag(session, self._on_drag)
        self.surface.changed.connect(self.changed)
        session.ct_chosen.connect(self._on_ct)
        session.mask_changed.connect(self._orthogonal.refresh)
        # Not while napari is still adding or removing a layer: it would lose another one.
        for signal in (session.mask_changed, session.mask_chosen):
            signal.connect(self._end_blink, Qt.ConnectionType.QueuedConnection)
        self._on_ct()

    def placement(self) -> Placement | None:
        """How the chosen CT lies in the viewer, if anyone said how it lies in the patient."""
        ct = self._session.ct
        return self._session.placement(ct) if ct is not None and knows_orientation(ct) else None

    def preset(self, name: str) -> None:
        if self._session.ct is not None:
            show_window(self._session.ct, *HU_PRESETS[name])

    def next_preset(self) -> None:
        ct, windows = self._session.ct, list(HU_PRESETS.values())
        if ct is not None:
            now = tuple(float(limit) for limit in ct.contrast_limits)
            following = windows.index(now) + 1 if now in windows else 0
            show_window(ct, *windows[following % len(windows)])

    def plane(self, name: str) -> None:
        if self.surface.on:
            self.surface.stop()
        if self._session.ct is not None:
            show_plane(self._session.viewer, self._session.placement(self._session.ct), name)

    @property
    def blinking(self) -> bool:
        return self._blink.on

    def blink(self, on: bool) -> None:
        mask, model = self._session.mask, self._session.model_mask
        if not on:
            self._blink.stop()
        elif mask is not None and model is not None:
            self._blink.start(mask, model)
        else:
            report(PancreasSegError("What the model found here is not kept: run first, or again."))
        self.changed.emit()

    def toggle_orthogonal(self) -> None:
        """Open or close the orthogonal views, or say how to install them."""
        if self._orthogonal.installed():
            self._orthogonal.toggle()
        else:
            report(PancreasSegError(HOW_TO_INSTALL))

    def _on_drag(self, window: str) -> None:
        self.dragged = window
        self.changed.emit()

    def _end_blink(self, changed: Labels | None = None) -> None:
        mask = self._blink.mask
        if self._blink.on and (changed is mask or self._session.mask is not mask):
            self.blink(False)

    def _on_ct(self) -> None:
        if self._blink.on:
            self.blink(False)
        if self.surface.on:
            self.surface.stop()
        if (placement := self.placement()) is not None:
            unmirror(self._session.viewer, placement)
        self.letters.refresh()
        self._orthogonal.refresh_letters()
