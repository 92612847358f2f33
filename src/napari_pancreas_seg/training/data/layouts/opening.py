"""From a folder to a data set: which layout it has, which classes, whose CTs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from napari_pancreas_seg.errors import PancreasSegError, few
from napari_pancreas_seg.io import stem
from napari_pancreas_seg.io.table import read_rows
from napari_pancreas_seg.training.data.layouts import (
    corrected_cases,
    decathlon,
    nih,
    pairs,
    slices,
    totalsegmentator,
)
from napari_pancreas_seg.training.data.layouts.cases import PANCREAS, LabelledCase, VolumeCase
from napari_pancreas_seg.training.data.layouts.listing import (
    DataSetLayout,
    folders_in,
    left_out,
)
from napari_pancreas_seg.training.data.layouts.slices import SliceRecord

LAYOUTS: tuple[DataSetLayout, ...] = (
    nih.LAYOUT,
    decathlon.LAYOUT,
    decathlon.NNUNET,
    totalsegmentator.LAYOUT,
    corrected_cases.LAYOUT,
    slices.LAYOUT,
    pairs.LAYOUT,
)
"""Every layout that is known. One of them must fit a folder, and no other."""

PATIENTS = "patients.csv"
"""In a data set's root, with the columns ``case`` and ``patient``: whose CTs these are."""

_GLAND = re.compile(r"\bpancrea(s|tic)\b")
_NOT_GLAND = re.compile(
    r"\b(artery|arteries|vein|veins|vessels?|fat|nerves?|lymph|peripancreatic)\b"
)
_TUMOUR = re.compile(r"(pdac |pnet )?(cancer|tumou?rs?|lesions?|mass|masses|cysts?|pdac|pnet)")
_OTHER_MODEL = "; choose a model that knows one of them."
_MOST_CLASSES = 254
"""Label maps are uint8, and 0 is the background."""


@dataclass(frozen=True)
class DataSet:
    """CTs with label maps, none of which has been read yet."""

    root: Path
    layout: str  # its layout's name
    labels: Mapping[str, int]  # value of each class in the label maps: 1, 2, …
    cases: tuple[LabelledCase, ...]
    classes: Mapping[str, tuple[str, ...]]  # the layout's own classes that each is made of
    notes: tuple[str, ...] = ()  # what was left out and why, a sentence each

    @property
    def patients(self) -> tuple[str, ...]:
        """Whom the CTs show, each once, sorted."""
        return tuple(sorted({case.patient for case in self.cases}))


def open_dataset(
    folder: str | Path,
    labels: Mapping[str, Sequence[str]] | None = None,
    *,
    layout: str | None = None,
) -> DataSet:
    """Recognise a data set by what lies in its folder, and list its cases, sorted by name.

    The folder is the data set, or one in which it is the only one. Nothing but names and short
    descriptions is read. `labels` are the classes to train, each with the classes of the layout
    that it is made of: ``{"pancreas": ["pancreas", "cancer"]}``; by default one class, the pancreas
    with its parts and tumours. `layout` names one where looking does not tell.

    PancreasSegError if no layout fits or several do, no case is left, or a class does not exist.
    """
    root, known = _recognise(Path(folder), layout)
    listing = known.read(root)
    if not listing.cases:
        why = f" {' '.join(listing.notes)}" if listing.notes else ""
        raise PancreasSegError(
            f"The data set '{_name(root)}' ({known.name}) has no case with a CT and a label.{why}"
        )
    classes = choose_classes(listing.classes, labels)
    values = {p: value for value, parts in enumerate(classes.values(), start=1) for p in parts}
    home = next((place for place in (root, Path(folder)) if (place / PATIENTS).is_file()), root)
    given, more = read_patients(home, {case.name for case in listing.cases})
    cases, lacking = _complete(listing.cases, values, given)
    notes = listing.notes + more + left_out("Cases without a mask of every class", lacking)
    if not cases:
        raise PancreasSegError(
            f"No case of '{_name(root)}' has masks of all classes asked for: {', '.join(values)}."
        )
    twice = sorted(name for name, n in Counter(case.name for case in cases).items() if n > 1)
    if twice:
        raise PancreasSegError(f"Two cases of '{_name(root)}' have the same name, {twice[0]}.")
    return DataSet(
        root,
        known.name,
        {name: value for value, name in enumerate(classes, start=1)},
        tuple(sorted(cases, key=lambda case: case.name)),
        classes,
        notes,
    )


def open_for_model(
    folder: str | Path,
    card: Mapping[str, Any],
    labels: Mapping[str, Sequence[str]] | None = None,
    *,
    layout: str | None = None,
) -> DataSet:
    """Open a data set with a model's classes, made of what `labels` say.

    By default they are made of what they were made of for its training, where the data set has
    that; else see `classes_of_model`.
    """
    asked = classes_of_model(card["labels"], labels)
    recipe = card.get("training", {}).get("recipe")
    trained: Any = recipe.get("classes") if isinstance(recipe, Mapping) else None
    alike = isinstance(trained, Mapping) and trained.keys() == card["labels"].keys()
    if alike and not labels:
        parts = chain.from_iterable(trained.values())
        if {*parts} <= {*classes_in(folder, layout=layout)}:
            asked = {name: trained[name] for name in card["labels"]}
    return open_dataset(folder, asked, layout=layout)


def classes_of_model(
    names: Iterable[str], labels: Mapping[str, Sequence[str]] | None = None
) -> Mapping[str, Sequence[str]] | None:
    """A model's classes, made of what `labels` say; None for the pancreas with whatever parts."""
    if labels:
        names, parts = [*names], [*labels.values()]
        if len(names) == len(parts) == 1 and names[0] in parts[0]:
            return {names[0]: parts[0]}  # by another name, alone or with more
        if sorted(labels) != sorted(names):
            raise PancreasSegError(
                f"The model knows {', '.join(names)}, not {', '.join(labels)}; name them alike."
            )
        return {name: labels[name] for name in names}
    asked = {name: [name] for name in names}
    return None if [*asked] == [PANCREAS] else asked


def classes_in(folder: str | Path, *, layout: str | None = None) -> tuple[str, ...]:
    """List the classes that a data set has, by its own names; see `open_dataset`."""
    root, known = _recognise(Path(folder), layout)
    return tuple(known.read(root).classes)


def _recognise(folder: Path, name: str | None) -> tuple[Path, DataSetLayout]:
    """Find the layout of a folder, or of the only folder in it that has one."""
    below = folders_in(folder)
    asked = [known for known in LAYOUTS if name in (None, known.name)]
    if not asked:
        raise PancreasSegError(
            f"There is no layout '{name}'; those known are {', '.join(k.name for k in LAYOUTS)}."
        )
    found = [(folder, known) for known in asked if known.fits(folder)]
    if not found and len(below) <= _MOST_BELOW:
        found = [(root, known) for root in below for known in asked if known.fits(root)]
    if len(found) == 1:
        return found[0]
    if not found:
        looked = "; ".join(known.looks_for for known in asked)
        raise PancreasSegError(
            f"'{_name(folder)}' has no layout of a data set that is known. Looked for: {looked}."
        )
    names = ", ".join(f"{known.name} ({_name(root)})" for root, known in found)
    raise PancreasSegError(
        f"'{_name(folder)}' could be several data sets: {names}; give the folder of one, or say "
        "which with --layout."
    )


_MOST_BELOW = 20
"""A folder with more folders in it is a data set itself, or none."""


def choose_classes(
    there: Sequence[str], asked: Mapping[str, Sequence[str]] | None = None
) -> dict[str, tuple[str, ...]]:
    """Which classes are trained, and of what; by default the pancreas with parts and tumours."""
    known = few(there, 12) or "none"
    if asked is None:
        parts = _parts_of_pancreas(there)
        if not parts:
            raise PancreasSegError(
                f"None of this data set's classes is called pancreas: it has {known}",
                option="; say which to train with --classes NAME=CLASS[+CLASS].",
                in_window=_OTHER_MODEL,
            )
        return {PANCREAS: parts}
    classes = {name: tuple(parts) for name, parts in asked.items()}
    used = [part for parts in classes.values() for part in parts]
    for part in used:
        if part not in there:
            raise PancreasSegError(
                f"This data set has no class '{part}'; its classes are {known}",
                option="; say which is meant with --classes NAME=CLASS[+CLASS].",
                in_window=_OTHER_MODEL,
            )
        if used.count(part) > 1:
            raise PancreasSegError(f"The class '{part}' is asked for twice; leave one of them out.")
    if not used or not all(classes.values()) or len(classes) > _MOST_CLASSES:
        raise PancreasSegError(
            f"A training needs 1 to {_MOST_CLASSES} classes, each made of at least one of the data "
            f"set's: {known}."
        )
    return classes


def _parts_of_pancreas(there: Sequence[str]) -> tuple[str, ...]:
    words = {name: " ".join(re.split(r"[\W_]+", name.lower())).strip() for name in there}
    gland = [n for n in there if _GLAND.search(words[n]) and not _NOT_GLAND.search(words[n])]
    tumours = [n for n in there if n not in gland and _TUMOUR.fullmatch(words[n])]
    # "tumour" beside other organs may be the liver's.
    vessels = [n for n in there if _NOT_GLAND.search(words[n])]
    if len(gland) + len(tumours) + len(vessels) < len(there):
        tumours = []
    return tuple(n for n in there if n in gland or n in tumours) if gland else ()


def _complete(
    listed: Sequence[LabelledCase], values: Mapping[str, int], patients: Mapping[str, str]
) -> tuple[list[LabelledCase], list[str]]:
    """Fill in patients and values; return the cases, and the names of those that lack a class."""
    cases: list[LabelledCase] = []
    lacking = []
    for case in listed:
        patient = patients.get(case.name, case.patient)
        if isinstance(case, SliceRecord):
            cases.append(replace(case, patient=patient))
        elif isinstance(case, VolumeCase):
            masks = tuple(mask for mask in case.masks if mask.drawn & values.keys())
            if values.keys() <= set().union(*(mask.drawn for mask in masks)):
                cases.append(replace(case, patient=patient, labels=values, masks=masks))
            else:
                lacking.append(case.name)
    return cases, lacking


def read_patients(root: Path, names: Set[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Read `PATIENTS`, if it is there; return patient by case, and what is odd about it."""
    path = root / PATIENTS
    if not path.is_file():
        return {}, ()
    given: dict[str, str] = {}
    for number, row in enumerate(read_rows(path, {"case", "patient"}), start=2):
        case, patient = row["case"].strip(), row["patient"].strip()
        if case not in names and (bare := pairs.case_of(stem(Path(case)))) in names:
            case = bare  # the name of its file
        if not case or not patient:
            raise PancreasSegError(
                f"Line {number} of {PATIENTS} names no case or no patient; give both."
            )
        if given.setdefault(case, patient) != patient:
            raise PancreasSegError(f"{PATIENTS} gives the case {case} to two patients.")
    notes = left_out(f"Named in {PATIENTS} but not in the data set", sorted(given.keys() - names))
    if given.keys() & names:
        notes += left_out(f"Not named in {PATIENTS}", sorted(names - given.keys()))
    return given, notes


def _name(folder: Path) -> str:
    return folder.name or folder.resolve().name or str(folder)
