"""One's own corrected cases, and a model that learns from them."""

from __future__ import annotations

from qtpy.compat import isalive
from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QAction
from qtpy.QtWidgets import QMenu, QProgressBar, QPushButton, QSpinBox, QToolButton

from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.background import report
from napari_pancreas_seg._napari.layers.placement import GridReference
from napari_pancreas_seg._napari.widget.panel import Panel, label_of, note_label
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.training.finetune.corrections import Correction

__all__ = ["ImprovePanel"]

MINUTES = 10


class ImprovePanel(Panel):
    """Add corrected cases to one's own data, and improve the model with them.

    Parameters
    ----------
    app : App
        The viewer's app; what it is doing is shown at once.

    Notes
    -----
    ``model_wanted(name)``: a model is to be chosen, the new one or the former one.
    """

    model_wanted = Signal(str)

    def __init__(self, app: App) -> None:
        super().__init__("Improve the model")
        self._app = app
        self._improvement = app.improvement
        self._model = "default"
        self.slices = note_label()
        self.add_button = QPushButton("Add this case to my data")
        self.add_button.setToolTip(
            "Keeps a copy of the CT and of the reviewed slices of its mask on this computer, "
            "without anything from its header."
        )
        self.question = note_label()
        self.replace_button = QPushButton("Replace its mask")
        self.leave_button = QPushButton("Leave it")
        self.cases_button = QToolButton()
        self.cases_button.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.cases_button.setMenu(QMenu(self.cases_button))
        # Else the arrow lies over the last word.
        self.cases_button.setStyleSheet("QToolButton { padding: 3px 16px 3px 6px; }")
        self.improve_button = QPushButton("Improve the model")
        self.improve_button.setToolTip(
            "The chosen model learns from your cases, beside your work. The result is a model of "
            "its own; the present one stays."
        )
        self.cancel_button = QPushButton("Cancel")
        self.minutes = QSpinBox()
        self.minutes.setRange(1, 600)
        self.minutes.setSuffix(" min")
        self.minutes.setToolTip("How long it may take, tests included.")
        self.minutes.setValue(app.settings.get("improve/minutes", MINUTES))
        self.progress = QProgressBar()
        self.progress.setRange(0, 100)
        self.status = note_label()
        self.back_button = QPushButton("Switch back")
        self.back_button.setToolTip("Choose the model that was chosen before; both stay.")
        self.add(self.slices)
        self.add(self.add_button)
        self.add(self.question)
        self.add(self.replace_button, self.leave_button)
        self.add(label_of("My data"), self.cases_button, stretch=(0, 1))
        self.add(self.improve_button, self.minutes, self.cancel_button, stretch=(1, 0, 0))
        self.add(self.progress)
        self.add(self.status)
        self.add(self.back_button)
        self.is_open = False
        self._connect()
        self._show()

    def use_model(self, model: str) -> None:
        """Hear which model is chosen: that one would learn."""
        self._model = model
        self._show()

    def refresh(self, reference: GridReference | None) -> None:
        """Follow the CT and the mask that are chosen."""
        self._show()

    def add_case(self) -> None:
        """Add the chosen CT and its mask to the user's cases."""
        self._add(replace=False)

    def improve(self) -> None:
        """Let the chosen model learn from the cases."""
        try:
            self._improvement.start(self._model, self.minutes.value())
        except PancreasSegError as error:
            report(error)

    def switch_back(self) -> None:
        """Choose the model that was before the last one that was made, or that one again."""
        improved = self._improvement.improved
        if improved is not None:
            is_new = self._model == improved.name
            self.model_wanted.emit(improved.former if is_new else improved.name)

    def _connect(self) -> None:
        improvement, app = self._improvement, self._app
        self.add_button.clicked.connect(self.add_case)
        self.replace_button.clicked.connect(lambda: self._add(replace=True))
        self.leave_button.clicked.connect(improvement.leave_case)
        self.improve_button.clicked.connect(self.improve)
        self.cancel_button.clicked.connect(improvement.cancel)
        self.back_button.clicked.connect(self.switch_back)
        self.minutes.valueChanged.connect(lambda n: app.settings.set("improve/minutes", n))
        improvement.changed.connect(self._show)
        improvement.made.connect(self._on_made)
        app.review.changed.connect(self._show)
        app.settings.cleared.connect(self._reset)

    def _add(self, *, replace: bool) -> None:
        try:
            self._improvement.add_case(replace=replace)
        except PancreasSegError as error:
            report(error)

    def _on_made(self) -> None:
        improved = self._improvement.improved
        if isalive(self) and improved is not None and improved.worth_using:
            self.model_wanted.emit(improved.name)

    def _reset(self) -> None:
        if isalive(self):
            self.minutes.setValue(MINUTES)

    def _show(self) -> None:
        if not isalive(self):
            return
        self._show_case()
        self._show_learning()

    def _show_case(self) -> None:
        improvement, mask = self._improvement, self._app.session.mask
        n = 0 if mask is None else improvement.reviewed
        if mask is None:
            text = "Open a CT and correct its mask to add it as a case."
        elif n == 0:
            text = "Mark the slices whose mask is right as reviewed; only these are learnt from."
        else:
            text = f"{_count(n, 'slice')} of this mask {'is' if n == 1 else 'are'} reviewed; only "
            text += "this one is learnt from." if n == 1 else "these are learnt from."
        self.slices.setText(improvement.working or text)
        self.add_button.setEnabled(n > 0 and not improvement.working)
        known = improvement.known
        for widget in (self.question, self.replace_button, self.leave_button):
            widget.setVisible(known is not None)
        if known is not None:
            self.question.setText(
                f"This CT is among your cases already, with {_reviewed(known)}. Replace its mask "
                "by the one on screen?"
            )
        self.cases_button.setText(_count(len(improvement.cases), "case"))
        self.cases_button.setEnabled(bool(improvement.cases))
        menu = self.cases_button.menu()
        menu.clear()
        for case in improvement.cases:
            self._add_to(menu, case)

    def _add_to(self, menu: QMenu, case: Correction) -> None:
        sub = menu.addMenu(f"{case.added[:10]}, {_reviewed(case)}")
        drops = QAction("Remove from my data", sub)
        drops.triggered.connect(lambda: self._improvement.remove_case(case.name))
        sub.addAction(drops)

    def _show_learning(self) -> None:
        improvement = self._improvement
        running, improved = improvement.running, improvement.improved
        self.improve_button.setEnabled(bool(improvement.cases) and not running)
        self.minutes.setVisible(not running)
        self.cancel_button.setVisible(running)
        # A progress bar that can paints itself, and with it the whole window, at once.
        self.progress.setUpdatesEnabled(False)
        self.progress.setValue(round(100 * improvement.share))
        self.progress.setUpdatesEnabled(True)
        self.progress.setVisible(running)
        text = ""
        if running:
            text = f"{improvement.stage.capitalize()}{_left(improvement.seconds_left)}"
        elif improved is not None:
            text = improved.in_words()
        self.status.setText(text)
        self.status.setVisible(bool(text))
        self.status.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        either = improved is not None and self._model in (improved.name, improved.former)
        self.back_button.setVisible(either and not running)
        if improved is not None:
            is_new = self._model == improved.name
            self.back_button.setText(
                "Switch back to the former model" if is_new else "Use the new model"
            )


def _count(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def _reviewed(case: Correction) -> str:
    if case.reviewed is None:
        return "all slices"
    return _count(len(case.reviewed), "slice")


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "…"
    if seconds < 60:
        return ", less than a minute left"
    return f", about {_count(round(seconds / 60), 'minute')} left"
