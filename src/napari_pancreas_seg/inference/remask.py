"""Another threshold, or other post-processing, on a finished segmentation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.inference.classes import Classes
from napari_pancreas_seg.inference.finishing import finish_mask
from napari_pancreas_seg.inference.frame import Frame, FrameSpec
from napari_pancreas_seg.inference.result import Segmentation
from napari_pancreas_seg.inference.schedule import SliceGrid


def remask(
    result: Segmentation, threshold: float | None = None, postprocess: bool | None = None
) -> npt.NDArray[np.uint8]:
    """Make a mask from a result's probability again, without the network.

    Parameters
    ----------
    result : Segmentation
        What `segment` returned; it is not changed.
    threshold : float, optional
        Probability above which a voxel is pancreas; as it was if None.
    postprocess : bool, optional
        See `Options`; as it was if None.

    Returns
    -------
    ndarray, shape (Z, Y, X), uint8
        What `segment` would return with these options.
    """
    probability = result.probability
    if postprocess is None:
        postprocess = result.options.postprocess
    frame, slice_grid = places(result)
    several = [each.values for each in result.probabilities.values()]
    return finish_mask(
        np.stack(several) if several else probability.values,
        frame,
        slice_grid,
        result.grid.spacing,
        result.threshold if threshold is None else threshold,
        result.plausible if postprocess else None,
        result.options.region(result.grid.shape),
        Classes.of(result.model),
    )


def places(result: Segmentation) -> tuple[Frame, SliceGrid]:
    """Where the frame lay on the slices, and on which slices."""
    to_ct = np.linalg.inv(result.grid.affine) @ result.probability.grid.affine
    frame = Frame(
        FrameSpec.from_dict(result.model["frame"]),
        result.grid.shape[1:],
        (float(to_ct[1, 3]), float(to_ct[2, 3])),
        (float(to_ct[1, 1]), float(to_ct[2, 2])),
    )
    return frame, SliceGrid(result.grid.shape[0], round(to_ct[0, 0]), round(to_ct[0, 3]))
