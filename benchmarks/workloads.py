"""What is measured: the discriminators of the BSSN paper, as weights, gradients and vectors.

A :class:`Case` is one workload on one device. All contenders start from its weights and its
vectors, and pull back its gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["WORKLOADS", "Case", "Workload", "make_case", "normalized_layers"]

#: Power iterations behind the initial vectors; torch's warm-up.
WARM_UP = 15


def cnn_discriminator(width: int = 64) -> nn.Module:
    """Table 3 of the paper at 32x32; ``width`` channels in the first layer."""
    model = nn.Sequential()
    channels = 3
    for scale, kernel, stride in (
        (1, 3, 1), (1, 4, 2), (2, 3, 1), (2, 4, 2), (4, 3, 1), (4, 4, 2), (8, 3, 1),
    ):  # fmt: skip
        model.append(nn.Conv2d(channels, scale * width, kernel, stride, padding=1))
        model.append(nn.LeakyReLU(0.1))
        channels = scale * width
    return model.extend([nn.Flatten(), nn.Linear(channels * 16, 1)])


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a learned 1x1 shortcut (Tables 11 to 13)."""

    def __init__(self, channels: int, out: int, *, first: bool = False, down: bool = True) -> None:
        super().__init__()
        hidden = out if first else channels
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden, out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, out, 1)
        self.first, self.down = first, down

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        x = self.shortcut(x)
        return F.avg_pool2d(h + x, 2) if self.down else h + x


class ResNetDiscriminator(nn.Module):
    """Table 10 at 128x128: six residual blocks, global sum, one linear layer."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.blocks = nn.Sequential()
        channels = 3
        for i, scale in enumerate((1, 2, 4, 8, 16, 16)):
            self.blocks.append(ResidualBlock(channels, scale * width, first=i == 0, down=i < 5))
            channels = scale * width
        self.linear = nn.Linear(channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.blocks(x)).sum(dim=(2, 3)))


def biggan_pair(width: int = 96) -> nn.Module:
    """Layers of the sizes of BigGAN's generator and discriminator at 128x128 (Brock et al. 2019,
    appendix B), class embeddings as linear layers.
    """
    w, classes, condition = width, 1000, 148  # a chunk of 20 latents and 128 shared features
    layers = [nn.Linear(20, 16 * 16 * w), nn.Linear(classes, 128), nn.Conv2d(w, 3, 3)]
    for a, b in ((16, 16), (16, 8), (8, 4), (4, 2), (2, 1)):
        layers += [
            nn.Conv2d(a * w, b * w, 3),
            nn.Conv2d(b * w, b * w, 3),
            nn.Conv2d(a * w, b * w, 1),
        ]
        layers += [nn.Linear(condition, c * w) for c in (a, a, b, b)]
    for a, b in ((0, 1), (1, 2), (2, 4), (4, 8), (8, 16), (16, 16)):
        inputs = a * w or 3
        layers += [nn.Conv2d(inputs, b * w, 3), nn.Conv2d(b * w, b * w, 3)]
        layers += [nn.Conv2d(inputs, b * w, 1)] if (a, b) != (16, 16) else []
    for channels in (2 * w, w):  # one attention block each
        layers += [nn.Conv2d(channels, channels // 8, 1) for _ in range(2)]
        layers += [nn.Conv2d(channels, channels // 2, 1), nn.Conv2d(channels // 2, channels, 1)]
    layers += [nn.Linear(16 * w, 1), nn.Linear(16 * w, classes)]
    return nn.ModuleList(layers)


def deep(width: int = 32) -> nn.Module:
    """175 small weights: 58 bottleneck blocks and a first layer."""
    layers = [nn.Conv2d(3, 4 * width, 3)]
    for _ in range(58):
        layers += [nn.Conv2d(4 * width, width, 1), nn.Conv2d(width, width, 3)]
        layers += [nn.Conv2d(width, 4 * width, 1)]
    return nn.ModuleList(layers)


def one_weight(channels: int, width: int) -> nn.Module:
    """A single 3x3 convolution: a matrix of ``width`` by ``9 * channels``, both to scale."""
    return nn.ModuleList([nn.Conv2d(channels, width, 3)])


@dataclass(frozen=True)
class Workload:
    """A network whose layers hold the weights to normalize."""

    title: str
    build: Callable[[int], nn.Module]
    width: int
    small_width: int  # for a run that only tries whether everything works
    every: bool = False  # every contender in every mode; else a few, in training, on GPUs


WORKLOADS = {
    "cnn": Workload("CNN discriminator, 32x32 (Table 3)", cnn_discriminator, 64, 64, every=True),
    "resnet": Workload(
        "ResNet discriminator, 128x128 (Table 10)", ResNetDiscriminator, 64, 8, every=True
    ),
    "biggan": Workload("BigGAN, 128x128, both networks", biggan_pair, 96, 8),
    "deep": Workload("175 layers", deep, 32, 4),
    "one-64x27": Workload("one weight, 64x27", partial(one_weight, 3), 64, 64),
    "one-512x2304": Workload("one weight, 512x2304", partial(one_weight, 256), 512, 8),
    "one-4096x9216": Workload("one weight, 4096x9216", partial(one_weight, 1024), 4096, 4),
}


def normalized_layers(model: nn.Module) -> list[nn.Module]:
    """The layers whose ``weight`` is normalized, in order."""
    return [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]


@dataclass(frozen=True, eq=False)
class Case:
    """One workload on one device: the same start for every contender."""

    name: str
    model: nn.Module
    grads: list[Tensor]  # dL/dW_sn of each weight
    vectors: list[list[tuple[Tensor, Tensor]]]  # (u, v) of unfoldings 0 and 1, or of 0 in a matrix
    device: torch.device

    @property
    def weights(self) -> list[Tensor]:
        return [layer.weight.detach() for layer in normalized_layers(self.model)]

    @property
    def n_bytes(self) -> int:
        return sum(weight.nbytes for weight in self.weights)


@lru_cache(maxsize=2)
def make_case(name: str, device: str = "cpu", *, small: bool = False) -> Case:
    """The case of workload ``name``; the same numbers on every call and device."""
    workload = WORKLOADS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = workload.build(workload.small_width if small else workload.width)
        grads, vectors = [], []
        for layer in normalized_layers(model):
            weight = layer.weight.detach()
            grads.append(torch.randn_like(weight))
            dims = (0, 1) if weight.ndim > 2 else (0,)
            vectors.append([_warm_vectors(weight.movedim(dim, 0).flatten(1)) for dim in dims])
    return Case(
        name,
        model.to(device),
        [grad.to(device) for grad in grads],
        [[(u.to(device), v.to(device)) for u, v in pairs] for pairs in vectors],
        torch.device(device),
    )


def _warm_vectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    u, v = torch.empty(0), F.normalize(torch.randn(matrix.shape[1]), dim=0)
    for _ in range(WARM_UP):
        u = F.normalize(matrix @ v, dim=0)
        v = F.normalize(matrix.T @ u, dim=0)
    return u, v
