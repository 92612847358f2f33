"""From a CT to its mask: a generator that reports what it finds as it goes.

Importing this module loads no Keras; the first segmentation does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.confidence import expected_dice
from napari_pancreas_seg.inference.landmarks import plausible_slices
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
from napari_pancreas_seg.postprocessing import main_pieces, smooth_along_z
from napari_pancreas_seg.volume import CTVolume, Grid

if TYPE_CHECKING:
    from napari_pancreas_seg.inference.predictor import FramePredictor

__all__ = [
    "Appearance",
    "LoadedModel",
    "finish_mask",
    "iter_segment",
    "keep_region",
    "native_mask",
    "segment",
]

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

    def warm_up(self, volume: CTVolume, options: Options | None = None) -> None:
        """Compile the network for slices like a CT's, so that the first ones come at once."""
        options = options or Options(first_slice=0)
        centre = (volume.grid.shape[1] / 2, volume.grid.shape[2] / 2)
        frame = frame_around(centre, volume.grid.shape[1:], volume.spacing, self.frame)
        rows, columns = frame.into()
        n_slices = len(range(*options.region(volume.grid.shape)[0].indices(volume.grid.shape[0])))
        for size in {*_batch_sizes(n_slices, self, options)}:
            with self.device.scope():
                hu = np.zeros((size, *volume.hu.shape[1:]), volume.hu.dtype)
                self.predictor.predict_batch(hu, rows, columns, 0)


@dataclass(frozen=True)
class Appearance:
    """What must be known of a CT before its slices can be segmented.

    Parameters
    ----------
    centre : tuple of float
        (y, x) index of the body's centre.
    shift : int
        HU to add; see `contrast_shift`.
    """

    centre: tuple[float, float]
    shift: int

    @classmethod
    def of(cls, volume: CTVolume) -> Appearance:
        """Look at a CT.

        Raises
        ------
        PancreasSegError
            If no slice holds any soft tissue.
        """
        return cls(body_centre(volume.hu, volume.spacing), contrast_shift(volume.hu))


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
    appearance: Appearance | None = None,
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
    appearance : Appearance, optional
        Of this very CT, if it has been looked at before: saves half a second.

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
    region = options.region(volume.grid.shape)
    n_slices = region[0].stop - region[0].start
    with clock("placing the frame"):
        # Before the network is loaded: what cannot be segmented fails at once.
        appearance = appearance or Appearance.of(volume)
    yield Progress("loading the network", 0, n_slices)
    with clock("loading the network"):
        loaded = model if isinstance(model, LoadedModel) else LoadedModel(model, options.device)
    with clock("placing the frame"):
        frame = frame_around(appearance.centre, volume.grid.shape[1:], volume.spacing, loaded.frame)
    threshold = options.threshold or float(loaded.card["threshold"])
    maps = _Maps(frame, volume.grid)
    done = 0
    for z, outputs in _predict(volume, loaded, frame, appearance.shift, options, clock):
        maps.store(z, outputs)
        done += len(z)
        mask = native_mask(outputs["probability"], frame, threshold)
        found = FoundSlices(z, keep_region(mask, region[1:]), maps.part(z))
        yield Progress("segmenting", done, n_slices, found)
    yield Progress("post-processing", done, n_slices)
    with clock("post-processing"):
        plausible = plausible_slices(volume.hu, volume.spacing)
        mask = finish_mask(
            maps.probability,
            frame,
            volume.spacing,
            threshold,
            plausible if options.postprocess else None,
            region,
        )
        expected = expected_dice(maps.probability, threshold, loaded.card)
    return Segmentation(
        mask=mask,
        probability=maps.whole("probability"),
        expected_dice=expected,
        plausible=plausible,
        attention=tuple(maps.whole(word) for word in maps.words if word != "probability"),
        grid=volume.grid,
        threshold=threshold,
        model=loaded.card,
        seconds=clock.seconds,
        options=options,
        notes=volume.notes + _about_contrast(appearance.shift),
    )


def finish_mask(
    probability: Array,
    frame: Frame,
    spacing: tuple[float, float, float],
    threshold: float,
    plausible: Array | None,
    region: tuple[slice, slice, slice] | None = None,
) -> npt.NDArray[np.uint8]:
    """From the network's probability to the mask of the whole volume.

    Parameters
    ----------
    probability : ndarray, shape (Z, height, width)
        What the network said, in the frame; NaN at most in slices outside the region.
    frame : Frame
        Where the frame lies on the slices.
    spacing : tuple of float
        Distance between the CT's voxels along (z, y, x) in mm.
    threshold : float
        Probability above which a voxel is pancreas.
    plausible : ndarray, shape (Z,), bool, or None
        Slices in which a pancreas can lie; None leaves out all post-processing.
    region : tuple of slice, optional
        (z, y, x): where the mask can lie; what was found elsewhere does not count.

    Returns
    -------
    ndarray, shape (Z, Y, X), uint8
        The mask.
    """
    if region is not None:
        whole = np.zeros((len(probability), *frame.shape), np.uint8)
        inside = frame.within(probability[region[0]], region[1:])
        seen = None if plausible is None else plausible[region[0]]
        mask = finish_mask(inside, frame, spacing, threshold, seen)
        whole[region[0]] = keep_region(mask, region[1:])
        return whole
    if plausible is not None:
        probability = _smooth_near(probability, threshold, frame, spacing[0])
        step = (spacing[0], frame.spec.mm_per_pixel, frame.spec.mm_per_pixel)
        kept = main_pieces(probability, threshold, step, plausible)
        probability = np.where(kept, probability, probability.dtype.type(0))
    return native_mask(probability, frame, threshold)


def _smooth_near(probability: Array, threshold: float, frame: Frame, spacing_z_mm: float) -> Array:
    """Smooth along z where that can matter for the mask; zero elsewhere.

    A mean along z exceeds the threshold only in columns where some slice does; next to those
    lie the pixels that take part in interpolation.
    """
    above = (probability > threshold).any(axis=0)
    smooth = np.zeros_like(probability)
    if not above.any():
        return smooth
    near = [slice(0, 0), slice(0, 0)]
    for axis in (0, 1):
        reach = math.ceil(max(1.0, 1 / frame.step[axis])) + 1
        held = np.flatnonzero(np.any(above, axis=1 - axis))
        near[axis] = slice(max(0, held[0] - reach), held[-1] + 1 + reach)
    part = np.ascontiguousarray(probability[:, near[0], near[1]])
    smooth[:, near[0], near[1]] = smooth_along_z(part, spacing_z_mm)
    return smooth


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


def keep_region(mask: npt.NDArray[np.uint8], within: tuple[slice, ...]) -> npt.NDArray[np.uint8]:
    """Clear slices (n, Y, X) outside of a box (y, x)."""
    if mask[:, *within].shape == mask.shape:
        return mask
    kept = np.zeros_like(mask)
    kept[:, *within] = mask[:, *within]
    return kept


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

    def __init__(self, frame: Frame, volume: Grid) -> None:
        self._frame, self._volume = frame, volume
        self._arrays: dict[str, npt.NDArray[np.float16]] = {}
        self._grids: dict[str, Grid] = {}

    def store(self, z: npt.NDArray[np.intp], outputs: dict[str, Array]) -> None:
        spec, n_slices = self._frame.spec, self._volume.shape[0]
        pad = (-spec.height % 16 // 2, -spec.width % 16 // 2)
        for name, values in outputs.items():
            word, size = name.replace("_", " "), values.shape[1:]
            if word not in self._arrays:
                self._arrays[word] = np.full((n_slices, *size), np.nan, np.float16)
                self._grids[word] = (
                    self._frame.grid(self._volume)
                    if word == "probability"
                    else self._frame.grid(self._volume, size, 2 ** int(word.split()[1]), pad)
                )
            self._arrays[word][z] = values

    @property
    def words(self) -> list[str]:
        """What there is; the probability comes last, the finest gate first."""
        return sorted(self._arrays)

    @property
    def probability(self) -> npt.NDArray[np.float16]:
        return self._arrays["probability"]

    def whole(self, word: str) -> ScalarMap:
        return ScalarMap(self._arrays[word], self._grids[word])

    def part(self, z: npt.NDArray[np.intp]) -> dict[str, ScalarMap]:
        """Some slices of every map."""
        return {word: ScalarMap(self._arrays[word][z], self._grids[word]) for word in self.words}


def _batch_sizes(n_slices: int, loaded: LoadedModel, options: Options) -> Iterator[int]:
    """Slices per batch, the first batch first.

    When somebody waits for a slice, it goes alone. All others go in batches of one size, so
    that nothing is compiled for a third.
    """
    size = min(options.batch_size or loaded.device.batch_size, n_slices)
    if options.first_slice is not None:
        yield 1
        n_slices -= 1
    for _ in range(0, n_slices, size):
        yield size


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
    part = options.region(volume.grid.shape)[0]
    order = order[(order >= part.start) & (order < part.stop)]
    rows, columns = frame.into()
    sizes = _batch_sizes(len(order), loaded, options)
    most = len(order)
    size, start = next(sizes), 0
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
                size = most = (size + 1) // 2
                continue
        start += len(z)
        size = min(next(sizes, size), most)
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
