"""Messages of `segment` for many CTs: a line for each, a table, and a summary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from napari_pancreas_seg.cli.terminal import Bar, echo, fail, fail_naming
from napari_pancreas_seg.cohort.steps import CaseResult
from napari_pancreas_seg.cohort.table import CohortTable


def follow(
    results: Iterator[CaseResult], cases: int, table: CohortTable | None, bar: Bar
) -> list[CaseResult]:
    """Print a line for each case as it ends, and keep the table; return all results."""
    ended = []
    try:
        for result in results:
            if table is not None:
                table.add(result)
            ended.append(result)
            # There may be thousands done before, when one goes on with a cohort.
            if not result.before or cases == 1:
                with bar.paused():
                    _echo_case(result, alone=cases == 1)
    finally:
        if table is not None:
            table.write()
    return ended


def finish(ended: Sequence[CaseResult], table: CohortTable | None) -> None:
    """Sum up; end the program with status 1 if a case has failed."""
    failed = [result for result in ended if result.error is not None]
    if len(ended) == 1 and failed:
        fail(failed[0].error or "")
    if len(ended) > 1:
        before = sum(result.before for result in ended)
        parts = [f"{before} done before"] if before else []
        parts += [f"{len(failed)} failed"] if failed else []
        parts += [f"{len(ended) - before - len(failed)} new"]
        echo(", ".join(parts) + ("." if table is None else f"; see {table.path}."), err=True)
    if failed:
        names = [result.case.name for result in failed]
        fail_naming(f"{len(names)} of {len(ended)} cases failed", names)


def _echo_case(result: CaseResult, *, alone: bool) -> None:
    name = result.case.name
    if result.error is not None:
        if not alone:  # else `finish` prints it
            echo(f"{name}: failed: {result.error}")
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
