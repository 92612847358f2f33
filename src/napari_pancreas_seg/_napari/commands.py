"""Commands for napari's palette: each opens the dock if need be and presses a button there."""

from __future__ import annotations

from typing import Any

from napari import current_viewer

from napari_pancreas_seg._napari.app import app_of
from napari_pancreas_seg.errors import PancreasSegError


def open_ct() -> None:
    _dock().ct_panel.ask_for_file()


def cancel() -> None:
    _dock().cancel_run()


def copy_measurements() -> None:
    _dock().measure_panel.copy_table()


def open_dock(viewer: Any) -> Any:
    """Open the dock, or find the one that is open; None for a viewer without a window."""
    window = getattr(viewer, "window", None)
    if window is None:
        return None
    dock = app_of(viewer).dock
    if dock is None:
        _, dock = window.add_plugin_dock_widget("napari-pancreas-seg", "Pancreas segmentation")
    dock.parent().setVisible(True)
    return dock


def _dock() -> Any:
    viewer = current_viewer()
    if viewer is None:
        raise PancreasSegError("Open a napari viewer first.")
    return open_dock(viewer)
