"""Learning curves of a training: as a table, as a picture, and for TensorBoard."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.files import atomic_write, write_json, write_text
from napari_pancreas_seg.io.table import csv_text
from napari_pancreas_seg.training.fit.loop import best_epoch

EVENTS = "tensorboard"
"""Folder of TensorBoard's files, within that of the training."""

Line = Mapping[str, Any]


def show(folder: Path, history: Sequence[Line]) -> None:
    """Write all files about a training's history anew, with a mark at the best epoch.

    What can be written is; PancreasSegError then says what could not.
    """
    failed: list[PancreasSegError] = []
    writes: list[Callable[[], object]] = [
        lambda: write_json(folder / "history.json", list(history), overwrite=True),
        lambda: write_text(folder / "history.csv", csv_text(history), overwrite=True),
        lambda: _draw(history, best_epoch(history), folder / "curves.png"),
    ]
    for write in writes:
        try:
            write()
        except PancreasSegError as error:
            failed.append(error)
    if failed:
        raise failed[0]
    if importlib.util.find_spec("tensorboard") is not None:
        _write_events(history, folder / EVENTS)


def _write_events(history: Sequence[Line], folder: Path) -> None:
    """For TensorBoard, in place of those before: none of them tells of an epoch twice."""
    from tensorboard.summary import Writer

    for old in folder.glob("events.out.tfevents.*"):
        with contextlib.suppress(OSError):  # somebody may be looking at it
            old.unlink()
    events = Writer(str(folder))
    for line in history:
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                events.add_scalar(name, float(value), int(line["step"]))
    events.close()


def _draw(history: Sequence[Line], best: int | None, path: Path) -> None:
    """Loss above, validation Dice below, over the steps."""
    # Without pyplot: no window, no global state.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shown = [("loss", "training loss")]
    if any("validation_dice" in line for line in history):
        shown.append(("validation_dice", "validation Dice"))
    figure = Figure(figsize=(7.0, 2.6 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), squeeze=False, sharex=True)[:, 0]
    for ax, (name, label) in zip(axes, shown, strict=True):
        _plot(ax, history, name, marker=".")
        ax.set_ylabel(label)
        ax.grid(alpha=0.3)
    if len(shown) == 2:
        classes = dict.fromkeys(n for line in history for n in line if n.startswith("dice_"))
        for name in classes:
            _plot(axes[1], history, name, lw=1, alpha=0.7, label=name.removeprefix("dice_"))
        if classes:
            axes[1].legend(fontsize=8)
        if best is not None:
            line = history[best]
            axes[1].plot(line["step"], line["validation_dice"], "o", mfc="none", color="C3", ms=9)
            axes[1].set_title(f"best: {line['validation_dice']:.3f} at step {line['step']}", size=9)
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    with atomic_write(path, overwrite=True) as file:
        figure.savefig(file, format="png", dpi=110)


def _plot(ax: Any, history: Sequence[Line], name: str, **how: Any) -> None:
    lines = [line for line in history if name in line]
    ax.plot([line["step"] for line in lines], [line[name] for line in lines], **how)
