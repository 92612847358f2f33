"""napari's reader: a CT comes back as an image, a mask as labels, a map over its CT."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from napari import current_viewer
from napari.layers import Layer
from napari.utils.notifications import show_info

from napari_pancreas_seg import io
from napari_pancreas_seg._napari.layers import bridge
from napari_pancreas_seg._napari.layers.placement import (
    Placement,
    is_parallel,
    onto_cts,
    placements,
)
from napari_pancreas_seg.arrays import Array
from napari_pancreas_seg.inference.result import ScalarMap
from napari_pancreas_seg.inference.saving import read_sidecar, sidecar_path
from napari_pancreas_seg.io.dicom.seg_read import is_of_another_study
from napari_pancreas_seg.io.dicom.slices import DicomHeader
from napari_pancreas_seg.mask.measures import voxels_by_label
from napari_pancreas_seg.volume import CTVolume, Volume

_OTHERS = (
    "It lies on the grid of this CT, but belongs to another study and frame of reference: it may "
    "be another patient's."
)

_UNNAMED = (
    "It holds several labels ({}), and nothing says which are the pancreas: measures, tables and "
    "surfaces take all of them together."
)

_NOTHING: list[Any] = [(None,)]
"""Layer data that tell napari: "read, and nothing to show"."""


def get_reader(
    path: str | Sequence[str],
) -> Callable[[str | Sequence[str]], list[bridge.LayerData]] | None:
    """Offer to read files that end like a format of ours, and what holds DICOM files."""
    ours = (n.lower().endswith(io.SUFFIXES) or io.is_dicom(Path(n)) for n in _names(path))
    return _read if all(ours) else None


def one_of_each_folder(paths: Iterable[str | Path]) -> list[Path]:
    """Drop the DICOM files of a folder but the first: one stands for its whole series.

    To ask each which series it is of would stop the window for a second or two.
    """
    kept: dict[Path, Path] = {}
    for path in map(Path, paths):
        other = path.name.lower().endswith((".zip", *io.SUFFIXES))
        is_slice = path.is_file() and not other and io.is_dicom(path)
        kept.setdefault(path.absolute().parent if is_slice else path.absolute(), path)
    return list(kept.values())


def read_layer(
    path: str | Path, cts: Sequence[Placement] = (), *, force: bool = False
) -> tuple[bridge.LayerData, tuple[str, ...]]:
    """Read a CT, a mask or a map, for a thread; the latter are laid over a CT parallel to them."""
    kind, volume, _ = io.sniff(path)
    if isinstance(volume, CTVolume):
        volume = io.check_ct(volume, force=force)
        return bridge.ct_layer_data(volume, forced=force), volume.notes
    if kind == "map":
        parallel = [ct for ct in cts if is_parallel(volume.grid, ct.reference.grid)]
        on = parallel[0] if parallel else bridge.plain_placement(volume)
        scalar_map, name = ScalarMap(volume.values, volume.grid), volume.name
        how = {"colormap": "viridis" if "probability" in name else "inferno"}
        return bridge.map_layer_data(
            scalar_map, on, name, **how, visible=not parallel
        ), volume.notes
    on, values, notes = _place_mask(volume, cts)
    facts = sidecar_facts(Path(path))
    data = bridge.labels_layer_data(values, on, name=volume.name, **facts)
    data[1]["metadata"][bridge.FILE_KEY] = str(Path(path).absolute())
    if facts["labels"] == bridge.PANCREAS:
        notes += _several(values)
    return data, volume.notes + notes


def _several(mask: Array) -> tuple[str, ...]:
    """Note labels that have no names: measures know the pancreas among others by its name."""
    labels = np.flatnonzero(voxels_by_label(mask)[1:]) + 1
    listed = ", ".join(map(str, labels[:8])) + (", …" if len(labels) > 8 else "")
    return (_UNNAMED.format(listed),) if len(labels) > 1 else ()


def _place_mask(mask: Volume, cts: Sequence[Placement]) -> tuple[Placement, Array, tuple[str, ...]]:
    """Where a mask is shown, its values there, and a note: it may lie on a part of a CT."""
    grids = [ct.reference for ct in cts]
    same = [ct for ct in grids if mask.grid.same_as(ct.grid)]
    if not cts or same:
        others = bool(same) and all(is_of_another_study(mask.source, ct.source) for ct in same)
        return bridge.plain_placement(mask), mask.values, (_OTHERS,) if others else ()
    for values, ct in onto_cts(mask, grids):
        whole = replace(mask, grid=ct.grid, source=replace(ct.source, path=mask.source.path))
        note = f"It shows a part of '{ct.name}', and was put on its grid."
        return bridge.plain_placement(whole), values, (note,)
    alone = bridge.plain_placement(mask)
    over = next((ct for ct in cts if is_parallel(mask.grid, ct.reference.grid)), None)
    note = "It lies on the grid of no CT that is open, and is the mask of none of them."
    if over is not None:
        alone = replace(alone, transform=bridge.transform_over(over, mask.grid))
    return alone, mask.values, (note,)


def get_ready() -> None:
    """Load, in a thread, the large libraries that the first CT and its mask would wait for."""
    import nibabel  # noqa: F401
    import scipy.signal  # noqa: F401

    volume = CTVolume.from_source_array(np.zeros((2, 2, 2), np.int16), np.eye(4))
    Layer.create(*bridge.ct_layer_data(volume))
    Layer.create(*bridge.labels_layer_data(np.zeros((2, 2, 2), np.uint8), volume))  # brings pandas


def sidecar_facts(path: Path) -> dict[str, Any]:
    """Read labels, expected Dice and cuts from a mask's sidecar; without one, 1 is the pancreas."""
    record = read_sidecar(sidecar_path(path)) or {}
    facts: dict[str, Any] = {"labels": bridge.PANCREAS}
    damaged = contextlib.suppress(KeyError, TypeError, ValueError, AttributeError)
    with damaged:
        labels = {str(name): int(each["value"]) for name, each in record["labels"].items()}
        if labels and all(0 < value < 256 for value in labels.values()):
            facts["labels"] = labels
    with damaged:
        known = record["expected_dice"]
        facts["expected_dice"] = tuple(math.nan if one is None else float(one) for one in known)
    with damaged:
        head, tail = map(float, record["measurements"]["cuts"])
        if 0 <= head <= tail <= 1:
            facts["cuts"] = (head, tail)
    return facts


def _read(path: str | Sequence[str]) -> list[bridge.LayerData]:
    layers, viewer = [], current_viewer()
    cts = [] if viewer is None else placements(viewer.layers)
    for file in map(Path, _names(path)):
        if _is_open(file, cts):
            show_info(f"{file.name} belongs to a CT that is open already.")
            continue
        layer, notes = read_layer(file, cts)
        layers.append(layer)
        for note in notes:
            show_info(f"{file.name}: {note}")
    return layers or _NOTHING


def _is_open(path: Path, cts: Sequence[Placement]) -> bool:
    """Whether a file is a slice of a CT that is open: napari opens what is dropped one by one."""
    headers = [ct.reference.source.header for ct in cts]
    file = path.absolute()
    return any(isinstance(h, DicomHeader) and file in h.files for h in headers)


def _names(path: str | Sequence[str]) -> list[str]:
    return [path] if isinstance(path, str) else [str(name) for name in path]
