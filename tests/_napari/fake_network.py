"""A child that speaks the network's protocol but has no network.

The model's name says what it does. ``box``: a box of ones in every slice but the first; a
corner of every slice has ones, too, until post-processing takes them away. ``nothing``: the corner
alone.
``slow``: the same, a slice at a time, with a pause; ``slow FILE``: without, once there is such a
file. ``graded``: a blob whose probability falls
from its middle outward, so that every threshold gives another mask. ``organs``: the same for a
pancreas, a liver and a spleen side by side. ``fail``, ``bug``,
``noise``, ``die``, ``hang FILE``: as they say; the file appears before it hangs.
``wait FILE``: a box, too, but to load it takes until there is such a file.
"""

import os
import sys
import time

import numpy as np

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.process.server import serve
from napari_pancreas_seg.inference.result import FoundSlices, Progress, ScalarMap, Segmentation

DEVICES = [{"id": "cpu", "name": "CPU (2 cores)"}, {"id": "gpu:0", "name": "GPU 0: a fake"}]


def box_mask(shape):
    mask = np.zeros(shape, np.uint8)
    _, height, width = shape
    mask[1:, height // 4 : height // 2, width // 4 : width // 2] = 1
    return mask


def warm_up(model, *_):
    while model.startswith("wait ") and not os.path.exists(model.removeprefix("wait ")):
        time.sleep(0.01)


def pause(until):
    end = time.monotonic() + 0.15
    while time.monotonic() < end and not os.path.exists(until):
        time.sleep(0.01)


def devices():
    return DEVICES, ""


def mend(volume, *, plane, z, add=None, remove=None, prior=None, label=1):
    """Only obeys: what adds is in, what takes away is out; a neighbour's mask is copied."""
    if plane is None:
        return None
    plane = plane.astype(np.uint8)
    assert plane.shape == volume.grid.shape[1:] and z in range(volume.grid.shape[0])
    strokes = [each for each in (add, remove) if each is not None]
    if prior is not None and not any(each.any() for each in strokes):
        plane = np.where(prior[0] > 0, label, plane).astype(np.uint8)
    if add is not None:
        plane[add > 0] = label
    if remove is not None:
        plane[(remove > 0) & (plane == label)] = 0
    return plane


def segment(volume, model, options):
    print("a library that prints")
    shape = volume.grid.shape
    yield Progress("loading the network", 0, shape[0])
    warm_up(model)
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
    if model == "graded":
        return (yield from graded(volume, options))
    if model == "organs":
        return (yield from organs(volume, options))
    coarse = volume.grid.sub_grid(
        (shape[0], shape[1] // 2, shape[2] // 2), (0, 0.5, 0.5), (1, 2, 2)
    )
    mask = box_mask(shape) * np.uint8(model != "nothing")
    raw = mask.copy()
    raw[:, :2, :2] = 1  # what post-processing removes
    slow = model.startswith("slow")
    step = 1 if slow else 4
    for start in range(0, shape[0], step):
        z = np.arange(start, min(start + step, shape[0]))
        parts = {
            word: ScalarMap(raw[z][:, ::2, ::2].astype(np.float16), coarse)
            for word in ("attention 1", "attention 2", "probability")
        }
        yield Progress("segmenting", int(z[-1]) + 1, shape[0], FoundSlices(z, raw[z], parts, z))
        if slow:
            pause(model.removeprefix("slow "))
    yield Progress("post-processing", shape[0], shape[0])
    values = mask[:, ::2, ::2].astype(np.float16)
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


def graded(volume, options):
    """What the real generator does after the network, on a probability that is made up."""
    from napari_pancreas_seg.inference.finishing import Finishing
    from napari_pancreas_seg.inference.frame import Frame, FrameSpec
    from napari_pancreas_seg.inference.schedule import SliceGrid

    shape, spacing = volume.grid.shape, volume.grid.spacing
    spec = FrameSpec(shape[1] // 2, shape[2] // 2, 2 * spacing[1], (0.0, 0.0))
    frame = Frame(spec, shape[1:], (0.5, 0.5), (2.0, 2 * spacing[1] / spacing[2]))
    z, y, x = np.indices((shape[0], spec.height, spec.width))
    far = ((z - shape[0] / 2) / 4) ** 2 + ((y - 8) / 6) ** 2 + ((x - 10) / 7) ** 2
    probability = ScalarMap(np.exp(-far).astype(np.float16), frame.grid(volume.grid))
    threshold = options.threshold or 0.5
    plausible = np.ones(shape[0], bool)
    seen = plausible if options.postprocess else None
    finishing = Finishing(frame, SliceGrid(shape[0]), spacing, seen, options.region(shape))
    mask = finishing.mask(probability.values, threshold)
    all_slices = np.arange(shape[0])
    parts = {"probability": probability}
    found = FoundSlices(all_slices, mask, parts, all_slices)
    yield Progress("segmenting", shape[0], shape[0], found)
    return Segmentation(
        mask=mask,
        probability=probability,
        attention=(),
        grid=volume.grid,
        threshold=threshold,
        model={"name": "graded", "threshold": 0.5, "frame": spec.to_dict()},
        seconds={},
        options=options,
        plausible=plausible,
    )


def organs(volume, options):
    """Three classes, each in a third of the columns, whose probability falls outward."""
    from napari_pancreas_seg.inference.classes import Classes
    from napari_pancreas_seg.inference.finishing import Finishing
    from napari_pancreas_seg.inference.frame import Frame, FrameSpec
    from napari_pancreas_seg.inference.schedule import SliceGrid

    card = {"name": "organs", "labels": {"pancreas": 1, "liver": 2, "spleen": 3}, "threshold": 0.5}
    shape, spacing = volume.grid.shape, volume.grid.spacing
    spec = FrameSpec(*shape[1:], spacing[1], (0.0, 0.0))
    frame = Frame(spec, shape[1:], (0.0, 0.0), (1.0, spacing[1] / spacing[2]))
    z, y, x = np.indices((shape[0], spec.height, spec.width))
    far = ((z - shape[0] / 2) / 5) ** 2 + ((y - spec.height / 2) / 10) ** 2
    each = [np.exp(-far - ((x - i * spec.width / 6) / 4) ** 2) for i in (1, 3, 5)]
    probabilities = np.array(each, np.float16)
    maps = {
        name: ScalarMap(one, frame.grid(volume.grid))
        for name, one in zip(card["labels"], probabilities, strict=True)
    }
    whole = ScalarMap(np.minimum(probabilities.sum(0), 1), frame.grid(volume.grid))
    threshold = options.threshold or 0.5
    plausible = np.ones(shape[0], bool)
    seen = plausible if options.postprocess else None
    where = frame, SliceGrid(shape[0]), spacing
    finishing = Finishing(*where, seen, options.region(shape), Classes.of(card))
    mask = finishing.mask(probabilities, threshold)
    parts = {"probability": whole, **{f"probability {name}": m for name, m in maps.items()}}
    all_slices = np.arange(shape[0])
    found = FoundSlices(all_slices, mask, parts, all_slices)
    yield Progress("segmenting", shape[0], shape[0], found)
    return Segmentation(
        mask=mask,
        probability=whole,
        probabilities=maps,
        attention=(),
        grid=volume.grid,
        threshold=threshold,
        model={**card, "frame": spec.to_dict()},
        seconds={},
        options=options,
        plausible=plausible,
    )


if __name__ == "__main__":
    real_stdout = os.dup(1)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.modules[__name__], sys.stdin.buffer, replies)
