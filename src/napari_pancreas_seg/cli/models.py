"""The command that lists the models there are."""

from __future__ import annotations

import json

from napari_pancreas_seg.cli.app import command
from napari_pancreas_seg.cli.options import AsJson
from napari_pancreas_seg.cli.terminal import echo, print_json


@command
def models(as_json: AsJson = False) -> None:
    """List the models there are, with their cards."""
    from napari_pancreas_seg.model.bundle import list_models

    entries = list_models()
    if as_json:
        print_json([{"name": e.name, "origin": e.origin, "card": e.card} for e in entries])
        return
    for entry in entries:
        echo(f"{entry.name} ({entry.origin})")
        for key, value in entry.card.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            echo(f"  {key}: {text}")
