"""The paper's ResNets for ImageNet at 128 pixels: Tables 8 to 13 (appendix S).

As in the authors' code, where the tables are silent: every block has a 1x1 convolution in its
shortcut, global pooling is a sum, all layers have biases that start at 0, and weights start uniform
with variance ``s / fan`` (fan: the mean of fan-in and fan-out), s = 2 for the blocks' 3x3
convolutions and 1 for all others.

At other resolutions, which the paper does not have, there is one block per doubling above 4 pixels:
the narrow ones of Tables 8 and 10 stay, the wide ones go first.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ResNetDiscriminator", "ResNetGenerator"]

#: Side of the smallest feature map.
BASE = 4


def _channels(resolution: int, width: float) -> list[int]:
    """Channels from the finest block to the coarsest: 64, 128 .. 1024 at 128 pixels."""
    blocks = int(math.log2(resolution // BASE))
    return [max(1, round(64 * 2**i * width)) for i in range(blocks)]


def _conv(c_in: int, c_out: int, kernel: int, gain: float) -> nn.Conv2d:
    conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2)
    nn.init.xavier_uniform_(conv.weight, gain=math.sqrt(gain))
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def _linear(n_in: int, n_out: int) -> nn.Linear:
    linear = nn.Linear(n_in, n_out)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class UpBlock(nn.Module):
    """Table 9, ResNet-up: ``[n, c_in, h, w]`` to ``[n, c_out, 2h, 2w]``."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(c_in), _conv(c_in, c_out, 3, 2)
        self.bn2, self.conv2 = nn.BatchNorm2d(c_out), _conv(c_out, c_out, 3, 2)
        self.shortcut = _conv(c_in, c_out, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.interpolate(F.relu(self.bn1(x)), scale_factor=2.0))
        y = self.conv2(F.relu(self.bn2(y)))
        return y + self.shortcut(F.interpolate(x, scale_factor=2.0))


class DownBlock(nn.Module):
    """Tables 11 to 13: ``[n, c_in, h, w]`` to ``[n, c_out, h/2, w/2]``.

    Args:
        c_in: channels of the input.
        c_out: channels of the output.
        first: Table 12, ResNet-first: no ReLU on the images, and a shortcut that pools first.
        down: if False, Table 13: no pooling.
    """

    def __init__(self, c_in: int, c_out: int, *, first: bool = False, down: bool = True) -> None:
        super().__init__()
        self.first, self.down = first, down
        self.conv1, self.conv2 = _conv(c_in, c_out, 3, 2), _conv(c_out, c_out, 3, 2)
        self.shortcut = _conv(c_in, c_out, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if not self.down:
            return y + self.shortcut(x)
        if self.first:
            return F.avg_pool2d(y, 2) + self.shortcut(F.avg_pool2d(x, 2))
        return F.avg_pool2d(y, 2) + F.avg_pool2d(self.shortcut(x), 2)


class ResNetGenerator(nn.Module):
    """Table 8: a fully connected layer, ResNet-up blocks and a convolution.

    Args:
        resolution: side of the images, a power of two.
        channels: of the images.
        width: factor of all other numbers of channels.
    """

    z_dim = 128
    latent = "normal"  # z ~ N(0, 1)

    def __init__(self, resolution: int = 128, channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        sizes = _channels(resolution, width)[::-1]
        self.fc = _linear(self.z_dim, BASE**2 * sizes[0])
        self.blocks = nn.ModuleList(
            UpBlock(a, b) for a, b in zip([sizes[0], *sizes], sizes, strict=False)
        )
        self.bn, self.last = nn.BatchNorm2d(sizes[-1]), _conv(sizes[-1], channels, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.fc(z).unflatten(1, (-1, BASE, BASE))
        for block in self.blocks:
            x = block(x)
        return self.last(F.relu(self.bn(x))).tanh()


class ResNetDiscriminator(nn.Module):
    """Table 10: ResNet-first, ResNet-down and ResNet blocks, a sum over pixels, fully connected.

    Args:
        resolution: side of the images, a power of two.
        channels: of the images.
        width: factor of all other numbers of channels.
    """

    unit = 1.0  # the paper's pixels are in [-1, 1], as ours

    def __init__(self, resolution: int = 128, channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        sizes = _channels(resolution, width)
        blocks = [DownBlock(channels, sizes[0], first=True)]
        blocks += [DownBlock(a, b) for a, b in zip(sizes, sizes[1:], strict=False)]
        blocks.append(DownBlock(sizes[-1], sizes[-1], down=False))
        self.blocks = nn.ModuleList(blocks)
        self.fc = _linear(sizes[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.fc(F.relu(x).sum((2, 3)))
