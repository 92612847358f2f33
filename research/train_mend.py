"""Train the network that mends a slice by strokes, in PyTorch.

    python research/train_mend.py FILE.npz --mistakes M.npy --neighbours N.npz -o RUN --start BUNDLE

Slices are those of `prepare_slices.py`, mistakes those of `mistakes.py`, neighbours those of
`true_neighbours.py`; strokes are drawn by `benchmarks/strokes.py`, which must be importable. The
learning rate stays at its peak until the last part, which `--finish` names in minutes: then it
falls to 0. `--resume` goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import changing
from changing import Changes
from mixing import Mixer, Part, overlap
from napari_pancreas_seg.inference.mend import FADE_MM, GUIDES, MARGIN_MM, REACH_MM
from strokes import dice, draw_stroke
from torch_network import AttentionUNet, begin_with, fast
from train_torch import (
    DECAY,
    WINDOWS,
    descend,
    export,
    loss_at_levels,
    settled,
    windowed,
    write_atomically,
)

FRAME = (128, 160)
SMALLER, SMALLER_UNTIL = (96, 128), 0.3
"""The frame until that share of the last part: the same scale, and more steps in the time."""
BATCH = 8
AVERAGING = 0.997
WARM_UP = 60
GEOMETRY = 0.9
DULL = 0.6
"""Share of pictures that tell less than those of patients who were learnt from do: else the
network trusts what it knows by heart more than strokes and neighbours."""
PATIENT, CROP, ALONE, NEGATIVE = 0.56, 0.32, 0.05, 0.03  # what is left gets another's piece
POOR, POOR_DICE = 0.5, (0.15, 0.75)
"""Share of patients' slices with a mask that is wrong by so much: most masks are good or empty."""
PRIOR, PRIOR_ALONE = 0.62, 0.55
LOOK, LOOK_MM = 0.3, (2.0, 8.0)
"""Share of wrong masks that are given as those of a neighbour so far away: a second look."""
SOFT, SOFTER = 0.7, (1.2, 3.0)
"""Share of those in which probability is given in place of a mask, and by how much its log-odds are
divided: networks are too sure."""
ROUNDS = (0.5, 0.3, 0.15, 0.05)
NEAR_STROKE = 1.0
CHECKPOINT_S, STATISTICS = 90, 100
changing.FRAME_MM, changing.FIELD, changing.CUT = 1.0, 0.0, 0.0


def use_frame(size: tuple[int, int]) -> None:
    """From now on, batches have so many pixels."""
    global FRAME
    FRAME = changing.FRAME = size


class Scenes:
    """Draws slices with masks that are wrong, and masks of neighbours."""

    def __init__(self, slices: Path, mistakes: Path, neighbours: Path, held: list[str]) -> None:
        self.mixer = Mixer(slices, held)
        with np.load(slices) as file:
            kept = ~np.isin(file["patient"], held)
        place = np.cumsum(kept) - 1
        self.mistakes = np.load(mistakes, mmap_mode="r")
        rows = np.load(f"{mistakes}.rows.npy")
        self.mistaken = {int(place[row]): n for n, row in enumerate(rows) if kept[row]}
        self.poor = self._poor()
        self.of_slices = Neighbours(neighbours, "")
        self.of_crops = Neighbours(neighbours, "crop_")
        self.row_of = np.flatnonzero(kept)

    def draw(self, rng: np.random.Generator) -> tuple[Part, Any, Any]:
        """A slice; a wrong mask of it from 0 to 255 or None; a neighbour's mask and mm or None."""
        chance = rng.random()
        mixer = self.mixer
        if chance < CROP:
            part = mixer._with_crop(rng)
            return part, None, self._beside_crop(part, rng)
        if chance < CROP + ALONE:
            return mixer._alone(rng), None, None
        if chance < CROP + ALONE + NEGATIVE:
            return mixer._whole(mixer._row(rng, "negative")), None, None
        row = mixer._row(rng, "patient")
        part = mixer._whole(row)
        if chance > CROP + ALONE + NEGATIVE + PATIENT:
            return mixer._with_piece(part, rng), None, None
        number, wrong = rng.integers(len(self.mistakes)), None
        if rng.random() < POOR:
            number, row = self.poor[rng.integers(len(self.poor))]
            part = mixer._whole(row)
        if row in self.mistaken:
            wrong = np.asarray(self.mistakes[number, self.mistaken[row]], np.float32)
        neighbour = self.of_slices.draw(int(self.row_of[row]), rng)
        return part, wrong, neighbour and (neighbour[0] * np.float32(255), neighbour[1])

    def _poor(self) -> list[tuple[int, int]]:
        """Round and row of the mistakes that are poor masks."""
        found = []
        for number in range(len(self.mistakes)):
            for row, at in self.mistaken.items():
                mask, truth = self.mistakes[number, at] > 127, self.mixer.target[row] > 127
                if POOR_DICE[0] < dice(mask, truth) < POOR_DICE[1]:
                    found.append((number, row))
        return found

    def _beside_crop(self, part: Part, rng: np.random.Generator) -> Any:
        """A neighbour of the crop that was pasted in, with what is left of the other's gland."""
        row, centre = part.crop
        found = self.of_crops.draw(row, rng)
        if found is None:
            return None
        mask, mm = found
        where, here = overlap(part.hu.shape, mask.shape, centre)
        own, its = overlap(part.hu.shape, self.mixer.crops[row][1].shape, centre)
        left = part.target > 127
        left[own] &= self.mixer.crops[row][1][its] <= 127
        left[where] |= mask[here]
        return left * np.float32(255), mm


class Neighbours:
    """Masks of the slices beside those of a file, from `true_neighbours.py`."""

    def __init__(self, path: Path, prefix: str) -> None:
        with np.load(path) as file:
            bits, end, self.shape, self.mm, rows = (
                file[prefix + name] for name in ("bits", "end", "shape", "mm", "row")
            )
        self.bits = np.split(bits, end[:-1])
        self.of: dict[int, list[int]] = {}
        for n, row in enumerate(rows):
            self.of.setdefault(int(row), []).append(n)

    def draw(self, row: int, rng: np.random.Generator) -> tuple[np.ndarray, float] | None:
        """A mask and how many mm it is away, or None."""
        if row not in self.of:
            return None
        near = np.array(self.of[row])
        share = 1 / (1 + self.mm[near])  # one carries to the next slice more often
        n = rng.choice(near, p=share / share.sum())
        shape = self.shape[n]
        mask = np.unpackbits(self.bits[n])[: shape.prod()].astype(bool).reshape(shape)
        return mask, float(self.mm[n])


def middle_of(part: Part, wrong: Any, rng: np.random.Generator) -> np.ndarray:
    """Where the frame's middle lies, as the program lays it about a stroke; from the slice's."""
    gland, shape = part.target > 127, np.array(part.hu.shape)
    seen = gland if wrong is None else wrong > 127
    for places in (gland != seen, gland, part.weight > 0.5):
        if (found := np.argwhere(places)).size:
            break
    point = found[rng.integers(len(found))]
    near = np.argwhere(gland | seen)
    near = near[(np.abs(near - point) < REACH_MM).all(axis=1)] if near.size else near
    middle = (near.min(0) + near.max(0)) / 2 if near.size else point
    free = np.array(FRAME) / 2 - MARGIN_MM - 4
    return np.clip(middle, point - free, point + free) - (shape - 1) / 2 + rng.normal(0, 5, 2)


def field(rng: np.random.Generator, n: int, sd: np.ndarray) -> torch.Tensor:
    """Smooth displacements (n, h, w, 2) in mm of such standard deviations."""
    total = torch.zeros(n, 2, *FRAME)
    for size, share in (((4, 5), 0.8), ((10, 13), 0.6)):
        knots = rng.normal(0, 1, (n, 2, *size)) * (share * sd)[:, None, None, None]
        total += F.interpolate(
            torch.from_numpy(knots.astype(np.float32)), FRAME, mode="bilinear", align_corners=True
        )
    return total.permute(0, 2, 3, 1)


def warped(values: torch.Tensor, moves: torch.Tensor) -> torch.Tensor:
    """Values (n, 1, h, w) displaced by mm."""
    rows, columns = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in FRAME), indexing="ij")
    places = torch.stack([rows, columns], -1)[None] + moves
    scale = torch.tensor([2.0 / FRAME[1], 2.0 / FRAME[0]])
    return F.grid_sample(values, places.flip(-1) * scale, align_corners=False)


def spoilt(gland: np.ndarray, hu: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask (h, w) with pieces cut out and false ones added."""
    mask = gland.copy()
    rows, columns = np.mgrid[: FRAME[0], : FRAME[1]]

    def ellipse(centre: np.ndarray, low: float, high: float) -> np.ndarray:
        a, b, angle = rng.uniform(low, high), rng.uniform(low, high), rng.uniform(0, np.pi)
        y, x = rows - centre[0], columns - centre[1]
        along, across = y * np.sin(angle) + x * np.cos(angle), y * np.cos(angle) - x * np.sin(angle)
        return (along / a) ** 2 + (across / b) ** 2 < 1

    there = np.argwhere(gland)
    for _ in range(rng.choice(3, p=(0.25, 0.5, 0.25)) if len(there) else 0):
        mask &= ~ellipse(there[rng.integers(len(there))], 4, 20)
    centre = there.mean(0) if len(there) else np.array(FRAME) / 2
    for _ in range(rng.choice(3, p=(0.4, 0.4, 0.2))):
        about = there[rng.integers(len(there))] if len(there) and rng.random() < 0.6 else centre
        mask |= ellipse(about + rng.normal(0, 14, 2), 4, 14) & (hu > 0.12)
    return mask


def dulled(hu: torch.Tensor, target: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Less contrast, coarse noise, and patches that show no gland, in some pictures."""
    n = len(hu)
    coarse = torch.zeros_like(hu)
    for size in ((22, 27), (43, 54)):
        knots = rng.normal(0, 1, (n, 1, *size)).astype(np.float32)
        coarse += F.interpolate(torch.from_numpy(knots), FRAME, mode="bicubic")
    squeeze = torch.from_numpy(rng.uniform(0.35, 1, (n, 1, 1, 1)).astype(np.float32))
    noise = torch.from_numpy(rng.uniform(0, 0.09, (n, 1, 1, 1)).astype(np.float32))
    tissue = (hu > 0.12) & (hu < 0.9)
    middle = 0.33
    dull = torch.where(tissue, middle + (hu - middle) * squeeze + noise * coarse, hu).clamp(0, 1)
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in FRAME), indexing="ij")
    for i in range(n):
        places = np.argwhere(target[i, 0].numpy() > 0.3)
        for _ in range(rng.integers(3) if len(places) else 0):
            y, x = places[rng.integers(len(places))] + rng.normal(0, 6, 2)
            radius, value = rng.uniform(4, 13), float(rng.uniform(0.15, 0.5))
            away = ((rows - y) ** 2 + (columns - x) ** 2).sqrt()
            share = torch.sigmoid((radius - away) / 1.5) * float(rng.uniform(0.6, 1))
            dull[i, 0] += share * (value + 0.04 * coarse[i, 0] - dull[i, 0])
    chosen = torch.from_numpy(rng.random((n, 1, 1, 1)) < DULL)
    return torch.where(chosen, dull.clamp(0, 1), hu)


class Batch:
    """Pictures, targets and guides in the frame, (B, 1, h, w); strokes grow round by round."""

    def __init__(self, scenes: Scenes, rng: np.random.Generator) -> None:
        drawn = [scenes.draw(rng) for _ in range(BATCH)]
        parts = [part for part, _, _ in drawn]
        changes = Changes.draw(rng, parts, geometry=GEOMETRY)
        middles = [middle_of(part, wrong, rng) for part, wrong, _ in drawn]
        changes.shift = torch.from_numpy(np.array(middles, np.float32))
        pictures = np.zeros((BATCH, 5, *parts[0].hu.shape), np.float32)
        for i, (part, wrong, neighbour) in enumerate(drawn):
            pictures[i, :3] = part.hu, part.target, part.weight
            if wrong is not None:
                pictures[i, 3] = wrong
            if neighbour is not None:
                pictures[i, 4] = neighbour[0]
        places, shape = changing._places(changes), pictures.shape[-2:]
        grid = places.flip(-1) * torch.tensor([2.0 / shape[1], 2.0 / shape[0]])
        seen = F.grid_sample(torch.from_numpy(pictures), grid, align_corners=False)
        self.target, self.weight = seen[:, 1:2] / 255, seen[:, 2:3].clamp(0, 1)
        hu = changing._fat(seen[:, :1], self.target, changes)
        self.hu = dulled(changing._intensity(hu, changes) / 255, self.target, rng)
        self.gland = (self.target[:, 0] > 0.5).numpy()
        self.known = (self.weight[:, 0] > 0.5).numpy()
        self._present(drawn, seen[:, 3:4] / 255, rng)
        self._prior(drawn, seen[:, 4:5] / 255, rng)
        self.strokes = np.zeros((2, BATCH, *FRAME), bool)
        alone = self.fade > 0
        self.silent = alone & (rng.random(BATCH) < PRIOR_ALONE)
        self._look(rng)
        self.present[self.silent] = False  # as the program asks for a proposal
        self.draw(rng)

    def _present(self, drawn: list, found: torch.Tensor, rng: np.random.Generator) -> None:
        sd = rng.uniform(0.3, 3.5, BATCH) * (rng.random(BATCH) < 0.8)
        moved = F.avg_pool2d(warped(self.target, field(rng, BATCH, sd)), 3, 1, 1)[:, 0].numpy()
        self.present = np.zeros((BATCH, *FRAME), bool)
        self.likely: dict[int, torch.Tensor] = {}
        for i, (_, wrong, _) in enumerate(drawn):
            chance = rng.random()
            if wrong is not None and chance < 0.62:
                threshold = rng.uniform(0.25, 0.7)
                self.present[i] = found[i, 0].numpy() > threshold
                odds = torch.logit(found[i, 0], 1 / 512) - math.log(threshold / (1 - threshold))
                self.likely[i] = torch.sigmoid(odds / rng.uniform(*SOFTER))
            elif chance < 0.87:
                gland = moved[i] > rng.uniform(0.25, 0.75)
                self.present[i] = spoilt(gland, self.hu[i, 0].numpy(), rng)

    def _prior(self, drawn: list, real: torch.Tensor, rng: np.random.Generator) -> None:
        mm = rng.uniform(0.7, 8, BATCH)
        mask = warped(self.target, field(rng, BATCH, 0.5 + 1.1 * mm))
        mask = (mask > torch.from_numpy(rng.uniform(0.3, 0.7, (BATCH, 1, 1, 1)))).float()
        given = rng.random(BATCH) < PRIOR
        for i, (part, _, neighbour) in enumerate(drawn):
            if neighbour is not None and rng.random() < 0.8:
                mask[i], mm[i] = (real[i] > 0.5).float(), neighbour[1]
                given[i] |= rng.random() < 0.25
            whole = part.crop is not None and neighbour is not None
            given[i] &= bool(mask[i].any()) and (whole or bool((part.weight > 0.5).all()))
        self.fade = np.exp(-mm / FADE_MM) * given
        self.prior = (2 * mask - 1) * torch.from_numpy(self.fade.astype(np.float32)).reshape(
            -1, 1, 1, 1
        )

    def _look(self, rng: np.random.Generator) -> None:
        """Give some wrong masks, or their probability, as a neighbour's, and nothing else."""
        for i in range(BATCH):
            if rng.random() < LOOK and self.present[i].any():
                fade = np.exp(-rng.uniform(*LOOK_MM) / FADE_MM)
                mask = torch.from_numpy(self.present[i]).float()
                if i in self.likely and rng.random() < SOFT:
                    mask = self.likely[i]
                self.prior[i, 0] = float(fade) * (2 * mask - 1)
                self.silent[i] = True

    def draw(self, rng: np.random.Generator) -> None:
        """One more stroke in each picture but those that only a neighbour's mask guides."""
        for i in np.flatnonzero(~self.silent):
            known, present = self.known[i], self.present[i]
            gland = self.gland[i] & known
            if ((present & known) ^ gland).sum() < 4:
                present = np.zeros_like(present)  # all is right: a stroke that says so
            drawn, adds = draw_stroke(present & known, gland, (1.0, 1.0), rng)
            self.strokes[int(not adds), i] |= drawn
            self.strokes[int(adds), i] &= ~drawn

    def inputs(self) -> torch.Tensor:
        """Channels as `napari_pancreas_seg.inference.mend` gives them."""
        given = [self.present, self.strokes[0], self.strokes[1]]
        guides = [torch.from_numpy(each).float()[:, None] for each in given]
        seen = torch.cat([windowed(self.hu), *guides, self.prior], 1)
        return seen.contiguous(memory_format=torch.channels_last)

    def take(self, logits: torch.Tensor) -> None:
        """Make an answer the present mask."""
        self.present = (logits[:, 0].float() > 0).numpy()
        self.present = (self.present | self.strokes[0]) & ~self.strokes[1]

    def emphasis(self) -> torch.Tensor:
        """Weight of each pixel: more near strokes."""
        near = torch.from_numpy(self.strokes.any(0)).float()[:, None]
        return self.weight * (1 + NEAR_STROKE * F.max_pool2d(near, 25, 1, 12))


class Training:
    """Network, optimizer and averages."""

    def __init__(self, scenes: Scenes, seed: int, peak: float) -> None:
        torch.manual_seed(seed)
        self.scenes, self.seed, self.peak, self.step = scenes, seed, peak, 0
        network = AttentionUNet(16, len(WINDOWS) + GUIDES, 0.1)
        self.network = network.to(memory_format=torch.channels_last)
        groups = [
            {"params": [p for p in self.network.parameters() if p.ndim > 1], "weight_decay": DECAY},
            {"params": [p for p in self.network.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, peak, fused=True)
        self.average = [p.detach().clone() for p in self.network.parameters()]

    def begin_with(self, bundle: Path) -> None:
        """Take a bundle's weights; a network that segments does not see the guides yet."""
        from napari_pancreas_seg.model.bundle import SEGMENT, load_bundle

        card = json.loads((bundle / "card.json").read_text(encoding="utf-8"))
        given = load_bundle(bundle, card.get("task", SEGMENT))
        layers = {n.name: n.get_weights() for n in given.network().layers}
        kernel, bias = layers["encoder_1_conv_1"]
        blind = np.zeros(
            (3, 3, len(WINDOWS) + GUIDES - kernel.shape[2], kernel.shape[-1]), kernel.dtype
        )
        layers["encoder_1_conv_1"] = [np.concatenate([kernel, blind], axis=2), bias]
        begin_with(self.network, layers)
        self.average = [p.detach().clone() for p in self.network.parameters()]

    def batch(self, step: int) -> Batch:
        """A function of seed and step, and of the network if it answers first."""
        rng = np.random.default_rng([self.seed, step])
        batch = Batch(self.scenes, rng)
        for _ in range(rng.choice(len(ROUNDS), p=ROUNDS)):
            with torch.no_grad(), fast():
                batch.take(self.network(batch.inputs())[0])
            batch.draw(rng)
        return batch

    def learn(self, share: float) -> float:
        """One step at a share of the peak's learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak * share * min(1, (1 + self.step) / WARM_UP)
        batch = self.batch(self.step)
        with fast():
            outputs = self.network(batch.inputs())
        loss = loss_at_levels(outputs, batch.target, batch.emphasis())
        return descend(self, loss, AVERAGING)

    def averaged(self, batches: int) -> AttentionUNet:
        """A copy with the averaged weights, and statistics over some batches that come later."""
        later = (self.batch(10_000_000 + step).inputs() for step in range(batches))
        return settled(self, later)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint stands."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step = state["average"], state["step"]


def save(training: Training, output: Path) -> None:
    """Write a checkpoint."""
    write_atomically(output / "checkpoint.pt", lambda file: torch.save(training.state(), file))


def run(training: Training, output: Path, finish_s: float, steps: int) -> None:
    """Train to the end of the last part, or until stopped."""
    log = (output / "log.jsonl").open("a", encoding="utf-8")
    begun = seen = time.monotonic()
    full = FRAME
    losses: list[float] = []
    while training.step < steps:
        spent = (time.monotonic() - begun) / finish_s if finish_s else 0.0
        if spent >= 1:
            break
        use_frame(SMALLER if spent < SMALLER_UNTIL else full)
        losses.append(training.learn(0.5 * (1 + math.cos(math.pi * spent))))
        if (now := time.monotonic()) - seen > CHECKPOINT_S:
            per_s = round(BATCH * len(losses) / (now - seen), 2)
            line = {"step": training.step, "loss": round(float(np.mean(losses)), 4), "per_s": per_s}
            log.write(json.dumps(line) + "\n")
            log.flush()
            save(training, output)
            losses, seen = [], now
    use_frame(full)
    save(training, output)


def main() -> None:
    """Train, and write the averaged weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slices", type=Path)
    parser.add_argument("--mistakes", type=Path, required=True)
    parser.add_argument("--neighbours", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True, help="bundle to begin with")
    parser.add_argument("--hold-out", default="", help="patients that are not learnt from")
    parser.add_argument("--finish", type=float, default=0.0, help="minutes of the last part")
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peak", type=float, default=1e-3)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--export", action="store_true", help="write the weights, train no more")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    use_frame(FRAME)
    asked.output.mkdir(parents=True, exist_ok=True)
    held = [name for name in asked.hold_out.split(",") if name]
    scenes = Scenes(asked.slices, asked.mistakes, asked.neighbours, held)
    training = Training(scenes, asked.seed, asked.peak)
    training.begin_with(asked.start)
    if asked.resume or asked.export:
        training.restore(torch.load(asked.output / "checkpoint.pt", weights_only=True))
    if not asked.export:
        run(training, asked.output, 60 * asked.finish, asked.steps)
    export(training.averaged(STATISTICS), asked.output / "weights.npz")
    about = {
        "steps": training.step,
        "hold_out": held,
        "patients": scenes.mixer.patients(),
        "settings": {
            **{"batch_size": BATCH, "peak": asked.peak, "averaging": AVERAGING, "seed": asked.seed},
            **{"last_part_minutes": asked.finish, "rounds": ROUNDS, "prior": PRIOR},
            **{"look": LOOK, "look_mm": LOOK_MM, "soft": SOFT, "softer": SOFTER},
            **{"smaller_frame": SMALLER, "smaller_until": SMALLER_UNTIL},
            **{"geometry": GEOMETRY, "dull": DULL, "poor": POOR, "poor_dice": POOR_DICE},
        },
    }
    (asked.output / "training.json").write_text(json.dumps(about), encoding="utf-8")


if __name__ == "__main__":
    main()
