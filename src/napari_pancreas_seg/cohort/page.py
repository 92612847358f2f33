"""The quality page: a card for each case of an output folder, so that bad masks are found."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from napari_pancreas_seg.cohort.cases import PAGE, TABLE, Case
from napari_pancreas_seg.cohort.given import GivenMasks, adopt
from napari_pancreas_seg.cohort.steps import CaseResult, draw_case, failure, recorded
from napari_pancreas_seg.cohort.strip import FOLDER, strip_path
from napari_pancreas_seg.cohort.table import TEXTS, CohortTable, number_in
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference import saving
from napari_pancreas_seg.inference.result import edited_record
from napari_pancreas_seg.io import load_ct, load_mask, report_path
from napari_pancreas_seg.io.alignment import bring_onto
from napari_pancreas_seg.io.dicom.report import write_report
from napari_pancreas_seg.io.dicom.uids import mint_uids as complete_uids
from napari_pancreas_seg.io.files import escaped, write_text
from napari_pancreas_seg.io.suffixes import DICOM
from napari_pancreas_seg.mask.centreline import CUTS

logger = logging.getLogger(__name__)

_MARK = "napari-pancreas-seg quality page"
"""Stands in every page, by which it is known and may be replaced."""


def write_page(
    folder: Path, cases: Sequence[Case] = (), tell: Callable[[str], object] | None = None
) -> Path:
    """Write a folder's page; with cases or `tell` rows and pictures of changed masks, too.

    `tell` is told which could not be measured.
    """
    page = folder / PAGE
    if page.exists() and _MARK not in page.read_text(encoding="utf-8", errors="replace"):
        raise PancreasSegError(
            f"'{PAGE}' in '{folder.name}' is not a quality page and was left as it is; rename it."
        )
    table = CohortTable(folder / TABLE, cases)
    _add_missing(table, cases)
    if not (folder / TABLE).is_file():
        raise PancreasSegError(
            f"'{folder.name}' holds no {TABLE}; give a folder that 'segment FOLDER -o OUT' wrote."
        )
    known = {escaped(item.name): Case(item, item, "") for item in folder.iterdir()}
    known |= {escaped(case.mask.name): case for case in cases}
    records: dict[str, Mapping[str, Any]] = {}
    for row in table.rows():
        case = known.get(row["mask"])
        record = None if case is None else saving.read_sidecar(case.sidecar)
        if case is None or record is None or not case.mask.exists():
            continue
        if cases or tell is not None:
            record = _renewed(case, record, tell or logger.debug)
        records[row["mask"]] = record
        if case.source == case.mask:  # of the CT, its name in the table is known
            case = Case(Path(row["case"]), case.mask, "", shown=row["case"])
        if "\\" not in case.name:  # an escape, which would be escaped once more
            # A mask that a run has left as it was stays such a one.
            reason = row["reason"] if row["status"] == "kept" else None
            table.add(replace(recorded(case, record), error=reason))
    table.write()
    cards = [_card(row, records.get(row["mask"], {}), known) for row in table.rows()]
    data = json.dumps({"texts": TEXTS, "cards": cards}, allow_nan=False).replace("<", "\\u003c")
    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    write_text(page, template.replace("{{MARK}}", _MARK).replace("{{DATA}}", data), overwrite=True)
    return page


def _add_missing(table: CohortTable, cases: Sequence[Case]) -> None:
    """Add masks without a row: of the window, of a run that was killed, in another format."""
    rows = {row["mask"] for row in table.rows()}
    for case in cases:
        if escaped(case.mask.name) not in rows and case.mask.exists():
            record = saving.read_sidecar(case.sidecar)
            if record is not None:
                table.add(recorded(case, record))
    table.write()


def adopt_cases(cases: Sequence[Case], given: GivenMasks) -> Iterator[CaseResult]:
    """Take masks of others as those of cases that have none yet, and draw them."""
    found = given.find_each(cases)
    for case in cases:
        start = time.perf_counter()
        try:
            path = found.get(case.maps)
            if case.mask.exists():
                continue
            if path is None:
                raise PancreasSegError(f"'{given.folder.name}' has no mask of '{case.name}'.")
            how: dict[str, Any] = {"series": case.series, "force": case.force}
            record, volume, mask = adopt(case.source, case.mask, given, path, **how)
            draw_case(case, volume, mask)
            yield recorded(case, record)
        except Exception as error:
            yield failure(case, error, start)


def _renewed(case: Case, record: dict[str, Any], tell: Callable[[str], object]) -> dict[str, Any]:
    """Measure a case again whose mask was changed, and draw it if its picture is older."""
    picture = strip_path(case.mask)
    known, sha256 = saving.recorded_sha256(record), saving.mask_sha256(case.mask)
    changed = known is not None and known != sha256
    try:
        if case.source == case.mask or not case.source.exists():
            if changed:
                tell(f"{case.name}: not measured again after a change: its CT is not known here.")
            return record
        drawn = picture.exists() and picture.stat().st_mtime >= case.mask.stat().st_mtime
        if drawn and not changed:
            return record
        volume = load_ct(case.source, series=case.series, force=case.force)
        if "sha256" in record.get("source", {}) and not saving.is_sidecar(case.sidecar, volume):
            raise PancreasSegError("the mask was made from another CT.")
        mask, on = load_mask(case.mask)
        mask = bring_onto(volume, mask, on, case.mask.name)
        renewed = record
        if changed or known is None:
            now = edited_record(record, mask, volume)
            pairs = zip(saving.measured(record), saving.measured(now), strict=True)
            if any(before not in (None, after) for before, after in pairs):  # else it has them
                renewed = now
            if changed:
                renewed = {**renewed, "mask_sha256": sha256}
                dicom = case.mask.name.lower().endswith(DICOM)
                if dicom and (report := report_path(case.mask)).exists():
                    like = complete_uids(volume)  # those that the mask was written with
                    cuts = record["measurements"].get("cuts") or CUTS  # the person's own
                    write_report(mask, like, case.mask, report, cuts=cuts, overwrite=True)
            saving.write_sidecar(case.sidecar, renewed, overwrite=True)
    except (PancreasSegError, OSError) as error:
        tell(f"{case.name}: not drawn or measured again: {error}")
        return record
    draw_case(case, volume, mask)
    return renewed


def _card(
    row: Mapping[str, str], record: Mapping[str, Any], known: Mapping[str, Case]
) -> dict[str, Any]:
    """Collect the data of a case's card."""
    case = known.get(row["mask"])
    picture = None if case is None else strip_path(case.mask)
    left = saving.left_by_run(record)
    return {
        **{name: row[name] for name in ("case", "mask", "status", "phase", "reason")},
        "values": {k: number_in(row, k) for k, v in row.items() if v and k not in TEXTS},
        "noticed": list(record.get("quality", {}).get("noticed", ())),
        "notes": list(record.get("notes", ())),
        "maker": record.get("mask_by", ""),
        "corrected": bool(record.get("corrected")),
        "picture": f"{FOLDER}/{quote(picture.name.encode(errors='surrogateescape'))}"
        if picture is not None and picture.exists()
        else "",
        # A mark holds for the mask that was marked, not for one that replaced it.
        "digest": f"{str(left.get('mask_sha256') or '')[:8]} {record.get('corrected', '')}".strip(),
    }
