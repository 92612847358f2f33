"""Layers that someone else opened: a frame, values that are no HU yet, geometry left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from napari.layers import Image, Labels, Layer

from napari_pancreas_seg._napari.layers.bridge import scale_and_translate, units_of
from napari_pancreas_seg._napari.layers.placement import (
    DRAWN,
    METADATA_KEY,
    GridReference,
    data_to_world,
    lies_on,
    why_not_ct,
)
from napari_pancreas_seg.io.suffixes import VOLUME
from napari_pancreas_seg.units import Units


class UnitsOfCts:
    """What makes the values of CTs Hounsfield units: each CT is looked at once, in any thread."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Layer, tuple[Any, Units | None]] = WeakKeyDictionary()

    def of(self, ct: Image, reference: GridReference) -> Units | None:
        """None if they are no Hounsfield units; see `units_of`."""
        data, known = ct.data, self._known.get(ct)
        if known is None or known[0] is not data:
            known = self._known[ct] = data, units_of(data, reference)
        return known[1]


def frames(layer: Layer) -> int:
    """Count the volumes in a layer of four axes that could each be a CT; 0 for any other layer."""
    single = isinstance(layer, Image) and not layer.rgb and not layer.multiscale
    return int(layer.data.shape[0]) if single and layer.data.ndim == 4 else 0


def frame_layer(layer: Image, frame: int) -> Image:
    return Image(
        layer.data[frame],
        name=f"{layer.name} [{frame}]",
        contrast_limits=layer.contrast_limits,
        colormap=layer.colormap,
        rgb=False,
        multiscale=False,
        units=layer.units[-3:],
        axis_labels=layer.axis_labels[-3:],
        **scale_and_translate(data_to_world(layer, (frame,))),
    )


def not_offered(layers: list[Layer]) -> list[str]:
    """Say of pictures in the viewer why they are not offered as a CT, a sentence each."""
    pictures = [layer for layer in layers if isinstance(layer, Image) and not frames(layer)]
    reasons = [why_not_ct(layer) for layer in pictures if METADATA_KEY not in layer.metadata]
    return [reason for reason in reasons if reason is not None]


def file_without_geometry(layer: Layer | None) -> Path | None:
    """Find the file of a layer whose reader has left out spacing and orientation."""
    if layer is None or METADATA_KEY in layer.metadata or layer.data.ndim != 3:
        return None
    if layer.source.path is None or layer.source.parent is not None:
        return None
    path = Path(layer.source.path)
    if not path.name.lower().endswith(VOLUME) or not path.is_file():
        return None
    return path if np.allclose(data_to_world(layer)[:3, :3], np.eye(3)) else None


def bind_drawn(layers: list[Layer], reference: GridReference) -> None:
    """Let masks that were drawn on a layer be of that one alone, not of any of its shape."""
    drawn = (one for one in layers if isinstance(one, Labels) and lies_on(one, reference))
    for layer in drawn:
        layer.metadata.setdefault(METADATA_KEY, replace(reference, kind=DRAWN))
