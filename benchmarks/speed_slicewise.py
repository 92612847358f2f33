"""A CT slice by slice, as a reader of the article would write it: one window, resize, predict.

Shared by the article's network (Keras) and MONAI's (PyTorch), so that the two differ in the
network alone. It needs neither of them, nor this project.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from skimage.transform import resize

WINDOW_HU = (-160.0, 240.0)
"""The usual window for abdominal soft tissue."""
SIDE = 224

Predict = Callable[[np.ndarray], np.ndarray]


def prepared(slice_hu: np.ndarray, side: int) -> np.ndarray:
    """A slice as the network's input, (side, side, 3) float32: windowed, resized, three times."""
    low, high = WINDOW_HU
    grey = (np.clip(slice_hu.astype(np.float32), low, high) - low) / (high - low)
    small = resize(grey, (side, side), order=1, anti_aliasing=False, preserve_range=True)
    return np.repeat(small[..., None], 3, axis=-1).astype(np.float32, copy=False)


def slice_by_slice(
    hu: np.ndarray, predict: Predict, side: int = SIDE, most_slices: int | None = None
) -> dict[str, Any]:
    """Segment a CT with a network that takes one slice at a time, and look at the clock.

    Parameters
    ----------
    hu : ndarray, shape (Z, Y, X)
        Hounsfield units.
    predict : callable
        From (side, side, 3) float32 to the probability, (side, side).
    side : int
        Height and width of the network's input.
    most_slices : int, optional
        Do only so many slices, evenly spread, and say what all would have taken.

    Returns
    -------
    dict
        ``seconds`` for the whole CT, ``parts`` (seconds of preparing, predicting and bringing
        back), ``slices`` of the CT, ``slices_done`` (fewer if extrapolated), ``voxels`` found.
    """
    n_slices = len(hu)
    count = min(n_slices, most_slices or n_slices)
    chosen = np.unique(np.linspace(0, n_slices - 1, count).round().astype(int))
    predict(prepared(hu[0], side))  # what is compiled or allocated once is not counted
    mask = np.zeros(hu.shape, np.uint8)
    parts = {"preparing": 0.0, "predicting": 0.0, "bringing back": 0.0}
    started = time.perf_counter()
    for z in chosen:
        moments = [time.perf_counter()]
        image = prepared(hu[z], side)
        moments.append(time.perf_counter())
        probability = predict(image)
        moments.append(time.perf_counter())
        large = resize(probability, hu.shape[1:], order=1, preserve_range=True)
        mask[z] = large > 0.5
        moments.append(time.perf_counter())
        for name, spent in zip(parts, np.diff(moments), strict=True):
            parts[name] += float(spent)
    factor = n_slices / len(chosen)
    return {
        "seconds": (time.perf_counter() - started) * factor,
        "parts": {name: spent * factor for name, spent in parts.items()},
        "slices": n_slices,
        "slices_done": len(chosen),
        "voxels": int(mask.sum()),
    }
