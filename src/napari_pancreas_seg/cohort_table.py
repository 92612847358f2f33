"""The table of a cohort: a row of measurements for each case, or why it failed.

Where the mask has several classes, a row for each of them follows that of the whole mask.
"""

from __future__ import annotations

import csv
import io as text_io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from napari_pancreas_seg.cases import Case
from napari_pancreas_seg.cohort import CaseResult
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.files import atomic_write, explain_os_error

__all__ = ["COLUMNS", "CohortTable"]

COLUMNS = (
    "case",
    "mask",
    "label",
    "status",
    "volume_ml",
    "mean_hu",
    "sd_hu",
    "extent_z_mm",
    "extent_y_mm",
    "extent_x_mm",
    "slices",
    "reason",
)
"""Columns of the table; the unit is in the name."""

_SHARE_OF_TIME = 0.05
"""Most of the time that may go into writing the table again."""


class CohortTable:
    """A CSV file with a row for each case, written again as cases finish.

    It is made from what the sidecars say, too, of cases that were done before; so a run that is
    killed loses no more than the reasons of the last failures, and the next one writes them. Rows
    of cases that are not part of this run stay.

    Parameters
    ----------
    path : Path
        Where to write.
    cases : sequence of Case
        The cases of this run, in the order of the rows.

    Raises
    ------
    PancreasSegError
        If there is a file of that name that is no such table, or that cannot be read.
    """

    def __init__(self, path: Path, cases: Sequence[Case]) -> None:
        self.path = path
        # A mask has one row. Those of other runs come first, so that rows do not jump about.
        self._rows: dict[str, list[dict[str, str]]] = _read(path)
        for case in cases:
            self._rows.pop(case.mask.name, None)
        self._order = {case.mask.name: place for place, case in enumerate(cases)}
        self._changed = False
        self._next = 0.0

    def add(self, result: CaseResult) -> None:
        """Take the row of a case, and write the table unless that was done a moment ago.

        Raises
        ------
        PancreasSegError
            If it cannot be written.
        """
        self._rows[result.case.mask.name] = _rows_of(result)
        self._changed = True
        if time.monotonic() >= self._next:
            self.write()

    def write(self) -> None:
        """Write what has changed since the last time; the file appears whole or not at all.

        Raises
        ------
        PancreasSegError
            If it cannot be written.
        """
        if not self._changed:
            return
        start = time.monotonic()
        rows = sorted(self._rows.items(), key=lambda item: self._order.get(item[0], -1))
        file = text_io.StringIO(newline="")
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for _, case in rows for row in case)
        with atomic_write(self.path, overwrite=True) as out:
            out.write(file.getvalue().encode())
        self._changed = False
        now = time.monotonic()
        self._next = now + (now - start) / _SHARE_OF_TIME


def _rows_of(result: CaseResult) -> list[dict[str, str]]:
    row = {"case": result.case.source.name, "mask": result.case.mask.name, "label": ""}
    if result.error is not None:
        return [row | {"status": "failed", "reason": " ".join(result.error.split())}]
    parts = {"": result.measurements, **result.labels}
    return [
        row | {"label": label, "status": "done"} | _cells(measured)
        for label, measured in parts.items()
    ]


def _cells(measured: Mapping[str, Any]) -> dict[str, str]:
    extent = measured.get("extent_mm") or (None, None, None)
    values = {
        **{name: measured.get(name) for name in ("volume_ml", "mean_hu", "sd_hu", "slices")},
        **dict(zip(("extent_z_mm", "extent_y_mm", "extent_x_mm"), extent, strict=True)),
    }
    return {name: _cell(value) for name, value in values.items()}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _read(path: Path) -> dict[str, list[dict[str, str]]]:
    """Rows of the table that is there, by the mask's name."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise PancreasSegError(
            f"'{path.name}' cannot be read: {explain_os_error(error)}."
        ) from error
    except UnicodeDecodeError:
        text = ""
    reader = csv.DictReader(text_io.StringIO(text, newline=""))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise PancreasSegError(
            f"'{path.name}' in the output folder is not the table of a cohort and was left as it "
            "is; rename it or choose another folder."
        )
    rows: dict[str, list[dict[str, str]]] = {}
    for row in reader:
        if None not in row:
            cells = {name: row[name] or "" for name in COLUMNS}
            rows.setdefault(cells["mask"], []).append(cells)
    return rows
