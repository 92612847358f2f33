"""Which model, and on which device."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QAction
from qtpy.QtWidgets import QComboBox, QFileDialog, QMenu, QPushButton

from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.background import report
from napari_pancreas_seg._napari.widget.card_dialog import CardDialog
from napari_pancreas_seg._napari.widget.panel import Panel, label_of, narrow_combo, note_label
from napari_pancreas_seg.errors import PancreasSegError

__all__ = ["ModelPanel"]

AUTOMATIC = [{"id": "auto", "name": "Automatic"}, {"id": "cpu", "name": "CPU"}]


class ModelPanel(Panel):
    """Choose a model, read its card, choose where it runs.

    Parameters
    ----------
    app : App
        The viewer's session.
    """

    chosen = Signal()

    def __init__(self, app: App) -> None:
        super().__init__("Model")
        self._app = app
        self._background = app.background
        self._origins: dict[str, str] = {}
        self.combo = narrow_combo()
        self.card_button = _small_button("Card")
        self.card_button.setToolTip("What the model was trained on, how good it is, its licence.")
        self.more_button = _small_button("File")
        self.more_button.setToolTip("Use a model from a file or a folder.")
        self.device_combo = narrow_combo()
        self.device_note = note_label()
        self.origin_note = note_label()
        self.add(self.combo, self.card_button, self.more_button, stretch=(1, 0, 0))
        self.add(self.origin_note)
        self.add(label_of("Device"), self.device_combo, stretch=(0, 1))
        self.add(self.device_note)
        self._fill_menu()
        self.combo.addItem("default", "default")
        self._offer_devices()
        # In a thread: what reads bundles imports h5py, and there may be many.
        self._background.submit(_list_models, self._offer)
        self.card_button.clicked.connect(self.show_card)
        self.combo.currentIndexChanged.connect(self._on_chosen)
        self.device_combo.currentIndexChanged.connect(self._on_device)
        app.network.devices_changed.connect(self._offer_devices)
        app.settings.cleared.connect(self._reset)

    @property
    def model(self) -> str:
        """Name or path of the model that is chosen."""
        return self.combo.currentData() or "default"

    @property
    def device(self) -> str:
        """The device that is chosen, as `Options` has it."""
        return self.device_combo.currentData() or "auto"

    def use_file(self, path: str | Path) -> None:
        """Offer and choose a bundle from the disk.

        Raises
        ------
        PancreasSegError
            If it is no bundle.
        """
        from napari_pancreas_seg.model.bundle import load_card

        self._add_file(Path(path), load_card(path))

    def use_named(self, model: str) -> None:
        """Choose a model by name, one that has come since the list was made too, or by path."""
        if self.combo.findData(model) < 0 and Path(model).name == model:
            # In front of those from files, behind the default.
            self.combo.insertItem(1, model, model)
            self._origins[model] = ORIGINS["own"]
        if self.combo.findData(model) >= 0:
            _choose(self.combo, model)
        else:
            self._try_file(Path(model))

    def ask_for_file(self) -> None:
        """Ask for a bundle in a zip file and choose it."""
        path, _ = QFileDialog.getOpenFileName(
            self, "Use a model", "", "Model bundle (*.zip card.json);;All files (*)"
        )
        if path:
            # A bundle that is a folder may be picked by its card.
            self._try_file(Path(path).parent if Path(path).name == "card.json" else Path(path))

    def ask_for_folder(self) -> None:
        """Ask for a bundle that is a folder and choose it."""
        path = QFileDialog.getExistingDirectory(self, "Use a model")
        if path:
            self._try_file(Path(path))

    def show_card(self) -> None:
        """Show the card of the chosen model."""
        from napari_pancreas_seg.model.bundle import load_card

        try:
            card = load_card(self.model)
        except PancreasSegError as error:
            report(error)
            return
        CardDialog(card, self).show()

    def _try_file(self, path: Path) -> None:
        try:
            self.use_file(path)
        except PancreasSegError as error:
            report(error)

    def _add_file(self, path: Path, card: Mapping[str, Any]) -> None:
        place = self.combo.findData(str(path))
        if place < 0:
            self._origins[str(path)] = f"From {path.name}"
            self.combo.addItem(str(card.get("name", path.stem)), str(path))
            place = self.combo.count() - 1
        self.combo.setCurrentIndex(place)

    def _fill_menu(self) -> None:
        menu = QMenu(self.more_button)
        for text, slot in (
            ("Model from a file…", self.ask_for_file),
            ("Model from a folder…", self.ask_for_folder),
        ):
            action = QAction(text, menu)
            action.triggered.connect(slot)
            menu.addAction(action)
        self.more_button.setMenu(menu)

    def _offer(self, entries: list[tuple[str, str, str]]) -> None:
        """Offer the models that were found, in front of those that came from files."""
        if not entries:
            return
        before = self.model
        self.combo.blockSignals(True)
        self.combo.removeItem(self.combo.findData("default"))  # stood in until now
        for place, (name, origin, tip) in enumerate(entries):
            self._origins[name] = origin
            self.combo.insertItem(place, name, name)
            self.combo.setItemData(place, tip, Qt.ItemDataRole.ToolTipRole)
        remembered = self._app.settings.get("model/name", "default")
        _choose(self.combo, before if before != "default" else remembered)
        self.combo.blockSignals(False)
        with contextlib.suppress(PancreasSegError, OSError, ValueError):  # it may have gone since
            if self.model != remembered and Path(remembered).exists():
                self.use_file(remembered)
        self._show_origin()
        if self.model != before:
            self.chosen.emit()

    def _offer_devices(self) -> None:
        """Offer the devices that the network's process has told, or those that always are."""
        found = self._app.network.devices
        devices = [AUTOMATIC[0], *found] if found else AUTOMATIC
        wanted = self._app.settings.get("model/device", "auto")
        self.device_combo.blockSignals(True)
        self.device_combo.clear()
        for device in devices:
            self.device_combo.addItem(device["name"], device["id"])
        _choose(self.device_combo, wanted)
        self.device_combo.blockSignals(False)
        self.device_note.setText(self._app.network.why_no_gpu)
        self.device_note.setVisible(bool(self._app.network.why_no_gpu))

    def _on_chosen(self) -> None:
        self._app.settings.set("model/name", self.model)
        self._show_origin()
        self.chosen.emit()

    def _on_device(self) -> None:
        self._app.settings.set("model/device", self.device)
        self.chosen.emit()

    def _show_origin(self) -> None:
        origin = self._origins.get(self.model, "")
        self.origin_note.setText(origin)
        self.origin_note.setVisible(bool(origin))
        self.combo.setToolTip(
            self.combo.itemData(self.combo.currentIndex(), Qt.ItemDataRole.ToolTipRole) or ""
        )

    def _reset(self) -> None:
        _choose(self.combo, "default")
        _choose(self.device_combo, "auto")


def _choose(combo: QComboBox, data: str) -> None:
    combo.setCurrentIndex(max(0, combo.findData(data)))


def _small_button(text: str) -> QPushButton:
    button = QPushButton(text)
    button.setStyleSheet("QPushButton { min-width: 0px; padding: 3px 6px; }")
    return button


ORIGINS = {
    "bundled": "Comes with the program",
    "own": "One of your own models",
    "cached": "Downloaded before",
    "known": "Will be downloaded on the first run",
}


def _list_models() -> list[tuple[str, str, str]]:
    """List names, where they come from and short descriptions; the default first."""
    from napari_pancreas_seg.model.bundle import list_models

    entries = sorted(list_models(), key=lambda entry: entry.name != "default")
    return [
        (entry.name, ORIGINS.get(entry.origin, entry.origin), _summary(entry.card))
        for entry in entries
    ]


def _summary(card: Mapping[str, Any]) -> str:
    """Say in a few lines what a model is."""
    lines = [f"{card.get('name', 'model')} {card.get('version', '')}".strip()]
    lines += [str(card[key]) for key in ("description", "licence") if card.get(key)]
    return "\n".join(lines)
