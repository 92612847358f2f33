"""Which slice next."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["slice_order"]


def slice_order(n_slices: int, first: int | None = None) -> npt.NDArray[np.intp]:
    """Order in which slices are segmented.

    Parameters
    ----------
    n_slices : int
        Slices of the volume.
    first : int, optional
        The slice to begin with; the others follow by their distance to it. Without it,
        from the feet to the head.

    Returns
    -------
    ndarray, shape (n_slices,)
        Every slice once.
    """
    z = np.arange(n_slices)
    if first is None:
        return z
    return z[np.argsort(np.abs(z - min(max(first, 0), n_slices - 1)), kind="stable")]
