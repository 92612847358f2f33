"""Result of a fine-tuning: figures before and after, and the card of the new model."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from napari_pancreas_seg._version import __version__
from napari_pancreas_seg.errors import counted
from napari_pancreas_seg.training.judge.scores import rounded

WRITING = "writing the model"
"""The last stage that is reported: from then on the new model may be there."""


@dataclass(frozen=True)
class Gain:
    """Dice of each patient before and after."""

    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)

    @property
    def means(self) -> tuple[float, float] | None:
        """The means before and after; None without any patient."""
        if not self.before:
            return None
        return fmean(self.before.values()), fmean(self.after.values())

    @property
    def lost(self) -> float:
        """By how much the mean has fallen; negative if it has risen."""
        return 0.0 if self.means is None else self.means[0] - self.means[1]

    def to_dict(self) -> dict[str, Any]:
        """As plain data, not rounded."""
        before, after = self.means or (None, None)
        patients = {name: [dice, self.after[name]] for name, dice in self.before.items()}
        return {"n": len(self.before), "before": before, "after": after, "patients": patients}


def finetuned_card(
    given: Mapping[str, Any],
    name: str,
    patients: Sequence[str],
    gains: Mapping[str, Gain],
    about: Mapping[str, Any],
    names: Iterable[str] = (),
) -> dict[str, Any]:
    """The card of the new model: what it began as, what it learnt from, what came of it.

    `names` are further ones by which those learnt from are known.
    """
    training = dict(given.get("training", {}))
    training["patients"] = sorted({*training.get("patients", ()), *patients, *names})
    whose = counted(len(patients), "patient")
    text = (
        f"Fine-tuned from {given['name']} {given['version']} on {about['slices']} slices of {whose}"
    )
    if (means := gains["held_out"].means) is not None:
        text += (
            f"; Dice on patients left out of a trial {means[0]:.2f} before, {means[1]:.2f} after"
        )
    card = {**given, "name": name, "version": "1", "training": training}
    card["description"] = f"{text}. {given.get('description', '')}".strip()
    card["finetuned"] = {
        "from": {key: given[key] for key in ("name", "version", "weights_sha256")},
        "patients": len(patients),
        **about,
        **{key: {**rounded(gain.to_dict()), "what": _WHAT[key]} for key, gain in gains.items()},
        "made": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "program": f"napari-pancreas-seg {__version__}",
    }
    for key in ("validation", "confidence"):
        if isinstance(given.get(key), Mapping):
            what = given[key].get("what", "").removesuffix(_OF_THE_FORMER).removesuffix("; ")
            card[key] = {**given[key], "what": f"{what}; {_OF_THE_FORMER}".removeprefix("; ")}
    return card


_WHAT = {
    "held_out": "Dice per patient at the network's resolution, of patients that a trial of the "
    "same recipe did not learn from; how much of the new weights was taken was chosen on them, and "
    "the model itself learnt from them too",
    "guard": "Dice on the synthetic sample CT at the network's resolution; no training saw it",
    "usual": "the same of the trial's patients, the grey values of their slices mapped onto the "
    "usual ones of portal-venous CT",
}
_OF_THE_FORMER = "figures from before this was fine-tuned, not measured again"
