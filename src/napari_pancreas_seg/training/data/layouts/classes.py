"""Which of a data set's classes are trained, and which of them together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.training.data.layouts.cases import PANCREAS

_GLAND = re.compile(r"\bpancrea(s|tic)\b")
_NOT_GLAND = re.compile(
    r"\b(artery|arteries|vein|veins|vessels?|fat|nerves?|lymph|peripancreatic)\b"
)
_TUMOUR = re.compile(r"(pdac |pnet )?(cancer|tumou?rs?|lesions?|mass|masses|cysts?|pdac|pnet)")

_MOST_CLASSES = 254
"""Label maps are uint8, and 0 is the background."""


def choose_classes(
    there: Sequence[str], asked: Mapping[str, Sequence[str]] | None = None
) -> dict[str, tuple[str, ...]]:
    """Decide which classes are trained and what of the data set each is made of.

    By default the pancreas with its parts and its tumours, without the vessels named after it.
    """
    if asked is None:
        parts = _parts_of_pancreas(there)
        if not parts:
            raise PancreasSegError(
                f"None of this data set's classes is called pancreas: it has {_listed(there)}; "
                "say which to train with --labels NAME=CLASS[+CLASS]."
            )
        return {PANCREAS: parts}
    classes = {name: tuple(parts) for name, parts in asked.items()}
    used = [part for parts in classes.values() for part in parts]
    for part in used:
        if part not in there:
            raise PancreasSegError(
                f"This data set has no class '{part}'; its classes are {_listed(there)}."
            )
        if used.count(part) > 1:
            raise PancreasSegError(f"The class '{part}' is asked for twice; leave one of them out.")
    if not used or not all(classes.values()) or len(classes) > _MOST_CLASSES:
        raise PancreasSegError(
            f"A training needs 1 to {_MOST_CLASSES} classes, each made of at least one of the data "
            f"set's: {_listed(there)}."
        )
    return classes


def values_of(classes: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Value in the label map of each of the data set's own classes that is used."""
    return {part: value for value, parts in enumerate(classes.values(), start=1) for part in parts}


def _parts_of_pancreas(there: Sequence[str]) -> tuple[str, ...]:
    words = {name: " ".join(re.split(r"[\W_]+", name.lower())).strip() for name in there}
    gland = [n for n in there if _GLAND.search(words[n]) and not _NOT_GLAND.search(words[n])]
    tumours = [n for n in there if n not in gland and _TUMOUR.fullmatch(words[n])]
    # "tumour" beside other organs may be the liver's.
    vessels = [n for n in there if _NOT_GLAND.search(words[n])]
    if len(gland) + len(tumours) + len(vessels) < len(there):
        tumours = []
    return tuple(n for n in there if n in gland or n in tumours) if gland else ()


def _listed(names: Sequence[str]) -> str:
    shown = list(names[:12])
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(shown) + more if shown else "none"
