"""Masks of another program on the same CTs, to be scored beside a model's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io import load_mask
from napari_pancreas_seg.io.alignment import bring_onto
from napari_pancreas_seg.training.data.layouts.listing import entries, read_picture, volumes_in
from napari_pancreas_seg.training.data.layouts.pairs import find_cts
from napari_pancreas_seg.volume import CTVolume


class OtherMasks:
    """A folder of masks (PNG for single slices), named like the cases, with or without an ending.

    `value` is the pancreas's, where they show several organs; else all but 0.
    """

    def __init__(self, folder: Path, value: int | None = None) -> None:
        self.folder, self.value = Path(folder), value
        if not self.folder.is_dir():
            raise PancreasSegError(f"{folder} is not a folder that can be read.")
        self._files = volumes_in(self.folder)
        for path in entries(self.folder):
            if path.suffix.lower() in (".png", ".dcm"):
                self._files.setdefault(path.stem, path)
        if not self._files:
            raise PancreasSegError(f"There are no masks of a known format in {folder}.")

    def of(self, case: str, volume: CTVolume) -> npt.NDArray[np.uint8] | None:
        """The mask (Z, Y, X) of a case on its CT's grid, 1 in the pancreas; None without one."""
        found = [path for name, path in self._files.items() if find_cts(name, {case: Path(case)})]
        exact = [path for path in found if path == self._files.get(case)]
        if len(exact or found) > 1:
            names = ", ".join(path.name for path in found)
            raise PancreasSegError(f"Several masks in {self.folder} could be {case}'s: {names}.")
        path = next(iter(exact or found), None)
        if path is None:
            return None
        if path.suffix.lower() == ".png":
            labels = read_picture(path)[None]
            if labels.shape != volume.grid.shape:
                raise PancreasSegError(
                    f"{path.name} has {labels.shape[1:]} pixels, its CT {volume.grid.shape}; a "
                    "picture can be the mask of a single slice of its size only."
                )
        else:
            labels, on = load_mask(path)
            labels = bring_onto(volume, labels, on, path.name)
        if self.value is not None:
            return (labels == self.value).astype(np.uint8)
        values = np.unique(labels[labels > 0])
        if len(values) > 1:
            raise PancreasSegError(
                f"{path.name} holds several values ({', '.join(map(str, values[:8]))}); say which "
                "is the pancreas's with --also-value."
            )
        return (labels > 0).astype(np.uint8)
