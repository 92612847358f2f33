"""What the reader of a format hands over, and how maps are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MAP_CONTENT", "MAP_SLOPE", "RawImage"]

MAP_SLOPE = 2.0**-14
"""Maps are stored as int16 times this power of two, so that 0 and 1 come back exactly; nobody
else does, so it also tells a map from a CT."""

MAP_CONTENT = "map from 0 to 1 by napari-pancreas-seg"
"""Says the same in the headers of formats whose stored numbers have no slope."""


@dataclass(frozen=True, eq=False)
class RawImage:
    """A volume as a file holds it, in the file's own axis order.

    Parameters
    ----------
    stored : ndarray, shape (I, J, K) or (I, J, K, 1, ...)
        Numbers as stored, any integer or float type, any byte order.
    slope, intercept : float
        A value is ``stored * slope + intercept``.
    affine : ndarray, shape (4, 4)
        Maps an (i, j, k) index to world coordinates in mm, RAS+.
    header : object
        For the writer of the same format.
    notes : tuple of str
        Sentences the user should read.
    type_name : str
        Type of the numbers in the file, ``"int16"`` for instance; what is read may be narrower.
    """

    stored: npt.NDArray[Any]
    slope: float
    intercept: float
    affine: npt.NDArray[np.float64]
    header: Any
    notes: tuple[str, ...] = ()
    type_name: str = ""
