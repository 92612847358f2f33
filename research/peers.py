"""What the article names beside its network, trained on the same fold with the same frame.

    python research/peers.py DATASET -o FOLDER --peer deeplabv3 [--steps 6000] [--fold 0] \\
        [--ours RUN_OF_TRAIN]

DeepLabV3 (ResNet-50) and Mask R-CNN (ResNet-50, FPN) come from torchvision, V-Net in 2-D from
MONAI, all untrained. They see the same slices in the same frame through the same HU windows, with
the same augmentation and sampling, and are scored like ours: per patient on the native grid, at
thresholds chosen on the other patients. ``--ours`` is the folder of a training of the same fold:
the difference is paired. FOLDER/PEER.json holds the figures; ``--table FOLDER`` prints those of
all peers.

Needs PyTorch, with torchvision or MONAI; Keras then runs on PyTorch too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

if importlib.util.find_spec("torch"):
    os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np

from napari_pancreas_seg.errors import PancreasSegError
from napari_pancreas_seg.inference.predictor import windowed
from napari_pancreas_seg.io.files import write_json
from napari_pancreas_seg.training.crossvalidation import out_of_fold_dice
from napari_pancreas_seg.training.data.datasets import (
    TrainingSlices,
    load_cases,
    load_negatives,
    working_frame,
)
from napari_pancreas_seg.training.data.layouts.opening import open_dataset
from napari_pancreas_seg.training.fit.augmentation import Augment
from napari_pancreas_seg.training.fit.batches import training_batches
from napari_pancreas_seg.training.judge.calibration import HeldBack, score_predictions
from napari_pancreas_seg.training.judge.scores import (
    at_others_threshold,
    paired_difference,
    summarise,
)
from napari_pancreas_seg.training.run import Split
from options import settings_of, training_parser

Array = np.ndarray


class Dense:
    """A network that gives a logit a pixel, with the mean of cross-entropy and Dice loss."""

    rate = 1e-3

    def __init__(self, network: Any, logits: Callable[[Any], Any], channels: int = 3) -> None:
        self.network, self._logits, self._channels = network, logits, channels

    def loss(self, inputs: Any, target: Any) -> Any:
        """Loss of a batch: inputs (B, 3, H, W), target (B, 1, H, W), from 0 to 1."""
        from torch.nn import functional

        logits = self._logits(self.network(self._fitted(inputs)))
        probability = logits.sigmoid()
        dice = 1 - (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)
        return functional.binary_cross_entropy_with_logits(logits, target) + dice

    def probability(self, inputs: Any) -> Any:
        """Probability of each pixel, (B, 1, H, W)."""
        return self._logits(self.network(self._fitted(inputs))).sigmoid()

    def _fitted(self, inputs: Any) -> Any:
        """As many channels as the network wants: empty ones are added."""
        from torch.nn import functional

        return functional.pad(inputs, (0, 0, 0, 0, 0, self._channels - inputs.shape[1]))


class Detector:
    """A network that finds objects with a box and a mask each; its losses are its own."""

    rate = 2e-4

    def __init__(self, network: Any) -> None:
        self.network = network

    def loss(self, inputs: Any, target: Any) -> Any:
        """See `Dense.loss`; the gland of a slice is one object, a slice without it has none."""
        import torch

        wanted = []
        for mask in target[:, 0] > 0.5:
            rows, columns = (torch.nonzero(mask.any(dim=axis))[:, 0] for axis in (1, 0))
            found = len(rows) > 1 and len(columns) > 1
            box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if found else ()
            wanted.append(
                {
                    "boxes": torch.tensor([box] if found else []).reshape(-1, 4).float(),
                    "labels": torch.ones(int(found), dtype=torch.int64),
                    "masks": mask[None][: int(found)].to(torch.uint8),
                }
            )
        device = inputs.device
        wanted = [{name: value.to(device) for name, value in one.items()} for one in wanted]
        return sum(self.network(list(inputs), wanted).values())

    def probability(self, inputs: Any) -> Any:
        """Of each pixel the surest object's mask, weighed with the object's score."""
        import torch

        maps = []
        for found in self.network(list(inputs)):
            weighed = found["masks"] * found["scores"][:, None, None, None]
            none = torch.zeros((1, 1, *inputs.shape[2:]), device=inputs.device)
            maps.append(torch.cat([none, weighed]).amax(dim=0))
        return torch.stack(maps)


def deeplabv3() -> Dense:
    """DeepLabV3 with ResNet-50 (Chen et al. 2017, arXiv:1706.05587)."""
    from torchvision.models.segmentation import deeplabv3_resnet50

    network = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=1)
    return Dense(network, lambda outputs: outputs["out"])


def mask_rcnn(height: int, width: int) -> Detector:
    """Mask R-CNN with ResNet-50 and FPN (He et al. 2017, arXiv:1703.06870)."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    return Detector(
        maskrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=2, min_size=min(height, width),
            max_size=max(height, width), image_mean=[0.5] * 3, image_std=[0.5] * 3,
            box_score_thresh=0.01, box_detections_per_img=8,
        )
    )  # fmt: skip


def vnet() -> Dense:
    """V-Net in 2-D (Milletari et al. 2016, arXiv:1606.04797); it wants 1, 2, 4 … channels."""
    from monai.networks.nets import VNet

    network = VNet(spatial_dims=2, in_channels=4, out_channels=1)
    return Dense(network, lambda outputs: outputs, channels=4)


PEERS = ("deeplabv3", "mask-rcnn", "vnet")


def peer_named(name: str, height: int, width: int) -> Dense | Detector:
    """Build an untrained peer."""
    if name == "mask-rcnn":
        return mask_rcnn(height, width)
    return deeplabv3() if name == "deeplabv3" else vnet()


def train(peer: Dense | Detector, slices: TrainingSlices, settings: Any, device: Any) -> None:
    """Train a peer on the batches that ours would see."""
    import torch

    augment = Augment(settings.frame, working_frame(settings.frame))
    network = peer.network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=peer.rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peer.rate, total_steps=max(2, settings.steps), pct_start=0.1
    )
    began = time.perf_counter()
    for step, batch in enumerate(training_batches(slices, settings, 0, settings.steps), start=1):
        hu, target, *_ = augment(batch)
        inputs = as_tensor(windowed(hu, settings.windows), device)
        loss = peer.loss(inputs, as_tensor(target, device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == settings.steps:
            pace = step * settings.batch_size / (time.perf_counter() - began)
            print(f"step {step}  loss {loss.item():.4f}  {pace:.1f} images/s", flush=True)


def as_tensor(values: Any, device: Any) -> Any:
    """From (B, H, W, C), of any backend, to (B, C, H, W)."""
    import torch

    array = np.asarray(keras.ops.convert_to_numpy(values), np.float32)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1))).to(device)


class AsOurs:
    """A peer that answers as one of our networks does, for `HeldBack.predict`."""

    def __init__(self, peer: Dense | Detector, device: Any) -> None:
        self.peer, self.device = peer, device
        peer.network.eval()

    def predict_on_batch(self, inputs: Array) -> dict[str, Array]:
        """Probability (B, H, W, 1) of inputs (B, H, W, C)."""
        import torch

        with torch.no_grad():
            said = self.peer.probability(as_tensor(inputs, self.device))
        return {"probability": np.moveaxis(said.cpu().numpy(), 1, -1)}


def figures(
    name: str, dice: Mapping[str, float], ours: Mapping[str, float], asked: Any
) -> dict[str, Any]:
    """What is written of a peer."""
    data = {
        "peer": name,
        "steps": asked.steps,
        "folds": asked.folds,
        "fold": asked.fold,
        "patients": {patient: round(d, 4) for patient, d in dice.items()},
        "summary": summarise(dice.values()),
    }
    if ours:
        if ours.keys() != dice.keys():
            raise PancreasSegError("The training given by --ours held other patients back.")
        data["ours_minus_peer"] = paired_difference(ours, dice)
    return data


def table(found: list[Mapping[str, Any]]) -> str:
    """The figures of all peers as Markdown."""
    lines = [
        "| network | steps | n | Dice, mean (95 %) | SD | worst | ours − it, paired (95 %) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for data in found:
        s, gap = data["summary"], data.get("ours_minus_peer")
        said = f"{gap['mean']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f})" if gap else "—"
        lines.append(
            f"| {data['peer']} | {data['steps']} | {s['n']} | {s['mean']:.3f} ({s['low']:.3f} to "
            f"{s['high']:.3f}) | {s['sd']:.3f} | {s['worst']:.3f} | {said} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Train and score a peer, or print the table of those that are done."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--table"]:
        files = [Path(arguments[1]) / f"{peer}.json" for peer in PEERS]
        done = [json.loads(path.read_text(encoding="utf-8")) for path in files if path.exists()]
        print(table(done), end="")
        return 0
    parser = training_parser(__doc__, steps=6000)
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--ours", type=Path, metavar="FOLDER", help="a training of the same fold")
    asked = parser.parse_args(arguments)
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(asked.seed)
    settings = settings_of(asked)
    try:
        data = open_dataset(asked.dataset)
        if len(data.labels) > 1:
            raise PancreasSegError("The peers learn one class; choose it when the data are opened.")
        training, held = Split(asked.folds, asked.fold, asked.seed).divide(data.cases)
        parts = [load_cases(training, data.labels, frame=settings.frame)]
        if asked.negatives:
            parts.append(load_negatives(asked.negatives, frame=settings.frame))
        peer = peer_named(asked.peer, settings.frame.height, settings.frame.width)
        train(peer, TrainingSlices.join(parts), settings, device)
        said = HeldBack(held, data.labels, settings).predict(AsOurs(peer, device))
        dice = at_others_threshold(score_predictions(said).dice())
        ours = out_of_fold_dice([asked.ours]) if asked.ours else {}
        found = figures(asked.peer, dice, ours, asked)
    except PancreasSegError as error:
        print(error, file=sys.stderr)
        return 1
    print(table([found]), end="")
    asked.output.mkdir(parents=True, exist_ok=True)
    write_json(asked.output / f"{asked.peer}.json", found, overwrite=True)
    torch.save(peer.network.state_dict(), asked.output / f"{asked.peer}.pt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
