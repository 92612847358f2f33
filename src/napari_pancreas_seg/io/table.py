"""Tables as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from napari_pancreas_seg.io.files import atomic_write, escaped
from napari_pancreas_seg.mask.measures import table_text


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV, a column for every name that any row has."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(
        text, list(dict.fromkeys(n for row in rows for n in row)), lineterminator="\n"
    )
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def write_table(
    rows: Sequence[Mapping[str, Any]], path: str | Path, *, overwrite: bool = False
) -> Path:
    """Write measurements as CSV, rows from `table_row`; the file appears whole or not at all."""
    path = Path(path)
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(table_text([_with_names(row) for row in rows], ",").encode())
    return path


def _with_names(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in which names of files may hold any bytes, as text."""
    names = {key: escaped(row[key]) for key in ("case", "mask", "reference") if row.get(key)}
    return {**row, **names}
