"""Mend a slice: a network that sees the mask, strokes, and the mask of a neighbouring slice.

Importing this module loads no Keras; the first stroke does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy

from napari_pancreas_seg.arrays import Array, Floats32, Mask
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.body import Body
from napari_pancreas_seg.inference.frame import Frame, FrameSpec, frame_around
from napari_pancreas_seg.inference.framework import load_framework
from napari_pancreas_seg.inference.options import whole
from napari_pancreas_seg.inference.scan_context import body_in
from napari_pancreas_seg.io.save import as_uint8
from napari_pancreas_seg.model.bundle import Bundle, load_bundle
from napari_pancreas_seg.volume import CTVolume, mask_array

if TYPE_CHECKING:
    from napari_pancreas_seg.inference.devices import Device

Prior = tuple[Array, float]

TASK = "mend"
"""What the card of such a network says it is for; also the name of the bundle."""
REACH_MM = 60.0
"""What lies farther from every stroke never changes."""
MARGIN_MM = 20.0
"""The frame reaches at least so far beyond the strokes."""
FADE_MM = 8.0
"""Over this distance the mask of a neighbouring slice loses its weight by a factor of e."""
TRUST, TRUST_MM = 1.5, 2.0
"""A proposal's log-odds rise by so much a mm into the neighbour's outline, for a neighbour at 0 mm;
over the second, by e times less. Found on the slices that `benchmarks/strokes.py` carries to."""
LEFTOVER_MM2, BESIDE_MM = 120.0, 2.0
"""Smaller pieces, so near to what strokes take away, are what is left of it, and go too."""
CERTAIN = 1e-6
"""No probability counts as surer than this."""
GUIDES = 4
"""Channels after the HU windows: mask, strokes that add, that take away, neighbour's mask."""


def mend(
    volume: CTVolume,
    mask: Array,
    z: int,
    *,
    add: Array | None = None,
    remove: Array | None = None,
    prior: Prior | None = None,
    label: int = 1,
) -> npt.NDArray[np.uint8]:
    """Mend one slice of a mask by strokes, or by the mask of a neighbouring slice.

    The network is loaded by the first call and stays in memory.

    Parameters
    ----------
    volume : CTVolume
        The CT.
    mask : ndarray, shape (Z, Y, X)
        Labels on the CT's grid; 0 is background.
    z : int
        The slice to mend.
    add, remove : ndarray of bool, shape (Y, X), optional
        All strokes of this slice so far: over gland that is missing, and over what is no gland.
        Where both are, `remove` counts.
    prior : tuple of ndarray and float, optional
        The gland in a neighbouring slice (Y, X), and the distance of that slice in mm. Without
        strokes, the whole slice around that gland is proposed anew.
    label : int
        The label that is mended, 1 to 255.

    Returns
    -------
    ndarray of uint8, shape (Y, X)
        The slice's new labels. Every voxel of `add` has the label, none of `remove` has it, other
        labels change only under `add`, and nothing changes farther than 60 mm from a stroke. Small
        pieces beside what `remove` took away go with it.
        Without strokes, the label is what is proposed within 60 mm of the gland in `prior`, and
        nothing else. With neither, it is the slice as it was.

    Raises
    ------
    PancreasSegError
        If shapes do not fit each other, or there is no such slice, label or network.
    """
    return _loaded().mend(volume, mask, z, add=add, remove=remove, prior=prior, label=label)


@lru_cache(maxsize=1)
def _loaded() -> Mender:
    return Mender()


class Mender:
    """The network for `mend`, in memory.

    `model` and `device` as for `LoadedModel`; `look` finds the body in a CT, which is done once
    for calls with the same CT.
    """

    def __init__(
        self,
        model: str | Path | Bundle = TASK,
        device: str | Device = "auto",
        look: Callable[[CTVolume], Body | None] = body_in,
    ) -> None:
        bundle = load_bundle(model, TASK)
        load_framework()
        import keras

        from napari_pancreas_seg.inference.devices import choose_device

        self.card = bundle.card
        self.spec = FrameSpec.from_dict(self.card["frame"])
        self._device = choose_device(device) if isinstance(device, str) else device
        self._look = look
        self._seen: tuple[CTVolume, Body | None] | None = None
        with self._device.scope():
            self._network = bundle.network(self._device.policy)
            # XLA's convolutions are slow on a CPU; JAX has no other way.
            self._network.compile(jit_compile=keras.backend.backend() == "jax")

    def mend(self, volume: CTVolume, mask: Array, z: int, **strokes: Any) -> npt.NDArray[np.uint8]:
        """See `napari_pancreas_seg.mend`, whose other arguments this takes as well."""
        if not isinstance(volume, CTVolume):
            raise PancreasSegError("A mask is mended on its CT; give what load_ct returned.")
        mask = mask_array(mask)
        if mask.shape != volume.grid.shape:
            raise PancreasSegError(
                f"The mask has shape {mask.shape} and the CT {volume.grid.shape}; both must be "
                "on the same grid."
            )
        z = whole(z, None, "The slice must be a whole number")
        if not 0 <= z < len(mask):
            raise PancreasSegError(f"There is no slice {z}; they are counted 0 to {len(mask) - 1}.")
        return self.mend_plane(volume, mask[z], z, **strokes)

    def mend_plane(
        self,
        volume: CTVolume,
        plane: Array,
        z: int,
        *,
        add: Array | None = None,
        remove: Array | None = None,
        prior: Prior | None = None,
        label: int = 1,
    ) -> npt.NDArray[np.uint8]:
        """`mend` for callers that have only the slice's labels (Y, X)."""
        shape = volume.grid.shape[1:]
        label = whole(label, None, "The label must be a whole number")
        if not 1 <= label <= 255:
            raise PancreasSegError(f"The label {label} is not between 1 and 255.")
        if prior is not None and not _is_prior(prior):
            raise PancreasSegError("A prior is a neighbour's mask and its distance in mm.")
        plane = _plane(plane, shape, "labels")
        take = _plane(remove, shape, "strokes that take away") > 0
        give = (_plane(add, shape, "strokes that add") > 0) & ~take
        gland = np.minimum(_plane(prior and prior[0], shape, "neighbour's mask"), 1)
        result = as_uint8(plane).copy()
        present, strokes = plane == label, give | take
        if not strokes.any() and not gland.any():
            return result
        origin = strokes if strokes.any() else gland > 0
        # A proposal is made of the picture and the neighbour: the mask that is there may be wrong.
        shown = present & strokes.any()
        near = (shown | (gland > 0) | strokes) & _box_around(origin, volume.spacing[1:])
        body = self._body(volume)
        frame = lay_frame(origin, near, volume.spacing, self.spec, body)
        weight = float(np.exp(-abs(prior[1]) / FADE_MM)) if prior else 0.0
        before, odds = self._answer(volume, z, frame, (shown, give, take, gland), weight)
        part = frame.support()
        if prior and not strokes.any():
            result[present] = 0
            trust = TRUST * np.exp(-abs(prior[1]) / TRUST_MM)
            odds += trust * _depth(gland[part] > 0, volume.spacing[1:])
        # What the network leaves alone stays as sharp as it was.
        free = _seen(frame, part) & _within_reach(origin, part, volume.spacing)
        free &= (plane[part] == 0) | present[part]
        mended = shown[part] ^ (before != (odds > 0))
        result[part][free] = np.where(mended[free], label, 0)
        result[give] = label
        result[take & (result == label)] = 0
        if take.any():
            left = _leftovers(present[part], result[part] == label, give[part], volume.spacing[1:])
            result[part][left & free] = 0
        return result

    def _answer(
        self, volume: CTVolume, z: int, frame: Frame, planes: tuple[Array, ...], weight: float
    ) -> tuple[Mask, Floats32]:
        """The mask that the network saw, and log-odds of its answer, in the frame's support.

        `planes` (Y, X): the mask, strokes that add, that take away, and the neighbour's mask.
        """
        y, x = part = frame.support()
        rows, columns = (m[:, s] for m, s in zip(frame.into(), part, strict=True))
        guides = [rows @ each[part].astype(np.float32) @ columns.T for each in planes]
        guides[-1] = np.float32(weight) * (2 * guides[-1] - 1)
        hu, body = volume.hu[z, y, x], self._body(volume)
        if body is not None:
            hu = body.shown(hu[None])[0]
        answer = self._ask(hu, body.shift if body else 0, rows, columns, guides)
        back, across = (m[s] for m, s in zip(frame.out_of(), part, strict=True))
        before = back @ guides[0] @ across.T > 0.5
        odds = log_odds(back @ answer @ across.T)
        return before, odds - scipy.special.logit(self.card["threshold"])

    def warm_up(self, volume: CTVolume) -> None:
        """Look at a CT and compile, so that the first stroke is answered at once."""
        self._body(volume)
        size = (self.spec.height, self.spec.width)
        nothing = np.zeros(size, np.float32)
        eyes = np.eye(size[0], dtype=np.float32), np.eye(size[1], dtype=np.float32)
        self._ask(nothing, 0, *eyes, [nothing] * GUIDES)

    def _body(self, volume: CTVolume) -> Body | None:
        if self._seen is None or self._seen[0] is not volume:
            self._seen = volume, self._look(volume)
        return self._seen[1]

    def _ask(
        self, hu: Array, shift: int, rows: Array, columns: Array, guides: list[Array]
    ) -> Floats32:
        """Probability (height, width) of the frame that the matrices cut out of a slice."""
        return self.answers(self.seen(hu, shift, rows, columns, guides)[None])[0]

    def seen(
        self, hu: Array, shift: int, rows: Array, columns: Array, guides: Sequence[Array]
    ) -> Floats32:
        """What the network is shown of a slice, (height, width, channels)."""
        windows = self.card["windows"]
        lowest, highest = min(w[0] for w in windows), max(w[1] for w in windows)
        # Clip before resampling, as in a segmentation.
        clipped = np.clip(hu.astype(np.float32) + shift, lowest, highest) - lowest
        seen = rows @ clipped @ columns.T + lowest
        channels = [np.clip((seen - low) / (high - low), 0, 1) for low, high in windows]
        return np.stack([*channels, *guides], axis=-1).astype(np.float32)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of what the network is shown."""
        return self.spec.height, self.spec.width, len(self.card["windows"]) + GUIDES

    def answers(self, seen: Array) -> Floats32:
        """Probability (n, height, width) for what `seen` gave of n slices."""
        with self._device.scope():
            outputs = self._network.predict_on_batch(seen)
        return np.asarray(outputs["probability"][..., 0], np.float32)


def log_odds(probability: Array) -> Floats32:
    """Of probabilities; those that are certain stay finite."""
    return np.asarray(
        scipy.special.logit(np.clip(probability.astype(np.float32), CERTAIN, 1 - CERTAIN))
    )


def lay_frame(
    origin: Mask,
    near: Mask,
    spacing: tuple[float, float, float],
    spec: FrameSpec,
    body: Body | None = None,
) -> Frame:
    """Lay the frame over as much of what is near (Y, X) as fits, around all of the origin.

    Strokes far from each other make its pixels larger.
    """
    sides, pixel = np.array([spec.height, spec.width], float), np.array(spacing[1:])
    low, high = (edge * pixel for edge in _edges(origin))
    scale = max(spec.mm_per_pixel, *((high - low + 2 * MARGIN_MM) / sides))
    first, last = _edges(near)
    middle = (first + last) / 2 * pixel
    free = np.maximum(0, sides * scale / 2 - MARGIN_MM - (high - low) / 2)
    centre = np.clip(middle, (low + high) / 2 - free, (low + high) / 2 + free) / pixel
    return frame_around(
        (float(centre[0]), float(centre[1])),
        origin.shape,
        spacing,
        FrameSpec(spec.height, spec.width, float(scale), (0.0, 0.0)),
        body.edges if body else (None, None, None, None),
    )


def _plane(values: Any, shape: tuple[int, ...], what: str) -> Array:
    """An array (Y, X), of zeros for None."""
    if values is None:
        return np.zeros(shape, bool)
    if np.shape(values) != shape:
        raise PancreasSegError(
            f"The {what} have shape {np.shape(values)}, but the CT's slices {shape}."
        )
    return np.asarray(values)


def _is_prior(prior: Any) -> bool:
    if not isinstance(prior, tuple | list) or len(prior) != 2:
        return False
    return isinstance(prior[1], int | float | np.number) and math.isfinite(prior[1])


def _depth(mask: Mask, spacing: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """How many mm each pixel lies within a mask that is not empty; below 0 outside of it."""
    whole = np.pad(mask, 1)
    inside, outside = (
        scipy.ndimage.distance_transform_edt(each, sampling=spacing) for each in (whole, ~whole)
    )
    return np.asarray((inside - outside)[1:-1, 1:-1])


def _leftovers(before: Mask, after: Mask, give: Mask, spacing: tuple[float, ...]) -> Mask:
    """Small pieces of a mask beside what it has lost, but for the largest and those in strokes."""
    pieces, n = scipy.ndimage.label(after)
    sizes = np.bincount(pieces.ravel(), minlength=n + 1)
    small = sizes * np.prod(spacing) < LEFTOVER_MM2
    small[[0, 1 + int(sizes[1:].argmax())] if n else 0] = False
    lost = before & ~after
    if not small.any() or not lost.any():
        return np.zeros_like(after)
    distance = scipy.ndimage.distance_transform_edt(~lost, sampling=spacing)
    beside = distance <= max(BESIDE_MM, math.hypot(*spacing))  # or one coarse pixel
    near, kept = np.unique(pieces[beside]), np.unique(pieces[give])
    small &= np.isin(np.arange(n + 1), near) & ~np.isin(np.arange(n + 1), kept)
    return np.asarray(small[pieces])


def _edges(mask: Mask) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """First and last index (y, x) of a mask that is not empty."""
    lines = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
    return np.array([each[0] for each in lines]), np.array([each[-1] for each in lines])


def _box_around(mask: Mask, spacing: tuple[float, ...]) -> Mask:
    """The box of a mask and `REACH_MM` beyond it."""
    box = np.zeros(mask.shape, bool)
    rim = np.array([REACH_MM / s for s in spacing])
    low, high = _edges(mask)
    first, last = np.maximum(0, np.ceil(low - rim)).astype(int), np.floor(high + rim).astype(int)
    box[first[0] : last[0] + 1, first[1] : last[1] + 1] = True
    return box


def _seen(frame: Frame, part: tuple[slice, slice]) -> Mask:
    """Which voxels of a part of the slice lie in the frame."""
    inside = []
    for axis, size in enumerate((frame.spec.height, frame.spec.width)):
        place = (np.arange(part[axis].start, part[axis].stop) - frame.origin[axis]) / (
            frame.step[axis]
        )
        inside.append((place >= 0) & (place <= size - 1))
    return np.logical_and.outer(*inside)


def _within_reach(
    origin: Mask, part: tuple[slice, slice], spacing: tuple[float, float, float]
) -> Mask:
    """Which voxels of a part of the slice lie within `REACH_MM` of a mask that lies in it."""
    away = scipy.ndimage.distance_transform_edt(~origin[part], sampling=spacing[1:])
    return np.asarray(away <= REACH_MM)
