"""What one change of the recipe brings, from two trainings that held the same patients back.

usage: python research/lever.py NAME WHAT RECIPE_RUN CHANGED_RUN [-o JSON]

The folders are outputs of `napari-pancreas-seg train`. The JSON is a table of levers, as
`research/model_card.py --comparison` takes it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from compare import lever_entry
from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.io.files import write_json
from napari_pancreas_seg.model.bundle import load_card
from napari_pancreas_seg.training.crossvalidation import out_of_fold_dice


def lever(name: str, what: str, recipe: Path, changed: Path) -> dict[str, object]:
    """A line of the table of levers."""
    base, dice = (out_of_fold_dice([run]) for run in (recipe, changed))
    if not base or base.keys() != dice.keys():
        raise PancreasSegError("The two trainings did not hold the same patients back.")
    card = load_card(recipe / "bundle")
    return lever_entry(name, what, base, dice, f"{card['name']} {card['version']}")


def main() -> None:
    """Print the line, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("what", help="the change, in words")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("changed", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    found = lever(asked.name, asked.what, asked.recipe, asked.changed)
    print("  ".join(f"{key} {value}" for key, value in found.items()))
    if asked.output:
        write_json(asked.output, {"levers": [found]}, overwrite=True)


if __name__ == "__main__":
    main()
