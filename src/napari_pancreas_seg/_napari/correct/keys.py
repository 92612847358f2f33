"""Keys and commands of the corrections and the review: one table for all that name them.

napari ignores keys in a plugin's manifest, so they are registered as actions: Preferences ›
Shortcuts lists them and lets them be changed. The manifest names the same actions as commands,
for the palette, and says what they do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from napari.components import ViewerModel
from napari.layers import Image, Labels
from napari.settings import get_settings
from napari.utils.action_manager import action_manager
from napari.utils.key_bindings import coerce_keybinding
from npe2 import PluginManager, PluginManifest

import napari_pancreas_seg
from napari_pancreas_seg._napari import compat
from napari_pancreas_seg._napari.app import App, app_of
from napari_pancreas_seg._napari.background import reported
from napari_pancreas_seg._napari.commands import open_dock

PREFIX = "napari-pancreas-seg"


@dataclass(frozen=True)
class Action:
    """Something that a key does, the one here until the user chooses another."""

    name: str
    key: str
    do: Callable[[App], None]

    @property
    def id(self) -> str:
        return f"{PREFIX}:{self.name}"

    @property
    def title(self) -> str:
        """Title of the command in the manifest, without the prefix “Pancreas: ”."""
        title = _titles().get(f"{PREFIX}.{self.name}", self.name).removeprefix("Pancreas: ")
        return title[0].upper() + title[1:]


GROUPS: dict[str, tuple[Action, ...]] = {
    "Segment and export": (
        Action("run", "Shift-R", lambda a: _open_dock(a).start_run()),
        Action("export", "Shift-E", lambda a: _open_dock(a).export_panel.ask_and_export()),
    ),
    "Review": (
        Action("review_and_go_on", "Q", lambda a: a.review.review_and_go_on()),
        Action("toggle_reviewed", "Shift-Q", lambda a: a.review.toggle_reviewed()),
        Action("next_unreviewed", "W", lambda a: a.review.go_to_unreviewed(1)),
        Action("previous_unreviewed", "Shift-W", lambda a: a.review.go_to_unreviewed(-1)),
        Action("next_uncertain", "N", lambda a: a.review.go_to_uncertain(1)),
        Action("previous_uncertain", "Shift-N", lambda a: a.review.go_to_uncertain(-1)),
    ),
    "Correct": (
        Action("mend", "Shift-M", lambda a: a.mending.toggle()),
        Action("carry_up", "T", lambda a: a.carrying.carry(1)),
        Action("carry_down", "Shift-T", lambda a: a.carrying.carry(-1)),
        Action("fill_between", "I", lambda a: a.carrying.fill_between()),
        Action("clear_slice", "Shift-C", lambda a: a.editor.clear_slice()),
        Action("rerun_slice", "R", lambda a: a.editor.rerun_slice(*a.runs.how())),
        Action("smooth", "S", lambda a: a.editor.smooth()),
        Action("keep_largest", "K", lambda a: a.editor.keep_largest()),
        Action("keep_under_mouse", "Shift-K", lambda a: a.editor.keep_piece_under_cursor()),
        Action("remove_islands", "Shift-I", lambda a: a.editor.remove_islands()),
        Action("fill_holes", "H", lambda a: a.editor.fill_holes()),
        Action("grow", "G", lambda a: a.editor.grow()),
        Action("shrink", "Shift-G", lambda a: a.editor.shrink()),
        Action("limit_painting", "Shift-H", lambda a: a.paint_limit.toggle()),
    ),
    "View": (
        Action("toggle_3d", "D", lambda a: a.views.surface.toggle()),
        Action("toggle_blink", "A", lambda a: a.views.blink(not a.views.blinking)),
        Action("next_window", "U", lambda a: a.views.next_preset()),
    ),
    "Worklist": (
        Action("next_case", "J", lambda a: a.worklist.step(1)),
        Action("previous_case", "Shift-J", lambda a: a.worklist.step(-1)),
    ),
}
"""Actions by group, in the order in which they are listed."""
ACTIONS = tuple(action for group in GROUPS.values() for action in group)
ANSWERS = (
    ("Enter", "Accept what is proposed; carry on"),
    ("Esc", "Drop what is proposed; done with mending"),
)
NAPARIS = {
    "activate_labels_paint_mode": "Paint",
    "activate_labels_erase_mode": "Erase",
    "activate_labels_fill_mode": "Fill",
    "decrease_brush_size": "Smaller brush",
    "increase_brush_size": "Larger brush",
    "increment_dims_left": "Slice before",
    "increment_dims_right": "Slice after",
}
"""Keys of napari's own that one needs with these."""
FIXED = (
    ("Ctrl+Z", "Undo"),
    ("Ctrl+Shift+Z", "Redo"),
    ("Ctrl+wheel", "Through the slices"),
    ("Right drag", "HU window and level"),
)


def register_actions() -> None:
    """Register the actions with napari; a key that the user or napari has taken stays as it is."""
    chosen, changed = get_settings().shortcuts.shortcuts, action_manager.events.shortcut_changed
    missing = [action for action in ACTIONS if action.id not in compat.actions()]
    with changed.blocker():  # napari's welcome would be written anew for each
        for action in missing:
            action_manager.register_action(action.id, _bound(action), action.title, ViewerModel)
            default = () if _is_taken(action.key) else (coerce_keybinding(action.key),)
            for key in chosen.get(action.id, default):
                action_manager.bind_shortcut(action.id, key)
    if missing:
        changed(name=missing[-1].id, shortcut=[], tooltip=missing[-1].title)


def key_of(action: Action) -> str:
    """The key that does something now, for people to read; empty if there is none."""
    return _text(compat.keys_of(action.id))


def keys_table() -> dict[str, list[tuple[str, str]]]:
    """Keys and what they do, in groups: this plugin's, and those of napari's that one needs."""
    table = {name: [(key_of(one), one.title) for one in group] for name, group in GROUPS.items()}
    table["Correct"] += ANSWERS
    chosen = get_settings().shortcuts.shortcuts
    table["napari"] = [
        (_text(chosen.get(f"napari:{name}", [])), title) for name, title in NAPARIS.items()
    ]
    table["napari"] += FIXED
    return table


def perform(action: Action, app: App) -> None:
    with reported():
        action.do(app)


@cache
def _titles() -> dict[str, str]:
    try:
        manifest = PluginManager.instance().get_manifest(PREFIX)
    except KeyError:  # napari has not looked for plugins
        path = Path(napari_pancreas_seg.__file__).with_name("napari.yaml")
        manifest = PluginManifest.from_file(path)
    return {command.id: command.title for command in manifest.contributions.commands or ()}


def _open_dock(app: App) -> Any:
    return open_dock(app.session.viewer)


def _text(keys: Iterable[Any]) -> str:
    return " or ".join(str(coerce_keybinding(key)) for key in keys)


def _bound(action: Action) -> Callable[[ViewerModel], None]:
    def pressed(viewer: ViewerModel) -> None:
        perform(action, app_of(viewer))

    # napari tells actions apart by the name of their function.
    pressed.__name__ = pressed.__qualname__ = f"pancreas_{action.name}"
    return pressed


def _is_taken(key: str) -> bool:
    """Whether a key does something else already with a mask or a CT selected."""
    binding, owners = coerce_keybinding(key), (ViewerModel, Labels, Image)
    if compat.takes_key(binding):
        return True
    actions = compat.actions()
    return any(
        name in actions and actions[name].keymapprovider in owners
        for name, keys in get_settings().shortcuts.shortcuts.items()
        if binding in keys
    )
