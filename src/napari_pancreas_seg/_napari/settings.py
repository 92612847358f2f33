"""What the panels remember from one session to the next: a small JSON file of the user's."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs
from napari.settings import get_plugin_settings
from qtpy.compat import isalive
from qtpy.QtCore import QObject, Signal

from napari_pancreas_seg._napari.background import timer
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.files import write_json

logger = logging.getLogger(__name__)

PAUSE_MS = 500
"""A slider that is dragged is written once, when it rests."""


def settings_path() -> Path:
    folder = platformdirs.user_config_dir("napari-pancreas-seg", appauthor=False)
    return Path(folder) / "window.json"


def preference(name: str) -> bool:
    """Whether something is wished, as our page of napari's Preferences says; yes by default."""
    try:
        return bool(getattr(get_plugin_settings("napari-pancreas-seg").panel, name))
    except (KeyError, AttributeError):
        return True


def follow_preference(name: str, heard: Callable[[Any], None]) -> None:
    """Let a method hear when our page of napari's Preferences says something else."""
    with contextlib.suppress(KeyError, AttributeError):
        getattr(get_plugin_settings("napari-pancreas-seg").panel.events, name).connect(heard)


class Settings(QObject):
    """Values by name, written soon after they change; a damaged file gives the defaults."""

    cleared = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._path = settings_path()
        self._values: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, RecursionError):
            # NaN and infinity are no JSON; what is None is taken for not remembered.
            text = self._path.read_text(encoding="utf-8")
            read = json.loads(text, parse_constant=lambda _: None)
            self._values = read if isinstance(read, dict) else {}
        self._soon = timer(self, PAUSE_MS, self.save)

    def get(self, name: str, default: Any) -> Any:
        """Value of a name such as ``"run/postprocess"``, if one of the default's type is known."""
        value = self._values.get(name, default)
        return value if default is None or isinstance(value, type(default)) else default

    def set(self, name: str, value: Any) -> None:
        if name not in self._values or self._values[name] != value:
            self._values[name] = value
            self._soon.start()

    def clear(self) -> None:
        self._values.clear()
        self.save()
        self.cleared.emit()

    def save(self) -> None:
        if isalive(self._soon):  # not once Qt has ended before us
            self._soon.stop()
        try:
            write_json(self._path, self._values, overwrite=True)
        except PancreasSegError:
            logger.warning("The window's settings could not be written", exc_info=True)
