"""Which model: a bundled one, one from the cache, or one from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QFileDialog, QMessageBox, QPushButton

from napari_pancreas_seg._napari.background import Background, report
from napari_pancreas_seg._napari.widget.panel import Panel, narrow_combo
from napari_pancreas_seg.errors import PancreasSegError

__all__ = ["ModelPanel"]


class ModelPanel(Panel):
    """Choose a model and read its card."""

    chosen = Signal()

    def __init__(self) -> None:
        super().__init__("Model")
        self._background = Background(self)
        self.combo = narrow_combo()
        self.file_button = QPushButton("From file…")
        self.card_button = QPushButton("Card")
        self.card_button.setToolTip("What the model was trained on, and how good it is.")
        self.add(self.combo, self.card_button, self.file_button, stretch=(1, 0, 0))
        self.combo.addItem("default", "default")
        # In a thread: what reads bundles imports h5py, and there may be many.
        self._background.submit(_list_models, self._offer)
        self.file_button.clicked.connect(self.ask_for_file)
        self.card_button.clicked.connect(self.show_card)
        self.combo.currentIndexChanged.connect(self._on_chosen)

    @property
    def model(self) -> str:
        """Name or path of the model that is chosen."""
        return self.combo.currentData() or "default"

    def use_file(self, path: str | Path) -> None:
        """Offer and choose a bundle from the disk.

        Raises
        ------
        PancreasSegError
            If it is no bundle.
        """
        from napari_pancreas_seg.model.bundle import load_card

        card = load_card(path)
        self.combo.addItem(str(card.get("name", Path(path).stem)), str(path))
        self.combo.setCurrentIndex(self.combo.count() - 1)

    def ask_for_file(self) -> None:
        """Ask for a bundle and choose it."""
        pattern = "Model bundle (*.zip card.json);;All files (*)"
        path, _ = QFileDialog.getOpenFileName(self, "Use a model", "", pattern)
        if not path:
            return
        # A bundle that is a folder is picked by its card.
        bundle = Path(path).parent if Path(path).name == "card.json" else Path(path)
        try:
            self.use_file(bundle)
        except PancreasSegError as error:
            report(error)

    def show_card(self) -> None:
        """Show the card of the chosen model."""
        from napari_pancreas_seg.model.bundle import load_card

        try:
            card = load_card(self.model)
        except PancreasSegError as error:
            report(error)
            return
        box = QMessageBox(self)
        box.setWindowTitle(self.combo.currentText())
        box.setText(_summary(card))
        box.setDetailedText(json.dumps(dict(card), indent=2, ensure_ascii=False, default=str))
        box.open()

    def _offer(self, entries: list[tuple[str, str]]) -> None:
        """Offer the models that were found, in front of those that came from files."""
        if not entries:
            return
        self.combo.blockSignals(True)
        self.combo.removeItem(self.combo.findData("default"))  # stood in until now
        for place, (name, tip) in enumerate(entries):
            self.combo.insertItem(place, name, name)
            self.combo.setItemData(place, tip, Qt.ItemDataRole.ToolTipRole)
        if self.combo.currentIndex() < 0:
            self.combo.setCurrentIndex(0)
        self.combo.blockSignals(False)

    def _on_chosen(self) -> None:
        self.chosen.emit()


def _list_models() -> list[tuple[str, str]]:
    """List names and short descriptions; the default first."""
    from napari_pancreas_seg.model.bundle import list_models

    entries = sorted(list_models(), key=lambda entry: entry.name != "default")
    return [(entry.name, f"{_summary(entry.card)}\n({entry.origin})") for entry in entries]


def _summary(card: Mapping[str, Any]) -> str:
    """Say in a few lines what a model is."""
    lines = [f"{card.get('name', 'model')} {card.get('version', '')}".strip()]
    lines += [str(card[key]) for key in ("description", "licence") if card.get(key)]
    return "\n".join(lines)
