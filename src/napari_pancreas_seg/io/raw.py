"""The image that the reader of each format returns, and how maps are stored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_pancreas_seg.arrays import Array, Floats

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""The world of ITK and DICOM has x to the left and y to the back, NIfTI's and ours to the right
and the front."""

MAP_SLOPE = 2.0**-14
"""Maps are stored as int16 times this power of two, so that 0 and 1 come back exactly; nobody
else does, so it also tells a map from a CT."""

MAP_CONTENT = "map from 0 to 1 by napari-pancreas-seg"
"""Says the same in the headers of formats whose stored numbers have no slope."""


@dataclass(frozen=True, eq=False)
class RawImage:
    """A volume as a file holds it, in the file's own axis order."""

    stored: Array  # (I, J, K) or (I, J, K, 1, ...), any type and byte order
    slope: float  # a value is stored * slope + intercept
    intercept: float
    affine: Floats  # from (i, j, k) to world coordinates in mm, RAS+
    header: Any  # for the writer of the same format
    notes: tuple[str, ...] = ()  # for the user
    type_name: str = ""  # of the numbers in the file: what is read may be narrower
    is_map: bool = False  # whether `save_map` wrote it
    whole: Path | None = None  # what it is named after, if not after its path
