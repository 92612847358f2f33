"""Messages of `segment` for many CTs: a line for each, a table, and a summary."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from napari_pancreas_seg.cli.terminal import Bar, echo, fail, fail_naming
from napari_pancreas_seg.cohort.steps import CaseResult
from napari_pancreas_seg.cohort.table import CohortTable
from napari_pancreas_seg.errors import PancreasSegError


def follow(
    results: Iterator[CaseResult], cases: int, table: CohortTable | None, bar: Bar
) -> list[CaseResult]:
    """Print a line for each case as it ends, and keep the table; return all results."""
    ended: list[CaseResult] = []
    try:
        for result in results:
            ended.append(result)
            if table is not None:
                _add(table, result, bar)
            # There may be thousands done before, when one goes on with a cohort.
            if not result.before or cases == 1:
                with bar.paused():
                    _echo_case(result, alone=cases == 1)
    finally:
        if table is not None:
            with contextlib.suppress(PancreasSegError):  # `finish` tries again, and says why
                table.write()
    return ended


def finish(ended: Sequence[CaseResult], table: CohortTable | None) -> None:
    """Sum up; end the program with status 1 if a case has failed, or there is no table."""
    bad = [result for result in ended if result.error is not None]
    lost = None
    if table is not None:
        try:
            table.write()
        except PancreasSegError as error:
            lost = f"{error} Masks that were written stay; 'segment' again adds their rows."
    if lost and bad:
        echo(lost, err=True)
    if len(ended) == 1 and bad:
        fail(bad[0].error or "")
    if len(ended) > 1:
        before = sum(result.before for result in ended)
        parts = [f"{before} done before"] if before else []
        for status in ("failed", "kept"):
            number = sum(result.status == status for result in bad)
            parts += [f"{number} {status}"] if number else []
        parts += [f"{len(ended) - before - len(bad)} new"]
        echo(", ".join(parts) + ("." if table is None else f"; see {table.path}."), err=True)
    failed = [result.case.name for result in bad if result.status == "failed"]
    if failed:
        fail_naming(f"{len(failed)} of {len(ended)} cases failed", failed)
    if bad:
        names = [result.case.name for result in bad]
        fail_naming(f"{len(names)} of {len(ended)} masks were left as they were", names)
    if lost:
        fail(lost)


def _add(table: CohortTable, result: CaseResult, bar: Bar) -> None:
    """Add a row; that the file cannot be written now stops no case, and is said once."""
    told = table.behind
    try:
        table.add(result)
    except PancreasSegError as error:
        if not told:
            with bar.paused():
                echo(f"{error} The run goes on.", err=True)


def _echo_case(result: CaseResult, *, alone: bool) -> None:
    name = result.case.name
    if result.error is not None:
        if not alone:  # else `finish` prints it
            echo(f"{name}: {result.status}: {result.error}")
        return
    plural = "slice" if result.slices == 1 else "slices"
    seconds = "done before" if result.before else f"{result.seconds:.1f} s"
    echo(
        f"{name}: {result.volume_ml:.1f} mL in {result.slices} {plural}, "
        f"{_quality(result)}{seconds} -> {result.files[0]}"
    )
    for note in result.notes:
        echo(f"{name}: {note}", err=True)


def _quality(result: CaseResult) -> str:
    """Expected Dice and contrast phase, as far as they are known."""
    expected, phase = result.quality.get("expected_dice"), result.quality.get("phase")
    facts = [] if expected is None else [f"expected Dice {expected:.2f}"]
    if phase:
        facts.append("contrast phase unknown" if phase == "unknown" else phase)
    return "".join(f"{each}, " for each in facts)
