"""nnU-Net's raw data: as the Decathlon's, with a file for each channel, ``NAME_0000.nii.gz``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.training.data.layouts.decathlon import (
    DESCRIPTION,
    IMAGES,
    LABELS,
    is_described,
    label_names,
    list_pairs,
)
from napari_pancreas_seg.training.data.layouts.listing import Layout, Listing, read_json, volumes_in

_CHANNEL = re.compile(r"(.+)_(\d{4})")


def _fits(folder: Path) -> bool:
    return is_described(folder) and any(
        name.endswith("_0000") for name in volumes_in(folder / IMAGES)
    )


def _read(folder: Path) -> Listing:
    data = read_json(folder / DESCRIPTION)
    wanted = _ct_channel(data)
    images = {
        found[1]: path
        for name, path in volumes_in(folder / IMAGES).items()
        if (found := _CHANNEL.fullmatch(name)) and int(found[2]) == wanted
    }
    return list_pairs(images, folder, label_names(data))


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
    said = ", ".join(map(str, channels.values()))
    if len(channels) == 1 and not re.match(r"mri?\b|t[12]|flair|pet\b", said.lower()):
        return int(next(iter(channels)))  # how to normalise is named too, as in "noNorm"
    raise PancreasSegError(
        f"{DESCRIPTION} names the channels {said}: none, or more than one, of them is CT."
    )


LAYOUT = Layout(
    "nnunet",
    f"{IMAGES}/NAME_0000.nii.gz, {LABELS}/NAME.nii.gz and {DESCRIPTION} (nnU-Net's raw data)",
    _fits,
    _read,
)
