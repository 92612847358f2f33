"""One's own corrected cases, and a model that learns from them."""

from __future__ import annotations

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QMenu, QProgressBar

import napari_pancreas_seg._napari.widget.ui as ui
from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.background import reported
from napari_pancreas_seg._napari.layers.placement import GridReference
from napari_pancreas_seg.errors import counted
from napari_pancreas_seg.training.data.layouts.corrected_cases import CorrectedCase

MINUTES = 10.0


class ImprovePanel(ui.Panel):
    """Adds corrected cases to the user's own data, and improves the model with them."""

    def __init__(self, app: App) -> None:
        super().__init__()
        self._app, self._session = app, app.session
        self._improvement = app.improvement
        self.slices = ui.note_label()
        self.slices.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.slices.setFixedHeight(4 * self.slices.fontMetrics().lineSpacing())
        tip = "Keeps CT and reviewed slices on this computer, without anything from the header."
        self.add_button = ui.button("Add this case to my data", tip, self.add_case)
        self.cases_button = ui.menu_button()
        tip = "The chosen model learns from your cases. The result is a new one; this one stays."
        self.improve_button = ui.button("Improve the model", tip, self.improve)
        self.cancel_button = ui.button("Cancel", "Nothing is written.", self._improvement.cancel)
        self.minutes = ui.number("min", 1, 600, 1, "How long it may take in all.", decimals=0)
        tip = "Otherwise a model that did no better on patients it had not seen is deleted."
        self.keep = ui.tick("Keep the new model even if it is no better", tip)
        self.progress = QProgressBar()
        self.progress.setRange(0, 100)
        place = self.progress.sizePolicy()
        place.setRetainSizeWhenHidden(True)
        self.progress.setSizePolicy(place)
        self.step = ui.OneLine()
        self.result = ui.note_label()
        self.back_button = ui.button("", "Both models stay.", self.switch_back)
        self.question = ui.note_label()
        self.replace_button = ui.button("Replace its mask", "", lambda: self.add_case(replace=True))
        self.leave_button = ui.button("Leave it", "", self._improvement.leave_case)
        self.stack(self.slices, self.add_button)
        self.add("My data", self.cases_button)
        self.add("Time", self.minutes)
        self.add(self.keep)
        self.add(self.improve_button, self.cancel_button, stretch=(2, 1))
        self.stack(self.progress, self.step, self.result, self.back_button, self.question)
        self.add(self.replace_button, self.leave_button)
        ui.remember(self.minutes, app.settings, "improve/minutes", MINUTES)
        ui.show(self.keep, self._improvement.keeps_all)
        self.keep.changed.connect(lambda keeps: setattr(app.improvement, "keeps_all", keeps))
        app.improvement.changed.connect(self.refresh)
        app.review.changed.connect(self.refresh)
        self.refresh()

    @property
    def _model(self) -> str:
        """The model that is chosen: that one would learn."""
        return str(self._app.runs.how()[0])

    def add_case(self, *, replace: bool = False) -> None:
        with reported():
            self._improvement.add_case(replace=replace)

    def improve(self) -> None:
        with reported():
            self._improvement.start(self._model, self.minutes.value)

    def switch_back(self) -> None:
        improved = self._improvement.improved
        if improved is not None:
            is_new = self._model == improved.name
            self._improvement.wanted.emit(improved.former if is_new else improved.name)

    def refresh(self, reference: GridReference | None = None) -> None:
        self._show_case()
        self._show_learning()

    def _show_case(self) -> None:
        improvement = self._improvement
        n = len(self._app.review.reviewed)
        self.slices.setText(improvement.working or self._what_it_teaches(n))
        self.add_button.setEnabled(n > 0 and not improvement.working)
        known = improvement.known
        for widget in (self.question, self.replace_button, self.leave_button):
            widget.setVisible(known is not None)
        if known is not None:
            what = "this mask, but" if improvement.same_mask else "another mask, of which"
            counts = f"{_reviewed(known)} {'count' if known.reviewed is None else 'reviewed'}"
            self.question.setText(
                f"This CT is among your cases already, with {what} {counts}. Replace that by what "
                "is on screen?"
            )
        self.cases_button.setText(counted(len(improvement.cases), "case"))
        self.cases_button.setEnabled(bool(improvement.cases))
        menu = self.cases_button.menu()
        menu.clear()
        for case in improvement.cases:
            self._add_to(menu, case)

    def _add_to(self, menu: QMenu, case: CorrectedCase) -> None:
        sub = menu.addMenu(f"{case.added[:10]}, {_reviewed(case)}")
        drops = sub.addAction("Remove from my data")
        drops.triggered.connect(lambda: self._improvement.remove_case(case.name))

    def _what_it_teaches(self, n: int) -> str:
        """What a model would learn from the chosen mask, of which n slices are reviewed."""
        if self._session.mask is None:
            return "Open a CT and correct its mask to add it as a case."
        if n == 0:
            return "Mark the slices whose mask is right as reviewed; only these are learnt from."
        text = f"{counted(n, 'slice')} of this mask {'is' if n == 1 else 'are'} reviewed; only "
        text += "this one is learnt from." if n == 1 else "these are learnt from."
        if self._improvement.unchanged:
            text += " There the mask is the model's own, unchanged: it teaches nothing new."
        return text

    def _show_learning(self) -> None:
        improvement = self._improvement
        running, improved = improvement.running, improvement.improved
        self.improve_button.setEnabled(bool(improvement.cases) and not running)
        self.cancel_button.setEnabled(running)
        self.minutes.enabled = self.keep.enabled = not running
        # A progress bar that can paints itself, and with it the whole window, at once.
        self.progress.setUpdatesEnabled(False)
        self.progress.setValue(round(100 * improvement.share) if running else 0)
        self.progress.setUpdatesEnabled(True)
        self.progress.setVisible(running)  # empty, it looks like a field to write in
        stage = f"{improvement.stage.capitalize()}{_left(improvement.seconds_left)}"
        self.step.setText(stage if running else "")
        self.result.setText("" if improved is None or running else improved.in_words(self._model))
        is_new = improved is not None and self._model == improved.name
        either = improved is not None and (is_new or self._model == improved.former)
        kept = improved is not None and improved.kept
        self.back_button.setVisible(either and kept and not running)
        self.back_button.setText(
            "Switch back to the former model" if is_new else "Use the new model"
        )


def _reviewed(case: CorrectedCase) -> str:
    return "all slices" if case.reviewed is None else counted(len(case.reviewed), "slice")


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "…"
    if seconds < 60:
        return ", less than a minute left"
    return f", about {counted(round(seconds / 60), 'minute')} left"
