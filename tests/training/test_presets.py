"""Presets find their classes under the names that data sets give them."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.training.data.datasets import working_frame
from napari_pancreas_seg.training.data.layouts.opening import choose_classes
from napari_pancreas_seg.training.fit.presets import PRESETS, open_for
from napari_pancreas_seg.training.fit.recipe import TrainSettings

TOTALSEGMENTATOR = [
    *("adrenal_gland_left", "aorta", "colon", "duodenum", "gallbladder", "kidney_left"),
    *("kidney_right", "kidney_cyst_left", "liver", "pancreas", "portal_vein_and_splenic_vein"),
    *("small_bowel", "spleen", "stomach", "vertebrae_L1"),
]
BTCV = [
    *("spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach"),
    *("aorta", "inferior vena cava", "portal vein and splenic vein", "pancreas"),
]
AMOS = ["Spleen", "Right Kidney", "Left Kidney", "Gall Bladder", "Liver", "Duodenum", "Pancreas"]


@pytest.mark.parametrize(
    ("there", "tumour"),
    [
        (["pancreas", "cancer"], "cancer"),
        (["Pancreas", "Tumor"], "Tumor"),
        (["pancreas", "pancreatic_lesion", "common bile duct", "veins"], "pancreatic_lesion"),
        (["pancreas parenchyma", "PDAC lesion"], "PDAC lesion"),
    ],
)
def test_gland_and_tumour(there: list[str], tumour: str) -> None:
    labels, notes = PRESETS["pancreas-tumour"].labels(there)
    assert labels == {"pancreas": [there[0]], "tumour": [tumour]}
    assert notes == ()
    choose_classes(there, labels)  # the data set gives them out


@pytest.mark.parametrize("there", [TOTALSEGMENTATOR, BTCV, AMOS], ids=["TS", "BTCV", "AMOS"])
def test_organs(there: list[str]) -> None:
    labels, notes = PRESETS["organs"].labels(there)
    assert list(labels)[:4] == ["pancreas", "liver", "spleen", "kidneys"]
    assert len(labels["kidneys"]) == 2
    assert all("cyst" not in part and "vein" not in part for p in labels.values() for part in p)
    assert (len(labels) == 7) == (not notes)
    choose_classes(there, labels)


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("pancreas-tumour", ["pancreas"]),
        ("pancreas-tumour", ["liver", "cancer"]),
        ("organs", ["liver", "spleen"]),
        ("organs", ["pancreas"]),
        ("organs", []),
    ],
)
def test_what_is_lacking_is_said(name: str, there: list[str]) -> None:
    with pytest.raises(PancreasSegError, match="--classes"):
        PRESETS[name].labels(there)


def test_the_recipes_are_possible() -> None:
    for preset in PRESETS.values():
        frame = TrainSettings(**preset.settings).frame
        kept = working_frame(frame)
        for size, room in ((frame.height, kept.height), (frame.width, kept.width)):
            assert size * frame.mm_per_pixel + 110 <= room * kept.mm_per_pixel
    with pytest.raises(PancreasSegError, match="known are pancreas-tumour"):
        open_for(Path(), {"steps": 4}, "nothing")
