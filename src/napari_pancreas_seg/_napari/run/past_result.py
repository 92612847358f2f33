"""What is left of a run's result once its window has gone: all but what it was made from."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from napari_pancreas_seg.arrays import Bytes
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import Options, ScalarMap, Segmentation
from napari_pancreas_seg.volume import Grid

FIELDS = ("threshold", "model", "seconds", "scan")


@dataclass(frozen=True, eq=False)
class PastResult(Segmentation):
    """A result whose probability is empty: another threshold needs another run."""

    known_quality: Mapping[str, Any] = field(default_factory=dict)  # of the model's mask

    @property
    def quality(self) -> dict[str, Any]:
        return dict(self.known_quality)


def kept_of(result: Segmentation, *, edited: bool) -> dict[str, Any]:
    """Return what the record of a mask needs of its result, for JSON."""
    return {
        **{name: getattr(result, name) for name in FIELDS},
        "notes": result.notes,
        "options": asdict(result.options),
        "expected_dice": result.expected_dice.tolist(),
        # A mask that was edited has no other quality, and this one takes a while.
        "quality": {"phase": result.scan.get("phase", "unknown")} if edited else result.quality,
    }


def past_result(kept: Mapping[str, Any], mask: Bytes, grid: Grid) -> PastResult | None:
    """Make a result of what `kept_of` gave; None if another version meant something else by it."""
    with contextlib.suppress(KeyError, TypeError, ValueError, PancreasSegError):
        return PastResult(
            mask,
            ScalarMap(np.zeros((0, 0, 0), np.float16), grid),
            attention=(),
            grid=grid,
            **{name: kept[name] for name in FIELDS},
            options=Options(**kept["options"]),
            notes=tuple(kept["notes"]),
            expected_dice=np.array(kept["expected_dice"], np.float32),
            known_quality=kept["quality"],
        )
    return None
