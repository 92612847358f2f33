"""napari's writer: every layer goes back onto the grid that it came from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from napari import current_viewer
from napari.layers import Image, Labels, Layer

from napari_pancreas_seg import io
from napari_pancreas_seg._napari.layers.bridge import LayerData, mask_of, raw_volume_of
from napari_pancreas_seg._napari.layers.placement import GridReference, display_view, find_reference
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.provenance import describe, is_sidecar, write_sidecar
from napari_pancreas_seg.inference.result import ScalarMap, Segmentation
from napari_pancreas_seg.io.files import check_target
from napari_pancreas_seg.io.suffixes import CSV

__all__ = ["write_layers", "write_mask"]


def write_layers(path: str, layers: Sequence[LayerData]) -> list[str]:
    """Write labels and images; overwrites, as napari's dialog has asked already.

    One labels layer, or a single layer of any kind, gets the name that was asked for; what
    is written with it gets the layer's name in addition. A mask that a run has filled gets
    its record beside it, as with Export.

    Parameters
    ----------
    path : str
        The file; its ending says the format. Images that are written together with a mask go to
        ``.nii.gz`` files where the mask's format cannot hold them.
    layers : sequence of tuple
        Data, attributes and type of each layer.

    Returns
    -------
    list of str
        The files written.

    Raises
    ------
    PancreasSegError
        If a layer cannot be placed on a grid, or a file cannot be written.
    """
    target = Path(path)
    made = [Layer.create(*layer) for layer in layers]
    labels = [layer for layer in made if isinstance(layer, Labels)]
    main = labels[0] if len(labels) == 1 else made[0] if len(made) == 1 else None
    # All grids first: nothing is written if one of the layers has none.
    from napari_pancreas_seg._napari.session import existing_session  # which imports this module

    viewer = current_viewer()
    others = list(viewer.layers) if viewer is not None else []
    references = [find_reference(layer, [*made, *others]) for layer in made]
    session = existing_session(viewer)
    written: list[str] = []
    for (data, *_), layer, reference in zip(layers, made, references, strict=True):
        is_mask = isinstance(layer, Labels) or reference.kind == "mask"
        name = target if layer is main else _beside(target, layer.name, written, is_mask)
        if is_mask:
            mask = display_view(mask_of(layer.data), reference.orientation)
            result, ct = (None, None) if session is None else session.what_made(data)
            write_mask(mask, reference, name, result=result, ct=ct, overwrite=True)
        else:
            _save_image(layer, reference, name)
        written.append(str(name))
        if session is not None:
            session.note_written(data, name)
    return written


def write_mask(
    mask: npt.NDArray[np.uint8],
    reference: GridReference,
    path: str | Path,
    *,
    result: Segmentation | None = None,
    ct: Any = None,
    overwrite: bool = False,
) -> Path:
    """Write a mask onto the grid of its CT, and what made it beside it.

    Parameters
    ----------
    mask : ndarray, shape (Z, Y, X), uint8
        The mask, edited or not.
    reference : GridReference
        Where it lies.
    path : str or Path
        The file; the record gets the same name, ending in ``.json``.
    result : Segmentation, optional
        What the model found; without it there is no record.
    ct : array_like, optional
        Data of the CT's layer; without it the record has no mean HU.
    overwrite : bool
        Whether existing files may be replaced.

    Returns
    -------
    Path
        The mask's file.

    Raises
    ------
    PancreasSegError
        If a file cannot be written, or exists and must not be replaced; always if what lies
        where the record has to go is none.
    """
    path = Path(path)
    record = path.with_name(f"{io.stem(path)}.json")
    if result is not None:
        _check_record(record)
        if not is_sidecar(record, reference.volume()):
            # A record of this CT is that of the same mask in another format, and made anew.
            check_target(record, overwrite=overwrite)
    # The CT's values are looked at only where something is said of them.
    wanted = result is not None or path.name.lower().endswith(CSV)
    volume = raw_volume_of(ct, reference) if wanted and ct is not None else reference.volume()
    edited = result is not None and not np.array_equal(mask, result.mask)
    card = None if result is None else result.model
    io.save_mask(mask, like=volume, path=path, overwrite=overwrite, card=card, edited=edited)
    if result is not None:
        write_sidecar(record, describe(volume, result, mask=mask), overwrite=True)
    return path


def _save_image(layer: Layer, reference: GridReference, path: Path) -> None:
    if not isinstance(layer, Image) or layer.rgb:
        raise PancreasSegError(f"'{layer.name}' is neither a volume nor a mask.")
    if reference.kind == "map":
        scalar_map = ScalarMap(layer.data, reference.grid)
        io.save_map(scalar_map, like=reference.volume(), path=path, overwrite=True)
    else:
        io.save_ct(raw_volume_of(layer.data, reference), path, overwrite=True)


def _check_record(record: Path) -> None:
    """Refuse to replace a file that happens to have the record's name."""
    if record.exists() and not is_sidecar(record):
        raise PancreasSegError(
            f"'{record.name}' lies where the record of this mask has to go, and is none; choose "
            "another name or folder."
        )


def _beside(target: Path, name: str, taken: Sequence[str], is_mask: bool) -> Path:
    """Name a file after the target and a layer: ``m.nii.gz`` and ``m_attention_1.nii.gz``."""
    stem, suffix = io.stem(target), io.suffix_of(target)
    if not is_mask and suffix.lower() not in io.VOLUME_SUFFIXES:
        suffix = ".nii.gz"
    word = re.sub(r"\W+", "_", name.removeprefix(stem)).strip("_") or "layer"
    path = target.with_name(f"{stem}_{word}{suffix}")
    number = 2
    while str(path) in taken:
        path = target.with_name(f"{stem}_{word}_{number}{suffix}")
        number += 1
    return path
