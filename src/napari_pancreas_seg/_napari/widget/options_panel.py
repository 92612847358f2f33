"""How to segment: where in the CT, threshold, post-processing, which slices."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace

from magicgui.widgets import SpinBox
from napari.layers import Shapes
from qtpy.QtCore import QSignalBlocker
from qtpy.QtWidgets import QLabel, QSlider, QSpinBox, QToolButton

import napari_pancreas_seg._napari.widget.ui as ui
from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.layers.placement import GridReference, slice_on_screen
from napari_pancreas_seg._napari.layers.region import box_of_shapes
from napari_pancreas_seg._napari.run.past_result import PastResult
from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg.inference.result import Options, Segmentation

Region = tuple[tuple[int, int] | None, tuple[int, int, int, int] | None]

WHOLE = "Whole slices"


class RegionForm(ui.Panel):
    """Fields that restrict a run; never remembered."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._reference: GridReference | None = None
        self.first, self.last = (_slice_box(what) for what in ("first", "last"))
        tip = "Ten slices on either side of the one on screen."
        self.here = ui.button("± 10", tip, self._around_here)
        self.all = ui.button("All", "Every slice of the CT.", self._take_all)
        self.box = ui.choice("Only what lies within the shapes of this layer (its selected ones).")
        row = ("Slices", self.first, "–", self.last, self.here, self.all)
        self.add(*row, stretch=(0, 2, 0, 2, 1, 1))
        self.add("Within", self.box)
        self.first.changed.connect(lambda _: self._show())
        self.last.changed.connect(lambda _: self._show())
        self._offer_shapes()

    @property
    def region(self) -> Region:
        """``slices`` and ``box`` of `Options`; a PancreasSegError if the shapes enclose nothing."""
        slices, reference = None, self._reference
        if reference is not None and self._is_part(reference):
            slices = self.first.value, self.last.value + 1
        shapes, ct = self.box.value, self._session.ct
        if shapes is None or ct is None or reference is None:
            return slices, None
        return slices, box_of_shapes(shapes, ct, reference)

    def refresh(self, reference: GridReference | None) -> None:
        before, self._reference = self._reference, reference
        if reference is not None and (before is None or before.id != reference.id):
            self._take_all()
            self.box.value = None
        self._offer_shapes()
        self._show()

    def _offer_shapes(self) -> None:
        shapes = [layer for layer in self._session.layers if isinstance(layer, Shapes)]
        whole = WHOLE if shapes else f"{WHOLE} (no shapes layer)"
        ui.offer(
            self.box, [(whole, None), *((layer.name, layer) for layer in shapes)], self.box.value
        )

    def _around_here(self) -> None:
        ct, reference = self._session.ct, self._reference
        if ct is not None and reference is not None:
            z = slice_on_screen(self._session.viewer, ct, reference)
            if z is not None:
                self._take(max(0, z - 10), min(reference.grid.shape[0] - 1, z + 10), reference)

    def _take_all(self) -> None:
        if self._reference is not None:
            self._take(0, self._reference.grid.shape[0] - 1, self._reference)

    def _take(self, first: int, last: int, reference: GridReference) -> None:
        for field, value in ((self.first, first), (self.last, last)):
            with QSignalBlocker(field.native.lineEdit()):  # it takes the keyboard as it changes
                field.max = reference.grid.shape[0] - 1
                ui.show(field, value)
        self._show()

    def _is_part(self, reference: GridReference) -> bool:
        return self.first.value > 0 or self.last.value < reference.grid.shape[0] - 1

    def _show(self) -> None:
        there = self._reference is not None
        for part in (self.first.native, self.last.native, self.here):
            part.setEnabled(there)
        self.all.setEnabled(self._reference is not None and self._is_part(self._reference))


def _slice_box(what: str) -> SpinBox:
    tip = f"The {what} slice that is segmented, as the slider counts."
    field = SpinBox(value=0, min=0, max=0, step=1, tooltip=tip)
    field.native.setButtonSymbols(QSpinBox.ButtonSymbols.NoButtons)  # two must fit side by side
    field.native.setStyleSheet("QAbstractSpinBox { min-width: 34px; padding: 1px; }")
    return field


LOWEST, HIGHEST = 0.05, 0.95
"""Of the threshold."""
NEXT_RUN = "Takes effect with the next run: of this mask no probability is known."


class OptionsPanel(ui.Panel):
    """Options of the next run; threshold and post-processing also make the mask anew at once."""

    def __init__(self, app: App) -> None:
        super().__init__()
        self._app = app
        self._session = app.session
        self._shown: Callable[[], Segmentation | None] = lambda: None  # whose options are shown
        self.region = RegionForm(app.session)
        tip = "Probability above which a voxel is pancreas. Moving it needs no second run."
        self.threshold = ui.slider(LOWEST, HIGHEST, tip)
        ui.show(self.threshold, 0.5 if self._threshold is None else self._threshold)
        self.value = QLabel()
        self.value.setFixedWidth(self.value.fontMetrics().horizontalAdvance("auto") + 8)
        self.own = QToolButton()
        self.own.setText("↺")
        self.own.setToolTip("Back to the model's own threshold.")
        self.postprocess = ui.tick(
            "Post-processing in 3-D",
            "Smooths along z and keeps the pieces that are the gland. Without it the mask is "
            "what the network says slice by slice. Needs no second run.",
        )
        self.every_slice = ui.tick(
            "Run on every slice",
            "For thin slices. By default a coarse sweep finds the gland, which is then looked at "
            "every 3 mm. Takes effect with the next run.",
        )
        ui.remember(self.postprocess, app.settings, "run/postprocess", True)
        ui.remember(self.every_slice, app.settings, "run/every slice", False)
        self._tips = [(field, field.tooltip) for field in (self.threshold, self.postprocess)]
        self.add(self.region)
        self.add("Threshold", self.threshold, self.value, self.own)
        self.stack(self.postprocess, self.every_slice)
        self.threshold.changed.connect(self._on_threshold)
        self.own.clicked.connect(self._on_own)
        self.postprocess.changed.connect(self._apply)
        app.rethreshold.done.connect(self._show_mask)
        app.session.mask_chosen.connect(self._show_mask)
        app.runs.finished.connect(self._show_mask)
        # The mask stays as it is, and so do its steps of undo.
        app.settings.cleared.connect(self._show_own)
        self._show_mask()

    @property
    def _threshold(self) -> float | None:
        return self._app.runs.threshold  # which outlives this panel

    @_threshold.setter
    def _threshold(self, threshold: float | None) -> None:
        self._app.runs.threshold = threshold

    @property
    def options(self) -> Options:
        slices, box = self.region.region
        return replace(self.how, slices=slices, box=box)

    @property
    def how(self) -> Options:
        return Options(
            threshold=self._threshold,
            postprocess=self.postprocess.value,
            every_slice=self.every_slice.value,
        )

    def refresh(self, reference: GridReference | None) -> None:
        self.region.refresh(reference)
        self._show_mask()

    def _on_threshold(self, value: float) -> None:
        self._threshold = round(value, 2)
        self._show_threshold()
        self._apply()

    def _on_own(self) -> None:
        """Go back to the threshold of the model's card, now and for the next run."""
        self._show_own()
        self._apply()

    def _show_own(self) -> None:
        own = self._own_threshold()
        self._threshold = None
        if own is not None:
            ui.show(self.threshold, own)
        self._show_threshold()

    def _apply(self) -> None:
        """Make the chosen mask anew, if it is a run's."""
        mask = self._session.mask
        value = self._threshold if self._threshold is not None else self._own_threshold()
        if mask is not None and value is not None:
            self._app.rethreshold.ask(mask, value, self.postprocess.value)

    @property
    def _result(self) -> Segmentation | None:
        made = self._session.model_mask
        return None if made is None else made.result

    def _own_threshold(self) -> float | None:
        """The model's own threshold, as far as it is known: from the mask's result."""
        result = self._result
        return None if result is None else result.model.get("threshold", result.threshold)

    def _show_mask(self, layer: object = None) -> None:
        """Show what the chosen mask was made with, unless the person is dragging.

        Of a past one once: then the fields say what the next run is to do.
        """
        result = self._result
        past = isinstance(result, PastResult)
        not_a_run_s = self._session.mask is not None and self._session.model_mask is None
        for field, tip in self._tips:
            field.tooltip = NEXT_RUN if past or not_a_run_s else tip
        dragging = self.threshold.native.findChild(QSlider).isSliderDown()
        if result is None:
            self._shown = lambda: None
        elif not dragging and not (past and result is self._shown()):
            self._shown = weakref.ref(result)
            own, kept = self._own_threshold(), result.threshold
            ui.show(self.threshold, min(max(kept, LOWEST), HIGHEST))
            self._threshold = None if own is not None and abs(own - kept) < 1e-6 else kept
            ui.show(self.postprocess, result.options.postprocess)
        self._show_threshold()

    def _show_threshold(self) -> None:
        own = self._own_threshold()
        shown = self._threshold if self._threshold is not None else own
        self.value.setText("auto" if shown is None else f"{shown:.2f}")
        self.value.setToolTip("The model's own threshold." if self._threshold is None else "")
        self.own.setEnabled(self._threshold is not None)
