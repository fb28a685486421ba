"""The networks against the paper's tables, written out as numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastsn.gan.nets.models import NETWORKS, MNISTDiscriminator, MNISTGenerator, build, lecun_

# Weights in the order of the tables: [out, in] of fully connected layers, [out, in, k, k] of
# convolutions, [in, out, k, k] of transposed ones.


def table_2(m_g: int) -> list[tuple[int, ...]]:
    return [
        (m_g * m_g * 512, 128),
        (512, 256, 4, 4),
        (256, 128, 4, 4),
        (128, 64, 4, 4),
        (64, 3, 3, 3),
    ]


def table_3(last: int) -> list[tuple[int, ...]]:
    return [
        (64, 3, 3, 3),
        (64, 64, 4, 4),
        (128, 64, 3, 3),
        (128, 128, 4, 4),
        (256, 128, 3, 3),
        (256, 256, 4, 4),
        (512, 256, 3, 3),
        (1, last),
    ]


TABLE_4 = [(6272, 100), (128, 64, 5, 5), (64, 1, 5, 5)]
TABLE_5 = [(64, 1, 5, 5), (128, 64, 5, 5), (256, 128, 5, 5), (1, 4096)]
TABLE_8 = [
    (16384, 128),
    *[(1024, 1024, 3, 3), (1024, 1024, 3, 3), (1024, 1024, 1, 1)],
    *[(512, 1024, 3, 3), (512, 512, 3, 3), (512, 1024, 1, 1)],
    *[(256, 512, 3, 3), (256, 256, 3, 3), (256, 512, 1, 1)],
    *[(128, 256, 3, 3), (128, 128, 3, 3), (128, 256, 1, 1)],
    *[(64, 128, 3, 3), (64, 64, 3, 3), (64, 128, 1, 1)],
    (3, 64, 3, 3),
]
TABLE_10 = [
    *[(64, 3, 3, 3), (64, 64, 3, 3), (64, 3, 1, 1)],
    *[(128, 64, 3, 3), (128, 128, 3, 3), (128, 64, 1, 1)],
    *[(256, 128, 3, 3), (256, 256, 3, 3), (256, 128, 1, 1)],
    *[(512, 256, 3, 3), (512, 512, 3, 3), (512, 256, 1, 1)],
    *[(1024, 512, 3, 3), (1024, 1024, 3, 3), (1024, 512, 1, 1)],
    *[(1024, 1024, 3, 3), (1024, 1024, 3, 3), (1024, 1024, 1, 1)],
    (1, 1024),
]
TABLES = {
    "mnist": (TABLE_4, TABLE_5),
    "cnn32": (table_2(4), table_3(8192)),
    "cnn48": (table_2(6), table_3(18432)),
    "cnn64": (table_2(8), table_3(32768)),
    "resnet128": (TABLE_8, TABLE_10),
}
# Widths of batch normalizations, in order; Table 5 alone has no biases.
NORMS = {
    "mnist": [6272, 64],
    "cnn32": [8192, 256, 128, 64],
    "cnn48": [18432, 256, 128, 64],
    "cnn64": [32768, 256, 128, 64],
    "resnet128": [1024, 1024, 1024, 512, 512, 256, 256, 128, 128, 64, 64],
}
STRIDES = {
    "mnist": [2, 2, 2],
    "cnn32": [1, 2, 1, 2, 1, 2, 1],
    "cnn48": [1, 2, 1, 2, 1, 2, 1],
    "cnn64": [1, 2, 1, 2, 1, 2, 1],
    "resnet128": [1] * 18,
}


def weights(network: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in network.parameters() if p.ndim > 1]


@pytest.mark.parametrize("name", TABLES)
def test_full_width_has_the_shapes_of_the_tables(name: str) -> None:
    with torch.device("meta"):
        generator, discriminator = build(name)
        images = generator(torch.empty(2, generator.z_dim))
        scores = discriminator(images)
    assert (weights(generator), weights(discriminator)) == TABLES[name]
    norms = [
        layer.num_features
        for layer in generator.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]
    assert norms == NORMS[name]
    convs = [layer for layer in discriminator.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.stride[0] for layer in convs] == STRIDES[name]
    sizes = {"mnist": (1, 28), "cnn32": (3, 32), "cnn48": (3, 48), "cnn64": (3, 64)}
    channels, side = sizes.get(name, (3, 128))
    assert images.shape == (2, channels, side, side)
    assert scores.shape == (2, 1)


@pytest.mark.parametrize("name", TABLES)
def test_every_layer_has_a_bias_but_those_of_table_5(name: str) -> None:
    with torch.device("meta"):
        generator, discriminator = build(name)
    kinds = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    for network, expected in ((generator, True), (discriminator, name != "mnist")):
        layers = [layer for layer in network.modules() if isinstance(layer, kinds)]
        assert [layer.bias is not None for layer in layers] == [expected] * len(layers)


@pytest.mark.parametrize(
    ("name", "z_dim", "latent"),
    [("mnist", 100, "uniform"), ("cnn32", 128, "normal"), ("resnet128", 128, "normal")],
)
def test_latents_are_those_of_the_tables(name: str, z_dim: int, latent: str) -> None:
    with torch.device("meta"):
        generator, _ = build(name)
    assert (generator.z_dim, generator.latent) == (z_dim, latent)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("channels", [1, 3])
def test_narrow_networks_fit_each_other_and_learn(name: str, channels: int) -> None:
    generator, discriminator = build(name, width=1 / 32, channels=channels)
    images = generator(torch.randn(2, generator.z_dim))
    side = NETWORKS[name].resolution
    assert images.shape == (2, channels, side, side)
    assert images.abs().max() <= 1
    scores = discriminator(images)
    assert scores.shape == (2, 1)
    scores.sum().backward()
    for network in (generator, discriminator):
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    # A bias before batch normalization has no gradient but rounding; all weights have one.
    assert all(p.grad.any() for p in discriminator.parameters() if p.ndim > 1)


@pytest.mark.parametrize(
    ("name", "resolution"),
    [("mnist", 32), ("mnist", 20), ("cnn32", 40), ("cnn64", 16), ("resnet128", 16)],
)
def test_other_resolutions(name: str, resolution: int) -> None:
    generator, discriminator = build(name, resolution=resolution, width=1 / 16)
    images = generator(torch.randn(2, generator.z_dim))
    assert images.shape[-2:] == (resolution, resolution)
    assert discriminator(images).shape == (2, 1)


def test_smaller_resnets_leave_out_the_widest_blocks() -> None:
    with torch.device("meta"):
        generator, discriminator = build("resnet32")
    assert weights(generator)[:4] == [
        (4096, 128),
        (256, 256, 3, 3),
        (256, 256, 3, 3),
        (256, 256, 1, 1),
    ]
    assert weights(generator)[4:] == TABLE_8[10:]
    assert weights(discriminator)[:9] == TABLE_10[:9]
    assert weights(discriminator)[9:] == [
        *[(256, 256, 3, 3), (256, 256, 3, 3), (256, 256, 1, 1)],
        (1, 256),
    ]


# Initialization and arithmetic


def spread(weight: Tensor, std: float) -> None:
    """The sample's mean and deviation, within five standard errors."""
    n = weight.numel()
    assert abs(weight.mean()) < 5 * std / math.sqrt(n)
    assert abs(weight.std() / std - 1) < 5 / math.sqrt(2 * n)


def test_cnn_initialization() -> None:
    generator, discriminator = build("cnn32", width=0.25)
    spread(generator.fc.weight, 0.02)
    spread(generator.deconvs[0].weight, 0.02)
    # N(0, 0.02^2) cut off at two deviations has 0.8796 of its deviation.
    spread(discriminator.convs[6].weight, 0.02 * 0.8796)
    assert discriminator.convs[6].weight.abs().max() <= 0.04
    assert generator.fc.weight.abs().max() > 0.04
    layers = (generator.fc, generator.last, discriminator.convs[0], discriminator.fc)
    assert all(not layer.bias.any() for layer in layers)


def test_resnet_initialization() -> None:
    _, discriminator = build("resnet32", width=0.5)
    block = discriminator.blocks[1]  # 32 to 64 channels
    for conv, gain in ((block.conv1, 2), (block.shortcut, 1)):
        fan = sum(nn.init._calculate_fan_in_and_fan_out(conv.weight)) / 2
        limit = math.sqrt(3 * gain / fan)
        assert limit * 0.98 < conv.weight.abs().max() <= limit
        spread(conv.weight, limit / math.sqrt(3))
    assert not block.conv1.bias.any()


@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_lecun_initialization_has_a_variance_of_one_over_fan_in(scale: float) -> None:
    _, discriminator = build("cnn32", width=0.25)
    lecun_(discriminator, scale)
    spread(discriminator.convs[6].weight, scale / math.sqrt(64 * 3 * 3))
    spread(discriminator.fc.weight, scale / math.sqrt(128 * 4 * 4))
    assert not discriminator.fc.bias.any()


def test_mnist_pixels_are_the_papers_inside() -> None:
    generator, discriminator = MNISTGenerator(width=1 / 16), MNISTDiscriminator(width=1 / 16)
    last: list[Tensor] = []
    generator.last.register_forward_hook(lambda layer, inputs, output: last.append(output))
    seen: list[Tensor] = []
    discriminator.convs[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    discriminator(generator(torch.rand(4, 100)))
    torch.testing.assert_close(seen[0], last[0].sigmoid())


def test_global_pooling_is_a_sum() -> None:
    _, discriminator = build("resnet32", width=1 / 16)
    for parameter in discriminator.blocks.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(discriminator.blocks[-1].shortcut.bias)
    nn.init.ones_(discriminator.fc.weight)
    scores = discriminator(torch.randn(2, 3, 32, 32))
    # 16 channels of ones on 4 x 4 pixels
    torch.testing.assert_close(scores, torch.full((2, 1), 256.0))


def test_only_the_first_down_block_sees_what_is_below_zero() -> None:
    _, discriminator = build("resnet32", width=1 / 8)
    for i, block in enumerate(discriminator.blocks):
        for parameter in block.shortcut.parameters():
            nn.init.zeros_(parameter)
        channels = block.conv1.in_channels
        dark, zero = -torch.ones(1, channels, 16, 16), torch.zeros(1, channels, 16, 16)
        assert torch.equal(block(dark), block(zero)) == (i > 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cnn33"}, "expected a network of .*cnn32.*, got 'cnn33'"),
        ({"name": "cnn32", "resolution": 30}, "'cnn32' to be a multiple of 8, got 30"),
        ({"name": "mnist", "resolution": 30}, "'mnist' to be a multiple of 4, got 30"),
        ({"name": "resnet64", "resolution": 48}, "a power of two from 8 to 256, got 48"),
        ({"name": "cnn32", "resolution": 0}, "got 0"),
        ({"name": "cnn32", "width": 0.0}, "expected width to be a positive number, got 0"),
        ({"name": "cnn32", "width": math.nan}, "expected width to be a positive number, got nan"),
        ({"name": "cnn32", "channels": 0}, "at least one image channel, got 0"),
    ],
)
def test_impossible_networks_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize(("name", "layers"), [("mnist", 3), ("cnn32", 7)])
def test_negative_slope_is_that_of_every_activation(name: str, layers: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        _, discriminator = build(name, width=1 / 16, negative_slope=0.5)
    slopes: list[float] = []

    def leaky(x: Tensor, slope: float) -> Tensor:
        slopes.append(slope)
        return x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "leaky_relu", leaky)
        discriminator(torch.randn(1, NETWORKS[name].channels, *2 * [NETWORKS[name].resolution]))
    assert slopes == layers * [0.5]


def test_relu_networks_have_no_negative_slope() -> None:
    with pytest.raises(ValueError, match="expected no negative_slope with network 'resnet32'"):
        build("resnet32", width=1 / 16, negative_slope=0.1)
