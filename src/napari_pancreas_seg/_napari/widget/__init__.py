"""The dock widget: a thin shell over small panels."""

from napari_pancreas_seg._napari.widget.dock import PancreasDock

__all__ = ["PancreasDock"]
