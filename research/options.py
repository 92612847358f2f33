"""Options that the scripts which train have in common."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from napari_pancreas_seg.training.fit.recipe import WINDOWS_HU, TrainSettings, averaging_for


def training_parser(description: str, *, steps: int) -> argparse.ArgumentParser:
    """A parser with the data set, the output folder and the recipe's common options."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("dataset", type=Path, help="a folder in any layout that `train` knows")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--window", type=_window, action="append", metavar="LOW:HIGH", help="HU")
    parser.add_argument("--policy", default="auto", help="precision, as in `train`")
    parser.add_argument(
        "--negatives", action="append", default=[], metavar="FILE[:START[:STOP]]",
        help="a CT without pancreas",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    return parser


def settings_of(asked: argparse.Namespace, **changes: Any) -> TrainSettings:
    """The recipe that the options ask for."""
    common: dict[str, Any] = {
        "steps": asked.steps,
        "steps_per_epoch": max(1, asked.steps // 2),
        "windows": tuple(asked.window or WINDOWS_HU),
        "batch_size": asked.batch_size,
        "averaging": averaging_for(asked.steps),
        "policy": asked.policy,
        "seed": asked.seed,
    }
    return TrainSettings(**common | changes)


def _window(text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    return float(low), float(high)
