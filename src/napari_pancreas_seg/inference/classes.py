"""The classes of a model: their values in a mask, and which are the pancreas or within it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_pancreas_seg.arrays import Array, Spacing
from napari_pancreas_seg.mask.postprocessing import main_pieces, with_rim

_PANCREAS = re.compile(r"pancrea|\b(pdac|pnet|ipmn)s?\b")
_LESION = re.compile(r"((tumou?r|cancer|lesion|cyst|mass|main|duct)(e?s)? ?)+")
"""Names that say nothing of the organ: of the pancreas if there is no other one."""


@dataclass(frozen=True)
class Classes:
    """Names of a model's classes and their values in a mask, in the order of its output."""

    names: tuple[str, ...]
    values: tuple[int, ...]

    @classmethod
    def of(cls, card: Mapping[str, Any]) -> Classes:
        """The classes that a model's card names. The mask of a single class is 1."""
        labels = card.get("labels") or {"pancreas": 1}
        values = tuple(labels.values()) if len(labels) > 1 else (1,)
        return cls(tuple(labels), values)

    @property
    def named(self) -> dict[str, int]:
        """The value of each in a mask."""
        return dict(zip(self.names, self.values, strict=True))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def in_gland(self) -> tuple[bool, ...]:
        """Whether each is the pancreas or something within it; a single class always is."""
        if len(self) == 1:
            return (True,)
        words = [" ".join(re.split(r"[\W_]+", name.lower())) for name in self.names]
        pancreas = [bool(_PANCREAS.search(word)) for word in words]
        lesion = [bool(_LESION.fullmatch(word)) for word in words]
        if any(pancreas) and all(map(max, pancreas, lesion)):
            return (True,) * len(self)
        return tuple(pancreas)

    @property
    def only_gland(self) -> bool:
        """Whether every class is the pancreas or something within it."""
        return all(self.in_gland)

    def gland(self, mask: Array) -> Array:
        """The pancreas and what lies in it, of a mask; all of a mask without any such class."""
        if self.only_gland or not any(self.in_gland):
            return mask
        inside = zip(self.values, self.in_gland, strict=True)
        return np.isin(mask, [value for value, its in inside if its])

    def main_pieces(
        self, probability: Array, threshold: float, spacing: Spacing, plausible: Array
    ) -> Array:
        """Clear what is found apart from the organs in probabilities (classes, Z, H, W)."""
        if len(self) == 1:
            kept = main_pieces(probability[0], threshold, spacing, plausible)
            return np.where(kept, probability, probability.dtype.type(0))
        foreground = probability.sum(axis=0, dtype=np.float32)
        winner = np.where(foreground > threshold, probability.argmax(axis=0), -1)
        gland = [c for c, inside in enumerate(self.in_gland) if inside]
        others = [[c] for c, inside in enumerate(self.in_gland) if not inside]
        cleared = probability.copy()
        everywhere = np.ones(len(foreground), bool)
        for group in filter(None, [gland, *others]):
            mine = np.isin(winner, group)
            found = np.where(mine, foreground, 0)
            kept = (
                main_pieces(found, threshold, spacing, plausible)
                if group is gland
                else main_pieces(found, threshold, spacing, everywhere, np.inf, missed_mm=None)
            )
            dropped = with_rim(mine & ~kept) & ~kept
            cleared[group] = np.where(dropped, cleared.dtype.type(0), cleared[group])
        return cleared


ONE_CLASS = Classes(("pancreas",), (1,))
"""The classes of a model of the pancreas alone."""
