"""Measurements as a CSV file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from napari_pancreas_seg.io.files import atomic_write
from napari_pancreas_seg.mask.measures import table_text

__all__ = ["write_table"]


def write_table(
    rows: Sequence[Mapping[str, Any]], path: str | Path, *, overwrite: bool = False
) -> Path:
    """Write rows as CSV; the file appears whole or not at all.

    Parameters
    ----------
    rows : sequence of mapping
        From `table_row`.
    path : str or Path
        Where to write.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    PancreasSegError
        If the file exists and must not be replaced, or cannot be written.
    """
    path = Path(path)
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(table_text(rows, ",").encode())
    return path
