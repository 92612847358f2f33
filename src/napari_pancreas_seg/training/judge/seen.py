"""From which patients a model has learnt: a score on them says nothing of others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from napari_pancreas_seg.training.data.layouts.cases import patient_of
from napari_pancreas_seg.training.data.layouts.corrected_cases import CASE_NAME
from napari_pancreas_seg.training.data.layouts.pairs import case_of


class _OfPatient(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def patient(self) -> str: ...


def patients_seen(cards: Iterable[Mapping[str, Any]]) -> set[str]:
    """Patients from whom any of these models has learnt, as their cards say."""
    return {p for card in cards for p in card.get("training", {}).get("patients", ())}


def names_for_card(cases: Iterable[_OfPatient]) -> set[str]:
    """What a card says of those learnt from; a corrected CT is known by its voxels, too."""
    cases = list(cases)
    return {c.patient for c in cases} | {c.name for c in cases if c.name.startswith(CASE_NAME)}


def those_seen(cases: Iterable[_OfPatient], cards: Iterable[Mapping[str, Any]]) -> list[str]:
    """Patients of cases from whom a model has learnt, whether they or their cases are named."""
    known = {name for patient in patients_seen(cards) for name in names_of(patient)}
    return sorted({c.patient for c in cases if known & (names_of(c.patient) | names_of(c.name))})


def names_of(patient: str) -> frozenset[str]:
    """Names of one patient in NIH Pancreas-CT, in the Decathlon, and of nnU-Net's files."""
    bare = case_of(patient.removesuffix("_0000"))
    names = [patient, bare, patient_of(bare)]
    names.append(re.sub(r"^(pancreas|nih)_(\d{4})(?!\d).*", r"\2", bare, flags=re.I))
    names.append(re.sub(r"^pancreas_(\d{3})(?!\d).*", r"MSD07_0\1", bare, flags=re.I))
    return frozenset(name.casefold() for name in names)
