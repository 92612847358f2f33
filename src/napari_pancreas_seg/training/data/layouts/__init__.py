"""Data sets as they are published and as people keep them: recognised, and read case by case."""

from napari_pancreas_seg.training.data.layouts.cases import LabelledCase, MaskFile, VolumeCase
from napari_pancreas_seg.training.data.layouts.opening import (
    LAYOUTS,
    DataSet,
    classes_in,
    open_dataset,
)
from napari_pancreas_seg.training.data.layouts.slices import SliceRecord, read_slice_layout

__all__ = [
    "LAYOUTS",
    "DataSet",
    "LabelledCase",
    "MaskFile",
    "SliceRecord",
    "VolumeCase",
    "classes_in",
    "open_dataset",
    "read_slice_layout",
]
