"""Checking a data set before it is trained on: every case is read and measured."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_pancreas_seg.cohort.inspection import suspicions
from napari_pancreas_seg.cohort.overview import draw_overview
from napari_pancreas_seg.errors import why_failed
from napari_pancreas_seg.io.files import escaped
from napari_pancreas_seg.io.table import csv_text
from napari_pancreas_seg.training.data.layouts.cases import LabelledCase
from napari_pancreas_seg.training.data.layouts.opening import DataSet
from napari_pancreas_seg.training.data.layouts.plausibility import suspicious_findings
from napari_pancreas_seg.volume import CTVolume

logger = logging.getLogger(__name__)

Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class CheckedCase:
    """What was found out about a case: why it cannot be used, what to look at, what was measured.

    `labelled` counts the slices whose label counts; `spacing_mm` is along (z, y, x); `mask_hash` is
    empty where the mask is.
    """

    name: str
    patient: str
    problem: str | None = None
    suspicious: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    slices: int = 0
    labelled: int = 0
    spacing_mm: tuple[float, ...] = ()
    volume_ml: dict[str, float] = field(default_factory=dict)
    median_hu: dict[str, float] = field(default_factory=dict)
    ct_hash: str = ""
    mask_hash: str = ""

    @property
    def usable(self) -> bool:
        """Whether it can be trained on."""
        return self.problem is None


@dataclass(frozen=True)
class CheckedDataSet:
    """What was found out about a data set."""

    dataset: DataSet
    cases: tuple[CheckedCase, ...]
    remarks: tuple[str, ...]

    @property
    def usable(self) -> bool:
        """Whether every case can be trained on."""
        return all(case.usable for case in self.cases)

    def summary(self) -> dict[str, Any]:
        """Numbers of cases, and the range of what was measured."""
        good = [case for case in self.cases if case.usable]
        return {
            "cases": len(self.cases),
            "usable": len(good),
            "suspicious": sum(bool(case.suspicious) for case in good),
            "patients": len({case.patient for case in self.cases}),
            "slices": sum(case.slices for case in good),
            "labelled_slices": sum(case.labelled for case in good),
            "spacing_mm": {
                axis: _range(case.spacing_mm[i] for case in good) for i, axis in enumerate("zyx")
            },
            "volume_ml": {
                name: _range(case.volume_ml[name] for case in good if name in case.volume_ml)
                for name in self.dataset.labels
            },
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "layout": self.dataset.layout,
            "labels": dict(self.dataset.labels),
            "classes": {name: list(parts) for name, parts in self.dataset.classes.items()},
            "usable": self.usable,
            "summary": self.summary(),
            "remarks": list(self.remarks),
            "cases": [{**asdict(case), "usable": case.usable} for case in self.cases],
        }


def check_dataset(
    dataset: DataSet,
    *,
    pictures: Path | None = None,
    on_case: Callable[[int, int, CheckedCase], None] = lambda done, total, case: None,
) -> CheckedDataSet:
    """Read every case of a data set, one at a time, and say what is suspicious.

    A case that cannot be read does not stop the others.
    """
    found = []
    for done, case in enumerate(dataset.cases, start=1):
        try:
            checked = _check(case, dataset.labels, pictures)
        except Exception as error:  # of one case: what is known of the others stays
            logger.debug("a case failed", exc_info=error)
            checked = CheckedCase(case.name, case.patient, problem=why_failed(case.name, error))
        found.append(checked)
        on_case(done, len(dataset.cases), checked)
    compared = _mark_repeats(found)
    return CheckedDataSet(dataset, tuple(compared), tuple(_remarks(dataset, compared)))


def _check(case: LabelledCase, classes: Mapping[str, int], pictures: Path | None) -> CheckedCase:
    """Read a case, check it and draw it."""
    volume, labels = case.load()
    checked = check_case(case, volume, labels, classes)
    if pictures is None:
        return checked
    try:
        draw_overview(volume, labels, (), pictures / f"{case.name}.png", title=case.name)
    except Exception as error:
        said = f"No picture was drawn: {why_failed(case.name, error)}"
        return replace(checked, suspicious=(*checked.suspicious, said))
    return checked


def check_case(
    case: LabelledCase, volume: CTVolume, labels: Labels, classes: Mapping[str, int]
) -> CheckedCase:
    """Measure a case and say what is suspicious about it."""
    shown = labels if case.slices is None else labels[list(case.slices)]
    voxel_ml = volume.grid.voxel_volume_mm3 / 1000
    sizes, medians = {}, {}
    for name, value in classes.items():
        inside = labels == value
        if count := int(np.count_nonzero(inside)):
            sizes[name] = round(count * voxel_ml, 3)
            medians[name] = round(float(np.median(volume.hu[inside])), 1)
    # Of a single slice nothing can be said about a scan.
    of_ct = suspicions(volume) if len(labels) > 1 else []
    return CheckedCase(
        case.name,
        case.patient,
        None,
        (*of_ct, *suspicious_findings(volume, labels, classes, reviewed=case.slices is not None)),
        volume.notes,
        len(labels),
        len(shown),
        tuple(round(step, 4) for step in volume.spacing),
        sizes,
        medians,
        _hash(volume.hu),
        _hash(labels) if sizes else "",
    )


def table_csv(checked: CheckedDataSet) -> str:
    """A row a case as CSV."""
    classes = list(checked.dataset.labels)
    return csv_text(
        [
            {
                "case": escaped(case.name),
                "patient": escaped(case.patient),
                "usable": "yes" if case.usable else "no",
                "slices": case.slices,
                "labelled_slices": case.labelled,
                **dict(zip(_SPACING, case.spacing_mm or ("", "", ""), strict=True)),
                **{f"{name}_ml": case.volume_ml.get(name, "") for name in classes},
                **{f"{name}_median_hu": case.median_hu.get(name, "") for name in classes},
                "problem": case.problem or "",
                "suspicious": " ".join(case.suspicious),
                "notes": " ".join(case.notes),
            }
            for case in checked.cases
        ]
    )


_SPACING = ("spacing_z_mm", "spacing_y_mm", "spacing_x_mm")


def _hash(array: npt.NDArray[Any]) -> str:
    content = hashlib.sha256(repr((array.shape, array.dtype.str)).encode())
    content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


def _mark_repeats(cases: list[CheckedCase]) -> list[CheckedCase]:
    """Say of each case which others have the same CT or the same mask."""
    same_ct, same_mask = (
        _groups((getattr(case, key), case) for case in cases) for key in ("ct_hash", "mask_hash")
    )
    marked = []
    for case in cases:
        said = []
        twins = [other for other in same_ct.get(case.ct_hash, ()) if other is not case]
        if twins:
            said.append(f"The CT is the same as that of {_names(twins)}.")
        if any(other.patient != case.patient for other in twins):
            said.append(
                "The same CT goes by several patients: it could be in training and validation at "
                "once."
            )
        copies = [other for other in same_mask.get(case.mask_hash, ()) if other is not case]
        copies = [other for other in copies if other not in twins]
        if copies:
            said.append(f"The mask is the same as that of {_names(copies)}, on another CT.")
        marked.append(replace(case, suspicious=(*case.suspicious, *said)))
    return marked


def _groups(pairs: Iterable[tuple[str, CheckedCase]]) -> dict[str, list[CheckedCase]]:
    found: dict[str, list[CheckedCase]] = {}
    for key, case in pairs:
        if key:
            found.setdefault(key, []).append(case)
    return found


def _names(cases: list[CheckedCase]) -> str:
    shown = ", ".join(case.name for case in cases[:4])
    return shown + (f" and {len(cases) - 4} more" if len(cases) > 4 else "")


def _remarks(dataset: DataSet, cases: list[CheckedCase]) -> Iterator[str]:
    yield from dataset.notes
    patients = _groups((case.patient, case) for case in cases)
    several = {patient: found for patient, found in patients.items() if len(found) > 1}
    if len(patients) < 2:
        yield "All cases are of one patient: none can be held back to measure a model on."
    elif several:
        most = max(len(found) for found in several.values())
        yield (
            f"{len(several)} of {len(patients)} patients have several cases (up to {most}); they "
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
