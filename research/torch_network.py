"""The project's Attention U-Net as a PyTorch module, for trainings on CPUs.

Layer for layer the network of `napari_pancreas_seg.model.attention_unet.build`; `keras_weights`
gives its weights under the names and in the order of that network's layers, `begin_with` takes
them back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

LEVELS = 4
EPSILON, MOMENTUM = 1e-3, 0.01  # of Keras's batch normalisation; PyTorch counts the other way
BFLOAT16 = torch.cpu._is_avx512_bf16_supported()
"""Whether the processor has it: where it does not, a step takes ten times as long in it."""


def fast() -> torch.autocast:
    """Compute in bfloat16 where that is fast, else in float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=BFLOAT16)


class Block(nn.Module):
    """Twice convolution, ReLU and batch normalisation; dropout at the end."""

    def __init__(self, channels: int, filters: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, filters, 3, padding=1)
        self.norm_1 = nn.BatchNorm2d(filters, EPSILON, MOMENTUM)
        self.conv_2 = nn.Conv2d(filters, filters, 3, padding=1)
        self.norm_2 = nn.BatchNorm2d(filters, EPSILON, MOMENTUM)
        self.dropout = dropout
        for conv in (self.conv_1, self.conv_2):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels, H, W) to (B, filters, H, W)."""
        x = self.norm_1(F.relu(self.conv_1(x)))
        x = self.norm_2(F.relu(self.conv_2(x)))
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Gate(nn.Module):
    """The article's additive attention gate."""

    def __init__(self, skip: int, gating: int, filters: int, bias: float = 0.0) -> None:
        super().__init__()
        self.project_gating = nn.Conv2d(gating, filters, 1)
        self.project_skip = nn.Conv2d(skip, filters, 1, stride=2)
        self.coefficients = nn.Conv2d(filters, 1, 1)
        for conv in (self.project_gating, self.project_skip, self.coefficients):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)
        nn.init.constant_(self.coefficients.bias, bias)

    def forward(self, skip: torch.Tensor, gating: torch.Tensor) -> torch.Tensor:
        """The weighed skip connection."""
        together = F.relu(self.project_gating(gating) + self.project_skip(skip))
        alpha = torch.sigmoid(self.coefficients(together))
        return skip * F.interpolate(alpha, scale_factor=2, mode="bilinear", align_corners=False)


class Open(nn.Module):
    """In the place of a gate: a skip connection as it is."""

    def forward(self, skip: torch.Tensor, gating: torch.Tensor) -> torch.Tensor:
        """The skip connection."""
        return skip


class AttentionUNet(nn.Module):
    """Returns log-odds at full size, and of the decoder's second and third finest levels.

    `gated` are the skip connections with a gate, 0 is the finest; `gate_bias` is how open gates
    begin, in log-odds.
    """

    def __init__(
        self,
        filters: int,
        channels: int,
        dropout: float = 0.0,
        head_bias: float = -3.0,
        gated: Sequence[int] = range(LEVELS),
        gate_bias: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [filters * 2**level for level in range(LEVELS + 1)]
        inputs = [channels, *widths[:-1]]
        self.encoder = nn.ModuleList(
            Block(i, o) for i, o in zip(inputs[:LEVELS], widths[:LEVELS], strict=True)
        )
        self.bottleneck = Block(widths[-2], widths[-1], dropout)
        self.gates = nn.ModuleList(
            Gate(widths[n], widths[n + 1], 2 * filters, gate_bias) if n in gated else Open()
            for n in range(LEVELS)
        )
        self.decoder = nn.ModuleList(
            Block(widths[n] + widths[n + 1], widths[n]) for n in range(LEVELS)
        )
        self.heads = nn.ModuleList(nn.Conv2d(widths[n], 1, 1) for n in range(3))
        for head in self.heads:
            nn.init.xavier_uniform_(head.weight)
            nn.init.constant_(head.bias, head_bias)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, channels, H, W) to three (B, 1, H / 2ⁿ, W / 2ⁿ), finest first."""
        skips = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottleneck(x)
        found = []
        for n in reversed(range(LEVELS)):
            skip = self.gates[n](skips[n], x)
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = self.decoder[n](torch.cat([skip, x], dim=1))
            if n < len(self.heads):
                found.append(self.heads[n](x))
        return found[::-1]


def keras_weights(network: AttentionUNet) -> dict[str, list[np.ndarray]]:
    """Weights by the name of the Keras network's layer; side heads are left out."""
    return dict(_layers(network))


def _layers(network: AttentionUNet) -> Iterator[tuple[str, list[np.ndarray]]]:
    names = [(f"encoder_{n + 1}", b) for n, b in enumerate(network.encoder)]
    names += [("bottleneck", network.bottleneck)]
    names += [(f"decoder_{n + 1}", b) for n, b in enumerate(network.decoder)]
    for name, block in names:
        for i in (1, 2):
            yield f"{name}_conv_{i}", _conv(getattr(block, f"conv_{i}"))
            yield f"{name}_norm_{i}", _norm(getattr(block, f"norm_{i}"))
    for n, gate in enumerate(network.gates):
        if isinstance(gate, Open):
            continue
        parts = (gate.project_gating, gate.project_skip, gate.coefficients)
        yield f"gate_{n + 1}", [w for part in parts for w in _conv(part)]
    yield "head_conv", _conv(network.heads[0])


def begin_with(network: AttentionUNet, given: Mapping[str, list[np.ndarray]]) -> None:
    """Set all weights but the side heads' to those of `keras_weights`."""
    names = {f"encoder_{n + 1}": b for n, b in enumerate(network.encoder)}
    names |= {f"decoder_{n + 1}": b for n, b in enumerate(network.decoder)}
    names["bottleneck"] = network.bottleneck
    with torch.no_grad():
        for name, block in names.items():
            for i in (1, 2):
                _fill([getattr(block, f"conv_{i}")], given[f"{name}_conv_{i}"])
                _fill([getattr(block, f"norm_{i}")], given[f"{name}_norm_{i}"])
        for n, gate in enumerate(network.gates):
            if isinstance(gate, Open):
                continue
            parts = [gate.project_gating, gate.project_skip, gate.coefficients]
            _fill(parts, given[f"gate_{n + 1}"])
        _fill([network.heads[0]], given["head_conv"])


def _fill(layers: list[nn.Module], values: list[np.ndarray]) -> None:
    tensors = []
    for layer in layers:
        tensors += [layer.weight, layer.bias]
        if isinstance(layer, nn.BatchNorm2d):
            tensors += [layer.running_mean, layer.running_var]
    for tensor, value in zip(tensors, values, strict=True):
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(value)))


def _conv(layer: nn.Conv2d) -> list[np.ndarray]:
    return [_numpy(layer.weight).transpose(2, 3, 1, 0), _numpy(layer.bias)]


def _norm(layer: nn.BatchNorm2d) -> list[np.ndarray]:
    return [_numpy(v) for v in (layer.weight, layer.bias, layer.running_mean, layer.running_var)]


def _numpy(tensor: Any) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().float().numpy())
