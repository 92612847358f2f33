"""Messages of all commands, and the progress bar."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from napari_pancreas_seg.errors import PancreasSegError, few

if TYPE_CHECKING:
    from napari_pancreas_seg.inference.result import Progress


logger = logging.getLogger("napari_pancreas_seg")

_NAMED = 20
"""How many failed cases are named in one line."""


def guarded(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command end with one sentence, never with a traceback."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
            sys.stdout.flush()
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except PancreasSegError as error:
            logger.debug("stopped", exc_info=True)
            fail(str(error))
        except KeyboardInterrupt:
            fail("cancelled", 130)
        except BrokenPipeError:  # the reader of our output has gone, as in `… | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except MemoryError:
            fail("There is not enough memory; close other programs or give a smaller CT.")
        except Exception as error:
            logger.debug("stopped", exc_info=True)
            what = " ".join(str(error).split())[:300]
            fail(
                f"Something unexpected happened ({type(error).__name__}: {what}); run it again as "
                "'napari-pancreas-seg --debug …' and report what it says."
            )

    return run


@contextlib.contextmanager
def dispensable() -> Iterator[None]:
    """Say why something failed that a command can do without, and go on."""
    try:
        yield
    except PancreasSegError as error:
        echo(str(error), err=True)


def fail(sentence: str, status: int = 1) -> NoReturn:
    """Print one sentence on standard error and end."""
    echo(" ".join(sentence.split()), err=True)
    raise typer.Exit(status)


def fail_naming(what: str, names: Sequence[str]) -> NoReturn:
    """Name the cases that failed, a few of many, and end."""
    fail(f"{what}: {few(names, _NAMED)}.")


def echo(line: str, *, err: bool = False) -> None:
    """Print one line; control characters in file names are escaped."""
    typer.echo("".join(c if c.isprintable() else _escape(c) for c in line), err=err)


def echo_page(lines: Iterable[str]) -> None:
    """Print Markdown, the columns of its tables one below the other."""
    for is_table, part in itertools.groupby(lines, _is_row):
        if not is_table:
            for line in part:
                echo(line)
            continue
        rows = [
            [cell.strip().replace("\\|", "|") for cell in line.strip("|").split(" | ")]
            for line in part
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            if set(row) != {"---"}:
                cells = zip(row, widths, strict=True)
                echo("  ".join(cell.ljust(width) for cell, width in cells).rstrip())


def _is_row(line: str) -> bool:
    return line.startswith("| ") and line.endswith(" |")


def _escape(character: str) -> str:
    byte = ord(character) - 0xDC00  # of a name that is no UTF-8, as Python has it
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else repr(character)[1:-1]


def print_json(data: Any) -> None:
    """Print JSON in ASCII, which every terminal can show."""
    typer.echo(json.dumps(data, indent=2))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what native libraries write to standard error, but not our own messages.

    TensorFlow announces itself there whatever ``TF_CPP_MIN_LOG_LEVEL`` says. So the descriptor
    leads nowhere meanwhile, and Python writes to a copy of the real one. Not so with --debug.
    """
    try:
        real = os.dup(2)
    except OSError:  # closed: there is nobody to disturb
        real = -1
    if real < 0 or logger.isEnabledFor(logging.DEBUG):
        yield
        return
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, real)
        if _descriptor(sys.stderr) == 2:
            stream = open(  # noqa: SIM115 - closed with the others
                real, "w", 1, sys.stderr.encoding, "backslashreplace", closefd=False
            )
            undo.enter_context(stream)
            undo.enter_context(contextlib.redirect_stderr(stream))
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        undo.callback(os.dup2, real, 2)
        yield


def _descriptor(stream: Any) -> int | None:
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):  # replaced by something without one
        return None


class Bar:
    """A progress bar on standard error, if that is a terminal."""

    def __init__(self, cases: int = 1) -> None:
        self._cases = cases
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Bar:
        if sys.stderr.isatty():
            from rich import console, progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                console=console.Console(stderr=True),
                transient=True,
                redirect_stdout=False,  # lines of cases belong on standard output
            )
            self._bar.start()
            self._task = self._bar.add_task("starting", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, index: int, step: Progress) -> None:
        """Show how far a case has come."""
        case = f"case {index + 1} of {self._cases}, " if self._cases > 1 else ""
        self.stage(case + step.stage, step.done, step.total)

    def stage(self, stage: str, done: int, total: int) -> None:
        """Show how far something has come that is of no case."""
        if self._bar is not None:
            self._bar.update(self._task, description=stage, completed=done, total=total)

    def echo(self, line: str) -> None:
        """Print a line beside the bar."""
        with self.paused():
            echo(line)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Hide the bar while something else is printed."""
        if self._bar is not None:
            self._bar.stop()
        yield
        if self._bar is not None:
            self._bar.start()
