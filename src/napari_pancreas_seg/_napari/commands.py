"""Commands for napari's palette: each opens the dock if need be and presses a button there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari import current_viewer

from napari_pancreas_seg.errors import PancreasSegError

if TYPE_CHECKING:
    from napari_pancreas_seg._napari.widget import PancreasDock

__all__ = ["cancel", "export", "open_ct", "run"]


def open_ct() -> None:
    """Ask for a CT and open it."""
    _dock().ct_panel.ask_for_file()


def run() -> None:
    """Segment the CT that is selected in the dock."""
    _dock().start_run()


def cancel() -> None:
    """Cancel the run that is under way."""
    _dock().cancel_run()


def export() -> None:
    """Ask where to write the mask that is selected in the dock, and write it."""
    _dock().export_panel.ask_and_export()


def _dock() -> PancreasDock:
    viewer = current_viewer()
    if viewer is None:
        raise PancreasSegError("Open a napari viewer first.")
    _, dock = viewer.window.add_plugin_dock_widget("napari-pancreas-seg", "Pancreas segmentation")
    return dock
