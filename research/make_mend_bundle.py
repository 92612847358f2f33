"""Make the bundle of the network that mends, of what `train_mend.py` wrote.

python research/make_mend_bundle.py RUN --about ABOUT.json -o BUNDLE
python benchmarks/strokes.py ../shared --model BUNDLE -o FIGURES.json
python research/make_mend_bundle.py RUN --about ABOUT.json --figures FIGURES.json -o BUNDLE
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from pathlib import Path

import numpy as np

import napari_pancreas_seg
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.inference.mend import FADE_MM, GUIDES, REACH_MM, TASK
from napari_pancreas_seg.model.attention_unet import Architecture, build, gflop_per_slice
from napari_pancreas_seg.model.bundle import save_bundle

FRAME = FrameSpec(128, 160, 1.0, (0.0, 0.0))
WINDOWS = ((0, 255), (40, 150), (80, 140))
CHANNELS = ["HU windows", "mask", "strokes that add", "strokes that take away", "neighbour's mask"]


def main() -> None:
    """Write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--about", type=Path, required=True, help="further fields of the card")
    parser.add_argument("--start", type=Path, required=True, help="what the training began with")
    parser.add_argument("--figures", type=Path, help="what benchmarks/strokes.py wrote")
    asked = parser.parse_args()
    about = json.loads((asked.run / "training.json").read_text(encoding="utf-8"))
    architecture = Architecture(
        16, FRAME.height, FRAME.width, len(WINDOWS) + GUIDES, dropout=0.2, head_bias=-3.0
    )
    network = build(architecture)
    with np.load(asked.run / "weights.npz") as file:
        for layer in network.layers:
            if layer.weights:
                values = [file[f"{layer.name}/{n}"] for n in range(len(layer.weights))]
                layer.set_weights(values)
    start = json.loads((asked.start / "card.json").read_text(encoding="utf-8"))  # of either task
    patients = about["patients"]
    card = {
        "task": TASK,
        "architecture": architecture.to_dict(),
        "frame": FRAME.to_dict(),
        "windows": [list(window) for window in WINDOWS],
        "channels": CHANNELS,
        "fade_mm": FADE_MM,
        "reach_mm": REACH_MM,
        "labels": {"pancreas": 1},
        "threshold": 0.5,
        "gflop": round(gflop_per_slice(network), 2),
        "training": {
            "patients": sorted({*patients["slices"], *patients["crops"]}),
            "recipe": {
                "program": "research/train_mend.py",
                "hold_out": about["hold_out"],
                "start": {key: start[key] for key in ("name", "version", "weights_sha256")},
                "steps": about["steps"],
                **about["settings"],
            },
            "machine": f"{platform.machine()}, torch",
            "program": f"napari-pancreas-seg {napari_pancreas_seg.__version__}",
            "made": datetime.datetime.now(datetime.UTC).date().isoformat(),
        },
        "weights_sha256": "",
        **json.loads(asked.about.read_text(encoding="utf-8")),
    }
    if asked.figures:
        figures = json.loads(asked.figures.read_text(encoding="utf-8"))
        measured = figures.pop("weights_sha256")
        card["figures"] = figures
    save_bundle(network, card, asked.output, overwrite=True)
    if asked.figures and load_bundle_hash(asked.output) != measured:
        raise SystemExit("The figures are of other weights.")


def load_bundle_hash(folder: Path) -> str:
    """The hash of a bundle's weights."""
    return json.loads((folder / "card.json").read_text(encoding="utf-8"))["weights_sha256"]


if __name__ == "__main__":
    main()
