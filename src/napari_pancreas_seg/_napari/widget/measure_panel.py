"""What is measured on the mask, live: size, HU, extent, and agreement with a reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from napari.layers import Labels
from napari.utils.notifications import show_info
from qtpy.compat import isalive
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QApplication,
    QFileDialog,
    QGridLayout,
    QLabel,
    QSizePolicy,
    QWidget,
)

import napari_pancreas_seg._napari.widget.ui as ui
from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.background import Newest, timer
from napari_pancreas_seg._napari.layers.bridge import CUTS_KEY, cuts_of, labels_of
from napari_pancreas_seg._napari.layers.measure import MaskToMeasure, Measured, measure_layers
from napari_pancreas_seg._napari.layers.placement import GridReference, lies_on, show_slice
from napari_pancreas_seg.io.table import table_text, write_table
from napari_pancreas_seg.mask import metrics
from napari_pancreas_seg.mask.centreline import CUTS

NOTHING = "(nothing)"
PAUSE_MS = 150
"""How soon after an edit the mask is measured; edits meanwhile wait for the next time."""

ROWS = (
    ("volume", "Volume", "Voxels of the mask times the volume of a voxel."),
    ("classes", "of which", "Volume of each class; with a reference, its Dice too."),
    ("hu", "HU", "Mean ± SD of the CT's voxels in the mask; SD of the population."),
    ("eroded", "HU inside", "The same without the outermost voxels of the mask."),
    ("fat", "Fat", "Share of voxels from -190 to -30 HU within the closed outline."),
    ("length", "Length", "Of the centreline, from head to tail."),
    ("calibre", "Calibre", "Diameter of the largest ball that fits into the mask."),
    ("surface", "Surface", "Area of the smoothed surface."),
    ("parts", "Head, body, tail", "Volumes between the cuts on the centreline."),
    ("extent", "Extent", "Edges of the box around the mask along the CT's axes: z × y × x."),
    ("diameter", "Diameter", "Largest distance between two points of the surface."),
    ("in_plane", "in a slice", "Largest distance between two points of one slice's outline."),
    ("dice", "Dice", "2 |A ∩ B| / (|A| + |B|): 1 for equal masks."),
    ("hd95", "HD95", "95th percentile of the distances between the two surfaces, both ways."),
    (
        "surface_dice",
        "Surface Dice",
        "Share of both surfaces that lies within "
        f"{metrics.SURFACE_TOLERANCE_MM:g} mm of the other one.",
    ),
)
COMPARED = ("dice", "hd95", "surface_dice")
PAIRED = (
    *("hu", "eroded", "fat", "surface", "length", "calibre"),
    *("diameter", "in_plane", "dice", "hd95"),
)
"""Short values, two of which share a line: all must fit on a small screen."""
MEASURE_OF = {
    "hu": "mean_hu",
    "eroded": "eroded_mean_hu",
    "fat": "fat_fraction",
    "length": "length_mm",
    "calibre": "calibre_mm",
    "surface": "surface_cm2",
    "parts": "head_ml",
}
"""Rows that may be missing, and the measure that says why."""


class MeasurePanel(ui.Panel):
    """Measures the mask that is worked on, whenever it changes, in a thread."""

    def __init__(self, app: App) -> None:
        super().__init__("Measure")
        self._session, self._background = app.session, app.background
        self._newest = Newest(app.background)
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
        known = {row[0]: row for row in ROWS}
        self.add(self._table([row for row in ROWS if row[0] not in PAIRED], 1))
        self.add(self._table([known[key] for key in PAIRED], 2))
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

    @property
    def reference_layer(self) -> Labels | None:
        return self.reference_combo.value

    def refresh(self, reference: GridReference | None) -> None:
        before, mask = self.reference_layer, self._session.mask
        layers = [] if reference is None else self._session.mask_layers(reference)
        others = [layer for layer in layers if layer is not mask]
        choices = [(NOTHING, None), *((layer.name, layer) for layer in others)]
        ui.offer(self.reference_combo, choices, before if before in others else None)
        self.reference_combo.enabled = bool(others)
        self.mask_name.setText("No mask yet" if mask is None else f"Mask: {mask.name}")
        if self.reference_layer is not before:
            self._later()
        for part in (self.copy_button, self.csv_button):
            part.setEnabled(mask is not None)

    def copy_table(self) -> None:

        def copy(rows: list[dict[str, Any]]) -> None:
            QApplication.clipboard().setText(table_text(rows))
            plural = "mask" if len(rows) == 1 else "masks"
            show_info(f"The table of {len(rows)} {plural} is on the clipboard.")

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

    def _table(self, rows: Sequence[tuple[str, str, str]], in_line: int) -> QWidget:
        """Names and values, so many in a line."""
        table = QWidget()
        grid = QGridLayout(table)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setHorizontalSpacing(6)
        grid.setVerticalSpacing(3)
        for place, (key, name, tip) in enumerate(rows):
            self._names[key], self.values[key] = ui.label_of(name, tip), ui.label_of("–", tip)
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
            self._later()

    def _on_mask(self) -> None:
        if isalive(self):
            mask = self._session.mask
            cuts = (None if mask is None else cuts_of(mask)) or CUTS
            for field, share in zip(self.cuts, cuts, strict=True):
                ui.show(field, round(100 * share))
            self._show(None)
            self.refresh(self._session.reference)
            self._later()

    def _on_edit(self, layer: Labels) -> None:
        if isalive(self) and layer in (self._session.mask, self.reference_layer):
            self._later()

    def _later(self, choice: object = None) -> None:
        if not self._pause.isActive():
            self._pause.start()

    def _measure(self) -> None:
        if not isalive(self):
            return
        job = self._job(self._session.mask)
        if job is None:
            self._show(None)
        else:
            self._newest.ask(lambda: measure_layers(job), self._measured)

    def _measured(self, found: Measured) -> None:
        if isalive(self):
            same = self._session.mask is not None and found.row["mask"] == self._session.mask.name
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
        reference, ct, other = self._session.reference, self._session.ct, self.reference_layer
        if mask is None or reference is None or ct is None or not lies_on(mask, reference):
            return None
        cuts, labels = cuts_of(mask) or CUTS, labels_of(mask)
        job = MaskToMeasure(mask.name, mask.data, reference, ct.data, labels=labels, cuts=cuts)
        if other is None or other is mask:
            return job
        return replace(job, reference_name=other.name, reference=other.data)

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
        for key, text in _texts(found).items():
            self.values[key].setText(text)
        reasons = {} if found is None else found.mask["not_measured"]
        for key, _, tip in ROWS:
            self.values[key].setToolTip(reasons.get(MEASURE_OF.get(key, ""), tip))


def _texts(found: Measured | None) -> dict[str, str]:
    texts = dict.fromkeys((key for key, _, _ in ROWS), "–")
    if found is None:
        return texts
    mask = found.mask
    plural = "slice" if mask["slices"] == 1 else "slices"
    texts["volume"] = f"{mask['volume_ml']:.1f} mL in {mask['slices']} {plural}"
    if found.classes:
        lines = [_class_text(name, each) for name, each in found.classes.items()]
        texts["classes"] = "\n".join(lines)
    if mask["voxels"]:
        z, y, x = mask["extent_mm"]
        texts["extent"] = f"{z:.0f} × {y:.0f} × {x:.0f} mm"
        texts["diameter"] = f"{mask['diameter_3d_mm']:.0f} mm"
        texts["in_plane"] = f"{mask['diameter_in_plane_mm']:.0f} mm"
    for key, mean, sd in (("hu", "mean_hu", "sd_hu"), ("eroded", "eroded_mean_hu", "eroded_sd_hu")):
        if mask[mean] is not None:
            texts[key] = f"{mask[mean]:.0f} ± {mask[sd]:.0f}"
    if mask["fat_fraction"] is not None:
        texts["fat"] = f"{100 * mask['fat_fraction']:.0f} %"
    if mask["surface_cm2"] is not None:
        texts["surface"] = f"{mask['surface_cm2']:.0f} cm²"
    if mask["length_mm"] is not None:
        texts["length"] = f"{mask['length_mm']:.0f} mm"
        texts["calibre"] = f"{mask['calibre_mm']:.0f} mm"
        parts = [f"{mask[key]:.1f}" for key in ("head_ml", "body_ml", "tail_ml")]
        first, second = mask["cut_slices"]
        texts["parts"] = f"{', '.join(parts)} mL\ncut in slices {first} and {second}"
    if found.comparison is not None:
        dice, hd95 = found.comparison["dice"], found.comparison["hd95_mm"]
        surface = found.comparison["surface_dice_2mm"]
        texts["dice"] = f"{dice:.3f}"
        texts["hd95"] = "–" if hd95 is None else f"{hd95:.1f} mm"
        texts["surface_dice"] = "–" if surface is None else f"{surface:.3f}"
    return texts


def _class_text(name: str, found: Measured) -> str:
    text = f"{name} {found.mask['volume_ml']:.1f} mL"
    dice = None if found.comparison is None else found.comparison["dice"]
    return text if dice is None else f"{text}, Dice {dice:.3f}"
