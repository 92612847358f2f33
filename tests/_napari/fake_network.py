"""A child that speaks the network's protocol but has no network.

The model's name says what it does. ``box``: a box of ones in every slice but the first; a
corner of every slice has ones, too, until post-processing takes them away.
``slow``: the same, a slice at a time, with a pause. ``fail``, ``bug``, ``noise``, ``die``,
``hang FILE``: as they say; the file appears before it hangs.
"""

import os
import sys
import time

import numpy as np

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import FoundSlices, Progress, ScalarMap, Segmentation
from napari_pancreas_seg.inference.serving import serve


def box_mask(shape):
    mask = np.zeros(shape, np.uint8)
    _, height, width = shape
    mask[1:, height // 4 : height // 2, width // 4 : width // 2] = 1
    return mask


def segment(volume, model, options):
    print("a library that prints")
    shape = volume.grid.shape
    yield Progress("loading the network", 0, shape[0])
    if model == "fail":
        raise PancreasSegError("There is no such model.")
    if model == "bug":
        raise RuntimeError("a bug")
    if model == "die":
        os._exit(3)
    if model.startswith("hang "):
        open(model.removeprefix("hang "), "w").close()
        time.sleep(1000)
    if model == "noise":
        os.write(real_stdout, b"not a message\n")
        time.sleep(1000)
    mask = box_mask(shape)
    raw = mask.copy()
    raw[:, :2, :2] = 1  # what post-processing removes
    step = 1 if model == "slow" else 4
    for start in range(0, shape[0], step):
        z = np.arange(start, min(start + step, shape[0]))
        yield Progress("segmenting", int(z[-1]) + 1, shape[0], FoundSlices(z, raw[z]))
        if model == "slow":
            time.sleep(0.05)
    yield Progress("post-processing", shape[0], shape[0])
    coarse = volume.grid.sub_grid(
        (shape[0], shape[1] // 2, shape[2] // 2), (0, 0.5, 0.5), (1, 2, 2)
    )
    values = mask[:, ::2, ::2][:, : coarse.shape[1], : coarse.shape[2]].astype(np.float16)
    return Segmentation(
        mask=mask,
        probability=ScalarMap(values, coarse),
        attention=(ScalarMap(values, coarse), ScalarMap(values, coarse)),
        grid=volume.grid,
        threshold=0.5,
        model={"name": model},
        seconds={"segmenting": 1.0},
        options=options,
        notes=("A note.",),
    )


if __name__ == "__main__":
    real_stdout = os.dup(1)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(segment, lambda model, options: None, sys.stdin.buffer, replies)
