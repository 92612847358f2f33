"""Find the pancreas in abdominal CT with an Attention U-Net.

The public names load on first use, so that importing the package costs next to nothing
and never imports Keras or TensorFlow.

Examples
--------
>>> import napari_pancreas_seg as nps
>>> result = nps.segment("ct.nii.gz")  # doctest: +SKIP
>>> result.save("mask.nii.gz")         # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from napari_pancreas_seg._version import __version__

if TYPE_CHECKING:
    from napari_pancreas_seg.errors import PancreasSegError
    from napari_pancreas_seg.inference.finishing import remask
    from napari_pancreas_seg.inference.mend import Mender, mend
    from napari_pancreas_seg.inference.options import Options
    from napari_pancreas_seg.inference.result import Segmentation
    from napari_pancreas_seg.inference.segment import LoadedModel, iter_segment, segment
    from napari_pancreas_seg.io import load_ct, load_mask, save_map, save_mask
    from napari_pancreas_seg.mask.measures import measure
    from napari_pancreas_seg.mask.metrics import dice
    from napari_pancreas_seg.model.bundle import list_models
    from napari_pancreas_seg.volume import CTVolume, Grid

_HOMES = {
    "errors": ("PancreasSegError",),
    "inference.finishing": ("remask",),
    "inference.mend": ("Mender", "mend"),
    "inference.options": ("Options",),
    "inference.result": ("Segmentation",),
    "inference.segment": ("LoadedModel", "iter_segment", "segment"),
    "io": ("load_ct", "load_mask", "save_map", "save_mask"),
    "mask.measures": ("measure",),
    "mask.metrics": ("dice",),
    "model.bundle": ("list_models",),
    "volume": ("CTVolume", "Grid"),
}

__all__ = [
    "CTVolume",
    "Grid",
    "LoadedModel",
    "Mender",
    "Options",
    "PancreasSegError",
    "Segmentation",
    "__version__",
    "dice",
    "iter_segment",
    "list_models",
    "load_ct",
    "load_mask",
    "measure",
    "mend",
    "remask",
    "save_map",
    "save_mask",
    "segment",
]


def __getattr__(name: str) -> Any:
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value  # the next access does not come here again
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
