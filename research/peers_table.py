"""The table of what `peers.py` trained.

python research/peers_table.py FOLDER

Each network stands beside the attention U-Net of the same folds, patient by patient.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from napari_pancreas_seg.training.judge.scores import paired_difference, summarise
from napari_pancreas_seg.training.judge.tables import interval

BASELINE = "attention"
HEAD = """\
| network | folds | steps | hours | n | Dice, mean (95 %) | worst | it − {baseline} (95 %) |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def table(found: Sequence[Mapping[str, Any]], baseline: str = BASELINE) -> str:
    """What `peers.py` wrote, as Markdown: the baseline, then the others from the best."""
    runs: dict[str, dict[int, Mapping[str, Any]]] = {}
    for each in found:
        runs.setdefault(each["network"], {})[each["fold"]] = each
    means = {name: summarise(dice_of(of).values())["mean"] for name, of in runs.items()}
    order = sorted(runs, key=lambda name: (name != baseline, -means[name]))
    head = HEAD.format(baseline=next((e["what"] for e in found if e["network"] == baseline), "—"))
    return head + "".join(row(runs[name], runs.get(baseline, {})) for name in order)


def row(of: Mapping[int, Mapping[str, Any]], baseline: Mapping[int, Mapping[str, Any]]) -> str:
    """One network, by fold."""
    both = sorted(of.keys() & baseline.keys())
    said, s = "—", summarise(dice_of(of).values())
    if both and of is not baseline:
        dice = dice_of({fold: of[fold] for fold in both})
        ours = dice_of({fold: baseline[fold] for fold in both})
        gap = paired_difference(dice, ours)
        said = f"{gap['mean']:+.3f}{interval(gap, '+.3f')}"
    folds = ", ".join(str(fold) for fold in sorted(of))
    steps = ", ".join(f"{of[fold]['steps']:,}" for fold in sorted(of))
    hours = sum(each["hours"] for each in of.values())
    what = next(iter(of.values()))["what"]
    mean = f"{s['mean']:.3f}{interval(s)}"
    cells = (what, folds, steps, f"{hours:.1f}", s["n"], mean, f"{s['worst']:.3f}", said)
    return f"| {' | '.join(map(str, cells))} |\n"


def dice_of(of: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    """Dice by patient, of all folds."""
    return {patient: d for each in of.values() for patient, d in each["patients"].items()}


def main(arguments: list[str] | None = None) -> int:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--baseline", default=BASELINE, help="the one that others are compared to")
    asked = parser.parse_args(arguments)
    files = sorted(asked.folder.glob("*-fold*.json"))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    print(table(found, asked.baseline), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
