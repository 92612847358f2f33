"""What is private in napari and touched all the same: here, and nowhere else.

Each function has a test of its own, so that a version of napari that has changed is noticed
there. Why it is needed stands with each.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from threading import Lock
from typing import Any

import numpy as np
import pint  # napari's, for the units of its layers
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer
from napari.utils.action_manager import action_manager
from pint.registry import LazyRegistry

from napari_pancreas_seg.arrays import Array, Indices

Edit = tuple[tuple[Indices, ...], Array, Any]
"""Indices of voxels, their values before, and the value or values that were written."""
_ORTHOGONAL = "napari_orthogonal_views.ortho_view_manager"
_LOADING_UNITS = Lock()


# -- viewer and window


def unwrapped(viewer: Any) -> Any:
    """The viewer itself: plugins are given a proxy of it."""
    return getattr(viewer, "__wrapped__", viewer)


def qt_window(viewer: Any) -> Any:
    """The Qt window of a viewer, None without one: napari has no signal for one that closes."""
    window = getattr(viewer, "window", None)
    return None if window is None else window._qt_window


def canvas_widget(viewer: Any) -> Any:
    """The widget that the picture is drawn on, None without a window; a bar lies over it."""
    window = getattr(unwrapped(viewer), "window", None)
    return None if window is None else window._qt_viewer.canvas.native


def is_closed_by_script(window: Any) -> bool:
    """Whether ``viewer.close()`` closes a window, and not the user: the canvas is hidden first."""
    return bool(window._qt_viewer.isHidden())


def close_window(window: Any) -> None:
    """Close a window as the user had asked for: with or without the whole program."""
    window.close(quit_app=window._quit_app)


def hide_brush_box(viewer: ViewerModel) -> None:
    """Take away the box behind the brush's circle: napari leaves it on the picture for good."""
    viewer.canvas.overlays._brush_circle.box = False


# -- layers


def load_units() -> None:
    """Load the units of layers, once: of two threads that need them first, pint fails one."""
    with _LOADING_UNITS:
        units: Any = pint.application_registry
        if isinstance(units.get(), LazyRegistry):
            units.set(pint.UnitRegistry())


def add_unselected(viewer: ViewerModel, layer: Layer, place: int | None = None) -> None:
    """Add a layer that is not selected: napari would open its controls for a moment."""
    layers = viewer.layers
    selects, layers._activate_on_insert = layers._activate_on_insert, False
    try:
        layers.insert(len(layers) if place is None else place, layer)
    finally:
        layers._activate_on_insert = selects


def remove_quickly(viewer: ViewerModel, layer: Layer) -> None:
    """Remove a layer without a stall: napari collects garbage then, of all that there is."""
    ours = gc.get_freeze_count() == 0  # else it would undo what somebody else has frozen
    if ours:
        gc.freeze()  # this is passed over; the layer's own garbage goes the next time
    try:
        viewer.layers.remove(layer)
    finally:
        if ours:
            gc.unfreeze()


def slice_as_seen(viewer: ViewerModel, layer: Layer) -> None:
    """Have a layer sliced as the viewer shows things now; one that was removed is not told."""
    layer._slice_dims(viewer.dims)


def hide_tool_overlays(layer: Layer) -> None:
    """Hide the overlays of the paint tools, half of a layer's cost; for one that nobody paints."""
    for overlay in layer._overlays.values():
        overlay.visible = False


# -- the undo history of labels


def steps_of_undo(layer: Labels) -> tuple[int, int]:
    """How many steps can be undone and redone: both emit no event of their own."""
    return len(layer._undo_history), len(layer._redo_history)


def is_last_undo_step(layer: Labels, step: object) -> bool:
    return bool(layer._undo_history) and layer._undo_history[-1] is step


def undo_step_of(layer: Labels, edit: Edit) -> list[Any] | None:
    """The step of undo that an edit is part of; None if it is undone, or too old."""
    # A step is another list once it has been undone and redone; what is in it stays the same.
    return next((s for s in layer._undo_history if any(atom is edit for atom in s)), None)


def edits_in_history(layer: Labels) -> tuple[set[int], set[int]]:
    """The ids of all edits that could be undone, and of those that could be redone."""
    done, undone = layer._undo_history, layer._redo_history
    return {id(e) for step in done for e in step}, {id(e) for step in undone for e in step}


def add_undo_step(layer: Labels, step: Any) -> None:
    """Make a step that Ctrl+Z undoes: (indices, values before, values after)."""
    # `data_setitem` would draw, fail on a layer hidden in 3-D, and mistake permuted axes.
    with layer.block_history():
        layer._save_history(step)


def forget_undo(layer: Labels) -> tuple[Any, Any]:
    """Drop the history, and give it: its steps hold values of a mask that was replaced."""
    history = layer._undo_history, layer._redo_history
    layer._reset_history()
    return history


def forget_redo(layer: Labels) -> None:
    """Drop the steps that could be redone, on a mask that has changed below them."""
    layer._redo_history.clear()


def recall_undo(layer: Labels, history: tuple[Any, Any]) -> None:
    """Bring back a history, with the mask that its steps hold values of."""
    layer._undo_history, layer._redo_history = history


def is_by_hand(step: Iterable[Any]) -> bool:
    """Whether a step of the history comes from napari's own tools, and not from a program."""
    return all(hasattr(atom, "slice_key") for atom in step)


def edits(step: Iterable[Any]) -> Iterator[Edit]:
    """Bring the two kinds of atoms of napari's history to one form."""
    for atom in step:
        if hasattr(atom, "slice_key"):
            inner = np.ones_like(atom.old_values, bool) if atom.mask is None else atom.mask
            starts = [edge.start for edge in atom.slice_key]
            indices = tuple(i + s for i, s in zip(np.nonzero(inner), starts, strict=True))
            yield indices, np.asarray(atom.old_values).reshape(-1), atom.new_value
        else:
            yield atom


# -- keys


def actions() -> dict[str, Any]:
    """Napari's actions by name; its manager has no list of them."""
    return action_manager._actions


def keys_of(name: str) -> list[Any]:
    return list(action_manager._shortcuts.get(name, []))


def takes_key(binding: Any) -> bool:
    """Whether napari itself does something with a key while a mask or a CT is selected."""
    return any(binding in owner.class_keymap for owner in (ViewerModel, Labels, Image))


# -- napari-orthogonal-views, which has no public way in


def orthogonal_manager(viewer: Any) -> Any:
    """The views of that plugin for a viewer."""
    manager: Callable[[Any], Any] = importlib.import_module(_ORTHOGONAL)._get_manager
    return manager(viewer)


def orthogonal_models(viewer: Any) -> list[ViewerModel]:
    """The models behind the views that are open, whoever has opened them."""
    # Loading the plugin for a look would be slow.
    loaded = sys.modules.get(_ORTHOGONAL)
    manager = None if loaded is None else loaded._VIEWER_MANAGERS.get(viewer)
    if manager is None or not manager.is_shown():
        return []
    widgets = (manager.right_widget, manager.bottom_widget)
    return [widget.vm_container.viewer_model for widget in widgets]
