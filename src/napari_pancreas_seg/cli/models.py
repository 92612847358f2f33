"""The command that lists the models there are."""

from __future__ import annotations

import json

from napari_pancreas_seg.cli import command
from napari_pancreas_seg.cli.terminal import say


@command
def models() -> None:
    """List the models there are, with their cards."""
    from napari_pancreas_seg.model.bundle import list_models

    for entry in list_models():
        say(f"{entry.name} ({entry.origin})")
        for key, value in entry.card.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            say(f"  {key}: {text}")
