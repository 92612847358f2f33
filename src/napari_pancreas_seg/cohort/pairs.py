"""Follow-up: two CTs of one patient side by side, and which changes are more than repeatability."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path

from napari_pancreas_seg.cohort.cases import TABLE
from napari_pancreas_seg.cohort.table import CohortTable, number_in
from napari_pancreas_seg.io import stem
from napari_pancreas_seg.io.files import write_text
from napari_pancreas_seg.io.table import csv_text, read_rows
from napari_pancreas_seg.mask.measures import MEASURES

FOLLOW_UP = "followup.csv"
COLUMNS = (
    *("pair", "before", "after", "measure", "value_before", "value_after"),
    *("change", "change_percent", "limit", "beyond_limit", "reason"),
)
"""`limit`: 95 % of changes are smaller where nothing has changed; docs/measures.md says how it
was found. `beyond_limit`: yes or no."""

_Row = Mapping[str, str]


def write_follow_up(folder: Path, pairs: Path) -> tuple[Path, int]:
    """Write followup.csv beside a table, for the pairs in a CSV (before, after, maybe pair).

    Also says how many pairs could not be compared.
    """
    known: dict[str, _Row] = {}
    for row in CohortTable(folder / TABLE, ()).rows():
        names = (row["case"], row["mask"])
        known |= {_plain(name): row for each in names for name in (each, stem(Path(each)))}
    rows = []
    for number, pair in enumerate(read_rows(pairs, {"before", "after"}), start=1):
        name = pair.get("pair") or str(number)
        rows += list(_compare(name, _plain(pair["before"]), _plain(pair["after"]), known))
    path = folder / FOLLOW_UP
    if path.exists():
        read_rows(path, set(COLUMNS))  # a file of that name that is no such table stays
    write_text(path, csv_text(rows, COLUMNS), overwrite=True)
    return path, sum("reason" in row for row in rows)


def _plain(name: str) -> str:
    """A name as it compares: systems write an umlaut as one letter or as two."""
    return unicodedata.normalize("NFC", name.strip())


def _compare(
    pair: str, before: str, after: str, known: Mapping[str, _Row]
) -> Iterator[dict[str, str]]:
    """Rows of two cases: one for each measure that both have."""
    head = {"pair": pair, "before": before, "after": after}
    for name in (before, after):
        if name not in known:
            yield head | {"reason": f"There is no case '{name}' in the table."}
            return
        if known[name]["status"] == "failed":
            yield head | {"reason": f"'{name}' failed."}
            return
    # Standard deviation within a patient of each measure, between two models.
    known_sd = resources.files("napari_pancreas_seg.data").joinpath("repeatability.json")
    limits = json.loads(known_sd.read_text())
    for measure in MEASURES:
        first, second = known[before][measure], known[after][measure]
        if not first or not second:
            continue
        old, new = number_in(known[before], measure), number_in(known[after], measure)
        row = {
            "measure": measure,
            "value_before": first,
            "value_after": second,
            "change": f"{new - old:.4g}",
            "change_percent": f"{100 * (new - old) / old:.1f}" if old > 0 else "",
        }
        if measure in limits:
            limit = 1.96 * math.sqrt(2) * limits[measure]["sd"]
            limit *= (old + new) / 2 if limits[measure]["relative"] else 1
            row |= {
                "limit": f"{limit:.4g}",
                "beyond_limit": "yes" if abs(new - old) > limit else "no",
            }
        yield head | row
