"""Which model, and on which device."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtpy.compat import isalive
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QFileDialog

import napari_pancreas_seg._napari.widget.ui as ui
from napari_pancreas_seg._napari.app import App
from napari_pancreas_seg._napari.background import reported
from napari_pancreas_seg._napari.widget.dialogs import TextDialog, card_html
from napari_pancreas_seg.errors import PancreasSegError

DEFAULT, AUTOMATIC = "default", "auto"
ALWAYS = [{"id": "cpu", "name": "CPU"}]
ORIGINS = {
    "bundled": "Comes with the program",
    "own": "One of your own models",
    "cached": "In the cache folder",
}


class ModelPanel(ui.Panel):
    """Chooses a model and a device, and shows the model's card."""

    chosen = Signal()

    def __init__(self, app: App) -> None:
        super().__init__()
        self._settings, self._network = app.settings, app.network
        self._models: dict[str, tuple[str, str, str]] = {}
        """Text, origin and description by name or path."""
        self.combo = ui.choice()
        tip = "What the model was trained on, how good it is, its licence."
        self.card_button = ui.button("Card", tip, self.show_card)
        tip = "Use a packed model (.zip), or one in a folder: choose the folder's card.json."
        self.file_button = ui.button("File…", tip, self.ask_for_file)
        self.origin_note = ui.OneLine()
        self.device_combo = ui.choice("What the network runs on.")
        self.device_note = ui.OneLine()
        row = ("Model", self.combo, self.card_button, self.file_button)
        self.add(*row, stretch=(0, 1, 0, 0))
        self.add(self.origin_note)
        self.add("Device", self.device_combo)
        self.add(self.device_note)
        self._know(DEFAULT, DEFAULT, "")
        self._offer_models(DEFAULT)
        self._offer_devices()
        # In a thread: what reads bundles imports h5py, and there may be many.
        app.background.submit(_list_models, self._listed)
        self.combo.changed.connect(self._on_model)
        self.device_combo.changed.connect(self._on_device)
        self._network.devices_changed.connect(self._offer_devices)
        self._settings.cleared.connect(self._reset)

    @property
    def model(self) -> str:
        return self.combo.value or DEFAULT

    @property
    def device(self) -> str:
        return self.device_combo.value or AUTOMATIC

    def use_file(self, path: str | Path) -> None:
        """Offer and choose a bundle from the disk; a PancreasSegError if it is none."""
        from napari_pancreas_seg.model.bundle import load_card

        path = Path(path)
        self._know(str(path), load_card(path)["name"], f"From {path.name}")
        self._offer_models(str(path))
        self._on_model()

    def use_named(self, model: str) -> None:
        """Choose a model by name, one that has come since the list was made too, or by path."""
        if model not in self._models and Path(model).name != model:
            self._try_file(Path(model))
            return
        if model not in self._models:
            self._know(model, model, ORIGINS["own"])
        self._offer_models(model)
        self._on_model()

    def ask_for_file(self) -> None:
        path, _ = QFileDialog.getOpenFileName(
            self, "Use a model", "", "Model bundle (*.zip card.json);;All files (*)"
        )
        if path:
            # A bundle that is a folder is picked by its card.
            self._try_file(Path(path).parent if Path(path).name == "card.json" else Path(path))

    def show_card(self) -> None:
        from napari_pancreas_seg.model.bundle import load_card

        with reported():
            card = load_card(self.model)
            TextDialog(f"Model: {card['name']}", card_html(card), self).show()

    def _try_file(self, path: Path) -> None:
        with reported():
            self.use_file(path)

    def _know(self, model: str, text: str, origin: str, about: str = "") -> None:
        taken = {known[0] for other, known in self._models.items() if other != model}
        self._models[model] = (f"{text} ({model})" if text in taken else text, origin, about)

    def _offer_models(self, model: str) -> None:
        """Offer the models that are known: the default first, those from files last."""
        order = sorted(self._models, key=lambda one: (one != DEFAULT, Path(one).name != one))
        ui.offer(self.combo, [(self._models[one][0], one) for one in order], model)
        for place, one in enumerate(order):
            self.combo.native.setItemData(place, self._models[one][2], Qt.ItemDataRole.ToolTipRole)
        _, origin, about = self._models.get(self.model, ("", "", ""))
        self.origin_note.setText(origin)
        self.combo.tooltip = about or self.combo.current_choice

    def _listed(self, entries: list[tuple[str, str, str]]) -> None:
        if not isalive(self):
            return
        before = self.model
        for name, origin, about in entries:
            self._know(name, name, origin, about)
        remembered = self._settings.get("model/name", DEFAULT)
        wanted = before if before != DEFAULT else remembered
        self._offer_models(wanted if wanted in self._models else DEFAULT)
        with contextlib.suppress(PancreasSegError, OSError, ValueError):  # it may have gone since
            if wanted not in self._models and Path(wanted).exists():
                self.use_file(wanted)
        if self.model != before:
            self.chosen.emit()

    def _offer_devices(self) -> None:
        """List the devices that the network's process has reported, or else the usual ones."""
        devices = self._network.devices or ALWAYS
        choices = [("Automatic", AUTOMATIC), *((one["name"], one["id"]) for one in devices)]
        wanted = self._settings.get("model/device", AUTOMATIC)
        known = any(wanted == device for _, device in choices)
        ui.offer(self.device_combo, choices, wanted if known else AUTOMATIC)
        self.device_note.setText(self._network.why_no_gpu)

    def _on_model(self) -> None:
        self._settings.set("model/name", self.model)
        self._offer_models(self.model)
        self.chosen.emit()

    def _on_device(self) -> None:
        self._settings.set("model/device", self.device)
        self.chosen.emit()

    def _reset(self) -> None:
        self._offer_models(DEFAULT)
        self._offer_devices()
        self.chosen.emit()


def _list_models() -> list[tuple[str, str, str]]:
    from napari_pancreas_seg.model.bundle import list_models

    return [
        (entry.name, ORIGINS.get(entry.origin, entry.origin), _summary(entry.card))
        for entry in list_models()
    ]


def _summary(card: Mapping[str, Any]) -> str:
    about = [str(card[key]) for key in ("description", "licence") if card.get(key)]
    return "\n".join([f"{card['name']} {card['version']}", *about])
