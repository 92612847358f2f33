"""The review strip: a mask from feet to head, to see where one has to look and to go there."""

from __future__ import annotations

from typing import Any

import numpy as np
from qtpy.compat import isalive
from qtpy.QtCore import QEvent, QPoint, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QHelpEvent, QImage, QMouseEvent, QPainter, QPaintEvent, QPen
from qtpy.QtWidgets import QSizePolicy, QToolTip, QWidget

import napari_pancreas_seg._napari.widget.ui as ui
from napari_pancreas_seg._napari.correct.review import Review, SliceFacts
from napari_pancreas_seg._napari.session import Session

AREA, DOUBT, EDITED, REVIEWED = "#00a88a", "#f08c00", "#4a90ff", "#7cb342"
"""Colours that stand out on dark and on light ground."""
AREA_HEIGHT, ROW_HEIGHT, GAP = 40, 5, 2
ROWS = 3
FRAME = 2.0


class ReviewStrip(QWidget):
    """Shows area, doubt, edited and reviewed of each slice; a click or a drag goes there."""

    def __init__(self, session: Session, review: Review) -> None:
        super().__init__()
        self._session, self._review = session, review
        self._picture: QImage | None = None
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self._review.changed.connect(self._draw_anew)
        self._review.moved.connect(self.update)
        session.viewer.events.theme.connect(self._draw_anew)

    def sizeHint(self) -> QSize:
        return QSize(200, AREA_HEIGHT + ROWS * (ROW_HEIGHT + GAP) + 1)

    def slice_at(self, x: float) -> int | None:
        """Slice at a place along the strip, in pixels from its left edge; None without a mask."""
        facts = self._review.facts
        if facts is None or not self.width():
            return None
        n = len(facts.area_mm2)
        return int(np.clip(x * n / self.width(), 0, n - 1))

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        ground, ink = ui.theme_colors(self._session.viewer)
        painter.fillRect(self.rect(), ground)
        facts = self._review.facts
        if facts is None:
            painter.setPen(ink)
            painter.drawText(self.rect(), Qt.AlignmentFlag.AlignCenter, "No mask yet")
            return
        if self._picture is None:
            self._picture = self._draw(facts)
        painter.drawImage(self.rect(), self._picture)
        self._draw_ends(painter, ink)
        z, n = self._review.slice, len(facts.area_mm2)
        if z is not None:
            self._draw_place(painter, z, n, ink)

    def resizeEvent(self, event: Any) -> None:
        self._picture = None
        super().resizeEvent(event)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        if event.button() == Qt.MouseButton.LeftButton:
            self._jump(event)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        if event.buttons() & Qt.MouseButton.LeftButton:
            self._jump(event)

    def event(self, event: QEvent) -> bool:
        if event.type() == QEvent.Type.ToolTip and isinstance(event, QHelpEvent):
            z = self.slice_at(event.pos().x())
            QToolTip.showText(event.globalPos(), "" if z is None else self.describe(z), self)
            return True
        return bool(super().event(event))

    def describe(self, z: int) -> str:
        facts = self._review.facts
        if facts is None or not 0 <= z < len(facts.area_mm2):
            return ""
        words = [f"{facts.area_mm2[z] / 100:.1f} cm²" if facts.area_mm2[z] else "no mask"]
        if np.isfinite(facts.doubt[z]):
            words.append(f"doubt {facts.doubt[z]:.2f}")
        words += ["edited"] if facts.edited[z] else []
        words += ["reviewed"] if z in self._review.reviewed else []
        return f"Slice {z}: {', '.join(words)}"

    def _jump(self, event: QMouseEvent) -> None:
        place: QPoint = event.pos()
        z = self.slice_at(place.x())
        if z is not None and z != self._review.slice:
            self._review.show(z)

    def _draw_anew(self, event: Any = None) -> None:
        if isalive(self):
            self._picture = None
            self.update()

    def _draw_place(self, painter: QPainter, z: int, n: int, ink: QColor) -> None:
        """Mark the slice on screen: a frame around its column, a line if that is narrow."""
        step = self.width() / n
        if step >= 2 * FRAME + 2:
            painter.setPen(QPen(ink, FRAME))
            column = QRectF(z * step, 0, step, self.height())
            painter.drawRect(column.adjusted(FRAME / 2, FRAME / 2, -FRAME / 2, -FRAME / 2))
        else:
            left = min(max(0.0, (z + 0.5) * step - FRAME / 2), self.width() - FRAME)
            painter.fillRect(QRectF(left, 0, FRAME, self.height()), ink)

    def _draw_ends(self, painter: QPainter, ink: QColor) -> None:
        font = painter.font()
        font.setPixelSize(10)
        painter.setFont(font)
        painter.setPen(ink)
        top = self.rect().adjusted(3, 1, -3, 0)
        left, right = Qt.AlignmentFlag.AlignLeft, Qt.AlignmentFlag.AlignRight
        painter.drawText(top, left | Qt.AlignmentFlag.AlignTop, "feet")
        painter.drawText(top, right | Qt.AlignmentFlag.AlignTop, "head")

    def _draw(self, facts: SliceFacts) -> QImage:
        """Draw what does not move with the slider, at the screen's own pixels."""
        ratio = self.devicePixelRatioF()
        # A panel that is just being unfolded may be lower than its rows for a moment.
        shown = max(self.height(), self.sizeHint().height())
        width, height = max(1, round(self.width() * ratio)), round(shown * ratio)
        # Where each column of pixels begins; every slice is in one.
        starts = np.arange(width) * len(facts.area_mm2) // width
        area_height, row, gap = (round(n * ratio) for n in (AREA_HEIGHT, ROW_HEIGHT, GAP))
        pixels = np.zeros((height, width, 4), np.uint8)
        share = np.maximum.reduceat(facts.area_mm2, starts) / max(1.0, facts.area_mm2.max())
        # An area that is there is seen, however small.
        bars = np.where(share > 0, np.maximum(np.rint(share * area_height), ratio), 0)
        levels = area_height - np.arange(area_height)[:, None]
        pixels[:area_height][levels <= bars] = _rgba(AREA)
        known = np.nan_to_num(facts.doubt, nan=0.0)
        doubt = np.clip(np.maximum.reduceat(known, starts), 0, 1)
        reviewed = np.zeros(len(known), bool)
        reviewed[[z for z in self._review.reviewed if z < len(known)]] = True
        rows = (
            (DOUBT, np.sqrt(doubt)),  # small doubts are to be told apart
            (EDITED, np.logical_or.reduceat(facts.edited, starts)),
            (REVIEWED, np.logical_and.reduceat(reviewed, starts)),
        )
        for number, (color, strength) in enumerate(rows):
            top = area_height + gap + number * (row + gap)
            pixels[top : top + row] = _rgba(color)
            pixels[top : top + row, :, 3] = (255 * np.asarray(strength, float)).astype(np.uint8)
        image = QImage(pixels.data, width, height, 4 * width, QImage.Format.Format_RGBA8888)
        return image.copy()  # which owns its pixels


def _rgba(color: str) -> tuple[int, int, int, int]:
    return QColor(color).getRgb()
