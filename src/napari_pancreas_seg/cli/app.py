"""The program's root: commands register here, and `main` runs one."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from napari_pancreas_seg._version import __version__
from napari_pancreas_seg.cli.terminal import guarded

_KINDS = {"int": "N", "float": "X", "str": "NAME", "path": "PATH"}
"""What help calls the kinds of values."""

Command = Callable[..., None]

_root = typer.Typer(
    name="napari-pancreas-seg",
    help="Find the pancreas in abdominal CT with an Attention U-Net.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main(args: list[str] | None = None) -> int:
    """Run the command line with these arguments, or with those of the process.

    The exit status is 0, 1 for what went wrong, 2 for wrong usage, 130 when cancelled.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name may not fit the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    if "" in (sys.argv[1:] if args is None else args):  # a path of it would be this folder
        typer.echo("An argument is empty, as of a variable that is not set; give it.", err=True)
        return 2
    try:
        _root(args=args, prog_name="napari-pancreas-seg")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def command_of(group: typer.Typer, name: str | None = None) -> Callable[[Command], Command]:
    """Register a command of a group."""

    def register(function: Command) -> Command:
        group.command(name, cls=_PlainHelp)(guarded(function))
        return function

    return register


command = command_of(_root)
"""Registers a command."""


def group(name: str, help: str, *, no_args_is_help: bool = True) -> typer.Typer:
    """Register a group of commands."""
    made = typer.Typer(help=help, no_args_is_help=no_args_is_help)
    _root.add_typer(made, name=name)
    return made


class _PlainHelp(TyperCommand):
    """A command whose help lists options under headings, their ``rich_help_panel``."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, those without a heading first."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                name = re.sub(
                    r"<(?:list\[)?(\w+)[^>]*>",
                    lambda found: _KINDS.get(found[1].lower(), found[1]),
                    record[0],
                )
                heading = "Arguments" if param.param_type_name == "argument" else "Options"
                heading = getattr(param, "rich_help_panel", None) or heading
                groups.setdefault(heading, []).append((name, record[1]))
        for heading, records in groups.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"napari-pancreas-seg {__version__}")
        raise typer.Exit


@_root.callback()
def _global(
    debug: Annotated[
        bool, typer.Option("--debug", help="Log details and tracebacks of errors.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.ERROR)
    if debug:
        logging.getLogger("napari_pancreas_seg").setLevel(logging.DEBUG)
    else:
        # Set here and not on import: who imports this module keeps an untouched environment.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        warnings.simplefilter("ignore")
