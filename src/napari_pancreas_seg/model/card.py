"""Checks of a model's card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from napari_pancreas_seg.errors import PancreasSegError

SEGMENT = "segment"
"""The task of a model whose card names none."""
LARGEST_SIDE = 4096
MOST_MEMBERS = 32
"""Networks of an ensemble."""
_LARGEST = {
    **{"filters": 256, "channels": 16, "classes": 255},
    **{"height": LARGEST_SIDE, "width": LARGEST_SIDE},
}
REQUIRED = {
    "name": str,
    "version": str,
    "licence": str,
    "architecture": dict,
    "frame": dict,
    "windows": list,
    "labels": dict,
    "threshold": (int, float),
    "weights_sha256": str,
}
"""Fields that every card has, and their types."""


def parse_card(data: bytes, path: Path, task: str = SEGMENT) -> dict[str, Any]:
    """Read a card from JSON; `path` is the bundle it came from, for messages.

    Refuses one whose network is made for another task.
    """
    try:
        card = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PancreasSegError(f"The card of {path} is not valid JSON: {error}.") from error
    check_card(card, path)
    if (made_for := card.get("task", SEGMENT)) != task:
        raise PancreasSegError(
            f"The model {card['name']} is made to {made_for}, not to {task}; choose another one."
        )
    return dict(card)


def check_card(card: Any, path: Path) -> None:
    """Refuse a card that lacks a field or asks for the impossible; see `parse_card`."""
    if not isinstance(card, Mapping):
        raise PancreasSegError(f"The card of {path} is not a JSON object.")
    for name, kind in REQUIRED.items():
        if not isinstance(card.get(name), kind):  # type: ignore[arg-type]
            raise PancreasSegError(f"The card of {path} lacks a proper {name}.")
    if card["frame"].get("centre", "body") != "body" or card.get("neighbours_mm") is not None:
        raise PancreasSegError(
            f"The model {card['name']} is the second stage of a cascade or sees several slices at "
            "once; this program runs neither."
        )
    if not 0 < card["threshold"] < 1:
        raise PancreasSegError(f"The card of {path} has a threshold outside 0 to 1.")
    wrong = [name for name, is_right in _RIGHT.items() if not is_right(card)]
    if wrong:
        raise PancreasSegError(
            f"The card of {path} has an impossible {' and '.join(wrong)}; get the model again."
        )


def _numbers(values: Any, low: float, high: float) -> bool:
    """Whether these are numbers within limits; NaN and truth values are not."""
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        for value in values
    )


def _frame_is_right(card: Mapping[str, Any]) -> bool:
    frame = card["frame"]
    offset = frame.get("offset_mm")
    return (
        set(frame) - {"centre"} == {"height", "width", "mm_per_pixel", "offset_mm"}
        and all(isinstance(frame[side], int) for side in ("height", "width"))
        and _numbers((frame["height"], frame["width"]), 1, LARGEST_SIDE)
        and all(card["architecture"].get(s, frame[s]) == frame[s] for s in ("height", "width"))
        and _numbers([frame["mm_per_pixel"]], 0.01, 100)
        and isinstance(offset, list | tuple)
        and len(offset) == 2
        and _numbers(offset, -1000, 1000)
    )


def _windows_are_right(card: Mapping[str, Any]) -> bool:
    return 0 < len(card["windows"]) <= 16 and all(
        isinstance(window, list | tuple)
        and len(window) == 2
        and _numbers(window, -32768, 32767)
        and window[0] < window[1]
        for window in card["windows"]
    )


def _architecture_is_right(card: Mapping[str, Any]) -> bool:
    """Whether sizes are whole numbers within reason, and the rest is what `build` can take."""
    shape = card["architecture"]
    sizes = {key: value for key, value in shape.items() if key in _LARGEST}
    dropout = shape.get("dropout", 0.0)
    return (
        all(
            isinstance(value, int) and _numbers([value], 1, _LARGEST[key])
            for key, value in sizes.items()
        )
        and all(isinstance(shape.get(key, True), bool) for key in ("attention", "head_batch_norm"))
        and _numbers([dropout], 0, 1)
        and dropout < 1
        and _numbers([shape.get("head_bias", 0.0)], -1000, 1000)
    )


def _training_is_right(card: Mapping[str, Any]) -> bool:
    """Whether it can be asked which patients the network saw, and by which recipe."""
    training = card.get("training", {})
    if not isinstance(training, Mapping):
        return False
    patients = training.get("patients", [])
    return (
        isinstance(patients, list | tuple)
        and all(isinstance(patient, str) for patient in patients)
        and isinstance(training.get("recipe", {}), Mapping)
    )


def _confidence_is_right(card: Mapping[str, Any]) -> bool:
    line = card.get("confidence")
    return line is None or (
        isinstance(line, Mapping)
        and _numbers([line.get("slope", 1.0), line.get("intercept", 0.0)], -1000, 1000)
    )


def _second_look_is_right(card: Mapping[str, Any]) -> bool:
    """Whether it names a network, how far away the first mask is said to lie, and how it counts."""
    told = card.get("second_look")
    return told is None or (
        isinstance(told, Mapping)
        and isinstance(told.get("model"), str)
        and _numbers([told.get("mm", -1)], 0, 1000)
        and _numbers([told.get("share", -1)], 0, 1)
        and _numbers([told.get("shift", 1e9)], -100, 100)
        and card["architecture"].get("classes", 1) == 1
    )


def _labels_are_right(card: Mapping[str, Any]) -> bool:
    """Whether there is one name and one label value for each of the network's classes."""
    labels = card["labels"]
    return (
        len(labels) == card["architecture"].get("classes", 1)
        and all(0 < len(name) <= 100 and name.isprintable() for name in labels)
        and all(isinstance(value, int) for value in labels.values())
        and _numbers(labels.values(), 1, 255)
        and len(set(labels.values())) == len(labels)
    )


_RIGHT: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "frame": _frame_is_right,
    "windows": _windows_are_right,
    "architecture": _architecture_is_right,
    "labels": _labels_are_right,
    "members": lambda card: (
        isinstance(card.get("members", 1), int)
        and _numbers([card.get("members", 1)], 1, MOST_MEMBERS)
    ),
    "temperature": lambda card: _numbers([card.get("temperature", 1.0)], 1e-3, 1e3),
    "training": _training_is_right,
    "confidence": _confidence_is_right,
    "second look": _second_look_is_right,
    "validation": lambda card: isinstance(card.get("validation"), Mapping | None),
}
"""Further checks of a card: what a hostile one could ask for is refused before it is built."""
