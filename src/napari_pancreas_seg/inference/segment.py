"""From a CT to its mask: a generator that reports what it finds as it goes.

Importing this module loads no Keras; the first segmentation does.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.inference.cascade import (
    COARSE_MM,
    GlandLocation,
    find_localiser,
    share_outside,
    with_localiser,
)
from napari_pancreas_seg.inference.classes import Classes
from napari_pancreas_seg.inference.confidence import expected_dice
from napari_pancreas_seg.inference.finishing import finish_mask, keep_region, native_mask
from napari_pancreas_seg.inference.frame import (
    Canvas,
    Frame,
    FrameSpec,
    body_centre,
    contrast_shift,
    frame_around,
)
from napari_pancreas_seg.inference.framework import load_framework
from napari_pancreas_seg.inference.landmarks import plausible_slices
from napari_pancreas_seg.inference.maps import MapArrays, foreground
from napari_pancreas_seg.inference.neighbours import neighbouring_slices
from napari_pancreas_seg.inference.result import (
    FoundSlices,
    Options,
    Progress,
    Segmentation,
    exhaust,
)
from napari_pancreas_seg.inference.schedule import FINE_MM, Schedule, SliceGrid, lattice_for
from napari_pancreas_seg.io import load_ct
from napari_pancreas_seg.model.bundle import Bundle, load_bundle, load_card
from napari_pancreas_seg.volume import CTVolume

if TYPE_CHECKING:
    import nibabel
    import SimpleITK

    from napari_pancreas_seg.inference.predictor import FramePredictor

__all__ = [
    "LoadedModel",
    "ScanContext",
    "iter_segment",
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
    localiser : str, Path or Bundle, optional
        For the second stage of a cascade: the model that finds the gland, if it is not to be the
        one that the card names.

    Raises
    ------
    PancreasSegError
        If there is no such model or device, or the bundle is damaged.
    """

    def __init__(
        self,
        model: str | Path | Bundle = "default",
        device: str = "auto",
        localiser: str | Path | Bundle | None = None,
    ) -> None:
        load_framework()
        from napari_pancreas_seg.inference.devices import choose_device
        from napari_pancreas_seg.inference.predictor import FramePredictor

        self.bundle = model if isinstance(model, Bundle) else load_bundle(model)
        finder = find_localiser(self.bundle.card, localiser)
        self.localiser = None if finder is None else LoadedModel(finder, device)
        self.card = with_localiser(self.bundle.card, localiser)
        self.classes = Classes.of(self.card)
        self.neighbours_mm: float | None = self.card.get("neighbours_mm")
        self.device = choose_device(device)
        self.frame = FrameSpec.from_dict(self.card["frame"])
        with self.device.scope():
            self.predictor: FramePredictor = FramePredictor(
                self.bundle.network(self.device.policy),
                # With neighbouring slices, one window serves them all.
                self.card["windows"][: None if self.neighbours_mm is None else 1],
                self.card.get("temperature", 1.0),
                compact=True,
            )

    def warm_up(self, volume: CTVolume, options: Options | None = None) -> None:
        """Compile the network for slices like a CT's, so that the first ones come at once."""
        options = options or Options(first_slice=0)
        if self.localiser is not None:
            self.localiser.warm_up(volume, options)
        centre = (volume.grid.shape[1] / 2, volume.grid.shape[2] / 2)
        canvas = Canvas(_frame_on(volume, self.frame, centre))
        part = options.region(volume.grid.shape)[0]
        sizes = {min(options.batch_size or self.device.batch_size, part.stop - part.start)}
        if options.first_slice is not None:
            sizes.add(1)
        for size in sizes:
            self._predict_nothing(size, canvas)

    def blank(self, canvas: Canvas) -> dict[str, Array]:
        """What `predict` gives of no slice at all: arrays without rows, of the right shapes."""
        return {name: values[:0] for name, values in self._predict_nothing(1, canvas).items()}

    def _predict_nothing(self, size: int, canvas: Canvas) -> dict[str, Array]:
        """Run the network on so many empty slices, with empty neighbours if it sees those."""
        seen = () if self.neighbours_mm is None else (3,)
        return self.predict(np.zeros((size, *seen, *canvas.shape), np.int16), canvas, 0)

    def predict(self, hu: Array, canvas: Canvas, shift: int) -> dict[str, Array]:
        """Run the network on its device.

        Parameters
        ----------
        hu : ndarray, shape (B, rows, columns) or (B, S, rows, columns), int16
            From `Canvas.cut`; with the slices' neighbours for a network that sees those.
        canvas : Canvas
            Where the frame lies on it.
        shift : int
            HU to add.

        Returns
        -------
        dict of str to ndarray, float16
            ``probability`` (B, height, width, classes) and ``attention_N`` (B, h, w).
        """
        with self.device.scope():
            return self.predictor.predict_batch(hu, canvas.rows, canvas.columns, shift)


@dataclass(frozen=True)
class ScanContext:
    """What must be known of a CT before its slices can be segmented.

    Parameters
    ----------
    centre : tuple of float
        (y, x) index of the body's centre.
    shift : int
        HU to add; see `contrast_shift`.
    plausible : ndarray, shape (Z,), bool
        Slices in which a pancreas can lie; see `plausible_slices`.
    """

    centre: tuple[float, float]
    shift: int
    plausible: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, volume: CTVolume) -> ScanContext:
        """Look at a CT.

        Raises
        ------
        PancreasSegError
            If no slice holds any soft tissue.
        """
        return cls(
            body_centre(volume.hu, volume.spacing),
            contrast_shift(volume.hu),
            plausible_slices(volume.hu, volume.spacing),
        )


def segment(
    ct: CTVolume | str | Path | nibabel.spatialimages.SpatialImage | SimpleITK.Image,
    model: str | Path | LoadedModel = "default",
    *,
    threshold: float | None = None,
    postprocess: bool = True,
    device: str = "auto",
    batch_size: int | None = None,
    every_slice: bool = False,
    slices: tuple[int, int] | None = None,
    box: tuple[int, int, int, int] | None = None,
) -> Segmentation:
    """Find the pancreas in a CT.

    Parameters
    ----------
    ct : CTVolume, str, Path, nibabel image or SimpleITK image
        The CT in Hounsfield units, or where it lies; see `load_ct`.
    model : str, Path or LoadedModel
        Name or path of a model. A `LoadedModel` is not loaded again for the next CT, and stays on
        its own device.
    threshold : float, optional
        Probability from which a voxel is pancreas, between 0 and 1; None takes the model's.
    postprocess : bool
        Smooth the probability along z, and keep the pieces that are most surely the gland.
    device : str
        ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"gpu"`` or ``"gpu:N"``.
    batch_size : int, optional
        Slices that go through the network at once; None chooses for the device.
    every_slice : bool
        Run on every slice, instead of a coarse sweep and then every 3 mm within the pancreas.
    slices : tuple of int, optional
        (start, stop), half-open and counted from 0 at the feet: only these slices are segmented.
    box : tuple of int, optional
        (top, bottom, left, right), half-open rows and columns: the mask lies within these pixels.

    Returns
    -------
    Segmentation
        Mask on the CT's grid, probability and attention maps.

    Raises
    ------
    PancreasSegError
        If there is no such file, model or device, an option is out of range, or the CT shows no
        soft tissue.
    """
    options = Options(
        device=device,
        batch_size=batch_size,
        threshold=threshold,
        postprocess=postprocess,
        every_slice=every_slice,
        slices=slices,
        box=box,
    )
    return exhaust(iter_segment(_volume(ct), model, options, stream=False))


def _volume(ct: Any) -> CTVolume:
    return ct if isinstance(ct, CTVolume) else load_ct(ct)


def iter_segment(
    volume: CTVolume,
    model: str | Path | LoadedModel = "default",
    options: Options | None = None,
    appearance: ScanContext | None = None,
    stream: bool = True,
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
    appearance : ScanContext, optional
        Of this very CT, if it has been looked at before: saves half a second.
    stream : bool
        Whether steps carry what they have found.

    Yields
    ------
    Progress
        What is going on, and the slices that were just found, before post-processing. Slices
        that lie between those that the network sees are shown as the nearest of them; they are
        interpolated at the end.

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
    with clock("placing the frame"):
        # Before the network is loaded: what cannot be segmented fails at once.
        appearance = appearance or ScanContext.of(volume)
    if isinstance(model, LoadedModel):
        card = model.card
    else:
        card = with_localiser(load_card(model), options.localiser)
    classes = Classes.of(card)
    lattice, schedule = _plan(volume, options, appearance, classes)
    yield Progress("loading the network", 0, schedule.total)
    with clock("loading the network"):
        if not isinstance(model, LoadedModel):
            model = LoadedModel(model, options.device, options.localiser)
        loaded = model
    if loaded.localiser is None:
        course = _Course(_frame_on(volume, loaded.frame, appearance.centre), schedule)
    else:
        course = yield from _locate(volume, loaded, lattice, options, appearance, clock)
    frame, schedule, done = course.frame, course.schedule, course.done
    canvas = Canvas(frame)
    threshold = options.threshold
    if threshold is None:
        threshold = float(loaded.card["threshold"])
    maps = MapArrays(frame, volume.grid, lattice, classes)
    if not schedule.total:  # there are maps, with nothing in them
        maps.store(np.zeros(0, np.intp), loaded.blank(canvas))
    batches = _Batches(volume, loaded, canvas, appearance.shift, options)
    for rows, outputs in batches.run(lattice, schedule, clock):
        with clock("keeping results"):
            maps.store(rows, outputs)
            done += len(rows)
            found = None
            if stream:
                by_class = np.moveaxis(outputs["probability"], -1, 0)
                mask = native_mask(by_class, frame, threshold, classes)
                mask = keep_region(mask, region[1:])
                # Until its own neighbours are known, a slice looks like the nearest one seen.
                place, z = _nearest(lattice, rows, region[0])
                found = FoundSlices(z, mask[place], maps.part(rows), rows)
        yield Progress("segmenting", done, course.done + schedule.total, found)
    yield Progress("post-processing", done, done)
    with clock("post-processing"):
        mask = finish_mask(
            maps.probabilities,
            frame,
            lattice,
            volume.spacing,
            threshold,
            appearance.plausible if options.postprocess else None,
            region,
            classes,
        )
        expected = expected_dice(maps.probability, threshold, loaded.card)[lattice.nearest()]
    return Segmentation(
        mask=mask,
        probability=maps.whole("probability"),
        expected_dice=expected,
        plausible=appearance.plausible,
        probabilities=maps.by_class,
        attention=maps.gates,
        grid=volume.grid,
        threshold=threshold,
        model=loaded.card,
        seconds=clock.seconds,
        options=options,
        notes=volume.notes + _about_contrast(appearance.shift) + course.notes,
        ct=volume,
    )


@dataclass(frozen=True)
class _Course:
    """Where the network looks, how many slices another one has seen before, and what to say."""

    frame: Frame
    schedule: Schedule
    done: int = 0
    notes: tuple[str, ...] = ()


def _frame_on(volume: CTVolume, spec: FrameSpec, centre: tuple[float, float]) -> Frame:
    return frame_around(centre, volume.grid.shape[1:], volume.spacing, spec)


def _locate(
    volume: CTVolume,
    loaded: LoadedModel,
    lattice: SliceGrid,
    options: Options,
    appearance: ScanContext,
    clock: _Clock,
) -> Generator[Progress, None, _Course]:
    """The first stage of a cascade: find the gland, and lay the second one's frame around it."""
    region = options.region(volume.grid.shape)
    stage = _Clock()
    gland, done = yield from _coarse_mask(volume, loaded.localiser, options, appearance, stage)
    clock.seconds["finding the gland"] = round(sum(stage.seconds.values()), 4)
    found = GlandLocation.of(gland, volume.spacing[0], region[0])
    notes: tuple[str, ...] = ()
    if found is None:
        spec = replace(loaded.frame, offset_mm=FrameSpec.offset_mm)
        frame, part = _frame_on(volume, spec, appearance.centre), slice(0, 0)
        notes = (_NOTHING_FOUND,)
    else:
        frame, part = _frame_on(volume, loaded.frame, found.centre), found.part
        if share_outside(gland, frame) > _MUCH_OUTSIDE:
            notes = (_TOO_LARGE,)
    schedule = Schedule(lattice, volume.spacing[0], part, options.first_slice, every_slice=True)
    return _Course(frame, schedule, done, notes)


_NOTHING_FOUND = (
    "The first stage found no pancreas, so there was nothing for the second to look at; another "
    "model may find it."
)
_TOO_LARGE = (
    "What the first stage found is larger than the second one's frame, so that a part of the "
    "pancreas may be missing."
)
_MUCH_OUTSIDE = 0.02


def _coarse_mask(
    volume: CTVolume,
    localiser: LoadedModel | None,
    options: Options,
    appearance: ScanContext,
    clock: _Clock,
) -> Generator[Progress, None, tuple[npt.NDArray[np.bool_], int]]:
    """Where a network sees the gland, as closely as is needed to find it; and slices seen."""
    assert localiser is not None
    classes, region = localiser.classes, options.region(volume.grid.shape)
    coarse = replace(options, threshold=None, every_slice=False)
    lattice, schedule = _plan(volume, coarse, appearance, classes, COARSE_MM)
    frame = _frame_on(volume, localiser.frame, appearance.centre)
    maps = MapArrays(frame, volume.grid, lattice, classes)
    batches = _Batches(volume, localiser, Canvas(frame), appearance.shift, coarse)
    done = 0
    for rows, outputs in batches.run(lattice, schedule, clock):
        maps.store(rows, {"probability": outputs["probability"]})
        done += len(rows)
        yield Progress("finding the gland", done, schedule.total)
    with clock("mask"):
        # One stretch of slices and one place in them are wanted, post-processing or not.
        everywhere = np.ones_like(appearance.plausible)
        mask = finish_mask(
            maps.probabilities,
            frame,
            lattice,
            volume.spacing,
            float(localiser.card["threshold"]),
            appearance.plausible if options.postprocess else everywhere,
            region,
            classes,
        )
        values = [v for v, inside in zip(classes.values, classes.in_gland, strict=True) if inside]
        return np.isin(mask, values), done


def _plan(
    volume: CTVolume,
    options: Options,
    appearance: ScanContext,
    classes: Classes,
    fine_mm: float = FINE_MM,
) -> tuple[SliceGrid, Schedule]:
    """Choose what the network may see of a CT, and in which order."""
    part = options.region(volume.grid.shape)[0]
    how = (part, options.first_slice)
    lattice = lattice_for(len(volume.hu), volume.spacing[0], *how, options.every_slice, fine_mm)
    # Other organs lie where no pancreas can, and several do not lie in one stretch.
    gland = classes.only_gland
    likely = appearance.plausible if options.postprocess and gland else None
    every_row = options.every_slice or not gland
    return lattice, Schedule(lattice, volume.spacing[0], *how, likely, every_row, fine_mm)


def _nearest(
    lattice: SliceGrid, rows: npt.NDArray[np.intp], part: slice
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Slices to which one of some rows is the nearest: index of that row, and slice."""
    nearest = lattice.nearest()[part]
    index = np.full(len(lattice), -1)
    index[rows] = np.arange(len(rows))
    z = np.flatnonzero(index[nearest] >= 0)
    order = np.argsort(index[nearest[z]], kind="stable")
    return index[nearest[z[order]]], part.start + z[order]


def _about_contrast(shift: int) -> tuple[str, ...]:
    """What the user should know of a CT that is not portal-venous."""
    if not shift:
        return ()
    return (
        f"The soft tissue is darker than in portal-venous CT, so the network was shown values "
        f"{shift} HU higher; without contrast agent the mask is less reliable.",
    )


_Running = tuple[npt.NDArray[np.intp], int, "Future[dict[str, Array]]"]


class _Batches:
    """Runs the network over what a schedule hands out, in batches of one shape.

    The next batch is cut out while the network computes, and what it has said of the last one
    is worked on meanwhile: it runs in a thread of its own.
    """

    def __init__(
        self, volume: CTVolume, loaded: LoadedModel, canvas: Canvas, shift: int, options: Options
    ) -> None:
        self._volume, self._loaded, self._canvas, self._shift = volume, loaded, canvas, shift
        card = float(loaded.card["threshold"])
        # Half the threshold: a person may lower it, and the mask's end must have been seen.
        self._faintest = 0.5 * min(card, options.threshold or card)
        self._size = options.batch_size or loaded.device.batch_size
        self._alone = options.first_slice is not None

    def run(
        self, lattice: SliceGrid, schedule: Schedule, clock: _Clock
    ) -> Iterator[tuple[npt.NDArray[np.intp], dict[str, Array]]]:
        """Yield rows of the lattice, and what the network says of them."""
        self._size = min(self._size, schedule.total)
        running: _Running | None = None
        with ThreadPoolExecutor(1, "network") as thread:
            while True:
                # When somebody waits for a slice, it goes alone.
                size, self._alone = (1, False) if self._alone else (self._size, False)
                rows, ahead = schedule.take(size), None
                if len(rows):
                    with clock("cutting out slices"):
                        hu = self._cut(lattice.z[rows], size)
                    ahead = rows, size, thread.submit(self._compute, hu)
                if running is not None:
                    with clock("network"):
                        outputs = self._result(running, schedule)
                    if outputs is not None:
                        seen = foreground(outputs["probability"])
                        schedule.tell(running[0], self._evidence(seen))
                        yield running[0], outputs
                elif ahead is None:
                    return
                running = ahead

    def _cut(self, z: npt.NDArray[np.intp], size: int) -> Array:
        """Cut slices out, with their neighbours if the network sees those."""
        hu, near = self._volume.hu, self._loaded.neighbours_mm
        if near is None:
            return self._canvas.cut(hu, z, size)
        seen = neighbouring_slices(len(hu), self._volume.spacing[0], near)[z]
        cut = self._canvas.cut(hu, seen.ravel(), size * seen.shape[1])
        return cut.reshape(size, seen.shape[1], *cut.shape[1:])

    def _compute(self, hu: Array) -> dict[str, Array]:
        return self._loaded.predict(hu, self._canvas, self._shift)

    def _result(self, running: _Running, schedule: Schedule) -> dict[str, Array] | None:
        """Wait for a batch; None if it did not fit into the device's memory and was given back."""
        rows, size, future = running
        try:
            outputs = future.result()
        except Exception as error:
            if size == 1 or not self._loaded.device.out_of_memory(error):
                raise
            self._size = min(self._size, (size + 1) // 2)
            schedule.give_back(rows)
            return None
        return {name: values[: len(rows)] for name, values in outputs.items()}

    def _evidence(self, probability: Array) -> npt.NDArray[np.float64]:
        """How much of a pancreas each slice shows."""
        return np.array([plane[plane > self._faintest].sum(dtype=float) for plane in probability])


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
