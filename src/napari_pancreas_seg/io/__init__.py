"""The one front between files and volumes: every format goes in and out through here."""

from napari_pancreas_seg.io.dicom.read import is_dicom
from napari_pancreas_seg.io.load import SUFFIXES, check_ct, load_ct, load_mask, sniff
from napari_pancreas_seg.io.save import (
    MASK_SUFFIXES,
    VOLUME_SUFFIXES,
    check_can_save,
    mask_image,
    report_path,
    save_ct,
    save_map,
    save_mask,
)
from napari_pancreas_seg.io.suffixes import stem, suffix_of

__all__ = [
    "MASK_SUFFIXES",
    "SUFFIXES",
    "VOLUME_SUFFIXES",
    "check_can_save",
    "check_ct",
    "is_dicom",
    "load_ct",
    "load_mask",
    "mask_image",
    "report_path",
    "save_ct",
    "save_map",
    "save_mask",
    "sniff",
    "stem",
    "suffix_of",
]
