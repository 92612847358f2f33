"""Run, progress, cancel; and what of a run may change afterwards: threshold, post-processing."""

from __future__ import annotations

from dataclasses import replace

from qtpy.compat import isalive
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QCheckBox, QLabel, QProgressBar, QPushButton, QSlider, QToolButton

from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.layers.placement import GridReference
from napari_pancreas_seg._napari.widget.panel import Panel, label_of, note_label
from napari_pancreas_seg._napari.widget.region_form import RegionForm
from napari_pancreas_seg.inference.result import Options

__all__ = ["RunPanel"]

LOWEST, HIGHEST = 5, 95
"""Of the threshold's slider, in hundredths."""


class RunPanel(Panel):
    """Start a run, watch it and cancel it; move the threshold of its mask.

    Parameters
    ----------
    app : App
        The viewer's app; a run of it that is under way is shown at once.
    """

    run_clicked = Signal()

    def __init__(self, app: App) -> None:
        super().__init__("Run")
        self._app = app
        self._ready = False
        self._threshold: float | None = None
        self.run_button = QPushButton("Run")
        self.cancel_button = QPushButton("Cancel")
        self.keep_button = QPushButton("Keep")
        self.keep_button.setDefault(True)
        self.discard_button = QPushButton("Discard")
        self.progress = QProgressBar()
        self.status = note_label()
        self.region = RegionForm(app)
        self._make_threshold()
        self.add(self.region)
        self.add(self.run_button, self.cancel_button)
        self.add(self.progress)
        self.add(self.status)
        self.add(self.keep_button, self.discard_button)
        self.add(label_of("Threshold"), self.threshold, self.value, self.own, stretch=(0, 1, 0, 0))
        self.add(self.postprocess)
        self.add(self.every_slice)
        self._connect()
        self.show_run()
        self._show_mask_options()

    @property
    def options(self) -> Options:
        """How to segment.

        Raises
        ------
        PancreasSegError
            If the region holds nothing.
        """
        slices, box = self.region.region
        return replace(self.how, slices=slices, box=box)

    @property
    def how(self) -> Options:
        """How to segment a whole CT."""
        return Options(
            threshold=self._threshold,
            postprocess=self.postprocess.isChecked(),
            every_slice=self.every_slice.isChecked(),
        )

    def set_ready(self, ready: bool) -> None:
        """Say whether there is a CT to segment."""
        self._ready = ready
        self.show_run()

    def refresh(self, reference: GridReference | None) -> None:
        """Follow the CT and the mask that are chosen."""
        self.region.refresh(reference)
        self.show_run()
        self._show_mask_options()

    def cancel(self) -> None:
        """Cancel the run that is under way."""
        if self._app.runs.latest is not None:
            self._app.runs.latest.cancel()

    def keep(self) -> None:
        """Let what a cancelled run has found stay."""
        if self._app.runs.latest is not None:
            self._app.runs.latest.keep()

    def discard(self) -> None:
        """Take back what a cancelled run has found."""
        if self._app.runs.latest is not None:
            self._app.runs.latest.discard()

    def show_run(self) -> None:
        """Show the state of the run."""
        if not isalive(self):
            return
        # A progress bar that can paints itself, and with it the whole window, at once.
        self.progress.setUpdatesEnabled(False)
        run = self._app.runs.latest
        running = self._app.runs.running
        asked = run is not None and run.can_discard
        self.run_button.setEnabled(self._ready and not running)
        self.cancel_button.setEnabled(running and run is not None and not run.cancelled)
        self.keep_button.setVisible(asked)
        self.discard_button.setVisible(asked)
        # What was found in another CT would be read as if found in this one.
        here = self._app.session.reference
        told = run is not None and (
            running or asked or (here is not None and run.reference.id == here.id)
        )
        self.status.setText(run.message if run is not None and told else "")
        self.status.setVisible(told)
        if running and run is not None and (run.done == 0 or run.total == 0):
            self.progress.setRange(0, 0)  # busy
        elif run is not None:
            self.progress.setRange(0, max(run.total, 1))
            self.progress.setValue(run.done)
        self.progress.setUpdatesEnabled(True)
        self.progress.setVisible(running)

    def _make_threshold(self) -> None:
        tip = "Probability above which a voxel is pancreas. Moving it needs no second run."
        self.threshold = QSlider(Qt.Orientation.Horizontal)
        self.threshold.setRange(LOWEST, HIGHEST)
        self.threshold.setValue(50)
        self.threshold.setToolTip(tip)
        self.value = QLabel()
        self.value.setMinimumWidth(self.value.fontMetrics().horizontalAdvance("0.00"))
        self.own = QToolButton()
        self.own.setText("↺")
        self.own.setToolTip("Back to the model's own threshold.")
        self.postprocess = QCheckBox("Post-processing in 3-D")
        self.postprocess.setToolTip(
            "Smooths along z and keeps the pieces that are the gland. Without it the mask is "
            "what the network says slice by slice. Needs no second run."
        )
        self.postprocess.setChecked(self._app.settings.get("run/postprocess", True))
        self.every_slice = QCheckBox("Every slice")
        self.every_slice.setToolTip(
            "For thin slices: shows the network each of them. Otherwise a coarse sweep finds the "
            "gland, which is then looked at every 3 mm. Takes effect with the next run."
        )
        self.every_slice.setChecked(self._app.settings.get("run/every slice", False))

    def _connect(self) -> None:
        app = self._app
        self.run_button.clicked.connect(self.run_clicked)
        self.cancel_button.clicked.connect(self.cancel)
        self.keep_button.clicked.connect(self.keep)
        self.discard_button.clicked.connect(self.discard)
        self.threshold.valueChanged.connect(self._on_threshold)
        self.own.clicked.connect(self._on_own)
        self.postprocess.clicked.connect(self._on_postprocess)
        self.every_slice.clicked.connect(
            lambda checked: app.settings.set("run/every slice", checked)
        )
        for signal in (app.runs.started, app.runs.changed, app.runs.finished):
            signal.connect(self.show_run)
        app.rethreshold.done.connect(self._show_mask_options)
        app.session.mask_chosen.connect(self._show_mask_options)
        app.settings.cleared.connect(self._on_cleared)

    def _on_threshold(self, hundredths: int) -> None:
        self._threshold = hundredths / 100
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
            self._move(own)
        self._show_threshold()

    def _on_postprocess(self, checked: bool) -> None:
        self._app.settings.set("run/postprocess", checked)
        self._apply()

    def _on_cleared(self) -> None:
        if isalive(self):
            self.postprocess.setChecked(True)
            self.every_slice.setChecked(False)
            self._show_own()  # the mask stays as it is, and so do its steps of undo

    def _apply(self) -> None:
        """Make the chosen mask anew, if it is a run's."""
        mask = self._app.session.mask
        value = self._threshold if self._threshold is not None else self._own_threshold()
        if mask is not None and value is not None:
            self._app.rethreshold.ask(mask, value, self.postprocess.isChecked())

    def _own_threshold(self) -> float | None:
        """The model's own threshold, as far as it is known: from the mask's result."""
        mask = self._app.session.mask
        known = None if mask is None else self._app.session.masks.get(mask)
        if known is None or known.result is None:
            return None
        threshold = known.result.model.get("threshold")
        return known.result.threshold if threshold is None else float(threshold)

    def _show_mask_options(self, layer: object = None) -> None:
        """Show what the chosen mask was made with, unless the person is dragging."""
        if not isalive(self):
            return
        mask = self._app.session.mask
        known = None if mask is None else self._app.session.masks.get(mask)
        if known is not None and known.result is not None and not self.threshold.isSliderDown():
            self._move(known.result.threshold)
            own = self._own_threshold()
            kept = known.result.threshold
            self._threshold = None if own is not None and abs(own - kept) < 1e-6 else kept
            self.postprocess.setChecked(known.result.options.postprocess)
        self._show_threshold()

    def _move(self, threshold: float) -> None:
        self.threshold.blockSignals(True)
        self.threshold.setValue(round(threshold * 100))
        self.threshold.blockSignals(False)

    def _show_threshold(self) -> None:
        own = self._own_threshold()
        shown = self._threshold if self._threshold is not None else own
        self.value.setText("auto" if shown is None else f"{shown:.2f}")
        self.value.setToolTip("The model's own threshold." if self._threshold is None else "")
        self.own.setEnabled(self._threshold is not None)
