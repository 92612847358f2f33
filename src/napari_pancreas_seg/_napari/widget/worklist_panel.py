"""The cases of a worklist, how far each is, and the way from one to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.compat import isalive
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog, QListWidget, QListWidgetItem

import napari_pancreas_seg._napari.widget.ui as ui
from napari_pancreas_seg import io
from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg.cohort.cases import find_inputs
from napari_pancreas_seg.cohort.worklist import Status, WorklistCase
from napari_pancreas_seg.errors import PancreasSegError

MARKS = {
    Status.NEW: "○",
    Status.SEGMENTED: "◔",
    Status.CORRECTED: "◑",
    Status.REVIEWED: "◕",
    Status.EXPORTED: "●",
}
ROWS_SHOWN = 14
LAST = "worklist/folder"
ONLY = "worklist/only"
LONGEST_NAME = 28


class WorklistPanel(ui.Panel):
    """Works through the CTs of a folder."""

    def __init__(self, app: App) -> None:
        super().__init__()
        self._app = app
        self._work = app.worklist
        self._rows: list[WorklistCase] = []  # as they are in the list
        tip = "Work through the CTs of a folder; or drop one here."
        self.open_button = ui.button("Open folder…", tip, self.ask_for_folder)
        tip = "Choose the folder that masks are written into."
        self.output_button = ui.button("Masks to…", tip, self.ask_for_output)
        self.list = QListWidget()
        self.list.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        # A click would keep all letters, to search with, from the picture.
        self.list.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.list.setFixedHeight(ROWS_SHOWN * (self.list.fontMetrics().height() + 6))
        work, tip = self._work, "Write the mask, and go to the next case that is not exported."
        self.previous_button = ui.button("◀", "Previous case.", lambda: work.step(-1))
        self.next_button = ui.button("▶", "Next case.", lambda: work.step(1))
        self.reviewed_button = ui.button("Reviewed", "Remember it.", work.mark_reviewed)
        self.done_button = ui.button("Export, next", tip, work.finish_case)
        tip = "The next one while this one is corrected; neither if it has a mask already."
        self.ahead = ui.tick("Segment the first and the next case", tip)
        self.status, self.where, self.next = ui.OneLine(), ui.OneLine(), ui.OneLine()
        both = (self.previous_button, self.next_button)
        self._steps = (*both, self.reviewed_button, self.done_button)
        self.add(self.open_button, self.output_button)
        self.add(self.list)
        self.add(*self._steps, stretch=(1, 1, 4, 5))
        self.last_button = ui.button("Go on", "The worklist of the last time.", self._go_on)
        self.stack(self.ahead, self.status, self.where, self.next, self.last_button)
        ui.remember(self.ahead, app.settings, "worklist/ahead", True)
        app.ahead.segments = self.ahead.value
        self.ahead.changed.connect(lambda on: setattr(app.ahead, "segments", on))
        app.settings.cleared.connect(self._on_cleared)
        self.list.itemActivated.connect(self._go)
        self.list.itemClicked.connect(self._go)
        self._work.changed.connect(self._show)
        self._show()

    def _on_cleared(self) -> None:
        self._app.ahead.segments = self.ahead.value  # it is shown anew, and nobody is told

    def ask_for_folder(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Work through the CTs of a folder")
        if folder:
            self.open_folder(folder)

    def open_folder(self, folder: str | Path) -> None:
        """Open a folder as a worklist; one that is a DICOM series as the CT that it is."""

        def opened(is_series: bool) -> None:
            if is_series:
                self._app.files.open(folder)
            elif isalive(self):
                self.open_worklist(folder)

        self._app.background.submit(lambda: _is_one_series(Path(folder)), opened)

    def open_worklist(self, folder: str | Path, *output: Any, **chosen: Any) -> None:
        """Open a folder as a worklist, with what `WorklistSession.open` takes."""
        self.wanted.emit()
        self._work.open(folder, *output, **chosen)

    def _go_on(self) -> None:
        only = set(map(str, self._app.settings.get(ONLY, [])))
        self.open_worklist(self._app.settings.get(LAST, ""), only=only or None)

    def _offer_last(self) -> None:
        last = self._app.settings.get(LAST, "")
        offered = self._work.worklist is None and bool(last) and Path(last).is_dir()
        self.last_button.setVisible(offered)
        self.last_button.setText(f"Go on with '{_shortened(Path(last).name)}'" if offered else "")
        self.last_button.setToolTip(last)

    def ask_for_output(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder for the masks")
        if folder:
            self._work.use_output(folder)

    def _go(self, item: QListWidgetItem) -> None:
        worklist, row = self._work.worklist, self.list.row(item)
        if worklist is not None and (row != worklist.current or self._work.case is None):
            self._work.go_to(row)
            self._show()  # which case is open, if this one was refused

    def _show(self) -> None:
        worklist, idle = self._work.worklist, not self._work.busy
        self._offer_last()
        for part in (self.list, self.output_button, *self._steps):
            part.setEnabled(worklist is not None and (idle or part is self.list))
        self.status.setText(self._work.busy or "Open a folder of CTs, one case each.")
        if worklist is None:
            return
        self._list_cases()
        self.previous_button.setEnabled(idle and worklist.current > 0)
        self.next_button.setEnabled(idle and worklist.next_case is not None)
        exported = worklist.counts()[Status.EXPORTED]
        self.status.setText(self._work.busy or f"{exported} of {len(worklist)} exported.")
        self.where.setText(f"Masks go to '{worklist.output.name}'.")
        tip = "Masks that lie there are opened first, and replaced by yours."
        self.where.setToolTip(f"{worklist.output}\n{tip}")
        self.next.setText(f"Next case: {self._app.ahead.state}." if self._app.ahead.state else "")

    def _list_cases(self) -> None:
        worklist = self._work.worklist
        assert worklist is not None
        self._app.settings.set(LAST, str(worklist.folder))
        self._app.settings.set(ONLY, sorted(worklist.only or ()))
        self.list.blockSignals(True)
        while self.list.count() < len(worklist):
            self.list.addItem("")
        while self.list.count() > len(worklist):
            self.list.takeItem(self.list.count() - 1)
        for row, case in enumerate(worklist.cases):
            if row < len(self._rows) and case is self._rows[row]:
                continue  # as it was: a long list would stall at every step
            item = self.list.item(row)
            item.setText(f"{MARKS[case.status]}  {io.stem(Path(case.name))} · {case.status}")
            item.setToolTip(f"{case.name}: {case.status}")
        self._rows = worklist.cases[:]
        self.list.setCurrentRow(worklist.current)
        self.list.blockSignals(False)


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _is_one_series(folder: Path) -> bool:
    """Whether all that a folder holds is one DICOM series; beside other CTs it is a case."""
    try:
        inputs = list(find_inputs([folder]))
    except PancreasSegError:
        return io.is_dicom(folder)  # deep below, where cases are not looked for
    return len(inputs) == 1 and io.is_dicom(inputs[0])
