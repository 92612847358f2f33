"""Find the pancreas in abdominal CT with an Attention U-Net.

The public names load on first use, so that importing the package costs next to nothing
and never imports Keras or TensorFlow.

Examples
--------
>>> import napari_pancreas_seg as nps
>>> volume = nps.load_ct("ct.nii.gz")                           # doctest: +SKIP
>>> result = nps.segment(volume)                                # doctest: +SKIP
>>> nps.save_mask(result.mask, like=volume, path="mask.nii.gz")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_pancreas_seg.errors import PancreasSegError
    from napari_pancreas_seg.inference.result import Options, Segmentation
    from napari_pancreas_seg.inference.segment import iter_segment, segment
    from napari_pancreas_seg.io import load_ct, load_mask, save_mask
    from napari_pancreas_seg.volume import CTVolume, Grid

__all__ = [
    "CTVolume",
    "Grid",
    "Options",
    "PancreasSegError",
    "Segmentation",
    "__version__",
    "iter_segment",
    "load_ct",
    "load_mask",
    "save_mask",
    "segment",
]

__version__ = "0.1.0"

_HOMES = {
    "CTVolume": "volume",
    "Grid": "volume",
    "Options": "inference.result",
    "PancreasSegError": "errors",
    "Segmentation": "inference.result",
    "iter_segment": "inference.segment",
    "load_ct": "io",
    "load_mask": "io",
    "save_mask": "io",
    "segment": "inference.segment",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # the next access does not come here again
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
