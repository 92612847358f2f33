"""The article's comparison: networks trained alike on one fold, each with the same data and time.

    python research/peers.py FILE.npz DATASET -o FOLDER --network unet --steps 6000 [--fold 1]
    python research/peers.py FILE.npz DATASET -o FOLDER --network vnet --hours 0.5
    python research/peers_table.py FOLDER

FILE.npz is made by `prepare_slices.py`, DATASET is ``pancreas-ct``. All networks begin with random
weights and learn from what `train_torch.py` shows the bundled one: the same slices and crops of the
same patients, the same changes, three coarse-to-fine frames. They are scored as ours: per patient
on the native grid, all slices, at thresholds chosen on the other patients. The figures are written
to FOLDER/NETWORK-fold0.json. ``--hours`` are of processor time. ``--resume`` goes on.

DeepLabV3 and Mask R-CNN come from torchvision, V-Net in 2-D from MONAI; see `lite_network.py` for
the one that begins with what it learnt from photographs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")  # TensorFlow and PyTorch may clash in one process

import torch
from torch import nn
from torch.nn import functional

import changing
import train_torch
from lite_network import LiteUNet
from mixing import Mixer
from napari_pancreas_seg.inference.frame import FrameSpec
from napari_pancreas_seg.io.files import write_json
from napari_pancreas_seg.training.data.layouts.opening import open_dataset
from napari_pancreas_seg.training.fit.recipe import TrainSettings
from napari_pancreas_seg.training.judge.calibration import HeldBack, score_predictions
from napari_pancreas_seg.training.judge.scores import at_others_threshold, summarise
from napari_pancreas_seg.training.run import Split
from scoring import Adapter
from torch_network import LEVELS, AttentionUNet, fast
from train_torch import STAGES, Clock, Training, mixed_loss

FOLDS = 5
WIDE_MM = 1.8
STATISTICS = 50
"""Batches for the statistics of batch normalisation, in the end."""


class Article(nn.Module):
    """The article's network: 32 filters, batch normalisation before the sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.network = AttentionUNet(32, channels, head_bias=0.0)
        self.norm = nn.BatchNorm2d(1, 1e-3, 0.01)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Log-odds at full size."""
        return [self.norm(self.network(x)[0])]


class DeepLabV3(nn.Module):
    """DeepLabV3 with ResNet-50 (Chen et al. 2017, arXiv:1706.05587)."""

    def __init__(self, channels: int) -> None:
        from torchvision.models.segmentation import deeplabv3_resnet50

        super().__init__()
        self.network = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=1)
        _take_channels(self.network.backbone, channels)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Log-odds at full size."""
        return [self.network(x)["out"]]


class VNet(nn.Module):
    """V-Net in 2-D (Milletari et al. 2016, arXiv:1606.04797); it wants 1, 2, 4 … channels."""

    def __init__(self, channels: int) -> None:
        from monai.networks.nets import VNet as Network

        super().__init__()
        self.empty = 2 ** math.ceil(math.log2(channels)) - channels
        self.network = Network(spatial_dims=2, in_channels=channels + self.empty, out_channels=1)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Log-odds at full size."""
        return [self.network(functional.pad(x, (0, 0, 0, 0, 0, self.empty)))]


class MaskRCNN(nn.Module):
    """Mask R-CNN with ResNet-50 and FPN (He et al. 2017, arXiv:1703.06870)."""

    def __init__(self, channels: int) -> None:
        from torchvision.models.detection import maskrcnn_resnet50_fpn

        super().__init__()
        self.network = maskrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=2, image_mean=[0.5] * channels,
            image_std=[0.5] * channels, box_score_thresh=0.01, box_detections_per_img=8,
        )  # fmt: skip
        _take_channels(self.network.backbone.body, channels)

    def sized(self, x: torch.Tensor) -> None:
        """Let the network see pictures as they come, not enlarged."""
        self.network.transform.min_size = (min(x.shape[-2:]),)
        self.network.transform.max_size = max(x.shape[-2:])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Log-odds at full size: of each pixel the surest object's mask, weighed by its score."""
        self.sized(x)
        maps = []
        for found in self.network(list(x)):
            weighed = found["masks"] * found["scores"][:, None, None, None]
            none = torch.zeros((1, 1, *x.shape[2:]))
            maps.append(torch.cat([none, weighed]).amax(dim=0))
        return [torch.logit(torch.stack(maps), eps=1e-4)]


def _take_channels(backbone: nn.Module, channels: int) -> None:
    """Give a ResNet another number of input channels."""
    if channels != 3:
        backbone.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)


def dice_loss(
    network: nn.Module, seen: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """The article's loss: Dice alone."""
    with fast():
        logits = network(seen)[0]
    p = torch.sigmoid(logits.float())
    both, total = (weight * p * target).sum(), (weight * (p + target)).sum()
    return 1 - (2 * both + 1) / (total + 1)


def detector_loss(
    network: Any, seen: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """A detector's own losses: the gland of a slice is one object, a slice without it has none."""
    network.sized(seen)
    with fast():
        losses = network.network(list(seen), [wanted(mask[0] > 0.5) for mask in target])
    return sum(loss.float() for loss in losses.values())


def wanted(mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a detector is told of a mask (H, W): a box, its class, the mask."""
    rows, columns = (torch.nonzero(mask.any(dim=axis))[:, 0] for axis in (1, 0))
    found = len(rows) > 1 and len(columns) > 1
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if found else ()
    return {
        "boxes": torch.tensor([box] if found else []).reshape(-1, 4).float(),
        "labels": torch.ones(int(found), dtype=torch.int64),
        "masks": mask[None][: int(found)].to(torch.uint8),
    }


@dataclass(frozen=True)
class Choice:
    """A network to compare: `build` gives it for a number of channels."""

    what: str
    build: Callable[[int], nn.Module]
    loss: Callable[..., torch.Tensor] = mixed_loss
    peak: float = 2e-3
    windows: Sequence[tuple[int, int]] = field(default=train_torch.WINDOWS)
    frame: tuple[int, int] = changing.FRAME
    mm: float = changing.FRAME_MM
    stages: str = "progressive"


def _ours(filters: int = 16, **changes: Any) -> Callable[[int], nn.Module]:
    return lambda channels: AttentionUNet(filters, channels, 0.2, **changes)


NETWORKS = {
    "attention": Choice("attention U-Net, as bundled", _ours()),
    "unet": Choice("the same without gates", _ours(gated=())),
    "open": Choice("gates that begin open (bias +2)", _ours(gate_bias=2.0)),
    "coarse": Choice("no gate on the finest skip connection", _ours(gated=range(1, LEVELS))),
    "one-window": Choice("one HU window", _ours(), windows=((0, 255),)),
    "filters-24": Choice("24 filters", _ours(24)),
    "filters-32": Choice("32 filters", _ours(32)),
    "finer": Choice("pixels of 1.0 mm", _ours(), frame=(192, 272), mm=1.0),
    "attention-wide": Choice("attention U-Net, 403 × 288 mm", _ours(), mm=WIDE_MM),
    "unet-wide": Choice("without gates, 403 × 288 mm", _ours(gated=()), mm=WIDE_MM),
    "article": Choice("the article's network and loss", Article, dice_loss, 1e-3),
    "deeplabv3": Choice("DeepLabV3, ResNet-50", DeepLabV3, peak=1e-3),
    "mask-rcnn": Choice("Mask R-CNN, ResNet-50", MaskRCNN, detector_loss, 3e-4),
    "vnet": Choice("V-Net in 2-D", VNet, peak=1e-3),
    "lite": Choice("U-Net, encoder EfficientNet-Lite0 of ImageNet", LiteUNet, stages="two"),
}


def score(training: Training, folder: Path, held: Sequence[str], choice: Choice) -> dict[str, Any]:
    """Dice of each patient held out, at thresholds chosen on the others."""
    settings = TrainSettings(
        frame=FrameSpec(*choice.frame, choice.mm), windows=tuple(map(tuple, choice.windows))
    )
    data = open_dataset(folder)
    cases = [case for case in data.cases if case.patient in held]
    adapter = Adapter(training.averaged(STATISTICS), choice.frame)
    scores = score_predictions(HeldBack(cases, data.labels, settings).predict(adapter))
    dice = at_others_threshold(scores.dice())
    return {
        "patients": {patient: round(float(d), 4) for patient, d in dice.items()},
        "summary": summarise(dice.values()),
    }


def main(arguments: list[str] | None = None) -> int:
    """Train and score one network on one fold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slices", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--fold", type=int, default=0)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int)
    length.add_argument("--hours", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    choice = NETWORKS[asked.network]
    train_torch.WINDOWS = choice.windows
    changing.FRAME, changing.FRAME_MM = choice.frame, choice.mm
    _, held_cases = Split(FOLDS, asked.fold, 0).divide(open_dataset(asked.dataset).cases)
    held = sorted({case.patient for case in held_cases})
    total = asked.steps or 3600 * asked.hours
    stages = (*STAGES[choice.stages][:-1], (1.01, choice.frame))
    clock = Clock(total, choice.peak, stages, by_steps=bool(asked.steps))
    torch.manual_seed(asked.seed)
    network = choice.build(len(choice.windows))
    training = Training(Mixer(asked.slices, held), clock, asked.seed, network, choice.loss)
    run = asked.output / f"{asked.network}-fold{asked.fold}"
    run.mkdir(parents=True, exist_ok=True)
    if asked.resume:
        training.restore(torch.load(run / "checkpoint.pt", weights_only=True))
    train_torch.run(training, run)
    found = {
        "network": asked.network,
        "what": choice.what,
        "fold": asked.fold,
        "seed": asked.seed,
        "steps": training.step,
        "hours": round(clock.spent / 3600, 2),
        **score(training, asked.dataset, held, choice),
    }
    print(json.dumps(found["summary"]))
    write_json(run.with_suffix(".json"), found, overwrite=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
