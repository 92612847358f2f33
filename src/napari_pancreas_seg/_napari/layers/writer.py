"""napari's writer: every layer goes back onto the grid that it came from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from napari import current_viewer
from napari.layers import Image, Labels, Layer

from napari_pancreas_seg import io
from napari_pancreas_seg._napari.app import existing_app
from napari_pancreas_seg._napari.layers.bridge import LayerData, mask_of, raw_volume_of
from napari_pancreas_seg._napari.layers.files import write_mask
from napari_pancreas_seg._napari.layers.placement import GridReference, find_reference, onto_ct
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.result import ScalarMap
from napari_pancreas_seg.inference.saving import mask_sha256


def write_layers(path: str, layers: Sequence[LayerData]) -> list[str]:
    """Write labels and images; the file of that name is replaced, as napari's dialog has asked.

    The only labels layer, or the only layer, gets that name; others get the layer's name added,
    and replace nothing.
    """
    target = Path(path)
    made = [Layer.create(*layer) for layer in layers]
    labels = [layer for layer in made if isinstance(layer, Labels)]
    main = labels[0] if len(labels) == 1 else made[0] if len(made) == 1 else None
    # All grids first: nothing is written if one of the layers has none.
    viewer = current_viewer()
    others = list(viewer.layers) if viewer is not None else []
    app = existing_app(viewer)
    written = [one for one in others if any(one.data is data for data, *_ in layers)]
    if app is not None and (why := " ".join(map(app.runs.unsettled, written)).strip()):
        raise PancreasSegError(why)
    known = (None if app is None else app.files.grid_of(data) for data, *_ in layers)
    references = [next(known) or find_reference(layer, [*made, *others]) for layer in made]
    names: list[Path] = []
    for layer, reference in zip(made, references, strict=True):
        is_mask = isinstance(layer, Labels) or reference.kind == "mask"
        names.append(target if layer is main else _beside(target, layer.name, names, is_mask))
    asked = target.exists()  # the dialog has asked about this name, and about no other
    for name in names:
        if name != target and name.exists():
            raise PancreasSegError(
                f"'{name.name}' would be written too, and exists already: choose another name for "
                f"'{target.name}', or move that file."
            )
    for (data, *_), layer, reference, name in zip(layers, made, references, names, strict=True):
        if isinstance(layer, Labels) or reference.kind == "mask":
            mask = reference.view(mask_of(layer.data))
            mask, reference = onto_ct(mask, reference, [*made, *others])
            made_by = {} if app is None else app.files.what_made(data, reference, name)
            write_mask(mask, reference, name, **made_by, overwrite=asked and name == target)
        else:
            _save_image(layer, reference, name)
        if app is not None:
            app.files.note_written(data, name)
            app.files.know(name, mask_sha256(name))
    return [str(name) for name in names]


def _save_image(layer: Layer, reference: GridReference, path: Path) -> None:
    if not isinstance(layer, Image) or layer.rgb:
        raise PancreasSegError(f"'{layer.name}' is neither a volume nor a mask.")
    if reference.kind == "map":
        scalar_map = ScalarMap(layer.data, reference.grid)
        io.save_map(scalar_map, like=reference.volume(), path=path, overwrite=True)
    else:
        io.save_ct(raw_volume_of(layer.data, reference), path, overwrite=True)


def _beside(target: Path, name: str, taken: Sequence[Path], is_mask: bool) -> Path:
    """Name a file after the target and a layer: ``m.nii.gz`` and ``m_attention_1.nii.gz``."""
    stem, suffix = io.stem(target), io.suffix_of(target)
    if not is_mask and suffix.lower() not in io.VOLUME_SUFFIXES:
        suffix = ".nii.gz"
    word = re.sub(r"\W+", "_", name.removeprefix(stem)).strip("_") or "layer"
    numbers = ("", *(f"_{number}" for number in range(2, len(taken) + 3)))
    free = (target.with_name(f"{stem}_{word}{number}{suffix}") for number in numbers)
    return next(path for path in free if path not in taken)
