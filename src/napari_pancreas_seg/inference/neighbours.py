"""2.5-D input: a slice with the ones at a fixed distance below and above it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["neighbouring_slices"]


def neighbouring_slices(
    n_slices: int, spacing_z_mm: float, distance_mm: float | None
) -> npt.NDArray[np.intp]:
    """Which slices are the network's input for each slice of a volume.

    Parameters
    ----------
    n_slices : int
        Slices of the volume.
    spacing_z_mm : float
        Distance between two slices.
    distance_mm : float or None
        How far below and above a slice its neighbours lie; None gives the slice alone.

    Returns
    -------
    ndarray, shape (n_slices, 3) or (n_slices, 1), intp
        The slice nearest to the place below, the slice itself, the one nearest above; beyond
        the ends of the volume, the slice at the end.
    """
    z = np.arange(n_slices)[:, None]
    if distance_mm is None:
        return z
    # Half-way between two slices, the farther one: it says something that the slice does not.
    step = math.floor(distance_mm / spacing_z_mm + 0.5)
    return np.clip(z + step * np.array([-1, 0, 1]), 0, n_slices - 1)
