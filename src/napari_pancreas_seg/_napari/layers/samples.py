"""Samples for File › Open Sample."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from napari import current_viewer
from napari.layers import Layer
from qtpy.QtCore import QThread

from napari_pancreas_seg._napari.app import app_of
from napari_pancreas_seg._napari.layers.bridge import LayerData, ct_layer_data
from napari_pancreas_seg.data import example as published
from napari_pancreas_seg.data import sample
from napari_pancreas_seg.io import load_ct

MARK = "napari_pancreas_seg is opening"


def phantom() -> list[LayerData]:
    """Open the synthetic CT phantom; needs no network and holds no patient."""
    what = "The synthetic CT is being opened…"
    return _opened(lambda: ct_layer_data(sample.load_sample().volume, "synthetic CT"), what)


def example() -> list[LayerData]:
    """Open a published CT of a patient, downloaded once; PancreasSegError if it cannot be."""
    what = "The example CT is being opened…"
    return _opened(lambda: ct_layer_data(load_ct(published.example_ct_path()), "example CT"), what)


def _opened(make: Callable[[], LayerData], what: str) -> list[LayerData]:
    """Make a layer: at once in a script; in a thread where a window would stand still.

    napari wants a layer at once: an empty one says what is going on, and goes when the CT comes.
    """
    viewer = current_viewer()
    if viewer is None or QThread.currentThread().loopLevel() == 0:
        return [make()]
    marker = object()

    def remove_marked() -> None:
        for layer in [one for one in viewer.layers if one.metadata.get(MARK) is marker]:
            viewer.layers.remove(layer)

    def put(layer: Layer) -> None:
        remove_marked()
        viewer.add_layer(layer)

    app_of(viewer).background.submit(lambda: Layer.create(*make()), put, remove_marked)
    return [(np.empty((0, 3)), {"name": what, "metadata": {MARK: marker}}, "points")]
