"""What PyTorch's own tests ask of its spectral_norm, asked of fastsn's.

The properties are those of test/nn/test_parametrization.py; the tests are our own. Each runs with
and without ``torch.__future__.set_swap_module_params_on_conversion``, as PyTorch's do.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from cases import same_bits
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn.utils import parametrize

import fastsn

pytestmark = pytest.mark.usefixtures("backend")


@pytest.fixture(params=[False, True], ids=["", "swap"], autouse=True)
def _swap(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(request.param)
    yield
    torch.__future__.set_swap_module_params_on_conversion(before)


def normalized_linear(requires_grad: bool = True) -> tuple[nn.Module, nn.Module]:
    """A layer in float64, where gradcheck can work, and its parametrization."""
    layer = nn.Linear(3, 4, dtype=torch.float64)
    layer.weight.requires_grad_(requires_grad)
    fastsn.spectral_norm(layer)
    return layer, layer.parametrizations.weight[0]


def inputs() -> Tensor:
    return torch.randn(2, 3, dtype=torch.float64)


def test_weight_is_a_property_with_its_state_in_the_parametrization() -> None:
    layer = fastsn.spectral_norm(nn.Linear(5, 7, dtype=torch.float64))
    held = layer.parametrizations.weight
    assert held[0]._u.shape == (7,) and held[0]._v.shape == (5,)
    assert set(held[0]._buffers) == {"_u", "_v"}
    assert set(held._parameters) == {"original"}
    assert isinstance(held.original, nn.Parameter) and held.original.requires_grad
    assert "weight" not in layer._parameters and "weight" not in layer._buffers
    weight = layer.weight
    assert weight.shape == held.original.shape and weight.stride() == held.original.stride()


def test_registering_removing_and_registering_again() -> None:
    layer = fastsn.spectral_norm(nn.Linear(5, 7, dtype=torch.float64))
    layer = parametrize.remove_parametrizations(layer, "weight")
    assert not hasattr(layer, "parametrizations")
    assert isinstance(layer._parameters["weight"], nn.Parameter)
    assert type(layer) is nn.Linear
    # Twice on one parameter, and on two parameters of one module.
    for name in ("weight", "weight", "bias"):
        assert fastsn.spectral_norm(layer, name) is layer
    assert len(layer.parametrizations.weight) == 2
    layer = parametrize.remove_parametrizations(layer, "bias")
    assert "bias" in layer._parameters and "weight" not in layer._parameters
    assert parametrize.is_parametrized(layer, "weight")
    layer = parametrize.remove_parametrizations(layer, "weight")
    assert "weight" in layer._parameters
    assert not parametrize.is_parametrized(layer) and not hasattr(layer, "parametrizations")


def test_parametrization_takes_the_mode_of_its_layer() -> None:
    for training in (True, False):
        layer = fastsn.spectral_norm(nn.Linear(4, 4).train(training))
        assert layer.parametrizations.weight[0].training == training


def test_training_advances_the_vectors_and_reaches_the_original() -> None:
    layer, norm = normalized_linear()
    before = norm._u.clone(), norm._v.clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x = inputs()
    layer(x).sum().backward()
    optimizer.step()
    out = layer(x)
    assert not torch.equal(before[0], norm._u) and not torch.equal(before[1], norm._v)
    (grad,) = torch.autograd.grad(out.sum(), layer.parametrizations.weight.original)
    assert torch.count_nonzero(grad) == grad.numel()


@pytest.mark.parametrize("requires_grad", [True, False])
def test_gradients_through_two_training_forwards(requires_grad: bool) -> None:
    layer, norm = normalized_linear(requires_grad)
    given = norm._u.clone(), norm._v.clone()

    def twice(x: Tensor) -> Tensor:
        norm._u.data.copy_(given[0])
        norm._v.data.copy_(given[1])
        return layer(x) + layer(x)

    x = inputs().requires_grad_()
    twice(x).sum().backward()
    assert x.grad is not None and layer.bias.grad is not None
    assert (layer.parametrizations.weight.original.grad is not None) == requires_grad
    assert gradcheck(twice, (inputs().requires_grad_(),))


@pytest.mark.parametrize("forwards", [1, 3])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_removal_in_evaluation_mode_leaves_the_last_output(
    requires_grad: bool, forwards: int
) -> None:
    x = inputs()
    layer, _ = normalized_linear(requires_grad)
    for _ in range(2):
        for _ in range(forwards):
            # Detached, for swapping needs a weight that no graph holds.
            out = layer(x).detach()
        layer.eval()
        layer = parametrize.remove_parametrizations(layer, "weight")
        torch.testing.assert_close(layer(x).detach(), out)
        assert layer.weight.requires_grad == requires_grad
        fastsn.spectral_norm(layer.train())


@pytest.mark.parametrize("requires_grad", [True, False])
def test_evaluation_repeats_the_last_training_forward(requires_grad: bool) -> None:
    x = inputs()
    layer, norm = normalized_linear(requires_grad)
    layer(x)
    last = layer(x)
    vectors = norm._u.clone(), norm._v.clone()
    layer.zero_grad()
    layer.eval()
    first = layer(x)
    torch.testing.assert_close(first, last)
    assert same_bits(first, layer(x))
    assert same_bits(vectors[0], norm._u) and same_bits(vectors[1], norm._v)


@pytest.mark.parametrize("requires_grad", [True, False])
def test_gradients_through_training_and_evaluation_mixed(requires_grad: bool) -> None:
    layer, norm = normalized_linear(requires_grad)
    given = norm._u.clone(), norm._v.clone()

    def mixed(x: Tensor) -> Tensor:
        norm._u.data.copy_(given[0])
        norm._v.data.copy_(given[1])
        return sum(layer.train(training)(x) for training in (True, False, True, False))

    assert gradcheck(mixed, (inputs().requires_grad_(),))


def test_gradients_of_the_original_in_evaluation() -> None:
    layer, _ = normalized_linear()
    layer.eval()
    x = inputs()
    assert gradcheck(lambda _: layer(x), (layer.parametrizations.weight.original,))


@pytest.mark.parametrize("forwards", [0, 3])
def test_state_dict_loads_strictly_and_in_parts(forwards: int) -> None:
    x = torch.randn(2, 3)
    layer = fastsn.spectral_norm(nn.Linear(3, 5)).train()
    for _ in range(forwards):
        layer(x)
    saved = copy.deepcopy(layer.state_dict())
    prefix = "parametrizations.weight."
    assert set(saved) == {"bias", prefix + "original", prefix + "0._u", prefix + "0._v"}

    partial = copy.deepcopy(saved)
    partial["nonsense"] = "nonsense"
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "nonsense"'):
        layer.load_state_dict(partial)
    for missing in (None, prefix + "original", prefix + "0._u", prefix + "0._v"):
        if missing is not None:
            del partial[missing]
        layer.load_state_dict(partial, strict=False)
    # A weight as unparametrized layers have it, then without metadata, then hardly anything.
    partial["weight"] = layer.weight.detach().clone()
    layer.load_state_dict(partial, strict=False)
    del partial._metadata[prefix + "0"]
    layer.load_state_dict(partial, strict=False)
    for key in ("weight", "bias"):
        del partial[key]
        layer.load_state_dict(partial, strict=False)
    assert set(partial) == {"nonsense"}

    # Whatever happened since, a layer wrapped anew goes on from the state that was saved.
    outputs = []
    for _ in range(2):
        layer = parametrize.remove_parametrizations(layer, "weight")
        layer = fastsn.spectral_norm(layer)
        layer.load_state_dict(saved)
        assert all(torch.equal(saved[key], value) for key, value in layer.state_dict().items())
        with torch.no_grad():
            modes = (False, True, True, False)
            outputs.append([layer.train(training)(x) for training in modes])
    for first, second in zip(*outputs, strict=True):
        assert same_bits(first, second)


def test_transposed_convolution_is_normalized_along_dimension_1() -> None:
    layer = fastsn.spectral_norm(nn.ConvTranspose2d(3, 4, (5, 6)))
    assert layer(torch.randn(2, 3, 10, 12)).shape == (2, 4, 14, 17)
    held = layer.parametrizations.weight
    assert held[0]._u.shape == held.original[0, :, 0, 0].shape == (4,)


def test_forward_is_one_power_iteration_and_a_division() -> None:
    layer = fastsn.spectral_norm(nn.Linear(5, 7))
    held, x = layer.parametrizations.weight, torch.randn(3, 5)
    with torch.no_grad():
        u = F.normalize(held.original @ held[0]._v, dim=0, eps=1e-12)
        v = F.normalize(held.original.T @ u, dim=0, eps=1e-12)
        sigma = u @ held.original @ v
        expected = F.linear(x, held.original / sigma, layer.bias)
    # The same layer with the weight divided already: its sigma is 1, and its output the same.
    divided = copy.deepcopy(layer)
    divided.parametrizations.weight.original.data /= sigma
    for own in (layer, divided):
        torch.testing.assert_close(own(x), expected)
        torch.testing.assert_close(own.parametrizations.weight[0]._u, u)
        torch.testing.assert_close(own.parametrizations.weight[0]._v, v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_value_of_a_diagonal_weight(dtype: torch.dtype, backend: str) -> None:
    with torch.no_grad(), fastsn.use_backend("auto" if dtype.is_complex else backend):
        layer = nn.Linear(2, 2, dtype=dtype)
        diagonal = layer.weight.diagonal().clone()
        layer.weight = nn.Parameter(torch.diag(diagonal))
        fastsn.spectral_norm(layer)
        torch.testing.assert_close(layer.weight, torch.diag(diagonal / diagonal.abs().max()))
