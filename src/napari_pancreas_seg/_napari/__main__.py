"""Opens napari with a worklist, as the command ``open`` asks for it in JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import napari

from napari_pancreas_seg._napari.commands import open_dock
from napari_pancreas_seg.cohort.given import GivenMasks


def main(asked: str) -> None:
    """Open a viewer with the panel and a worklist, until it is closed."""
    wanted = json.loads(asked)
    masks = None
    if wanted["masks"] is not None:
        folder, value, by = wanted["masks"]
        masks = GivenMasks(Path(folder), value, by)
    only = None if wanted["only"] is None else set(wanted["only"])
    dock = open_dock(napari.Viewer())
    dock.worklist_panel.open_worklist(wanted["folder"], wanted["output"], masks=masks, only=only)
    napari.run()


if __name__ == "__main__":
    main(sys.argv[1])
