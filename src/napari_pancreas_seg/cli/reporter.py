"""Messages of `segment` for many CTs: a line for each, a table, and a summary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from napari_pancreas_seg.cli.terminal import Bar, fail, fail_naming, say
from napari_pancreas_seg.cohort.cases import Case
from napari_pancreas_seg.cohort.steps import CaseResult
from napari_pancreas_seg.cohort.table import CohortTable


class CohortReporter:
    """Counts the results of cases, prints them, and keeps the table."""

    def __init__(self, cases: Sequence[Case], table: Path | None) -> None:
        self._cases = cases
        self._table = None if table is None else CohortTable(table, cases)
        self._new = self._before = 0
        self._failed: list[CaseResult] = []

    def follow(self, results: Iterator[CaseResult], bar: Bar) -> None:
        """Print a line for each case as it ends, except those that were done before."""
        try:
            for result in results:
                if self._table is not None:
                    self._table.add(result)
                self._count(result)
                # There may be thousands done before, when one goes on with a cohort.
                if not result.before or len(self._cases) == 1:
                    with bar.paused():
                        self._say(result)
        finally:
            if self._table is not None:
                self._table.write()

    def finish(self) -> None:
        """Sum up; end the program with status 1 if a case has failed."""
        if len(self._cases) == 1 and self._failed:
            fail(self._failed[0].error or "")
        if len(self._cases) > 1:
            say(self._summary(), err=True)
        if self._failed:
            names = [result.case.name for result in self._failed]
            fail_naming(f"{len(names)} of {len(self._cases)} cases failed", names)

    def _count(self, result: CaseResult) -> None:
        if result.error is not None:
            self._failed.append(result)
        elif result.before:
            self._before += 1
        else:
            self._new += 1

    def _say(self, result: CaseResult) -> None:
        name = result.case.name
        if result.error is not None:
            if len(self._cases) > 1:
                say(f"{name}: failed: {result.error}")
            return
        plural = "slice" if result.slices == 1 else "slices"
        seconds = "done before" if result.before else f"{result.seconds:.1f} s"
        say(
            f"{name}: {result.volume_ml:.1f} mL in {result.slices} {plural}, "
            f"{_quality(result)}{seconds} -> {result.files[0]}"
        )
        for note in result.notes:
            say(f"{name}: {note}", err=True)

    def _summary(self) -> str:
        parts = [f"{self._before} done before"] if self._before else []
        parts += [f"{len(self._failed)} failed"] if self._failed else []
        text = ", ".join([*parts, f"{self._new} new"])
        return f"{text}; see {self._table.path}." if self._table is not None else f"{text}."


def _quality(result: CaseResult) -> str:
    """Expected Dice and contrast phase, as far as they are known."""
    expected, phase = result.quality.get("expected_dice"), result.quality.get("phase")
    said = [] if expected is None else [f"expected Dice {expected:.2f}"]
    if phase:
        said.append("contrast phase unknown" if phase == "unknown" else phase)
    return "".join(f"{each}, " for each in said)
