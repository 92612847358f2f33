"""Names for the types of arrays, and of what goes with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.uint8]
Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]

Spacing = tuple[float, float, float]
"""Along (z, y, x) in mm."""

Box = tuple[slice, slice, slice]
"""Along (z, y, x)."""
