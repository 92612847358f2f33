"""From a CT to its mask: a generator that reports what it finds as it goes.

Importing this module loads no Keras; the first segmentation does.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.preprocessing import (
    Frame,
    FrameSpec,
    body_centre,
    contrast_shift,
    frame_around,
)
from napari_pancreas_seg.inference.result import (
    FoundSlices,
    Options,
    Progress,
    ScalarMap,
    Segmentation,
)
from napari_pancreas_seg.inference.schedule import slice_order
from napari_pancreas_seg.model.bundle import Bundle, load_bundle
from napari_pancreas_seg.postprocessing import largest_component, smooth_along_z
from napari_pancreas_seg.volume import CTVolume

if TYPE_CHECKING:
    from napari_pancreas_seg.inference.predictor import FramePredictor

__all__ = ["LoadedModel", "iter_segment", "segment"]

Array = npt.NDArray[Any]


class LoadedModel:
    """A model whose network is in memory, on its device, ready for many volumes.

    Parameters
    ----------
    model : str, Path or Bundle
        Name of a bundled, cached or known model, path of a bundle, or a bundle.
    device : str
        ``"auto"``, ``"cpu"`` or ``"gpu:N"``.

    Raises
    ------
    PancreasSegError
        If there is no such model or device, or the bundle is damaged.
    """

    def __init__(self, model: str | Path | Bundle = "default", device: str = "auto") -> None:
        from napari_pancreas_seg.inference.devices import choose_device
        from napari_pancreas_seg.inference.predictor import FramePredictor

        self.bundle = model if isinstance(model, Bundle) else load_bundle(model)
        self.card = self.bundle.card
        self.device = choose_device(device)
        self.frame = FrameSpec.from_dict(self.card["frame"])
        with self.device.scope():
            self.predictor: FramePredictor = FramePredictor(
                self.bundle.network(), self.card["windows"], self.card.get("temperature", 1.0)
            )


def segment(
    volume: CTVolume, model: str | Path | LoadedModel = "default", **options: Any
) -> Segmentation:
    """Find the pancreas in a CT.

    Parameters
    ----------
    volume : CTVolume
        The CT, as `napari_pancreas_seg.load_ct` reads it.
    model : str, Path or LoadedModel
        Name or path of a model; a `LoadedModel` saves loading it again for the next volume.
    **options
        Fields of `Options`: ``device``, ``batch_size``, ``threshold``, ``postprocess``.

    Returns
    -------
    Segmentation
        Mask on the CT's grid, probability and attention maps.

    Raises
    ------
    PancreasSegError
        If there is no such model or device, an option is out of range, or the CT shows no
        soft tissue.
    """
    try:
        asked = Options(**options)
    except TypeError as error:
        raise PancreasSegError(f"Unknown option: {error}.") from error
    steps = iter_segment(volume, model, asked)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: Segmentation = stop.value
            return result


def iter_segment(
    volume: CTVolume,
    model: str | Path | LoadedModel = "default",
    options: Options | None = None,
) -> Generator[Progress, None, Segmentation]:
    """Find the pancreas step by step; closing the generator cancels.

    Parameters
    ----------
    volume : CTVolume
        The CT.
    model : str, Path or LoadedModel
        See `segment`.
    options : Options, optional
        How to segment.

    Yields
    ------
    Progress
        What is going on, and the slices that were just found, before post-processing.

    Returns
    -------
    Segmentation
        The result.

    Raises
    ------
    PancreasSegError
        See `segment`.
    """
    options = options or Options()
    clock = _Clock()
    n_slices = volume.grid.shape[0]
    with clock("placing the frame"):
        # Before the network is loaded: what cannot be segmented fails at once.
        centre = body_centre(volume.hu, volume.spacing)
    yield Progress("loading the network", 0, n_slices)
    with clock("loading the network"):
        loaded = model if isinstance(model, LoadedModel) else LoadedModel(model, options.device)
    with clock("placing the frame"):
        frame = frame_around(centre, volume.grid.shape[1:], volume.spacing, loaded.frame)
        shift = contrast_shift(volume.hu)
    threshold = options.threshold or float(loaded.card["threshold"])
    maps = _Maps(n_slices)
    done = 0
    for z, outputs in _predict(volume, loaded, frame, shift, options, clock):
        maps.store(z, outputs)
        done += len(z)
        found = FoundSlices(z, native_mask(outputs["probability"], frame, threshold))
        yield Progress("segmenting", done, n_slices, found)
    yield Progress("post-processing", done, n_slices)
    with clock("post-processing"):
        probability = maps.probability
        if options.postprocess:
            probability = smooth_along_z(probability, volume.spacing[0])
        mask = native_mask(probability, frame, threshold)
        if options.postprocess:
            mask = largest_component(mask)
    return Segmentation(
        mask=mask,
        probability=ScalarMap(probability, frame.grid(volume.grid)),
        attention=maps.attention_maps(frame, volume),
        grid=volume.grid,
        threshold=threshold,
        model=loaded.card,
        seconds=clock.seconds,
        options=options,
        notes=volume.notes + _about_contrast(shift),
    )


def native_mask(probability: Array, frame: Frame, threshold: float) -> npt.NDArray[np.uint8]:
    """Bring probability back to the slices' own pixels and threshold it there.

    Parameters
    ----------
    probability : ndarray, shape (n, height, width)
        Probability in the frame.
    frame : Frame
        Where the frame lies.
    threshold : float
        Probability above which a pixel is pancreas.

    Returns
    -------
    ndarray, shape (n, Y, X), uint8
        The mask.

    Notes
    -----
    Interpolation never exceeds its neighbours, so only pixels that touch a frame pixel
    above the threshold are worth computing: work grows with the gland.
    """
    mask = np.zeros((len(probability), *frame.shape), np.uint8)
    rows, columns = frame.out_of()
    candidates = probability > threshold
    for i in np.flatnonzero(candidates.any(axis=(1, 2))):
        near_y = np.flatnonzero(rows[:, candidates[i].any(axis=1)].any(axis=1))
        near_x = np.flatnonzero(columns[:, candidates[i].any(axis=0)].any(axis=1))
        if near_y.size == 0 or near_x.size == 0:
            continue  # what was found lies outside the slice
        y, x = slice(near_y[0], near_y[-1] + 1), slice(near_x[0], near_x[-1] + 1)
        mask[i, y, x] = rows[y] @ probability[i].astype(np.float32) @ columns[x].T > threshold
    return mask


def _about_contrast(shift: int) -> tuple[str, ...]:
    """What the user should know of a CT that is not portal-venous."""
    if not shift:
        return ()
    return (
        f"The soft tissue is darker than in portal-venous CT, so the network was shown values "
        f"{shift} HU higher; without contrast agent the mask is less reliable.",
    )


class _Maps:
    """Compact arrays for probability and attention, filled slice by slice."""

    def __init__(self, n_slices: int) -> None:
        self.n_slices = n_slices
        self.arrays: dict[str, npt.NDArray[np.float16]] = {}

    def store(self, z: npt.NDArray[np.intp], outputs: dict[str, Array]) -> None:
        for name, values in outputs.items():
            if name not in self.arrays:
                self.arrays[name] = np.full((self.n_slices, *values.shape[1:]), np.nan, np.float16)
            self.arrays[name][z] = values

    @property
    def probability(self) -> npt.NDArray[np.float16]:
        return self.arrays["probability"]

    def attention_maps(self, frame: Frame, volume: CTVolume) -> tuple[ScalarMap, ...]:
        names = sorted(name for name in self.arrays if name.startswith("attention_"))
        pad = (-frame.spec.height % 16 // 2, -frame.spec.width % 16 // 2)
        return tuple(
            ScalarMap(
                self.arrays[name],
                frame.grid(
                    volume.grid,
                    self.arrays[name].shape[1:],
                    2 ** int(name.removeprefix("attention_")),
                    pad,
                ),
            )
            for name in names
        )


def _predict(
    volume: CTVolume,
    loaded: LoadedModel,
    frame: Frame,
    shift: int,
    options: Options,
    clock: _Clock,
) -> Iterator[tuple[npt.NDArray[np.intp], dict[str, Array]]]:
    """Run the network over all slices in batches of one shape."""
    order = slice_order(volume.grid.shape[0], options.first_slice)
    rows, columns = frame.into()
    size = min(options.batch_size or loaded.device.batch_size, len(order))
    start = 0
    while start < len(order):
        z = order[start : start + size]
        with clock("segmenting"), loaded.device.scope():
            # The last batch is filled up, so that no other shape is ever compiled.
            filled = np.resize(z, size)
            try:
                outputs = loaded.predictor.predict_batch(volume.hu[filled], rows, columns, shift)
            except Exception as error:
                if size == 1 or not loaded.device.out_of_memory(error):
                    raise
                size = (size + 1) // 2
                continue
        start += len(z)
        yield z, {name: values[: len(z)] for name, values in outputs.items()}


class _Clock:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + spent, 4)
