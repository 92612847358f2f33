"""Medical Segmentation Decathlon and nnU-Net: ``imagesTr``, ``labelsTr`` and ``dataset.json``.

The Decathlon's pancreas is task 7: portal-venous CTs of patients with a mass, classes pancreas and
cancer (Antonelli et al. 2022, doi:10.1038/s41467-022-30695-9). nnU-Net's raw data have a file for
each channel, ``NAME_0000.nii.gz``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.files import read_json
from napari_pancreas_seg.training.data.layouts.cases import MaskFile, VolumeCase, patient_of
from napari_pancreas_seg.training.data.layouts.listing import (
    DataSetLayout,
    Listing,
    left_out,
    volumes_in,
)

DESCRIPTION = "dataset.json"
IMAGES, LABELS = "imagesTr", "labelsTr"
_CHANNEL = re.compile(r"(.+)_(\d{4})")


def is_described(folder: Path) -> bool:
    """Whether a folder has images, labels and a description, as nnU-Net has them too."""
    return (folder / DESCRIPTION).is_file() and all((folder / n).is_dir() for n in (IMAGES, LABELS))


def _has_channels(folder: Path) -> bool:
    """Whether images are called after a label and a channel; a case may be number 0000, too."""
    labels = volumes_in(folder / LABELS)
    return any(
        name.endswith("_0000") and name not in labels and name.removesuffix("_0000") in labels
        for name in volumes_in(folder / IMAGES)
    )


def _read(folder: Path) -> Listing:
    """Pair images with the label maps of the same names."""
    data, images = read_json(folder / DESCRIPTION), volumes_in(folder / IMAGES)
    modality = data.get("modality")
    if _has_channels(folder):
        wanted = _ct_channel(data)
        images = {
            found[1]: path
            for name, path in images.items()
            if (found := _CHANNEL.fullmatch(name)) and int(found[2]) == wanted
        }
    elif isinstance(modality, dict) and [str(m).upper() for m in modality.values()] != ["CT"]:
        listed = ", ".join(map(str, modality.values()))
        raise PancreasSegError(f"{DESCRIPTION} says that these images are {listed}, not CT.")
    names, labels = label_names(data), volumes_in(folder / LABELS)
    cases = tuple(
        VolumeCase(name, patient_of(name), images[name], (MaskFile(labels[name], names),))
        for name in sorted(images.keys() & labels.keys())
    )
    notes = (
        *left_out("CTs without a label", sorted(images.keys() - labels.keys())),
        *left_out("Labels without a CT", sorted(labels.keys() - images.keys())),
    )
    return Listing(tuple(names[value] for value in sorted(names)), cases, notes)


def _ct_channel(data: Mapping[str, Any]) -> int:
    """Number of the channel that is the CT: the only one, or the one that is called so."""
    channels = data.get("channel_names", data.get("modality", {"0": "CT"}))
    if not isinstance(channels, dict) or not all(str(key).isdecimal() for key in channels):
        raise PancreasSegError(f"{DESCRIPTION} has no 'channel_names' that number the channels.")
    cts = [
        int(key) for key, name in channels.items() if re.match(r"ct(?![a-z])", str(name).lower())
    ]
    if len(cts) == 1:
        return cts[0]
    listed = ", ".join(map(str, channels.values()))
    if len(channels) == 1 and not re.match(r"mri?\b|t[12]|flair|pet\b", listed.lower()):
        return int(next(iter(channels)))  # how to normalise is named too, as in "noNorm"
    raise PancreasSegError(
        f"{DESCRIPTION} names the channels {listed}: none, or more than one, of them is CT."
    )


def label_names(data: Mapping[str, Any], where: str = DESCRIPTION) -> dict[int, str]:
    """Class of each value but the background's, of ``{"1": "pancreas"}`` or ``{"pancreas": 1}``."""
    labels = data.get("labels")
    if not isinstance(labels, dict):
        raise PancreasSegError(f"{where} has no 'labels' that say what the values mean.")
    found: dict[int, str] = {}
    for key, value in labels.items():
        if isinstance(value, list):
            raise PancreasSegError(
                f"{where} defines '{key}' as a region of several labels; give every value "
                "one class of its own (classes are joined with --classes)."
            )
        named = isinstance(value, str) and not value.isdecimal()
        number, name = (key, value) if named else (value, key)
        try:
            number = int(number)
        except (TypeError, ValueError):
            raise PancreasSegError(f"{where}: the label of '{name}' is no number.") from None
        if name == "ignore":
            raise PancreasSegError(
                f"{where} uses the label 'ignore', which cannot be trained with: label those "
                "voxels, or leave their cases out."
            )
        if not 0 <= number <= 255 or number in found:
            raise PancreasSegError(f"{where}: the label {number} of '{name}' is not unique, "
                                   "or not from 0 to 255.")  # fmt: skip
        found[number] = str(name)
    return {number: name for number, name in found.items() if number}


LAYOUT = DataSetLayout(
    "decathlon",
    f"{IMAGES}/, {LABELS}/ and {DESCRIPTION} (Medical Segmentation Decathlon)",
    lambda folder: is_described(folder) and not _has_channels(folder),
    _read,
)
NNUNET = DataSetLayout(
    "nnunet",
    f"{IMAGES}/NAME_0000.nii.gz, {LABELS}/NAME.nii.gz and {DESCRIPTION} (nnU-Net's raw data)",
    lambda folder: is_described(folder) and _has_channels(folder),
    _read,
)
