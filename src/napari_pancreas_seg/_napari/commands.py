"""The dock of a viewer, and napari's palette: each command opens it and presses a button there."""

from __future__ import annotations

import weakref
from typing import Any

from napari import current_viewer
from napari.components import ViewerModel
from qtpy.compat import isalive
from qtpy.QtWidgets import QWidget

from napari_pancreas_seg._napari import compat
from napari_pancreas_seg.errors import PancreasSegError

_DOCKS: weakref.WeakKeyDictionary[ViewerModel, weakref.ref[QWidget]] = weakref.WeakKeyDictionary()


def open_ct() -> None:
    _dock().ask_for_file()


def cancel() -> None:
    _dock().run_panel.cancel_button.click()


def copy_measurements() -> None:
    _dock().measure_panel.copy_table()


def __getattr__(name: str) -> Any:
    # The manifest names every action that has a key.
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return lambda: _dock().perform(name)


def dock_of(viewer: Any) -> Any:
    """The dock of a viewer; None if none is open."""
    known = _DOCKS.get(compat.unwrapped(viewer))
    dock = None if known is None else known()
    return dock if dock is not None and isalive(dock) and dock.parent() is not None else None


def take_place(dock: QWidget, viewer: Any) -> None:
    """Make a dock the one of its viewer; another one that is open goes."""
    viewer = compat.unwrapped(viewer)
    former, _DOCKS[viewer] = dock_of(viewer), weakref.ref(dock)
    window = getattr(viewer, "window", None)
    if former is not None and window is not None:
        # napari's menu and its `add_plugin_dock_widget` call it by different names.
        window.remove_dock_widget(former)


def open_dock(viewer: Any) -> Any:
    """Open the dock, or find the one that is open; None for a viewer without a window."""
    window = getattr(viewer, "window", None)
    if window is None:
        return None
    dock = dock_of(viewer)
    if dock is None:
        _, dock = window.add_plugin_dock_widget("napari-pancreas-seg", "Pancreas segmentation")
    dock.parent().setVisible(True)
    return dock


def _dock() -> Any:
    viewer = current_viewer()
    if viewer is None:
        raise PancreasSegError("Open a napari viewer first.")
    return open_dock(viewer)
