"""Wrong masks of slices that a network was trained on, for `train_mend.py`.

    python research/mistakes.py FILE.npz BUNDLE OUT.npy --hold-out 0002,0006 [--never-saw RUN ...]

The network is disturbed until it errs as on patients it never saw: slices are turned, scaled,
moved, some mirrored, their intensity is changed, and noise is laid on the weights. RUN is what
`peers.py` trained, ``FOLDER/attention-fold1``: it makes the masks of the patients that it held out,
and is disturbed less, so that one patient's masks differ. Writes
probability from 0 to 255, (ROUNDS, slices, H, W), the slices' rows (``OUT.npy.rows.npy``), and how
many rounds are ready (``OUT.npy.rounds``).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import changing
from changing import Changes
from mixing import Part
from napari_pancreas_seg.model.bundle import load_bundle
from torch_network import AttentionUNet, begin_with, fast
from train_torch import WINDOWS, windowed

ROTATION, SCALE, STRETCH, SHIFT_MM = np.deg2rad(14), 0.16, 0.07, 14.0
MIRRORED, UPSIDE_DOWN = 0.1, 0.04
WEIGHT_NOISE = (0.0, 0.06, 0.12, 0.2)
LESS = 0.3
"""How much less a network is disturbed that never saw the patient."""
BATCH = 8


def network(bundle: Path) -> AttentionUNet:
    """The network of a bundle."""
    layers = {n.name: n.get_weights() for n in load_bundle(bundle).network().layers if n.weights}
    made = AttentionUNet(16, len(WINDOWS)).to(memory_format=torch.channels_last)
    begin_with(made, layers)
    return made.eval()


def of_run(run: Path) -> tuple[AttentionUNet, list[str]]:
    """A network that `peers.py` trained, and the patients whom it never saw."""
    made = AttentionUNet(16, len(WINDOWS)).to(memory_format=torch.channels_last)
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    made.load_state_dict(state["network"])
    about = json.loads(run.with_suffix(".json").read_text(encoding="utf-8"))
    return made.eval(), list(about["patients"])


def disturbed(given: AttentionUNet, sd: float, generator: torch.Generator) -> AttentionUNet:
    """A copy with noise on its kernels, in parts of each weight."""
    made = AttentionUNet(16, len(WINDOWS)).to(memory_format=torch.channels_last)
    made.load_state_dict(given.state_dict())
    with torch.no_grad():
        for name, kernel in made.named_parameters():
            if kernel.ndim == 4 and "head" not in name:
                kernel.mul_(1 + sd * torch.randn(kernel.shape, generator=generator))
    return made.eval()


def sampled(values: torch.Tensor, places: torch.Tensor, mm: float) -> torch.Tensor:
    """Values (n, 1, H, W) at places (n, h, w, 2), (y, x) in mm from their middle."""
    height, width = values.shape[-2:]
    scale = torch.tensor([2.0 / (width * mm), 2.0 / (height * mm)])
    return F.grid_sample(values, places.flip(-1) * scale, align_corners=False)


def grid(shape: tuple[int, int], mm: float) -> torch.Tensor:
    """Places (h, w, 2) of pixels, (y, x) in mm from their middle."""
    axes = [(torch.arange(n) - (n - 1) / 2) * mm for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


@torch.no_grad()
def mistaken(
    made: AttentionUNet, hu: np.ndarray, rng: np.random.Generator, much: float = 1.0
) -> np.ndarray:
    """Probability from 0 to 255 for slices (n, H, W), after each was disturbed so much."""
    n, shape = len(hu), hu.shape[1:]
    angle, scale = rng.normal(0, much * ROTATION, n), np.exp(rng.normal(0, much * SCALE, n))
    high, wide = np.exp(rng.normal(0, much * STRETCH, (2, n)))
    if much == 1:
        wide *= np.where(rng.random(n) < MIRRORED, -1, 1)
        high *= np.where(rng.random(n) < UPSIDE_DOWN, -1, 1)
    cos, sin = np.cos(angle), np.sin(angle)
    rows = np.stack([cos * high, -sin * wide, sin * high, cos * wide], -1).reshape(n, 2, 2)
    matrix = torch.from_numpy((rows * scale[:, None, None]).astype(np.float32))
    shift = torch.from_numpy(rng.normal(0, much * SHIFT_MM, (n, 1, 1, 2)).astype(np.float32))
    places = torch.einsum("nij,hwj->nhwi", matrix, grid(changing.FRAME, changing.FRAME_MM)) + shift
    seen = sampled(torch.from_numpy(hu[:, None].astype(np.float32)), places, 1.0)
    nothing = np.zeros(shape, np.float32)
    parts = [Part(each.astype(np.float32), nothing, nothing) for each in hu]
    seen = changing._intensity(seen, Changes.draw(rng, parts, geometry=1.0)) / 255
    with fast():
        probability = torch.sigmoid(made(windowed(seen))[0].float())
    back = torch.einsum("nij,nhwj->nhwi", torch.linalg.inv(matrix), grid(shape, 1.0)[None] - shift)
    found = sampled(probability, back, changing.FRAME_MM)[:, 0]
    return (found * 255).round().to(torch.uint8).numpy()


def main() -> None:
    """Write them, round by round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slices", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--hold-out", default="", help="patients of whom none are made")
    parser.add_argument("--never-saw", type=Path, nargs="*", default=[], metavar="RUN")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(asked.slices) as file:
        hu = file["hu"]
        held = np.isin(file["patient"], asked.hold_out.split(","))
        rows = np.flatnonzero((file["kind"] == "patient") & ~held)
        patients = file["patient"][rows]
    np.save(f"{asked.output}.rows.npy", rows)
    found = np.lib.format.open_memmap(
        asked.output, "w+", np.uint8, (asked.rounds, len(rows), *hu.shape[1:])
    )
    rng, generator = np.random.default_rng(asked.seed), torch.Generator().manual_seed(asked.seed)
    others = [of_run(run) for run in asked.never_saw]
    theirs = [np.isin(patients, held_out) for _, held_out in others]
    left = ~np.any(theirs, axis=0) if others else np.ones(len(rows), bool)
    makers = [(network(asked.bundle), left, 1.0)]
    makers += [(made, mine, LESS) for (made, _), mine in zip(others, theirs, strict=True)]
    for ready in range(asked.rounds):
        for made, mine, much in makers:
            order = rng.permutation(np.flatnonzero(mine))
            for number, start in enumerate(range(0, len(order), BATCH)):
                at = np.sort(order[start : start + BATCH])
                noisy = disturbed(made, much * WEIGHT_NOISE[number % len(WEIGHT_NOISE)], generator)
                found[ready, at] = mistaken(noisy, hu[rows[at]], rng, much)
        found.flush()
        Path(f"{asked.output}.rounds").write_text(str(ready + 1), encoding="utf-8")


if __name__ == "__main__":
    main()
