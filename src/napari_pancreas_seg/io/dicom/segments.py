"""What the segments of a DICOM-SEG are, in the codes of SNOMED CT, and what made them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from napari_pancreas_seg._version import __version__

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription

MANUFACTURER = "napari-pancreas-seg"

_PANCREAS = ("15776009", "Pancreas")
_STRUCTURE = ("123037004", "Anatomical Structure")
_ABNORMAL = ("49755003", "Morphologically Abnormal Structure")
_TISSUE = ("85756007", "Tissue")


_Meaning = tuple[tuple[str, str], tuple[str, str]]
"""Category and type of a segment, as SNOMED CT's code and its words."""

_MEANINGS: dict[str, _Meaning] = {
    "pancreas": (_STRUCTURE, _PANCREAS),
    "head": (_STRUCTURE, ("64163001", "Head of pancreas")),
    "body": (_STRUCTURE, ("40133006", "Body of pancreas")),
    "tail": (_STRUCTURE, ("73239005", "Tail of pancreas")),
    "duct": (_STRUCTURE, ("69930009", "Pancreatic duct")),
    "tumour": (_ABNORMAL, ("108369006", "Neoplasm")),
    "tumor": (_ABNORMAL, ("108369006", "Neoplasm")),
    "lesion": (_ABNORMAL, ("52988006", "Lesion")),
    "cyst": (_ABNORMAL, ("441457006", "Cyst")),
}
"""By the word that a label's name holds; what is not listed is tissue of that name."""

_ORGANS: dict[str, _Meaning] = {
    "liver": (_STRUCTURE, ("10200004", "Liver")),
    "spleen": (_STRUCTURE, ("78961009", "Spleen")),
    "kidney": (_STRUCTURE, ("64033007", "Kidney")),
    "kidneys": (_STRUCTURE, ("64033007", "Kidney")),
    "stomach": (_STRUCTURE, ("69695003", "Stomach")),
    "duodenum": (_STRUCTURE, ("38848004", "Duodenum")),
    "gallbladder": (_STRUCTURE, ("28231008", "Gallbladder")),
}
"""Organs beside it, by the same."""

_PARTS = ("head", "body", "tail", "duct")
"""Words that mean parts of the pancreas only beside its name."""

_COLORS = ((249, 180, 111), (230, 60, 60), (90, 170, 230), (120, 200, 90), (190, 110, 210))
"""RGB; the first is the colour that 3D Slicer's anatomy gives the pancreas."""


def names_of(card: Mapping[str, Any] | None, highest: int) -> dict[int, str]:
    """Name every label from 1 to the highest one that a card or a mask has.

    Without a card, one label is the pancreas, and of several nothing is known.
    """
    labels = dict((card or {}).get("labels") or ({} if highest > 1 else {"pancreas": 1}))
    # The mask of a single class is 1, whatever its card says.
    named = {int(n) if len(labels) > 1 else 1: str(name) for name, n in labels.items()}
    count = max(highest, *named, 1)
    return {number: named.get(number, f"label {number}") for number in range(1, count + 1)}


def describe_segments(
    names: Mapping[int, str], card: Mapping[str, Any] | None, *, edited: bool
) -> list[SegmentDescription]:
    """Describe the segments of an object."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    def code(meaning: tuple[str, str]) -> Code:
        return Code(meaning[0], "SCT", meaning[1])

    weights = (card or {}).get("weights_sha256")
    algorithm = AlgorithmIdentificationSequence(
        name=plain_text((card or {}).get("name") or MANUFACTURER),
        family=codes.DCM.ArtificialIntelligence,
        version=plain_text((card or {}).get("version") or __version__),
        source=MANUFACTURER,
        parameters={"weights_sha256": str(weights)} if weights else None,
    )
    return [
        SegmentDescription(
            number,
            plain_text(name[:1].upper() + name[1:]),
            code(meaning[0]),
            code(meaning[1]),
            # Without a card nobody knows who drew what; both took part, as far as we do.
            "AUTOMATIC" if card and not edited else "SEMIAUTOMATIC",
            algorithm,
            # Where a lesion lies is not in its type; an organ is its own place.
            anatomic_regions=[code(_PANCREAS)] if meaning in _MEANINGS.values() else None,
            display_color=CIELabColor.from_rgb(*_COLORS[(number - 1) % len(_COLORS)]),
        )
        for (number, name), meaning in zip(
            names.items(), map(_meaning, names.values()), strict=True
        )
    ]


def plain_text(value: object) -> str:
    """Bring text to what every character set and DICOM's long string can hold."""
    text = str(value).replace("\\", "/").encode("ascii", "replace").decode()
    return "".join(c if c.isprintable() else " " for c in text).strip()[:64] or "unknown"


def _meaning(name: str) -> _Meaning:
    words = set(name.lower().replace("_", " ").replace("-", " ").split())
    of_pancreas = bool(words & {"pancreas", "pancreatic"})
    # A tumour of the pancreas's head is a tumour: the organ's own name counts last. And a body
    # that nobody calls the pancreas's may be the whole body.
    for word, meaning in reversed(_MEANINGS.items()):
        if word in words and (of_pancreas or word not in _PARTS):
            return meaning
    return next((meaning for word, meaning in _ORGANS.items() if word in words), (_TISSUE, _TISSUE))
