"""Keys and commands of the corrections and the review: one table for all that name them.

napari ignores keys in a plugin's manifest, so they are registered as actions: Preferences ›
Shortcuts lists them and lets them be changed. The manifest names the same actions as commands,
for the palette.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from napari import current_viewer
from napari.components import ViewerModel
from napari.layers import Image, Labels
from napari.settings import get_settings
from napari.utils.action_manager import action_manager
from napari.utils.key_bindings import coerce_keybinding

from napari_pancreas_seg._napari.background import report
from napari_pancreas_seg.errors import PancreasSegError

if TYPE_CHECKING:
    from napari_pancreas_seg._napari.session import Session

__all__ = [
    "ACTIONS",
    "Action",
    "command",
    "key_of",
    "keys_table",
    "perform",
    "register_actions",
]

PREFIX = "napari-pancreas-seg"


@dataclass(frozen=True)
class Action:
    """Something that a key does.

    Parameters
    ----------
    name : str
        Its name as a command.
    title : str
        What it does.
    key : str
        The key that it has until the user chooses another.
    do : callable
        Does it, in a session.
    """

    name: str
    title: str
    key: str
    do: Callable[[Session], None]

    @property
    def id(self) -> str:
        """Its name among napari's actions."""
        return f"{PREFIX}:{self.name}"


ACTIONS = (
    Action("fill_between", "Fill between slices", "I", lambda s: s.corrector.fill_between_slices()),
    Action("clear_slice", "Clear this slice", "Shift-C", lambda s: s.corrector.clear_slice()),
    Action("rerun_slice", "Run this slice again", "R", lambda s: _rerun_slice(s)),
    Action("smooth", "Smooth", "S", lambda s: s.corrector.smooth()),
    Action(
        "copy_from_above",
        "Copy the mask from the slice above",
        "Shift-U",
        lambda s: s.corrector.copy_slice(1),
    ),
    Action(
        "copy_from_below",
        "Copy the mask from the slice below",
        "Shift-D",
        lambda s: s.corrector.copy_slice(-1),
    ),
    Action("keep_largest", "Keep the largest piece", "K", lambda s: s.corrector.keep_largest()),
    Action(
        "keep_under_mouse",
        "Keep the piece under the mouse",
        "Shift-K",
        lambda s: s.corrector.keep_piece_under_cursor(),
    ),
    Action(
        "remove_islands", "Remove small islands", "Shift-I", lambda s: s.corrector.remove_islands()
    ),
    Action("fill_holes", "Fill holes", "H", lambda s: s.corrector.fill_holes()),
    Action("grow", "Grow", "G", lambda s: s.corrector.grow()),
    Action("shrink", "Shrink", "Shift-G", lambda s: s.corrector.shrink()),
    Action(
        "limit_painting",
        "Limit painting to HU, or not",
        "Shift-H",
        lambda s: s.corrector.toggle_limit(),
    ),
    Action(
        "review_and_go_on",
        "Reviewed: on to the next slice",
        "Q",
        lambda s: s.review.review_and_go_on(),
    ),
    Action(
        "toggle_reviewed",
        "This slice is reviewed, or not",
        "Shift-Q",
        lambda s: s.review.toggle_reviewed(),
    ),
    Action("next_unreviewed", "Next slice to review", "W", lambda s: s.review.go_to_unreviewed(1)),
    Action(
        "previous_unreviewed",
        "Previous slice to review",
        "Shift-W",
        lambda s: s.review.go_to_unreviewed(-1),
    ),
    Action("next_uncertain", "Next uncertain slice", "N", lambda s: s.review.go_to_uncertain(1)),
    Action(
        "previous_uncertain",
        "Previous uncertain slice",
        "Shift-N",
        lambda s: s.review.go_to_uncertain(-1),
    ),
    Action("toggle_3d", "The mask in 3-D, and back", "D", lambda s: _views(s).surface.toggle()),
    Action(
        "toggle_blink",
        "The model's mask in place of the edited one, and back",
        "A",
        lambda s: _views(s).blink(not _views(s).blinking),
    ),
    Action("next_window", "Next HU window", "U", lambda s: _views(s).next_preset()),
    Action("next_case", "Next case of the worklist", "J", lambda s: _worklist(s).step(1)),
    Action(
        "previous_case",
        "Previous case of the worklist",
        "Shift-J",
        lambda s: _worklist(s).step(-1),
    ),
)
"""What keys do, in the order in which they are listed."""


def register_actions() -> None:
    """Tell napari of the actions; a key that the user or napari has taken stays as it is."""
    chosen = get_settings().shortcuts.shortcuts
    for action in ACTIONS:
        if action.id in action_manager._actions:
            continue
        action_manager.register_action(action.id, _bound(action), action.title, ViewerModel)
        if action.id in chosen:
            for key in chosen[action.id]:
                action_manager.bind_shortcut(action.id, key)
        elif not _is_taken(action.key):
            action_manager.bind_shortcut(action.id, coerce_keybinding(action.key))


def key_of(action: Action) -> str:
    """The key that does something now, for people to read; empty if there is none."""
    return _text(action_manager._shortcuts.get(action.id, []))


def keys_table() -> list[tuple[str, str]]:
    """Every key of this plugin and what it does, whoever registered it."""
    own = [(key_of(action), action.title) for action in ACTIONS]
    known = {action.id for action in ACTIONS}
    for name, action in action_manager._actions.items():
        if name.startswith(f"{PREFIX}:") and name not in known:
            own.append((_text(action_manager._shortcuts.get(name, [])), action.description))
    return own


def perform(action: Action, session: Session) -> None:
    """Do something, and tell the person if it cannot be done."""
    try:
        action.do(session)
    except PancreasSegError as error:
        report(error)


def command(action: Action) -> None:
    """Do something in the viewer that is current, opening the dock first."""
    from napari_pancreas_seg._napari.session import session_of

    viewer = current_viewer()
    if viewer is None:
        raise PancreasSegError("Open a napari viewer first.")
    _open_dock(viewer)
    perform(action, session_of(viewer))


def __getattr__(name: str) -> Any:
    # What the manifest names as python_name of the commands.
    for action in ACTIONS:
        if action.name == name:
            return partial(command, action)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _text(keys: Iterable[Any]) -> str:
    return " or ".join(str(coerce_keybinding(key)) for key in keys)


def _bound(action: Action) -> Callable[[ViewerModel], None]:
    from napari_pancreas_seg._napari.session import session_of

    def pressed(viewer: ViewerModel) -> None:
        perform(action, session_of(viewer))

    # napari tells actions apart by the name of their function.
    pressed.__name__ = pressed.__qualname__ = f"pancreas_{action.name}"
    return pressed


def _open_dock(viewer: Any) -> Any:
    """Open the dock, or find the one that is open; None for a viewer without a window."""
    window = getattr(viewer, "window", None)
    if window is None:
        return None
    return window.add_plugin_dock_widget("napari-pancreas-seg", "Pancreas segmentation")[1]


def _is_taken(key: str) -> bool:
    """Whether a key does something else already with a mask or a CT selected."""
    binding, owners = coerce_keybinding(key), (ViewerModel, Labels, Image)
    if any(binding in owner.class_keymap for owner in owners):
        return True
    actions = action_manager._actions
    return any(
        name in actions and actions[name].keymapprovider in owners
        for name, keys in get_settings().shortcuts.shortcuts.items()
        if binding in keys
    )


def _rerun_slice(session: Session) -> None:
    # The dock knows which model and which device are chosen.
    dock = _open_dock(session.viewer)
    if dock is None:
        session.corrector.rerun_slice()
    else:
        dock.rerun_slice()


def _views(session: Session) -> Any:
    from napari_pancreas_seg._napari.views.views import views_of

    return views_of(session)


def _worklist(session: Session) -> Any:
    from napari_pancreas_seg._napari.worklist.session import worklist_of

    return worklist_of(session)
