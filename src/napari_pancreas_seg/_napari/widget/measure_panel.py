"""What is measured on the mask, live: size, HU, extent, and agreement with a reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from napari.layers import Labels
from napari.utils.notifications import show_info
from qtpy.compat import isalive
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication, QFileDialog, QGridLayout, QLabel, QSizePolicy, QWidget

import napari_pancreas_seg._napari.widget.ui as ui
from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.background import Newest, timer
from napari_pancreas_seg._napari.layers.bridge import CUTS_KEY, cuts_of, labels_of
from napari_pancreas_seg._napari.layers.measure import MaskToMeasure, Measured, measure_layers
from napari_pancreas_seg._napari.layers.placement import GridReference, lies_on, show_slice
from napari_pancreas_seg.errors import counted
from napari_pancreas_seg.io.table import table_text, write_table
from napari_pancreas_seg.mask import metrics
from napari_pancreas_seg.mask.centreline import CUTS

NOTHING = "(nothing)"
PAUSE_MS = 150
"""Pause between an edit and the measurement; edits meanwhile wait for the next one."""

ROWS = {
    "volume": ("Volume", "{volume_ml:.1f} mL in {in_slices}", "Voxels times a voxel's volume."),
    "classes": ("Classes", "", "Volume of each; with a reference, its Dice too."),
    "parts": (
        "Head, body, tail",
        "{head_ml:.1f}, {body_ml:.1f}, {tail_ml:.1f} mL\n"
        "cut in slices {cut_slices[0]} and {cut_slices[1]}",
        "Volumes between the cuts on the centreline.",
    ),
    "extent": (
        "Extent",
        "{extent_mm[0]:.0f} × {extent_mm[1]:.0f} × {extent_mm[2]:.0f} mm",
        "Edges of the mask's box along the CT's axes: z × y × x.",
    ),
    "surface_dice": (
        "Surface Dice",
        "{surface_dice_2mm:.3f}",
        f"Share of both surfaces within {metrics.SURFACE_TOLERANCE_MM:g} mm of the other one.",
    ),
}
"""Names of lines, what they say, and what that is."""
PAIRED_ROWS = {
    "hu": ("HU", "{mean_hu:.0f} ± {sd_hu:.0f}", "Mean ± SD of the CT's voxels in the mask."),
    "eroded": ("HU inside", "{eroded_mean_hu:.0f} ± {eroded_sd_hu:.0f}", "Without the edge."),
    "fat": ("Fat", "{fat_fraction:.0f} %", "Share of -190 to -30 HU within the closed outline."),
    "surface": ("Surface", "{surface_cm2:.0f} cm²", "Area of the smoothed surface."),
    "length": ("Length", "{length_mm:.0f} mm", "Of the centreline, from head to tail."),
    "calibre": ("Calibre", "{calibre_mm:.0f} mm", "Diameter of the largest ball that fits in."),
    "diameter": ("Diameter", "{diameter_3d_mm:.0f} mm", "Largest distance between two points."),
    "in_plane": ("in a slice", "{diameter_in_plane_mm:.0f} mm", "Largest within an axial slice."),
    "dice": ("Dice", "{dice:.3f}", "2 |A ∩ B| / (|A| + |B|): 1 for equal masks."),
    "hd95": ("HD95", "{hd95_mm:.1f} mm", "95th percentile of the distances of the surfaces."),
}
"""Short ones, two of which share a line: all must fit on a small screen."""
COMPARED = ("dice", "hd95", "surface_dice")


class MeasurePanel(ui.Panel):
    """Measures the mask that is worked on, whenever it changes, in a thread."""

    def __init__(self, app: App) -> None:
        super().__init__("Measure")
        self._session, self._background, self._units = app.session, app.background, app.units
        self._newest = Newest(app.background)
        self._ct = ""  # id of the CT that was measured last
        self._moved: int | None = None  # the cut that a person has moved, until it is shown
        self._pause = timer(self, PAUSE_MS, self._measure)
        self.values: dict[str, QLabel] = {}
        self._names: dict[str, QLabel] = {}
        self.mask_name = ui.OneLine()
        self.reference_combo = ui.choice("A mask on the same grid, such as a radiologist's.")
        tip = "Every mask of this CT, a row each: paste it into a spreadsheet."
        self.copy_button = ui.button("Copy table", tip, self.copy_table)
        self.csv_button = ui.button("Save CSV…", "The same table as a file.", self.ask_and_save)
        self.add(self.mask_name)
        self.add("Compare with", self.reference_combo)
        self.add(self._table(ROWS, 1))
        self.add(self._table(PAIRED_ROWS, 2))
        tip = "Where the centreline is cut into head, body and tail: share of its length."
        self.cuts = [ui.number("%", 0, 100, 1, tip, decimals=0) for _ in CUTS]
        self.add("Cuts at", *self.cuts)
        self.add(self.copy_button, self.csv_button)
        self.reference_combo.changed.connect(self._later)
        for field in self.cuts:
            field.changed.connect(self._cut)
        self._session.mask_chosen.connect(self._on_mask)
        self._session.mask_changed.connect(self._on_edit)
        self._on_mask()

    def refresh(self, reference: GridReference | None) -> None:
        before, mask = self.reference_combo.value, self._session.mask
        layers = [] if reference is None else self._session.mask_layers(reference)
        others = [layer for layer in layers if layer is not mask]
        choices = [(NOTHING, None), *((layer.name, layer) for layer in others)]
        ui.offer(self.reference_combo, choices, before if before in others else None)
        self.reference_combo.enabled = bool(others)
        self.mask_name.setText("No mask yet" if mask is None else f"Mask: {mask.name}")
        ct = "" if reference is None else reference.id
        if ct != self._ct:  # the mask may lie on both, with other HU in it
            self._ct = ct
            self._show(None)
            self._later()
        elif self.reference_combo.value is not before:
            self._later()
        for part in (self.copy_button, self.csv_button):
            part.setEnabled(mask is not None)

    def copy_table(self) -> None:

        def copy(rows: list[dict[str, Any]]) -> None:
            QApplication.clipboard().setText(table_text(rows))
            masks = counted(len(rows), "mask")
            show_info(f"The table of {masks} is on the clipboard.")

        self._tabulate(copy)

    def ask_and_save(self) -> None:
        reference = self._session.reference
        name = "measurements" if reference is None else f"{reference.name}_measurements"
        path, _ = QFileDialog.getSaveFileName(
            self, "Save the table", f"{name}.csv", "Comma-separated values (*.csv)"
        )
        if path:
            target = Path(path) if Path(path).suffix else Path(f"{path}.csv")
            # The dialog has asked about the name that was typed, and about no other.
            self.save_table(target, overwrite=target == Path(path) and target.exists())

    def save_table(self, path: str | Path, *, overwrite: bool = False) -> None:

        def write(rows: list[dict[str, Any]]) -> None:
            self._background.submit(
                lambda: write_table(rows, path, overwrite=overwrite),
                lambda _: show_info(f"The table was written to {Path(path).name}."),
            )

        self._tabulate(write)

    def _table(self, rows: dict[str, tuple[str, str, str]], in_line: int) -> QWidget:
        """Names and values, so many in a line."""
        table = QWidget()
        grid = QGridLayout(table)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setHorizontalSpacing(6)
        grid.setVerticalSpacing(3)
        for place, (key, (name, _, tip)) in enumerate(rows.items()):
            self._names[key], self.values[key] = QLabel(name), QLabel("–")
            self._names[key].setToolTip(tip)
            # A long value must not widen the dock.
            self.values[key].setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
            self.values[key].setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
            line, part = divmod(place, in_line)
            grid.addWidget(self._names[key], line, 2 * part)
            grid.addWidget(self.values[key], line, 2 * part + 1)
            grid.setColumnStretch(2 * part + 1, 1)
        return table

    def _cut(self, share: float) -> None:
        mask = self._session.mask
        if mask is not None:
            first, second = sorted(field.value / 100 for field in self.cuts)
            mask.metadata[CUTS_KEY] = (first, second)
            self._moved = int(share / 100 >= second)
            self._session.cuts_moved.emit(mask)
            self._later()

    def _on_mask(self) -> None:
        mask = self._session.mask
        cuts = (None if mask is None else cuts_of(mask)) or CUTS
        for field, share in zip(self.cuts, cuts, strict=True):
            ui.show(field, round(100 * share))
        self._show(None)
        self.refresh(self._session.reference)
        self._later()

    def _on_edit(self, layer: Labels) -> None:
        if layer in (self._session.mask, self.reference_combo.value):
            self._later()

    def _later(self, choice: object = None) -> None:
        if not self._pause.isActive():
            self._pause.start()

    def _measure(self) -> None:
        mask = self._session.mask
        job = self._job(mask)
        if job is None:
            self._show(None)
        else:
            self._newest.ask(lambda: measure_layers(job), partial(self._measured, mask, job.grid))

    def _measured(self, of: Labels | None, on: GridReference, found: Measured) -> None:
        if isalive(self):
            ct = self._session.reference
            same = of is self._session.mask and ct is not None and ct.id == on.id
            self._show(found if same else None)
            if same:
                self._show_cut(found.mask.get("cut_slices"))

    def _show_cut(self, slices: list[int] | None) -> None:
        """Bring the slice on screen in which the cut lies that was moved."""
        moved, self._moved = self._moved, None
        viewer, ct, reference = self._session.viewer, self._session.ct, self._session.reference
        if moved is not None and slices and viewer and ct is not None and reference is not None:
            show_slice(viewer, ct, reference, slices[moved])

    def _job(self, mask: Labels | None) -> MaskToMeasure | None:
        reference, ct = self._session.reference, self._session.ct
        if mask is None or reference is None or ct is None or not lies_on(mask, reference):
            return None
        cuts, labels = cuts_of(mask) or CUTS, labels_of(mask)
        units = partial(self._units.of, ct, reference)
        job = MaskToMeasure(
            mask.name, mask.data, reference, ct.data, units, labels=labels, cuts=cuts
        )
        other = self.reference_combo.value
        if other is None or other is mask:
            return job
        theirs = labels_of(other)
        return replace(
            job, reference_name=other.name, reference=other.data, reference_labels=theirs
        )

    def _tabulate(self, then: Callable[[list[dict[str, Any]]], None]) -> None:
        reference = self._session.reference
        layers = [] if reference is None else self._session.mask_layers(reference)
        layers.sort(key=lambda layer: layer is not self._session.mask)
        jobs = [job for job in map(self._job, layers) if job is not None]
        if jobs:
            self._background.submit(
                lambda: [row for job in jobs for row in measure_layers(job).rows], then
            )

    def _show(self, found: Measured | None) -> None:
        compared = found is not None and found.comparison is not None
        for key in COMPARED:
            self._names[key].setVisible(compared)
            self.values[key].setVisible(compared)
        for part in (self._names["classes"], self.values["classes"]):
            part.setVisible(found is not None and bool(found.classes))
        reasons = {} if found is None else found.mask["not_measured"]
        for key, (_, form, tip) in {**ROWS, **PAIRED_ROWS}.items():
            self.values[key].setText(_text(form, found) if form else _class_texts(found))
            self.values[key].setToolTip(reasons.get(form.split(":")[0].strip("{"), tip))


def _text(form: str, found: Measured | None) -> str:
    """What was measured in words; a dash for what was not."""
    if found is None:
        return "–"
    known = {**found.mask, **(found.comparison or {})}
    known["in_slices"] = counted(known["slices"], "slice")
    if known["fat_fraction"] is not None:
        known["fat_fraction"] *= 100
    if not known["voxels"]:
        shown = ("volume_ml", "in_slices", "dice")
        known = {key: known[key] for key in shown if key in known}
    try:
        return form.format_map(known)
    except (KeyError, TypeError):  # None has no decimals
        return "–"


def _class_texts(found: Measured | None) -> str:
    lines = []
    for name, each in ({} if found is None else found.classes).items():
        dice = None if each.comparison is None else each.comparison["dice"]
        agreement = "" if dice is None else f", Dice {dice:.3f}"
        lines.append(f"{name} {each.mask['volume_ml']:.1f} mL{agreement}")
    return "\n".join(lines) or "–"
