"""Train the default network in PyTorch, on a processor with AMX, within a given time.

    python research/train_torch.py FILE.npz -o RUN --hours 1.5 --hold-out 0002,0006,...

The network is the project's own (`torch_network.py`). What is learnt from is made by
`prepare_slices.py`. Slices of other patients and crops of further patients' glands are mixed into
each other (`mixing.py`), then moved and changed in intensity (`changing.py`). Most of the time
goes to a coarse frame, the rest to the network's own (`STAGES`). How much of the processor's time
is used up sets the learning rate: what else runs on the machine makes no difference.
`--resume` goes on from the last checkpoint. The averaged weights are written to ``weights.npz``
under the names of the Keras network's layers; `make_bundle.py` makes a bundle of them.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import changing
import mixing
from changing import Changes, changed
from mixing import Mixer
from torch_network import BFLOAT16, LEVELS, AttentionUNet, begin_with, fast, keras_weights

STAGES = {
    "fine": ((1.01, (160, 224)),),
    "progressive": ((0.50, (80, 112)), (0.68, (112, 160)), (1.01, (160, 224))),
    "two": ((0.45, (112, 160)), (1.01, (160, 224))),
}
"""Until which share of the time the frame has so many pixels: 2.4, 1.7 and 1.2 mm."""
WINDOWS = ((0, 255), (40, 150), (80, 140))
BATCH = 8
WARM_UP, DECAY = 0.03, 1e-2
AVERAGING = 0.998
PRETRAINED = 0.3
"""Of the learning rate, for layers that photographs have taught."""
SIDES = (1.0, 0.5, 0.25)
CHECKPOINT_S = 120
STATISTICS = 150


@dataclass
class Clock:
    """Where a training stands: so many seconds of processor time, or steps, of a total."""

    total: float
    peak: float
    stages: tuple
    by_steps: bool = False
    spent: float = 0.0
    steps: int = 0

    @property
    def share(self) -> float:
        """0 at the beginning, 1 at the end."""
        return min(1.0, (self.steps if self.by_steps else self.spent) / self.total)

    def learning_rate(self) -> float:
        """Warm-up, then a cosine to 0."""
        if self.share < WARM_UP:
            return self.peak * (0.05 + 0.95 * self.share / WARM_UP)
        return self.peak * 0.5 * (1 + math.cos(math.pi * (self.share - WARM_UP) / (1 - WARM_UP)))

    def size(self) -> tuple[int, int]:
        """Pixels of the frame."""
        return next(size for until, size in self.stages if self.share < until)


def at_size(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Area means of (B, C, 160, 224) at fewer pixels."""
    if values.shape[-2:] == size:
        return values
    if values.shape[-1] % size[1] == 0:
        return F.avg_pool2d(values, values.shape[-1] // size[1])
    return F.interpolate(values, size, mode="bilinear", antialias=True)


def windowed(hu: torch.Tensor) -> torch.Tensor:
    """HU windows as channels, from HU / 255."""
    channels = [((hu * 255 - low) / (high - low)).clamp(0, 1) for low, high in WINDOWS]
    return torch.cat(channels, dim=1).contiguous(memory_format=torch.channels_last)


def loss_of(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Dice per image and over the batch in equal parts, plus cross-entropy, where it is known."""
    p = torch.sigmoid(logits)
    both = (weight * p * target).sum((1, 2, 3))
    total = (weight * (p + target)).sum((1, 2, 3))
    per_image = 1 - ((2 * both + 1) / (total + 1)).mean()
    pooled = 1 - (2 * both.sum() + 1) / (total.sum() + 1)
    entropy = F.binary_cross_entropy_with_logits(logits, target, weight=weight)
    return 0.5 * (per_image + pooled) + entropy


def loss_at_levels(
    outputs: Sequence[torch.Tensor], target: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """The loss at full size, and of side outputs at half and a quarter of it."""
    loss = torch.zeros(())
    for level, (logits, share) in enumerate(zip(outputs, SIDES, strict=False)):
        if level:
            target, weight = F.avg_pool2d(target, 2), F.avg_pool2d(weight, 2)
        loss = loss + share * loss_of(logits.float(), target, weight)
    return loss


def descend(training: Any, loss: torch.Tensor, averaging: float) -> float:
    """One step of a training, and its averages; gives the loss."""
    training.optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(training.network.parameters(), 1.0)
    training.optimizer.step()
    training.step += 1
    keep = min(averaging, (1 + training.step) / (10 + training.step))
    with torch.no_grad():
        torch._foreach_mul_(training.average, keep)
        torch._foreach_add_(training.average, list(training.network.parameters()), alpha=1 - keep)
    return float(loss.detach())


def settled(training: Any, inputs: Iterable[torch.Tensor]) -> Any:
    """A copy of the network with the averaged weights, and the statistics of these inputs."""
    twin = copy.deepcopy(training.network).eval()
    with torch.no_grad():
        for p, value in zip(twin.parameters(), training.average, strict=True):
            p.copy_(value)
        for norm in (m for m in twin.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over all batches
            norm.train()
        for each in inputs:
            with fast():
                twin(each)
    return twin.eval()


def mixed_loss(
    network: torch.nn.Module, seen: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Loss of a network that gives log-odds at one or more levels."""
    with fast():
        outputs = network(seen)
    return loss_at_levels(outputs, target, weight)


class Training:
    """Network, optimizer and averages; everything that a checkpoint holds.

    `loss` (network, windows, target, weight) gives what is to be made small.
    """

    def __init__(
        self,
        mixer: Mixer,
        clock: Clock,
        seed: int,
        network: torch.nn.Module,
        loss: Callable[..., torch.Tensor],
    ) -> None:
        self.mixer, self.seed, self.loss = mixer, seed, loss
        self.network = network.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(parameter_groups(network), clock.peak, fused=True)
        self.average = [p.detach().clone() for p in self.network.parameters()]
        self.clock, self.step = clock, 0

    def begin_with(self, bundle: Path) -> None:
        """Take a bundle's weights; it must be of this architecture and these windows."""
        from napari_pancreas_seg.model.bundle import load_bundle

        given = load_bundle(bundle)
        if given.card["windows"] != [list(window) for window in WINDOWS]:
            raise SystemExit(f"{bundle} sees other HU windows.")
        layers = {n.name: n.get_weights() for n in given.network().layers if n.weights}
        begin_with(self.network, layers)
        self.average = [p.detach().clone() for p in self.network.parameters()]

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """HU in [0, 1], target and weight, (B, 1, h, w): a function of seed and step."""
        rng = np.random.default_rng([self.seed, step])
        parts = [self.mixer.draw(rng) for _ in range(BATCH)]
        left = max(0.0, (1 - self.clock.share) / 0.15)
        changes = Changes.draw(rng, parts, geometry=0.6 + 0.4 * min(1.0, left))
        return tuple(at_size(a, self.clock.size()) for a in changed(parts, changes))

    def learn(self) -> float:
        """One step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.clock.learning_rate() * group["share"]
        hu, target, weight = self.batch(self.step)
        return descend(self, self.loss(self.network, windowed(hu), target, weight), AVERAGING)

    def averaged(self, batches: int) -> Any:
        """A copy with the averaged weights, and statistics over some batches that come later."""
        later = (windowed(self.batch(10_000_000 + step)[0]) for step in range(batches))
        return settled(self, later)

    def state(self) -> dict:
        """What a checkpoint holds."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
            "spent": self.clock.spent,
        }

    def restore(self, state: dict) -> None:
        """Go on where a checkpoint stands."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]
        self.step, self.clock.spent = state["step"], state["spent"]
        self.clock.steps = self.step


def parameter_groups(network: torch.nn.Module) -> list[dict[str, Any]]:
    """Parameters with their weight decay, and their share of the learning rate."""
    taught = {id(p) for p in getattr(network, "pretrained", list)()}
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for p in network.parameters():
        key = (PRETRAINED if id(p) in taught else 1.0, DECAY if p.ndim > 1 else 0.0)
        groups.setdefault(key, []).append(p)
    return [
        {"params": found, "share": share, "weight_decay": decay}
        for (share, decay), found in groups.items()
    ]


def write_atomically(path: Path, write) -> None:
    """Write beside a file and rename."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        write(file)
    os.replace(part, path)


def save(training: Training, output: Path) -> None:
    """Write a checkpoint."""
    write_atomically(output / "checkpoint.pt", lambda file: torch.save(training.state(), file))


def export(network: AttentionUNet, path: Path) -> None:
    """Write weights as ``LAYER/NUMBER`` for `make_bundle.py`."""
    named = {
        f"{layer}/{n}": weight
        for layer, weights in keras_weights(network).items()
        for n, weight in enumerate(weights)
    }
    write_atomically(path, lambda file: np.savez(file, **named))


def run(training: Training, output: Path, watch=None) -> None:
    """Train until the time is over."""
    losses, last, seen, n_seen = [], time.process_time(), time.monotonic(), 0
    threads = torch.get_num_threads()
    log = (output / "log.jsonl").open("a", encoding="utf-8")
    before = training.clock.size()
    while training.clock.share < 1:
        losses.append(training.learn())
        used, now = time.process_time(), time.monotonic()
        training.clock.spent += (used - last) / threads
        training.clock.steps = training.step
        last, n_seen = used, n_seen + BATCH
        changes = training.clock.size() != before
        if now - seen > CHECKPOINT_S or changes:
            line = {
                "step": training.step,
                "share": round(training.clock.share, 4),
                "size": before,
                "loss": round(float(np.mean(losses)), 4),
                "images_per_s": round(n_seen / (now - seen), 1),
            }
            if watch:
                line |= watch(training)
            log.write(json.dumps(line) + "\n")
            log.flush()
            save(training, output)
            before, losses, n_seen = training.clock.size(), [], 0
            seen, last = time.monotonic(), time.process_time()
    save(training, output)


def constants(module: Any) -> dict[str, Any]:
    """A module's settings as plain data."""
    return {
        name.lower(): value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, (int, float, tuple, np.ndarray, np.floating))
    }


def settings() -> dict[str, Any]:
    """What a card says of the recipe beside what is chosen on the command line."""
    return {
        "loss": "mixed",
        "batch_size": BATCH,
        "weight_decay": DECAY,
        "warm_up": WARM_UP,
        "clip_norm": 1.0,
        "schedule": "cosine",
        "averaging": AVERAGING,
        "side_weights": list(SIDES[1:]),
        "calibration_batches": STATISTICS,
        "policy": "mixed_bfloat16" if BFLOAT16 else "float32",
        "windows": [list(window) for window in WINDOWS],
        "augmentation": constants(changing),
        "mixing": constants(mixing),
    }


def main() -> None:
    """Train, and write the averaged weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slices", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=1.5)
    parser.add_argument("--hold-out", default="", help="patients that are not learnt from")
    parser.add_argument("--filters", type=int, default=16)
    parser.add_argument("--first-gate", type=int, default=1, help="finer connections have none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--stages", choices=STAGES, default="progressive")
    parser.add_argument("--start", type=Path, help="bundle whose weights to begin with")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--score", type=Path, help="pancreas-ct: score those held out on the way")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    held = [name for name in arguments.hold_out.split(",") if name]
    mixer = Mixer(arguments.slices, held)
    clock = Clock(arguments.hours * 3600, arguments.peak, STAGES[arguments.stages])
    torch.manual_seed(arguments.seed)
    gated = range(arguments.first_gate - 1, LEVELS)
    network = AttentionUNet(arguments.filters, len(WINDOWS), 0.2, gated=gated)
    training = Training(mixer, clock, arguments.seed, network, mixed_loss)
    if arguments.start:
        training.begin_with(arguments.start)
    if arguments.resume:
        state = torch.load(arguments.output / "checkpoint.pt", weights_only=True)
        training.restore(state)
    watch = None
    if arguments.score:
        from scoring import Scorer

        watch = Scorer(arguments.score, held)
    run(training, arguments.output, watch)
    network = training.averaged(STATISTICS)
    export(network, arguments.output / "weights.npz")
    about = {
        "steps": training.step,
        "hours": round(training.clock.spent / 3600, 2),
        "peak": arguments.peak,
        "seed": arguments.seed,
        "stages": arguments.stages,
        "first_gate": arguments.first_gate,
        "start": str(arguments.start) if arguments.start else None,
        "hold_out": held,
        "patients": mixer.patients(),
        "slices": int((mixer.kind == "patient").sum()),
        "crops": len(mixer.crops),
        "settings": settings(),
    }
    (arguments.output / "training.json").write_text(json.dumps(about), encoding="utf-8")


if __name__ == "__main__":
    main()
