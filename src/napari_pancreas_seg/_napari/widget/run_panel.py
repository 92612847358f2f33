"""Run, progress, cancel."""

from __future__ import annotations

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QProgressBar, QPushButton

from napari_pancreas_seg._napari.session import Session
from napari_pancreas_seg._napari.widget.options_form import options_form, options_of
from napari_pancreas_seg._napari.widget.panel import Panel, note_label
from napari_pancreas_seg.inference.result import Options

__all__ = ["RunPanel"]


class RunPanel(Panel):
    """Start a run, watch it and cancel it.

    Parameters
    ----------
    session : Session
        The viewer's session; a run of it that is under way is shown at once.
    """

    run_clicked = Signal()

    def __init__(self, session: Session) -> None:
        super().__init__("Run")
        self._session = session
        self._ready = False
        self.run_button = QPushButton("Run")
        self.cancel_button = QPushButton("Cancel")
        self.progress = QProgressBar()
        policy = self.progress.sizePolicy()
        policy.setRetainSizeWhenHidden(True)
        self.progress.setSizePolicy(policy)
        self.status = note_label()
        self._form = options_form()
        self._form.margins = (0, 0, 0, 0)
        self.add(self._form.native)
        self.add(self.run_button, self.cancel_button)
        self.add(self.progress)
        self.add(self.status)
        self.run_button.clicked.connect(self.run_clicked)
        self.cancel_button.clicked.connect(self.cancel)
        session.run_started.connect(self.refresh)
        session.run_changed.connect(self.refresh)
        session.run_finished.connect(self.refresh)
        self.refresh()

    @property
    def options(self) -> Options:
        """How to segment."""
        return options_of(self._form)

    def set_ready(self, ready: bool) -> None:
        """Say whether there is a CT to segment."""
        self._ready = ready
        self.refresh()

    def cancel(self) -> None:
        """Cancel the run that is under way."""
        if self._session.run is not None:
            self._session.run.cancel()

    def refresh(self) -> None:
        """Show the state of the run."""
        # A progress bar that can paints itself, and with it the whole window, at once.
        self.progress.setUpdatesEnabled(False)
        run = self._session.run
        running = self._session.running
        self.run_button.setEnabled(self._ready and not running)
        self.cancel_button.setEnabled(running and run is not None and not run.cancelled)
        self.status.setText("" if run is None else run.message)
        if running and run is not None and (run.done == 0 or run.total == 0):
            self.progress.setRange(0, 0)  # busy
        elif run is not None:
            self.progress.setRange(0, max(run.total, 1))
            self.progress.setValue(run.done)
        self.progress.setUpdatesEnabled(True)
        self.progress.setVisible(running)
