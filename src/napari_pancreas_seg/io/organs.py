"""One organ of a mask that may show several."""

from __future__ import annotations

import numpy as np

from napari_pancreas_seg.arrays import Labels
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.mask.measures import voxels_by_label


def only_organ(labels: Labels, name: str, value: int | None = None) -> Labels:
    """The pancreas (Z, Y, X), 1 inside, in what a file called `name` holds: all, or a `value`.

    PancreasSegError without that value, or if there are several and none was given.
    """
    values = np.flatnonzero(voxels_by_label(labels)[1:]) + 1
    listed = ", ".join(map(str, values[:8])) + (", …" if len(values) > 8 else "")
    if value is not None:
        if len(values) and value not in values:
            raise PancreasSegError(
                f"'{name}' has no label {value}, but {listed}; give another one."
            )
        return np.asarray(labels == value, np.uint8)
    if len(values) > 1:
        raise PancreasSegError(
            f"'{name}' holds several labels ({listed}); say with --label which one is the pancreas."
        )
    return np.asarray(labels > 0, np.uint8)
