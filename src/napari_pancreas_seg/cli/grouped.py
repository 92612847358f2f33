"""Help in which the options of a command stand under headings."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

__all__ = ["GroupedCommand"]


class GroupedCommand(TyperCommand):
    """A command whose options are listed by their ``rich_help_panel``, in plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, those without a heading first."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                heading = "Arguments" if param.param_type_name == "argument" else "Options"
                heading = getattr(param, "rich_help_panel", None) or heading
                groups.setdefault(heading, []).append(record)
        for heading in sorted(groups, key=lambda name: name not in ("Arguments", "Options")):
            with formatter.section(heading):
                formatter.write_dl(groups[heading])
