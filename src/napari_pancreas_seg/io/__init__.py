"""The one front between files and volumes: every format goes in and out through here."""

from napari_pancreas_seg.io.load import (
    SUFFIXES,
    load_ct,
    load_map,
    load_mask,
    looks_like_map,
    looks_like_mask,
    stem,
)
from napari_pancreas_seg.io.save import save_ct, save_map, save_mask

__all__ = [
    "SUFFIXES",
    "load_ct",
    "load_map",
    "load_mask",
    "looks_like_map",
    "looks_like_mask",
    "save_ct",
    "save_map",
    "save_mask",
    "stem",
]
