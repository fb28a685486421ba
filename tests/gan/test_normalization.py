"""Every normalization on every network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastsn.analysis import conv_norm_of, spectral_norm_exact
from fastsn.conv_norm import ConvSpectralNorm
from fastsn.gan.nets.losses import gradient_penalty
from fastsn.gan.nets.models import NETWORKS, build
from fastsn.gan.nets.normalization import METHODS, SCALED, SPREADABLE, normalize, spread_scales
from fastsn.parametrization import SpectralNorm

SHAPES = {name: (n.channels, n.resolution, n.resolution) for name, n in NETWORKS.items()}


def discriminator_of(name: str, width: float = 1 / 64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build(name, width=width)[1]


def layers(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_every_network(name: str, method: str) -> None:
    network = discriminator_of(name, 1 / 16 if name.startswith("resnet") else 1 / 64)
    normalize(network, method, input_shape=SHAPES[name])
    scores = network(torch.randn(1, *SHAPES[name]))
    assert scores.shape == (1, 1)
    scores.square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    assert all(p.grad.any() for p in network.parameters() if p.ndim > 1)


@pytest.mark.parametrize("method", METHODS)
def test_copies_give_the_same_scores(method: str) -> None:
    network = discriminator_of("cnn32")
    normalize(network, method, input_shape=SHAPES["cnn32"])
    images = torch.randn(2, *SHAPES["cnn32"])
    network(images)
    expected = network.eval()(images)
    assert torch.equal(copy.deepcopy(network)(images), expected)
    other = discriminator_of("cnn32")
    normalize(other, method, input_shape=SHAPES["cnn32"])
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.eval()(images), expected)


@pytest.mark.parametrize("update", ["step", "forward"])
def test_update_modes(update: str) -> None:
    network = discriminator_of("mnist")
    group = normalize(network, "bssn", scale=1.2, update=update, input_shape=SHAPES["mnist"])
    assert group is not None
    network(torch.randn(2, 1, 28, 28))
    before = [v.clone() for m in group.members for pair in m.norm.vectors() for v in pair]
    network(torch.randn(2, 1, 28, 28))
    network(torch.randn(2, 1, 28, 28))
    after = [v for m in group.members for pair in m.norm.vectors() for v in pair]
    same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert same == (update == "step")


def converged(layer: nn.Module, reads: int = 100) -> Tensor:
    """The weight of a layer whose vectors have advanced ``reads`` times."""
    with torch.no_grad():
        for _ in range(reads):
            layer.weight  # noqa: B018 - a read advances them
    return layer.eval().weight.detach()


@pytest.mark.parametrize(
    ("method", "scale"), [("sn", 1.0), ("ssn", 1.3), ("torch", 1.0), ("bsn", 1.0), ("bssn", 0.7)]
)
def test_norms_of_normalized_weights(method: str, scale: float) -> None:
    network = discriminator_of("cnn32", 1 / 16)
    normalize(network, method, scale=scale, update="forward", input_shape=SHAPES["cnn32"])
    for layer in layers(network):
        weight = converged(layer)
        both = [spectral_norm_exact(weight, dim=dim) for dim in (0, 1)]
        sigma = sum(both) / 2 if method.startswith("b") else both[0]
        assert sigma == pytest.approx(scale, rel=2e-2)


def test_sn_conv_normalizes_the_convolutions_at_their_own_sizes() -> None:
    network = discriminator_of("cnn32", 1 / 16)
    normalize(network, "sn_conv", scale=1.75, input_shape=(3, 32, 32))
    sides = [32, 32, 16, 16, 8, 8, 4]
    norms = [layer.parametrizations.weight[0] for layer in network.convs]
    assert all(isinstance(norm, ConvSpectralNorm) for norm in norms)
    assert [norm.input_shape[1:] for norm in norms] == [(side, side) for side in sides]
    assert isinstance(network.fc.parametrizations.weight[0], SpectralNorm)
    for layer, side in ((network.convs[1], 32), (network.convs[6], 4)):
        converged(layer, reads=40)
        assert conv_norm_of(layer, side) == pytest.approx(1.75, rel=2e-2)
    assert spectral_norm_exact(converged(network.fc)) == pytest.approx(1.75, rel=1e-3)


def gammas(network: nn.Module) -> list[Tensor]:
    return [p for p in network.parameters() if p.ndim == 0]


@pytest.mark.parametrize(("prefix", "plain"), [("", "sn"), ("bsn_", "bsn")])
@pytest.mark.parametrize(("variant", "count"), [("same_gamma", 1), ("diff_gamma", 8)])
def test_gamma_multiplies_weights_and_biases(
    prefix: str, plain: str, variant: str, count: int
) -> None:
    network = discriminator_of("cnn32")
    for layer in layers(network):
        nn.init.normal_(layer.bias)
    reference = copy.deepcopy(network)
    with torch.random.fork_rng():
        normalize(network, prefix + variant, input_shape=SHAPES["cnn32"])
    normalize(reference, plain, input_shape=SHAPES["cnn32"])
    network.eval(), reference.eval()
    for layer, other in zip(layers(network), layers(reference), strict=True):
        torch.testing.assert_close(layer.weight, other.weight)  # gamma is 1 at first
        torch.testing.assert_close(layer.bias, other.bias)
    trained = gammas(network)
    assert len(trained) == count
    with torch.no_grad():
        for gamma in trained:
            gamma.mul_(1.5)
    for layer, other in zip(layers(network), layers(reference), strict=True):
        torch.testing.assert_close(layer.weight, 1.5 * other.weight)
        torch.testing.assert_close(layer.bias, 1.5 * other.bias)


def test_gamma_lets_the_penalty_reach_zero() -> None:
    network = discriminator_of("mnist", 1 / 16)
    normalize(network, "same_gamma", input_shape=SHAPES["mnist"])
    (gamma,) = gammas(network)
    optimizer = torch.optim.Adam([gamma], 0.05)
    real, fake = torch.rand(2, 4, 1, 28, 28)
    rng, penalties = torch.Generator().manual_seed(0), []
    for _ in range(40):
        penalty = gradient_penalty(network, real, fake, rng, unit=network.unit)
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        penalties.append(penalty.item())
    # With SN alone the gradients are below norm 1.
    assert penalties[0] > 0.2
    assert gamma.item() > 1.1
    assert penalties[-1] < 0.05


def test_same_gamma_stays_one_parameter_when_moved_copied_and_saved() -> None:
    network = discriminator_of("cnn32")
    normalize(network, "same_gamma", input_shape=SHAPES["cnn32"])
    moved = copy.deepcopy(network).to(torch.float32, memory_format=torch.channels_last)
    assert len(gammas(moved)) == 1
    with torch.no_grad():
        gammas(network)[0].fill_(2)
    moved.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(moved.eval()(images), network.eval()(images))


@pytest.mark.parametrize("method", ["none", "lecun"])
def test_some_methods_register_nothing(method: str) -> None:
    network = discriminator_of("cnn32")
    before = copy.deepcopy(network.state_dict())
    assert normalize(network, method, input_shape=SHAPES["cnn32"]) is None
    assert not any(parametrize.is_parametrized(layer) for layer in layers(network))
    same = [torch.equal(before[key], value) for key, value in network.state_dict().items()]
    assert all(same) == (method == "none")


@pytest.mark.parametrize("method", METHODS)
def test_scale_is_taken_or_refused(method: str) -> None:
    network = discriminator_of("mnist")
    if method in SCALED:
        normalize(network, method, scale=1.2, input_shape=SHAPES["mnist"])
    else:
        with pytest.raises(ValueError, match=f"expected scale 1 with method '{method}', got 1.2"):
            normalize(network, method, scale=1.2, input_shape=SHAPES["mnist"])
        assert not any(parametrize.is_parametrized(layer) for layer in layers(network))


def test_unknown_names_are_refused() -> None:
    network = discriminator_of("mnist")
    with pytest.raises(ValueError, match="expected a normalization method .*'bssn'.*, got 'bss'"):
        normalize(network, "bss", input_shape=SHAPES["mnist"])
    with pytest.raises(ValueError, match="expected update to be 'step' or 'forward', got 'never'"):
        normalize(network, "bssn", update="never", input_shape=SHAPES["mnist"])


@pytest.mark.parametrize("method", METHODS)
def test_spread_gives_every_layer_a_scale_of_its_own_or_is_refused(method: str) -> None:
    network = discriminator_of("cnn32")
    if method not in SPREADABLE:
        with pytest.raises(ValueError, match=f"expected spread 0 with method '{method}'"):
            normalize(network, method, spread=0.5, input_shape=SHAPES["cnn32"])
        return
    normalize(network, method, scale=1.75, spread=0.5, spread_seed=3, input_shape=SHAPES["cnn32"])
    norms = [m for m in network.modules() if isinstance(m, (SpectralNorm, ConvSpectralNorm))]
    scales = torch.tensor([norm.scale for norm in norms], dtype=torch.float64)
    assert scales.tolist() == spread_scales(8, 1.75, 0.5, 3)
    assert scales.log().mean().exp() == pytest.approx(1.75)
    assert 0.2 < scales.log().std() < 1


def test_scales_differ_between_seeds_and_not_without_a_spread() -> None:
    assert spread_scales(4, 1.2, 0.0, 0) == [1.2] * 4
    assert spread_scales(4, 1.2, 0.5, 0) == spread_scales(4, 1.2, 0.5, 0)
    assert spread_scales(4, 1.2, 0.5, 0) != spread_scales(4, 1.2, 0.5, 1)
