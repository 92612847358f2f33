"""Recipes for known tasks: which classes, however a data set calls them, and how to learn them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.training.data.layouts.opening import DataSet, classes_in, open_dataset
from napari_pancreas_seg.training.fit.recipe import TrainSettings, averaging_for


@dataclass(frozen=True)
class Preset:
    """A recipe for a task.

    `classes` gives each class, in the order of the network's channels, a regular expression for
    what data sets call it (lower case, words joined by single spaces). Those in `needed` must be
    there.
    """

    classes: Mapping[str, str]
    needed: tuple[str, ...]
    settings: Mapping[str, Any]

    def labels(self, there: Sequence[str]) -> tuple[dict[str, list[str]], tuple[str, ...]]:
        """Classes to train out of a data set's own, and a note of what it lacks."""
        words = {name: " ".join(re.split(r"[\W_]+", name.lower())).strip() for name in there}
        found = {
            name: [own for own in there if re.fullmatch(pattern, words[own])]
            for name, pattern in self.classes.items()
        }
        labels = {name: parts for name, parts in found.items() if parts}
        missing = [name for name, parts in found.items() if not parts]
        lacking = [name for name in missing if name in self.needed]
        if lacking or len(labels) < 2:
            shown = ", ".join(there[:12]) + (" …" if len(there) > 12 else "")
            raise PancreasSegError(
                f"This preset needs the {' and the '.join(lacking or self.needed)}, and "
                f"at least two classes; this data set has {shown or 'none'}. Say which are which "
                "with --classes NAME=CLASS[+CLASS]."
            )
        notes = (f"Not in this data set, so not learnt: {', '.join(missing)}.",) if missing else ()
        return labels, notes


WHOLE_BODY = FrameSpec(224, 288, 1.3, (0.0, 0.0))
"""Liver, spleen and flanks lie outside of the frame that the pancreas needs."""

PRESETS = {
    # As in task 7 of the Medical Segmentation Decathlon.
    "pancreas-tumour": Preset(
        {
            "pancreas": r"(normal |healthy )?pancreas( parenchyma)?",
            "tumour": r"(pancrea(s|tic) )?((pdac|pnet) )?"
            r"(cancer|tumou?rs?|lesions?|mass|masses|cysts?|pdac|pnet)",
        },
        ("pancreas", "tumour"),
        # Most slices of the gland show no tumour; a softmax must not forget it.
        {"positive_share": 0.9},
    ),
    # As the article has them in CT-150, and as TotalSegmentator, BTCV and AMOS name them.
    "organs": Preset(
        {
            "pancreas": r"pancreas",
            "liver": r"liver",
            "spleen": r"spleen",
            "kidneys": r"kidneys?|((left|right) kidney|kidney (left|right))",
            "stomach": r"stomach",
            "duodenum": r"duodenum",
            "gallbladder": r"gall ?bladder",
        },
        ("pancreas",),
        {"frame": WHOLE_BODY},
    ),
}
"""Presets by name."""


def open_for(
    folder: Path,
    recipe: Mapping[str, Any],
    preset: str | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
    layout: str | None = None,
) -> tuple[DataSet, TrainSettings]:
    """Open a data set; a preset changes the recipe, and names the classes if nobody has."""
    settings = TrainSettings(**{"averaging": averaging_for(recipe["steps"]), **recipe})
    notes: tuple[str, ...] = ()
    if preset is not None:
        if preset not in PRESETS:
            known = ", ".join(PRESETS)
            raise PancreasSegError(f"There is no preset {preset!r}; known are {known}.")
        task = PRESETS[preset]
        settings = replace(settings, **task.settings)
        if classes is None:
            classes, notes = task.labels(classes_in(folder, layout=layout))
    data = open_dataset(folder, classes, layout=layout)
    return replace(data, notes=(*data.notes, *notes)), settings
