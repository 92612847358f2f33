"""Tables as CSV, those of measures among them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.files import escaped, not_read, write_text
from napari_pancreas_seg.mask.measures import MEASURES, measure_cells

COLUMNS = ("case", "mask", *MEASURES, "reference", "dice", "hd95_mm", "surface_dice_2mm")
"""Columns of the table of one CT's masks."""


def csv_text(
    rows: Sequence[Mapping[str, Any]], columns: Iterable[str] = (), separator: str = ","
) -> str:
    """Rows as CSV, with these columns, or one for every name that any row has."""
    text = io.StringIO(newline="")
    names = list(columns or dict.fromkeys(name for row in rows for name in row))
    table = csv.DictWriter(text, names, delimiter=separator, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def read_csv(content: bytes, name: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of columns, and rows, of a CSV, ours or a spreadsheet's, with commas or semicolons.

    Blanks around names go. What is beyond the columns is under None.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
    first = text.partition("\n")[0]
    separator = ";" if ";" in first and "," not in first else ","
    # Lines end where a CSV ends them, and not at U+2028 in a name.
    table = csv.DictReader(io.StringIO(text, newline=""), restval="", delimiter=separator)
    try:
        table.fieldnames = [each.strip() for each in table.fieldnames or ()]
        return list(table.fieldnames), list(table)
    except csv.Error as error:
        raise PancreasSegError(f"'{name}' cannot be read as CSV: {error}.") from error


def read_rows(path: Path, wanted: Set[str]) -> list[dict[str, str]]:
    """Rows of a CSV file with some columns, perhaps among others."""
    try:
        names, rows = read_csv(path.read_bytes(), path.name)
    except FileNotFoundError as error:
        raise PancreasSegError(f"There is no file '{path}'; check the path.") from error
    except OSError as error:
        raise not_read(path, error) from error
    if not wanted <= {*names}:
        *first, last = sorted(wanted)
        raise PancreasSegError(
            f"'{path.name}' is not a table with the columns {', '.join(first)} and {last}; give a "
            "CSV file that has them."
        )
    return [row for row in rows if any(row.values())]  # spreadsheets add empty ones


def cell(value: Any, digits: int) -> str:
    """A value as text, empty for None."""
    if value is None:
        return ""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def table_row(
    case: str,
    mask: str,
    measured: Mapping[str, Any],
    reference: str = "",
    compared: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A row of the table, of what `measure` and `metrics.compare_masks` gave."""
    row = {"case": case, "mask": mask, **measure_cells(measured), "reference": reference}
    return dict.fromkeys(COLUMNS) | row | dict(compared or {})


def table_text(rows: Iterable[Mapping[str, Any]], separator: str = "\t") -> str:
    """Write rows of measures as text; tabs are what spreadsheets paste."""
    cells = [{name: cell(row.get(name), 4) for name in COLUMNS} for row in rows]
    return csv_text(cells, COLUMNS, separator)


def write_table(
    rows: Iterable[Mapping[str, Any]], path: str | Path, *, overwrite: bool = False
) -> None:
    """Write rows from `table_row` as CSV, in which names of files may hold any bytes."""
    names = ("case", "mask", "reference")
    plain = [{**row, **{key: escaped(row[key]) for key in names if row.get(key)}} for row in rows]
    write_text(path, table_text(plain, ","), overwrite=overwrite)
