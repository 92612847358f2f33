"""napari's brush, sized in mm."""

from __future__ import annotations

from typing import Any

from qtpy.compat import isalive
from qtpy.QtCore import QObject, Signal

from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg._napari.settings import Settings

MM = 6.0


class Brush(QObject):
    """Keeps the brush of the chosen mask at a diameter in mm.

    One that the person chooses by napari's own controls holds for the next mask, too.
    """

    changed = Signal()

    def __init__(self, session: Session, settings: Settings) -> None:
        super().__init__()
        self._session, self._settings = session, settings
        settings.cleared.connect(self._apply)
        session.mask_chosen.connect(self._on_mask)

    @property
    def mm(self) -> float:
        """The diameter in mm."""
        return float(self._settings.get("correct/brush_mm", MM))

    @mm.setter
    def mm(self, mm: float) -> None:
        self._settings.set("correct/brush_mm", mm)
        self._apply()

    def _on_mask(self) -> None:
        if isalive(self) and self._session.mask is not None:
            self._session.mask.events.brush_size.connect(self._on_size)
            self._apply()

    def _apply(self) -> None:
        mask, pixel_mm = self._session.mask, self._pixel_mm
        if mask is not None and pixel_mm is not None:
            with mask.events.brush_size.blocker(self._on_size):
                mask.brush_size = max(1, round(self.mm / pixel_mm))
        self.changed.emit()

    def _on_size(self, event: Any) -> None:
        mask, pixel_mm = self._session.mask, self._pixel_mm
        if isalive(self) and event.source is mask and mask is not None and pixel_mm is not None:
            self._settings.set("correct/brush_mm", round(mask.brush_size * pixel_mm, 1))
            self.changed.emit()

    @property
    def _pixel_mm(self) -> float | None:
        """Edge of a pixel within an axial slice."""
        reference = self._session.reference
        if reference is None:
            return None
        _, dy, dx = reference.grid.spacing
        return float((dy * dx) ** 0.5)
