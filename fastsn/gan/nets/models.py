"""The paper's networks for images of 28 to 64 pixels: Tables 2 to 5 (appendix I and J).

No normalization is in them; :mod:`fastsn.gan.nets.normalization` puts it on. A generator maps
``z [n, z_dim]`` to images ``[n, c, h, w]`` in [-1, 1], a discriminator maps images to scores
``[n, 1]``.

Where the tables are silent, the networks follow the authors' code: the generators' fully connected
layer has batch normalization over its flat output, layers have biases unless the table says
otherwise, biases start at 0, fully connected and transposed layers from N(0, 0.02^2), convolutions
of the discriminator from the same cut off at two standard deviations; batch normalization has
eps 1e-5 and keeps 0.9 of its running averages. Its padding is TensorFlow's SAME, which is 1 on each
side for kernels 4 (stride 2) and 3 (stride 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from fastsn.gan.nets.resnet import ResNetDiscriminator, ResNetGenerator

__all__ = [
    "NETWORKS",
    "CNNDiscriminator",
    "CNNGenerator",
    "MNISTDiscriminator",
    "MNISTGenerator",
    "Network",
    "build",
    "lecun_",
]

STD = 0.02


def _wide(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def _initialize(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.trunc_normal_(layer.weight, std=STD, a=-2 * STD, b=2 * STD)
        elif isinstance(layer, (nn.Linear, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, std=STD)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class CNNGenerator(nn.Module):
    """Table 2: a fully connected layer and four transposed convolutions.

    Args:
        resolution: side of the images, a multiple of 8; M_g is an eighth of it.
        channels: of the images.
        width: factor of all other numbers of channels.
    """

    z_dim = 128
    latent = "normal"  # z ~ N(0, 1)

    def __init__(self, resolution: int = 32, channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        self.base = resolution // 8
        c0, c1, c2, c3 = (_wide(c, width) for c in (512, 256, 128, 64))
        flat = self.base**2 * c0
        self.fc, self.fc_bn = nn.Linear(self.z_dim, flat), nn.BatchNorm1d(flat)
        self.deconvs = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in ((c0, c1), (c1, c2), (c2, c3))
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(c) for c in (c1, c2, c3))
        self.last = nn.ConvTranspose2d(c3, channels, 3, 1, 1)
        _initialize(self)

    def forward(self, z: Tensor) -> Tensor:
        x = F.relu(self.fc_bn(self.fc(z)))
        x = x.unflatten(1, (-1, self.base, self.base))
        for deconv, bn in zip(self.deconvs, self.bns, strict=True):
            x = F.relu(bn(deconv(x)))
        return self.last(x).tanh()


class CNNDiscriminator(nn.Module):
    """Table 3: seven convolutions and a fully connected layer, leaky ReLU 0.1.

    Args:
        resolution: side of the images (M), a multiple of 8.
        channels: of the images.
        width: factor of all other numbers of channels.
    """

    unit = 1.0  # the paper's pixels are in [-1, 1], as ours
    negative_slope = 0.1

    def __init__(self, resolution: int = 32, channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        c1, c2, c3, c4 = (_wide(c, width) for c in (64, 128, 256, 512))
        sizes = ((channels, c1), (c1, c1), (c1, c2), (c2, c2), (c2, c3), (c3, c3), (c3, c4))
        # Kernel 3 with stride 1 and kernel 4 with stride 2 take turns.
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3 + i % 2, 1 + i % 2, 1) for i, (a, b) in enumerate(sizes)
        )
        self.fc = nn.Linear((resolution // 8) ** 2 * c4, 1)
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.leaky_relu(conv(x), self.negative_slope)
        return self.fc(x.flatten(1))


class MNISTGenerator(nn.Module):
    """Table 4: a fully connected layer and two transposed convolutions; z is uniform.

    The authors' code for MNIST is not published. Our choices: initialization and batch
    normalization as in their other networks, and padding 2 with output padding 1, which gives the
    table's sizes. The table's sigmoid gives pixels in [0, 1]; they are handed on as ``2 p - 1``, in
    [-1, 1] as everywhere here, and :class:`MNISTDiscriminator` takes that back.

    Args:
        resolution: side of the images, a multiple of 4.
        channels: of the images.
        width: factor of all other numbers of channels.
    """

    z_dim = 100
    latent = "uniform"  # z ~ U(-1, 1)

    def __init__(self, resolution: int = 28, channels: int = 1, width: float = 1.0) -> None:
        super().__init__()
        self.base = resolution // 4
        c0, c1 = _wide(128, width), _wide(64, width)
        flat = self.base**2 * c0
        self.fc, self.fc_bn = nn.Linear(self.z_dim, flat), nn.BatchNorm1d(flat)
        self.deconv, self.bn = nn.ConvTranspose2d(c0, c1, 5, 2, 2, 1), nn.BatchNorm2d(c1)
        self.last = nn.ConvTranspose2d(c1, channels, 5, 2, 2, 1)
        _initialize(self)

    def forward(self, z: Tensor) -> Tensor:
        x = self.fc_bn(F.leaky_relu(self.fc(z), 0.2))
        x = x.unflatten(1, (-1, self.base, self.base))
        x = self.bn(F.leaky_relu(self.deconv(x), 0.2))
        return self.last(x).sigmoid() * 2 - 1


class MNISTDiscriminator(nn.Module):
    """Table 5: three convolutions and a fully connected layer without biases, leaky ReLU 0.2.

    The paper feeds pixels in [0, 1] (appendix H), so images in [-1, 1] are mapped there first.
    Padding is 2 on all sides: SAME's sizes, and one pixel off its (1, 2) where the size is even.

    Args:
        resolution: side of the images, a multiple of 4.
        channels: of the images.
        width: factor of all other numbers of channels.
    """

    unit = 2.0  # one unit of the paper's pixels, in [0, 1], is two of ours
    negative_slope = 0.2

    def __init__(self, resolution: int = 28, channels: int = 1, width: float = 1.0) -> None:
        super().__init__()
        c1, c2, c3 = (_wide(c, width) for c in (64, 128, 256))
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 5, 2, 2, bias=False) for a, b in ((channels, c1), (c1, c2), (c2, c3))
        )
        self.fc = nn.Linear((-(-resolution // 8)) ** 2 * c3, 1, bias=False)
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = (x + 1) / 2
        for conv in self.convs:
            x = F.leaky_relu(conv(x), self.negative_slope)
        return self.fc(x.flatten(1))


class Network(NamedTuple):
    """A pair of networks that :func:`build` makes.

    Attributes:
        generator: made of ``(resolution, channels, width)``.
        discriminator: likewise.
        resolution: side of the paper's images.
        channels: of the paper's images.
        sizes: whether a resolution is possible.
        possible: the same in words.
    """

    generator: Callable[[int, int, float], nn.Module]
    discriminator: Callable[[int, int, float], nn.Module]
    resolution: int
    channels: int
    sizes: Callable[[int], bool]
    possible: str


def _cnn(resolution: int) -> Network:
    return Network(
        CNNGenerator, CNNDiscriminator, resolution, 3, lambda n: n % 8 == 0, "a multiple of 8"
    )


def _resnet(resolution: int) -> Network:
    return Network(
        ResNetGenerator,
        ResNetDiscriminator,
        resolution,
        3,
        lambda n: n in (8, 16, 32, 64, 128, 256),
        "a power of two from 8 to 256",
    )


#: ``mnist``: Tables 4-5. ``cnn*``: Tables 2-3 for CIFAR10, STL10 and CelebA. ``resnet128``: Tables
#: 8-13 for ImageNet; ``resnet32`` and ``resnet64`` are the same with fewer blocks.
NETWORKS: dict[str, Network] = {
    "mnist": Network(
        MNISTGenerator, MNISTDiscriminator, 28, 1, lambda n: n % 4 == 0, "a multiple of 4"
    ),
    "cnn32": _cnn(32),
    "cnn48": _cnn(48),
    "cnn64": _cnn(64),
    "resnet32": _resnet(32),
    "resnet64": _resnet(64),
    "resnet128": _resnet(128),
}


def build(
    name: str,
    *,
    resolution: int | None = None,
    width: float = 1.0,
    channels: int | None = None,
    negative_slope: float | None = None,
) -> tuple[nn.Module, nn.Module]:
    """A generator and a discriminator, initialized from torch's default random numbers.

    Args:
        name: one of :data:`NETWORKS`.
        resolution: side of the images; default: that of the paper's data set.
        width: factor of the numbers of channels (but z's and the images').
        channels: of the images; default: likewise.
        negative_slope: of the discriminator's leaky ReLU; default: the table's.

    Returns:
        ``(generator, discriminator)``. The generator has ``z_dim`` and ``latent``, ``"normal"`` for
        N(0, 1) or ``"uniform"`` for U(-1, 1); the discriminator has ``unit``, see
        :func:`fastsn.gan.nets.losses.gradient_penalty`.

    Raises:
        ValueError: an unknown name, or a size the network cannot have.
    """
    if name not in NETWORKS:
        raise ValueError(f"expected a network of {list(NETWORKS)}, got {name!r}")
    network = NETWORKS[name]
    resolution = network.resolution if resolution is None else resolution
    channels = network.channels if channels is None else channels
    if resolution < 1 or not network.sizes(resolution):
        raise ValueError(
            f"expected the resolution of network {name!r} to be {network.possible}, "
            f"got {resolution}"
        )
    if channels < 1:
        raise ValueError(f"expected at least one image channel, got {channels}")
    if not 0 < width < math.inf:
        raise ValueError(f"expected width to be a positive number, got {width}")
    sizes = resolution, channels, width
    generator, discriminator = network.generator(*sizes), network.discriminator(*sizes)
    if negative_slope is not None:
        if not hasattr(discriminator, "negative_slope"):
            raise ValueError(
                f"expected no negative_slope with network {name!r}, got {negative_slope}: it has "
                "ReLUs alone"
            )
        setattr(discriminator, "negative_slope", negative_slope)  # noqa: B010 - a plain number
    return generator, discriminator


def lecun_(network: nn.Module, scale: float = 1.0) -> None:
    """Scaled LeCun initialization (sections 4 and 5.2): weights from N(0, scale^2 / fan-in).

    In place; biases become 0. The paper does not say whether its scale multiplies the weights or
    their variance: here it is the weights, as in SSN, which it compares with.
    """
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(layer.weight, std=scale / math.sqrt(layer.weight[0].numel()))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
