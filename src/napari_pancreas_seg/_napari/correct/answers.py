"""Asks the network for a slice's mask, from strokes or the mask of a neighbouring slice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from napari_pancreas_seg._napari.layers.bridge import volume_of
from napari_pancreas_seg._napari.layers.placement import GridReference
from napari_pancreas_seg._napari.run.worker import fingerprint
from napari_pancreas_seg.arrays import Array, Mask
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.volume import CTVolume

CT = tuple[Any, GridReference]
"""Data of a CT's layer, and its grid."""
Prior = tuple[Mask, float]
"""The mask of another slice, and how far that is away, in mm."""

OWN, OTHER = 1, 2
"""Label values sent to the network: of the label that is mended, and of all others."""


class Answers:
    """Asks the network, as `NetworkProcess.mend` does, for the mask of a slice; for a thread."""

    def __init__(self, ask: Callable[..., Array | None]) -> None:
        self.ask = ask
        self._seen: tuple[str, CTVolume, str] | None = None

    def make_ready(self, ct: CT) -> None:
        volume, key = self._volume(ct)
        self.ask(volume, None, 0, key=key)

    def forget(self) -> None:
        self._seen = None

    def mask_in(self, ct: CT, z: int, plane: Array, label: int, **how: Any) -> Mask:
        """The label's mask in a slice of labels (Y, X); `add` and `remove` are strokes (Y, X)."""
        volume, key = self._volume(ct)
        labels = np.where(plane == label, OWN, np.where(plane != 0, OTHER, 0)).astype(np.uint8)
        answer = self.ask(volume, labels, z, label=OWN, key=key, **how)
        if answer is None:
            raise PancreasSegError("The network was stopped before it had an answer.")
        return np.asarray(answer == OWN)

    def _volume(self, ct: CT) -> tuple[CTVolume, str]:
        """The CT as the network takes it, and a key by which its process knows it again."""
        (data, reference), seen = ct, self._seen
        if seen is None or seen[0] != reference.id:
            volume = volume_of(data, reference)
            seen = self._seen = reference.id, volume, fingerprint(reference, volume)
        return seen[1:]
