"""Medical Segmentation Decathlon: ``imagesTr``, ``labelsTr`` and ``dataset.json``.

Its pancreas is task 7: portal-venous CTs of patients with a mass, classes pancreas and cancer
(Antonelli et al. 2022, doi:10.1038/s41467-022-30695-9).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.training.data.layouts.cases import MaskFile, VolumeCase, patient_of
from napari_pancreas_seg.training.data.layouts.listing import (
    Layout,
    Listing,
    left_out,
    read_json,
    volumes_in,
)

DESCRIPTION = "dataset.json"
IMAGES, LABELS = "imagesTr", "labelsTr"


def _fits(folder: Path) -> bool:
    return is_described(folder) and not any(
        name.endswith("_0000") for name in volumes_in(folder / IMAGES)
    )


def is_described(folder: Path) -> bool:
    """Whether a folder has images, labels and a description, as nnU-Net has them too."""
    return (folder / DESCRIPTION).is_file() and all((folder / n).is_dir() for n in (IMAGES, LABELS))


def _read(folder: Path) -> Listing:
    data = read_json(folder / DESCRIPTION)
    modality = data.get("modality")
    if isinstance(modality, dict) and [str(m).upper() for m in modality.values()] != ["CT"]:
        said = ", ".join(map(str, modality.values()))
        raise PancreasSegError(f"{DESCRIPTION} says that these images are {said}, not CT.")
    return list_pairs(volumes_in(folder / IMAGES), folder, label_names(data))


def label_names(data: Mapping[str, Any]) -> dict[int, str]:
    """Class of each value but the background's, of ``{"1": "pancreas"}`` or ``{"pancreas": 1}``."""
    labels = data.get("labels")
    if not isinstance(labels, dict):
        raise PancreasSegError(f"{DESCRIPTION} has no 'labels' that say what the values mean.")
    found: dict[int, str] = {}
    for key, value in labels.items():
        if isinstance(value, list):
            raise PancreasSegError(
                f"{DESCRIPTION} defines '{key}' as a region of several labels; give every value "
                "one class of its own (classes are joined with --labels)."
            )
        number, name = (key, value) if isinstance(value, str) else (value, key)
        try:
            number = int(number)
        except (TypeError, ValueError):
            raise PancreasSegError(f"{DESCRIPTION}: the label of '{name}' is no number.") from None
        if name == "ignore":
            raise PancreasSegError(
                f"{DESCRIPTION} uses the label 'ignore', which cannot be trained with: label those "
                "voxels, or leave their cases out."
            )
        if not 0 <= number <= 255 or number in found:
            raise PancreasSegError(f"{DESCRIPTION}: the label {number} of '{name}' is not unique, "
                                   "or not from 0 to 255.")  # fmt: skip
        found[number] = str(name)
    return {number: name for number, name in found.items() if number}


def list_pairs(images: Mapping[str, Path], folder: Path, names: Mapping[int, str]) -> Listing:
    """Pair images with the label maps of the same names."""
    labels = volumes_in(folder / LABELS)
    cases = tuple(
        VolumeCase(name, patient_of(name), images[name], (MaskFile(labels[name], names),))
        for name in sorted(images.keys() & labels.keys())
    )
    notes = (
        *left_out("CTs without a label", sorted(images.keys() - labels.keys())),
        *left_out("Labels without a CT", sorted(labels.keys() - images.keys())),
    )
    return Listing(tuple(names[value] for value in sorted(names)), cases, notes)


LAYOUT = Layout(
    "decathlon",
    f"{IMAGES}/, {LABELS}/ and {DESCRIPTION} (Medical Segmentation Decathlon)",
    _fits,
    _read,
)
