"""The two stages of a cascade: what finds the gland, and what looks at it more closely.

Both are the same kind of network with frames of as many pixels, hence of the same cost a slice;
the second sees a smaller part of the body, around the gland, with finer pixels.
"""

from __future__ import annotations

from typing import Any

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.training.fit.augmentation import AugmentationSettings

__all__ = ["FINE_FRAME", "STAGES", "stage_named"]

FINE_FRAME = FrameSpec(160, 224, 0.8, (0.0, 0.0), "gland")
"""128 x 179 mm. The glands of 50 patients of NIH Pancreas-CT measure 61 x 110 mm (median) and at
most 101 x 147 mm; all of each lies in this frame around its centre, but for at most 0.02 %."""

STAGES: dict[str, dict[str, Any]] = {
    "single": {},
    # The first stage places the frame to within a few mm; a single slice's gland lies farther off.
    "fine": {"frame": FINE_FRAME, "augmentation": AugmentationSettings(shift_mm=20.0)},
}
"""Fields of `TrainSettings` in which a stage differs, by its name."""


def stage_named(name: str) -> dict[str, Any]:
    """Fields of `TrainSettings` of a stage.

    Raises
    ------
    PancreasSegError
        If there is none of that name.
    """
    try:
        return STAGES[name]
    except KeyError:
        raise PancreasSegError(
            f"There is no stage {name!r}; known are {', '.join(STAGES)}."
        ) from None
