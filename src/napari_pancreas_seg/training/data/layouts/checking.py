"""Checking a data set before it is trained on: every case is read and measured."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from napari_pancreas_seg.arrays import Array, Labels
from napari_pancreas_seg.cohort.inspection import suspicions
from napari_pancreas_seg.cohort.overview import draw_overview
from napari_pancreas_seg.errors import few, why_failed
from napari_pancreas_seg.io.files import escaped
from napari_pancreas_seg.io.table import csv_text
from napari_pancreas_seg.training.data.layouts.cases import LabelledCase
from napari_pancreas_seg.training.data.layouts.opening import DataSet
from napari_pancreas_seg.training.data.layouts.plausibility import suspicious_findings
from napari_pancreas_seg.volume import CTVolume

logger = logging.getLogger(__name__)


Checked = dict[str, Any]
"""What was found out about a case, as plain data: `problem` is why it cannot be used, `suspicious`
what to look at. `labelled` counts the slices whose label counts; `spacing_mm` is along (z, y, x);
`mask_hash` is empty where the mask is."""


def check_dataset(
    dataset: DataSet,
    *,
    pictures: Path | None = None,
    on_case: Callable[[int, int, Checked], None] = lambda done, total, case: None,
) -> dict[str, Any]:
    """Read every case of a data set and say what is suspicious; none stops the others."""
    cases = []
    for done, case in enumerate(dataset.cases, start=1):
        try:
            found = _check(case, dataset.labels, pictures)
        except Exception as error:  # of one case: what is known of the others stays
            logger.debug("a case failed", exc_info=error)
            found = _found(case, problem=why_failed(case.name, error))
        cases.append(found)
        on_case(done, len(dataset.cases), found)
    _mark_repeats(cases)
    return {
        "layout": dataset.layout,
        "labels": dict(dataset.labels),
        "classes": {name: list(parts) for name, parts in dataset.classes.items()},
        "usable": all(case["usable"] for case in cases),
        "summary": _summary(cases, list(dataset.labels)),
        "remarks": list(_remarks(dataset, cases)),
        "cases": cases,
    }


def _found(case: LabelledCase, **found: Any) -> Checked:
    """Return the findings on a case, with defaults for all that was not found."""
    nothing: Checked = {"problem": None, "suspicious": [], "notes": [], "slices": 0, "labelled": 0}
    nothing |= {"spacing_mm": [], "volume_ml": {}, "median_hu": {}, "ct_hash": "", "mask_hash": ""}
    usable = "problem" not in found
    return {"name": case.name, "patient": case.patient, **nothing, **found, "usable": usable}


def _check(case: LabelledCase, classes: Mapping[str, int], pictures: Path | None) -> Checked:
    """Read a case, check it and draw it."""
    volume, labels = case.load()
    found = check_case(case, volume, labels, classes)
    if pictures is not None:
        try:
            draw_overview(volume, labels, (), pictures / f"{case.name}.png", title=case.name)
        except Exception as error:
            warning = f"No picture was drawn: {why_failed(case.name, error)}"
            found["suspicious"].append(warning)
    return found


def check_case(
    case: LabelledCase, volume: CTVolume, labels: Labels, classes: Mapping[str, int]
) -> Checked:
    """Measure a case and say what is suspicious about it."""
    voxel_ml = volume.grid.voxel_volume_mm3 / 1000
    sizes, medians = {}, {}
    for name, value in classes.items():
        inside = labels == value
        if count := int(np.count_nonzero(inside)):
            sizes[name] = round(count * voxel_ml, 3)
            medians[name] = round(float(np.median(volume.hu[inside])), 1)
    # Of a single slice nothing can be said about a scan.
    of_ct = suspicions(volume) if len(labels) > 1 else []
    reviewed = case.slices is not None
    return _found(
        case,
        suspicious=[*of_ct, *suspicious_findings(volume, labels, classes, reviewed=reviewed)],
        notes=list(volume.notes),
        slices=len(labels),
        labelled=len(labels if case.slices is None else labels[list(case.slices)]),
        spacing_mm=[round(step, 4) for step in volume.spacing],
        volume_ml=sizes,
        median_hu=medians,
        ct_hash=_hash(volume.hu),
        mask_hash=_hash(labels) if sizes else "",
    )


def _summary(cases: Sequence[Checked], classes: Sequence[str]) -> dict[str, Any]:
    """Numbers of cases, and the range of what was measured."""
    good = [case for case in cases if case["usable"]]
    return {
        "cases": len(cases),
        "usable": len(good),
        "suspicious": sum(bool(case["suspicious"]) for case in good),
        "patients": len({case["patient"] for case in cases}),
        "slices": sum(case["slices"] for case in good),
        "labelled_slices": sum(case["labelled"] for case in good),
        "spacing_mm": {
            axis: _range(case["spacing_mm"][i] for case in good) for i, axis in enumerate("zyx")
        },
        "volume_ml": {
            name: _range(case["volume_ml"][name] for case in good if name in case["volume_ml"])
            for name in classes
        },
    }


def table_csv(checked: Mapping[str, Any]) -> str:
    """A row a case as CSV, of what `check_dataset` gives."""
    return csv_text(
        [
            {
                "case": escaped(case["name"]),
                "patient": escaped(case["patient"]),
                "usable": "yes" if case["usable"] else "no",
                "slices": case["slices"],
                "labelled_slices": case["labelled"],
                **dict(zip(_SPACING, case["spacing_mm"] or ("", "", ""), strict=True)),
                **{f"{name}_ml": case["volume_ml"].get(name, "") for name in checked["labels"]},
                **{
                    f"{name}_median_hu": case["median_hu"].get(name, "")
                    for name in checked["labels"]
                },
                "problem": case["problem"] or "",
                "suspicious": " ".join(case["suspicious"]),
                "notes": " ".join(case["notes"]),
            }
            for case in checked["cases"]
        ]
    )


_SPACING = ("spacing_z_mm", "spacing_y_mm", "spacing_x_mm")


def _hash(array: Array) -> str:
    content = hashlib.sha256(repr((array.shape, array.dtype.str)).encode())
    content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


def _mark_repeats(cases: Sequence[Checked]) -> None:
    """Say of each case which others have the same CT or the same mask."""
    same_ct, same_mask = (_grouped(cases, key) for key in ("ct_hash", "mask_hash"))
    for case in cases:
        twins = [other for other in same_ct.get(case["ct_hash"], ()) if other is not case]
        if twins:
            names = few([twin["name"] for twin in twins], 4)
            case["suspicious"].append(f"The CT is the same as that of {names}.")
        if any(other["patient"] != case["patient"] for other in twins):
            case["suspicious"].append(
                "The same CT goes by several patients: it could be in training and validation at "
                "once."
            )
        known = {other["name"] for other in (case, *twins)}
        alike = [other["name"] for other in same_mask.get(case["mask_hash"], ())]
        copies = few([name for name in alike if name not in known], 4)
        if copies:
            warning = f"The mask is the same as that of {copies}, on another CT."
            case["suspicious"].append(warning)


def _grouped(cases: Sequence[Checked], key: str) -> dict[str, list[Checked]]:
    """Cases by what they have at a key, where there is anything."""
    found: dict[str, list[Checked]] = {}
    for case in cases:
        if case[key]:
            found.setdefault(case[key], []).append(case)
    return found


def _remarks(dataset: DataSet, cases: Sequence[Checked]) -> Iterator[str]:
    yield from dataset.notes
    patients = _grouped(cases, "patient")
    most = max(map(len, patients.values()), default=0)
    if len(patients) < 2:
        yield "All cases are of one patient: none can be held back to measure a model on."
    elif most > 1:
        several = sum(len(found) > 1 for found in patients.values())
        yield (
            f"{several} of {len(patients)} patients have several cases (up to {most}); they "
            "are never split between training and validation."
        )


def _range(values: Iterable[float]) -> dict[str, float] | None:
    numbers = np.array(list(values))
    if not numbers.size:
        return None
    return {
        "minimum": round(float(numbers.min()), 3),
        "median": round(float(np.median(numbers)), 3),
        "maximum": round(float(numbers.max()), 3),
    }
