"""The table of a cohort: rows of measures for each case and its classes, or why it failed."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from napari_pancreas_seg.cohort.cases import Case
from napari_pancreas_seg.cohort.steps import CaseResult
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io import suffix_of
from napari_pancreas_seg.io.files import atomic_path, escaped, not_read
from napari_pancreas_seg.io.table import cell, csv_text, read_csv
from napari_pancreas_seg.mask.measures import MEASURES, measure_cells

COLUMNS = (
    *("case", "mask", "label", "status"),
    *MEASURES,
    *("expected_dice", "phase", "noticed", "reason"),
)
"""Columns of the table; the unit is in the name. Names of files are as `escaped` writes them.
`status`: done, failed, or kept: an earlier mask, which `reason` says why this run left alone."""

TEXTS = ("case", "mask", "label", "status", "phase", "noticed", "reason")
"""Columns that hold no number."""

_SHARE_OF_TIME = 0.05
"""Most of the time that may go into writing the table again."""

_TRIES = 10
"""How often a write starts again because another command was faster."""

_Rows = dict[str, list[dict[str, str]]]
"""Rows of a mask, by its name without the ending: of a case in two formats, the last that did not
fail counts."""


class CohortTable:
    """A CSV file with a row for each case, written again as cases finish.

    Several commands may write one table: its rows are read before each write, and once more just
    before the file is replaced. A lock would be only as good as the network disk.
    """

    def __init__(self, path: Path, cases: Sequence[Case]) -> None:
        self.path = path
        _parse(path, _read(path))
        self._rows: _Rows = {}
        self._written: set[str] = set()  # of these, what the file says by now counts
        self._order = {_key(escaped(case.mask.name)): place for place, case in enumerate(cases)}
        self._changed = False
        self.behind = False  # whether the last write failed
        self._next = 0.0

    def add(self, result: CaseResult) -> None:
        """Add the row of a case; write the table unless that was done a moment ago."""
        mask = _key(escaped(result.case.mask.name))
        self._rows[mask] = _rows_of(result)
        self._written.discard(mask)
        self._changed = True
        if time.monotonic() >= self._next:
            self.write()

    def rows(self) -> list[dict[str, str]]:
        """Rows of whole masks, as the table holds them now; they have all columns."""
        rows = self._merged(_read(self.path))
        whole = [row for case in rows.values() for row in case if not row["label"]]
        return [{name: row.get(name, "") for name in COLUMNS} for row in whole]

    def write(self) -> None:
        """Write the table if it has changed, whole or not at all."""
        if not self._changed:
            return
        start = time.monotonic()
        self.behind = True
        try:
            for tries_left in reversed(range(_TRIES)):
                with contextlib.suppress(_Overtaken):
                    self._replace(anyway=not tries_left)
                    break
            self._changed = self.behind = False
            self._written |= {*self._rows}
        finally:
            now = time.monotonic()
            self._next = now + (now - start) / _SHARE_OF_TIME

    def _replace(self, *, anyway: bool) -> None:
        """Write the file's rows and ours, unless somebody else has written meanwhile."""
        before = _read(self.path)
        rows = self._merged(before)
        # Those of other runs come first, so that rows do not jump about.
        ordered = sorted(rows.items(), key=lambda item: self._order.get(item[0], -1))
        text = csv_text([row for _, case in ordered for row in case], COLUMNS)
        with atomic_path(self.path, overwrite=True) as temporary:
            with open(temporary, "xb") as file:
                file.write(text.encode(errors="backslashreplace"))
                file.flush()
                os.fsync(file.fileno())  # what takes long comes before the last look
            if not anyway and _read(self.path) != before:
                raise _Overtaken

    def _merged(self, content: bytes | None) -> _Rows:
        """The file's rows and ours; of ours that were in it before, those that got lost."""
        rows = _parse(self.path, content)
        new = {
            mask: ours
            for mask, ours in self._rows.items()
            if mask not in rows or not (mask in self._written or _worse(ours[0], rows[mask][0]))
        }
        return rows | new


def number_in(row: Mapping[str, str], column: str) -> float:
    """A cell of a row that is not empty; PancreasSegError if a spreadsheet made no number of it."""
    with contextlib.suppress(ValueError):
        if math.isfinite(value := float(row[column])):
            return value
    raise PancreasSegError(
        f"'{row[column]}' in the column '{column}' of the table's row of '{row['case']}' is no "
        "number; write it with a point, or run 'segment' again with another output folder."
    )


def _key(mask: str) -> str:
    return mask.removesuffix(suffix_of(Path(mask)))


def _worse(row: Mapping[str, str], known: Mapping[str, str]) -> bool:
    """Whether a case failed, of which there is a mask in another format."""
    failed = row["status"] == "failed" and known["status"] != "failed"
    return failed and row["mask"] != known["mask"]


class _Overtaken(Exception):
    """Another command has written the table meanwhile."""


def _rows_of(result: CaseResult) -> list[dict[str, str]]:
    case, mask = escaped(result.case.name), escaped(result.case.mask.name)
    row = {"case": case, "mask": mask, "label": ""}
    row |= {"status": result.status, "reason": " ".join((result.error or "").split())}
    if result.status == "failed":
        return [row]
    quality = {
        "expected_dice": result.quality.get("expected_dice"),
        "phase": result.quality.get("phase"),
        "noticed": " ".join(result.quality.get("noticed", ())),
    }
    parts = {label: measure_cells(measured) for label, measured in result.labels.items()}
    parts = {"": measure_cells(result.measurements) | quality, **parts}
    return [
        row | {"label": label} | {name: cell(value, 6) for name, value in cells.items()}
        for label, cells in parts.items()
    ]


def _read(path: Path) -> bytes | None:
    """Content of the table's file; None if there is no file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise not_read(path, error) from error


def _parse(path: Path, content: bytes | None) -> _Rows:
    """Rows of the table that is there."""
    if content is None:
        return {}
    names, read = read_csv(content, path.name)
    # Another version may have had fewer columns.
    if not {"case", "mask", "status"} <= {*names} <= set(COLUMNS):
        raise PancreasSegError(
            f"'{path.name}' in the output folder is not the table of a cohort and was left as it "
            "is; rename it or choose another folder."
        )
    rows: _Rows = {}
    for row in read:
        if None not in row:
            cells = {name: row.get(name) or "" for name in COLUMNS}
            rows.setdefault(_key(cells["mask"]), []).append(cells)
    return rows
