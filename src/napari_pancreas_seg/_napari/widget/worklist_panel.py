"""The cases of a worklist, how far each is, and the way from one to the next."""

from __future__ import annotations

from pathlib import Path

from qtpy.compat import isalive
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QCheckBox,
    QFileDialog,
    QListWidget,
    QListWidgetItem,
    QPushButton,
)

from napari_pancreas_seg import io
from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.widget.panel import Panel, note_label
from napari_pancreas_seg.cohort.cases import find_inputs
from napari_pancreas_seg.cohort.worklist import Status
from napari_pancreas_seg.errors import PancreasSegError

__all__ = ["WorklistPanel"]

MARKS = {
    Status.NEW: "○",
    Status.SEGMENTED: "◔",
    Status.CORRECTED: "◑",
    Status.REVIEWED: "◕",
    Status.EXPORTED: "●",
}
ROWS_SHOWN = 6


class WorklistPanel(Panel):
    """Work through the CTs of a folder.

    Parameters
    ----------
    app : App
        The viewer's session.
    """

    def __init__(self, app: App) -> None:
        super().__init__("Worklist")
        self._app = app
        self._work = app.worklist
        self.open_button = QPushButton("Open folder…")
        self.open_button.setToolTip("Work through the CTs of a folder; or drop a folder here.")
        self.output_button = QPushButton("Masks to…")
        self.output_button.setToolTip("Choose the folder that masks are written into.")
        self.list = QListWidget()
        self.list.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        row = self.list.fontMetrics().height() + 6
        self.list.setFixedHeight(ROWS_SHOWN * row)
        self.previous_button = QPushButton("◀")
        self.previous_button.setToolTip("Previous case; the mask of this one is kept.")
        self.next_button = QPushButton("▶")
        self.next_button.setToolTip("Next case; the mask of this one is kept.")
        self.reviewed_button = QPushButton("Reviewed")
        self.reviewed_button.setToolTip("Remember that this case was reviewed.")
        self.done_button = QPushButton("Export, next")
        self.done_button.setToolTip(
            "Write the mask, mark the case as exported and go to the next one that is not."
        )
        self.ahead = QCheckBox("Segment the next case")
        self.ahead.setToolTip("While this one is corrected, unless it has a mask already.")
        self.status = note_label()
        self.add(self.open_button, self.output_button)
        self.add(self.list)
        self.add(
            self.previous_button,
            self.next_button,
            self.reviewed_button,
            self.done_button,
            stretch=(0, 0, 4, 5),
        )
        self.add(self.ahead)
        self.add(self.status)
        for button in (self.previous_button, self.next_button):
            button.setFixedWidth(34)
        for button in (self.reviewed_button, self.done_button):
            # Four in a row: with napari's margins they would widen the dock.
            button.setStyleSheet("QPushButton { padding: 3px 1px; min-width: 0px; }")
        self.ahead.setChecked(app.settings.get("worklist/ahead", True))
        self._work.ahead.segments = self.ahead.isChecked()
        self.open_button.clicked.connect(self.ask_for_folder)
        self.output_button.clicked.connect(self.ask_for_output)
        self.previous_button.clicked.connect(lambda: self._work.step(-1))
        self.next_button.clicked.connect(lambda: self._work.step(1))
        self.reviewed_button.clicked.connect(self._work.mark_reviewed)
        self.done_button.clicked.connect(self._work.finish_case)
        self.list.itemActivated.connect(self._go)
        self.list.itemClicked.connect(self._go)
        self.ahead.toggled.connect(self._on_ahead)
        self._work.changed.connect(self._show)
        self._show()

    def ask_for_folder(self) -> None:
        """Ask for a folder and open it as a worklist."""
        folder = QFileDialog.getExistingDirectory(self, "Work through the CTs of a folder")
        if folder:
            self.open_folder(folder)

    def open_folder(self, folder: str | Path) -> None:
        """Open a folder as a worklist; one that is a DICOM series as the CT that it is."""

        def opened(is_series: bool) -> None:
            if is_series:
                self._app.files.open(folder)
            elif isalive(self):
                self.is_open = True
                self._work.open(folder)

        self._app.background.submit(lambda: _is_one_series(Path(folder)), opened)

    def ask_for_output(self) -> None:
        """Ask where masks are to be written."""
        folder = QFileDialog.getExistingDirectory(self, "Folder for the masks")
        if folder:
            self._work.use_output(folder)

    def _go(self, item: QListWidgetItem) -> None:
        worklist, row = self._work.worklist, self.list.row(item)
        if worklist is not None and (row != worklist.current or self._work.case is None):
            self._work.go_to(row)

    def _on_ahead(self, on: bool) -> None:
        self._work.ahead.segments = on
        self._app.settings.set("worklist/ahead", on)

    def _show(self) -> None:
        if not isalive(self):
            return
        worklist = self._work.worklist
        there, idle = worklist is not None, not self._work.busy
        for widget in (self.list, self.ahead, self.status, self.output_button):
            widget.setVisible(there or (widget is self.status and not idle))
        for button in (
            self.previous_button,
            self.next_button,
            self.reviewed_button,
            self.done_button,
        ):
            button.setVisible(there)
            button.setEnabled(there and idle)
        if worklist is None:
            self.status.setText(self._work.busy)
            return
        self.list.blockSignals(True)
        while self.list.count() < len(worklist):
            self.list.addItem("")
        while self.list.count() > len(worklist):
            self.list.takeItem(self.list.count() - 1)
        for row, case in enumerate(worklist.cases):
            item = self.list.item(row)
            item.setText(f"{MARKS[case.status]}  {io.stem(Path(case.name))} · {case.status}")
            item.setToolTip(f"{case.name}: {case.status}")
        self.list.setCurrentRow(worklist.current)
        self.list.blockSignals(False)
        self.previous_button.setEnabled(idle and worklist.current > 0)
        self.next_button.setEnabled(idle and worklist.next_case is not None)
        exported = worklist.counts()[Status.EXPORTED]
        where = f"{exported} of {len(worklist)} exported. Masks go to '{worklist.output.name}' "
        where += "and replace those there."
        ahead = f" Next case: {self._work.ahead.state}." if self._work.ahead.state else ""
        self.status.setText(self._work.busy or where + ahead)
        self.status.setToolTip(str(worklist.output))


def _is_one_series(folder: Path) -> bool:
    """Whether all that a folder holds is one DICOM series; beside other CTs it is a case."""
    try:
        inputs = list(find_inputs([folder]))
    except PancreasSegError:
        return io.is_dicom(folder)  # deep below, where cases are not looked for
    return len(inputs) == 1 and io.is_dicom(inputs[0])
