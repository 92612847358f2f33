"""The command ``napari-pancreas-seg``: parses, calls, prints.

What does the work is imported inside the commands, so that ``--help`` answers at once.
"""

# ruff: noqa: I001 - the order of `--help`
from napari_pancreas_seg.cli import (  # noqa: F401 - their commands register
    segment,
    demo,
    bundle,
    check,
    convert,
    dataset,
    evaluation,
    finetune,
    models,
    open,
    report,
    training,
)
from napari_pancreas_seg.cli.app import main

__all__ = ["main"]
