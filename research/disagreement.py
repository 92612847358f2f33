"""Would a second network, or a frame that lies elsewhere, tell more of a case's Dice?

    python research/disagreement.py ../shared/pancreas-ct --second BUNDLE [--model BUNDLE]

The cases of `fit_alarm.py` are segmented again by another network that never saw these patients
either, and by the same one with its frame moved by 6 mm. The Dice between the masks becomes a
feature. Prints the alarm's figures without and with it; the intervals are of a bootstrap.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import fit_alarm
import napari_pancreas_seg as nps
from napari_pancreas_seg.inference.quality import FEATURES

MOVED_MM = 6.0


def moved(bundle: Path, folder: Path) -> nps.LoadedModel:
    """The same network, with its frame elsewhere."""
    shutil.copytree(bundle, folder)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    card["frame"]["offset_mm"] = [mm + MOVED_MM for mm in card["frame"]["offset_mm"]]
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    return nps.LoadedModel(folder)


def expect(cases: list[dict[str, Any]], features: tuple[str, ...]) -> None:
    """Give each case the Dice that weights fitted without its patient expect."""
    fit_alarm.FEATURES = features
    for case in cases:
        fitted = fit_alarm.fit([other for other in cases if other["patient"] != case["patient"]])
        parts = (
            fitted["weights"][name] * (case[name] - fitted["mean"][name]) / fitted["sd"][name]
            for name in features
        )
        case["expected"] = float(1 / (1 + np.exp(-fitted["intercept"] - sum(parts))))


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--second", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("benchmarks/models/fold0"))
    asked = parser.parse_args()
    model, rng = nps.LoadedModel(asked.model), np.random.default_rng(0)
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        others = {
            "seed": nps.LoadedModel(asked.second),
            "shift": moved(asked.model, Path(folder) / "moved"),
        }
        for patient, *whole in fit_alarm.stacks(asked.dataset, model):
            for spoil in fit_alarm.SPOILINGS.values():
                hu, true, mm = spoil(*whole, rng)
                seen = fit_alarm.look(hu, true, mm, model)
                if seen is None:
                    continue
                ct = fit_alarm.volume_of(hu, mm)
                mask = nps.segment(ct, model).mask
                agreed = {k: nps.dice(mask, nps.segment(ct, o).mask) for k, o in others.items()}
                cases.append({"patient": patient, **seen, **agreed})
            print(patient, len(cases), flush=True)
    for more in ((), ("seed",), ("shift",), ("seed", "shift")):
        expect(cases, FEATURES + more)
        found = fit_alarm.with_intervals(cases)
        print(" + ".join(more) or "as it is", {k: found[k] for k in list(found)[3:6]}, flush=True)


if __name__ == "__main__":
    main()
