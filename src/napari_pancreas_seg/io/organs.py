"""One organ of a mask that may show several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from napari_pancreas_seg.arrays import Labels
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.mask.measures import voxels_by_label


def only_organ(labels: Labels, name: str, value: int | Sequence[int] | None = None) -> Labels:
    """The pancreas (Z, Y, X), 1 inside, in what a file called `name` holds: all, or its `value`.

    Of several values, as pancreas and tumour, some may be missing. PancreasSegError if all are, or
    if the file holds several and none was given.
    """
    values = np.flatnonzero(voxels_by_label(labels)[1:]) + 1
    listed = ", ".join(map(str, values[:8])) + (", …" if len(values) > 8 else "")
    if value is not None:
        found = np.isin(labels, value)
        if len(values) and not found.any():
            wanted = " or ".join(map(str, np.atleast_1d(value)))
            raise PancreasSegError(
                f"'{name}' has no label {wanted}, but {listed}; give another one."
            )
        return np.asarray(found, np.uint8)
    if len(values) > 1:
        raise PancreasSegError(
            f"'{name}' holds several labels ({listed}); say with --label which are the pancreas."
        )
    return np.asarray(labels > 0, np.uint8)
