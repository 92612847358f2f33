"""From a CT to its mask: plan which slices the network sees, run it on them, finish the mask.

Importing this module loads no Keras; the first segmentation does.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_pancreas_seg.arrays import Array, Box, Floats32, Indices
from napari_pancreas_seg.inference.acquisition import acquisition_warnings, find_acquisition
from napari_pancreas_seg.inference.classes import Classes
from napari_pancreas_seg.inference.finishing import Finishing, keep_region, native_mask
from napari_pancreas_seg.inference.frame import Frame, FrameCrop, FrameSpec
from napari_pancreas_seg.inference.loaded import LoadedModel, named_model
from napari_pancreas_seg.inference.maps import MapArrays, expected_dice, foreground
from napari_pancreas_seg.inference.options import Options
from napari_pancreas_seg.inference.result import FoundSlices, Progress, Segmentation, exhaust
from napari_pancreas_seg.inference.scan_context import ScanContext, about_nothing_found
from napari_pancreas_seg.inference.schedule import Schedule, SliceGrid, choose_slice_grid
from napari_pancreas_seg.io import load_ct
from napari_pancreas_seg.model.bundle import load_card
from napari_pancreas_seg.volume import CTVolume

if TYPE_CHECKING:
    import nibabel
    import SimpleITK

__all__ = ["LoadedModel", "iter_segment", "segment"]


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
    second_look: bool = True,
) -> Segmentation:
    """Find the pancreas in a CT.

    Parameters
    ----------
    ct : CTVolume, str, Path, nibabel image or SimpleITK image
        The CT in Hounsfield units, or where it lies; see `load_ct`.
    model : str, Path or LoadedModel
        Name or path of a model; the one named last stays in memory for the next CT. A
        `LoadedModel` stays on its own device.
    threshold : float, optional
        Probability above which a voxel is pancreas, between 0 and 1; None takes the model's.
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
    second_look : bool
        Look again at slices with pancreas, closer, if the model's card names a network for that.

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
        second_look=second_look,
    )
    return exhaust(iter_segment(load_ct(ct), model, options, stream=False))


def iter_segment(
    ct: CTVolume | str | Path | nibabel.spatialimages.SpatialImage | SimpleITK.Image,
    model: str | Path | LoadedModel = "default",
    options: Options | None = None,
    context: ScanContext | None = None,
    stream: bool = True,
) -> Generator[Progress, None, Segmentation]:
    """Find the pancreas step by step; closing the generator cancels.

    Parameters
    ----------
    ct, model
        See `segment`.
    options : Options, optional
        How to segment.
    context : ScanContext, optional
        Of this very CT, if it has been looked at before.
    stream : bool
        Whether steps carry what they have found.

    Yields
    ------
    Progress
        What is going on, and the slices that were just found, before the second look,
        post-processing and interpolation. The generator returns the Segmentation.
    """
    options = options or Options()
    volume, clock = load_ct(ct), _Clock()
    with clock("placing the frame"):
        # Before the network is loaded: what cannot be segmented fails at once.
        context = context or ScanContext.of(volume)
    card = model.card if isinstance(model, LoadedModel) else load_card(model)
    plan = _Plan.of(volume, context, options, card)

    yield Progress("loading the network", 0, plan.schedule.total)
    with clock("loading the network"):
        if not isinstance(model, LoadedModel):
            model = named_model(model, options.device, card)
        second_look = model.second_look if options.second_look else None

    maps = MapArrays(plan.frame, volume.grid, plan.slice_grid, plan.classes)
    done = 0
    for rows, outputs in _Batches(model, plan).run(clock):
        with clock("keeping results"):
            shown = plan.frame.not_mirrored(outputs["probability"])
            outputs["probability"] = plan.frame.within(shown, plan.region[1:])
            maps.store(rows, outputs)
            done += len(rows)
            found = _found(rows, outputs, maps, plan) if stream else None
        yield Progress("segmenting", done, plan.schedule.total, found)

    # Of the first look alone: the second is surer of itself, also where it errs.
    expected = expected_dice(maps.probability, plan.threshold, card)
    if second_look is not None:
        with clock("second look"):
            (first,) = plan.finishing.gland(maps.probabilities, float(card["threshold"]))
            z, seen = plan.slice_grid.z, maps.probability
            frame, body = plan.frame, context.body
            for _ in second_look.revise(volume, body, frame, z, seen, first):
                yield Progress("looking again", done, done)

    yield Progress("post-processing", done, done)
    return replace(_finish(plan, maps, expected, card, clock), device=model.device.name)


@dataclass(frozen=True)
class _Plan:
    """Where the mask can lie, which slices the network sees, and where its frame lies on them."""

    volume: CTVolume
    context: ScanContext
    options: Options
    region: Box
    slice_grid: SliceGrid
    schedule: Schedule
    frame: Frame
    threshold: float
    classes: Classes

    @classmethod
    def of(
        cls, volume: CTVolume, context: ScanContext, options: Options, card: Mapping[str, Any]
    ) -> _Plan:
        classes = Classes.of(card)
        region = options.region(volume.grid.shape)
        spacing_z, part, first = volume.spacing[0], region[0], options.first_slice
        slice_grid = choose_slice_grid(len(volume.hu), spacing_z, part, first, options.every_slice)
        # Other organs lie where no pancreas can, and several do not lie in one stretch.
        gland = classes.only_gland
        likely = context.body.plausible if options.postprocess and gland else None
        every_row = options.every_slice or not gland
        spec = FrameSpec.from_dict(card["frame"])
        return cls(
            volume,
            context,
            options,
            region,
            slice_grid,
            Schedule(slice_grid, spacing_z, part, first, likely, every_row),
            context.body.frame(volume.grid.shape, volume.spacing, spec),
            float(card["threshold"]) if options.threshold is None else options.threshold,
            classes,
        )

    @property
    def nearest(self) -> Indices:
        """Row that stands for each slice: the nearest of those in the region."""
        return self.slice_grid.nearest(self.slice_grid.rows(self.region[0]))

    @property
    def finishing(self) -> Finishing:
        """How the mask is made of the probabilities."""
        plausible = self.context.body.plausible if self.options.postprocess else None
        spacing = self.volume.spacing
        return Finishing(self.frame, self.slice_grid, spacing, plausible, self.region, self.classes)


def _found(rows: Indices, outputs: dict[str, Array], maps: MapArrays, plan: _Plan) -> FoundSlices:
    """What is shown of rows that the network has just seen."""
    by_class = np.moveaxis(outputs["probability"], -1, 0)
    mask = native_mask(by_class, plan.frame, plan.threshold, plan.classes)
    mask = keep_region(mask, plan.region[1:])
    # Until its own neighbours are known, a slice looks like the nearest one seen.
    index = np.full(len(plan.slice_grid), -1)
    index[rows] = np.arange(len(rows))
    nearest = index[plan.nearest[plan.region[0]]]
    z = np.flatnonzero(nearest >= 0)
    z = z[np.argsort(nearest[z], kind="stable")]
    return FoundSlices(plan.region[0].start + z, mask[nearest[z]], maps.part(rows), rows)


def _finish(
    plan: _Plan, maps: MapArrays, expected: Floats32, card: Mapping[str, Any], clock: _Clock
) -> Segmentation:
    """Make the mask of what the network said of all slices."""
    volume, context, options = plan.volume, plan.context, plan.options
    with clock("post-processing"):
        mask = plan.finishing.mask(maps.probabilities, plan.threshold)
    with clock("looking at the scan"):
        scan = find_acquisition(volume, context.body)
    notes = volume.notes + context.notes + acquisition_warnings(scan)
    if not mask.any():
        highest = float(np.nanmax(maps.probability, initial=0.0))
        part = volume.hu[plan.region].shape != volume.grid.shape
        notes += (about_nothing_found(context, highest, plan.threshold, part=part),)
    judged = np.full(len(mask), np.nan, np.float32)
    judged[plan.region[0]] = expected[plan.nearest[plan.region[0]]]
    return Segmentation(
        mask=mask,
        probability=maps.whole("probability"),
        attention=maps.gates,
        grid=volume.grid,
        threshold=plan.threshold,
        model=card,
        seconds=clock.seconds,
        options=options,
        notes=tuple(dict.fromkeys(notes)),
        expected_dice=judged,
        plausible=context.body.plausible,
        probabilities=maps.by_class,
        scan=scan,
        ct=volume,
    )


_Running = tuple[Indices, int, "Future[dict[str, Array]]"]


class _Batches:
    """Runs the network in a thread, over batches of one shape of what a schedule hands out."""

    def __init__(self, loaded: LoadedModel, plan: _Plan) -> None:
        self._volume, self._loaded, self._body = plan.volume, loaded, plan.context.body
        self._schedule, self._slice_grid = plan.schedule, plan.slice_grid
        self._crop = FrameCrop(plan.frame)
        # Half the threshold: a person may lower it, and the mask's end must have been seen.
        self._faintest = 0.5 * min(float(loaded.card["threshold"]), plan.threshold)
        self._size = min(plan.options.batch_size or loaded.device.batch_size, plan.schedule.total)
        self._alone = plan.options.first_slice is not None

    def run(self, clock: _Clock) -> Iterator[tuple[Indices, dict[str, Array]]]:
        """Yield rows of the slice grid, and what the network says of them."""
        running: _Running | None = None
        with ThreadPoolExecutor(1, "network") as thread:
            while True:
                # When somebody waits for a slice, it goes alone.
                size, self._alone = (1, False) if self._alone else (self._size, False)
                rows, ahead = self._schedule.take(size), None
                if len(rows):
                    with clock("cutting out slices"):
                        z, shown = self._slice_grid.z[rows], self._body.shown
                        hu = self._crop.cut(self._volume.hu, z, size, shown)
                    compute = self._loaded.predict
                    ahead = rows, size, thread.submit(compute, hu, self._crop, self._body.shift)
                if running is not None:
                    with clock("network"):
                        outputs = self._result(running)
                    if outputs is not None:
                        seen = foreground(outputs["probability"])
                        # How much of a pancreas each slice shows.
                        above = np.where(seen > self._faintest, seen, 0)
                        self._schedule.record(running[0], above.sum(axis=(1, 2), dtype=float))
                        yield running[0], outputs
                elif ahead is None:
                    return
                running = ahead

    def _result(self, running: _Running) -> dict[str, Array] | None:
        """Wait for a batch; None if it did not fit into the device's memory and was given back."""
        rows, size, future = running
        try:
            outputs = future.result()
        except Exception as error:
            if size == 1 or not self._loaded.device.out_of_memory(error):
                raise
            self._size = min(self._size, (size + 1) // 2)
            self._schedule.give_back(rows)
            return None
        return {name: values[: len(rows)] for name, values in outputs.items()}


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
